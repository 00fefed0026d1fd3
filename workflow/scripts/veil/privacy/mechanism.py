"""Sampler, clip, noise and charge as one object (floor 2).

A private step is `batch = mechanism.draw()` and then `batch.release(...)`. The draw is charged
when it is made, and a batch gives out no more noisy sums than its charge says, so that a step
cannot be taken without being paid for, nor one draw be used twice for the price of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from veil.privacy import clipping
from veil.privacy.accounting import Charge
from veil.privacy.clipping import Losses
from veil.privacy.noise import Lattice, add_noise
from veil.privacy.randomness import Randomness

SLACK = 2.0**-7
"""Part of the clip norm that is charged but not used: it takes up the rounding to the lattice (at
most 2^-9) and the errors of float32 in norms and sums, which the tests hold against float64."""


class ChargeError(RuntimeError):
    """A use of private data that nobody has paid for, or that its budget does not allow."""


class AnyBatch(Protocol):
    """One draw of units, and what may be learned from them."""

    indices: Tensor
    """Places of the units that were drawn."""

    def __len__(self) -> int:
        """How many."""

    def own(self) -> list[np.random.Generator]:
        """A stream of random numbers for each unit, which is its own: noise levels, flips, which
        of a patient's patches. It follows from key, step and identity, whoever else is there."""

    def release(
        self, module: nn.Module, losses: Losses, records: int, rows: int = 1
    ) -> tuple[list[Tensor], Tensor]:
        """A sum of gradients, and the exact losses, which are private; as
        `clipping.clipped_sum`. Public records (fakes) may stand beside those of the batch: they
        add the same to the sum of every neighbouring data set."""

    def release_fakes(
        self, module: nn.Module, losses: Losses, records: int
    ) -> tuple[list[Tensor], Tensor]:
        """The same over fakes alone whose number is that of the batch, and so is private."""

    def release_vectors(self, vectors: Tensor) -> Tensor:
        """Sum of one vector a unit (units, n), float64 (n,)."""


class Door(Protocol):
    """The one way to private units, with protection (`Mechanism`) or without."""

    def draw(self) -> AnyBatch:
        """One Poisson batch: each unit is in it independently, at a public rate."""

    def settle(self) -> None:
        """Raise ChargeError unless exactly the draws that were charged have been made."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of it."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` stood."""


