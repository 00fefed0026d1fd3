"""Segmentation scores of one patient, and their rules for empty masks (floor 2).

| reference | prediction | DSC | clDice | NSD | bAHD, HD95 |
|---|---|---|---|---|---|
| empty | empty | 1 | 1 | 1 | 0 |
| empty | not empty | 0 | 0 | 0 | undefined |
| not empty | empty | 0 | 0 | 0 | undefined |

An undefined value is NaN: it is left out of means and counted, never replaced by a number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree
from skimage.morphology import skeletonize


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice similarity coefficient, 2 TP / (2 TP + FP + FN), in 0..1; boolean masks."""
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    if total == 0:
        return 1.0
    return 2 * int(np.count_nonzero(prediction & reference)) / total


def balanced_hausdorff(
    prediction: np.ndarray, reference: np.ndarray, zooms: Sequence[float]
) -> float:
    """Balanced average Hausdorff distance of boolean masks (X, Y, Z), in the unit of `zooms`.

    (sum over g in G of d(g, S) + sum over s in S of d(s, G)) / (2 |G|), with G the reference
    and S the prediction (Aydin et al. 2021). Exact: distances are asked only of voxels
    outside the other mask, and only to its shell, where the nearest voxel always lies.
    """
    if not reference.any() or not prediction.any():
        return 0.0 if not reference.any() and not prediction.any() else float("nan")
    box = _bounding_box(prediction | reference)
    prediction, reference = prediction[box], reference[box]
    missed = _distances(reference & ~prediction, prediction, zooms)
    added = _distances(prediction & ~reference, reference, zooms)
    return float((missed + added) / (2 * np.count_nonzero(reference)))


def centreline_dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """clDice of boolean masks (X, Y, Z) or (X, Y), in 0..1 (Shit et al. 2021, eq. 1 and 2).

    The harmonic mean of the share of the prediction's skeleton in the reference and of the
    reference's in the prediction: one for a tree whose branches all were found, however thick.
    Skeletons are those of Lee et al. 1994, in 2-D of Zhang and Suen 1984.
    """
    if not reference.any() or not prediction.any():
        return float(not reference.any() and not prediction.any())
    prediction, reference = _flat(prediction), _flat(reference)
    precision, sensitivity = (
        np.mean(other[skeletonize(mask)])
        for mask, other in ((prediction, reference), (reference, prediction))
    )
    total = float(precision + sensitivity)
    return 2 * float(precision) * float(sensitivity) / total if total else 0.0


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, zooms: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each border voxel of one mask to the other's border, both ways.

    Masks are boolean (X, Y, Z), neither empty; a Z of 1 counts for nothing. In the unit of `zooms`.
    A voxel is at the border if one of its face neighbours is outside the mask or the volume.
    """
    prediction, reference = _flat(prediction), _flat(reference)
    box = _bounding_box(prediction | reference)
    borders = [
        np.argwhere(mask & ~binary_erosion(mask)) * zooms[: mask.ndim]
        for mask in (prediction[box], reference[box])
    ]
    there, _ = cKDTree(borders[1]).query(borders[0])
    back, _ = cKDTree(borders[0]).query(borders[1])
    return there, back


def scores(
    prediction: np.ndarray, reference: np.ndarray, zooms: Sequence[float], tolerance: float
) -> dict[str, float]:
    """All scores of one patient: `dsc`, `cldice`, `bahd_voxel`, `bahd_mm`, `hd95_mm` and `nsd`.

    `zooms` are in mm. HD95 is the larger of the two ways' 95th percentiles of the surface
    distances; NSD is the share of both borders within `tolerance`, in mm, of the other (Nikolov et
    al. 2021), each border voxel counting as one.
    """
    both_empty = not reference.any() and not prediction.any()
    hd95, nsd = 0.0 if both_empty else float("nan"), float(both_empty)
    if reference.any() and prediction.any():
        there, back = surface_distances(prediction, reference, zooms)
        hd95 = float(max(np.percentile(there, 95), np.percentile(back, 95)))
        nsd = float(np.mean(np.concatenate([there, back]) <= tolerance))
    return {
        "dsc": dice(prediction, reference),
        "cldice": centreline_dice(prediction, reference),
        "bahd_voxel": balanced_hausdorff(prediction, reference, (1.0,) * reference.ndim),
        "bahd_mm": balanced_hausdorff(prediction, reference, zooms),
        "hd95_mm": hd95,
        "nsd": nsd,
    }


def error_map(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """uint8 map of the two masks' shape: 1 true positive, 2 false positive, 3 false negative."""
    errors = np.zeros(reference.shape, np.uint8)
    errors[prediction & reference] = 1
    errors[prediction & ~reference] = 2
    errors[~prediction & reference] = 3
    return errors


def _flat(mask: np.ndarray) -> np.ndarray:
    """A volume (X, Y, 1) as the image (X, Y) that it is."""
    return mask[:, :, 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask


def _distances(points: np.ndarray, target: np.ndarray, zooms: Sequence[float]) -> float:
    """Sum of the distances from each voxel of `points` to the nearest voxel of `target`."""
    if not points.any():
        return 0.0
    shell = target & ~binary_erosion(target)
    tree = cKDTree(np.argwhere(shell) * zooms)
    distances, _ = tree.query(np.argwhere(points) * zooms)
    return float(distances.sum())


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)
