"""Attack a point's synthetic pairs: who was in the training set, and what was copied."""

from pathlib import Path

import numpy as np

import job
from veil import artifacts, generators, training
from veil.config import Task
from veil.evaluation import membership, similarity
from veil.generators import once

SHOWN = 8  # pairs of a synthetic and a training patch, the most alike

with job.running(snakemake):
    paths, outputs = snakemake.input, snakemake.output
    pairs = {"synthetic": artifacts.open_pairs(Path(paths.synthetic))}
    owners = {}
    for name in ("train", "test", "validation"):
        table = artifacts.read_table(Path(paths[f"{name}_patients"]))
        rows = similarity.evenly(len(table))
        pairs[name] = artifacts.open_pairs(Path(paths[name]))[rows]
        owners[name] = table["participant_id"].to_numpy(str)[rows]
    pixels = {name: membership.embed(some) for name, some in pairs.items()}
    tensors, meta = artifacts.load_tensors(Path(paths.weights))
    task = once.as_trained(Task.model_validate_json(snakemake.params.task), meta)
    generator = generators.build(task, start=Path(paths.start[0]) if paths.start else None)
    generator.load(tensors)
    scores = {}
    for name in ("train", "test"):
        scores[name] = membership.attacks(pixels[name], pixels["synthetic"], pixels["validation"])
        known = generator.recognise(pairs[name], snakemake.params.seed, training.choose_device())
        scores[name] |= {} if known is None else {membership.WITH_WEIGHTS: known}
    claim = artifacts.read_sealed(Path(paths.privacy))
    artifacts.write_table(Path(outputs.membership), membership.table(scores, owners, claim))
    features = {name: similarity.features(some) for name, some in pairs.items()}
    screens = {"pixels": pixels, similarity.FEATURES: features}
    artifacts.write_table(Path(outputs.memorisation), membership.screens(screens, owners["train"]))
    first, second = membership.most_alike(
        *(pixels[name] for name in ("synthetic", "train", "test")), SHOWN
    )
    closest = np.concatenate([pairs["synthetic"][first], pairs["train"][second]])
    artifacts.save_pairs(Path(outputs.closest), closest)
