"""Gather the scores and statements of every point into tidy tables."""

from pathlib import Path

import job
from veil import artifacts
from veil.report import tables

with job.running(snakemake):
    audits = tables.audits_table([Path(path) for path in snakemake.input.audits])
    points = [Path(path).parent.parent for path in snakemake.input.scores]
    summary_of = tables.scores_table(points, Path(snakemake.input.threshold))
    overview = tables.points_table(points, snakemake.params.started).merge(
        tables.similarity_of(points), on=tables.KEYS
    )
    summary = tables.summary_table(summary_of)
    artifacts.write_table(Path(snakemake.output.audits), audits)
    artifacts.write_table(Path(snakemake.output.points), overview)
    artifacts.write_table(Path(snakemake.output.scores), summary_of)
    artifacts.write_table(Path(snakemake.output.summary), summary)
    frontier = tables.frontier_table(overview, summary, snakemake.params.cohort)
    artifacts.write_table(Path(snakemake.output.frontier), frontier)
    artifacts.write_table(Path(snakemake.output.table_1), tables.table_1(overview, summary))
