"""Cut image-label patches from patients (floor 1).

Kossen et al. 2022, section 3.1: in axial slices, half of the patches centred on a vessel
voxel and half anywhere in the brain mask, unique, with half a patch of margin in plane. Each
image is scaled on its own, so nothing is fitted to the cohort.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from veil.cohorts.bids import CohortError
from veil.config import Patches
from veil.provenance import derive_seed
from veil.volumes import Volume


def choose_centres(
    label: np.ndarray, region: np.ndarray, settings: Patches, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Unique centres (n, 3) and whether each was chosen as a vessel (n,), sorted by slice.

    `label` and `region` are boolean (X, Y, Z). Fewer than `per_patient` come back only where
    the volume holds fewer voxels of a kind; the region then makes up for missing vessels.
    """
    half = settings.size // 2
    allowed = np.zeros(label.shape, bool)
    allowed[
        half : label.shape[0] - (settings.size - half) + 1,
        half : label.shape[1] - (settings.size - half) + 1,
    ] = True
    vessel = np.flatnonzero(label & allowed)
    wanted = round(settings.per_patient * settings.vessel_fraction)
    first = rng.choice(vessel, min(wanted, len(vessel)), replace=False)
    anywhere = np.setdiff1d(np.flatnonzero(region & allowed), first, assume_unique=True)
    missing = settings.per_patient - len(first)
    second = rng.choice(anywhere, min(missing, len(anywhere)), replace=False)
    flat = np.concatenate([first, second])
    is_vessel = np.arange(len(flat)) < len(first)
    centres = np.stack(np.unravel_index(flat, label.shape), axis=1)
    order = np.lexsort(centres.T)
    return centres[order], is_vessel[order]


def cut(image: np.ndarray, label: np.ndarray, centres: np.ndarray, size: int) -> np.ndarray:
    """Patches around centres, uint8 (n, 2, size, size), from volumes (X, Y, Z).

    Channel 0 is the image scaled by `scale`, channel 1 the label in {0, 1}.
    """
    # Slices of a Fortran-ordered volume are contiguous; as read from NIfTI it is one already.
    image, label = np.asfortranarray(image), np.asfortranarray(label)
    x, y = (centres[:, :2] - size // 2).T
    pairs = np.empty((len(centres), 2, size, size), np.uint8)
    for z in np.unique(centres[:, 2]):
        here = np.flatnonzero(centres[:, 2] == z)
        for channel, volume in enumerate((image, label)):
            windows = sliding_window_view(volume[:, :, z], (size, size))
            found = windows[x[here], y[here]]
            pairs[here, channel] = found if channel else scale(found)
    return pairs


def scale(image: np.ndarray) -> np.ndarray:
    """One image, or a stack of them, min-max scaled to uint8 0..255; a constant one gives 0."""
    axes = (-2, -1)
    image = image.astype(np.float32, copy=False)
    low = image.min(axes, keepdims=True)
    span = image.max(axes, keepdims=True) - low
    scaled: np.ndarray = np.rint((image - low) * (255 / np.where(span > 0, span, 1)))
    return scaled.astype(np.uint8)


Read = Callable[[], tuple[Volume, np.ndarray, np.ndarray]]


def cut_all(
    patients: Sequence[tuple[str, Read]], settings: Patches, *, seed: int, threads: int = 1
) -> tuple[np.ndarray, pd.DataFrame]:
    """Patches of many patients: pairs, uint8 (N, 2, size, size), and whose they are.

    Each patient comes as an id and a function that reads (image, label, region). A patient's
    centres depend on the seed and the id alone, so that one patient more moves no other's.
    """

    def one(patient: tuple[str, Read]) -> tuple[np.ndarray, pd.DataFrame]:
        name, read = patient
        image, label, region = read()
        rng = np.random.default_rng(derive_seed(seed, name))
        centres, is_vessel = choose_centres(label, region, settings, rng)
        if not len(centres):
            what = f"{' x '.join(map(str, label.shape))} voxels hold no patch of {settings.size}"
            raise CohortError([f"{name}: {what}; allowed: a region that patches.size fits into"])
        return cut(image.data, label, centres, settings.size), table_of(name, centres, is_vessel)

    with ThreadPoolExecutor(threads) as pool:  # decompressing and sorting release the GIL
        parts = list(pool.map(one, patients))
    return np.concatenate([pairs for pairs, _ in parts]), pd.concat([table for _, table in parts])


def table_of(patient: str, centres: np.ndarray, is_vessel: np.ndarray) -> pd.DataFrame:
    """One row a patch: patient, centre, and how it was chosen."""
    return pd.DataFrame(
        {
            "participant_id": patient,
            **dict(zip("xyz", centres.T, strict=True)),
            "centre": np.where(is_vessel, "vessel", "region"),
        }
    )


def to_unit(pairs: np.ndarray) -> np.ndarray:
    """uint8 pairs as float32 for a generator: image to [-1, 1], label as it is."""
    unit = pairs.astype(np.float32)
    unit[:, 0] = unit[:, 0] / 127.5 - 1
    return unit


def from_unit(unit: np.ndarray, label_threshold: float) -> np.ndarray:
    """A generator's output as uint8 pairs: image rescaled per patch, label thresholded."""
    return np.stack([scale(unit[:, 0]), (unit[:, 1] > label_threshold).astype(np.uint8)], axis=1)
