"""Hostile input: every case is taken correctly or refused by name, before any training.

`PYTHONPATH=workflow/scripts python tests/unit/test_hostile.py` prints the table as Markdown.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError
from snakemake.utils import update_config

from veil import config, patches, volumes
from veil.cohorts import bids, check, convert
from veil.config import BidsCohort, ImportedCohort, Splits

ROOT = Path(__file__).resolve().parents[2]
SPLITS = Splits(train=1, validation=1, test=1)
COHORT = BidsCohort(kind="bids", path="unused", splits=SPLITS, region="all")
SHAPE, ZOOMS = (9, 8, 5), (0.5, 0.75, 1.25)
AFFINE = np.diag([*ZOOMS, 1.0])
IMAGE = np.random.default_rng(1).integers(1, 900, SHAPE).astype(np.int16)
LABEL = (IMAGE > 700).astype(np.uint8)
TABLE = "participant_id\tsplit\nsub-1\ttrain\nsub-2\tvalidation\nsub-3\ttest\n"
REFUSALS = (bids.CohortError, volumes.VolumeError, config.ConfigError, WorkflowError)


@dataclass(frozen=True)
class Case:
    """One hostile input: how it is made, and what must become of it.

    `make` gets a folder with a good cohort of three patients and spoils it. A case without
    `words` must be accepted, and `make` then returns what must be read (by default the good
    image, label and voxel size); otherwise the refusal must hold all of the words.
    """

    group: str
    name: str
    make: Callable[[Path], Any]
    words: tuple[str, ...] = ()


def image_of(root: Path) -> Path:
    return root / "sub-1/anat/sub-1_angio.nii.gz"


def label_of(root: Path) -> Path:
    return root / "derivatives/labels/sub-1/anat/sub-1_label-vessel_mask.nii.gz"


def write_cohort(root: Path) -> Path:
    for number in "123":
        for place in (image_of, label_of):
            path = Path(str(place(root)).replace("sub-1", f"sub-{number}"))
            volumes.write(path, IMAGE if place is image_of else LABEL, AFFINE)
    (root / "participants.tsv").write_text(TABLE)
    return root


# ------------------------------------------------------------------ how cases are made


def packed(raw: bytes) -> bytes:
    return gzip.compress(raw, 1, mtime=0)


def bytes_of(data: np.ndarray = IMAGE, affine: np.ndarray = AFFINE, kind=nib.Nifti1Image) -> bytes:
    order = ">" if data.dtype.byteorder == ">" else "<"
    header = kind.header_class(endianness=order)
    header.set_data_dtype(data.dtype)
    return kind(data, affine, header).to_bytes()


def with_fields(raw: bytes, **fields: Any) -> bytes:
    """The same bytes with raw header fields; `pixdim_1` is the second number of pixdim."""
    dtype = nib.nifti1.header_dtype if raw[0] == 92 else nib.nifti2.header_dtype
    header = np.frombuffer(raw[: dtype.itemsize], dtype).copy()
    for name, value in fields.items():
        field, _, index = name.rpartition("_")
        if index.isdigit():
            header[field][0, int(index)] = value
        else:
            header[name] = value
    return header.tobytes() + raw[dtype.itemsize :]


def image(raw: Callable[[], bytes] | bytes, expected: Any = None) -> Callable[[Path], Any]:
    def make(root: Path) -> Any:
        image_of(root).write_bytes(packed(raw() if callable(raw) else raw))
        return expected

    return make


def fields(expected: Any = None, **changed: Any) -> Callable[[Path], Any]:
    return image(lambda: with_fields(bytes_of(), **changed), expected)


def voxels(data: np.ndarray, expected: Any = None, affine: np.ndarray = AFFINE):
    return image(lambda: bytes_of(data, affine), expected)


def label(data: np.ndarray, expected: Any = None, affine: np.ndarray = AFFINE):
    def make(root: Path) -> Any:
        label_of(root).write_bytes(packed(bytes_of(data, affine)))
        return expected

    return make


def raw_file(change: Callable[[bytes], bytes], place=image_of) -> Callable[[Path], Any]:
    def make(root: Path) -> None:
        place(root).write_bytes(change(place(root).read_bytes()))

    return make


def table(content: str | bytes) -> Callable[[Path], Any]:
    def make(root: Path) -> None:
        text = content if isinstance(content, bytes) else content.encode()
        (root / "participants.tsv").write_bytes(text)

    return make


def replaced(do: Callable[[Path], Any], place=image_of) -> Callable[[Path], Any]:
    def make(root: Path) -> None:
        place(root).unlink()
        do(place(root))

    return make


def patched(value: float) -> np.ndarray:
    data = IMAGE.astype(np.float32)
    data[1, 2, 3] = value
    return data


def flipped(raw: bytes) -> bytes:
    return raw[:200] + bytes([raw[200] ^ 16]) + raw[201:]


def bomb(_: bytes) -> bytes:
    """A good start, then 2 GiB of zeros in 2 MB: gzip members may follow one another."""
    return packed(bytes_of()) + packed(bytes(2**24)) * 128


def turned(codes: str) -> Callable[[Path], Any]:
    def make(root: Path) -> dict[str, Any]:
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
        )
        for place, data in ((image_of, IMAGE), (label_of, LABEL)):
            nib.save(nib.Nifti1Image(data, AFFINE).as_reoriented(turn), place(root))
        return {"orientation": codes}

    return make


def without_codes(root: Path) -> dict[str, Any]:
    """Neither sform nor qform: the standard's first method, which says the voxel size alone."""
    for place, data in ((image_of, IMAGE), (label_of, LABEL)):
        raw = with_fields(bytes_of(data), sform_code=0, qform_code=0)
        place(root).write_bytes(packed(raw))
    return {"image": IMAGE[::-1], "label": LABEL[::-1], "orientation": "LAS"}


