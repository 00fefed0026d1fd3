"""Find the patients of a BIDS cohort and deal them into splits (floor 1)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from veil import artifacts
from veil.config import BidsCohort, Splits

ALLOWED_ID = re.compile(r"sub-[A-Za-z0-9]+")
SPLITS = ("train", "validation", "test")


class CohortError(ValueError):
    """Faults of a cohort, one a line: file, field, value, what is allowed."""

    def __init__(self, faults: list[str]):
        super().__init__("\n".join([f"the cohort has {len(faults)} fault(s):", *faults]))
        self.faults = faults


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One patient of a cohort and where the scan lies."""

    participant_id: str
    split: str
    site: str
    image: Path
    label: Path
    region: Path | None
    scan_sha256: str = ""
    """Of the image's voxels, once they were read: who it is, wherever the file lies."""
    label_sha256: str = ""
    """Of label and region."""


def write_manifest(path: Path, root: Path, patients: Iterable[Patient]) -> None:
    """Write manifest.tsv; paths are relative to the cohort's root."""
    rows = [
        {
            "participant_id": patient.participant_id,
            "split": patient.split,
            "site": patient.site,
            "image": patient.image.relative_to(root),
            "label": patient.label.relative_to(root),
            "region": patient.region.relative_to(root) if patient.region else None,
            "scan_sha256": patient.scan_sha256,
            "label_sha256": patient.label_sha256,
        }
        for patient in patients
    ]
    artifacts.write_table(path, pd.DataFrame(rows))


def read_manifest(path: Path, root: Path, *splits: str) -> list[Patient]:
    """The patients of these splits (of all, if none is named), sorted by id."""
    table = artifacts.read_table(path)
    return [
        Patient(
            participant_id=row["participant_id"],
            split=row["split"],
            site=row["site"],
            image=root / row["image"],
            label=root / row["label"],
            region=root / row["region"] if isinstance(row["region"], str) else None,
            scan_sha256=row["scan_sha256"],
            label_sha256=row["label_sha256"],
        )
        for row in table.to_dict("records")
        if not splits or row["split"] in splits
    ]


def find(root: Path, cohort: BidsCohort) -> list[Patient]:
    """The cohort's patients, sorted by id; CohortError lists every fault found."""
    if not root.is_dir():
        raise CohortError([f"{root}: folder does not exist; allowed: the root of a BIDS data set"])
    participants, faults = _participants(root)
    images = _index(root, suffix=cohort.image_suffix)
    labels = _index(root / cohort.labels, suffix="mask", label=cohort.label)
    regions = _index(root / cohort.labels, suffix="mask", label="brain")
    listed = set(participants["participant_id"])
    patients = sorted(listed | set(images))
    if not images:
        raise CohortError([f"{root}: no file matches sub-*/anat/*_{cohort.image_suffix}.nii.gz"])
    for patient in patients:
        faults += _one_file(root, patient, f"image *_{cohort.image_suffix}.nii.gz", images)
        faults += _one_file(root, patient, f"mask *_label-{cohort.label}_mask.nii.gz", labels)
        if cohort.region == "file":
            faults += _one_file(root, patient, "mask *_label-brain_mask.nii.gz", regions)
        if patient not in listed:
            faults.append(
                f"{root / 'participants.tsv'}: participant_id {patient} has an image but no row; "
                "allowed: one row for each patient"
            )
    if faults:
        raise CohortError(faults)
    participants["split"] = _deal(root, participants, cohort.splits, cohort.seed)
    return [
        Patient(
            participant_id=row.participant_id,
            split=row.split,
            site=row.site,
            image=images[row.participant_id][0],
            label=labels[row.participant_id][0],
            region=regions[row.participant_id][0] if cohort.region == "file" else None,
        )
        for row in participants.itertuples()
    ]


def read_listing(path: Path, *columns: str) -> pd.DataFrame:
    """A TSV as text, with these columns; CohortError unless every row is one of the header's.

    By hand, since pandas shifts columns where rows are longer than the header, renames columns
    that come twice, and takes a stray quote for the beginning of a field of many lines.
    """
    if not path.is_file():
        raise CohortError([f"{path}: file is missing; allowed: a TSV with {', '.join(columns)}"])
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise CohortError([f"{path}: {error.strerror}; allowed: a readable file"]) from None
    except UnicodeDecodeError as error:
        raise CohortError([f"{path}: {error}; allowed: text in UTF-8"]) from None
    lines = [
        [_unquoted(field) for field in line.split("\t")]
        for line in text.replace("\r\n", "\n").split("\n")
        if line.strip()
    ]
    header, *rows = lines or [[""]]
    faults = [
        f"{path}: columns are {header}; allowed: {column} once, in lower case"
        for column in sorted({*columns, "split"})
        if (seen := [name for name in header if name.strip().lower() == column]) != [column]
        and (seen or column in columns)
    ]
    faults += [
        f"{path}: row {number} has {len(row)} fields; allowed: the header's {len(header)}"
        for number, row in enumerate(rows, 1)
        if len(row) != len(header)
    ]
    if faults:
        raise CohortError(faults)
    return pd.DataFrame(rows, columns=header, dtype=str)


