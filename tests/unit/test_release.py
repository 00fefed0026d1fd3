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
from veil.release import bundle

SECRET = "Zaphod-Beeblebrox"
TASK = config.Study().task("first", "phantom", "none", 0)
PRIVATE = {
    "guarantee": "differential privacy", "epsilon": 5.0, "epsilon_patient": 40.0, "delta": 1e-5,
    "unit": "patch", "neighbouring_relation": "add or remove one patch", "sampling": "Poisson",
    "loop": "valid", "noise_multiplier": 0.8, "records_per_patient": 250, "accountant": "PLD",
    "noise": randomness.description("secure"), "selection": ledger.SELECTION,
    "text": "epsilon 5 per patch",
}  # fmt: skip
SEEDED = {**PRIVATE, "noise": randomness.description("seeded")}


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
        statement=statement,
        audits=pd.DataFrame([audit]),
        scores=pd.DataFrame([row]),
        others={},
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
    assert artifacts.read_sealed(folder / "privacy.json") == PRIVATE


def test_the_card_says_what_it_costs(rng):
    text = bundle.card(example(rng, creator="A hospital"))
    for said in ("epsilon 5 per patch", "| ε per patient | 40 |", "one run", "0.71 ± 0.05", "CC-BY-4.0",
                 "add or remove one patch", "A hospital"):  # fmt: skip
        assert said in text
    assert "0.7123" not in text
    entry = json.loads(json.dumps(bundle.model_entry(example(rng))))["phantom-none-seed-0"]
    assert entry["selection"]["privacy_preservation"]["epsilon_patient"] == 40.0


def test_releases_on_the_same_patients_add_up(rng):
    made = example(rng)
    both = bundle.Bundle(**{**vars(made), "others": {"wgan/eps-2/seed-0": PRIVATE}})
    assert both.together == (80.0, 2e-5)
    assert "at most\nε = 80 per patient" in bundle.card(both)


def test_no_finite_epsilon_is_infinite_and_not_nothing(rng):
    made = example(rng, {**PRIVATE, "epsilon_patient": None})
    assert made.together[0] == float("inf")
    assert "| ε per patient | inf |" in bundle.card(made)


def test_a_public_release_says_so(rng):
    text = bundle.card(example(rng, ledger.public()))
    assert "**ε = 0.**" in text


@pytest.mark.parametrize(
    ("statement", "public", "said"),
    [
        (ledger.without_privacy(), True, "guarantee is 'none'"),
        ({**PRIVATE, "loop": "as-published"}, True, "as-published"),
        (SEEDED, False, "the noise is .*seed"),
        (SEEDED, True, None),
        (PRIVATE, False, None),
        (ledger.public(), False, None),
    ],
)
def test_what_may_not_leave_is_refused(statement, public, said):
    if said is None:
        bundle.check(statement, public, "point")
    else:
        with pytest.raises(bundle.ReleaseError, match=said):
            bundle.check(statement, public, "point")