def pair(root: Path) -> None:
    image_of(root).unlink()
    nib.save(nib.Nifti1Pair(IMAGE, AFFINE), image_of(root).with_name("sub-1_angio.hdr"))


def outside(root: Path) -> None:
    image_of(root).rename(root.parent / "elsewhere.nii.gz")
    image_of(root).symlink_to(root.parent / "elsewhere.nii.gz")


def inside(root: Path) -> None:
    (root / "annex").mkdir()
    image_of(root).rename(root / "annex/content")
    image_of(root).symlink_to(root / "annex/content")


def not_utf8(root: Path) -> None:
    image_of(root).rename(image_of(root).with_name(os.fsdecode(b"sub-1_acq-\xff_angio.nii.gz")))


def sheared(lean: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 1] = lean
    return affine


def shifted(by: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += by
    return affine


RGB = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
BIG = IMAGE.astype(np.uint64) + np.uint64(2**63)
NAN, INF = float("nan"), float("inf")
QFORM = {"sform_code": 0, "qform_code": 1}
SCALED = {"scl_slope": -2.0, "scl_inter": 10.0}

VOLUMES = [
    Case("damaged gzip", "cut short", raw_file(lambda raw: raw[:-40]), ("gzip stream",)),
    Case("damaged gzip", "cut in the header", raw_file(lambda raw: raw[:60]), ("gzip stream",)),
    Case("damaged gzip", "one bit flipped", raw_file(flipped), ("gzip stream",)),
    Case("damaged gzip", "wrong checksum", raw_file(lambda raw: raw[:-8] + b"\0" * 8), ("gzip stream",)),
    Case("damaged gzip", "rubbish after it", raw_file(lambda raw: raw + b"rubbish"), ("gzip stream",)),
    Case("damaged gzip", "gzip in gzip", raw_file(packed), ("header", "NIfTI")),
    Case("no NIfTI", "0 bytes", raw_file(lambda raw: b""), ("header", "0 bytes")),
    Case("no NIfTI", "gzip of nothing", raw_file(lambda raw: packed(b"")), ("header", "0 bytes")),
    Case("no NIfTI", "text", raw_file(lambda raw: b"not an image\n" * 99), ("header", "NIfTI")),
    Case("no NIfTI", "Analyze 7.5", fields(magic=b""), ("magic", "one file")),
    Case("no NIfTI", "half a header", image(lambda: bytes_of()[:200]), ("header", "200 bytes")),
    Case("bombs", "2 GiB of zeros in 2 MB", raw_file(bomb), ("length", "more than")),
    Case("bombs", "a header that asks for 64 TiB", fields(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), ("dimension", "at most")),
    Case("bombs", "a header that asks for 2 GiB more than there is", fields(dim=[3, 1000, 1000, 1000, 1, 1, 1, 1]), ("length", "2000000352")),
    Case("bombs", "NIfTI-2, 2^62 voxels", image(lambda: with_fields(bytes_of(kind=nib.Nifti2Image), dim_1=2**62)), ("dimension", "at most")),
    Case("bombs", "voxels begin at 1e30", fields(vox_offset=1e30), ("vox_offset",)),
    Case("length", "plain, cut short", image(lambda: bytes_of()[:-1]), ("length", "1072")),
    Case("length", "header alone", image(lambda: bytes_of()[:348]), ("length", "348 bytes")),
    Case("length", "dim smaller than what is there", fields(dim_1=3), ("length", "more than")),
    Case("length", "one byte more", image(lambda: bytes_of() + b"\1"), ("length", "more than")),
    Case("padding", "zeros to the end of a block", image(lambda: bytes_of() + bytes(512))),
    Case("length", "vox_offset 0", fields(vox_offset=0), ("vox_offset", "352")),
    Case("length", "vox_offset inf", fields(vox_offset=INF), ("vox_offset", "inf")),
    Case("length", "vox_offset NaN", fields(vox_offset=NAN), ("vox_offset", "nan")),
    Case("dimensions", "4-D", voxels(np.zeros((*SHAPE, 2), np.int16)), ("dimension is (9, 8, 5, 2)",)),
    Case("dimensions", "1-D", voxels(np.arange(9, dtype=np.int16)), ("dimension",)),
    Case("dimensions", "dim[0] of 0", fields(dim_0=0), ("dim[0] is 0", "1 to 7")),
    Case("dimensions", "dim[0] of 9", fields(dim_0=9), ("dim[0] is 9", "1 to 7")),
    Case("dimensions", "an empty axis", fields(dim_2=0), ("dimension is (9, 0, 5)",)),
    Case("dimensions", "two negative axes", fields(dim_1=-9, dim_2=-8), ("dimension is (-9, -8, 5)",)),
    Case("axes of 1", "a fourth axis of 1", voxels(IMAGE[..., None])),
    Case("axes of 1", "seven axes", fields(dim=[7, *SHAPE, 1, 1, 1, 1])),
    Case("data types", "RGB", image(lambda: bytes_of(RGB)), ("data type is RGB",)),
    Case("data types", "complex", voxels(IMAGE.astype(np.complex64)), ("data type is complex64",)),
    Case("data types", "one bit a voxel", fields(datatype=1), ("data type is binary",)),
    Case("data types", "unknown code", fields(datatype=999), ("data type is 999",)),
    Case("number types", "big-endian", voxels(IMAGE.astype(">i2"))),
    Case("number types", "int8", voxels((IMAGE % 100).astype(np.int8), {"image": IMAGE % 100})),
    Case("number types", "int64", voxels(IMAGE.astype(np.int64))),
    Case("number types", "uint64 above 2^63", voxels(BIG, {"image": BIG})),
    Case("number types", "float64", voxels(IMAGE / 7, {"image": (IMAGE / 7).astype(np.float32)})),
    Case("number types", "NIfTI-2", image(lambda: bytes_of(kind=nib.Nifti2Image))),
    Case("number types", "big-endian NIfTI-2", image(lambda: bytes_of(IMAGE.astype(">i2"), kind=nib.Nifti2Image))),
    Case("number types", "not packed, though named .nii.gz", lambda root: image_of(root).write_bytes(bytes_of()) and None),
    Case("no numbers", "one NaN", voxels(patched(NAN)), ("voxels is 1 NaN",)),
    Case("no numbers", "one infinity", voxels(patched(INF)), ("voxels is 1 NaN or infinite",)),
    Case("no numbers", "1e300, beyond 32 bits", voxels(np.where(LABEL, 1e300, 1.0)), ("NaN or infinite", "32-bit")),
    Case("no numbers", "slope that overflows", fields(scl_slope=3e38), ("NaN or infinite",)),
    Case("scaling, no slope", "scl_slope 0", fields(scl_slope=0, scl_inter=5)),
    Case("scaling, no slope", "scl_slope NaN", fields(scl_slope=NAN, scl_inter=NAN)),
    Case("scaling", "negative slope: inverted, as it says", fields({"image": IMAGE * -2.0 + 10}, **SCALED)),
    Case("scaling refused", "scl_slope inf", fields(scl_slope=INF), ("scl_slope is inf",)),
    Case("scaling refused", "scl_inter NaN", fields(scl_slope=1, scl_inter=NAN), ("scl_inter is nan",)),
    Case("affine", "row of zeros", fields(srow_x=0), ("affine", "invertible")),
    Case("affine", "two equal rows", fields(srow_x=[0, 0.75, 0, 0]), ("affine", "invertible")),
    Case("affine", "NaN", fields(srow_y=NAN), ("affine", "finite")),
    Case("affine", "infinite origin", fields(srow_z=[0, 0, 1.25, INF]), ("affine", "finite")),
    Case("affine", "sheared by 30 degrees", voxels(IMAGE, None, sheared(0.4)), ("affine", "right angles")),
    Case("affine", "quaternion longer than 1", fields(**QFORM, quatern_b=2, quatern_c=2), ("header", "w2")),
    Case("voxel size", "1e6 mm", voxels(IMAGE, None, np.diag([1e6, 1e6, 1e6, 1])), ("voxel size is 1e+06", "100 mm")),
    Case("voxel size", "1e-6 mm", voxels(IMAGE, None, np.diag([1e-6, 1e-6, 1e-6, 1])), ("voxel size", "0.001")),
    Case("voxel size", "in metres", fields(xyzt_units=1), ("xyzt_units is 1", "mm")),
    Case("voxel size", "in micrometres", fields(xyzt_units=3), ("xyzt_units is 3", "mm")),
    Case("voxel size", "negative pixdim, no sform", fields(**QFORM, pixdim_1=-0.5), ("pixdim", "above 0")),
    Case("voxel size", "pixdim 0, no sform", fields(**QFORM, pixdim_1=0), ("pixdim", "above 0")),
    Case("voxel size", "pixdim NaN, no code", fields(sform_code=0, qform_code=0, pixdim_1=NAN), ("pixdim", "nan")),
    Case("voxel size", "handedness 7, no sform", fields(**QFORM, pixdim_0=7), ("pixdim[0] is 7", "-1")),
    Case("codes", "sform_code 99", fields(sform_code=99), ("sform_code is 99", "0 to 5")),
    Case("codes", "qform_code -3", fields(qform_code=-3), ("qform_code is -3", "0 to 5")),
    Case("geometry that is legal", "negative pixdim, but an sform", fields(pixdim_1=-0.5)),
    Case("geometry that is legal", "sform_code and qform_code 0", without_codes),
    Case("geometry that is legal", "left-handed", turned("LAS")),
    Case("geometry that is legal", "oblique order", turned("SPL")),
    Case("geometry that is legal", "units unsaid", fields(xyzt_units=0)),
    Case("images without content", "constant", voxels(np.full(SHAPE, 7, np.int16)), ("image is 7 in every voxel",)),
    Case("images without content", "zeros", voxels(np.zeros(SHAPE, np.int16)), ("image is 0 in every voxel",)),
    Case("images without content", "lost in 32 bits", voxels(np.where(LABEL, 1e9, 1e9 + 1)), ("image is 1e+09 in every voxel",)),
    Case("labels", "empty: a patient without vessels", label(LABEL * 0, {"label": LABEL * 0})),
    Case("labels", "0 and 255", label(LABEL * 255)),
    Case("labels", "in float64", label(LABEL.astype(np.float64))),
    Case("labels", "big-endian", label(LABEL.astype(">i2"))),
    Case("labels refused", "full", label(LABEL * 0 + 1), ("label is every voxel", "background")),
    Case("labels refused", "three values", label(LABEL + (IMAGE > 800)), ("label values is 0, 1, 2",)),
    Case("labels refused", "probabilities", label(IMAGE / 900), ("label values",)),
    Case("labels refused", "0 and -1", label(-LABEL.astype(np.int16)), ("label values is -1, 0", "above")),
    Case("labels refused", "1 and 2", label(LABEL + 1), ("label values is 1, 2",)),
    Case("labels refused", "NaN", label(np.where(LABEL, NAN, 0)), ("NaN or infinite",)),
    Case("another grid", "another shape", label(LABEL[:-1]), ("shape is (8, 8, 5)", "(9, 8, 5)")),
    Case("another grid", "shifted by a voxel", label(LABEL, None, shifted(0.5)), ("affine", "1 voxels")),
    Case("another grid", "another voxel size", label(LABEL, None, np.diag([0.5, 0.75, 1.3, 1])), ("affine", "voxels")),
    Case("another grid", "mirrored", label(LABEL, None, np.diag([-0.5, 0.75, 1.25, 1])), ("affine", "voxels")),
]  # fmt: skip

FILES = [
    Case("what is no file", "a folder", replaced(Path.mkdir), ("sub-1_angio.nii.gz", "is no file")),
    Case("what is no file", "a dangling link", replaced(lambda p: p.symlink_to("gone")), ("is no file", "link to none")),
    Case("what is no file", "a link to itself", replaced(lambda p: p.symlink_to(p)), ("is no file", "link to none")),
    Case("what is no file", "a pipe nobody writes to", replaced(os.mkfifo), ("is no file",)),
    Case("what is no file", "a folder for the label", replaced(Path.mkdir, label_of), ("mask.nii.gz", "is no file")),
    Case("what is no file", "a folder for the table", replaced(Path.mkdir, lambda root: root / "participants.tsv"), ("participants.tsv", "missing")),
    Case("links", "out of the cohort", outside, ("outside the cohort",)),
    Case("links", "within it, as git-annex has them", inside),
    Case("names", "not UTF-8", not_utf8, (r"acq-\udcff", "UTF-8")),
    Case("names", "a .hdr beside an .img", pair, ("sub-1", "found none", "exactly one")),
    Case("names", ".hdr named .nii.gz", fields(magic=b"ni1"), ("magic", "one file")),
    Case("tables that are legal", "CRLF and BOM", table(b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode())),
    Case("tables that are legal", "no newline at the end, blank lines", table(TABLE.replace("\n", "\n\n").rstrip())),
    Case("tables that are legal", "a lone quote", table(TABLE.replace("split\n", "split\tnote\n").replace("train", 'train\t"a').replace("validation", "validation\tb").replace("test", 'test\t"'))),
    Case("participants", "in two splits", table(TABLE + "sub-1\ttest\n"), ("sub-1 stands in the splits test, train",)),
    Case("participants", "twice", table(TABLE + "sub-1\ttrain\n"), ("sub-1 is listed twice",)),
    Case("participants", "../../etc", table(TABLE + "../../etc\ttrain\n"), ("'../../etc' is not a BIDS id",)),
    Case("participants", "/sub-1", table(TABLE + "/sub-1\ttrain\n"), ("'/sub-1' is not a BIDS id",)),
    Case("participants", "unicode", table(TABLE + "sub-é\ttrain\n"), ("is not a BIDS id", "sub- and letters")),
    Case("participants", "a look-alike digit", table(TABLE + "sub-１\ttrain\n"), ("is not a BIDS id",)),
    Case("participants", "a blank after the id", table(TABLE.replace("sub-1", "sub-1 ")), ("'sub-1 ' is not a BIDS id",)),
    Case("participants", "one without files", table(TABLE + "sub-9\ttrain\n"), ("sub-9", "found none")),
    Case("participants", "one missing", table(TABLE.replace("sub-1\ttrain\n", "")), ("sub-1 has an image but no row",)),
    Case("tables refused", "0 bytes", table(""), ("columns", "participant_id")),
    Case("tables refused", "Latin-1", table(TABLE.encode() + "sub-ü\ttrain".encode("latin-1")), ("participants.tsv", "UTF-8")),
    Case("tables refused", "UTF-16", table(TABLE.encode("utf-16")), ("participants.tsv", "UTF-8")),
    Case("tables refused", "a row too long", table(TABLE.replace("train", "train\tx")), ("row 1 has 3 fields", "2")),
    Case("tables refused", "every row too long", table(TABLE.replace("\nsub", "\nx\tsub")), ("row 1 has 3 fields",)),
    Case("tables refused", "a row too short", table(TABLE + "sub-9\n"), ("row 4 has 1 fields", "2")),
    Case("tables refused", "a column twice", table(TABLE.replace("split", "split\tsplit").replace("train", "train\ttest").replace("validation\n", "validation\ttest\n").replace("\ttest\n", "\ttest\ttrain\n", 1)), ("split once",)),
    Case("tables refused", "Split for split", table(TABLE.replace("split", "Split")), ("split once", "lower case")),
    Case("tables refused", "commas", table(TABLE.replace("\t", ",")), ("columns", "participant_id")),
    Case("splits", "unknown", table(TABLE.replace("train", "trian")), ("'trian'", "train, validation, test")),
    Case("splits", "some empty", table(TABLE.replace("train", "")), ("split ''", "train, validation, test")),
    Case("splits", "no training patient", table(TABLE.replace("train", "test")), ("split holds no train",)),
]  # fmt: skip


def own(**settings: Any) -> str:
    """A study of one own cohort."""
    cohort = {"kind": "bids", "path": "/data", "splits": {"train": 1, "validation": 1}, **settings}
    return yaml.safe_dump({"cohort": "own", "external": [], "cohorts": {"own": cohort}})


LAUGHS = "\n".join(
    ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
)
# Texts of a study file, laid over the default one.
STUDIES = [
    Case("YAML that is none", "an open bracket", lambda _: "pairs: [100", ("not valid JSON or YAML",)),
    Case("YAML that is none", "tabs", lambda _: "patches:\n\tsize: 24", ("tab indentation",)),
    Case("YAML that is none", "a lone text", lambda _: "just text", ("keys at top level",)),
    Case("YAML that is none", "a list", lambda _: "- pairs", ("keys at top level",)),
    Case("YAML that is none", "a Python object", lambda _: "note: !!python/object/apply:os.getcwd []", ("not valid",)),
    Case("a key twice", "at the top", lambda _: "pairs: 100\npairs: 200", ("pairs", "line 2", "once")),
    Case("a key twice", "further down", lambda _: "patches:\n  size: 24\n  per_patient: 100\n  size: 32", ("size", "line 4", "once")),
    Case("a key twice", "in braces, in a list", lambda _: "points: [{generator: real, generator: wgan}]", ("generator", "once")),
    Case("a key twice", "in JSON with tabs", lambda _: '{\n\t"pairs": 100,\n\t"pairs": 200\n}', ("pairs", "line 3")),
    Case("unknown keys", "misspelt", lambda _: "patches: {sise: 24}", ("patches.sise", "did you mean 'size'")),
    Case("unknown keys", "a number", lambda _: "1: 2", ("1: Keys should be strings",)),
    Case("unknown keys", "aliases that multiply to 9^29 items", lambda _: LAUGHS, ("a29: unknown key",)),
    Case("wrong types", "text for a number", lambda _: "pairs: many", ("pairs", "'many'")),
    Case("wrong types", "yes for a number", lambda _: "seed: yes", ("seed", "True", "no number")),
    Case("wrong types", "on among numbers", lambda _: "points: [{generator: real, seeds: [on]}]", ("seeds", "no number")),
    Case("wrong types", "2.5 for a count", lambda _: "pairs: 2000.5", ("pairs", "2000.5")),
    Case("wrong types", "nothing", lambda _: "patches:", ("patches", "None")),
    Case("wrong types", "a list of aliases for a number", lambda _: LAUGHS.replace("a29", "pairs"), ("pairs: Input should be",)),
    Case("wrong types", "a cohort without a kind", lambda _: "cohorts: {own: {path: /data}}", ("cohorts.own", "kind")),
    Case("wrong types", "a date for a name", lambda _: "name: 2026-01-01", ("name", "string")),
    Case("out of range", "below", lambda _: "pairs: -5", ("pairs", "-5", "16")),
    Case("out of range", "above", lambda _: "pairs: 1" + "0" * 30, ("pairs", "10000000")),
    Case("out of range", "a share above 1", lambda _: "patches: {vessel_fraction: 1.5}", ("vessel_fraction", "1.5")),
    Case("out of range", "delta of 1", lambda _: "privacy: {delta: 1.0}", ("privacy.delta", "less than 1")),
    Case("out of range", "a range turned round", lambda _: "cohorts: {first: {phantom: {scanner: {vessel: [3, 2]}}}}", ("vessel", "must not be above")),
    Case("out of range", "an empty grid", lambda _: "segmentation: {grid: {dropout: []}}", ("grid.dropout", "at least 1")),
    Case("out of range", "size of no network", lambda _: "patches: {size: 40}", ("patches.size: 40", "96")),
    Case("NaN and infinity", "NaN for a share", lambda _: "patches: {vessel_fraction: .nan}", ("vessel_fraction", "nan")),
    Case("NaN and infinity", "NaN for delta", lambda _: "privacy: {delta: .nan}", ("privacy.delta", "nan")),
    Case("NaN and infinity", "infinite budget", lambda _: "privacy: {budget: .inf}", ("privacy.budget", "finite")),
    Case("NaN and infinity", "an infinite range", lambda _: "cohorts: {first: {phantom: {scanner: {vessel: [1, .inf]}}}}", ("vessel", "finite")),
    Case("paths", "empty", lambda _: own(path=""), ("cohorts.own.path", "empty")),
    Case("paths", "with a null byte", lambda _: own(path="/data\0x"), ("cohorts.own.path", "Unicode")),
    Case("paths", "with braces", lambda _: own(path="/data/{x}"), ("cohorts.own.path", "brace")),
    Case("paths", "with a variable that is not set", lambda _: own(path="/$NOT_SET_ANYWHERE/x"), ("NOT_SET_ANYWHERE is not set",)),
    Case("paths", "not UTF-8", lambda _: own(path="/data/\udcff"), ("cohorts.own.path", "Unicode")),
    Case("paths", "spaces and shell characters", lambda _: own(path="/a b'c;d&e[f]|g>`h`.i/ü")),
    Case("study files that are legal", "1e-4, which YAML takes for text", lambda _: "segmentation: {grid: {learning_rate: [1e-4]}}"),
    Case("study files that are legal", "CRLF and BOM", lambda _: "\ufeffpairs: 100\r\nseed: 3\r\n"),
    Case("study files that are legal", "empty but for a comment in braces", lambda _: "{} # nothing"),
]  # fmt: skip


# ------------------------------------------------------------------ what becomes of them


def judge_cohort(case: Case, folder: Path) -> tuple[str, str]:
    """(verdict, message) of a cohort; AssertionError where it is accepted and read wrongly."""
    root = write_cohort(folder / "cohort")
    expected = case.make(root) or {}
    try:
        patients = bids.find(root, COHORT)
        sheet = check.check(patients)
    except REFUSALS as error:
        return "refused", str(error).replace(f"{root}/", "")
    read, mask, _ = check.read_patient(patients[0], "all")
    wanted = np.asarray(expected.get("image", IMAGE))
    np.testing.assert_array_equal(read.data, wanted)
    np.testing.assert_array_equal(mask, expected.get("label", LABEL))
    np.testing.assert_allclose(read.zooms, ZOOMS, rtol=1e-6)
    assert read.data.dtype.isnative
    assert sheet["orientation"][0] == expected.get("orientation", "RAS")
    assert [p.split for p in patients] == ["train", "validation", "test"]
    assert check.head_region(read.data).shape == SHAPE  # SimpleITK takes it too
    return "accepted", f"{read.data.dtype}, {sheet['shape'][0]}, {sheet['zooms_mm'][0]} mm"


def judge_study(case: Case, folder: Path) -> tuple[str, str]:
    """(verdict, message) of a study file, read as the workflow reads it."""
    path = folder / "study.yaml"
    path.write_bytes(case.make(folder).encode(errors="surrogatepass"))
    raw = load_configfile(str(ROOT / "config/config.yaml"))
    try:
        given = load_configfile(str(path))
        config.check_file(path)
        update_config(raw, given)
        study = config.load(raw)
    except REFUSALS as error:
        return "refused", str(error).replace(f"{folder}/", "")
    for key, value in given.items():
        if isinstance(value, int | str):
            assert getattr(study, key) == value
    return "accepted", study.name


def judge(case: Case, folder: Path) -> tuple[str, str]:
    return (judge_study if case in STUDIES else judge_cohort)(case, folder)


def named(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, id=f"{case.group}: {case.name}") for case in cases]


