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
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "veil",
        "pdf.fonttype": 42,
    }
)
COLOURS = (  # Okabe and Ito 2008
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442",
)  # fmt: skip
CLOUD = 400  # images of a set in the t-SNE
SHOWN = (0.5, 0.75, 0.95)  # of the labelled pairs, by labelled area
ERRORS = ListedColormap(["black", "#d7191c", "#1a9641", "#ffd92f"])
LEGEND = [
    ("true positive", "#d7191c"),
    ("false positive", "#1a9641"),
    ("false negative", "#ffd92f"),
]
REFERENCES = ("real", "phantom", "threshold")
LINES = {
    "real": "real patients",
    "phantom": "public phantoms, ε = 0",
    "threshold": "best threshold",
}


def epsilon_text(point: pd.Series) -> str:
    """Epsilon of a point's own unit as a label, the published claim beside it if it has one."""
    if np.isinf(point.epsilon):
        return "ε = ∞"
    if point.unit == "patient":
        return f"ε = {point.epsilon_patient:.3g}\nper patient"
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
        for count, (number, row) in enumerate(mine.iterrows()):
            bars = axis.errorbar(
                place[number], row[metric], np.nan_to_num(row[f"{metric}_sd"]), fmt="o", ms=5,
                capsize=3, color=colours[str(name)], label="_" if count else str(name),
            )  # fmt: skip
            bars[0].set_gid(f"point-{number}-{key}-{metric}")
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
    figure = Figure(figsize=(2.4 * columns, 3.1 * rows + 0.3), layout="constrained")
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


def figure_6(points: pd.DataFrame, similarity: pd.DataFrame) -> Figure:
    """(A) Distance to test and (B) to training patches, (C) their difference, against epsilon.

    The FID where it was computed, else the Fréchet distance in the study's own feature space.
    """
    known = (similarity.metric == "fid") & similarity.value.notna()
    metric, name = ("fid", "FID") if known.any() else ("frechet", "Fréchet distance")
    parts = {key: tables.measure(similarity, metric, key) for key in ("test", "train")}
    apart = parts["test"].merge(parts["train"], on=tables.KEYS, suffixes=("", "_train"))
    apart["value"] -= apart.pop("value_train")
    figure = Figure(figsize=(9.5, 8), layout="constrained")
    labels = [f"{name} to test patches", f"{name} to training patches", "difference"]
    for axis, values, label, letter in zip(
        figure.subplots(3, 1), (*parts.values(), apart), labels, "ABC", strict=True
    ):
        _measured(axis, points, values, label)
        axis.set_title(letter, loc="left", fontweight="bold")
    return figure


def figure_8(points: pd.DataFrame, similarity: pd.DataFrame) -> Figure:
    """Mean structural similarity over all pairs of a point's images, against epsilon."""
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    axis = figure.subplots()
    _measured(axis, points, tables.measure(similarity, "ssim", "itself"), "mean SSIM of all pairs")
    axis.set_ylim(0, 1)
    return figure


