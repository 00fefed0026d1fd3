"""Draw a public cohort and write it as BIDS."""

from pathlib import Path

import job
from veil.cohorts import phantoms
from veil.config import PhantomCohort

with job.running(snakemake):
    phantoms.write_cohort(
        PhantomCohort.model_validate_json(snakemake.params.cohort),
        Path(snakemake.output[0]),
        snakemake.threads,
    )
