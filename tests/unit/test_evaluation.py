"""Scores against definitions written out longhand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.morphology import skeletonize

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
    overlaps, distances = ("dsc", "cldice", "nsd"), ("bahd_voxel", "bahd_mm", "hd95_mm")
    found = segmentation.scores(empty, empty, (1, 1, 1), 1.0)
    assert found == dict.fromkeys(overlaps, 1.0) | dict.fromkeys(distances, 0.0)
    for prediction, reference in ((empty, full), (full, empty)):
        found = segmentation.scores(prediction, reference, (1, 1, 1), 1.0)
        assert [found[name] for name in overlaps] == [0, 0, 0]
        assert all(np.isnan(found[name]) for name in distances)


def test_millimetres_scale_with_the_voxel(rng):
    prediction, reference = blobs(rng, (9, 9, 9), 0.1), blobs(rng, (9, 9, 9), 0.1)
    found = segmentation.scores(prediction, reference, (2.0, 2.0, 2.0), 1.0)
    assert found["bahd_mm"] == pytest.approx(2 * found["bahd_voxel"])


def trees(rng, shape):
    """Two smooth random masks that overlap in part, as segmentations do."""
    field = gaussian_filter(rng.normal(size=shape), [2.0 if n > 1 else 0 for n in shape])
    other = gaussian_filter(rng.normal(size=shape), [2.0 if n > 1 else 0 for n in shape])
    first, second = field, 0.8 * field + 0.6 * other
    return first > np.quantile(first, 0.9), second > np.quantile(second, 0.88)


@pytest.mark.parametrize("shape", [(40, 36, 20), (64, 48, 1)])
@pytest.mark.parametrize("zooms", [(1.0, 1.0, 1.0), (0.5, 0.6, 1.2)])
@pytest.mark.parametrize("tolerance", [0.7, 1.0, 2.5])
def test_hd95_and_nsd_are_those_of_monai(rng, shape, zooms, tolerance):
    prediction, reference = trees(rng, shape)
    found = segmentation.scores(prediction, reference, zooms, tolerance)
    axes = 2 if shape[2] == 1 else 3
    there, back = (
        torch.from_numpy(mask.reshape(1, 1, *shape[:axes])) for mask in (prediction, reference)
    )
    spacing = list(zooms[:axes])
    hd95 = compute_hausdorff_distance(there, back, True, percentile=95, spacing=spacing)
    nsd = compute_surface_dice(there, back, [tolerance], True, spacing=spacing)
    assert found["hd95_mm"] == pytest.approx(float(hd95), rel=1e-5)
    assert found["nsd"] == pytest.approx(float(nsd), abs=1e-6)


def test_a_mask_in_one_slice_of_a_volume_is_all_border():
    volume = np.zeros((12, 12, 5), bool)
    volume[2:9, 2:9, 2] = True
    there, back = segmentation.surface_distances(volume, volume, (1, 1, 1))
    assert len(there) == len(back) == 49
    flat, _ = segmentation.surface_distances(volume[:, :, 2:3], volume[:, :, 2:3], (1, 1, 1))
    assert len(flat) == 24


def test_cldice_counts_branches_and_not_their_width():
    reference = np.zeros((40, 40, 15), bool)
    reference[2:38, 8:13, 5:10] = reference[2:38, 27:32, 5:10] = True
    thin = np.zeros_like(reference)
    thin[2:38, 10, 7] = thin[2:38, 29, 7] = True
    assert segmentation.centreline_dice(thin, reference) == pytest.approx(1, abs=0.01)
    assert segmentation.dice(thin, reference) < 0.1
    one = reference.copy()
    one[:, 20:] = False  # half of the branches missed: precision 1, sensitivity 1/2
    assert segmentation.centreline_dice(one, reference) == pytest.approx(2 / 3, abs=0.01)
    assert segmentation.centreline_dice(reference, np.roll(reference, 9, 1)) == 0


def test_cldice_is_its_formula_in_the_plane(rng):
    prediction, reference = trees(rng, (64, 48, 1))
    found = segmentation.centreline_dice(prediction, reference)
    p, r = prediction[..., 0], reference[..., 0]
    sp, sr = skeletonize(p), skeletonize(r)
    precision, sensitivity = (sp & r).sum() / sp.sum(), (sr & p).sum() / sr.sum()
    assert found == pytest.approx(2 * precision * sensitivity / (precision + sensitivity))


def test_error_map_codes():
    prediction, reference = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert segmentation.error_map(prediction, reference).tolist() == [1, 2, 3, 0]


def test_the_threshold_finds_a_separable_cohort(rng):
    label = blobs(rng, (20, 20, 10), 0.05)
    region = np.ones_like(label)
    image = np.where(label, 400, 100) + rng.integers(0, 50, label.shape)
    multiple = threshold.choose([(image, label, region), (3 * image, label, region)])
    assert segmentation.dice(threshold.predict(image, region, multiple), label) == 1.0
