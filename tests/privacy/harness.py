"""Every generator that takes a privacy level, put through its real `fit` under a recorder.

A case is a generator at a unit. `train` runs the generator's own `fit` (its loop, networks and
objective) on given patches, through a mechanism that keeps what goes out, what would have gone out
without noise, and which coins were handed to whom. With `script` it gives out what another run
gave out, so that two data sets can be compared under equal coins.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from veil import artifacts, config, generators
from veil.generators import diffusion, fitted, wgan
from veil.generators.phantom import cut_from
from veil.privacy.mechanism import Mechanism

CPU = torch.device("cpu")
PATIENTS, PATCHES = 6, 6
"""Public numbers: patients, and patches of each."""
WGAN = config.WganGenerator(
    kind="wgan", generator_width=4, critic_width=4, latent=8, generator_updates=2, batch_size=8,
    critic_updates=2, patient_batch_size=3, patient_patches=4,
)  # fmt: skip
DIFFUSION = config.DiffusionGenerator(
    kind="diffusion", channels=(4, 8), steps=2, batch_size=8, multiplicity=2, sampling_steps=2,
    patient_batch_size=3, patient_patches=4, clip_norm=0.5,
)  # fmt: skip
FITTED = config.FittedGenerator(
    kind="fitted", volumes=6, candidates=20, directions=3,
    phantom={
        "shape": (48, 48, 1),
        "vary": {"scanner.noise": (0.01, 0.4), "scanner.blur": (0.2, 2.0)},
    },
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One generator at one unit of privacy."""

    settings: config.Generator
    level: str
    clip: str = "clip_norm"
    fakes: int = 0
    """Public records in each sum beside those of the batch."""
    divisor: bool = True
    """Whether what is learned follows from what is released (the as-published loop: no)."""
    poison: Callable[[pytest.MonkeyPatch, float], None] = field(default=lambda patch, value: None)
    weights: tuple[str, ...] = ()
    """How names of what leaves `fit` begin."""

    @property
    def patient(self) -> bool:
        return self.level.startswith("patient")

    @property
    def everybody(self) -> bool:
        """Whether each unit is in the one sum, whatever else the schedule says."""
        return self.settings.kind == "fitted"

    def task(self, level: str | None = None, noise: str = "seeded", **settings) -> config.Task:
        return config.Task(
            settings=self.settings.model_copy(update=settings), size=16, seed=1,
            level=config.PrivacyLevel.parse(level or self.level), noise=noise,
            records=PATIENTS * PATCHES, patients=PATIENTS, per_patient=PATCHES, delta=0.01,
        )  # fmt: skip


def _first_pixel(module, name):
    """Poison the first record of every batch that `module.name` prepares."""

    def poison(patch, value):
        plain = getattr(module, name)

        def poisoned(pairs):
            unit = plain(pairs)
            unit[:1, 0, 3, 3] = value
            return unit

        patch.setattr(module, name, poisoned)

    return poison


def _one_number(patch, value):
    """Poison the statistics of the first patient who is asked."""
    plain, seen = fitted.statistics, []

    def poisoned(pairs):
        found = plain(pairs)
        if not seen:
            found[2] = value
        seen.append(1)
        return found

    patch.setattr(fitted, "statistics", poisoned)


OF_WGAN = {"poison": _first_pixel(wgan, "to_unit"), "weights": ("network.",)}
OF_DIFFUSION = {"poison": _first_pixel(diffusion, "centred"), "weights": ("network.",)}
CASES = {
    "wgan, patch": Case(WGAN, "sigma-1", fakes=8, **OF_WGAN),
    "wgan, patient": Case(WGAN, "patient-eps-5", fakes=3, **OF_WGAN),
    "wgan, as published": Case(
        WGAN.model_copy(update={"loop": "as-published"}), "sigma-1", divisor=False, **OF_WGAN
    ),
    "diffusion, patch": Case(DIFFUSION, "sigma-1", **OF_DIFFUSION),
    "diffusion, patient": Case(DIFFUSION, "patient-eps-5", **OF_DIFFUSION),
    "fitted, patient": Case(FITTED, "patient-eps-5", poison=_one_number, weights=("settings",)),
}
"""Every generator in the registry that takes a privacy level stands here, or a test fails."""


@dataclass
class Cohort:
    """Patches and whose they are."""

    pairs: np.ndarray
    owners: np.ndarray

    def without(self, patient: bool, number: int) -> Cohort:
        """The neighbour with one patient, or one patch, less."""
        gone = self.owners == np.unique(self.owners)[number] if patient else number
        return Cohort(np.delete(self.pairs, gone, 0), np.delete(self.owners, gone))

    def only(self, patient: bool, number: int) -> Cohort:
        """One patient, or one patch, alone."""
        kept = self.owners == np.unique(self.owners)[number] if patient else [number]
        return Cohort(self.pairs[kept], self.owners[kept])

    def units(self, patient: bool) -> int:
        return len(np.unique(self.owners)) if patient else len(self.pairs)


