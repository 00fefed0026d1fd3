"""Segmentation scores of one patient, and their rules for empty masks (floor 2).

| reference | prediction | DSC | bAHD |
|---|---|---|---|
| empty | empty | 1 | 0 |
| empty | not empty | 0 | undefined |
| not empty | empty | 0 | undefined |

An undefined value is NaN: it is left out of means and counted, never replaced by a number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree


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


def scores(
    prediction: np.ndarray, reference: np.ndarray, zooms: Sequence[float]
) -> dict[str, float]:
    """All scores of one patient: `dsc`, `bahd_voxel` (in voxels) and `bahd_mm` (`zooms` in mm)."""
    return {
        "dsc": dice(prediction, reference),
        "bahd_voxel": balanced_hausdorff(prediction, reference, (1.0,) * reference.ndim),
        "bahd_mm": balanced_hausdorff(prediction, reference, zooms),
    }


def error_map(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """uint8 map of the two masks' shape: 1 true positive, 2 false positive, 3 false negative."""
    errors = np.zeros(reference.shape, np.uint8)
    errors[prediction & reference] = 1
    errors[prediction & ~reference] = 2
    errors[~prediction & reference] = 3
    return errors


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
