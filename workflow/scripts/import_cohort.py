"""Bring files of any format that SimpleITK reads into the BIDS layout."""

from pathlib import Path

import job
from veil.cohorts import convert
from veil.config import ImportedCohort

with job.running(snakemake):
    convert.convert(
        ImportedCohort.model_validate_json(snakemake.params.cohort), Path(snakemake.output[0])
    )
