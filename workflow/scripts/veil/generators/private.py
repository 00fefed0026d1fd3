"""What every generator that takes a privacy level shares (floor 4): its plan, ledger and door.

A generator says how many units it expects in a batch and how many steps it wants; noise
multiplier, charge, budget, statement and mechanism follow, in one way for all.

Privacy: private data is reached through `mechanism` alone, which makes exactly the draws that the
ledger charges. What would void it: a batch size, a number of steps or a divisor that follows the
data.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from veil import artifacts, config, training
from veil.generators.base import Generator
from veil.generators.phantom import cut_from
from veil.privacy import accounting, randomness
from veil.privacy.audit import Canaries, Watched
from veil.privacy.ledger import Event, Ledger, without_privacy
from veil.privacy.mechanism import Door, Mechanism, Unprotected
from veil.provenance import derive_seed


class PrivateGenerator(Generator):
    """A generator that learns from private patches, at any privacy level or at none."""

    access = "training"
    secret: bytes | None = None
    """Of which a secure run's coins and noise are made; by default one that nobody keeps."""
    loop = "valid"
    draws_a_step = 1
    releases_a_draw = 1

    @property
    @abstractmethod
    def batch(self) -> int:
        """Expected units in a batch, and the public divisor."""

    @property
    @abstractmethod
    def steps_wanted(self) -> int:
        """Steps on private data in a whole run."""

    @property
    @abstractmethod
    def clip_norm(self) -> float:
        """Bound on what one unit adds to a sum."""

    @abstractmethod
    def work(self) -> float:
        """Floating-point operations of `fit`, expected."""

    def public_work(self) -> float:
        """Floating-point operations of `learn_start`, expected."""
        return 0.0

    @abstractmethod
    def speed(self) -> float:
        """Floating-point operations a second of such training here, from a timed step."""

    def published_epsilon(self) -> float | None:
        """What others would print of this loop, where that is not a bound."""
        return None

    def spent(self) -> dict[str, Any]:
        if self.task.level.kind == "none":
            return without_privacy()
        return self.ledger.statement(self.loop, self.published_epsilon())

    @property
    def ledger(self) -> Ledger:
        """Every private access of the run."""
        return self._ledger(self.charge)

    def epsilons_after(self, steps: int) -> tuple[float, float]:
        """(patch epsilon, patient epsilon) of the first `steps` steps on private data."""
        if self.task.level.kind == "none" or not steps:
            loss = math.inf if steps else 0.0
            return loss, loss
        return self._ledger(replace(self.charge, draws=steps * self.draws_a_step)).epsilons()

    def _ledger(self, charge: accounting.Charge) -> Ledger:
        task = self.task
        event = Event(
            access=self.access,
            charge=charge,
            clip_norm=self.clip_norm,
            planned_draws=self.planned.draws,
        )
        return Ledger(
            unit=task.level.unit,
            delta=task.delta,
            records_per_patient=task.per_patient,
            units=self.units,
            patients=task.patients,
            noise_source=task.noise,
            events=(event,),
        )

    @cached_property
    def planned(self) -> accounting.Charge:
        """What the whole run would cost; eps-X levels get their noise multiplier here."""
        level, draws = self.task.level, self.steps_wanted * self.draws_a_step
        noise = level.value
        if level.kind != "sigma":
            noise = accounting.calibrate(
                level.value, self.task.delta, self.rate, draws, self.releases_a_draw
            )
        return accounting.Charge(
            sampling_rate=self.rate, noise_multiplier=noise, draws=draws,
            releases_per_draw=self.releases_a_draw,
        )  # fmt: skip

    @cached_property
    def charge(self) -> accounting.Charge:
        """What the run costs: the plan, halted before the step that would pass the budget."""
        if self.task.budget is None:
            return self.planned
        draws = accounting.draws_within(self.task.budget, self.task.delta, self.planned)
        return replace(self.planned, draws=draws - draws % self.draws_a_step)

    @property
    def steps(self) -> int:
        """Steps on private data that the budget allows."""
        if self.task.level.kind == "none":
            return self.steps_wanted
        return self.charge.draws // self.draws_a_step

    @property
    def units(self) -> int:
        """Public number of units: patches, or patients."""
        return self.task.patients if self.task.level.unit == "patient" else self.task.records

    @property
    def rate(self) -> float:
        """Each unit's chance to be in a batch."""
        return min(self.batch / self.units, 1.0)

    def private(self) -> tuple[np.ndarray, list[np.ndarray] | None, Door]:
        """The patches, each patient's rows if the unit is a patient, and the door to them."""
        assert self.patches is not None, "training needs the private patches"
        pairs = artifacts.open_pairs(self.patches)
        owners = self.rows_of_patients() if self.task.level.unit == "patient" else None
        return pairs, owners, self.mechanism(identities_of(pairs, owners))

    def given_start(self) -> dict[str, Tensor]:
        """What `learn_start` gave; ArtifactError if it is of other settings."""
        assert self.start is not None, "training goes on from a public start, which was not given"
        tensors, meta = artifacts.load_tensors(self.start)
        if differing := training.differences(meta, self.task.of_start()):
            raise artifacts.ArtifactError(
                f"{self.start}: a public start of other settings: {differing}. Allowed is one of "
                "these settings: delete it to have it made anew"
            )
        return tensors

    def public_pairs(self, public: config.PhantomGenerator, count: int) -> np.ndarray:
        """Pairs of phantoms to learn from, uint8 (count, 2, size, size)."""
        seed = derive_seed(self.task.seed, "phantoms")
        return cut_from([public.phantom] * public.volumes, count, self.task.size, seed, threads=1)

    def rows_of_patients(self) -> list[np.ndarray]:
        """For each patient the rows of the patches that are theirs."""
        assert self.patches is not None
        table = artifacts.read_table(self.patches.with_suffix(".tsv"))
        return list(table.groupby("participant_id", sort=False).indices.values())

    def mechanism(self, identities: np.ndarray) -> Door:
        """The door to the private units of these identities."""
        seeds = {name: derive_seed(self.task.seed, name) for name in ("batches", "noise")}
        if self.task.level.kind == "none":
            sampler = randomness.Seeded(seeds["batches"])
            return Unprotected(rate=self.rate, sampler=sampler, identities=identities)
        return Mechanism(
            self.charge,
            units=self.units,
            present=len(identities),
            identities=identities,
            clip_norm=self.clip_norm,
            sampler=randomness.source(self.task.noise, seeds["batches"], self.secret, "batches"),
            noise=randomness.source(self.task.noise, seeds["noise"], self.secret, "noise"),
        )

    def watched(
        self, canaries: Canaries, shown_a_draw: int = 1
    ) -> tuple[Watched, list[np.ndarray] | None]:
        """A mechanism that an attacker watches, and each canary's rows if the unit is a patient."""
        seed = derive_seed(self.task.seed, "rehearsal")
        mechanism = Watched(
            self.charge,
            canaries,
            clip_norm=self.clip_norm,
            sampler=randomness.source(self.task.noise, derive_seed(seed, "batches")),
            noise=randomness.source(self.task.noise, derive_seed(seed, "noise")),
            shown_a_draw=shown_a_draw,
        )
        alone = [np.array([row]) for row in range(len(canaries))]
        return mechanism, alone if self.task.level.unit == "patient" else None


def identities_of(pairs: np.ndarray, owners: Sequence[np.ndarray] | None) -> np.ndarray:
    """A name of each patch, or of each patient if `owners` has their rows, from what it holds.

    uint64 (units,). A patient's name follows from the set of the patches, in whatever order.
    """
    patches = [hashlib.blake2b(pair.tobytes(), digest_size=16).digest() for pair in pairs]
    if owners is None:
        return randomness.identities(patches)
    return randomness.identities([b"".join(sorted(patches[n] for n in rows)) for rows in owners])


def some_of(rows: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """At most `count` of a patient's rows, at random, without repeats."""
    chosen: np.ndarray = random.permutation(rows)[:count]
    return chosen
