"""Write the report: one page that stands alone."""

from pathlib import Path

import job
from veil import artifacts
from veil.report import page

with job.running(snakemake):
    captions = dict(zip(snakemake.params.figures, snakemake.params.captions, strict=True))
    sections = [
        page.Section(title=title, caption=caption, svg=Path(path))
        for (title, caption), path in zip(captions.items(), snakemake.input.figures, strict=True)
    ]
    page.write(
        Path(snakemake.output[0]),
        study=snakemake.params.study,
        note=snakemake.params.note,
        cohort=snakemake.params.cohort,
        public=snakemake.params.public,
        audits=artifacts.read_table(Path(snakemake.input.audits)),
        points=artifacts.read_table(Path(snakemake.input.points)),
        table_1=artifacts.read_table(Path(snakemake.input.table_1)),
        frontier=artifacts.read_table(Path(snakemake.input.frontier)),
        tests=list(snakemake.params.tests),
        sections=sections,
    )
