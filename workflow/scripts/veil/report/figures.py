"""The figures of Kossen et al. 2022 for whatever study ran (floor 5)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage

from veil import artifacts, volumes
from veil.report import tables

matplotlib.rcParams.update(
    {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "veil"}
)
COLOURS = (  # Okabe and Ito 2008
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442",
)  # fmt: skip
SHOWN = (0.5, 0.75, 0.95)  # of the labelled pairs, by labelled area
ERRORS = ListedColormap(["black", "#d7191c", "#1a9641", "#ffd92f"])
LEGEND = [
    ("true positive", "#d7191c"),
    ("false positive", "#1a9641"),
    ("false negative", "#ffd92f"),
]
REFERENCES = ("real", "phantom", "threshold")


def epsilon_text(point: pd.Series) -> str:
    """Epsilon of a point as a label: patch level, the published claim beside it if it has one."""
    if np.isinf(point.epsilon):
        return "ε = ∞"
    text = f"ε = {point.epsilon:.3g}"
    if pd.notna(point.epsilon_published):
        text += f"\n(claimed {point.epsilon_published:.2g})"
    return text


def ordered(points: pd.DataFrame) -> pd.DataFrame:
    """One row a generator and level: references first, then by generator and falling epsilon."""
    best = tables.best_runs(points)
    rank = best.generator.map({"real": 0, "phantom": 1}).fillna(2)
    return best.assign(rank=rank).sort_values(
        ["rank", "generator", "epsilon"], ascending=[True, True, False], ignore_index=True
    )


def figure_2(points: pd.DataFrame, root: Path) -> Figure:
    """Sample pairs of every generator and level: images above, labels below."""
    shown = ordered(points)
    figure = Figure(figsize=(1.3 * len(shown) + 0.4, 1.35 * 2 * len(SHOWN)), layout="constrained")
    axes = figure.subplots(2 * len(SHOWN), len(shown), squeeze=False)
    for column, (_, point) in enumerate(shown.iterrows()):
        pairs = artifacts.open_pairs(folder(root, point) / "synthetic" / "pairs.npy")
        area = pairs[:512, 1].sum((1, 2), dtype=int)
        by_area = np.argsort(area, kind="stable")[min(np.sum(area == 0), len(area) - 1) :]
        for row, index in enumerate(by_area[[int(share * len(by_area)) for share in SHOWN]]):
            for channel, top in enumerate((255, 1)):
                axis = axes[2 * row + channel, column]
                axis.imshow(pairs[index, channel].T, cmap="gray", vmin=0, vmax=top, origin="lower")
                axis.set_xticks([])
                axis.set_yticks([])
        axes[0, column].set_title(f"{_short(point)}\n{epsilon_text(point)}", fontsize=7.5)
    return figure


def figure_3(points: pd.DataFrame, summary: pd.DataFrame, cohort: str) -> Figure:
    """(A) DSC over seeds, (B) DSC of the best run, (C) its bAHD, against epsilon."""
    figure = Figure(figsize=(9.5, 9), layout="constrained")
    axes = figure.subplots(3, 1)
    _over_seeds(axes[0], points, summary, cohort)
    _best_run(axes[1], points, summary, cohort, "dsc")
    _best_run(axes[2], points, summary, cohort, "bahd_voxel")
    for axis, letter in zip(axes, "ABC", strict=True):
        axis.set_title(letter, loc="left", fontweight="bold")
    return figure


def figure_5(points: pd.DataFrame, summary: pd.DataFrame, cohort: str) -> Figure:
    """(A) DSC and (B) bAHD of the best run on another cohort, against epsilon."""
    figure = Figure(figsize=(9.5, 6), layout="constrained")
    axes = figure.subplots(2, 1)
    for axis, metric, letter in zip(axes, ("dsc", "bahd_voxel"), "AB", strict=True):
        _best_run(axis, points, summary, cohort, metric)
        axis.set_title(letter, loc="left", fontweight="bold")
    return figure


def frontier(table: pd.DataFrame) -> Figure:
    """Left: against epsilon per patient, right: per patch; above DSC, below bAHD."""
    figure = Figure(figsize=(10.5, 6.5), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row", sharex="col")
    units = {"epsilon_patient": "patient", "epsilon": "patch"}
    for row, metric in enumerate(("dsc", "bahd_voxel")):
        for column, (key, unit) in enumerate(units.items()):
            _trade(axes[row, column], table, key, metric)
            if row:
                axes[row, column].set_xlabel(f"epsilon per {unit}")
        axes[row, 0].set_ylabel(tables.METRICS[metric])
    axes[0, 0].set_ylim(0, 1)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _trade(axis: Axes, table: pd.DataFrame, key: str, metric: str) -> None:
    """One metric against one epsilon on a log axis, with places for 0 and infinity at its ends."""
    finite = table[key][(table[key] > 0) & np.isfinite(table[key])]
    low, high = (np.log10(finite.min()), np.log10(finite.max())) if len(finite) else (0.0, 0.0)
    low, high = min(low, 0.0) - 0.2, max(high, 1.0) + 0.2
    gap = 0.12 * (high - low)
    with np.errstate(divide="ignore"):
        place = np.log10(table[key]).clip(low - gap, high + gap)
    colours = _colours(table.generator)
    for name, mine in table.groupby("generator"):
        axis.errorbar(
            place[mine.index], mine[metric], mine[f"{metric}_sd"].fillna(0), fmt="o", ms=5,
            capsize=3, color=colours[str(name)], label=str(name),
        )  # fmt: skip
    ceiling, floor = table[table.generator == "real"], table[table.guarantee == "public"]
    for mine, style in ((ceiling, "-"), (floor.nlargest(1, "dsc"), "--")):
        if len(mine):
            axis.axhline(mine.iloc[0][metric], color="0.35", lw=1, ls=style)
    ticks = range(int(np.ceil(low)), int(high) + 1)
    axis.set_xticks(
        [low - gap, *ticks, high + gap], ["0", *(f"{10.0**tick:g}" for tick in ticks), "∞"]
    )
    for edge in (low - gap / 2, high + gap / 2):
        axis.axvline(edge, color="0.85", lw=1)
    axis.set_xlim(low - 1.5 * gap, high + 1.5 * gap)


def figure_4(points: pd.DataFrame, root: Path, cohort: str) -> Figure:
    """Error maps of one test patient, projected along z, for every generator and level."""
    shown = ordered(points)
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.7 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (_, point) in zip(axes, shown.iterrows(), strict=False):
        _show_errors(axis, project(_errors(root, point, cohort)))
        axis.set_title(f"{_short(point)}, {epsilon_text(point)}", fontsize=8)
    _legend(figure)
    return figure


def figure_7(point: pd.Series, root: Path, cohort: str) -> Figure:
    """The best private model: (A) a slice with big vessels, (B) one with small, (C) the tree."""
    errors = _errors(root, point, cohort)
    big, small = telling_slices(errors)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = [errors[:, :, big], errors[:, :, small], project(errors)]
    titles = ["A  big vessels", "B  small vessels", "C  whole tree"]
    for axis, panel, title in zip(figure.subplots(1, 3), panels, titles, strict=True):
        _show_errors(axis, panel)
        axis.set_axis_off()
        axis.set_title(title, loc="left")
    _legend(figure)
    return figure


def project(errors: np.ndarray) -> np.ndarray:
    """The commonest of the three outcomes along each ray of an error map (X, Y, Z)."""
    counts = np.stack([(errors == code).sum(2) for code in (1, 2, 3)])
    projected: np.ndarray = np.where(counts.any(0), counts.argmax(0) + 1, 0)
    return projected


def telling_slices(errors: np.ndarray) -> tuple[int, int]:
    """The axial slices whose reference vessels have the largest and the smallest mean area."""
    reference = (errors == 1) | (errors == 3)
    areas = np.zeros(errors.shape[2])
    for z in np.flatnonzero(reference.any((0, 1))):
        areas[z] = reference[:, :, z].sum() / ndimage.label(reference[:, :, z])[1]
    crowded = reference.sum((0, 1)) >= np.median(reference.sum((0, 1)))
    small = np.where(crowded & (areas > 0), areas, np.inf)
    return int(areas.argmax()), int(small.argmin())


def folder(root: Path, point: pd.Series) -> Path:
    """The folder of a point below its cohort's results."""
    return root / point.generator / point.privacy / f"seed-{point.seed}"


