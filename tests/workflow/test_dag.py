"""The DAG, run for real: dry runs of every study, a tiny study to its report, and provenance."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from projects import SNAKEMAKE, TINY, copy_project, edit, rules_of, snakemake

from veil import artifacts

POINT = "results/first/wgan/sigma-2/seed-0"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project in which the tiny study has been run to its report."""
    place = copy_project(tmp_path_factory.mktemp("project"))
    done = snakemake(place, *TINY)
    assert done.returncode == 0, done.stdout[-4000:]
    return place


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp("fresh"))


# ------------------------------------------------------------------ dry runs and refusals


def test_the_demo_dry_runs(fresh):
    counts = rules_of(snakemake(fresh, "-n").stdout)
    assert counts["train_start"] == 2  # of `fitted`, and for both levels of the denoiser
    assert counts["train_generator"] == 7
    assert counts["train_segmenter"] == 7
    assert counts["write_report"] == 1


def test_the_whole_paper_dry_runs(fresh):
    """1 + 7 x 5 GANs for each loop that has privacy, the two references, 8 U-Nets each."""
    done = snakemake(fresh, "-n", "--configfile", "config/studies/kossen2022.yaml")
    counts = rules_of(done.stdout)
    points = 1 + 1 + 1 + 35 + 35
    assert counts["train_generator"] == points
    assert counts["train_segmenter"] == 8 * points
    assert counts["score_segmentation"] == points


def test_a_batch_of_the_whole_paper_plans_its_share(fresh):
    """As docs/cluster.md has it for very large studies."""
    paper = ("--configfile", "config/studies/kossen2022.yaml")
    trained = []
    for part in ("1/7", "2/7"):
        done = snakemake(fresh, "-n", *paper, "--batch", f"gather_scores={part}", "--",
                         "gather_scores")  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
        trained.append(rules_of(done.stdout)["train_generator"])
    assert all(9 <= count <= 13 for count in trained)  # of 73; a point may lie in two parts


def test_real_angiograms_dry_run(fresh, real_data):
    done = snakemake(
        fresh,
        "-n",
        "--configfile",
        "config/studies/dias.yaml",
        env={"VEIL_REAL_DATA": str(real_data)},
    )
    counts = rules_of(done.stdout)
    assert counts["train_generator"] == 4, done.stdout[-2000:]
    assert counts["train_start"] == 1


def test_an_unset_variable_is_named(fresh):
    done = snakemake(
        fresh, "-n", "--configfile", "config/studies/dias.yaml", env={"VEIL_REAL_DATA": ""}
    )
    assert done.returncode != 0
    assert "cohorts.dias.path: environment variable VEIL_REAL_DATA is not set" in done.stdout


def test_one_result_by_path_makes_only_what_it_needs(fresh):
    """Also for a level that the configuration does not list."""
    done = snakemake(fresh, "-n", "results/first/wgan/sigma-0.9/seed-7/scores/segmentation.tsv")
    counts = rules_of(done.stdout)
    assert counts["train_generator"] == 1
    assert counts["train_segmenter"] == 1
    assert "write_report" not in counts


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("results/first/wgan/sigma-0.650/seed-0/scores/segmentation.tsv", "sigma-0.650"),
        ("results/first/wgan/sigma-.65/seed-0/scores/segmentation.tsv", "sigma-.65"),
        ("results/first/wgn/none/seed-0/scores/segmentation.tsv", "did you mean 'wgan'"),
        ("results/frist/wgan/none/seed-0/scores/segmentation.tsv", "did you mean 'first'"),
        ("results/first/wgan/none/seed-01/scores/segmentation.tsv", "seed-01"),
        ("results/first/real/sigma-1/seed-0/scores/segmentation.tsv", "allowed is 'none'"),
        ("results/second/wgan/none/seed-0/scores/segmentation.tsv", "cohorts.second.splits"),
        ("results/first/wgan/none", "too short"),
        ("results/first/wgan/none/seed-0/scores/segmentaton.tsv", "segmentaton.tsv"),
        ("results/first/data/patchs.npy", "no rule makes 'patchs.npy'"),
        ("results/first/release/wgn/eps-1/seed-0/SHA256SUMS", "did you mean 'wgan'"),
        ("results/first/release/wgan/eps-1/seed-0/card.md", "card.md"),
        ("results/first/wgan/public/seed-0/start.safetensors", "'wgan' has no public start"),
        ("results/first/diffusion/public/seed-0/weights.safetensors", "weights.safetensors"),
    ],
)
def test_malformed_paths_are_refused_with_the_grammar(fresh, path, word):
    done = snakemake(fresh, "-n", path)
    assert done.returncode != 0
    assert word in done.stdout
    assert "the grammar of a result's path" in done.stdout


