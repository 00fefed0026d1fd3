"""Sampler, clip, noise and charge as one object (floor 2).

A private step is `batch = mechanism.draw()` and then `batch.release(...)`. The draw is charged
when it is made, and a batch gives out no more noisy sums than its charge says, so that a step
cannot be taken without being paid for, nor one draw be used twice for the price of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from veil.privacy import clipping
from veil.privacy.accounting import Charge
from veil.privacy.clipping import Losses
from veil.privacy.randomness import Randomness


class ChargeError(RuntimeError):
    """A use of private data that nobody has paid for, or that its budget does not allow."""


class Mechanism:
    """Poisson batches of units, and clipped, noised sums over them.

    Privacy: protects one unit under add-or-remove-one, at the cost of `plan`. It is the only
    door: whoever learns from private records must do so through `Batch`. What would void it:
    records that reach a model by another way, units that share records, or `Charge` numbers
    that follow the data.
    """

    def __init__(
        self,
        plan: Charge,
        *,
        units: int,
        present: int,
        clip_norm: float,
        sampler: Randomness,
        noise: Randomness,
    ):
        """`units` is the public number of units and `present` how many there are in truth."""
        if present > units:
            raise ValueError(f"{present} units where the public number is {units}; allowed is less")
        self.plan, self.units, self.present = plan, units, present
        self.clip_norm, self.sampler, self.noise = clip_norm, sampler, noise
        self.draws = 0

    def draw(self) -> Batch:
        """One Poisson batch: each unit is in it independently with the plan's sampling rate.

        The batch may be empty, and is used and noised like any other. ChargeError if the plan
        has no draw left.
        """
        if self.draws >= self.plan.draws:
            raise ChargeError(f"all {self.plan.draws} draws that were paid for have been made")
        self.draws += 1
        # As many coins as there may be units: the stream does not move with those who are there.
        chosen = self.sampler.uniform(self.units)[: self.present] < self.plan.sampling_rate
        return Batch(self, torch.nonzero(chosen).flatten())

    def settle(self) -> None:
        """Raise ChargeError unless exactly the draws that were charged have been made."""
        if self.draws != self.plan.draws:
            raise ChargeError(
                f"{self.draws} draws were made and {self.plan.draws} charged: the state that "
                "training went on from is not of this ledger; delete the state folder"
            )

    def release_public(
        self, module: nn.Module, losses: Losses, records: int
    ) -> tuple[list[Tensor], Tensor]:
        """Noisy sum of clipped gradients over public records, which costs nothing."""
        sums, values = clipping.clipped_sum(module, losses, records, self.clip_norm)
        return self.noised(sums), values

    def noised(self, sums: Iterable[Tensor]) -> list[Tensor]:
        """Gaussian noise of noise multiplier times clip norm on each coordinate."""
        deviation = self.plan.noise_multiplier * self.clip_norm
        return [
            total + deviation * self.noise.normal(total.numel()).view(total.shape).to(total.device)
            for total in sums
        ]

    def state(self) -> dict[str, Tensor]:
        """Draws made and both streams: what a checkpoint must hold of it."""
        return {
            "draws": torch.tensor(self.draws),
            "sampler": self.sampler.state(),
            "noise": self.noise.state(),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` stood."""
        self.draws = int(state["draws"])
        self.sampler.load_state(state["sampler"])
        self.noise.load_state(state["noise"])


class Batch:
    """One draw, and the noisy sums that its charge allows."""

    def __init__(self, mechanism: Mechanism, indices: Tensor):
        self.indices, self._mechanism = indices, mechanism
        self._left = mechanism.plan.releases_per_draw

    def __len__(self) -> int:
        return len(self.indices)

    def release(
        self, module: nn.Module, losses: Losses, records: int, rows: int = 1
    ) -> tuple[list[Tensor], Tensor]:
        """Noisy sum of clipped gradients, and the exact losses, which are private.

        As `clipping.clipped_sum`. Public records (fakes) may stand beside those of the batch:
        they add the same to the sum of every neighbouring data set.
        """
        self._pay()
        sums, values = clipping.clipped_sum(
            module, losses, records, self._mechanism.clip_norm, rows=rows
        )
        return self._mechanism.noised(sums), values

    def release_groups(
        self, module: nn.Module, groups: Iterable[Iterable[Callable[[], Tensor]]]
    ) -> tuple[list[Tensor], Tensor]:
        """The same with a patient as the unit, as `clipping.clipped_sum_of_groups`."""
        self._pay()
        sums, values = clipping.clipped_sum_of_groups(module, groups, self._mechanism.clip_norm)
        return self._mechanism.noised(sums), values

    def release_vectors(self, vectors: Tensor) -> Tensor:
        """Noisy sum of one clipped vector a unit (units, n), as `clipping.clipped_vectors`."""
        self._pay()
        total = clipping.clipped_vectors(vectors, self._mechanism.clip_norm)
        return self._mechanism.noised([total])[0]

    def _pay(self) -> None:
        if not self._left:
            allowed = self._mechanism.plan.releases_per_draw
            raise ChargeError(f"a batch that was paid for {allowed} release(s) was used once more")
        self._left -= 1


class Unprotected:
    """The same interface with no protection at all, for the privacy level `none`."""

    def __init__(self, *, units: int, rate: float, sampler: Randomness):
        self.units, self.rate, self.sampler = units, rate, sampler

    def draw(self) -> UnprotectedBatch:
        """One Poisson batch."""
        chosen = self.sampler.uniform(self.units) < self.rate
        return UnprotectedBatch(torch.nonzero(chosen).flatten())

    def settle(self) -> None:
        """Nothing was charged."""

    def release_public(
        self, module: nn.Module, losses: Losses, records: int
    ) -> tuple[list[Tensor], Tensor]:
        """Plain sum of gradients."""
        return UnprotectedBatch(torch.empty(0)).release(module, losses, records)

    def state(self) -> dict[str, Tensor]:
        """The stream's place."""
        return {"sampler": self.sampler.state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` stood."""
        self.sampler.load_state(state["sampler"])


class UnprotectedBatch:
    """One draw without protection."""

    def __init__(self, indices: Tensor):
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def release(
        self, module: nn.Module, losses: Losses, records: int, rows: int = 1
    ) -> tuple[list[Tensor], Tensor]:
        """Plain sum of gradients over the records, and their losses."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not records:
            return [torch.zeros_like(p) for p in parameters], torch.empty(0)
        values = losses(slice(0, records))
        return list(torch.autograd.grad(values.sum(), parameters)), values.detach()

    def release_vectors(self, vectors: Tensor) -> Tensor:
        """Plain sum of vectors (units, n)."""
        return vectors.sum(0)
