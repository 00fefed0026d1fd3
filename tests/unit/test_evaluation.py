"""Scores against definitions written out longhand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from veil.evaluation import segmentation, threshold


def blobs(rng, shape, share):
    return rng.random(shape) < share


def bahd_by_definition(prediction, reference, zooms):
    """Both full distance transforms, as the formula reads."""
    to_prediction = distance_transform_edt(~prediction, sampling=zooms)
    to_reference = distance_transform_edt(~reference, sampling=zooms)
    total = to_prediction[reference].sum() + to_reference[prediction].sum()
    return total / (2 * reference.sum())


@pytest.mark.parametrize("zooms", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.7), (3.0, 0.4, 1.1)])
@pytest.mark.parametrize("share", [0.002, 0.05, 0.4])
def test_bahd_is_exact(rng, zooms, share):
    prediction, reference = blobs(rng, (24, 20, 13), share), blobs(rng, (24, 20, 13), share)
    prediction[3, 4, 5] = reference[9, 9, 9] = True
    ours = segmentation.balanced_hausdorff(prediction, reference, zooms)
    assert ours == pytest.approx(bahd_by_definition(prediction, reference, zooms), rel=1e-9)


def test_bahd_is_exact_for_solid_bodies(rng):
    reference = np.zeros((30, 30, 12), bool)
    reference[5:20, 5:20, 2:9] = True
    prediction = np.roll(reference, (3, -2, 1), (0, 1, 2))
    prediction[27:29, 27:29, 10] = True
    ours = segmentation.balanced_hausdorff(prediction, reference, (0.5, 0.5, 0.7))
    assert ours == pytest.approx(
        bahd_by_definition(prediction, reference, (0.5, 0.5, 0.7)), rel=1e-9
    )


def test_bahd_by_hand():
    reference, prediction = np.zeros((9, 1, 1), bool), np.zeros((9, 1, 1), bool)
    reference[0:2], prediction[1:4] = True, True
    # Missed: voxel 0 at 1. Added: voxels 2 and 3 at 1 and 2. (1 + 3) / (2 x 2).
    assert segmentation.balanced_hausdorff(prediction, reference, (1, 1, 1)) == 1.0


def test_dice_by_hand(rng):
    a = np.array([1, 1, 0, 0], bool)
    b = np.array([1, 0, 1, 0], bool)
    assert segmentation.dice(a, b) == 0.5
    assert segmentation.dice(a, a) == 1.0


def test_rules_for_empty_masks():
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    scores = segmentation.scores
    assert scores(empty, empty, (1, 1, 1)) == {"dsc": 1.0, "bahd_voxel": 0.0, "bahd_mm": 0.0}
    for prediction, reference in ((empty, full), (full, empty)):
        found = scores(prediction, reference, (1, 1, 1))
        assert found["dsc"] == 0.0
        assert np.isnan(found["bahd_voxel"])
        assert np.isnan(found["bahd_mm"])


def test_millimetres_scale_with_the_voxel(rng):
    prediction, reference = blobs(rng, (9, 9, 9), 0.1), blobs(rng, (9, 9, 9), 0.1)
    found = segmentation.scores(prediction, reference, (2.0, 2.0, 2.0))
    assert found["bahd_mm"] == pytest.approx(2 * found["bahd_voxel"])


def test_error_map_codes():
    prediction, reference = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert segmentation.error_map(prediction, reference).tolist() == [1, 2, 3, 0]


def test_the_threshold_finds_a_separable_cohort(rng):
    label = blobs(rng, (20, 20, 10), 0.05)
    region = np.ones_like(label)
    image = np.where(label, 400, 100) + rng.integers(0, 50, label.shape)
    multiple = threshold.choose([(image, label, region), (3 * image, label, region)])
    assert segmentation.dice(threshold.predict(image, region, multiple), label) == 1.0
