"""Segment whole volumes with a patch segmenter (floor 4)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from veil import patches

BATCH = 128


def segment(
    image: np.ndarray,
    region: np.ndarray,
    segmenter: Callable[[np.ndarray], np.ndarray],
    size: int,
    stride: float,
    threshold: float = 0.5,
) -> np.ndarray:
    """Boolean mask (X, Y, Z) of a volume, within `region`.

    Each axial slice of the region's bounding box is tiled in `size` x `size`, a step of
    `stride` tiles apart, each tile scaled on its own as patches are; where tiles overlap,
    their probabilities are averaged with most weight at the tile's centre.
    """
    mask = np.zeros(image.shape, bool)
    if not region.any():
        return mask
    window = np.outer(*[np.hanning(size + 2)[1:-1]] * 2).astype(np.float32) + 1e-3
    for z in np.flatnonzero(region.any((0, 1))):
        corners = _corners(region[:, :, z], size, stride)
        padded = _pad(image[:, :, z], size)
        tiles = np.stack([padded[x : x + size, y : y + size] for x, y in corners])
        scaled = patches.scale(tiles)
        total = np.zeros(padded.shape, np.float32)
        weight = np.full(padded.shape, 1e-12, np.float32)
        for start in range(0, len(scaled), BATCH):
            found = segmenter(scaled[start : start + BATCH])
            for (x, y), tile in zip(corners[start : start + BATCH], found, strict=True):
                total[x : x + size, y : y + size] += tile * window
                weight[x : x + size, y : y + size] += window
        probable = total / weight > threshold
        mask[:, :, z] = probable[: image.shape[0], : image.shape[1]] & region[:, :, z]
    return mask


def _corners(region: np.ndarray, size: int, stride: float) -> list[tuple[int, int]]:
    """Lower corners of the tiles that cover one slice's bounding box and hold some region."""
    step = max(round(size * stride), 1)
    spans = []
    for axis in (0, 1):
        used = np.flatnonzero(region.any(axis=1 - axis))
        low, high = int(used[0]), int(used[-1]) + 1
        last = max(min(high, region.shape[axis]) - size, 0)
        starts = list(range(min(low, last), last, step))
        spans.append([*starts, last])
    return [(x, y) for x in spans[0] for y in spans[1] if region[x : x + size, y : y + size].any()]


def _pad(image: np.ndarray, size: int) -> np.ndarray:
    """A slice at least as large as a tile, repeating its edge."""
    short = [max(size - edge, 0) for edge in image.shape]
    return np.pad(image, [(0, n) for n in short], mode="edge") if any(short) else image
