"""`wgan`: the Wasserstein GAN of Kossen et al. 2022 over image-label pairs (floor 4).

Two loops. `valid` draws a fresh Poisson batch for every critic update and makes one noisy
release of it; fakes come in a fixed public number and cost nothing; the divisor is public.
`as-published` uses one batch for all critic updates of a generator update, with two noisy
steps each, a fake batch as large as the private one, and divides by the realised size.

Privacy: the critic's noisy gradients are the only door to private data. The generator sees
the critic alone, which is post-processing. Critic, optimiser state and history are not
released: only the generator's weights go into `weights`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from veil import artifacts, config, training
from veil.generators.base import Generator
from veil.patches import from_unit, to_unit
from veil.privacy import accounting, clipping, ledger, sampling
from veil.provenance import derive_seed


class Wgan(Generator):
    """Generator network plus, while training, its critic."""

    def __init__(self, task: config.Task, patches: Path | None = None):
        super().__init__(task, patches)
        assert isinstance(task.settings, config.WganGenerator)
        self.settings = task.settings
        self.network = build_generator(self.settings, task.size)
        initialise(self.network, torch.Generator().manual_seed(task.seed))

    def spent(self) -> dict[str, Any]:
        if self.task.level.kind == "none":
            return ledger.without_privacy()
        settings, published = self.settings, self.settings.loop == "as-published"
        updates = settings.generator_updates * settings.critic_updates
        return ledger.gaussian(
            self.charge,
            delta=self.task.delta,
            clip_norm=settings.clip_norm,
            records=self.task.records,
            records_per_patient=self.task.per_patient,
            loop=settings.loop,
            published_steps=2 * updates if published else None,
        )

    @cached_property
    def charge(self) -> accounting.Charge:
        """What the run costs. Only the real half of a step touches private data."""
        settings, published = self.settings, self.settings.loop == "as-published"
        rate = min(settings.batch_size / self.task.records, 1.0)
        draws = settings.generator_updates * (1 if published else settings.critic_updates)
        releases = settings.critic_updates if published else 1
        level = self.task.level
        noise = (
            level.value
            if level.kind == "sigma"
            else accounting.calibrate(level.value, self.task.delta, rate, draws, releases)
        )
        return accounting.Charge(
            sampling_rate=rate, noise_multiplier=noise, draws=draws, releases_per_draw=releases
        )

    def fit(self, state: Path, device: torch.device, identity: Mapping[str, Any]) -> None:
        assert self.patches is not None, "training needs the private patches"
        pairs = artifacts.open_pairs(self.patches)
        private = self.task.level.kind != "none"
        trainee = _Game(
            self.network.to(device),
            build_critic(self.settings, self.task.size).to(device),
            pairs,
            settings=self.settings,
            rate=min(self.settings.batch_size / self.task.records, 1.0),
            noise=self.charge.noise_multiplier if private else None,
            seed=self.task.seed,
            device=device,
        )
        training.Loop(
            steps=self.settings.generator_updates, folder=state, identity=identity, name="wgan"
        ).run(trainee)

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


class _Game:
    """Generator against critic; one step is one generator update and its critic updates."""

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        pairs: np.ndarray,
        *,
        settings: config.WganGenerator,
        rate: float,
        noise: float | None,
        seed: int,
        device: torch.device,
    ):
        self.generator, self.critic, self.pairs = generator, critic, pairs
        self.settings, self.rate, self.noise, self.device = settings, rate, noise, device
        # Three streams, so that the number of latents drawn never moves batches or noise.
        self.batches, self.latents, self.noises = (
            torch.Generator().manual_seed(derive_seed(seed, stream))
            for stream in ("batches", "latents", "noise")
        )
        initialise(critic, torch.Generator().manual_seed(derive_seed(seed, "critic")))
        self.generator_optimiser = torch.optim.RMSprop(
            generator.parameters(), settings.learning_rate
        )
        self.critic_optimiser = torch.optim.RMSprop(critic.parameters(), settings.learning_rate)
        self.critic_step = (
            self._published_updates if settings.loop == "as-published" else self._valid_updates
        )

    def step(self) -> dict[str, float]:
        gap = self.critic_step()
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
            "generator", "critic", "generator_optimiser", "critic_optimiser",
            "batches", "latents", "noises",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def _valid_updates(self) -> float:
        """A fresh batch, one noisy release and a public divisor for every critic update."""
        gap, divisor = 0.0, self.settings.batch_size
        for _ in range(self.settings.critic_updates):
            real, fakes = self._draw(), self._fakes(divisor)
            signs = torch.cat([-torch.ones(len(real)), torch.ones(divisor)]).to(self.device)
            total, scores = self._release(torch.cat([real, fakes]), signs)
            self._update([part / divisor for part in total])
            gap -= float(scores.sum()) / divisor / self.settings.critic_updates
        return gap

    def _published_updates(self) -> float:
        """One batch for all critic updates, two noisy steps each, the realised divisor."""
        gap, real = 0.0, self._draw()
        divisor = max(len(real), 1)
        for _ in range(self.settings.critic_updates):
            for sign in (-1, +1):
                batch = real if sign < 0 else self._fakes(len(real))
                signs = torch.full((len(batch),), float(sign), device=self.device)
                total, scores = self._release(batch, signs)
                self._update([part / divisor for part in total])
                gap -= float(scores.sum()) / divisor / self.settings.critic_updates
        return gap

    def _release(self, batch: Tensor, signs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Gradient of the signed scores, summed over the batch; and the signed scores (B,).

        Privacy: with noise, each record is clipped and the sum noised once, so that this is
        the one place where private records reach the critic. Fakes are clipped like real
        records: they cost nothing, but a critic pulled by clipped real and unclipped fake
        gradients has its balance in the wrong place.
        """

        def score(output: Tensor) -> Tensor:
            return signs * mean_score(output)

        if self.noise:
            total, scores = clipping.clipped_sum(self.critic, score, batch, self.settings.clip_norm)
            deviation = self.noise * self.settings.clip_norm
            return clipping.add_noise(total, deviation, self.noises), scores
        parameters = list(self.critic.parameters())
        if not len(batch):
            return [torch.zeros_like(parameter) for parameter in parameters], signs
        scores = score(self.critic(batch))
        return list(torch.autograd.grad(scores.sum(), parameters)), scores.detach()

    def _draw(self) -> Tensor:
        """One Poisson batch of real pairs in [-1, 1] and {0, 1}, (B, 2, H, W); B may be 0."""
        chosen = sampling.poisson_batch(len(self.pairs), self.rate, self.batches)
        return torch.from_numpy(to_unit(self.pairs[chosen.numpy()])).to(self.device)

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
