"""How unlike each other the images of one set are (floor 2).

Mode collapse shows as a mean structural similarity near 1 over all pairs of images (Kossen et al.
2022, Figure 8), here by the definition of Wang et al. 2004 with a uniform window of 7 x 7 and
sample covariances, as scikit-image has it.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

WINDOW = 7
FIRST, SECOND = (0.01 * 255) ** 2, (0.03 * 255) ** 2
BLOCK = 128
"""Images whose pairs with all others are worked on together, few enough for a core's cache."""


def mean_ssim(images: np.ndarray) -> float:
    """Mean structural similarity over all pairs of two of the images, uint8 (n, H, W), n >= 2.

    Windows lie wholly within the image; H and W are at least 7. Window by window, the covariances
    of all pairs are one product of matrices, and so is each other factor of the formula.
    """
    count = len(images)
    total = 0.0
    windows = sliding_window_view(images, (WINDOW, WINDOW), axis=(1, 2))
    for row in range(windows.shape[1]):
        pixels = windows[:, row].astype(np.float32).reshape(count, windows.shape[2], -1)
        for column in range(windows.shape[2]):
            total += _sum_over_pairs(np.ascontiguousarray(pixels[:, column]))
    return total / (count * (count - 1) / 2) / (windows.shape[1] * windows.shape[2])


def _sum_over_pairs(pixels: np.ndarray) -> float:
    """Sum over all pairs of two rows of the similarity of one window, float32 (n, 49)."""
    means = pixels.mean(1)
    centred = pixels - means[:, None]
    centred *= np.float32(np.sqrt(2 / (pixels.shape[1] - 1)))
    spread = (centred**2).sum(1) / 2 + SECOND / 2
    level = means**2 + FIRST / 2
    one = np.ones_like(means)
    # a b + c is (a, c) times (b, 1), and (a + b)(c + d) a product of four terms.
    factors = [
        (np.column_stack([centred, one * SECOND]), np.column_stack([centred, one])),
        (np.column_stack([means, one * FIRST]), np.column_stack([2 * means, one])),
        (
            np.column_stack([level * spread, one, level, spread]),
            np.column_stack([one, level * spread, spread, level]),
        ),
    ]
    lefts = [np.asarray(left, np.float32) for left, _ in factors]
    rights = [np.ascontiguousarray(right.T, np.float32) for _, right in factors]
    total = 0.0
    for start in range(0, len(pixels), BLOCK):
        mine = slice(start, start + BLOCK)
        similarity, other, below = (
            left[mine] @ right[:, start:] for left, right in zip(lefts, rights, strict=True)
        )
        similarity *= other
        similarity /= below
        width = len(similarity)
        # Of the block's own pairs each stands twice, and each image beside itself.
        own = similarity[:, :width]
        twice = float(similarity[:, width:].sum()) * 2 + float(own.sum()) - float(np.trace(own))
        total += twice / 2
    return total
