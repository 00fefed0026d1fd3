"""Cohorts: found, imported, split and checked; faults refused by name before any work."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from veil import volumes
from veil.cohorts import bids, check, convert, phantoms
from veil.cohorts.bids import CohortError
from veil.config import BidsCohort, ImportedCohort, Phantom, PhantomCohort, Splits

SPLITS = Splits(train=2, validation=1, test=1)
COHORT = BidsCohort(kind="bids", path="unused", splits=SPLITS, region="file")
SMALL = Phantom(shape=(40, 44, 10), zooms=(1.6, 1.6, 2.2))


@pytest.fixture
def cohort(tmp_path):
    root = tmp_path / "cohort"
    phantoms.write_cohort(PhantomCohort(kind="phantom", splits=SPLITS, phantom=SMALL), root)
    return root


def image_of(root, patient="sub-002"):
    return root / patient / "anat" / f"{patient}_angio.nii.gz"


def label_of(root, patient="sub-002", label="vessel"):
    folder = root / "derivatives/labels" / patient / "anat"
    return folder / f"{patient}_label-{label}_mask.nii.gz"


def refusal(root, cohort=COHORT):
    with pytest.raises(CohortError) as error:
        check.check(bids.find(root, cohort))
    return str(error.value)


def test_a_good_cohort_is_found_and_described(cohort, tmp_path):
    patients = bids.find(cohort, COHORT)
    assert [p.split for p in patients] == ["train", "train", "validation", "test"]
    sheet = check.check(patients)
    assert list(sheet["shape"]) == ["40x44x10"] * 4
    assert set(sheet["orientation"]) == {"RAS"}
    assert (sheet["label_fraction"] > 0).all()
    bids.write_manifest(tmp_path / "manifest.tsv", cohort, patients)
    assert bids.read_manifest(tmp_path / "manifest.tsv", cohort) == patients
    assert len(bids.read_manifest(tmp_path / "manifest.tsv", cohort, "train")) == 2


def test_a_missing_label_is_named(cohort):
    label_of(cohort).unlink()
    assert "sub-002: mask *_label-vessel_mask.nii.gz: found none" in refusal(cohort)


def test_every_fault_is_listed_at_once(cohort):
    label_of(cohort, "sub-001").unlink()
    image_of(cohort, "sub-003").unlink()
    assert "2 fault(s)" in refusal(cohort)


def test_a_second_image_is_named(cohort):
    extra = image_of(cohort).with_name("sub-002_acq-second_angio.nii.gz")
    extra.write_bytes(image_of(cohort).read_bytes())
    assert "allowed: exactly one" in refusal(cohort)


def test_another_grid_is_named(cohort):
    data = volumes.read_mask(label_of(cohort)).data
    volumes.write(label_of(cohort), data[:-1], np.eye(4))
    text = refusal(cohort)
    assert "sub-002_label-vessel_mask.nii.gz: shape is (39, 44, 10)" in text


def test_a_shifted_grid_is_named(cohort):
    mask = volumes.read_mask(label_of(cohort))
    affine = mask.affine.copy()
    affine[0, 3] += 1.6
    volumes.write(label_of(cohort), mask.data, affine)
    assert "affine is off by up to 1 voxels" in refusal(cohort)


def test_voxels_dimension_and_values_are_named(cohort):
    nib.save(
        nib.Nifti1Image(np.full((40, 44, 10), np.nan, np.float32), np.eye(4)),
        image_of(cohort, "sub-001"),
    )
    nib.save(
        nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), image_of(cohort, "sub-002")
    )
    many = np.arange(17600, dtype=np.int16).reshape(40, 44, 10) % 5
    volumes.write(
        label_of(cohort, "sub-003"), many, volumes.read(image_of(cohort, "sub-003")).affine
    )
    text = refusal(cohort)
    for words in (
        "17600 NaN or infinite",
        "dimension is (4, 4, 4, 2)",
        "label values is 0, 1, 2, 3, 4",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["sub-001\ttrain", "sub-001\ttest"], "sub-001 stands in the splits test, train"),
        (["sub-001\ttrain", "sub-001\ttrain"], "sub-001 is listed twice"),
        (["../../etc\ttrain"], "'../../etc' is not a BIDS id"),
        (["/sub-001\ttrain"], "'/sub-001' is not a BIDS id"),
        (["sub-001\ttrian"], "split 'trian'; allowed: train, validation, test"),
    ],
)
def test_participants_are_checked(cohort, rows, words):
    rest = [f"sub-{n:03d}\ttrain" for n in (2, 3, 4)]
    if not rows[0].startswith("sub-001"):
        rest.insert(0, "sub-001\ttrain")
    (cohort / "participants.tsv").write_text(
        "\n".join(["participant_id\tsplit", *rows, *rest]) + "\n"
    )
    assert words in refusal(cohort)


def test_a_patient_without_a_row_is_named(cohort):
    (cohort / "participants.tsv").write_text("participant_id\nsub-001\nsub-002\nsub-003\n")
    assert "sub-004 has an image but no row" in refusal(cohort)


def test_a_link_out_of_the_cohort_is_named(cohort, tmp_path):
    outside = tmp_path / "elsewhere.nii.gz"
    image_of(cohort).rename(outside)
    image_of(cohort).symlink_to(outside)
    assert "outside the cohort" in refusal(cohort)


def test_without_a_split_column_patients_are_dealt_out_by_seed(cohort):
    table = (
        "\r\n".join(["\ufeffparticipant_id", "sub-004", "sub-002", "sub-003", "sub-001"]) + "\r\n"
    )
    (cohort / "participants.tsv").write_bytes(table.encode())
    dealt = {p.participant_id: p.split for p in bids.find(cohort, COHORT)}
    assert sorted(dealt.values()) == ["test", "train", "train", "validation"]
    (cohort / "participants.tsv").write_text("participant_id\nsub-001\nsub-002\nsub-003\nsub-004\n")
    assert dealt == {p.participant_id: p.split for p in bids.find(cohort, COHORT)}
    ordered = bids.find(cohort, COHORT.model_copy(update={"seed": None}))
    assert [p.split for p in ordered] == ["train", "train", "validation", "test"]
    other = COHORT.model_copy(update={"seed": 5})
    deals = [
        [p.split for p in bids.find(cohort, other.model_copy(update={"seed": s}))] for s in range(8)
    ]
    assert len({tuple(deal) for deal in deals}) > 1


def test_a_patient_less_moves_at_most_one_other_into_training():
    """Otherwise adding a patient would not be adding a patient: the whole training set would move."""
    table = pd.DataFrame({"participant_id": [f"sub-{n:03}" for n in range(67)], "split": ""})
    splits = Splits(train=41, validation=11, test=14)

    def training(rows: pd.DataFrame) -> set[str]:
        rows = rows.reset_index(drop=True)
        dealt = bids._deal(Path("cohort"), rows, splits, 1)
        return set(rows.participant_id[dealt == "train"])

    whole = training(table)
    for gone in range(67):
        assert len(whole ^ training(table.drop(index=gone))) <= 2


def test_sizes_that_differ_from_the_public_numbers_are_told(cohort):
    patients = bids.find(cohort, COHORT)
    assert check.unexpected_sizes(patients, SPLITS) == []
    told = check.unexpected_sizes(patients, Splits(train=3, validation=1, test=1))
    assert told == ["split train: 2 patients found, splits.train says 3"]


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "nii.gz"])
def test_other_formats_are_imported(tmp_path, rng, suffix):
    data = rng.integers(0, 900, (6, 12, 10)).astype(np.int16)
    for name, array in (("image", data), ("mask", (data > 700).astype(np.uint8))):
        picture = sitk.GetImageFromArray(array)
        picture.SetSpacing((0.5, 0.6, 0.7))
        sitk.WriteImage(picture, str(tmp_path / f"{name}.{suffix}"))
    pd.DataFrame(
        [
            {
                "participant_id": "sub-a",
                "image": f"image.{suffix}",
                "label": f"mask.{suffix}",
                "split": "test",
            }
        ]
    ).to_csv(tmp_path / "list.tsv", sep="\t", index=False)
    cohort = ImportedCohort(kind="import", path=str(tmp_path / "list.tsv"), splits=Splits(test=1))
    convert.convert(cohort, tmp_path / "bids")
    patients = bids.find(tmp_path / "bids", cohort.as_bids(str(tmp_path / "bids")))
    volume = volumes.read(patients[0].image)
    np.testing.assert_allclose(volume.zooms, (0.5, 0.6, 0.7), rtol=1e-5)
    # SimpleITK counts in LPS and z first: x and y turn round on the way to RAS.
    np.testing.assert_array_equal(volume.data, data.transpose(2, 1, 0)[::-1, ::-1])
    assert check.check(patients)["label_fraction"].iloc[0] == pytest.approx((data > 700).mean())


def test_an_unreadable_import_is_named(tmp_path):
    (tmp_path / "list.tsv").write_text("participant_id\timage\tlabel\nsub-a\tno.nrrd\tno.nrrd\n")
    cohort = ImportedCohort(kind="import", path=str(tmp_path / "list.tsv"), splits=Splits(test=1))
    with pytest.raises(CohortError, match=r"no\.nrrd: image of sub-a cannot be read"):
        convert.convert(cohort, tmp_path / "bids")
    assert not (tmp_path / "bids").exists()


def test_the_head_is_found():
    drawn = phantoms.draw(Phantom(shape=(64, 72, 20), zooms=(3.0, 3.0, 4.0)), 3)
    head = check.head_region(drawn.image)
    brain = drawn.brain.astype(bool)
    assert (head & brain).sum() > 0.97 * brain.sum()
    assert head.mean() < 0.9


def test_frames_are_no_image(rng):
    """A saturated frame goes, nearly flat or not; a bright vessel inside stays."""
    image = rng.integers(40, 90, (100, 90, 1)).astype(np.int16)
    image[:12] = rng.integers(250, 256, (12, 90, 1))
    image[:, -20:] = 255
    image[40:46, :75] = 255
    region = check.field_region(image)
    assert not region[:12].any()
    assert not region[:, -20:].any()
    assert region[20:, :60].mean() > 0.99
    assert check.field_region(np.zeros((20, 20, 2))).all()


def test_real_cohorts_pass_the_check(real_data):
    dias = BidsCohort(
        kind="bids",
        path=str(real_data / "dias"),
        splits=Splits(train=18, validation=4, test=8),
        region="all",
    )
    patients = bids.find(real_data / "dias", dias)
    assert [sum(p.split == s for p in patients) for s in ("train", "validation", "test")] == [
        18,
        4,
        8,
    ]
    assert set(check.check(patients[:3])["shape"]) == {"800x800x1"}
    crop = BidsCohort(kind="bids", path=str(real_data / "topcow"), splits=Splits(test=1))
    sheet = check.check(bids.find(real_data / "topcow", crop))
    assert sheet["orientation"].tolist() == ["LPS"]
    tumour = BidsCohort(
        kind="bids",
        path=str(real_data / "brats"),
        splits=Splits(test=1),
        image_suffix="T2w",
        label="tumor",
    )
    assert check.check(bids.find(real_data / "brats", tumour))["label_fraction"].iloc[0] > 0