class Mechanism:
    """Poisson batches of units, and clipped, noised sums over them.

    Privacy: protects one unit under add-or-remove-one, at the cost of `charge`. It is the only
    door: whoever learns from private records must do so through `Batch`. Contributions are clipped
    to the clip norm less `SLACK`, sums are rounded to a public lattice and meet their noise there,
    as integers (`noise`). What would void it: records that reach a model by another way, units
    that share records, a record whose gradient depends on another's, or `Charge` numbers that
    follow the data.
    """

    def __init__(
        self,
        charge: Charge,
        *,
        units: int,
        present: int,
        clip_norm: float,
        sampler: Randomness,
        noise: Randomness,
        identities: np.ndarray | None = None,
    ):
        """`units` is the public number of units and `present` how many there are in truth, with
        their `identities`, uint64 (present,), of which their coins are made. Only where all units
        are in every batch, and need no coins, may they have none."""
        if present > units:
            raise ValueError(f"{present} units where the public number is {units}; allowed is less")
        if identities is None and charge.sampling_rate < 1:
            raise ValueError("identities: none at a sampling rate below 1; allowed is one a unit")
        if identities is not None and len(identities) != present:
            raise ValueError(f"{len(identities)} identities of {present} units; allowed: one each")
        self.charge, self.units, self.present = charge, units, present
        self.clip_norm, self.sampler, self.noise = clip_norm, sampler, noise
        self.identities = identities
        self.draws = self.releases = 0

    @property
    def bound(self) -> float:
        """What contributions are clipped to."""
        return self.clip_norm / (1 + SLACK)

    def draw(self) -> Batch:
        """One Poisson batch: each unit is in it independently with the charge's sampling rate.

        The batch may be empty, and is used and noised like any other. ChargeError if the charge
        has no draw left.
        """
        if self.draws >= self.charge.draws:
            raise ChargeError(f"all {self.charge.draws} draws that were paid for have been made")
        self.draws += 1
        if self.identities is None:
            return Batch(self, torch.arange(self.present))
        coins = self.sampler.uniform(self.draws, self.identities)
        return Batch(self, torch.from_numpy(np.flatnonzero(coins < self.charge.sampling_rate)))

    def settle(self) -> None:
        """Raise ChargeError unless exactly the draws that were charged have been made."""
        if self.draws != self.charge.draws:
            raise ChargeError(
                f"{self.draws} draws were made and {self.charge.draws} charged: the state that "
                "training went on from is not of this ledger; delete the state folder"
            )

    def state(self) -> dict[str, Tensor]:
        """Draws and releases made, and both keys."""
        return {
            "draws": torch.tensor(self.draws),
            "releases": torch.tensor(self.releases),
            "sampler": self.sampler.state(),
            "noise": self.noise.state(),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` stood."""
        self.draws, self.releases = int(state["draws"]), int(state["releases"])
        self.sampler.load_state(state["sampler"])
        self.noise.load_state(state["noise"])

    def _noised(self, points: list[Tensor], lattice: Lattice) -> list[Tensor]:
        """Points of a lattice (int64) with Gaussian noise of noise multiplier times clip norm on
        each coordinate, as float64; every coordinate of a release has its own."""
        deviation = lattice.deviation(self.charge.noise_multiplier * self.clip_norm)
        together = torch.cat([part.flatten() for part in points])
        add_noise(together, self.noise, deviation, self.releases)
        self.releases += 1
        sent = together.split([part.numel() for part in points])
        return [lattice.values(p).view(q.shape) for p, q in zip(sent, points, strict=True)]


class Batch:
    """One draw, and the noisy sums that its charge allows."""

    def __init__(self, mechanism: Mechanism, indices: Tensor):
        self.indices, self._mechanism = indices, mechanism
        self._left, self._step = mechanism.charge.releases_per_draw, mechanism.draws

    def __len__(self) -> int:
        return len(self.indices)

    def own(self) -> list[np.random.Generator]:
        """A stream for each unit, of its own; as `AnyBatch.own`."""
        identities = self._mechanism.identities
        assert identities is not None, "units without identities have no coins"
        return self._mechanism.sampler.own(self._step, identities[self.indices.numpy()])

    def release(
        self, module: nn.Module, losses: Losses, records: int, rows: int = 1
    ) -> tuple[list[Tensor], Tensor]:
        """Noisy sum of clipped gradients, and the exact losses, which are private.

        As `clipping.clipped_sum`. Public records (fakes) may stand beside those of the batch:
        they add the same to the sum of every neighbouring data set.
        """
        self._pay()
        bound = self._mechanism.bound
        sums, values = clipping.clipped_sum(module, losses, records, bound, rows=rows)
        return self._leave(sums), values

    def release_fakes(
        self, module: nn.Module, losses: Losses, records: int
    ) -> tuple[list[Tensor], Tensor]:
        """The same over as many fakes as the batch has records: their number is private, and the
        sum moves by a clip norm as well, so that it costs as much."""
        self._pay()
        sums, values = clipping.clipped_sum(module, losses, records, self._mechanism.bound)
        return self._leave(sums), values

    def release_groups(
        self, module: nn.Module, groups: Iterable[Iterable[Callable[[], Tensor]]]
    ) -> tuple[list[Tensor], Tensor]:
        """The same with a patient as the unit, as `clipping.clipped_sum_of_groups`."""
        self._pay()
        sums, values = clipping.clipped_sum_of_groups(module, groups, self._mechanism.bound)
        return self._leave(sums), values

    def release_vectors(self, vectors: Tensor) -> Tensor:
        """Noisy sum of one clipped vector a unit (units, n), float64 (n,).

        Each is rounded by itself, towards zero, so that the sum is exact in any order.
        """
        self._pay()
        lattice = Lattice.of(self._mechanism.clip_norm, vectors.shape[1])
        clipped = clipping.clipped_vectors(vectors, self._mechanism.bound)
        points = lattice.towards_zero(clipped).sum(0)
        return self._mechanism._noised([points], lattice)[0]

    def _leave(self, sums: list[Tensor]) -> list[Tensor]:
        """Sums of a network's gradients, rounded to the lattice and noised there."""
        lattice = Lattice.of(self._mechanism.clip_norm, sum(total.numel() for total in sums))
        sent = self._mechanism._noised([lattice.nearest(total) for total in sums], lattice)
        return [part.to(total.dtype) for part, total in zip(sent, sums, strict=True)]

    def _pay(self) -> None:
        if not self._left:
            allowed = self._mechanism.charge.releases_per_draw
            raise ChargeError(f"a batch that was paid for {allowed} release(s) was used once more")
        self._left -= 1


class Unprotected:
    """The same interface with no protection at all, for the privacy level `none`."""

    def __init__(self, *, rate: float, sampler: Randomness, identities: np.ndarray):
        self.rate, self.sampler, self.identities = rate, sampler, identities
        self.draws = 0

    def draw(self) -> UnprotectedBatch:
        """One Poisson batch."""
        self.draws += 1
        chosen = np.flatnonzero(self.sampler.uniform(self.draws, self.identities) < self.rate)
        own = self.sampler.own(self.draws, self.identities[chosen])
        return UnprotectedBatch(torch.from_numpy(chosen), own)

    def settle(self) -> None:
        """Nothing was charged."""

    def state(self) -> dict[str, Tensor]:
        """Draws made, and the key."""
        return {"draws": torch.tensor(self.draws), "sampler": self.sampler.state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` stood."""
        self.draws = int(state["draws"])
        self.sampler.load_state(state["sampler"])


class UnprotectedBatch:
    """One draw without protection."""

    def __init__(self, indices: Tensor, own: list[np.random.Generator]):
        self.indices, self._own = indices, own

    def __len__(self) -> int:
        return len(self.indices)

    def own(self) -> list[np.random.Generator]:
        """A stream for each unit, of its own."""
        return self._own

    def release(
        self, module: nn.Module, losses: Losses, records: int, rows: int = 1
    ) -> tuple[list[Tensor], Tensor]:
        """Plain sum of gradients over the records, and their losses."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not records:
            return [torch.zeros_like(p) for p in parameters], torch.empty(0)
        values = losses(slice(0, records))
        return list(torch.autograd.grad(values.sum(), parameters)), values.detach()

    def release_fakes(
        self, module: nn.Module, losses: Losses, records: int
    ) -> tuple[list[Tensor], Tensor]:
        """The same over fakes alone."""
        return self.release(module, losses, records)

    def release_vectors(self, vectors: Tensor) -> Tensor:
        """Plain sum of vectors (units, n)."""
        return vectors.double().sum(0)