def _short(point: pd.Series) -> str:
    return point.generator if point.privacy == "none" else f"{point.generator}\n{point.privacy}"


def _errors(root: Path, point: pd.Series, cohort: str) -> np.ndarray:
    return volumes.read(folder(root, point) / "scores" / "errors" / f"{cohort}.nii.gz").data


def _show_errors(axis: Axes, errors: np.ndarray) -> None:
    axis.imshow(errors.T, cmap=ERRORS, vmin=0, vmax=3, origin="lower", interpolation="nearest")


def _legend(figure: Figure) -> None:
    handles = [Patch(color=colour, label=label) for label, colour in LEGEND]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def _axis_points(points: pd.DataFrame) -> pd.DataFrame:
    """The points on the privacy axis: every generator but the references."""
    shown = ordered(points)
    return shown[~shown.generator.isin(REFERENCES)].sort_values(
        ["epsilon", "generator"], ascending=[False, True], ignore_index=True
    )


def _values(summary: pd.DataFrame, point: pd.Series, cohort: str, metric: str) -> pd.DataFrame:
    keep = (
        (summary.generator == point.generator)
        & (summary.privacy == point.privacy)
        & (summary.test_cohort == cohort)
        & (summary.metric == metric)
    )
    return summary[keep]


def _over_seeds(axis: Axes, points: pd.DataFrame, summary: pd.DataFrame, cohort: str) -> None:
    shown = _axis_points(points)
    colours = _colours(shown.generator)
    for x, (_, point) in enumerate(shown.iterrows()):
        values = _values(summary, point, cohort, "dsc")["mean"].dropna()
        colour = colours[point.generator]
        axis.boxplot([values], positions=[x], widths=0.5, medianprops={"color": colour},
                     boxprops={"color": colour}, showfliers=False)  # fmt: skip
        axis.scatter(np.full(len(values), x), values, s=14, color=colour, zorder=3)
    _finish(axis, shown, summary, cohort, "dsc", "DSC, all seeds")


