"""Gather the scores and statements of every point into tidy tables."""

from pathlib import Path

import job
from veil import artifacts
from veil.report import tables

with job.running(snakemake):
    params = snakemake.params
    points = [Path(path).parent.parent for path in snakemake.input.scores]
    made = {
        "audits": tables.audits_table([Path(path) for path in snakemake.input.audits]),
        "scores": tables.scores_table(points, Path(snakemake.input.threshold)),
    } | {name: tables.table_of(points, name) for name in tables.EXTRA}
    frechet = tables.measure(made["similarity"], "frechet", "test")
    overview = tables.points_table(points, params.started).merge(
        frechet.rename(columns={"value": "frechet"}), on=tables.KEYS
    )
    summary = tables.summary_table(made["scores"])
    made |= {"points": overview, "summary": summary}
    made["frontier"] = tables.frontier_table(overview, summary, params.cohort)
    made["table_1"] = tables.table_1(overview, summary)
    for name, table in made.items():
        artifacts.write_table(Path(snakemake.output[name]), table)
