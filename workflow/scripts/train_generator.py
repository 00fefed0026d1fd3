"""Train one generator, once for all if it is private, and state what it cost."""

from pathlib import Path

import job
from veil import artifacts, config, generators, training
from veil.generators import once
from veil.privacy.ledger import Statement
from veil.privacy.register import Access

state = Path(snakemake.params.folder) / "state"


def make(access: Access | None = None) -> None:
    """Train, and write weights, statement and history."""
    if access:
        generator.secret = point.register.secret(access)
    generator.fit(state, training.choose_device(), made_of)
    weights, privacy, history = map(Path, snakemake.output)
    artifacts.save_tensors(weights, generator.weights(), {"task": task.model_dump(mode="json")})
    stated = statement | {"weights_sha256": artifacts.file_hash(weights)}
    artifacts.write_sealed(privacy, stated | ({"access": access.name} if access else {}))
    training.write_history(state, history)


with job.running(snakemake, state):
    task = config.Task.model_validate_json(snakemake.params.task)
    patches, start = (
        Path(found[0]) if (found := snakemake.input.get(name)) else None
        for name in ("patches", "start")
    )
    generator = generators.build(task, patches, start)
    statement = generator.spent()
    job.log.info("%s", statement["text"])
    made_of = once.made_of(task, snakemake.params.code, patches, start)
    if statement["guarantee"] != "differential privacy":
        make()
    else:
        # Not by params: where the register lies is no reason to make a result again.
        study, manifest = config.load(snakemake.config), Path(snakemake.input.checked[0])
        stated = Statement.of(statement)
        point = once.point(study, dict(snakemake.wildcards.items()), manifest, made_of, stated)
        point.train(list(map(Path, snakemake.output)), make)
