"""Train one generator and state what it cost."""

import json
from pathlib import Path

import job
from veil import artifacts, generators, training
from veil.config import Task

state = Path(snakemake.params.folder) / "state"
with job.running(snakemake, state):
    task = Task.model_validate_json(snakemake.params.task)
    patches = Path(snakemake.input.patches[0]) if snakemake.input.patches else None
    start = Path(snakemake.input.start[0]) if snakemake.input.start else None
    generator = generators.build(task, patches, start)
    statement = generator.spent()
    job.log.info("%s", statement["text"])
    identity = {
        "task": json.loads(snakemake.params.task),
        "code": snakemake.params.code,
        "patches": artifacts.file_hash(patches) if patches else "",
        "start": artifacts.file_hash(start) if start else "",
    }
    generator.fit(state, training.choose_device(), identity)
    weights = Path(snakemake.output.weights)
    artifacts.save_tensors(weights, generator.weights(), {})
    statement["weights_sha256"] = artifacts.file_hash(weights)
    artifacts.write_sealed(Path(snakemake.output.privacy), statement)
    training.write_history(state, Path(snakemake.output.history))
