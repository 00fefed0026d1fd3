"""The geometry of labels: does a synthetic tree branch and taper as a real one (floor 2)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import ndimage, stats
from skimage.morphology import skeletonize


def geometry(labels: np.ndarray) -> pd.DataFrame:
    """One row a labelled patch of the masks, uint8 (n, H, W), empty ones left out.

    - `radius`: mean distance from the skeleton to the border, in pixels;
    - `length`: pixels of skeleton per 1,000 pixels of patch;
    - `parts`: connected components, corners touching;
    - `area`: labelled share of the patch.
    """
    rows = []
    for mask in labels[labels.any((1, 2))].astype(bool):
        skeleton = skeletonize(mask)
        rows.append(
            {
                "radius": ndimage.distance_transform_edt(mask)[skeleton].mean(),
                "length": 1000 * skeleton.mean(),
                "parts": ndimage.label(mask, np.ones((3, 3)))[1],
                "area": mask.mean(),
            }
        )
    return pd.DataFrame(rows, columns=["radius", "length", "parts", "area"])


def distances(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, float]:
    """Wasserstein-1 distance of each column of two sets' `geometry`; NaN where a set is empty."""
    if not len(first) or not len(second):
        return dict.fromkeys(first.columns, float("nan"))
    return {
        name: float(stats.wasserstein_distance(first[name], second[name])) for name in first.columns
    }
