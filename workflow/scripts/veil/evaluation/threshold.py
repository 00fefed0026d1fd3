"""The trivial baseline: the best single threshold (floor 2).

Chosen on validation patients as a multiple of the median intensity in the region, which
makes it comparable between scanners. A segmenter that does not beat it has learnt nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from veil.evaluation.segmentation import dice

MULTIPLES = np.round(np.geomspace(1.02, 12, 80), 3)


def predict(image: np.ndarray, region: np.ndarray, multiple: float) -> np.ndarray:
    """Boolean mask (X, Y, Z) of the region's voxels above `multiple` x its median intensity."""
    above: np.ndarray = region & (image > multiple * np.median(image[region]))
    return above


def choose(patients: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """The multiple of best mean DSC over (image, label, region) patients."""
    scores = [
        [dice(predict(image, region, multiple), label & region) for multiple in MULTIPLES]
        for image, label, region in patients
    ]
    return float(MULTIPLES[int(np.argmax(np.mean(scores, axis=0)))])
