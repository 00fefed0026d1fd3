"""Train on public phantoms what private training goes on from."""

import json
from pathlib import Path

import job
from veil import artifacts, generators, training
from veil.config import Task

state = Path(snakemake.params.folder) / "state"
with job.running(snakemake, state):
    task = Task.model_validate_json(snakemake.params.task)
    generator = generators.build(task)
    identity = {"task": json.loads(snakemake.params.task), "code": snakemake.params.code}
    start = generator.learn_start(state, training.choose_device(), identity)
    artifacts.save_tensors(Path(snakemake.output.weights), start, task.of_start())
    training.write_history(state, Path(snakemake.output.history))
