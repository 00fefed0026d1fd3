"""Bring files of any format that SimpleITK reads into the BIDS layout (floor 1)."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd

from veil.cohorts.bids import ALLOWED_ID, CohortError
from veil.config import ImportedCohort

COLUMNS = {
    "image": "{id}_{suffix}",
    "label": "{id}_label-{label}_mask",
    "brain_mask": "{id}_label-brain_mask",
}


def convert(cohort: ImportedCohort, root: Path) -> None:
    """Write the cohort listed in `cohort.path` to `root` as BIDS NIfTI.

    Only voxels and geometry are carried over: headers are fresh. Raises CohortError naming
    every row that cannot be read, before anything is written.
    """
    import SimpleITK as sitk

    listing = Path(cohort.path)
    table = _listing(listing)
    sources = _sources(listing, table)
    for (patient, column), source in sources.items():
        stem = COLUMNS[column].format(id=patient, suffix=cohort.image_suffix, label=cohort.label)
        folder = root if column == "image" else root / cohort.labels
        target = folder / patient / "anat" / f"{stem}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        image = _read(source)
        for key in image.GetMetaDataKeys():
            image.EraseMetaData(key)
        sitk.WriteImage(image, str(target), useCompression=True)
    keep = [name for name in ("participant_id", "split", "site") if name in table]
    table[keep].to_csv(root / "participants.tsv", sep="\t", index=False)
    describe(root, "Imported cohort")
    describe(root / cohort.labels, "Labels of an imported cohort", derivative=True)


def describe(root: Path, name: str, *, derivative: bool = False) -> None:
    """Write dataset_description.json, which BIDS asks for."""
    text = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative" if derivative else "raw",
    }
    if derivative:
        text["GeneratedBy"] = [{"Name": "veil"}]  # type: ignore[assignment]
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(text, indent=2) + "\n")


def _listing(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise CohortError([f"{path}: file is missing; allowed: a TSV of the cohort's files"])
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    table = pd.read_csv(io.StringIO(text), sep="\t", dtype=str, keep_default_na=False)
    if missing := {"participant_id", "image", "label"} - set(table):
        raise CohortError([f"{path}: columns {sorted(missing)} are missing"])
    faults = [
        f"{path}: participant_id {name!r} is not a BIDS id; allowed: sub- and letters or digits"
        for name in table["participant_id"]
        if not ALLOWED_ID.fullmatch(name)
    ]
    faults += [
        f"{path}: participant_id {name} is listed twice; allowed: one row"
        for name in table.loc[table["participant_id"].duplicated(), "participant_id"].unique()
    ]
    if faults:
        raise CohortError(faults)
    return table


def _sources(listing: Path, table: pd.DataFrame) -> dict[tuple[str, str], Path]:
    import SimpleITK as sitk

    sources, faults = {}, []
    for row in table.to_dict("records"):
        for column in COLUMNS:
            if not row.get(column):
                continue
            source = listing.parent / row[column]
            try:
                if not source.is_dir():
                    reader = sitk.ImageFileReader()
                    reader.SetFileName(str(source))
                    reader.ReadImageInformation()
            except RuntimeError:
                faults.append(
                    f"{source}: {column} of {row['participant_id']} cannot be read; "
                    "allowed: a format of SimpleITK, or a folder of one DICOM series"
                )
            sources[row["participant_id"], column] = source
    if faults:
        raise CohortError(faults)
    return sources


def _read(source: Path):  # type: ignore[no-untyped-def]
    import SimpleITK as sitk

    if source.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source)))
        return reader.Execute()
    return sitk.ReadImage(str(source))
