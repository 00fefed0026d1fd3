"""Tidy tables of a whole study (floor 5).

Epsilon is read from each point's privacy.json and never computed here.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from veil import artifacts
from veil.privacy.accounting import STRICT_DELTA
from veil.privacy.register import Register, Total

KEYS = ["generator", "privacy", "seed"]
CEILING = 10.0
"""Epsilon per patient beyond which a guarantee says little of a person (Ponomareva et al. 2023)."""
AUDIT = [
    "method", "unit", "claim_of", "claim", "lower_bound", "confidence", "ceiling", "verdict",
]  # fmt: skip
METRICS = {
    "dsc": "DSC", "cldice": "clDice", "nsd": "NSD", "bahd_voxel": "bAHD (voxels)",
    "bahd_mm": "bAHD (mm)", "hd95_mm": "HD95 (mm)",
}  # fmt: skip


EXTRA = ("similarity", "membership", "memorisation")
"""Tables of a point that the study's have the same columns as, beside its scores."""


def identify(point: Path) -> dict[str, Any]:
    """Generator, privacy and seed from a point's folder, .../generator/privacy/seed-n."""
    generator, privacy, seed = point.parts[-3:]
    return {"generator": generator, "privacy": privacy, "seed": int(seed.removeprefix("seed-"))}


def points_table(points: list[Path], started: Collection[str] = ()) -> pd.DataFrame:
    """One row a point: its privacy statement, its chosen segmenter and its cost.

    `started` are the generators that go on from a public start.
    """
    rows = []
    for point in points:
        statement = artifacts.read_sealed(point / "generator" / "privacy.json")
        chosen = artifacts.read_json(point / "segmenters" / "chosen.json")
        rows.append(
            {
                **identify(point),
                "guarantee": statement["guarantee"],
                "loop": statement.get("loop"),
                # A generator with no guarantee has an infinite epsilon; JSON cannot say so.
                "epsilon": _infinite(statement["epsilon"]),
                "epsilon_published": statement.get("epsilon_published"),
                "epsilon_patient": _infinite(statement["epsilon_patient"]),
                "epsilon_patient_strict": _infinite(statement["epsilon_patient_strict"]),
                "holds": statement["holds"],
                "delta": statement.get("delta"),
                "noise_multiplier": statement.get("noise_multiplier"),
                "unit": statement.get("unit"),
                "neighbouring_relation": statement.get("neighbouring_relation"),
                "sampling": statement.get("sampling"),
                "accountant": statement.get("accountant"),
                "access": statement.get("access"),
                "chosen_segmenter": chosen["cell"],
                "validation_dsc": chosen["mean_validation_dsc"][chosen["cell"]],
                "start_minutes": _start_minutes(point, started),
                "training_minutes": _minutes(point / "generator" / "benchmark.tsv"),
            }
        )
    return pd.DataFrame(rows)


def spent_table(register: Register, points: pd.DataFrame) -> pd.DataFrame:
    """What the register says was spent on the patients of these points, by any study.

    Two rows: `trained`, all finished trainings under a guarantee, and `released`, those whose
    result left. Of each the number and the epsilon of all together (`register.Total`).
    """
    names = set(points["access"].dropna())
    people = [p for a in register.accesses() if a.name in names for p in a.people]
    rows = [
        {"what": what, **Total.of(accesses, people, STRICT_DELTA).model_dump()}
        for what, accesses in (("trained", register.trainings()), ("released", register.released()))
    ]
    return pd.DataFrame(rows)


class AuditError(artifacts.ArtifactError):
    """An attack got past a guarantee that the study states."""


def audits_table(audits: list[Path]) -> pd.DataFrame:
    """One row per private point, audit and claim; AuditError if a stated guarantee is refuted."""
    if not audits:
        return pd.DataFrame(columns=[*KEYS, *AUDIT])
    parts = [artifacts.read_table(path).assign(**identify(path.parent.parent)) for path in audits]
    table = pd.concat(parts, ignore_index=True)[[*KEYS, *AUDIT]]
    broken = table[(table.claim_of == "stated") & (table.verdict == "refuted")]
    if len(broken):
        faults = [
            f"{row.generator}/{row.privacy}/seed-{row.seed}: the {row.method} finds epsilon at "
            f"least {row.lower_bound:.3g} per {row.unit} where {row.claim:.3g} is stated"
            for row in broken.itertuples()
        ]
        raise AuditError("; ".join(faults) + ". The guarantee does not hold; release nothing")
    return table