def _best_run(
    axis: Axes, points: pd.DataFrame, summary: pd.DataFrame, cohort: str, metric: str
) -> None:
    shown = _axis_points(points)
    colours = _colours(shown.generator)
    for x, (_, point) in enumerate(shown.iterrows()):
        values = _values(summary, point, cohort, metric)
        values = values[values.seed == point.seed]
        if not len(values) or values["mean"].isna().all():
            axis.annotate("undefined", (x, 0), (0, 6), textcoords="offset points", ha="center",
                          xycoords=("data", "axes fraction"), fontsize=7)  # fmt: skip
            continue
        row = values.iloc[0]
        axis.errorbar(x, row["mean"], 0 if np.isnan(row.sd) else row.sd, fmt="o", capsize=4,
                      color=colours[point.generator])  # fmt: skip
    _finish(axis, shown, summary, cohort, metric, f"{tables.METRICS[metric]}, best run")


def _finish(
    axis: Axes, shown: pd.DataFrame, summary: pd.DataFrame, cohort: str, metric: str, label: str
) -> None:
    """Reference lines, tick labels and a legend of the generators."""
    for name, style in zip(REFERENCES, ("-", "--", ":"), strict=True):
        keep = (summary.generator == name) & (summary.test_cohort == cohort)
        mean = summary[keep & (summary.metric == metric)]["mean"].mean()
        if not np.isnan(mean):
            text = {"real": "real patients", "phantom": "public phantoms, ε = 0",
                    "threshold": "best threshold"}[name]  # fmt: skip
            axis.axhline(mean, color="0.35", lw=1, ls=style, label=f"{text}: {mean:.2f}")
    for name, colour in _colours(shown.generator).items():
        axis.scatter([], [], color=colour, label=name)
    axis.set_xticks(range(len(shown)), [epsilon_text(point) for _, point in shown.iterrows()])
    axis.set_xlim(-0.6, max(len(shown), 1) - 0.4)
    axis.set_ylim(bottom=0, top=1 if metric == "dsc" else None)
    axis.set_ylabel(label)
    axis.set_xlabel("epsilon per patch, from no privacy to more privacy")
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _colours(generators: Iterable[str]) -> dict[str, str]:
    """One colour a generator, the same in every figure, whether or not that shows references."""
    names = sorted(set(generators), key=lambda name: (name in REFERENCES, name))
    return {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(names)}
