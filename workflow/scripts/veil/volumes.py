"""Read and write volumes (floor 1).

A volume is read to the last byte (so that gzip's checksum is seen) and no further than its
header asks for (so that a small file cannot fill the memory), checked, and brought to the
closest canonical orientation (RAS+); its intensities are left as they are.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import data_type_codes
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import HeaderDataError

MOST_BYTES = 2**31  # a 1000 x 1000 x 500 scan in float32 is just below
PADDING = 512  # some writers fill their last block up with zeros
SMALLEST, LARGEST = 1e-3, 100.0  # edges of a voxel, in mm
KINDS = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # by the size of their header


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
    image = _open(path)
    _check_affine(path, image.affine)
    data = np.asanyarray(image.dataobj).reshape((*image.shape, 1)[:3])
    if data.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused
            data = data.astype(np.float32, copy=False)
        if bad := int(np.size(data) - np.isfinite(data).sum()):
            raise VolumeError(path, "voxels", f"{bad} NaN or infinite", "finite 32-bit numbers")
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(data, image.affine, dtype=data.dtype))
    return Volume(
        data=np.asanyarray(canonical.dataobj),
        affine=np.asarray(canonical.affine),
        orientation="".join(axis or "?" for axis in aff2axcodes(image.affine)),
    )


def read_mask(path: Path) -> Volume:
    """Read a mask; raise VolumeError unless its only values are 0 and one above."""
    volume = read(path)
    values = np.unique(volume.data)
    if len(values[values != 0]) > 1 or values[0] < 0:
        shown = ", ".join(f"{value:g}" for value in values[:5])
        more = ", ..." if len(values) > 5 else ""
        raise VolumeError(path, "label values", shown + more, "0 and one value above it")
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


def _open(path: Path) -> nib.Nifti1Image:
    """The image, its whole file in memory: inflated, and as long as its header says."""
    try:
        if not path.is_file():  # a pipe would be waited for, without end
            raise VolumeError(path, "file", "missing, or no file", "a readable file")
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if packed else file
            kind, end = _layout(path, stream.read(max(KINDS)))
            stream.seek(0)
            raw = _read_at_most(stream, end + PADDING + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise VolumeError(path, "gzip stream", error, "an intact file") from None
    except OSError as error:
        raise VolumeError(path, "file", error.strerror, "a readable file") from None
    held = raw.seek(0, io.SEEK_END)
    behind = raw.getbuffer()[end:]
    if held < end or len(behind) > PADDING or any(behind):
        found = f"{held} bytes" if held < end else f"more than {end} bytes"
        allowed = f"the {end} bytes that the header asks for, and at most {PADDING} zeros behind"
        raise VolumeError(path, "length", found, allowed)
    raw.seek(0)
    try:
        return kind.from_stream(raw)
    except (ImageFileError, HeaderDataError, ValueError) as error:
        raise VolumeError(path, "header", error, "a single-file NIfTI-1 or NIfTI-2") from None


def _read_at_most(stream: Any, size: int) -> io.BytesIO:
    """The stream's first `size` bytes, by the piece: the memory grows with what is there."""
    raw = io.BytesIO()
    while piece := stream.read(min(2**24, size - raw.tell())):
        raw.write(piece)
    return raw


def _layout(path: Path, head: bytes) -> tuple[type[nib.Nifti1Image], int]:
    """The kind of image that a header is of, and how long its file must be."""
    sizes = {order: int.from_bytes(head[:4], order) for order in ("little", "big")}
    order = next((order for order, size in sizes.items() if len(head) >= size in KINDS), None)
    if order is None:
        what = f"{len(head)} bytes that begin with {head[:4]!r}"
        raise VolumeError(path, "header", what, "a single-file NIfTI-1 or NIfTI-2")
    kind = KINDS[sizes[order]]
    header = kind.header_class(head[: sizes[order]], endianness=order, check=False)
    for field, value, good, allowed in _rules(header):
        if not good:
            raise VolumeError(path, field, value, allowed)
    shape, code, known = header.get_data_shape(), int(header["datatype"]), data_type_codes
    if len(shape) < 2 or any(length > 1 for length in shape[3:]):
        raise VolumeError(path, "dimension", shape, "2 or 3 axes, none of them empty")
    dtype = known.dtype.get(code)
    if dtype is None or dtype.kind not in "iuf":
        raise VolumeError(path, "data type", known.label.get(code, code), "integer or real numbers")
    end = int(header["vox_offset"]) + math.prod(map(int, shape)) * dtype.itemsize
    if end > MOST_BYTES:
        allowed = f"at most {MOST_BYTES} bytes, of which this is {end}"
        raise VolumeError(path, "dimension", shape, allowed)
    return kind, end


def _rules(header: Any) -> Iterator[tuple[str, object, bool, str]]:
    """(field, value, whether it is good, what is allowed): what nibabel mends by a guess."""
    axes, magic = int(header["dim"][0]), header["magic"].item()
    yield "dim[0]", axes, 1 <= axes <= 7, "1 to 7 axes"
    lengths = tuple(map(int, header["dim"][1 : axes + 1]))
    yield "dimension", lengths, all(n > 0 for n in lengths), "2 or 3 axes, none of them empty"
    yield "magic", magic, magic == header.single_magic, "one file, not a .hdr beside an .img"
    start, least = float(header["vox_offset"]), header.single_vox_offset
    yield "vox_offset", start, least <= start <= MOST_BYTES, f"{least} or a little more"
    units = int(header["xyzt_units"]) & 7  # the higher bits are of time
    yield "xyzt_units", units, units in (0, 2), "2 for mm, or 0 if unsaid"
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    # The standard leaves out scaling where the slope is 0; others write NaN for that.
    unscaled = slope == 0 or math.isnan(slope)
    yield "scl_slope", slope, not math.isinf(slope), "a finite number; 0 or NaN for no scaling"
    yield "scl_inter", inter, unscaled or math.isfinite(inter), "a finite number"
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    yield "sform_code", sform, 0 <= sform <= 5, "0 to 5"
    yield "qform_code", qform, 0 <= qform <= 5, "0 to 5"
    if sform == 0:  # else the geometry is the sform's alone
        edges = [float(edge) for edge in header["pixdim"][1 : 1 + min(axes, 3)]]
        good = all(0 < edge < math.inf for edge in edges)
        yield "pixdim", edges, good, "above 0, where there is no sform"
        turn = float(header["pixdim"][0])
        yield "pixdim[0]", turn, qform == 0 or turn in (-1, 0, 1), "-1, or 1 (0 is read as 1)"


def _check_affine(path: Path, affine: np.ndarray) -> None:
    if not np.isfinite(affine).all():
        raise VolumeError(path, "affine", affine.tolist(), "finite numbers")
    edges = np.sqrt((affine[:3, :3].astype(float) ** 2).sum(axis=0))
    # Distances in mm are measured along the axes: none may lean (by more than 2.5 degrees).
    if not abs(np.linalg.det(affine[:3, :3])) > 0.999 * edges.prod():
        raise VolumeError(path, "affine", affine.tolist(), "invertible, with axes at right angles")
    if edges.min() < SMALLEST or edges.max() > LARGEST:
        shown = " x ".join(f"{edge:.3g}" for edge in edges)
        raise VolumeError(path, "voxel size", f"{shown} mm", f"{SMALLEST} to {LARGEST:g} mm")