def scores_table(points: list[Path], threshold: Path) -> pd.DataFrame:
    """One row per point, test patient and metric; the threshold baseline as one more generator."""
    parts = [
        artifacts.read_table(point / "scores" / "segmentation.tsv").assign(**identify(point))
        for point in points
    ]
    baseline = artifacts.read_table(threshold).assign(generator="threshold", privacy="none", seed=0)
    table = pd.concat([*parts, baseline], ignore_index=True)
    return table[[*KEYS, "test_cohort", "participant_id", "metric", "value"]]


def table_of(points: list[Path], name: str) -> pd.DataFrame:
    """The points' tables `scores/<name>.tsv`, one below the other, under their KEYS."""
    parts = []
    for point in points:
        table = artifacts.read_table(point / "scores" / f"{name}.tsv")
        table.insert(0, "seed", identify(point)["seed"])
        table.insert(0, "privacy", identify(point)["privacy"])
        table.insert(0, "generator", identify(point)["generator"])
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def measure(
    similarity: pd.DataFrame, metric: str, reference: str, features: str | None = None
) -> pd.DataFrame:
    """One measure of a similarity table as KEYS and `value`."""
    keep = (similarity.metric == metric) & (similarity.reference == reference)
    if features:
        keep &= similarity.features == features
    return similarity[keep][[*KEYS, "value"]]


def similarity_wide(similarity: pd.DataFrame) -> pd.DataFrame:
    """One row a point and one column a measure, `<metric> <reference>`, for the page."""
    names = np.where(
        similarity.features == "wasserstein",
        similarity.metric + " distance",
        similarity.metric + " " + similarity.reference,
    )
    wide = similarity.assign(name=names).set_index([*KEYS, "name"])["value"]
    return wide.unstack("name", sort=False).reset_index()


def strongest_attacks(membership: pd.DataFrame, memorisation: pd.DataFrame) -> pd.DataFrame:
    """One row a point: the attack with the highest AUC, and the share of pairs that are no copies.

    The strongest of several attacks is picked after the fact, so its interval is a little narrow.
    """
    best = membership.loc[membership.groupby(KEYS, sort=False)["auc"].idxmax()]
    keep = (memorisation.metric == "authenticity") & (memorisation.features == "pixels")
    authentic = memorisation[keep].rename(columns={"value": "authenticity"})
    return best.merge(authentic[[*KEYS, "authenticity"]], on=KEYS)


