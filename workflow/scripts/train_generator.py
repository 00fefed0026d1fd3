"""Train one generator, once for all if it is private, and state what it cost."""

from pathlib import Path

import job
from veil import artifacts, config, generators, training
from veil.cohorts import bids
from veil.generators import once
from veil.privacy.ledger import Statement
from veil.privacy.register import Access, Register, Scans

outputs = {name: Path(path) for name, path in snakemake.output.items()}
state = Path(snakemake.params.folder) / "state"


def make(access: Access | None = None) -> None:
    """Train, and write weights, statement and history."""
    if access:
        generator.secret = register.secret(access)
    generator.fit(state, training.choose_device(), made_of)
    meta = {"task": task.model_dump(mode="json")}
    artifacts.save_tensors(outputs["weights"], generator.weights(), meta)
    stated = statement | {"weights_sha256": artifacts.file_hash(outputs["weights"])}
    artifacts.write_sealed(outputs["privacy"], stated | ({"access": access.name} if access else {}))
    training.write_history(state, outputs["history"])


with job.running(snakemake, state):
    task = config.Task.model_validate_json(snakemake.params.task)
    patches, start = (
        Path(found[0]) if (found := snakemake.input.get(name)) else None
        for name in ("patches", "start")
    )
    generator = generators.build(task, patches, start)
    statement = generator.spent()
    job.log.info("%s", statement["text"])
    made_of = {
        "task": task.model_dump(mode="json"),
        "code": snakemake.params.code,
        "patches": artifacts.file_hash(patches) if patches else "",
        "owners": artifacts.file_hash(patches.with_suffix(".tsv")) if patches else "",
        "start": artifacts.file_hash(start) if start else "",
    }
    if statement["guarantee"] != "differential privacy":
        make()
    else:
        # Not by params: where the register lies is no reason to make a result again.
        study = config.load(snakemake.config)
        of, manifest = snakemake.wildcards, Path(snakemake.input.checked[0])
        key = f"{of.generator}/{of.privacy}/seed-{of.seed}"
        register = Register(Path(study.privacy.register))
        once.Once(
            register=register,
            point=f"{study.name}/{of.cohort}/{key}",
            patients=[
                Scans(participant_id=p.participant_id, scan=p.scan_sha256, label=p.label_sha256)
                for p in bids.read_manifest(manifest, Path(), "train")
            ],
            made_of=made_of,
            statement=Statement.of(statement),
            again=study.privacy.again.get(key),
            budget=study.privacy.budget,
        ).train(list(outputs.values()), make)
