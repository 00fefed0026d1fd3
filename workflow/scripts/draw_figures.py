"""Draw the figures of the paper for the study that ran."""

from pathlib import Path

import job
from veil import artifacts
from veil.report import figures, tables

with job.running(snakemake):
    points = artifacts.read_table(Path(snakemake.input.points))
    summary = artifacts.read_table(Path(snakemake.input.summary))
    root, folder = Path(snakemake.input.pairs[0]).parents[4], Path(snakemake.output[0]).parent
    first, *others = snakemake.params.tests
    drawn = {
        "frontier": figures.frontier(tables.frontier_table(points, summary, first)),
        "figure-2": figures.figure_2(points, root),
        "figure-3": figures.figure_3(points, summary, first),
        "figure-4": figures.figure_4(points, root, first),
    }
    for other in others:
        drawn[f"figure-5-{other}"] = figures.figure_5(points, summary, other)
    best = tables.best_private(points)
    if best is not None:
        drawn["figure-7"] = figures.figure_7(best, root, first)
    for name, figure in drawn.items():
        with artifacts.whole(folder / f"{name}.svg") as temporary:
            figure.savefig(temporary, format="svg", dpi=150, metadata={"Date": None})
