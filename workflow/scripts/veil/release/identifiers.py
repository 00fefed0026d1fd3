"""What identifies the patients of a cohort, or the machine: the tokens that a scan looks for."""

from __future__ import annotations

import getpass
import io
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

from veil.cohorts import bids
from veil.release.scan import tokens_of
from veil.volumes import KINDS

HEADER_TEXTS = ("descrip", "aux_file", "db_name", "intent_name")
HEAD = 2**16
"""Bytes of a scan that hold its header and extensions."""


def of_cohort(root: Path, manifest: Path, public: bool) -> set[str]:
    """Ids, participants.tsv, file names, places and header texts of every patient of a cohort.

    Of phantoms (`public`) the columns of participants.tsv are left out: they are nobody's, and
    their site is called what they are.
    """
    found = {str(root), str(root.resolve())}
    for patient in bids.read_manifest(manifest, root):
        found |= {patient.participant_id, patient.participant_id.removeprefix("sub-")}
        for path in filter(None, (patient.image, patient.label, patient.region)):
            found |= {path.name, path.name.split(".")[0], str(path.relative_to(root))}
            found |= set(_texts_of(path))
    if not public:
        table = bids.read_listing(root / "participants.tsv", "participant_id")
        for name in table.columns.difference(["split"]):
            found |= set(table[name])
    return tokens_of(found - {"n/a"})


def of_machine() -> set[str]:
    """Who runs this, and where."""
    return tokens_of({getpass.getuser(), socket.gethostname(), str(Path.cwd()), str(Path.home())})


def _texts_of(path: Path) -> Iterator[str]:
    """Texts of a NIfTI file's header and extensions, and the name that its gzip stream bears."""
    with path.open("rb") as file:
        packed = file.read(HEAD)
    raw = packed
    if packed[:2] == b"\x1f\x8b":
        yield from _gzip_texts(packed)
        try:
            raw = zlib.decompressobj(31).decompress(packed, HEAD)
        except zlib.error:
            return
    kind = KINDS.get(int.from_bytes(raw[:4], "little")) or KINDS.get(int.from_bytes(raw[:4], "big"))
    if kind is None:
        return
    header = kind.header_class.from_fileobj(io.BytesIO(raw), check=False)
    for name in set(HEADER_TEXTS).intersection(header.keys()):  # NIfTI-2 has no db_name
        yield bytes(header[name].tobytes()).rstrip(b"\0").decode("latin-1")
    for extension in header.extensions:
        content = extension.get_content()
        text = content if isinstance(content, bytes) else str(content).encode()
        yield from text.decode("latin-1").replace("\0", " ").split()


def _gzip_texts(packed: bytes) -> Iterator[str]:
    """The original name and the comment of a gzip header (RFC 1952)."""
    flags, at = packed[3], 10
    if flags & 4:
        at += 2 + int.from_bytes(packed[at : at + 2], "little")
    for flag in (8, 16):
        if flags & flag and 0 in packed[at:]:
            end = packed.index(0, at)
            yield packed[at:end].decode("latin-1")
            at = end + 1
