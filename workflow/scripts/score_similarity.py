"""Compare a synthetic set with the patches of real test patients."""

from pathlib import Path

import pandas as pd

import job
from veil import artifacts
from veil.evaluation import similarity

with job.running(snakemake):
    synthetic, real = (
        similarity.features(artifacts.open_pairs(Path(path)))
        for path in (snakemake.input.synthetic, snakemake.input.real)
    )
    row = {
        "metric": "frechet",
        "features": similarity.FEATURES,
        "reference": "test",
        "synthetic_pairs": len(synthetic),
        "reference_pairs": len(real),
        "value": similarity.frechet_distance(synthetic, real),
    }
    artifacts.write_table(Path(snakemake.output[0]), pd.DataFrame([row]))
