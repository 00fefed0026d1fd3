"""Patches: half on vessels, unique, inside the margins, tied to patients, scaled on their own."""

from __future__ import annotations

import numpy as np
import pytest

from veil import artifacts, patches
from veil.config import Patches
from veil.volumes import Volume


@pytest.fixture
def patient(rng):
    label = np.zeros((60, 50, 8), bool)
    label[28:32, 20:30] = True
    region = np.zeros_like(label)
    region[10:50, 8:42] = True
    image = rng.integers(0, 1000, label.shape).astype(np.int16)
    return image, label, region


def test_half_are_vessels_all_are_unique_and_inside(patient, rng):
    _image, label, region = patient
    settings = Patches(size=16, per_patient=200)
    centres, is_vessel = patches.choose_centres(label, region, settings, rng)
    assert len(np.unique(centres, axis=0)) == 200
    assert is_vessel.sum() == 100
    assert label[tuple(centres[is_vessel].T)].all()
    assert region[tuple(centres[~is_vessel].T)].all()
    assert (centres[:, :2] >= 8).all()
    assert (centres[:, :2] <= np.array([60, 50]) - 8).all()


@pytest.mark.parametrize("size", [9, 16, 17, 48])
def test_patches_are_where_their_centres_say(patient, rng, size):
    image, label, region = patient
    settings = Patches(size=size, per_patient=40)
    centres, _ = patches.choose_centres(label, np.ones_like(region), settings, rng)
    pairs = patches.cut(image, label, centres, size)
    assert pairs.shape == (len(centres), 2, size, size)
    for (x, y, z), pair in zip(centres, pairs, strict=True):
        low_x, low_y = x - size // 2, y - size // 2
        part = image[low_x : low_x + size, low_y : low_y + size, z]
        np.testing.assert_array_equal(pair[0], patches.scale(part))
        np.testing.assert_array_equal(pair[1], label[low_x : low_x + size, low_y : low_y + size, z])


def test_few_vessels_are_made_up_for(patient, rng):
    _image, label, region = patient
    sparse = np.zeros_like(label)
    sparse[30, 25, 3] = True
    centres, is_vessel = patches.choose_centres(
        sparse, region, Patches(size=16, per_patient=50), rng
    )
    assert len(centres) == 50
    assert is_vessel.sum() == 1


def test_scaling_is_per_patch_and_survives_a_constant():
    image = np.array([[[10, 20], [30, 40]], [[7, 7], [7, 7]]], np.int16)
    np.testing.assert_array_equal(patches.scale(image)[0], [[0, 85], [170, 255]])
    assert (patches.scale(image)[1] == 0).all()


def test_one_patient_more_moves_no_other(patient):
    image, label, region = patient
    volume = Volume(data=image, affine=np.eye(4), orientation="RAS")

    def cut(*names):
        readers = [(name, lambda: (volume, label, region)) for name in names]
        return patches.cut_all(readers, Patches(size=16, per_patient=30), seed=3, threads=2)

    few, _ = cut("sub-a", "sub-c")
    many, table = cut("sub-a", "sub-b", "sub-c")
    np.testing.assert_array_equal(many[:30], few[:30])
    np.testing.assert_array_equal(many[60:], few[30:])
    assert (many[:30] != many[30:60]).any()
    assert table["participant_id"].value_counts().to_dict() == {
        "sub-a": 30,
        "sub-b": 30,
        "sub-c": 30,
    }


def test_pairs_are_memory_maps(tmp_path, rng):
    pairs = rng.integers(0, 2, (20, 2, 8, 8)).astype(np.uint8)
    artifacts.save_pairs(tmp_path / "pairs.npy", pairs)
    opened = artifacts.open_pairs(tmp_path / "pairs.npy")
    assert isinstance(opened, np.memmap)
    assert not opened.flags.writeable
    np.testing.assert_array_equal(opened, pairs)
    with pytest.raises(artifacts.ArtifactError, match="uint8"):
        artifacts.save_pairs(tmp_path / "bad.npy", pairs.astype(float))


def test_unit_and_back(rng):
    pairs = rng.integers(0, 256, (5, 2, 8, 8)).astype(np.uint8)
    pairs[:, 1] %= 2
    pairs[:, 0, 0, :2] = [0, 255]
    unit = patches.to_unit(pairs)
    assert unit[:, 0].min() == -1
    assert unit[:, 0].max() == 1
    np.testing.assert_array_equal(patches.from_unit(unit, 0.8), pairs)
