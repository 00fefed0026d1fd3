"""What a study will cost, in epsilon and in work, before anything is trained (floor 5).

Everything here follows from public settings: no private file is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import pandas as pd

from veil import config, generators
from veil.generators.private import PrivateGenerator
from veil.privacy import accounting

PAPERS_NOISE = 0.65 / 32  # noise multiplier over batch size of Kossen et al. 2022
COLUMNS = [
    "generator", "privacy", "seeds", "sigma", "draws", "delta", "eps published", "eps patch",
    "eps patient", "at 1e-5", "noise / paper's", "PFLOP", "hours here", "meaning",
]  # fmt: skip
START = "public start"
HOPELESS = 10.0  # times that noise, from which on training from scratch learns nothing


@dataclass(frozen=True)
class Entry:
    """One line of the plan: a generator at a privacy level, for several seeds."""

    generator: str
    privacy: str
    seeds: int
    task: config.Task


def entries(study: config.Study) -> list[Entry]:
    """Public starts and the study's points, those that differ in their seed alone together."""
    starts = [
        Entry(name, START, len(seeds), study.start_task(name, 0))
        for name in study.generators
        if study.starts(name) and (seeds := _seeds_of(study, name))
    ]
    return starts + [
        Entry(
            points.generator,
            level,
            len(points.seeds),
            study.task(study.cohort, points.generator, level, 0),
        )
        for points in study.points
        for level in points.privacy
    ]


def _seeds_of(study: config.Study, generator: str) -> set[int]:
    return {
        seed for points in study.points if points.generator == generator for seed in points.seeds
    }


def plan(planned: Sequence[Entry], threads: int) -> pd.DataFrame:
    """One row an entry."""
    with ProcessPoolExecutor(threads) as pool:
        rows = list(pool.map(_row, planned))
    speeds: dict[str, float] = {}
    for entry, row in zip(planned, rows, strict=True):
        network = entry.task.settings.model_dump_json()
        if row["PFLOP"] and network not in speeds:
            generator = generators.build(entry.task)
            assert isinstance(generator, PrivateGenerator)
            speeds[network] = generator.speed()
        row["hours here"] = row["PFLOP"] * 1e15 / speeds[network] / 3600 if row["PFLOP"] else 0.0
    return pd.DataFrame(rows)[COLUMNS]


def _row(entry: Entry) -> dict[str, Any]:
    generator = generators.build(entry.task)
    row: dict[str, Any] = {
        "generator": entry.generator,
        "privacy": entry.privacy,
        "seeds": entry.seeds,
        "sigma": None,
        "draws": None,
        "eps published": None,
        "delta": None,
        "at 1e-5": None,
        "noise / paper's": None,
        "PFLOP": 0.0,
    }
    public = {"eps patch": 0.0, "eps patient": 0.0, "meaning": "public: nothing to protect"}
    if entry.privacy == START:
        assert isinstance(generator, PrivateGenerator)
        return row | public | {"PFLOP": entry.seeds * generator.public_work() / 1e15}
    if entry.task.settings.kind == "phantom":
        return row | public
    row |= {"eps patch": float("inf"), "eps patient": float("inf"), "meaning": "no protection"}
    if isinstance(generator, PrivateGenerator):
        row["PFLOP"] = entry.seeds * generator.work() / 1e15
        if entry.task.level.kind != "none":
            row |= _private(generator, entry.task)
    return row


def _private(generator: PrivateGenerator, task: config.Task) -> dict[str, Any]:
    charge = generator.charge
    patch, patient = generator.ledger.epsilons()
    batch = charge.sampling_rate * (task.patients if task.level.unit == "patient" else task.records)
    noise = charge.noise_multiplier / batch / PAPERS_NOISE
    return {
        "sigma": charge.noise_multiplier,
        "draws": charge.draws,
        "eps patch": patch,
        "eps published": generator.published_epsilon(),
        "eps patient": patient,
        "at 1e-5": generator.ledger.epsilons(accounting.STRICT_DELTA)[1],
        "delta": task.delta,
        "noise / paper's": noise,
        "meaning": meaning(patient, task.delta, task.patients)
        + (f"; out of reach from scratch ({noise:.0f} x the paper's noise)" * (noise > HOPELESS))
        + ("; halted by the budget" * (charge.draws < generator.planned.draws)),
    }


def meaning(epsilon: float, delta: float, patients: int) -> str:
    """What an epsilon per patient is worth, in the tiers of Ponomareva et al. 2023.

    A delta of 1 / patients or more allows to give a whole patient away, whatever the epsilon.
    """
    if delta >= 1 / patients:
        return f"patients: none (delta {delta:.2g} is not below 1 / {patients} patients)"
    if epsilon <= 1:
        return "patients: strong"
    if epsilon <= 10:
        return "patients: reasonable"
    return "patients: none to speak of"


def shown(table: pd.DataFrame, study: config.Study) -> str:
    """The plan as text."""
    patients = study.cohorts[study.cohort].splits.train
    formats = {
        "sigma": "{:.4g}", "draws": "{:,.0f}", "eps patch": "{:.3g}", "eps published": "{:.3g}",
        "eps patient": "{:.3g}", "at 1e-5": "{:.3g}", "delta": "{:.2g}",
        "noise / paper's": "{:.3g}", "PFLOP": "{:,.3g}", "hours here": "{:,.2g}",
    }  # fmt: skip
    text = table.copy().astype(object)
    for column, form in formats.items():
        if column in text:
            text[column] = [
                "-" if pd.isna(value) else form.format(value) for value in table[column]
            ]
    return (
        f"{text.to_string(index=False)}\n\n"
        f"{patients} training patients of {study.patches.per_patient} patches. Epsilons are upper "
        f"bounds: {accounting.accountant()}, add or remove one patch or patient; those of an "
        "as-published loop are its best case, and no bound.\n"
        "'eps published' is what the ledger of Kossen et al. 2022 would print: it does not hold. "
        "'at 1e-5': epsilon per patient at that delta. 'hours here': all seeds, training of "
        "generators alone, from a timed step."
    )