@pytest.mark.parametrize("case", named([*VOLUMES, *FILES, *STUDIES]))
def test_accepted_correctly_or_refused_by_name(case, tmp_path):
    verdict, message = judge(case, tmp_path)
    assert verdict == ("refused" if case.words else "accepted"), message
    for word in case.words:
        assert word in message
    assert len(message) < 8000


def test_the_corpus_is_large():
    names = [(case.group, case.name) for case in (*VOLUMES, *FILES, *STUDIES)]
    assert len(set(names)) == len(names) > 150


@pytest.mark.parametrize("case", named([c for c in VOLUMES if c.group == "bombs"]))
def test_bombs_fill_no_memory(case, tmp_path):
    case.make(write_cohort(tmp_path))
    tracemalloc.start()
    try:
        with pytest.raises(volumes.VolumeError):
            volumes.read(image_of(tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("place", [image_of, label_of, lambda root: root / "participants.tsv"])
def test_a_file_that_may_not_be_read_is_named(place, tmp_path, monkeypatch):
    """Patched, since root may read everything."""
    root, opened = write_cohort(tmp_path), Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == place(root):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        bids.CohortError, match="Permission denied; allowed: a readable file"
    ) as told:
        check.check(bids.find(root, COHORT))
    assert place(root).name in str(told.value)


def test_a_root_may_have_any_name(tmp_path):
    root = write_cohort(tmp_path / "a b'c;d&e[f]|g.h/.ü*")
    assert len(check.check(bids.find(root, COHORT))) == 3


def test_an_empty_region_is_named(tmp_path):
    root = write_cohort(tmp_path)
    for number in "123":
        path = Path(
            str(label_of(root)).replace("sub-1", f"sub-{number}").replace("vessel", "brain")
        )
        volumes.write(path, LABEL * 0, AFFINE)
    with pytest.raises(bids.CohortError, match="region is empty; allowed: at least one voxel"):
        check.check(bids.find(root, COHORT.model_copy(update={"region": "file"})))


def test_an_image_smaller_than_a_patch_is_named(tmp_path):
    patient = bids.find(write_cohort(tmp_path), COHORT)[0]
    with pytest.raises(bids.CohortError, match=r"sub-1: 9 x 8 x 5 voxels hold no patch of 16"):
        patches.cut_all(
            [("sub-1", lambda: check.read_patient(patient, "all"))],
            config.Patches(size=16),
            seed=0,
        )


NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: %s\nencoding: raw\nendian: little\n\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (NRRD % b"9 8 5" + bytes(100), "voxels cannot be read"),
        (NRRD % b"40000 40000 40000", "image of sub-1 cannot be read"),
        (b"rubbish", "image of sub-1 cannot be read"),
        (None, "image of sub-1 cannot be read"),
    ],
    ids=["cut short", "asks for too much", "rubbish", "an empty folder"],
)
def test_imports_are_refused_by_name(tmp_path, content, words):
    source = tmp_path / "a.nrrd"
    if content is None:
        source.mkdir()
    else:
        source.write_bytes(content)
    (tmp_path / "list.tsv").write_text("participant_id\timage\tlabel\nsub-1\ta.nrrd\ta.nrrd\n")
    cohort = ImportedCohort(kind="import", path=str(tmp_path / "list.tsv"), splits=Splits(test=1))
    with pytest.raises(bids.CohortError, match=words) as told:
        convert.convert(cohort, tmp_path / "bids")
    assert "a.nrrd" in str(told.value)


