"""Attack a private point's mechanism and compare what is found with what is claimed."""

from pathlib import Path

import numpy as np
import pandas as pd

import job
from veil import artifacts, generators
from veil.config import Task
from veil.generators import once
from veil.privacy import audit

with job.running(snakemake):
    _, meta = artifacts.load_tensors(Path(snakemake.input.weights))
    task = once.as_trained(Task.model_validate_json(snakemake.params.task), meta)
    statement = artifacts.read_sealed(Path(snakemake.input.privacy))
    canaries = audit.Canaries(
        snakemake.params.canaries, np.random.default_rng(snakemake.params.seed)
    )
    watched = generators.build(task).rehearse(canaries)
    bounds = audit.bounds(watched, canaries, statement["delta"])
    table = pd.DataFrame(audit.verdicts(bounds, statement))
    for row in table.to_dict("records"):
        job.log.info("%(method)s: epsilon at least %(lower_bound).3g (claim: %(claim).3g, "
                     "ceiling: %(ceiling).3g): %(verdict)s", row)  # fmt: skip
    artifacts.write_table(Path(snakemake.output[0]), table)