def test_unknown_keys_are_refused_before_anything_runs(fresh):
    done = snakemake(fresh, "-n", "--config", "pears=3")
    assert done.returncode != 0
    assert "pears: unknown key" in done.stdout
    assert "did you mean 'pairs'" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_plan_of_the_whole_paper_is_the_known_table(fresh):
    """Published, best case and valid default of every noise level, per patch; then per patient."""
    done = snakemake(fresh, "plan", "--configfile", "config/studies/kossen2022.yaml")
    assert done.returncode == 0, done.stdout[-3000:]
    rows = {tuple(cells[:2]): cells for cells in map(str.split, done.stdout.splitlines())}
    head = next(line for line in done.stdout.splitlines() if "eps published" in line)
    assert head.split()[:5] == ["generator", "privacy", "seeds", "sigma", "draws"]

    def found(generator: str, sigma: float) -> list[float]:
        """Published, patch and patient epsilon."""
        cells = rows[generator, f"sigma-{sigma:g}"]
        return [float("nan" if cell == "-" else cell) for cell in cells[6:9]]

    for sigma, published, best, valid in (
        (2, 1.3, 2.9, 0.82), (1.5, 1.9, 9.85, 1.19), (1.2, 2.7, 28.4, 1.65), (1, 3.6, 68.3, 2.24),
        (0.8, 5.7, 189, 3.53), (0.725, 7.3, 286, 4.52), (0.65, 10.2, 437, 6.24),
    ):  # fmt: skip
        claimed, patch, patient = found("wgan-as-published", sigma)
        assert claimed == pytest.approx(published, abs=0.05)
        assert patch == pytest.approx(best, rel=0.02)
        _, default, default_patient = found("wgan", sigma)
        assert default == pytest.approx(valid, rel=0.02)
        assert patient > 100 * patch and default_patient > 100 * default
    assert rows["phantom", "none"][7:9] == ["0", "0"]
    assert not (fresh / "results").exists()


def test_lint(fresh):
    done = snakemake(fresh, "--lint")
    assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------ the tiny study


def test_the_tiny_study_reaches_its_report(project):
    page = (project / "results/report/index.html").read_text()
    for words in ("Study <strong>tiny</strong>", "Figure 2", "Figure 7", "claimed"):
        assert words in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    scores = pd.read_csv(project / "results/report/tables/scores.tsv", sep="\t")
    # 8 points and the threshold, 3 test patients, 6 metrics.
    assert len(scores) == 9 * 3 * 6
    points = pd.read_csv(project / "results/report/tables/points.tsv", sep="\t")
    loops = points.set_index(["generator", "privacy"])
    assert loops.loc[("phantom", "none"), "epsilon"] == 0
    assert np.isinf(loops.loc[("real", "none"), "epsilon"])
    published = loops.loc[("wgan-as-published", "sigma-2")]
    assert published["epsilon_published"] != published["epsilon"]
    assert (
        loops.loc[("wgan", "sigma-2"), "epsilon_patient"]
        > loops.loc[("wgan", "sigma-2"), "epsilon"]
    )


def test_the_frontier_has_every_generator_and_its_gain(project):
    table = pd.read_csv(project / "results/report/tables/frontier.tsv", sep="\t")
    assert set(table.generator) == {
        "real", "phantom", "wgan", "wgan-as-published", "diffusion", "fitted"
    }  # fmt: skip
    floor = table.set_index("generator").dsc["phantom"]
    np.testing.assert_allclose(table.gain, table.dsc - floor)


@pytest.mark.parametrize("point", ["diffusion/sigma-2", "fitted/patient-eps-5"])
def test_new_generators_are_audited_as_the_others(project, point):
    audited = pd.read_csv(project / f"results/first/{point}/seed-0/scores/audit.tsv", sep="\t")
    assert set(audited.verdict) <= {"not refuted", "not refuted (out of reach)"}
    assert (audited.lower_bound <= audited.claim).all()


