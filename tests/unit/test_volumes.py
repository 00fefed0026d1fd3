"""Volumes: orientation, untouched intensities, and faults refused by name."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from veil import volumes
from veil.volumes import VolumeError


def save(path, data, affine=None):
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine, dtype=data.dtype), path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL", "AIL"])
def test_every_orientation_comes_back_canonical(tmp_path, rng, codes):
    data = rng.integers(0, 500, (5, 6, 7)).astype(np.int16)
    image = nib.Nifti1Image(data, np.diag([0.5, 0.6, 0.7, 1]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(image.as_reoriented(turn), tmp_path / "a.nii.gz")
    volume = volumes.read(tmp_path / "a.nii.gz")
    assert volume.orientation == codes
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.zooms, (0.5, 0.6, 0.7), rtol=1e-6)
    assert volume.data.dtype == np.int16


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", ">i2"]
)
def test_types_keep_their_values(tmp_path, rng, dtype):
    data = rng.integers(0, 200, (4, 4, 3)).astype(dtype)
    volume = volumes.read(save(tmp_path / "a.nii.gz", data))
    np.testing.assert_array_equal(volume.data, data)


def test_slope_and_intercept_are_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(2.0, -3.0)
    nib.save(image, tmp_path / "a.nii")
    stored = np.asanyarray(nib.load(tmp_path / "a.nii").dataobj)
    np.testing.assert_array_equal(volumes.read(tmp_path / "a.nii").data, stored)


def test_two_dimensions_become_one_slice(tmp_path):
    assert volumes.read(save(tmp_path / "a.nii", np.zeros((4, 5), np.int16))).data.shape == (
        4,
        5,
        1,
    )
    assert volumes.read(save(tmp_path / "b.nii", np.zeros((4, 5, 3, 1), np.int16))).data.shape == (
        4,
        5,
        3,
    )


def refuse(path, field):
    with pytest.raises(VolumeError) as refusal:
        volumes.read(path)
    assert refusal.value.field == field
    assert str(path) in str(refusal.value)
    assert "allowed" in str(refusal.value)


def test_four_dimensions_are_refused(tmp_path):
    refuse(save(tmp_path / "a.nii.gz", np.zeros((3, 3, 3, 2), np.int16)), "dimension")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_refused(tmp_path, value):
    data = np.zeros((3, 3, 3), np.float32)
    data[1, 1, 1] = value
    refuse(save(tmp_path / "a.nii.gz", data), "voxels")


def test_a_singular_affine_is_refused(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((3, 3, 3), np.int16))
    raw = bytearray(path.read_bytes())
    raw[280:292] = bytes(12)  # srow_x
    path.write_bytes(raw)
    refuse(path, "affine")


def test_a_truncated_file_is_refused(tmp_path, rng):
    path = save(tmp_path / "a.nii.gz", rng.integers(0, 99, (9, 9, 9)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-40])
    refuse(path, "gzip stream")


def test_flipped_bits_are_seen(tmp_path, rng):
    """Gzip's checksum covers the voxels; a reader that stops early would never look at it."""
    path = save(tmp_path / "a.nii.gz", rng.integers(0, 9999, (12, 12, 12)).astype(np.int16))
    whole = path.read_bytes()
    accepted = 0
    for place in rng.integers(80, len(whole) - 8, 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            volumes.read(path)
            accepted += 1
        except VolumeError:
            pass
    assert accepted == 0


def test_a_header_that_asks_for_more_than_there_is(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((3, 3, 3), np.int16))
    raw = bytearray(path.read_bytes())
    raw[42:48] = (32767).to_bytes(2, "little") * 3
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    refuse(tmp_path / "b.nii.gz", "dimension")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    refuse(tmp_path / "a.nii.gz", "header")


@pytest.mark.parametrize(
    ("values", "good"),
    [((0, 1), True), ((0, 255), True), ((0,), True), ((0, 1, 2), False), ((1, 2), False)],
)
def test_masks_hold_two_values(tmp_path, values, good):
    data = np.resize(np.array(values, np.uint8), (3, 3, 3))
    path = save(tmp_path / "m.nii.gz", data)
    if good:
        assert set(np.unique(volumes.read_mask(path).data)) <= {0, 1}
    else:
        with pytest.raises(VolumeError, match="label values"):
            volumes.read_mask(path)


def test_written_volumes_are_deterministic(tmp_path, rng):
    data = rng.integers(0, 99, (4, 5, 6)).astype(np.int16)
    for name in ("a", "b"):
        volumes.write(tmp_path / name / "v.nii.gz", data, np.eye(4))
    assert (tmp_path / "a/v.nii.gz").read_bytes() == (tmp_path / "b/v.nii.gz").read_bytes()
