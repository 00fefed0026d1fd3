"""Open every file of a cohort before any work, and write down what is there (floor 1).

The sheets show private data and stay on the private side of the study.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from veil import artifacts, volumes
from veil.cohorts.bids import CohortError, Patient
from veil.config import Splits

PERCENTILES = (1, 5, 50, 95, 99, 100)


def check(patients: Iterable[Patient]) -> pd.DataFrame:
    """The QC sheet of a cohort one row a patient.

    Shape, voxel size in mm, orientation on disk, intensity percentiles, share of labelled
    voxels. Raises CohortError naming every file that cannot be used.
    """
    faults: list[str] = []
    rows = []
    for patient in patients:
        try:
            rows.append(_facts(patient))
        except volumes.VolumeError as error:
            faults.append(str(error))
    if faults:
        raise CohortError(faults)
    return pd.DataFrame(rows)


def with_contents(patients: Iterable[Patient]) -> list[Patient]:
    """The patients with hashes of what their files hold, whatever their place, packing or header.

    Of voxels in canonical orientation as float32: an id may change, a scan is the person.
    """
    known = []
    for patient in patients:
        files = [patient.label, *([patient.region] if patient.region else [])]
        known.append(
            replace(
                patient,
                scan_sha256=_content(volumes.read(patient.image)),
                label_sha256=_content(*map(volumes.read_mask, files)),
            )
        )
    return known


def _content(*read: volumes.Volume) -> str:
    digest = hashlib.sha256()
    for volume in read:
        voxels = np.asfortranarray(volume.data, "<f4")
        digest.update(f"{voxels.shape}\0".encode())
        digest.update(voxels.tobytes("F"))
    return digest.hexdigest()


def unexpected_sizes(patients: Iterable[Patient], splits: Splits) -> list[str]:
    """Warnings where a split's size differs from the public number in the configuration."""
    counts = Counter(patient.split for patient in patients)
    return [
        f"split {name}: {counts[name]} patients found, splits.{name} says {wanted}"
        for name, wanted in splits.model_dump().items()
        if counts[name] != wanted
    ]


def _facts(patient: Patient) -> dict[str, object]:
    image = volumes.read(patient.image)
    if image.data.min() == image.data.max():
        what = f"{image.data.flat[0]:g} in every voxel"
        raise volumes.VolumeError(patient.image, "image", what, "at least two intensities")
    label = volumes.read_mask(patient.label)
    volumes.check_same_grid(patient.label, label, image)
    # A patient may have no vessel, but nobody is nothing else.
    if label.data.all():
        raise volumes.VolumeError(
            patient.label, "label", "every voxel", "at least one of background"
        )
    if patient.region:
        region = volumes.read_mask(patient.region)
        volumes.check_same_grid(patient.region, region, image)
        if not region.data.any():
            raise volumes.VolumeError(patient.region, "region", "empty", "at least one voxel")
    percentiles = np.percentile(image.data, PERCENTILES)
    return {
        "participant_id": patient.participant_id,
        "split": patient.split,
        "shape": "x".join(map(str, image.data.shape)),
        "zooms_mm": "x".join(f"{zoom:.3g}" for zoom in image.zooms),
        "orientation": image.orientation,
        "data_type": str(image.data.dtype),
        **{f"p{p}": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)},
        "label_fraction": float(label.data.mean()),
        "label_components": int(ndimage.label(label.data)[1]),
    }


def head_region(image: np.ndarray) -> np.ndarray:
    """Where the head is: above Otsu's threshold, largest part, closed and filled; (X, Y, Z)."""
    import SimpleITK as sitk

    above = np.asarray(
        sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(image), 0, 1))
    )
    closed = ndimage.binary_closing(np.pad(above, 3), iterations=2)[3:-3, 3:-3, 3:-3]
    parts, count = ndimage.label(closed if closed.any() else above)
    if not count:
        return np.ones(image.shape, bool)
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    filled = [ndimage.binary_fill_holes(largest[:, :, z]) for z in range(image.shape[2])]
    return np.stack(filled, axis=2)


def field_region(image: np.ndarray) -> np.ndarray:
    """Where the image is: all but frames of the highest or lowest value at the edges; (X, Y, Z)."""
    low, high = float(image.min()), float(image.max())
    inside = np.ones(image.shape, bool)
    for z in range(image.shape[2]):
        # Compressed frames are not quite flat; and a bright vessel that meets one is narrow.
        for extreme in (image[:, :, z] >= high - 0.03 * (high - low), image[:, :, z] == low):
            solid = np.pad(extreme, 8, mode="edge")
            solid = ndimage.binary_opening(solid, np.ones((9, 9)))[8:-8, 8:-8]
            parts, _ = ndimage.label(solid)
            frame = np.isin(parts, list(_spanning(parts)))
            inside[:, :, z] &= ~ndimage.binary_dilation(frame, iterations=2)
    return inside if inside.any() else np.ones(image.shape, bool)


def _spanning(parts: np.ndarray) -> Iterator[int]:
    """Labels of the parts (X, Y) that cover at least half of some edge, as no vessel does."""
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        counts = np.bincount(edge)
        yield from (int(n) for n in np.flatnonzero(counts >= len(edge) / 2) if n)


def read_patient(patient: Patient, region: str) -> tuple[volumes.Volume, np.ndarray, np.ndarray]:
    """(image, label, region) of one patient; the masks are boolean, (X, Y, Z).

    `region` is the cohort's setting: `file`, `head`, `field` or `all`.
    """
    image = volumes.read(patient.image)
    label = volumes.read_mask(patient.label).data.astype(bool)
    if patient.region:
        inside = volumes.read_mask(patient.region).data.astype(bool)
    elif region == "head":
        inside = head_region(image.data) | label
    elif region == "field":
        inside = field_region(image.data)
    else:
        inside = np.ones(label.shape, bool)
    return image, label, inside


def draw(patients: Sequence[Patient], path: Path, columns: int = 6) -> None:
    """A picture of the cohort: each patient's maximum projection with the label's outline.

    Privacy: shows patients; it stays on the private side of the study.
    """
    from matplotlib.figure import Figure

    shown = list(patients)[:24]
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, patient in zip(axes, shown, strict=False):
        image = volumes.read(patient.image).data.max(axis=2)
        label = volumes.read_mask(patient.label).data.max(axis=2)
        low, high = np.percentile(image, (1, 99.7))
        axis.imshow(image.T, cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1e-6))
        if label.any() and not label.all():
            axis.contour(label.T, [0.5], colors="#e6550d", linewidths=0.4)
        axis.set_title(f"{patient.participant_id} ({patient.split})", fontsize=8)
    with artifacts.whole(path) as temporary:
        figure.savefig(temporary, dpi=110)