def test_a_point_with_patients_as_the_unit_says_so_all_the_way(project):
    place = project / POINT.replace("sigma-2", "patient-eps-5")
    stated = artifacts.read_sealed(place / "generator/privacy.json")
    assert (stated["unit"], stated["neighbouring_relation"]) == (
        "patient",
        "add or remove one patient",
    )
    assert stated["epsilon_patient"] <= 5
    points = pd.read_csv(project / "results/report/tables/points.tsv", sep="\t")
    row = points.set_index(["generator", "privacy"]).loc[("wgan", "patient-eps-5")]
    assert row["epsilon_patient"] == pytest.approx(stated["epsilon_patient"])
    audited = pd.read_csv(place / "scores/audit.tsv", sep="\t")
    assert set(audited.unit) == {"patient"}
    assert (audited.claim == stated["epsilon_patient"]).all()
    assert "add or remove one patient" in (project / "results/report/index.html").read_text()


def test_attacks_have_both_their_controls(project):
    table = pd.read_csv(project / "results/report/tables/membership.tsv", sep="\t")
    leaks = table[table.attack == "GAN-Leaks"].set_index(["generator", "privacy"])
    assert leaks.auc[("real", "none")] > 0.7  # 64 of its 120 patches are the set
    assert leaks.auc_low[("phantom", "none")] <= 0.5 <= leaks.auc_high[("phantom", "none")]
    assert leaks.auc_allowed[("phantom", "none")] == 0.5
    assert 0.5 < leaks.auc_allowed[("fitted", "patient-eps-5")] < 1
    weights = table[table.attack.str.startswith("reconstruction")]
    assert set(weights.generator) == {"diffusion"}


def test_fidelity_names_what_was_not_computed(project):
    table = pd.read_csv(
        project / "results/report/tables/similarity.tsv", sep="\t", keep_default_na=False
    )
    assert set(table[table.metric == "fid"].features) == {"not computed: no weights"}
    assert set(table[table.metric == "fid"].value) == {"n/a"}
    assert {"frechet", "frd", "precision", "recall", "density", "coverage", "ssim"} <= set(
        table.metric
    )


def test_figures_come_for_papers_too(project):
    figures = project / "results/report/figures"
    names = {path.stem for path in figures.glob("*.svg")}
    assert {"frontier", "figure-6", "figure-8", "figure-9", "closest"} <= names
    assert names == {path.stem for path in figures.glob("*.pdf")}
    fonts = b"".join(path.read_bytes() for path in figures.glob("*.pdf"))
    assert b"/FontFile2" in fonts
    assert b"/Type3" not in fonts


def test_the_bundle_of_the_tiny_study_is_let_out(project):
    done = snakemake(project, *TINY, "--", "release")
    assert done.returncode == 0, done.stdout[-3000:]
    folder = project / "results/first/release/fitted/patient-eps-5/seed-0"
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"README.md", "croissant.json", "privacy.json", "SHA256SUMS"} <= held
    assert len([name for name in held if name.endswith(".png")]) == 2 * 64
    assert not any(b"sub-0" in (folder / name).read_bytes() for name in held)