def figure_9(sets: dict[str, np.ndarray]) -> Figure:
    """t-SNE (perplexity 30, on 50 principal components) of images of `sets`, uint8 (n, H, W)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.concatenate([images.reshape(len(images), -1) for images in sets.values()]) / 255
    reduced = PCA(min(50, len(rows)), random_state=0).fit_transform(rows)
    places = TSNE(perplexity=min(30, len(rows) / 4), random_state=0).fit_transform(reduced)
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axis, start = figure.subplots(), 0
    for (name, images), colour in zip(sets.items(), ("#000000", *COLOURS), strict=False):
        here = places[start : start + len(images)]
        axis.scatter(*here.T, s=6, color=colour, label=name, alpha=0.6, linewidths=0)
        start += len(images)
    axis.set_xticks([])
    axis.set_yticks([])
    figure.legend(loc="outside lower center", ncols=3, frameon=False, markerscale=2, fontsize=8)
    return figure


def images_of(points: pd.DataFrame, root: Path, test: np.ndarray) -> dict[str, np.ndarray]:
    """Images of test patients, of the best point without privacy and of the best private one."""
    best = tables.best_runs(points)
    free = best[(best.guarantee == "none") & (best.generator != "real")]
    chosen = {"best without privacy": free.nlargest(1, "validation_dsc")}
    private = tables.best_private(points)
    if private is not None:
        chosen["best private"] = private.to_frame().T
    sets = {"real (test patients)": test}
    for name, rows in chosen.items():
        for _, point in rows.iterrows():
            pairs = artifacts.open_pairs(folder(root, point) / "synthetic" / "pairs.npy")
            sets[f"{name}: {point.generator} {point.privacy}"] = pairs
    return {
        name: pairs[np.unique(np.linspace(0, len(pairs) - 1, CLOUD).astype(int)), 0]
        for name, pairs in sets.items()
    }


def closest(point: pd.Series, root: Path) -> Figure:
    """The synthetic pairs of a point that are most like a training patch, above it."""
    pairs = artifacts.open_pairs(folder(root, point) / "scores" / "closest.npy")
    count = len(pairs) // 2
    figure = Figure(figsize=(1.2 * count, 5.2), layout="constrained")
    axes = figure.subplots(4, count, squeeze=False)
    rows = [(0, 0, "synthetic"), (0, 1, "its label"), (1, 0, "training"), (1, 1, "its label")]
    for line, (kind, channel, name) in zip(axes, rows, strict=True):
        for axis, pair in zip(line, pairs[kind * count :], strict=False):
            axis.imshow(
                pair[channel].T, cmap="gray", vmin=0, vmax=(255, 1)[channel], origin="lower"
            )
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name)
    figure.suptitle(f"{point.generator} {point.privacy}, seed {point.seed}")
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


def _measured(axis: Axes, points: pd.DataFrame, values: pd.DataFrame, label: str) -> None:
    """A value of every seed on the privacy axis; real patients and phantoms as lines."""
    shown = _axis_points(points)
    colours = _colours(shown.generator)
    for x, (_, point) in enumerate(shown.iterrows()):
        keep = (values.generator == point.generator) & (values.privacy == point.privacy)
        mine = values[keep]["value"].dropna()
        axis.scatter(np.full(len(mine), x), mine, s=16, color=colours[point.generator])
    for name, style in (("real", "-"), ("phantom", "--")):
        mean = values[values.generator == name]["value"].mean()
        if not np.isnan(mean):
            axis.axhline(mean, color="0.35", lw=1, ls=style, label=f"{LINES[name]}: {mean:.2g}")
    _privacy_axis(axis, shown, label)


def _finish(
    axis: Axes, shown: pd.DataFrame, summary: pd.DataFrame, cohort: str, metric: str, label: str
) -> None:
    """Reference lines and the axis of one score."""
    for name, style in zip(REFERENCES, ("-", "--", ":"), strict=True):
        keep = (summary.generator == name) & (summary.test_cohort == cohort)
        mean = summary[keep & (summary.metric == metric)]["mean"].mean()
        if not np.isnan(mean):
            axis.axhline(mean, color="0.35", lw=1, ls=style, label=f"{LINES[name]}: {mean:.2f}")
    axis.set_ylim(bottom=0, top=1 if metric == "dsc" else None)
    _privacy_axis(axis, shown, label)


def _privacy_axis(axis: Axes, shown: pd.DataFrame, label: str) -> None:
    """Tick labels, and a legend of the generators."""
    for name, colour in _colours(shown.generator).items():
        axis.scatter([], [], color=colour, label=name)
    axis.set_xticks(range(len(shown)), [epsilon_text(point) for _, point in shown.iterrows()])
    axis.set_xlim(-0.6, max(len(shown), 1) - 0.4)
    axis.set_ylabel(label)
    axis.set_xlabel("epsilon (per patch unless said), from no privacy to more privacy")
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _colours(generators: Iterable[str]) -> dict[str, str]:
    """One colour a generator, the same in every figure, whether or not that shows references."""
    names = sorted(set(generators), key=lambda name: (name in REFERENCES, name))
    return {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(names)}
