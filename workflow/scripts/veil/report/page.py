"""The report as one self-contained page (floor 5): no network, fit for paper."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from veil import artifacts
from veil.report import tables

POINT = re.compile(r'<g id="point-(\d+)-[a-z_-]+">')


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


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The tables of `gather_scores` that the page shows, by the names of their files."""

    points: pd.DataFrame
    audits: pd.DataFrame
    frontier: pd.DataFrame
    table_1: pd.DataFrame
    similarity: pd.DataFrame
    membership: pd.DataFrame
    memorisation: pd.DataFrame


def write(
    path: Path, *, study: str, note: str, cohort: str, public: bool, shown: Tables,
    spent: pd.DataFrame, tests: list[str], tolerance: float, frontier: Section,
    sections: list[Section], command: str,
) -> None:  # fmt: skip
    """Write the page.

    `public` says whether the private cohort is a phantom after all; `spent` is what the register
    says of its patients; `command` makes a result of the study if its path is put behind it.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "spread": spread, "epsilon": epsilon}
    rows = {
        "points": shown.points,
        "spent": spent,
        "audits": shown.audits,
        "frontier": shown.frontier,
        "rows": shown.table_1,
        "likeness": tables.similarity_wide(shown.similarity),
        "attacks": tables.strongest_attacks(shown.membership, shown.memorisation),
    }
    page = environment.get_template("page.html.j2").render(
        study=study, note=note, cohort=cohort, public=public, tests=tests, sections=sections,
        tolerance=f"{tolerance:g}",
        frontier_figure=frontier,
        has_fid=bool(shown.similarity[shown.similarity.metric == "fid"].value.notna().any()),
        frontier_svg=Markup(touchable(frontier.svg.read_text(), shown.frontier, cohort, command)),
        metrics=("dsc", "cldice", "nsd", "bahd_voxel", "hd95_mm"), metric_names=tables.METRICS,
        **{name: table.astype(object).to_dict("records") for name, table in rows.items()},
    )  # fmt: skip
    artifacts.write_text(path, page)


def touchable(svg: str, frontier: pd.DataFrame, cohort: str, command: str) -> str:
    """The frontier's SVG with what each point is, for the pointer, the keyboard and a finger."""

    def titled(match: re.Match[str]) -> str:
        text = escape(detail(frontier.iloc[int(match[1])], cohort, command))
        return f'{match[0][:-1]} class="point" tabindex="0" role="button"><title>{text}</title>'

    return POINT.sub(titled, svg[svg.index("<svg") :])


def detail(row: pd.Series, cohort: str, command: str) -> str:
    """A point of the frontier in a few lines: scores, ledger, and the command to make it again."""
    place = f"results/{cohort}/{row.generator}/{row.privacy}/seed-0"
    return "\n".join(
        [
            f"{row.generator} {row.privacy}: DSC {spread(row.dsc, row.dsc_sd, 3)} "
            f"({row.seeds} seeds), gain {spread(row.gain, row.gain_sd, 3)}",
            f"ε = {epsilon(row.epsilon_patient)} per patient, {epsilon(row.epsilon)} per patch",
            f"ledger: {place}/generator/privacy.json",
            f"again: {command} {place}/scores/segmentation.tsv",
        ]
    )


def number(value: Any, digits: int = 2) -> str:
    """A score for a table; a missing one as a dash."""
    return "–" if pd.isna(value) else f"{float(value):.{digits}f}"


def spread(mean: Any, deviation: Any, digits: int = 2) -> str:
    """A mean ± its deviation, or alone where there is none, as of one seed."""
    shown = number(mean, digits)
    return shown if pd.isna(deviation) else f"{shown} ± {number(deviation, digits)}"


def epsilon(value: Any) -> str:
    """An epsilon for a table."""
    if value is None or pd.isna(value):
        return "–"
    size = float(value)
    return "∞" if np.isinf(size) else f"{size:.3g}" if size < 1000 else f"{size:,.0f}"