@pytest.mark.parametrize(
    "point", ["real/none", "wgan/none", "wgan-as-published/sigma-2", "diffusion/sigma-2"]
)
def test_what_has_no_valid_guarantee_is_not_let_out(project, point):
    target = f"results/first/release/{point}/seed-0"
    done = snakemake(project, *TINY, "--", f"{target}/SHA256SUMS")
    assert done.returncode != 0
    assert "allowed for a release" in done.stdout
    assert "Traceback" not in done.stdout
    assert not list((project / target).glob("*"))


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_works_in_a_browser_and_asks_the_network_nothing(project, tmp_path):
    page = (project / "results/report/index.html").read_text()
    acting = """<script>
      document.querySelector(".point").dispatchEvent(new Event("click"));
      const heads = [...document.querySelectorAll("#frontier ~ .wide th")].slice(0, 7);
      heads[6].click(); heads[6].click();
    </script>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", acting + "</body>"))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr",
         f"--log-net-log={tmp_path}/net.json", "--dump-dom", f"file://{tmp_path}/page.html"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    again = "again: snakemake --cores all --configfile tests/fixtures/tiny.yaml -- results/first/"
    assert again in done.stdout
    table = done.stdout[done.stdout.index('id="frontier"') :]
    rows = re.findall(r"<tr><td>.*?</tr>", table[: table.index("</table>")], re.S)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in rows]
    found = [float(row[6].split("±")[0]) for row in cells]
    assert found == sorted(found, reverse=True)
    assert 'aria-sort="descending"' in table
    asked = re.findall(r'"url":"(https?://[^"]+)"', (tmp_path / "net.json").read_text())
    # The browser itself asks its maker for the time, accounts and updates; the page asks nobody.
    own = re.compile(r"https?://[\w.]+\.(google|googleapis)\.com/")
    assert not [address for address in asked if not own.match(address)]


def test_nothing_is_left_to_be_done(project):
    assert "Nothing to be done" in snakemake(project, "-n", *TINY).stdout


def test_state_is_cleared_and_errors_are_nifti(project):
    assert not list(project.rglob("state"))
    errors = nib.load(project / POINT / "scores/errors/first.nii.gz")
    assert errors.shape == (48, 48, 12)
    assert set(np.unique(errors.dataobj)) <= {0, 1, 2, 3}


def test_snakemakes_own_report(project):
    done = snakemake(project, *TINY, "--report", "report.html")
    assert done.returncode == 0, done.stdout
    assert (project / "report.html").stat().st_size > 100_000


def test_results_do_not_depend_on_the_order_of_jobs(project, tmp_path):
    """One point made alone in another place has the same bytes."""
    place = copy_project(tmp_path)
    done = snakemake(place, *TINY, "--", f"{POINT}/scores/segmentation.tsv")
    assert done.returncode == 0, done.stdout[-3000:]
    for name in ("generator/weights.safetensors", "synthetic/pairs.npy", "scores/segmentation.tsv"):
        assert (place / POINT / name).read_bytes() == (project / POINT / name).read_bytes(), name


def test_a_fresh_clone_over_finished_results_has_nothing_to_do(project, tmp_path):
    """Every file of the clone is newer than every result; with or without the engine's notes."""
    place = copy_project(tmp_path)
    shutil.copytree(project / "results", place / "results", symlinks=True)
    for path in place.rglob("*"):
        if "results" not in path.parts and path.is_file():
            path.touch()
    assert "Nothing to be done" in snakemake(place, "-n", *TINY).stdout
    shutil.copytree(project / ".snakemake", place / ".snakemake", dirs_exist_ok=True)
    assert "Nothing to be done" in snakemake(place, "-n", *TINY).stdout


@pytest.mark.parametrize(
    ("module", "old", "new", "reruns"),
    [
        (
            "report/figures.py",
            "figsize=(9, 3.6)",
            "figsize=(9, 3.7)",
            {"draw_figures", "write_report", "all"},
        ),
        ("report/figures.py", "# ---", "# a comment: nothing to do\n# ---", set()),
        ("generators/wgan.py", "# Three streams", "# Three separate streams", set()),
    ],
)
def test_code_reruns_what_used_it_and_comments_nothing(project, tmp_path, module, old, new, reruns):
    place = copy_project(tmp_path)
    for name in ("results", ".snakemake"):
        shutil.copytree(project / name, place / name, symlinks=True)
    path = place / "workflow/scripts/veil" / module
    if old not in path.read_text():
        path.write_text(path.read_text() + f"\n{new}\n")
    else:
        edit(path, old, new)
    assert set(rules_of(snakemake(place, "-n", *TINY).stdout)) == reruns


def test_a_generators_code_retrains_it_and_no_other(project, tmp_path):
    place = copy_project(tmp_path)
    for name in ("results", ".snakemake"):
        shutil.copytree(project / name, place / name, symlinks=True)
    edit(
        place / "workflow/scripts/veil/generators/diffusion.py",
        "ROWS_AT_ONCE = 256",
        "ROWS_AT_ONCE = 64",
    )
    done = snakemake(place, "-n", *TINY)
    counts = rules_of(done.stdout)
    assert counts["train_generator"] == counts["train_start"] == counts["sample_synthetic"] == 1
    assert "generator=diffusion" in done.stdout
    assert "Params have changed" in done.stdout or "Code has changed" in done.stdout


def test_private_settings_make_no_new_public_start(project):
    """A start is trained anew for what it reads, and for nothing else."""
    private, public = (
        rules_of(
            snakemake(
                project, "-n", *TINY, "--config", f"generators={{diffusion: {changed}}}"
            ).stdout
        )
        for changed in ("{steps: 4}", "{public_steps: 4}")
    )
    assert private["train_generator"] == public["train_generator"] == 1
    assert "train_start" not in private
    assert public["train_start"] == 1