def summary_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over patients; undefined values are left out and counted."""
    groups = scores.groupby([*KEYS, "test_cohort", "metric"], sort=False)["value"]
    table = groups.agg(mean="mean", sd="std", patients="size", defined="count").reset_index()
    table["undefined"] = table["patients"] - table.pop("defined")
    return table


def frontier_table(points: pd.DataFrame, summary: pd.DataFrame, cohort: str) -> pd.DataFrame:
    """What each epsilon buys on one test cohort: a row a generator and level, means over seeds,
    in the order in which the study names them.

    `points` has each point's `frechet` too. `dsc_sd` is over seeds (NaN for one). `gain` is the
    mean DSC above the best public generator's, the free floor, and `gain_sd` the deviations of both
    together.
    """
    mine = summary[(summary.test_cohort == cohort) & summary.metric.isin(["dsc", "bahd_voxel"])]
    wide = mine.pivot_table(index=KEYS, columns="metric", values="mean", dropna=False).reset_index()
    # A point without a single defined bAHD still has its DSC.
    wide = wide.reindex(columns=[*KEYS, "dsc", "bahd_voxel"]).dropna(subset=["dsc"])
    joined = points.merge(wide, on=KEYS)
    groups = joined.groupby(["generator", "privacy", "guarantee"], sort=False, dropna=False)
    table = groups.agg(
        epsilon_patient=("epsilon_patient", "max"), epsilon=("epsilon", "max"),
        epsilon_patient_strict=("epsilon_patient_strict", "max"),
        seeds=("seed", "size"), dsc=("dsc", "mean"), dsc_sd=("dsc", "std"),
        bahd_voxel=("bahd_voxel", "mean"), bahd_voxel_sd=("bahd_voxel", "std"),
        frechet=("frechet", "mean"), frechet_sd=("frechet", "std"),
        start_minutes=("start_minutes", "mean"), training_minutes=("training_minutes", "mean"),
    ).reset_index()  # fmt: skip
    free = table[table.guarantee == "public"].nlargest(1, "dsc")
    floor, spread = (free.iloc[0].dsc, free.iloc[0].dsc_sd) if len(free) else (np.nan, np.nan)
    table["gain"] = table.dsc - floor
    table["gain_sd"] = np.hypot(table.dsc_sd, spread)
    return table


def best_runs(points: pd.DataFrame) -> pd.DataFrame:
    """For each generator and level the seed with the best DSC on validation patients."""
    best = points.groupby(["generator", "privacy"], sort=False)["validation_dsc"].idxmax()
    return points.loc[best.fillna(-1).astype(int)].reset_index(drop=True)


def table_1(points: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 1 with ceiling, floor and trivial baseline: mean and sd over patients."""
    best = best_runs(points)
    per_patient, per_patch = _by_worth(best[_valid(best)])
    rows = [
        ("best private, per patient", _top(per_patient)),
        ("real patients (ceiling)", best[best.generator == "real"]),
        (
            "best without privacy",
            _top(best[(best.guarantee == "none") & (best.generator != "real")]),
        ),
        ("best private, per patch", _top(per_patch)),
        ("best as published", _top(best[best.loop == "as-published"])),
        ("public phantoms (floor)", _top(best[best.guarantee == "public"])),
    ]
    table = [_row(label, point.iloc[0].to_dict(), summary) for label, point in rows if len(point)]
    baseline = {"generator": "threshold", "privacy": "none", "seed": 0}
    table.append(_row("best global threshold (trivial)", baseline, summary))
    return pd.DataFrame(table)


def best_private(points: pd.DataFrame) -> pd.Series | None:
    """The private point with the best validation DSC: one that protects patients if there is any,
    else a valid one, else one as published."""
    best = best_runs(points)
    for some in (*_by_worth(best[_valid(best)]), best[best.loop == "as-published"]):
        if len(some):
            return _top(some).iloc[0]
    return None


def _by_worth(points: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points whose epsilon per patient says something of a person, and those of patches alone."""
    worth = points.epsilon_patient <= CEILING
    return points[worth], points[~worth]


def _valid(points: pd.DataFrame) -> pd.Series:
    return (points.guarantee == "differential privacy") & (points.loop != "as-published")


def _top(points: pd.DataFrame) -> pd.DataFrame:
    return points.sort_values("validation_dsc", ascending=False).head(1)


def _row(label: str, point: dict[str, Any], summary: pd.DataFrame) -> dict[str, Any]:
    mine = summary[(summary[KEYS] == [point[key] for key in KEYS]).all(axis=1)]
    row: dict[str, Any] = {"trained on": label, **{key: point[key] for key in KEYS}}
    stated = ("epsilon", "epsilon_published", "epsilon_patient", "epsilon_patient_strict")
    row |= {key: point.get(key) for key in stated}
    for entry in mine.itertuples():
        row[f"{entry.test_cohort} {entry.metric} mean"] = entry.mean
        row[f"{entry.test_cohort} {entry.metric} sd"] = entry.sd
    return row


def _infinite(epsilon: float | None) -> float:
    return float("inf") if epsilon is None else epsilon


def _start_minutes(point: Path, started: Collection[str]) -> float | None:
    """Of the public start that a point goes on from; 0 where there is none."""
    *_, generator, _, seed = point.parts
    if generator not in started:
        return 0.0
    return _minutes(point.parents[1] / "public" / seed / "benchmark.tsv")


def _minutes(benchmark: Path) -> float | None:
    if not benchmark.exists():
        return None
    return float(pd.read_csv(benchmark, sep="\t")["s"].mean()) / 60
