"""Open every file of a cohort; write the manifest, the QC sheet and its picture."""

from pathlib import Path

import job
from veil import artifacts
from veil.cohorts import bids, check
from veil.config import BidsCohort

with job.running(snakemake):
    root = Path(snakemake.params.root)
    artifacts.check_seal(root)
    cohort = BidsCohort.model_validate_json(snakemake.params.cohort)
    patients = bids.find(root, cohort)
    sheet = check.check(patients)
    for warning in check.unexpected_sizes(patients, cohort.splits):
        job.log.warning("%s: %s", snakemake.wildcards.cohort, warning)
    check.draw(patients, Path(snakemake.output.picture))
    artifacts.write_table(Path(snakemake.output.qc), sheet)
    bids.write_manifest(Path(snakemake.output.manifest), root, check.with_contents(patients))
