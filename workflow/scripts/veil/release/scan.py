"""Look for what must not leave, in every byte of a bundle (floor 5).

Two looks, neither trusting the other. By form: every file is of a known name and kind, and holds
nothing that its kind need not have (PNG text, NIfTI text fields and extensions, gzip names and
times, bytes after the end). By content: no file, packed or not, and no name holds a token that is
known to identify a patient or a machine.

Privacy: a scan finds what it knows of. That pixels hold no patient is the ledger's promise, not the
scanner's.
"""

from __future__ import annotations

import io
import json
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from veil import artifacts

SHORTEST = 4
"""Characters of the shortest token: shorter ones stand in any text by chance."""
TELLING = 6
"""Characters from which a token is sought in pixels, and within words too."""
PNG = b"\x89PNG\r\n\x1a\n"
SUSPECTS = {
    "an absolute path": re.compile(
        rb"(?<![\w.:/])/(?:home|Users|mnt|media|data|srv|tmp|root|var|opt|scratch)/\w"
    ),
    "a Windows path": re.compile(rb"(?i)\b[a-z]:\\\\?\w"),
    "a DICOM UID": re.compile(rb"\b[0-2](?:\.\d+){6,}\b"),
    "a mail address": re.compile(rb"[\w.+-]+@[\w-]+\.[a-z]{2,}"),
    "a day": re.compile(rb"\b(?:19|20)\d\d-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01])\b"),
}


class LeakError(artifacts.ArtifactError):
    """A bundle that holds what must not leave."""


def refuse_leaks(folder: Path, tokens: Iterable[str]) -> None:
    """Raise LeakError naming every finding below `folder`, or return if there is none."""
    if findings := list(find(folder, tokens)):
        shown = "\n  ".join(findings[:20])
        more = f"\n  and {len(findings) - 20} more" if len(findings) > 20 else ""
        raise LeakError(
            f"the bundle holds what must not leave; nothing is released:\n  {shown}{more}"
        )


def find(folder: Path, tokens: Iterable[str]) -> Iterator[str]:
    """Findings, each naming a file of the bundle and what is wrong with it."""
    tokens = set(tokens)
    in_text, in_pixels = _pattern(tokens), _pattern({t for t in tokens if len(t) >= TELLING})
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or stat.S_ISREG(path.lstat().st_mode)):
            yield f"{name}: is neither a file nor a folder"
        elif path.is_file():
            sought = in_pixels if re.search(r"\.(png|gz|safetensors)$", name) else in_text
            yield from (f"{name}: {finding}" for finding in _of_file(path, name, sought))
            if in_text.search(name.lower().encode()):
                yield f"{name}: its name identifies a patient or a machine"


def tokens_of(values: Iterable[object]) -> set[str]:
    """Those of the values that are text long enough to be sought."""
    return {
        text
        for value in values
        if isinstance(value, str) and len(text := value.strip()) >= SHORTEST
    }


def _pattern(tokens: Iterable[str]) -> re.Pattern[bytes]:
    """What finds any of the tokens in lower-case bytes; nothing, for none."""
    return re.compile(b"|".join(sorted({p for t in tokens for p in _spellings(t)})) or rb"(?!)")


def _spellings(token: str) -> Iterator[bytes]:
    """Patterns of a token in UTF-8, UTF-16 and JSON's escapes."""
    lower = token.lower()
    # Short ones, and what may be part of a checksum, count as words of their own only.
    word = len(token) < TELLING or re.fullmatch(r"[0-9a-f]+", lower)
    before, after = (rb"(?<![0-9a-z])", rb"(?![0-9a-z])") if word else (b"", b"")
    for text in (lower.encode(), json.dumps(lower)[1:-1].encode()):
        yield before + re.escape(text) + after
    yield re.escape(lower.encode("utf-16-le"))


def _of_file(path: Path, name: str, sought: re.Pattern[bytes]) -> Iterator[str]:
    raw = path.read_bytes()
    form = next((check for pattern, check in FORMS.items() if re.fullmatch(pattern, name)), None)
    if form is None:
        yield "is no file of a bundle"
    contents = [raw]
    try:
        if form is not None:
            contents.append(form(raw))
    except (ValueError, KeyError, EOFError, OSError, zlib.error, struct.error) as error:
        yield str(error)
    found = {match[0] for content in contents for match in sought.finditer(content.lower())}
    for token in sorted(found):
        text = token.replace(b"\0", b"").decode(errors="replace")
        yield f"holds {text!r}, which identifies a patient or a machine"


