"""Cut the patches of one split's patients."""

from functools import partial
from pathlib import Path

import job
from veil import artifacts, patches
from veil.cohorts import bids, check
from veil.config import BidsCohort, Patches

with job.running(snakemake):
    cohort = BidsCohort.model_validate_json(snakemake.params.cohort)
    patients = bids.read_manifest(
        Path(snakemake.input.manifest), Path(snakemake.params.root), snakemake.params.split
    )
    pairs, table = patches.cut_all(
        [(p.participant_id, partial(check.read_patient, p, cohort.region)) for p in patients],
        Patches.model_validate_json(snakemake.params.patches),
        seed=snakemake.params.seed,
        threads=snakemake.threads,
    )
    artifacts.save_pairs(Path(snakemake.output.pairs), pairs)
    artifacts.write_table(Path(snakemake.output.table), table)