def _unquoted(field: str) -> str:
    """A field without the quotes that other software puts around texts; a lone one is a letter."""
    quoted = len(field) > 1 and field[0] == field[-1] == '"'
    return field[1:-1].replace('""', '"') if quoted else field


def _participants(root: Path) -> tuple[pd.DataFrame, list[str]]:
    path = root / "participants.tsv"
    table = read_listing(path, "participant_id")
    ids, faults = table["participant_id"], []
    faults += [
        f"{path}: participant_id {name!a} is not a BIDS id; allowed: sub- and letters or digits"
        for name in ids
        if not ALLOWED_ID.fullmatch(name)
    ]
    for name in ids[ids.duplicated()].unique():
        splits = sorted(set(table.loc[ids == name].get("split", pd.Series(dtype=str))))
        what = f"stands in the splits {', '.join(splits)}" if len(splits) > 1 else "is listed twice"
        faults.append(f"{path}: participant_id {name} {what}; allowed: one row, in one split")
    if "split" in table:
        faults += [
            f"{path}: split {value!r}; allowed: {', '.join(SPLITS)}"
            for value in sorted(set(table["split"]) - set(SPLITS))
        ]
    for column in ("split", "site"):
        if column not in table:
            table[column] = ""
    ordered = table.sort_values("participant_id", ignore_index=True)
    return ordered[["participant_id", "split", "site"]], faults


def _index(root: Path, **entities: str) -> dict[str, list[Path]]:
    """NIfTI files under `root` by patient, with these BIDS entities."""
    # Only the names are left to bids2table: its index knows no root with a dot or a bracket in
    # its path, and no file name that is not UTF-8.
    from bids2table import parse_bids_entities

    found: dict[str, list[Path]] = {}
    for pattern in ("sub-*/anat/sub-*", "sub-*/ses-*/anat/sub-*"):
        for path in sorted(root.glob(pattern)):
            named = parse_bids_entities(path.name)
            if named.get("ext") in (".nii.gz", ".nii") and entities.items() <= named.items():
                found.setdefault(f"sub-{named['sub']}", []).append(path)
    return found


def _one_file(root: Path, patient: str, what: str, found: dict[str, list[Path]]) -> list[str]:
    paths = found.get(patient, [])
    if len(paths) != 1:
        names = ", ".join(map(_shown, paths)) or "none"
        return [f"{root}: {patient}: {what}: found {names}; allowed: exactly one"]
    if (name := _shown(paths[0])) != paths[0].name:
        return [f"{root}: {patient}: {what}: name {name} is not UTF-8; allowed: a name that is"]
    if not paths[0].is_file():
        return [f"{paths[0]}: is no file, or a link to none; allowed: a file inside the cohort"]
    resolved = paths[0].resolve()
    if not resolved.is_relative_to(root.resolve()):
        return [f"{paths[0]}: links to {resolved}, outside the cohort; allowed: files inside it"]
    return []


def _shown(path: Path) -> str:
    """A file's name as text that every log can hold."""
    return path.name.encode(errors="backslashreplace").decode()


def _deal(root: Path, table: pd.DataFrame, splits: Splits, seed: int | None) -> pd.Series:
    """The `split` column, or one dealt out from the seed where there is none."""
    given = table["split"] != ""
    path = root / "participants.tsv"
    if given.all():
        if empty := [n for n in SPLITS if getattr(splits, n) and n not in set(table["split"])]:
            raise CohortError(
                [f"{path}: split holds no {empty[0]}; allowed: all that splits names"]
            )
        return table["split"]
    wanted = [name for name in SPLITS for _ in range(getattr(splits, name))]
    if len(wanted) > len(table):
        raise CohortError(
            [f"{path}: {len(table)} patients; allowed: at least the {len(wanted)} of splits"]
        )
    order = np.arange(len(table))
    if seed is not None:
        # Each by a hash of their own, so that a patient more or less moves no more than one
        # other patient a split, rather than dealing the whole cohort anew.
        marks = [f"{seed}/{patient}" for patient in table["participant_id"]]
        order = np.argsort([hashlib.sha256(mark.encode()).hexdigest() for mark in marks])
    dealt = pd.Series("unused", index=table.index)
    dealt.iloc[order[: len(wanted)]] = wanted  # rows are sorted, so their order on disk is moot
    return dealt
