"""Print what the study will cost before anything is trained."""

import job
from veil import config, planning

with job.running(snakemake):
    study = config.Study.model_validate_json(snakemake.params.study)
    table = planning.plan(planning.entries(study), snakemake.threads)
    print(planning.shown(table, study), flush=True)