# ------------------------------------------------------------------ the workflow itself


def dry_run(folder: Path, study: str) -> tuple[int, str]:
    for part in ("config", "profiles", "workflow"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "Snakefile", folder)
    (folder / "own.yaml").write_text(study)
    done = subprocess.run(
        [Path(sys.executable).with_name("snakemake"), "--cores", "1", "-n", "--configfile", "own.yaml"],
        cwd=folder, text=True, errors="replace", timeout=300, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_workflow_refuses_a_key_given_twice(tmp_path):
    code, told = dry_run(tmp_path, "pairs: 100\npairs: 200\n")
    assert code != 0
    assert "own.yaml: pairs: given again in line 2; allowed: each key once" in told
    assert "Traceback" not in told


def test_the_workflow_refuses_names_that_are_not_utf8(tmp_path):
    """Also of files that it would not read, since Snakemake lists them all."""
    root = write_cohort(tmp_path / "cohort")
    (root / "sub-1/anat" / os.fsdecode(b"sub-1_\xff_T1w.nii.gz")).write_bytes(b"")
    code, told = dry_run(tmp_path / "project", own(path=str(root)))
    assert code != 0
    assert r"sub-1_\udcff_T1w.nii.gz': name is not UTF-8; allowed: a name that is" in told


def test_the_workflow_takes_paths_with_spaces_and_shell_characters(tmp_path):
    root = write_cohort(tmp_path / "a b'c;d&e[f]|g.h/ü")
    code, told = dry_run(tmp_path / "project", own(path=str(root)))
    assert code == 0, told[-3000:]
    assert "check_cohort" in told


# ------------------------------------------------------------------ fuzzing

PLAIN = bytes_of()
GENTLE = settings(
    derandomize=True, database=None, deadline=None, max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def read_or_refuse(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        volume = volumes.read(path)
    except volumes.VolumeError as error:
        assert str(path) in str(error) and "allowed" in str(error)
    else:
        assert volume.data.ndim == 3 and volume.data.dtype.kind in "iuf"
        assert np.isfinite(volume.data).all() and np.isfinite(volume.affine).all()
        assert all(1e-3 <= zoom <= 100 for zoom in volume.zooms)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**24


@GENTLE
@given(flips=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6))
def test_random_bytes_of_the_header(tmp_path, flips):
    raw = bytearray(PLAIN)
    for place, value in flips:
        raw[place] = value
    read_or_refuse(tmp_path / "a.nii", bytes(raw))


@GENTLE
@given(
    dim=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=8, max_size=8),
    codes=st.lists(st.integers(-1, 2000), min_size=3, max_size=3),
    numbers=st.lists(st.floats(width=32), min_size=17, max_size=17),
    kept=st.sets(st.sampled_from(["dim", "datatype", "scaling", "geometry", "offset"])),
)
def test_random_fields_of_the_header(tmp_path, dim, codes, numbers, kept):
    raw = bytearray(PLAIN)
    for name, place, value in (
        ("dim", 40, struct.pack("<8h", *dim)),
        ("datatype", 70, struct.pack("<h", codes[0])),
        ("geometry", 76, struct.pack("<4f", *numbers[:4])),
        ("offset", 108, struct.pack("<f", numbers[4])),
        ("scaling", 112, struct.pack("<2f", *numbers[5:7])),
        ("geometry", 252, struct.pack("<2h6f", *codes[1:], *numbers[7:13])),
        ("geometry", 280, struct.pack("<4f", *numbers[13:17])),
    ):
        if name not in kept:
            raw[place : place + len(value)] = value
    read_or_refuse(tmp_path / "a.nii", bytes(raw))


@GENTLE
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_random_bytes_of_the_packed_file(tmp_path, flips):
    raw = bytearray(packed(PLAIN))
    for place, value in flips:
        raw[place % len(raw)] = value
    read_or_refuse(tmp_path / "a.nii.gz", bytes(raw))


# ------------------------------------------------------------------ the table


def markdown() -> str:
    """The table of all cases, for the documentation."""
    rows = ["| group | case | verdict | message |", "|---|---|---|---|"]
    for case in (*VOLUMES, *FILES, *STUDIES):
        with tempfile.TemporaryDirectory() as folder:
            verdict, message = judge(case, Path(folder))
        line = " ".join(message.split()).replace("|", r"\|")[:200]
        rows.append(f"| {case.group} | {case.name} | {verdict} | {line} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(markdown())
