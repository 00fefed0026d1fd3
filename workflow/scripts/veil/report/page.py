"""The report as one self-contained page (floor 5): no network, fit for paper."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from veil import artifacts
from veil.report import tables


@dataclass(frozen=True, kw_only=True)
class Section:
    """One figure of the page: a question, a caption, and the SVG that answers it."""

    title: str
    caption: str
    svg: Path

    @property
    def source(self) -> str:
        """The picture as a data URI: no clash of ids between figures, no second file."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.read_bytes()).decode()


def write(
    path: Path, *, study: str, note: str, cohort: str, public: bool, points: pd.DataFrame,
    audits: pd.DataFrame, table_1: pd.DataFrame, frontier: pd.DataFrame, tests: list[str],
    sections: list[Section],
) -> None:  # fmt: skip
    """Write the page. `public` says whether the private cohort is a phantom after all."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "epsilon": epsilon}
    page = environment.get_template("page.html.j2").render(
        study=study, note=note, cohort=cohort, public=public, tests=tests, sections=sections,
        points=points.astype(object).to_dict("records"),
        audits=audits.astype(object).to_dict("records"),
        frontier=frontier.astype(object).to_dict("records"),
        rows=table_1.astype(object).to_dict("records"), metrics=("dsc", "bahd_voxel", "bahd_mm"),
        metric_names=tables.METRICS,
    )  # fmt: skip
    artifacts.write_text(path, page)


def number(value: Any, digits: int = 2) -> str:
    """A score for a table; a missing one as a dash."""
    return "–" if pd.isna(value) else f"{float(value):.{digits}f}"


def epsilon(value: Any) -> str:
    """An epsilon for a table."""
    if value is None or pd.isna(value):
        return "–"
    size = float(value)
    return "∞" if np.isinf(size) else f"{size:.3g}" if size < 1000 else f"{size:,.0f}"
