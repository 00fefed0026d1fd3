"""Sample the pairs that segmenters are trained on."""

from pathlib import Path

import job
from veil import artifacts, generators, training
from veil.config import Task

with job.running(snakemake):
    patches = Path(snakemake.input.patches[0]) if snakemake.input.patches else None
    generator = generators.build(Task.model_validate_json(snakemake.params.task), patches)
    weights = Path(snakemake.input.weights)
    artifacts.check_stated(weights, Path(snakemake.input.privacy))
    generator.load(artifacts.load_tensors(weights)[0])
    pairs = generator.sample(
        snakemake.params.pairs,
        seed=snakemake.params.seed,
        device=training.choose_device(),
        threads=snakemake.threads,
    )
    artifacts.save_pairs(Path(snakemake.output[0]), pairs)