def test_another_level_goes_on_from_the_same_start(project):
    target = "results/first/diffusion/eps-3/seed-0/generator/weights.safetensors"
    counts = rules_of(snakemake(project, "-n", *TINY, "--", target).stdout)
    assert counts["train_generator"] == 1
    assert "train_start" not in counts


def test_a_killed_job_resumes_and_gives_the_same_bytes(project, tmp_path):
    """SIGKILL in mid-training: declared outputs go, the state folder stays."""
    place = copy_project(tmp_path)
    longer = (*TINY, "--config", "generators={wgan: {generator_updates: 400}}")
    target = f"{POINT}/generator/weights.safetensors"
    run = subprocess.Popen(
        [SNAKEMAKE, "--cores", "2", *longer, "--", target], cwd=place,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    state = place / POINT / "generator/state/history.jsonl"
    try:
        for _ in range(600):
            if state.exists() and len(state.read_text().splitlines()) > 20:
                break
            run.wait(timeout=0.2) if run.poll() is not None else __import__("time").sleep(0.2)
    finally:
        os.killpg(run.pid, 9)
        run.wait()
    assert not (place / target).exists()
    snakemake(place, "--unlock", *longer)
    done = snakemake(place, *longer, "--", target)
    assert done.returncode == 0, done.stdout[-3000:]
    whole = copy_project(tmp_path / "whole")
    assert snakemake(whole, *longer, "--", target).returncode == 0
    assert (place / target).read_bytes() == (whole / target).read_bytes()


# ------------------------------------------------------------------ real scans


def test_the_tof_crop_goes_through_check_patches_and_inference(project, real_data, tmp_path):
    """One patient serves as training, validation and test in turn: a path, not a result."""
    place = copy_project(tmp_path)
    (place / "config/studies/crop.yaml").write_text(
        f"""
name: crop
cohort: crop
external: []
cohorts:
  crop: {{kind: bids, path: {tmp_path}/crop, splits: {{train: 1, validation: 1, test: 1}}}}
patches: {{size: 32, per_patient: 100}}
pairs: 100
segmentation: {{channels: [4, 8], steps: 60, grid: {{augment: [true], learning_rate: [0.01]}}}}
points: [{{generator: real}}]
"""
    )
    for number in (1, 2, 3):
        for path in (real_data / "topcow").rglob("sub-066*.nii.gz"):
            name = str(path.relative_to(real_data / "topcow")).replace("066", f"00{number}")
            (tmp_path / "crop" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, tmp_path / "crop" / name)
    (tmp_path / "crop/dataset_description.json").write_text(
        '{"Name": "crop", "BIDSVersion": "1.10.0"}'
    )
    (tmp_path / "crop/participants.tsv").write_text(
        "participant_id\tsplit\nsub-001\ttrain\nsub-002\tvalidation\nsub-003\ttest\n"
    )
    done = snakemake(place, "--configfile", "config/studies/crop.yaml")
    assert done.returncode == 0, done.stdout[-3000:]
    scores = pd.read_csv(place / "results/crop/real/none/seed-0/scores/segmentation.tsv", sep="\t")
    assert scores.loc[scores["metric"] == "dsc", "value"].iloc[0] > 0.5


def test_a_faulty_cohort_stops_before_any_training(fresh, tmp_path):
    root = tmp_path / "cohort"
    (root / "sub-001/anat").mkdir(parents=True)
    nib.save(
        nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)),
        root / "sub-001/anat/sub-001_angio.nii.gz",
    )
    (root / "participants.tsv").write_text("participant_id\nsub-001\n")
    (tmp_path / "own.yaml").write_text(
        f"cohort: own\nexternal: []\ncohorts: {{own: {{kind: bids, path: {root}, "
        "splits: {train: 1, validation: 1, test: 1}}}\n"
    )
    done = snakemake(fresh, "--configfile", str(tmp_path / "own.yaml"))
    assert done.returncode != 0
    assert (
        "sub-001: mask *_label-vessel_mask.nii.gz: found none; allowed: exactly one" in done.stdout
    )
    assert "Traceback" not in done.stdout
    assert "(Rule: train_generator)" not in done.stdout
    assert not list((fresh / "results/own").glob("*/none"))
    assert not list((fresh / "results/own").glob("*/public"))
