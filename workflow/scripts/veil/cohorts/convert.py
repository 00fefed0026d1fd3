"""Bring files of any format that SimpleITK reads into the BIDS layout (floor 1)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd

from veil.cohorts.bids import ALLOWED_ID, CohortError, read_listing
from veil.config import ImportedCohort
from veil.volumes import MOST_BYTES

COLUMNS = {
    "image": "{id}_{suffix}",
    "label": "{id}_label-{label}_mask",
    "brain_mask": "{id}_label-brain_mask",
}


def convert(cohort: ImportedCohort, root: Path) -> None:
    """Write the cohort listed in `cohort.path` to `root` as BIDS NIfTI.

    Only voxels and geometry are carried over: headers are fresh. Raises CohortError naming
    every row whose header cannot be read, before anything is written, or else the first file
    whose voxels cannot.
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
    table = read_listing(path, "participant_id", "image", "label")
    faults = [
        f"{path}: participant_id {name!a} is not a BIDS id; allowed: sub- and letters or digits"
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
    sources, faults = {}, []
    for row in table.to_dict("records"):
        for column in COLUMNS:
            if not row.get(column):
                continue
            source = listing.parent / row[column]
            if not _is_readable(source):
                faults.append(
                    f"{source}: {column} of {row['participant_id']} cannot be read; allowed: a "
                    "format of SimpleITK, or a folder of one DICOM series, of at most "
                    f"{MOST_BYTES} bytes"
                )
            sources[row["participant_id"], column] = source
    if faults:
        raise CohortError(faults)
    return sources


def _is_readable(source: Path) -> bool:
    """Whether there is a header, and one that does not ask for more memory than a scan may."""
    import SimpleITK as sitk

    if source.is_dir():
        return bool(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(source)))
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(source))
    try:
        if not source.is_file():  # a pipe would be waited for, without end
            return False
        reader.ReadImageInformation()
    except (OSError, RuntimeError):
        return False
    pixel = sitk.Image(
        [1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents()
    )
    return math.prod(reader.GetSize()) * pixel.GetSizeOfPixelComponent() <= MOST_BYTES


def _read(source: Path):  # type: ignore[no-untyped-def]
    import SimpleITK as sitk

    try:
        if source.is_dir():
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source)))
            return reader.Execute()
        return sitk.ReadImage(str(source))
    except RuntimeError:
        raise CohortError(
            [f"{source}: voxels cannot be read; allowed: as many as the header says"]
        ) from None
