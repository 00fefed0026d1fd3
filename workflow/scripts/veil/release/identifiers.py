"""What identifies the patients of a cohort, or the machine: the tokens that a scan looks for."""

from __future__ import annotations

import getpass
import io
import json
import socket
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from veil.cohorts import bids
from veil.cohorts.convert import COLUMNS
from veil.release.sought import tokens_of
from veil.volumes import KINDS

HEADER_TEXTS = ("descrip", "aux_file", "db_name", "intent_name")
HEAD = 2**16
"""Bytes of a scan that hold its header and extensions."""
LEAST_NUMBER = 10**5
"""The least integer of a sidecar that may be an id or a day; less is a setting of the scanner."""
MISSING = {"n/a", ""}


def of_study(
    cohorts: Iterable[tuple[str, bool, str | None]], manifests: Iterable[Path]
) -> set[str]:
    """All that identifies a patient of any test cohort, or this machine.

    Of each cohort its root, whether it is one of phantoms, and the table that it was imported by.
    """
    found = of_machine()
    for (root, phantom, table), manifest in zip(cohorts, manifests, strict=True):
        found |= of_cohort(Path(root), manifest, phantom, Path(table) if table else None)
    return found


def of_cohort(root: Path, manifest: Path, public: bool, table: Path | None = None) -> set[str]:
    """Ids, tables, sidecars, file names, places and header texts of every patient of a cohort.

    `table` is the one that an imported cohort was read from. Of phantoms (`public`) tables and
    sidecars are left out: they are nobody's, and their site is called what they are.
    """
    found = {str(root), str(root.resolve())}
    for patient in bids.read_manifest(manifest, root):
        found |= {patient.participant_id, patient.participant_id.removeprefix("sub-")}
        for path in filter(None, (patient.image, patient.label, patient.region)):
            found |= {path.name, path.name.split(".")[0], str(path.relative_to(root))}
            found |= set(_texts_of(path))
        if not public:
            found |= set(_beside(root, patient))
    if not public:
        found |= set(_cells(root / "participants.tsv"))
        for path in (root / "sessions.tsv", *sorted(root.glob("phenotype/*.tsv"))):
            found |= set(_cells(path)) if path.is_file() else set()
    if table is not None:
        found |= of_table(table)
    return tokens_of(found - MISSING)


def of_table(path: Path) -> set[str]:
    """Every column of the table of an imported cohort, and where its sources lie."""
    found = {str(path), str(path.resolve()), *_cells(path)}
    listing = bids.read_listing(path, "participant_id")
    for name in listing.columns.intersection([*COLUMNS]):
        sources = {Path(cell) for cell in listing[name] if cell not in MISSING}
        # A folder that all share is the study's; the others may be called after patients.
        shared = set.intersection(*(set(source.parts) for source in sources)) if sources else set()
        for source in sources:
            place = path.parent / source
            found |= {str(place), str(place.resolve()), source.name, source.name.split(".")[0]}
            found |= {part for part in source.parts if len(sources) == 1 or part not in shared}
    return tokens_of(found - MISSING)


def of_machine() -> set[str]:
    """Who runs this, and where."""
    return tokens_of({getpass.getuser(), socket.gethostname(), str(Path.cwd()), str(Path.home())})


def _beside(root: Path, patient: bids.Patient) -> Iterator[str]:
    """Texts of the sidecars and the tables of sessions and scans of a patient."""
    files = filter(None, (patient.image, patient.label, patient.region))
    folders = {root / patient.participant_id, *(path.parent for path in files)}
    for folder in sorted(folders):
        for path in sorted(folder.rglob("*.json")):
            yield from _values(_json(path))
        for kind in ("sessions", "scans"):
            for path in sorted(folder.rglob(f"*_{kind}.tsv")):
                yield from _cells(path)


def _cells(path: Path) -> Iterator[str]:
    """Cells of a table, but the splits."""
    if path.name == "participants.tsv":
        table = bids.read_listing(path, "participant_id")
    else:
        table = bids.read_listing(path)
    for name in table.columns.difference(["split"]):
        yield from table[name]


def _json(path: Path) -> Any:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:  # scanners write what their hospital writes
        text = raw.decode("latin-1")
    try:
        return json.loads(text, strict=False)
    except ValueError as error:
        fault = (
            f"{path}: {error}; allowed: JSON, so that a release can be searched for what it says"
        )
        raise bids.CohortError([fault]) from None


def _values(value: Any) -> Iterator[str]:
    """Texts, and integers that may be ids, in what JSON holds; not its keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, int) and value >= LEAST_NUMBER:
        yield str(value)
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _values(one)


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
