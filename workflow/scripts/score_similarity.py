"""Compare a synthetic set with the patches of real patients, and with itself."""

from pathlib import Path

import pandas as pd

import job
from veil import artifacts
from veil.evaluation import diversity, radiomics, shapes, similarity

IMAGES = 1000  # of which all pairs are compared, as in the paper; as many labels and radiomics

with job.running(snakemake):
    inputs, weights = snakemake.input, snakemake.params.inception
    synthetic = artifacts.open_pairs(Path(inputs.synthetic))
    real = {name: artifacts.open_pairs(Path(inputs[name])) for name in ("test", "train")}
    spaces = {"frechet": (similarity.FEATURES, similarity.features)}
    if weights:
        inception = similarity.Inception(Path(weights), snakemake.params.sha256)
        spaces["fid"] = "inception-v3-pool3", lambda pairs: inception.features(pairs[:, 0])
    rows = []
    for metric, (space, features) in spaces.items():
        mine = features(synthetic)
        for name, pairs in real.items():
            rows.append((metric, space, name, similarity.frechet_distance(mine, features(pairs))))
    if not weights:
        rows += [("fid", "not computed: no weights", name, float("nan")) for name in real]
    scores = similarity.manifold_scores(
        similarity.features(real["test"]), similarity.features(synthetic)
    )
    rows += [(name, similarity.FEATURES, "test", value) for name, value in scores.items()]
    few = {
        name: pairs[similarity.evenly(len(pairs), IMAGES)]
        for name, pairs in {"synthetic": synthetic, **real}.items()
    }
    measured = radiomics.features(few["synthetic"][:, 0])
    for name in real:
        theirs = radiomics.features(few[name][:, 0])
        distance = radiomics.distance(measured, theirs)
        rows.append(("frd", radiomics.space(theirs), name, distance))
    rows.append(("ssim", "pixels", "itself", diversity.mean_ssim(few["synthetic"][:, 0])))
    mine, theirs = (shapes.geometry(few[name][:, 1]) for name in ("synthetic", "test"))
    rows += [(name, "mean", "itself", float(value)) for name, value in mine.mean().items()]
    apart = shapes.distances(mine, theirs)
    rows += [(name, "wasserstein", "test", value) for name, value in apart.items()]
    table = pd.DataFrame(rows, columns=["metric", "features", "reference", "value"])
    artifacts.write_table(Path(snakemake.output[0]), table)
