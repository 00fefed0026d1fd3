"""Look for what must not leave, in every byte of a bundle (floor 5).

Two looks, neither trusting the other. By form: every file is of a known name and kind, and holds
nothing that its kind need not have (PNG text, NIfTI text fields and extensions, gzip names and
times, bytes after the end). By content: no file, packed or not, and no name holds a token that is
known to identify a patient or a machine, or what looks like one.

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
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from veil import artifacts
from veil.release.patterns import Patterns
from veil.release.readings import CONTROLS, decoded, packed, unescaped
from veil.release.sought import Sought
from veil.release.suspects import suspects
from veil.release.words import fold

PNG = b"\x89PNG\r\n\x1a\n"
NUMBERED = re.compile(r"\b(images|labels)/(\d{6,})\.png\b")
CHECKSUM = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{64}(?![0-9A-Za-z])")
IDENTIFIES = "identifies a patient or a machine"


class LeakError(artifacts.ArtifactError):
    """A bundle that holds what must not leave."""


@dataclass(frozen=True)
class Look:
    """What to look for in one bundle."""

    sought: Sought
    patterns: Patterns
    checksums: frozenset[str]
    """Tokens that look like checksums."""
    pairs: int
    """How many pairs the bundle holds: their numbers, and no others, are names of its files."""

    def findings(self, content: str | bytes) -> Iterator[str]:
        """What a text, or data that is no text, holds."""
        if isinstance(content, bytes):
            yield from (_holds(token, token) for token in self.patterns.find(content))
            return
        views = unescaped(self.without_numbers(content))
        for view in views:
            yield from suspects(view)
        # A name in hexadecimal digits may be as long as a checksum.
        hidden = {text for view in (content, *views) for text in packed(view)}
        for text in (*views, "\n".join(sorted(hidden))):
            yield from (_holds(key, token) for key, token in self.sought.find(text))

    def without_numbers(self, text: str) -> str:
        """The text without its checksums and the numbers of the pairs, which say nothing."""
        text = CHECKSUM.sub(lambda m: m[0] if m[0] in self.checksums else " ", text)
        return NUMBERED.sub(lambda m: m[1] if int(m[2]) < self.pairs else m[0], text)


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
    sought = Sought(tokens)
    look = Look(
        sought=sought,
        patterns=Patterns(tokens, sought),
        checksums=frozenset(map(fold, tokens)),
        pairs=len(list(folder.glob("data/train/images/*.png"))),
    )
    named: dict[str, bool] = {}  # by what a name says: most are numbers alone
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or stat.S_ISREG(path.lstat().st_mode)):
            yield f"{name}: is neither a file nor a folder"
        elif path.is_file():
            yield from (f"{name}: {finding}" for finding in _of_file(path, name, look))
        said = look.without_numbers(name)
        if said not in named:
            named[said] = any(look.findings(said))
        if named[said]:
            yield f"{name}: its name {IDENTIFIES}"


def _of_file(path: Path, name: str, look: Look) -> Iterator[str]:
    """Findings in one file: of its form, and in all that it holds."""
    raw = path.read_bytes()
    form = next((check for pattern, check in FORMS.items() if re.fullmatch(pattern, name)), None)
    contents: list[str | bytes] = [raw] if re.search(BINARY, name) else [*decoded(raw)]
    if form is None:
        yield "is no file of a bundle"
    else:
        try:
            contents.append(form(raw))
        except (ValueError, KeyError, EOFError, OSError, zlib.error, struct.error) as error:
            yield str(error)
    found = (finding for content in contents for finding in look.findings(content))
    yield from dict.fromkeys(found)


def _holds(found: str, token: str) -> str:
    of = "" if found == token else f" (as in {token!r})"
    return f"holds {found!r}{of}, which {IDENTIFIES}"


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


def _text(raw: bytes) -> str:
    """The text, if it is UTF-8 and holds no signs that steer."""
    text = raw.decode()
    if match := CONTROLS.search(text):
        raise ValueError(f"holds the sign {match[0]!a}; allowed is plain text")
    return text


def _json(raw: bytes) -> str:
    """JSON, a document or one a line; as text with its escapes undone."""
    text = _text(raw)
    try:
        values = [json.loads(text)]
    except ValueError:
        values = [json.loads(line) for line in text.splitlines()]
    return json.dumps(values, ensure_ascii=False)


def _safetensors(raw: bytes) -> str:
    """The header of a safetensors file with no metadata, and no bytes after its tensors."""
    size = struct.unpack("<Q", raw[:8])[0]
    text = raw[8 : 8 + size].decode()
    header = json.loads(text)
    if "__metadata__" in header:
        raise ValueError("holds metadata; allowed is none")
    used = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if len(raw) != 8 + size + used:
        raise ValueError("bytes after its end; allowed is none")
    return text


FORMS: dict[str, Callable[[bytes], str | bytes]] = {
    r"README\.md|SHA256SUMS": _text,
    r"(?:croissant|privacy|model/entry)\.json|data/train/metadata\.jsonl": _json,
    r"data/train/(?:images|labels)/\d{6,}\.png": _png,
    r"nifti/(?:images|labels)\.nii\.gz": _nifti,
    r"model/weights\.safetensors": _safetensors,
}
"""What a bundle may hold, by the names of its files; each gives what else is to be searched."""
BINARY = r"\.(png|gz|safetensors)$"
"""Kinds of files that are no text: searched as bytes."""
