"""Write the report: one page that stands alone."""

from dataclasses import fields
from pathlib import Path

import job
from veil import artifacts, config
from veil.privacy.register import Register
from veil.report import page, tables

with job.running(snakemake):
    params = snakemake.params
    frontier, *sections = (
        page.Section(title=title, caption=caption, svg=Path(path))
        for title, caption, path in zip(
            params.figures, params.captions, snakemake.input.figures, strict=True
        )
    )
    names = [field.name for field in fields(page.Tables)]
    page.write(
        Path(snakemake.output[0]),
        study=params.study,
        note=params.note,
        cohort=params.cohort,
        public=params.public,
        shown=page.Tables(
            **{name: artifacts.read_table(Path(snakemake.input[name])) for name in names}
        ),
        spent=tables.spent_table(
            # Read whenever the page is made, and no input: what was spent is nobody's result.
            Register(Path(config.load(snakemake.config).privacy.register)),
            artifacts.read_table(Path(snakemake.input.points)),
        ),
        tests=list(params.tests),
        tolerance=params.tolerance,
        frontier=frontier,
        sections=sections,
        command=params.command,
    )