# ------------------------------------------------------------------ what each kind may hold


def _png(raw: bytes) -> bytes:
    """The pixels of a grey PNG, by rows and by columns; ValueError for what holds any more."""
    if raw[:8] != PNG:
        raise ValueError("is no PNG")
    at, packed, kinds = 8, b"", []
    while at < len(raw):
        size, kind = struct.unpack(">I4s", raw[at : at + 8])
        kinds.append(kind)
        packed += raw[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    others = {kind for kind in kinds if kind not in (b"IHDR", b"IDAT", b"IEND")}
    if others or kinds[0] != b"IHDR" or kinds[-1] != b"IEND" or kinds.count(b"IEND") > 1:
        shown = b", ".join(sorted(others)).decode(errors="replace") or "bytes after its end"
        raise ValueError(f"holds {shown}; allowed in a PNG are IHDR, IDAT and IEND")
    width, height, *form = struct.unpack(">IIBBBBB", raw[16:29])
    unpacker = zlib.decompressobj()
    pixels = unpacker.decompress(packed)
    if form[:2] != [8, 0] or len(pixels) != height * (width + 1) or unpacker.unused_data:
        raise ValueError("holds other data than 8-bit grey pixels")
    picture = np.asarray(Image.open(io.BytesIO(raw)))  # rows in a file are differences
    return picture.tobytes() + picture.T.tobytes()


def _nifti(raw: bytes) -> bytes:
    """The voxels of a NIfTI-1 whose header is the one that its shape asks for, and no more."""
    if raw[:4] != b"\x1f\x8b\x08\x00" or raw[4:8] != bytes(4):
        raise ValueError("gzip header: holds a name, a comment or a time; allowed is none")
    unpacker = zlib.decompressobj(31)
    content = unpacker.decompress(raw)
    if unpacker.unused_data or not unpacker.eof:
        raise ValueError("gzip stream: bytes after its end; allowed is none")
    image = nib.Nifti1Image.from_bytes(content)
    voxels = np.asanyarray(image.dataobj)
    if content != nifti_bytes(voxels):
        raise ValueError("NIfTI header: differs from a fresh one of this shape and type")
    return content + voxels.tobytes()  # by columns, as in the file, and by rows


def nifti_bytes(voxels: np.ndarray) -> bytes:
    """A NIfTI-1 file of voxels (X, Y, N) with a fresh header and unit voxels."""
    return nib.Nifti1Image(voxels, np.eye(4)).to_bytes()


def _text(raw: bytes) -> bytes:
    """The text, if it holds no path, address, day or UID."""
    raw.decode()
    for what, pattern in SUSPECTS.items():
        if match := pattern.search(raw):
            raise ValueError(f"holds {what}: {match[0].decode(errors='replace')!r}")
    return raw


def _json(raw: bytes) -> bytes:
    """JSON, a document or one a line; as text with its escapes undone."""
    text = _text(raw).decode()
    try:
        values = [json.loads(text)]
    except ValueError:
        values = [json.loads(line) for line in text.splitlines()]
    return json.dumps(values, ensure_ascii=False).encode()


def _safetensors(raw: bytes) -> bytes:
    """The header of a safetensors file with no metadata, and no bytes after its tensors."""
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    if "__metadata__" in header:
        raise ValueError("holds metadata; allowed is none")
    used = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if len(raw) != 8 + size + used:
        raise ValueError("bytes after its end; allowed is none")
    return raw[8 : 8 + size]


FORMS: dict[str, Callable[[bytes], bytes]] = {
    r"README\.md|SHA256SUMS": _text,
    r"(?:croissant|privacy|model/entry)\.json|data/train/metadata\.jsonl": _json,
    r"data/train/(?:images|labels)/\d{6,}\.png": _png,
    r"nifti/(?:images|labels)\.nii\.gz": _nifti,
    r"model/weights\.safetensors": _safetensors,
}
"""What a bundle may hold, by the names of its files; each gives what else is to be searched."""
