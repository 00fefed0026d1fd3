"""Read and write volumes (floor 1).

A volume is read to the last byte (so that gzip's checksum is seen), checked, and brought to
the closest canonical orientation (RAS+); its intensities are left as they are.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError


class VolumeError(ValueError):
    """A volume that cannot be used; names file, field, value and what is allowed."""

    def __init__(self, path: Path, field: str, value: object, allowed: str):
        super().__init__(f"{path}: {field} is {value}; allowed: {allowed}")
        self.path, self.field, self.value, self.allowed = path, field, value, allowed


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A three-dimensional scan in canonical orientation.

    `data` has shape (X, Y, Z) (Z = 1 for a 2-D image), `affine` maps voxels to mm,
    `orientation` is the one on disk, e.g. "LPS".
    """

    data: np.ndarray
    affine: np.ndarray
    orientation: str

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel size along x, y, z in mm."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)


def read(path: Path) -> Volume:
    """Read a NIfTI volume; raise VolumeError if it cannot be used."""
    image = _parse(path, _bytes(path))
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3) or 0 in shape:
        raise VolumeError(path, "dimension", image.shape, "2 or 3 non-empty axes")
    kind = image.get_data_dtype().kind
    if kind not in "iuf":
        raise VolumeError(path, "data type", image.get_data_dtype(), "integer or real numbers")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise VolumeError(path, "affine", image.affine.tolist(), "finite and invertible")
    try:
        data = np.asanyarray(image.dataobj).reshape((*shape, 1)[:3])
    except (ValueError, OSError, EOFError) as error:
        raise VolumeError(path, "data", error, "as many voxels as the header says") from None
    if data.dtype.kind == "f":
        if bad := int(np.size(data) - np.isfinite(data).sum()):
            raise VolumeError(path, "voxels", f"{bad} NaN or infinite", "finite numbers")
        data = data.astype(np.float32, copy=False)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(data, image.affine, dtype=data.dtype))
    return Volume(
        data=np.asanyarray(canonical.dataobj),
        affine=np.asarray(canonical.affine),
        orientation="".join(axis or "?" for axis in aff2axcodes(image.affine)),
    )


def read_mask(path: Path) -> Volume:
    """Read a mask; raise VolumeError unless its only values are 0 and one other."""
    volume = read(path)
    values = np.unique(volume.data)
    if len(values) > 2 or (len(values) == 2 and values[0] != 0):
        shown = ", ".join(f"{value:g}" for value in values[:5])
        raise VolumeError(path, "label values", f"{shown}, ...", "0 and one other value")
    return Volume(
        data=(volume.data != 0).astype(np.uint8),
        affine=volume.affine,
        orientation=volume.orientation,
    )


def check_same_grid(path: Path, mask: Volume, reference: Volume) -> None:
    """Raise VolumeError unless the mask lies on the grid of its image (to 0.01 voxel)."""
    if mask.data.shape != reference.data.shape:
        raise VolumeError(path, "shape", mask.data.shape, f"the image's, {reference.data.shape}")
    shift = np.abs(mask.affine - reference.affine)[:3] / min(reference.zooms)
    corner = shift[:, :3] @ np.array(mask.data.shape) + shift[:, 3]
    if corner.max() > 0.01:
        raise VolumeError(
            path, "affine", f"off by up to {corner.max():.3g} voxels", "the image's grid"
        )


def write(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI volume with a fresh header (deterministic bytes, no name, no time)."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def _bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise VolumeError(path, "gzip stream", error, "an intact file") from None
        raise VolumeError(path, "file", error.strerror, "a readable file") from None
    except (EOFError, zlib.error) as error:
        raise VolumeError(path, "gzip stream", error, "an intact file") from None


def _parse(path: Path, raw: bytes) -> nib.Nifti1Image:
    kind = nib.Nifti2Image if raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
    try:
        image = kind.from_bytes(raw)
        needed = int(np.prod(image.shape, dtype=object)) * image.get_data_dtype().itemsize
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError, KeyError) as error:
        raise VolumeError(path, "header", error, "a single-file NIfTI-1 or NIfTI-2") from None
    if needed > len(raw):
        raise VolumeError(path, "dimension", image.shape, f"at most the file's {len(raw)} bytes")
    return image