@cache
def cohort(seed=1, patients=PATIENTS, patches=PATCHES) -> Cohort:
    """Patches of phantoms, each patient's of another noise, blur and contrast."""
    random = np.random.default_rng(seed)
    look = FITTED.phantom
    phantoms = [
        look.with_values({
            "scanner.noise": random.uniform(0.02, 0.35), "scanner.blur": random.uniform(0.3, 1.8),
            "scanner.vessel": random.uniform(1.5, 4),
        })
        for _ in range(patients)
    ]  # fmt: skip
    pairs = cut_from(phantoms, patients * patches, 16, seed=seed, threads=0)
    return Cohort(pairs, np.repeat([f"sub-{n:02d}" for n in range(patients)], patches))


class Recorder(Mechanism):
    """A mechanism that keeps sums, releases, batches and coins, and can follow a script."""

    script: list[list[torch.Tensor]] | None = None

    def draw(self):
        batch = super().draw()
        chosen = self.identities[batch.indices.numpy()]
        first = [float(own.random()) for own in batch.own()]
        self.batches.append(dict(zip(chosen.tolist(), first, strict=True)))
        return batch

    def _noised(self, points, lattice):
        self.exact.append(torch.cat([lattice.values(part).flatten() for part in points]))
        self.lattices.append(lattice)
        self.parts.append([part.numel() for part in points])
        out = super()._noised(points, lattice)
        if self.script is not None:
            out = [part.clone() for part in self.script[len(self.sent)]]
        self.sent.append([part.clone() for part in out])
        return out

    def flat(self) -> list[torch.Tensor]:
        return [torch.cat([part.flatten() for part in sent]) for sent in self.sent]


@dataclass
class Run:
    """A generator after its `fit`, its recorder, and what its last checkpoint held."""

    generator: generators.Generator
    mechanism: Recorder
    state: dict[str, torch.Tensor]
    history: str


@cache
def start(settings_json: str) -> bytes:
    """The public start of `fitted` with these settings, as a file's bytes; made once a process."""
    settings = config.FittedGenerator.model_validate_json(settings_json)
    given = Case(settings, "patient-eps-5").task()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "start.safetensors"
        learned = generators.build(given).learn_start(Path(place) / "state", CPU, {})
        artifacts.save_tensors(path, learned, given.of_start())
        return path.read_bytes()


def train(
    case: Case, data: Cohort, *, script: Recorder | None = None, rate: float | None = None,
    noise: float | None = None, source: str = "seeded", **settings,
) -> Run:  # fmt: skip
    """Put `data` through the case's real `fit`; `rate` and `noise` change the charge."""
    given = case.task(noise=source, **settings)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        artifacts.save_pairs(folder / "patches.npy", data.pairs)
        table = pd.DataFrame({"participant_id": data.owners})
        artifacts.write_table(folder / "patches.tsv", table)
        path = None
        if case.settings.kind == "fitted":
            path = folder / "start.safetensors"
            path.write_bytes(start(case.settings.model_dump_json()))
        generator = generators.build(given, folder / "patches.npy", path)
        changed = {"sampling_rate": rate, "noise_multiplier": noise}
        changes = {key: value for key, value in changed.items() if value is not None}
        if changes:
            generator.__dict__["charge"] = replace(generator.charge, **changes)
        kept = []
        with recorded(script, kept):
            generator.fit(folder / "state", CPU, {})
        state, history = {}, ""
        if (checkpoint := folder / "state/checkpoint.safetensors").exists():
            state, _ = artifacts.load_tensors(checkpoint)
            history = (folder / "state/history.jsonl").read_text()
    return Run(generator, kept[0], state, history)


@contextmanager
def recorded(script: Recorder | None, kept: list[Recorder]):
    """Within, generators open a recorder where they would open a mechanism."""
    from veil.generators import private

    class Door(Recorder):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            self.script = script.sent if script else None
            self.exact, self.sent, self.lattices = [], [], []
            self.parts, self.batches = [], []
            kept.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private, "Mechanism", Door)
        yield


def moved(first: Recorder, second: Recorder) -> np.ndarray:
    """How far apart two runs' sums were before noise, in clip norms, for each release."""
    pairs = zip(first.exact, second.exact, strict=True)
    return np.array([float((a - b).norm()) for a, b in pairs]) / first.clip_norm
