"""A finished private study is never trained again by what does not concern its training patients."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from projects import TINY, copy_project, edit, snakemake

from veil import artifacts, config
from veil.cohorts import phantoms

POINTS = ("fitted/patient-eps-5/seed-0", "wgan/sigma-2/seed-0")
OWN = """
name: own
cohort: own
external: []
cohorts: {{own: {{kind: bids, path: {root}, region: all, splits: {{train: 3, validation: 1, test: 1}}}}}}
privacy: {{noise: secure}}
release: {{points: [fitted/patient-eps-5/seed-0]}}
points:
  - {{generator: fitted, privacy: [patient-eps-5]}}
  - {{generator: wgan, privacy: [sigma-2]}}
"""
TARGETS = [
    f"results/own/{point}/{name}"
    for point in POINTS
    for name in ("generator/weights.safetensors", "synthetic/pairs.npy")
]


def write_patient(root: Path, name: str, seed: int) -> None:
    drawn = phantoms.draw(
        config.Phantom(shape=(48, 48, 12), zooms=(1.4, 1.4, 2.0), vessels={"branches": 40}), seed
    )
    affine = np.diag([1.4, 1.4, 2.0, 1])
    for folder, suffix, data in (
        (root, "angio", drawn.image),
        (root / "derivatives/labels", "label-vessel_mask", drawn.label.astype(np.uint8)),
    ):
        place = folder / name / "anat" / f"{name}_{suffix}.nii.gz"
        place.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, affine), place)


def write_table(root: Path, more: str = "") -> None:
    rows = [f"sub-{n}\ttrain" for n in range(3)] + ["sub-3\tvalidation", "sub-4\ttest"]
    text = "\n".join(["participant_id\tsplit", *rows]) + "\n"
    (root / "participants.tsv").write_text(text + more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """A project of real files under secure noise with both points made, and the cohort's root."""
    place = copy_project(tmp_path_factory.mktemp("once") / "project")
    root = place.parent / "cohort"
    for number in range(5):
        write_patient(root, f"sub-{number}", number)
    write_table(root)
    (place / "own.yaml").write_text(OWN.format(root=root))
    done = run(place)
    assert done.returncode == 0, done.stdout[-4000:]
    return place, root


def run(place: Path, *more: str):
    return snakemake(place, *TINY, "own.yaml", *more, "--", *TARGETS)


@pytest.fixture
def study(finished, tmp_path) -> tuple[Path, Path]:
    """A copy of both, to be changed."""
    place, root = (Path(shutil.copytree(p, tmp_path / p.name, symlinks=True)) for p in finished)
    edit(place / "own.yaml", str(finished[1]), str(root))  # which moves the data as well
    return place, root


def entries(place: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((place / "register").glob("*.json"))]


def weights(place: Path) -> list[bytes]:
    return [(place / f"results/own/{p}/generator/weights.safetensors").read_bytes() for p in POINTS]


def relabel(root):
    path = root / "derivatives/labels/sub-4/anat/sub-4_label-vessel_mask.nii.gz"
    image = nib.load(path)
    label = np.asarray(image.dataobj).copy()
    label[20:24, 20:24, 5] = 1
    nib.save(nib.Nifti1Image(label, image.affine), path)


def repack(root):
    """The same voxels in another file: uncompressed to floats, with other header texts."""
    path = root / "sub-0/anat/sub-0_angio.nii.gz"
    image = nib.load(path)
    again = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), image.affine)
    again.header["descrip"] = b"written anew"
    nib.save(again, path)


def settle(place, text):
    with (place / "own.yaml").open("a") as file:
        file.write(text)


def not_of_the_patients(place, root):
    """What has nothing to do with training patients; the data has moved besides."""
    relabel(root)
    write_patient(root, "sub-5", 5)
    write_table(root, "sub-5\ttest\n")
    repack(root)
    for name, old, new in (
        ("fitted", "DRAWS_AT_LEAST = 10", "DRAWS_AT_LEAST = 11"),
        (
            "wgan",
            "nn.init.normal_(layer.weight, 0, 0.05,",
            "nn.init.normal_(layer.weight, 0, 0.06,",
        ),
    ):
        edit(place / f"workflow/scripts/veil/generators/{name}.py", old, new)
    settle(place, "generators: {diffusion: {learning_rate: 0.5}}\n")


