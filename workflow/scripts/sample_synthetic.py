"""Sample the pairs that segmenters are trained on."""

from pathlib import Path

import job
from veil import artifacts, generators, training
from veil.config import Task
from veil.generators import once

with job.running(snakemake):
    patches = Path(snakemake.input.patches[0]) if snakemake.input.patches else None
    weights = Path(snakemake.input.weights)
    artifacts.check_stated(weights, Path(snakemake.input.privacy))
    tensors, meta = artifacts.load_tensors(weights)
    task = once.as_trained(Task.model_validate_json(snakemake.params.task), meta)
    generator = generators.build(task, patches)
    generator.load(tensors)
    pairs = generator.sample(
        snakemake.params.pairs,
        seed=snakemake.params.seed,
        device=training.choose_device(),
        threads=snakemake.threads,
    )
    artifacts.save_pairs(Path(snakemake.output[0]), pairs)
