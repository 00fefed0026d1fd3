"""What leaves: bundles that open everywhere, and nothing that identifies anybody."""

from __future__ import annotations

import json

import datasets
import mlcroissant
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from veil import artifacts, config
from veil.privacy import ledger, randomness
from veil.privacy.register import Total
from veil.release import bundle

SECRET = "Zaphod-Beeblebrox"
TASK = config.Study().task("first", "phantom", "none", 0)
PRIVATE = ledger.Statement(
    guarantee="differential privacy", epsilon=2.0, epsilon_patient=5.0, epsilon_strict=4.0,
    epsilon_patient_strict=8.0, delta=1e-3, unit="patient", loop="valid", noise_multiplier=0.8,
    neighbouring_relation="add or remove one patient", sampling="Poisson", units=40, patients=40,
    records_per_patient=250, accountant="PLD", noise_source="secure",
    noise=randomness.Secure.description, arithmetic=ledger.LATTICE, text="epsilon 5 per patient",
    access="training-001-study-first-fitted-patient-eps-5-seed-0",
).as_dict()  # fmt: skip
SEEDED = {**PRIVATE, "noise_source": "seeded"}


def example(rng, statement=PRIVATE, count=6, **about):
    pairs = rng.integers(0, 256, (count, 2, 24, 24)).astype(np.uint8)
    pairs[:, 1] = pairs[:, 1] > 200
    row = {"test_cohort": "first", "metric": "dsc", "mean": 0.7123, "sd": 0.05, "patients": 3}
    audit = {"method": "one run", "unit": "patch", "claim": 5.0, "lower_bound": 1.0, "ceiling": 2.0,
             "verdict": "not refuted"}  # fmt: skip
    return bundle.Bundle(
        name="phantom-none-seed-0",
        about=config.Release(**about),
        task=TASK,
        pairs=pairs,
        weights={"a": torch.zeros(3)},
        statement=ledger.Statement.of(statement),
        audits=pd.DataFrame([audit]),
        scores=pd.DataFrame([row]),
    )


# ------------------------------------------------------------------ a bundle opens everywhere


def test_a_bundle_opens_in_what_people_use(rng, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = example(rng, creator="A hospital", url="https://example.org/release")
    folder = tmp_path / "out"
    bundle.write(folder, made, {SECRET})
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(folder / "data"), split="train", cache_dir=str(tmp_path / "hf")
    )
    assert len(found) == 6
    np.testing.assert_array_equal(np.array(found[2]["image"]).T, made.pairs[2, 0])
    np.testing.assert_array_equal(np.array(found[2]["label"]).T, 255 * made.pairs[2, 1])
    described = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not described.metadata.ctx.issues.errors
    assert len(list(described.records("pairs"))) == 6
    for channel, name in enumerate(("images", "labels")):
        path = folder / "nifti" / f"{name}.nii.gz"
        slices = np.asarray(nib.load(path).dataobj)
        np.testing.assert_array_equal(slices.transpose(2, 0, 1), made.pairs[:, channel])
        opened = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        np.testing.assert_array_equal(opened.transpose(0, 2, 1), made.pairs[:, channel])
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(sums) == files - {"SHA256SUMS"}
    assert all(artifacts.file_hash(folder / name) == value for name, value in sums.items())
    stated = artifacts.read_sealed(folder / "privacy.json")
    # The name of the register's entry names study and cohort, and stays inside.
    assert stated == {key: value for key, value in PRIVATE.items() if key != "access"}
    held = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert PRIVATE["access"].encode() not in held


def test_the_card_says_what_it_costs(rng):
    text = bundle.card(example(rng, creator="A hospital"))
    for said in ("epsilon 5 per patient", "| ε per patient (trained at) | 5 |", "one run", "0.71 ± 0.05",
                 "CC-BY-4.0", "add or remove one patient", "A hospital", "| ε per patient at δ = 1e-05 | 8 |",
                 "integers on a public lattice"):  # fmt: skip
        assert said in text
    assert "0.7123" not in text
    entry = json.loads(json.dumps(bundle.model_entry(example(rng))))["phantom-none-seed-0"]
    assert entry["selection"]["privacy_preservation"]["epsilon_patient"] == 5.0


def test_a_card_without_scores_has_no_utility(rng):
    made = example(rng)
    empty = bundle.Bundle(**{**vars(made), "scores": made.scores[:0]})
    assert "Utility" not in bundle.card(empty)
    assert "null" in json.dumps(bundle.model_entry(empty))


