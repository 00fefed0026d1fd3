"""Bundle one point for publication, scan it, and let it out only if nothing is found."""

import json
from pathlib import Path

import pandas as pd

import job
from veil import artifacts
from veil.config import Release, Task
from veil.release import bundle, identifiers
from veil.report import tables

with job.running(snakemake):
    inputs, params = snakemake.input, snakemake.params
    statement = artifacts.read_sealed(Path(inputs.privacy))
    artifacts.check_stated(Path(inputs.weights), Path(inputs.privacy))
    bundle.check(statement, params.public, str(Path(inputs.privacy).parents[1]))
    audits = [tables.audits_table([Path(path)]) for path in inputs.audit]
    point = Path(inputs.scores).parents[1]
    scores = artifacts.read_table(Path(inputs.scores)).assign(**tables.identify(point))
    tokens = identifiers.of_machine()
    for (root, phantom), manifest in zip(json.loads(params.roots), inputs.manifests, strict=True):
        tokens |= identifiers.of_cohort(Path(root), Path(manifest), phantom)
    bundle.write(
        Path(snakemake.output[0]).parent,
        bundle.Bundle(
            name=params.name,
            about=Release.model_validate_json(params.about),
            task=Task.model_validate_json(params.task),
            pairs=artifacts.open_pairs(Path(inputs.pairs)),
            weights=artifacts.load_tensors(Path(inputs.weights))[0],
            statement=statement,
            audits=pd.concat(audits) if audits else pd.DataFrame(),
            scores=tables.summary_table(scores),
            others={
                name: artifacts.read_sealed(Path(path))
                for name, path in zip(params.others, inputs.others, strict=True)
            },
        ),
        tokens,
    )
