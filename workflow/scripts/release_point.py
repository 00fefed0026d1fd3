"""Bundle one point for publication, scan it, and let it out only if nothing is found."""

import json
from pathlib import Path

import job
from veil import artifacts, config
from veil.generators import once
from veil.privacy.ledger import Statement
from veil.privacy.register import Register
from veil.release import bundle, identifiers, wall
from veil.report import tables

with job.running(snakemake):
    inputs, params, study = snakemake.input, snakemake.params, config.load(snakemake.config)
    folder, point = Path(snakemake.output[0]).parent, Path(inputs.scores).parents[1]
    statement = Statement.of(artifacts.read_sealed(Path(inputs.privacy)))
    artifacts.check_stated(Path(inputs.weights), Path(inputs.privacy))
    others = [Statement.of(artifacts.read_sealed(Path(path))) for path in inputs.others]
    out = wall.Way(Register(Path(study.privacy.register)), statement, others)
    signed = study.release.signed.get("/".join(point.parts[-3:]))
    if bundle.is_there(folder):
        bundle.stays(folder, out.signed_out())
    else:
        bundle.check(statement.as_dict(), params.public, str(point), signed, out.together)
        scores = artifacts.read_table(Path(inputs.scores)).assign(**tables.identify(point))
        # Its segmenter was chosen on validation patients: with real ones no score is public.
        shown = scores if params.public or study.release.scores else scores[:0]
        weights, meta = artifacts.load_tensors(Path(inputs.weights))
        bundle.write(
            folder,
            bundle.Bundle(
                name=params.name,
                about=study.release,
                task=once.as_trained(config.Task.model_validate_json(params.task), meta),
                pairs=artifacts.open_pairs(Path(inputs.pairs)),
                weights=weights,
                statement=statement,
                audits=tables.audits_table(list(map(Path, inputs.audit))),
                scores=tables.summary_table(shown),
                others=out.names,
                together=out.stated,
                signature=signed,
            ),
            identifiers.of_study(json.loads(params.roots), list(map(Path, inputs.manifests))),
            out.sign_out,
        )