def of_the_points_themselves(place, root):
    settle(place, "generators: {wgan: {learning_rate: 0.5}, fitted: {clip_norm: 1.5}}\n")
    settle(place, "patches: {vessel_fraction: 0.4}\n")


def gone(place, root):
    shutil.rmtree(place / "results")
    shutil.rmtree(place / ".snakemake")


@pytest.mark.parametrize("change", [not_of_the_patients, of_the_points_themselves, gone])
def test_nothing_private_is_trained_again(study, change):
    place, root = study
    before, known = weights(place), entries(place)
    assert [entry["point"].split("/", 2)[2] for entry in known] == list(POINTS)
    change(place, root)
    done = run(place)
    assert done.returncode == 0, done.stdout[-4000:]
    assert weights(place) == before
    assert entries(place) == known


def test_forced_it_comes_back_from_the_register(study):
    place, _ = study
    before = weights(place)
    settle(place, "generators: {wgan: {learning_rate: 0.5}}\n")
    done = run(place, "-R", "train_generator")
    assert done.returncode == 0, done.stdout[-4000:]
    assert weights(place) == before
    assert "trains nothing" in done.stdout
    assert "task.settings.learning_rate is 0.0005 there and 0.5 here" in done.stdout


def test_a_changed_training_scan_is_refused_by_name(study):
    place, root = study
    before = weights(place)
    write_patient(root, "sub-1", 77)
    done = run(place)
    assert done.returncode != 0
    assert "sub-1: its scan is another one" in done.stdout
    for way in ("keep", "train"):
        assert f"fitted/patient-eps-5/seed-0: {way}" in done.stdout
    assert "Traceback" not in done.stdout
    assert len(entries(place)) == 2

    again = "privacy: {noise: secure, again: {" + ", ".join(f"{p}: %s" for p in POINTS) + "}}"
    text = (place / "own.yaml").read_text()
    kept = text.replace("privacy: {noise: secure}", again % ("keep", "keep"))
    (place / "own.yaml").write_text(kept)
    done = run(place)
    assert done.returncode == 0, done.stdout[-3000:]
    assert weights(place) == before

    (place / "own.yaml").write_text(kept.replace("keep", "train"))
    done = run(place, "-R", "train_generator")
    assert done.returncode == 0, done.stdout[-3000:]
    assert all(new != old for new, old in zip(weights(place), before, strict=True))
    assert [entry["number"] for entry in entries(place)] == [1, 1, 2, 2]


def test_a_bundle_of_real_patients_leaves_once_and_stays(study):
    """Under secure noise; it is in the register, and later work does not touch it."""
    place, _ = study
    target = "results/own/release/fitted/patient-eps-5/seed-0"
    done = snakemake(place, *TINY, "own.yaml", "--", f"{target}/SHA256SUMS")
    assert done.returncode == 0, done.stdout[-4000:]
    released = [entry for entry in entries(place) if entry["kind"] == "release"]
    assert [entry["of"] for entry in released] == [
        "training-001-own-own-fitted-patient-eps-5-seed-0"
    ]
    sums = (place / target / "SHA256SUMS").read_bytes()
    assert released[0]["made_of"]["sums"] == artifacts.file_hash(place / target / "SHA256SUMS")
    held = {
        p: p.read_bytes()
        for p in (place / target).rglob("*")
        if p.suffix in (".md", ".json", ".png")
    }
    card = (place / target / "README.md").read_text()
    assert "Utility" not in card  # scores of real patients
    assert "ε per patient at δ = 1e-05" in card
    assert "No other release on the same patients" in card
    edit(place / "workflow/scripts/veil/release/card.md.j2", "## Limits", "## What it cannot do")
    again = snakemake(place, *TINY, "own.yaml", "--", f"{target}/SHA256SUMS")
    assert again.returncode == 0, again.stdout[-3000:]
    assert "stays as it is" in again.stdout
    assert (place / target / "SHA256SUMS").read_bytes() == sums
    assert {p: p.read_bytes() for p in held} == held
    assert len([entry for entry in entries(place) if entry["kind"] == "release"]) == 1
