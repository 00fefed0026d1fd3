"""`diffusion`: a denoiser over image-label pairs, taught by phantoms first (floor 4).

Two stages. Public phantoms teach what costs nothing, once for all privacy levels;
private patches then correct it by DP-SGD: each record is shown at several noise levels and flips,
whose gradients are averaged before they are clipped as one ("noise multiplicity", Dockhorn et al.
2023, DPDM; Ghalebikesabi et al. 2023), and the average of the weights over the steps is kept.
Denoiser, noise schedule and sampler are those of diffusers; what is predicted is the velocity of
Salimans and Ho 2022.

Privacy: private patches are seen by the second stage's noisy gradients alone. Phantoms, the average
of the weights and sampling are pre- and post-processing. What would void it: a `public` setting
that was fitted to the private patients.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from veil import config, training
from veil.generators.private import PrivateGenerator, some_of
from veil.patches import from_unit
from veil.privacy.audit import Canaries, Probe, Watched
from veil.privacy.mechanism import Batch, Door
from veil.privacy.randomness import Coins
from veil.provenance import derive_seed

TIMES = 1000  # of the noise schedule
SCHEDULE = {
    "num_train_timesteps": TIMES,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}
ROWS_AT_ONCE = 256  # while sampling
LOOKED_AT = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # shares of the schedule, to recognise pairs


class Diffusion(PrivateGenerator):
    """The average of a denoiser's weights, and how to sample from it."""

    access = "training of the denoiser"

    def __init__(self, task: config.Task, patches: Path | None = None, start: Path | None = None):
        super().__init__(task, patches, start)
        assert isinstance(task.settings, config.DiffusionGenerator)
        self.settings = task.settings

    @cached_property
    def network(self) -> nn.Module:
        """The denoiser, freshly initialised."""
        network = Denoiser(self.settings, self.task.size)
        initialise(network, torch.Generator().manual_seed(self.task.seed))
        return network

    @property
    def batch(self) -> int:
        patient = self.task.level.unit == "patient"
        return self.settings.patient_batch_size if patient else self.settings.batch_size

    @property
    def steps_wanted(self) -> int:
        return self.settings.steps

    @property
    def clip_norm(self) -> float:
        return self.settings.clip_norm

    def fit(self, state: Path, device: torch.device, identity: Mapping[str, Any]) -> None:
        pairs, owners, mechanism = self.private()
        if self.settings.public:
            training.unpack(self.given_start(), network=self.network)
        lesson = PrivateLesson(
            self.network.to(device),
            Denoising(self.settings),
            settings=self.settings,
            tuned=tuned(self.network, self.settings.tuned),
            mechanism=mechanism,
            pairs=pairs,
            owners=owners,
            device=device,
        )
        training.Loop(steps=self.steps, folder=state, identity=identity, name="diffusion").run(
            lesson
        )
        mechanism.settle()
        self.network.load_state_dict(lesson.average.state_dict())

    def learn_start(
        self, state: Path, device: torch.device, identity: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        assert self.settings.public is not None
        lesson = PublicLesson(
            self.network.to(device),
            Denoising(self.settings),
            settings=self.settings,
            pairs=self.public_pairs(self.settings.public, self.settings.public_pairs),
            seed=self.task.seed,
            device=device,
        )
        steps = self.settings.public_steps
        training.Loop(steps=steps, folder=state, identity=identity, name="phantoms").run(lesson)
        return training.pack(network=lesson.average)

    def rehearse(self, canaries: Canaries) -> Watched:
        watched, owners = self.watched(canaries)
        probe = Probe(canaries.edge, self.clip_norm)
        lesson = PrivateLesson(
            probe,
            Shown(),
            settings=self.settings,
            tuned=list(probe.parameters()),
            mechanism=watched,
            pairs=canaries,
            owners=owners,
            device=torch.device("cpu"),
        )
        for _ in range(self.steps):
            lesson.step()
        return watched

    def work(self) -> float:
        """Forwards and backwards of the denoiser."""
        records = self.batch
        if self.task.level.unit == "patient":
            records *= self.settings.patient_patches
        return self.steps * records * self.settings.multiplicity * self._work_of_a_row

    def public_work(self) -> float:
        rows = self.settings.public_steps * self.settings.public_batch_size
        return rows * self._work_of_a_row

    def speed(self) -> float:
        rows = torch.zeros(32, 2, self.task.size, self.task.size)
        times = torch.zeros(32, dtype=torch.long)
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            self.network(rows, times).sum().backward()
        return 32 * self._work_of_a_row / (time.perf_counter() - start)

    @cached_property
    def _work_of_a_row(self) -> float:
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            row = torch.zeros(1, 2, self.task.size, self.task.size)
            time = torch.zeros(1, dtype=torch.long)
            Denoiser(self.settings, self.task.size)(row, time).sum().backward()
        return float(counter.get_total_flops())

    def weights(self) -> dict[str, Tensor]:
        return training.pack(network=self.network)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        training.unpack(weights, network=self.network)

    @torch.no_grad()
    def sample(self, pairs: int, seed: int, device: torch.device, threads: int) -> np.ndarray:
        from diffusers import DPMSolverMultistepScheduler

        random = torch.Generator().manual_seed(seed)
        network = self.network.to(device).eval()
        shape = (2, self.task.size, self.task.size)
        parts = []
        for start in range(0, pairs, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, pairs - start)
            rows = torch.randn(count, *shape, generator=random).to(device)
            solver = DPMSolverMultistepScheduler(**SCHEDULE)
            solver.set_timesteps(self.settings.sampling_steps)
            for moment in solver.timesteps:
                times = moment.to(device).expand(count)
                rows = solver.step(network(rows, times), moment, rows).prev_sample
            parts.append(from_unit(rows.float().cpu().numpy(), label_threshold=0.0))
        return np.concatenate(parts)

    @torch.no_grad()
    def recognise(self, pairs: np.ndarray, seed: int, device: torch.device) -> np.ndarray:
        """Minus the velocity's error over a few moments, against that of the public start."""
        known = -self._misfit(self.network, pairs, seed, device)
        if self.settings.public:
            start = copy.deepcopy(self.network)
            training.unpack(self.given_start(), network=start)
            known += self._misfit(start, pairs, seed, device)
        return known

    def _misfit(
        self, network: nn.Module, pairs: np.ndarray, seed: int, device: torch.device
    ) -> np.ndarray:
        """Mean squared error (n,) of the velocity, every pair under the same noise."""
        scheduler = Denoising(self.settings).scheduler
        random = torch.Generator().manual_seed(seed)
        network = network.to(device).eval()
        total = np.zeros(len(pairs))
        for share in LOOKED_AT:
            noise = torch.randn(1, *pairs.shape[1:], generator=random)
            for at in range(0, len(pairs), ROWS_AT_ONCE):
                clean = centred(pairs[at : at + ROWS_AT_ONCE])
                times = torch.full((len(clean),), round(share * TIMES))
                noises = noise.expand_as(clean)
                noisy = scheduler.add_noise(clean, noises, times).to(device)
                aim = scheduler.get_velocity(clean, noises, times).to(device)
                error = (network(noisy, times.to(device)) - aim).square().mean((1, 2, 3))
                total[at : at + len(clean)] += error.double().cpu().numpy()
        return total / len(LOOKED_AT)


class Denoiser(nn.Module):
    """Noisy pairs (B, 2, size, size) and times (B,) to velocities of the same shape."""

    def __init__(self, settings: config.DiffusionGenerator, size: int):
        from diffusers import UNet2DModel

        super().__init__()
        levels = len(settings.channels)
        self.inner = UNet2DModel(
            sample_size=size, in_channels=2, out_channels=2,
            block_out_channels=settings.channels, layers_per_block=1, norm_num_groups=4,
            attention_head_dim=8, dropout=0.0,
            down_block_types=("DownBlock2D",) * levels, up_block_types=("UpBlock2D",) * levels,
        )  # fmt: skip

    def forward(self, rows: Tensor, times: Tensor) -> Tensor:
        velocity: Tensor = self.inner(rows, times, return_dict=False)[0]
        return velocity


def initialise(network: nn.Module, random: torch.Generator) -> None:
    """Weights and biases uniform in +-1 / sqrt(inputs), as torch has it, from `random` alone."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in layer.parameters(recurse=False):
                nn.init.uniform_(parameter, -bound, bound, generator=random)


def tuned(network: nn.Module, which: str) -> list[nn.Parameter]:
    """What the private stage moves: `all`, the `norms` alone, or norms and the `late` decoder."""
    late = (".up_blocks.", ".conv_out.", ".conv_norm_out.")
    return [
        parameter
        for name, parameter in network.named_parameters()
        if which == "all" or "norm" in name or (which == "late" and any(s in name for s in late))
    ]


# ------------------------------------------------------------------ what a record teaches


class Objective(Protocol):
    """How records become rows of a network's input, and what each row's loss is."""

    def rows(
        self, pairs: np.ndarray, copies: int, times: config.Range, coins: Coins
    ) -> tuple[Tensor, ...]:
        """Each record's rows one after another, as tensors of one length.

        `times` are the ends of the noise schedule to draw from, as shares of it; `coins` are the
        records' own.
        """

    def losses(self, network: nn.Module, *rows: Tensor) -> Tensor:
        """One loss a row."""


class Denoising:
    """Predict the velocity of a noised and flipped pair: mean squared error (Salimans and Ho)."""

    def __init__(self, settings: config.DiffusionGenerator):
        from diffusers import DDPMScheduler

        self.scheduler, self.flips = DDPMScheduler(**SCHEDULE), settings.flips

    def rows(
        self, pairs: np.ndarray, copies: int, times: config.Range, coins: Coins
    ) -> tuple[Tensor, ...]:
        clean = centred(pairs).repeat_interleave(copies, 0)
        if self.flips:
            turned = coins.uniform(copies, 2).flatten(0, 1) < 0.5
            for axis in (0, 1):
                clean = torch.where(turned[:, axis, None, None, None], clean.flip(axis + 2), clean)
        first, last = (round(end * TIMES) for end in times)
        moments = coins.integers(first, last, copies).flatten()
        noise = coins.normal(copies, *pairs.shape[1:]).flatten(0, 1)
        noisy = self.scheduler.add_noise(clean, noise, moments)
        return noisy, moments, self.scheduler.get_velocity(clean, noise, moments)

    def losses(self, network: nn.Module, *rows: Tensor) -> Tensor:
        noisy, times, velocity = rows
        return (network(noisy, times) - velocity).square().mean((1, 2, 3))


class Shown:
    """For the audit: a canary's rows as they are, and the probe's answer."""

    def rows(
        self, pairs: np.ndarray, copies: int, times: config.Range, coins: Coins
    ) -> tuple[Tensor, ...]:
        return (torch.from_numpy(pairs.astype(np.float32)).repeat_interleave(copies, 0),)

    def losses(self, network: nn.Module, *rows: Tensor) -> Tensor:
        answer: Tensor = -network(rows[0]).flatten(1).mean(1)
        return answer


def centred(pairs: np.ndarray) -> Tensor:
    """uint8 pairs (B, 2, H, W) as float32, image and label both in [-1, 1]."""
    unit = torch.from_numpy(pairs.astype(np.float32))
    return unit / torch.tensor([127.5, 0.5]).view(2, 1, 1) - 1


class Lesson(ABC):
    """Steps of a denoiser, with the running average of its weights."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        *,
        settings: config.DiffusionGenerator,
        optimiser: torch.optim.Optimizer,
        device: torch.device,
        before: int = 0,
    ):
        """`before` counts steps that the network has behind it: its average is that much slower."""
        self.network, self.objective, self.settings = network, objective, settings
        self.optimiser, self.device, self.before, self.taken = optimiser, device, before, 0
        self.average = copy.deepcopy(network)

    @abstractmethod
    def learn(self) -> float:
        """Move the network by one step and return its loss."""

    def step(self) -> dict[str, float]:
        loss = self.learn()
        self.taken += 1
        done = self.before + self.taken
        decay = min(self.settings.average, (1 + done) / (10 + done))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.network.parameters()), 1 - decay
            )
        return {"loss": loss}

    def rows(
        self, pairs: np.ndarray, copies: int, times: config.Range, coins: Coins
    ) -> tuple[Tensor, ...]:
        """The objective's rows on the device."""
        rows = self.objective.rows(pairs, copies, times, coins)
        return tuple(tensor.to(self.device) for tensor in rows)

    def state(self) -> dict[str, Tensor]:
        return training.pack(**self.parts()) | {"taken": torch.tensor(self.taken)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        training.unpack(state, **self.parts())
        self.taken = int(state["taken"])

    def parts(self) -> dict[str, Any]:
        """What the next step depends on."""
        names = ("network", "average", "optimiser")
        return {name: getattr(self, name) for name in names}


class PublicLesson(Lesson):
    """Plain steps on phantoms."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        *,
        settings: config.DiffusionGenerator,
        pairs: np.ndarray,
        seed: int,
        device: torch.device,
    ):
        super().__init__(
            network, objective, settings=settings, device=device,
            optimiser=torch.optim.Adam(network.parameters(), settings.public_rate),
        )  # fmt: skip
        self.pairs, self.seed = pairs, derive_seed(seed, "public rows")

    def learn(self) -> float:
        size, random = (
            self.settings.public_batch_size,
            np.random.default_rng([self.seed, self.taken]),
        )
        chosen = random.integers(len(self.pairs), size=size)
        rows = self.rows(self.pairs[chosen], 1, (0.0, 1.0), Coins([(random, size)]))
        loss = self.objective.losses(self.network, *rows).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


class PrivateLesson(Lesson):
    """Noisy releases over fresh Poisson batches, divided by their public expected size."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        *,
        settings: config.DiffusionGenerator,
        tuned: list[nn.Parameter],
        mechanism: Door,
        pairs: np.ndarray | Canaries,
        owners: list[np.ndarray] | None,
        device: torch.device,
    ):
        """`tuned` are the parameters that move, `owners` each patient's rows of `pairs` if the
        unit is a patient."""
        super().__init__(
            network, objective, settings=settings, device=device,
            optimiser=torch.optim.Adam(tuned, settings.learning_rate),
            before=settings.public_steps if settings.public else 0,
        )  # fmt: skip
        self.mechanism, self.pairs, self.owners, self.tuned = mechanism, pairs, owners, tuned
        network.requires_grad_(False)
        for parameter in tuned:
            parameter.requires_grad_(True)

    def learn(self) -> float:
        batch = self.mechanism.draw()
        if self.owners is None:
            divisor, copies = self.settings.batch_size, self.settings.multiplicity
            coins = Coins([(own, 1) for own in batch.own()])
            records = self.pairs[batch.indices.numpy()]
            rows = self.rows(records, copies, self.settings.timesteps, coins)
            total, losses = batch.release(
                self.network, self._losses_of(rows), len(batch), rows=copies
            )
        else:
            assert isinstance(batch, Batch), "patients are a unit of private training only"
            divisor = self.settings.patient_batch_size
            total, losses = batch.release_groups(self.network, self._groups(batch))
        for parameter, gradient in zip(self.tuned, total, strict=True):
            parameter.grad = gradient / divisor
        self.optimiser.step()
        return float(losses.sum()) / divisor

    def _losses_of(self, rows: tuple[Tensor, ...]) -> Callable[[slice], Tensor]:
        """Of the records in a slice, each the mean over its rows."""
        copies = self.settings.multiplicity

        def losses(part: slice) -> Tensor:
            mine = slice(part.start * copies, part.stop * copies)
            found = self.objective.losses(self.network, *(tensor[mine] for tensor in rows))
            return found.view(-1, copies).mean(1)

        return losses

    def _groups(self, batch: Batch) -> Iterator[list[Callable[[], Tensor]]]:
        """The mean loss of some patches of each drawn patient."""
        assert self.owners is not None
        settings = self.settings
        for patient, own in zip(batch.indices.tolist(), batch.own(), strict=True):
            chosen = some_of(self.owners[patient], settings.patient_patches, own)
            coins = Coins([(own, len(chosen))])
            rows = self.rows(self.pairs[chosen], settings.multiplicity, settings.timesteps, coins)
            yield [partial(self._mean_loss, rows)]

    def _mean_loss(self, rows: tuple[Tensor, ...]) -> Tensor:
        return self.objective.losses(self.network, *rows).mean()

    def parts(self) -> dict[str, Any]:
        return {**super().parts(), "mechanism": self.mechanism}