def test_releases_on_the_same_patients_add_up(rng):
    total = Total(accesses=2, epsilon=9.1, delta=1e-5, best_case=False)
    both = bundle.Bundle(
        **{**vars(example(rng)), "others": ("wgan/eps-2/seed-0",), "together": total}
    )
    assert "Released on the same patients: wgan/eps-2/seed-0" in bundle.card(both)
    assert "at most\nε = 9.1 per patient at δ = 1e-05" in bundle.card(both)


def test_a_signature_stands_on_the_card(rng):
    words = "Dr Who, for a public benchmark of phantoms"
    made = bundle.Bundle(**{**vars(example(rng)), "signature": words})
    assert f"signed for as: {words}" in bundle.card(made)


def test_no_finite_epsilon_is_infinite_and_not_nothing(rng):
    made = example(rng, {**PRIVATE, "epsilon": None})
    assert "| ε per patch | inf |" in bundle.card(made)


def test_a_public_release_says_so(rng):
    text = bundle.card(example(rng, ledger.public()))
    assert "**ε = 0.**" in text


@pytest.mark.parametrize(
    ("statement", "public", "said"),
    [
        (ledger.without_privacy(), True, "guarantee is 'none'"),
        ({**PRIVATE, "loop": "as-published", "holds": "best case"}, True, "as-published"),
        (SEEDED, False, "the noise is 'seeded'"),
        (SEEDED, True, None),
        ({**SEEDED, "noise": PRIVATE["noise"]}, False, "the noise is 'seeded'"),
        (PRIVATE, False, None),
        (ledger.public(), False, None),
        ({**PRIVATE, "epsilon_patient": 1e7}, False, r"epsilon per patient is 1e\+07"),
        ({**PRIVATE, "epsilon_patient": None}, True, "epsilon per patient is inf"),
        ({**PRIVATE, "epsilon_patient": 10.01}, True, "epsilon per patient is 10"),
        ({**PRIVATE, "delta": 0.9}, False, "delta is 0.9"),
        ({**PRIVATE, "delta": 1 / 40}, False, "one of 40 patients"),
        ({**PRIVATE, "delta": 0.99 / 40, "epsilon_patient": 10.0}, False, None),
        ({**PRIVATE, "patients": None}, False, "delta"),
        ({k: v for k, v in PRIVATE.items() if k != "noise_source"}, False, "the noise is None"),
        ({**PRIVATE, "guarantee": "strong"}, False, "is no privacy statement"),
        ({**PRIVATE, "extra": 1}, False, "extra"),
    ],
)
def test_what_may_not_leave_is_refused(statement, public, said):
    if said is None:
        bundle.check(statement, public, "point")
    else:
        with pytest.raises(bundle.ReleaseError, match=said):
            bundle.check(statement, public, "point")


def test_who_signs_lets_out_what_is_beyond_the_ceiling_and_nothing_else():
    words = "Dr Who, for a public benchmark of phantoms"
    bundle.check({**PRIVATE, "epsilon_patient": 1e7, "delta": 0.9}, False, "point", words)
    for statement in (SEEDED, ledger.without_privacy()):
        with pytest.raises(bundle.ReleaseError):
            bundle.check(statement, False, "point", words)
    with pytest.raises(config.ConfigError, match=r"release\.signed.*at least 20"):
        config.load({"release": {"signed": {"fitted/patient-eps-1/seed-0": "yes"}}})


def test_all_releases_together_are_held_to_the_ceiling():
    total = Total(accesses=9, epsilon=12.0, delta=1e-5, best_case=False)
    with pytest.raises(bundle.ReleaseError, match=r"with the releases before it .* is 12"):
        bundle.check(PRIVATE, False, "point", None, total)


def test_a_bundle_is_never_overwritten(rng, tmp_path):
    folder, out = tmp_path / "out", []
    bundle.write(folder, example(rng), set(), out.append)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert out == [artifacts.file_hash(folder / "SHA256SUMS")]
    with pytest.raises(bundle.ReleaseError, match="a bundle is there"):
        bundle.write(folder, example(rng, count=7), set(), out.append)
    assert len(out) == 1
    (folder / "SHA256SUMS").unlink()  # as the workflow engine does before a rule that makes it
    bundle.stays(folder, out)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(bundle.ReleaseError, match="or of another training"):
        bundle.stays(folder, [])  # of a training that released nothing
    bundle.stays(folder, None)
    (folder / "README.md").write_text("other words")
    with pytest.raises(bundle.ReleaseError, match="is not what was released"):
        bundle.stays(folder, out)


def test_nothing_is_signed_out_that_the_scan_refuses(rng, tmp_path):
    out = []
    with pytest.raises(artifacts.ArtifactError, match="must not leave"):
        bundle.write(
            tmp_path / "out", example(rng, description=f"Of {SECRET}."), {SECRET}, out.append
        )
    assert not out
    assert not list(tmp_path.iterdir())
