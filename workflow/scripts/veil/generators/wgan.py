"""`wgan`: the Wasserstein GAN of Kossen et al. 2022 over image-label pairs (floor 4).

Three ways to update the critic. `valid` draws a fresh Poisson batch of patches for every update
and makes one noisy release of it; fakes come in a fixed public number and cost nothing; the
divisor is public. With a patient as the unit the batch is of patients instead, each giving a
fixed number of patches and one clipped gradient. `as-published` uses one batch for all critic
updates of a generator update, with two noisy steps each, a fake batch as large as the private
one, and divides by the realised size.

Privacy: the critic's noisy gradients are the only door to private data. The generator sees
the critic alone, which is post-processing. Critic, optimiser state and history are not
released: only the generator's weights go into `weights`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from veil import config, training
from veil.generators.private import PrivateGenerator, some_of
from veil.patches import from_unit, to_unit
from veil.privacy import accounting, randomness
from veil.privacy.audit import Canaries, Probe, Silence, Watched
from veil.privacy.clipping import Losses
from veil.privacy.mechanism import Batch, Door, Unprotected
from veil.provenance import derive_seed


class Wgan(PrivateGenerator):
    """Generator network plus, while training, its critic.

    Only the critic's updates on real records touch private data.
    """

    access = "training of the critic"

    def __init__(self, task: config.Task, patches: Path | None = None, start: Path | None = None):
        super().__init__(task, patches, start)
        assert isinstance(task.settings, config.WganGenerator)
        self.settings = task.settings
        self.loop = self.settings.loop
        if self.loop == "as-published":
            # Of real records, and of fakes as many as these.
            self.releases_a_draw = 2 * self.settings.critic_updates
        else:
            self.draws_a_step = self.settings.critic_updates
        self.network = build_generator(self.settings, task.size)
        initialise(self.network, torch.Generator().manual_seed(task.seed))

    @property
    def batch(self) -> int:
        patient = self.task.level.unit == "patient"
        return self.settings.patient_batch_size if patient else self.settings.batch_size

    @property
    def steps_wanted(self) -> int:
        return self.settings.generator_updates

    @property
    def clip_norm(self) -> float:
        return self.settings.clip_norm

    def published_epsilon(self) -> float | None:
        """What the paper's authors would print: of the as-published loop alone."""
        if self.loop != "as-published":
            return None
        steps = self.charge.draws * 2 * self.settings.critic_updates  # they charged every one
        return accounting.published_epsilon(self.charge, self.task.delta, steps)

    def fit(self, state: Path, device: torch.device, identity: Mapping[str, Any]) -> None:
        pairs, owners, mechanism = self.private()
        critic = self._fresh_critic()
        if self.settings.public:
            training.unpack(self.given_start(), generator=self.network, critic=critic)
        game = Game(
            self.network.to(device),
            critic.to(device),
            pairs,
            settings=self.settings,
            mechanism=mechanism,
            seed=self.task.seed,
            device=device,
            owners=owners,
        )
        training.Loop(steps=self.steps, folder=state, identity=identity, name="wgan").run(game)
        mechanism.settle()

    def learn_start(
        self, state: Path, device: torch.device, identity: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        assert self.settings.public is not None
        pairs = self.public_pairs(self.settings.public, self.settings.public_pairs)
        seed, critic = derive_seed(self.task.seed, "public"), self._fresh_critic()
        game = Game(
            self.network.to(device),
            critic.to(device),
            pairs,
            settings=self.settings,
            mechanism=Unprotected(
                rate=min(self.settings.batch_size / len(pairs), 1.0),
                sampler=randomness.Seeded(derive_seed(seed, "batches")),
                identities=np.arange(len(pairs), dtype=np.uint64),
            ),
            seed=seed,
            device=device,
        )
        steps = self.settings.public_updates
        training.Loop(steps=steps, folder=state, identity=identity, name="phantoms").run(game)
        return training.pack(generator=self.network, critic=critic)

    def _fresh_critic(self) -> nn.Module:
        critic = build_critic(self.settings, self.task.size)
        initialise(critic, torch.Generator().manual_seed(derive_seed(self.task.seed, "critic")))
        return critic

    def rehearse(self, canaries: Canaries) -> Watched:
        published = self.loop == "as-published"
        shown = self.settings.critic_updates if published else 1
        watched, owners = self.watched(canaries, shown)
        game = Game(
            Silence(canaries.edge),
            Probe(canaries.edge, self.clip_norm),
            canaries,
            settings=self.settings,
            mechanism=watched,
            seed=derive_seed(self.task.seed, "rehearsal"),
            device=torch.device("cpu"),
            owners=owners,
        )
        for _ in range(self.steps):
            game.critic_updates()  # a generator update reads nothing private
        return watched

    def work(self) -> float:
        """Forwards and backwards of both networks."""
        fakes = self.settings.batch_size
        if self.task.level.unit == "patient":
            fakes = self.settings.patient_batch_size * self.settings.patient_patches
        return self.steps * self._work_of_an_update(fakes)

    def public_work(self) -> float:
        return self.settings.public_updates * self._work_of_an_update(self.settings.batch_size)

    def _work_of_an_update(self, fakes: int) -> float:
        critic, sampling, generator = self._work_of_a_record()
        # As many real records as fakes are expected, and both halves go through the critic.
        of_a_fake = self.settings.critic_updates * (2 * critic + sampling)
        return fakes * of_a_fake + self.settings.batch_size * (critic + generator)

    def speed(self) -> float:
        critic = build_critic(self.settings, self.task.size)
        records = torch.zeros(self.settings.batch_size, 2, self.task.size, self.task.size)
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            critic(records).sum().backward()
        seconds = time.perf_counter() - start
        return len(records) * self._work_of_a_record()[0] / seconds

    def _work_of_a_record(self) -> tuple[float, float, float]:
        """Operations for one record: critic both ways, generator forwards, generator both ways."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            latent = torch.zeros(1, self.settings.latent)
            fake = build_generator(self.settings, self.task.size)(latent)
            sampling = counter.get_total_flops()
            fake.sum().backward()
            generator = counter.get_total_flops()
            record = torch.zeros(1, 2, self.task.size, self.task.size)
            build_critic(self.settings, self.task.size)(record).sum().backward()
            return counter.get_total_flops() - generator, sampling, generator

    def weights(self) -> dict[str, Tensor]:
        return training.pack(network=self.network)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        training.unpack(weights, network=self.network)

    @torch.no_grad()
    def sample(self, pairs: int, seed: int, device: torch.device, threads: int) -> np.ndarray:
        random = torch.Generator().manual_seed(seed)
        network = self.network.to(device).eval()
        parts = []
        for start in range(0, pairs, 256):
            latent = torch.randn(min(256, pairs - start), self.settings.latent, generator=random)
            unit = network(latent.to(device)).float().cpu().numpy()
            parts.append(from_unit(unit, self.settings.label_threshold))
        return np.concatenate(parts)


class Game:
    """Generator against critic; one step is one generator update and its critic updates."""

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        pairs: np.ndarray | Canaries,
        *,
        settings: config.WganGenerator,
        mechanism: Door,
        seed: int,
        device: torch.device,
        owners: list[np.ndarray] | None = None,
    ):
        """`owners` has each patient's rows of `pairs`, if the unit is a patient."""
        self.generator, self.critic, self.pairs = generator, critic, pairs
        self.settings, self.mechanism, self.device = settings, mechanism, device
        self.owners = owners
        # A stream of its own, so that the number of latents drawn never moves batches or noise.
        self.latents = torch.Generator().manual_seed(derive_seed(seed, "latents"))
        self.generator_optimiser = torch.optim.RMSprop(
            generator.parameters(), settings.learning_rate
        )
        self.critic_optimiser = torch.optim.RMSprop(critic.parameters(), settings.learning_rate)
        self.critic_updates = self._valid_updates
        if settings.loop == "as-published":
            self.critic_updates = self._published_updates
        elif owners is not None:
            self.critic_updates = self._patient_updates

    def step(self) -> dict[str, float]:
        gap = self.critic_updates()
        fakes = self.generator(self._latents(self.settings.batch_size))
        loss = -mean_score(self.critic(fakes)).mean()
        self.generator_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.generator_optimiser.step()
        return {"wasserstein": gap, "generator_loss": float(loss.detach())}

    def state(self) -> dict[str, Tensor]:
        return training.pack(**self._parts())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        training.unpack(state, **self._parts())

    def _parts(self) -> dict[str, Any]:
        names = (
            "generator", "critic", "generator_optimiser", "critic_optimiser", "latents",
            "mechanism",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def _valid_updates(self) -> float:
        """A fresh batch, one noisy release and a public divisor for every critic update.

        Fakes are clipped like real records: they cost nothing, but a critic pulled by clipped
        real and unclipped fake gradients has its balance in the wrong place.
        """
        gap, divisor = 0.0, self.settings.batch_size
        for _ in range(self.settings.critic_updates):
            batch = self.mechanism.draw()
            records = torch.cat([self._take(batch.indices), self._fakes(divisor)])
            signs = torch.cat([-torch.ones(len(batch)), torch.ones(divisor)]).to(self.device)
            total, losses = batch.release(
                self.critic, self._signed_scores(records, signs), len(records)
            )
            self._update([part / divisor for part in total])
            gap -= float(losses.sum()) / divisor / self.settings.critic_updates
        return gap

    def _patient_updates(self) -> float:
        """The same with a patient as the record: the mean over a few patches of each."""
        assert self.owners is not None
        gap, divisor = 0.0, self.settings.patient_batch_size
        for _ in range(self.settings.critic_updates):
            batch = self.mechanism.draw()
            assert isinstance(batch, Batch), "patients are a unit of private training only"
            total, losses = batch.release_groups(self.critic, self._groups(batch))
            self._update([part / divisor for part in total])
            gap -= float(losses.sum()) / divisor / self.settings.critic_updates
        return gap

    def _groups(self, batch: Batch) -> Iterator[list[Callable[[], Tensor]]]:
        """Mean signed scores of each drawn patient, then of as many groups of fakes as ever."""
        assert self.owners is not None
        count = self.settings.patient_patches
        for patient, own in zip(batch.indices.tolist(), batch.own(), strict=True):
            chosen = some_of(self.owners[patient], count, own)
            records = self._take(torch.from_numpy(chosen))
            yield [self._mean_of(records, -1.0)]
        for _ in range(self.settings.patient_batch_size):
            yield [self._mean_of(self._fakes(count), 1.0)]

    def _published_updates(self) -> float:
        """One batch for all critic updates, two noisy steps each, the realised divisor."""
        gap, batch = 0.0, self.mechanism.draw()
        real, divisor = self._take(batch.indices), max(len(batch), 1)
        for _ in range(self.settings.critic_updates):
            for sign in (-1.0, 1.0):
                records = real if sign < 0 else self._fakes(len(real))
                release = batch.release if sign < 0 else batch.release_fakes
                signs = torch.full((len(records),), sign, device=self.device)
                total, losses = release(
                    self.critic, self._signed_scores(records, signs), len(records)
                )
                self._update([part / divisor for part in total])
                gap -= float(losses.sum()) / divisor / self.settings.critic_updates
        return gap

    def _signed_scores(self, records: Tensor, signs: Tensor) -> Losses:
        return lambda part: signs[part] * mean_score(self.critic(records[part]))

    def _mean_of(self, records: Tensor, sign: float) -> Callable[[], Tensor]:
        return lambda: sign * mean_score(self.critic(records)).mean()

    def _take(self, rows: Tensor) -> Tensor:
        """Real pairs in [-1, 1] and {0, 1}, (B, 2, H, W); B may be 0."""
        return torch.from_numpy(to_unit(self.pairs[rows.numpy()])).to(self.device)

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, self.settings.latent, generator=self.latents).to(self.device)

    def _fakes(self, count: int) -> Tensor:
        with torch.no_grad():
            return self.generator(self._latents(count))

    def _update(self, gradients: list[Tensor]) -> None:
        for parameter, gradient in zip(self.critic.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.critic_optimiser.step()
        self.critic_optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter in self.critic.parameters():
                parameter.clamp_(-self.settings.weight_clip, self.settings.weight_clip)


def mean_score(output: Tensor) -> Tensor:
    """The critic's map (B, 1, h, w) as one score a record (B,)."""
    return output.flatten(1).mean(1)


# ------------------------------------------------------------------ networks


def build_generator(settings: config.WganGenerator, size: int) -> nn.Module:
    """Latent (B, latent) to pairs (B, 2, size, size) in [-1, 1]."""
    levels = config.wgan_levels(size)
    assert levels is not None, f"no such network for patches of {size}"
    if settings.architecture == "transposed":
        return _transposed(settings.latent, settings.generator_width, *levels)
    return _upsampling(settings.latent, settings.generator_width, *levels)


def _transposed(latent: int, width: int, first: int, doublings: int) -> nn.Sequential:
    """Transposed convolutions only, as in the paper's code."""
    wide = width * 2 ** (doublings - 1)
    layers: list[nn.Module] = [
        nn.Unflatten(1, (latent, 1, 1)),
        nn.ConvTranspose2d(latent, wide, 4, 2, 1, first - 2, bias=False),
        *_norm(wide),
    ]
    for level in range(doublings - 1, 0, -1):
        inner, outer = width * 2**level, width * 2 ** (level - 1)
        layers += [nn.ConvTranspose2d(inner, outer, 4, 2, 1, bias=False), *_norm(outer)]
    layers += [nn.ConvTranspose2d(width, 2, 4, 2, 1, bias=False), nn.Tanh()]
    return nn.Sequential(*layers)


def _upsampling(latent: int, width: int, first: int, doublings: int) -> nn.Sequential:
    """A linear layer, then nearest upsampling and 5 x 5 convolutions, as in the paper's text.

    One more upsampling than doublings: the last convolution has stride 2.
    """
    inner = width * 2 ** (doublings - 1)
    layers: list[nn.Module] = [
        nn.Linear(latent, inner * first**2),
        nn.Unflatten(1, (inner, first, first)),
    ]
    for level in range(doublings - 1, -1, -1):
        outer = width * 2**level
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(inner, outer, 5, 1, 2), *_norm(outer)]
        inner = outer
    layers += [nn.Upsample(scale_factor=2), nn.Conv2d(inner, 2, 5, 2, 2), nn.Tanh()]
    return nn.Sequential(*layers)


def _norm(channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(math.gcd(32, channels), channels), nn.ReLU()]


def build_critic(settings: config.WganGenerator, size: int) -> nn.Module:
    """Pairs (B, 2, size, size) to scores (B, 1, h, w), to be averaged.

    No layer mixes records: instance norm, where batch norm would leak one into another.
    """
    levels = config.wgan_levels(size)
    assert levels is not None, f"no such network for patches of {size}"
    channels, layers = 2, []
    for level in range(levels[1]):
        width = settings.critic_width * 2**level
        layers += [
            nn.Conv2d(channels, width, 4, 2, 2, bias=False),
            nn.InstanceNorm2d(width),
            nn.LeakyReLU(0.2),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 2, 1, bias=False))


def initialise(network: nn.Module, random: torch.Generator) -> None:
    """Convolutions from N(0, 0.05^2), as in the paper; the linear layer as torch does it."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0, 0.05, generator=random)
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, 5**0.5, generator=random)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
