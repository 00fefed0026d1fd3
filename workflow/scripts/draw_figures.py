"""Draw the figures of the paper for the study that ran."""

from pathlib import Path

import job
from veil import artifacts
from veil.report import figures, tables

with job.running(snakemake):
    inputs, formats = snakemake.input, ("svg", "pdf")
    points, summary, similarity = (
        artifacts.read_table(Path(inputs[name])) for name in ("points", "summary", "similarity")
    )
    root, folder = Path(inputs.test_patches).parents[1], Path(snakemake.output[0]).parent
    first, *others = snakemake.params.tests
    best = tables.best_private(points)
    drawn = {
        "frontier": figures.frontier(artifacts.read_table(Path(inputs.frontier))),
        "figure-2": figures.figure_2(points, root),
        "figure-3": figures.figure_3(points, summary, first),
        "figure-4": figures.figure_4(points, root, first),
        "figure-6": figures.figure_6(points, similarity),
        "figure-8": figures.figure_8(points, similarity),
        "figure-9": figures.figure_9(
            figures.images_of(points, root, artifacts.open_pairs(Path(inputs.test_patches)))
        ),
    }
    for other in others:
        drawn[f"figure-5-{other}"] = figures.figure_5(points, summary, other)
    if best is not None:
        drawn["figure-7"] = figures.figure_7(best, root, first)
        drawn["closest"] = figures.closest(best, root)
    for name, figure in drawn.items():
        for suffix in formats:
            about = {"Date": None} if suffix == "svg" else {"CreationDate": None}
            with artifacts.whole(folder / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, dpi=150, metadata=about)
