"""What float32 costs of the slack, for every network.

Clipping is to C / (1 + 2^-7) and C is charged. Two neighbours' sums are apart by what one record adds,
whose norm is measured in float32, and by what the others add differently in other company: that is E,
the distance between a batch's sum and what its records add one at a time, added up in float64. So
the norm of what is added, 2 E and the rounding to the lattice, 2^-9 C, must stay below C together.
How far the sum is from one that is computed in float64 throughout is held to the same limit.
"""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch

from veil import config
from veil.generators import diffusion, wgan
from veil.privacy import clipping
from veil.privacy.mechanism import SLACK
from veil.privacy.noise import ROUNDING
from veil.privacy.randomness import Coins

CLIP = 1.0
LEFT = (1 - 1 / (1 + SLACK) - 2.0**-ROUNDING) / 2
"""What E may be at most, in clip norms."""


def critic(width: int, size: int, records: int):
    """A critic on real records and fakes, and one loss a record."""
    settings = config.WganGenerator(kind="wgan", critic_width=width)
    module = wgan.build_critic(settings, size)
    wgan.initialise(module, torch.Generator().manual_seed(1))
    inputs = torch.rand(records, 2, size, size, generator=torch.Generator().manual_seed(2))
    return module, (inputs,), lambda module, rows: wgan.mean_score(module(rows)), 1


def denoiser(channels: tuple[int, ...], size: int, records: int, copies: int):
    settings = config.DiffusionGenerator(kind="diffusion", channels=channels)
    module = diffusion.Denoiser(settings, size)
    diffusion.initialise(module, torch.Generator().manual_seed(1))
    pairs = np.random.default_rng(0).integers(0, 256, (records, 2, size, size)).astype(np.uint8)
    pairs[:, 1] //= 200
    coins = Coins([(np.random.default_rng(1), records)])
    rows = diffusion.Denoising(settings).rows(pairs, copies, (0.0, 1.0), coins)

    def losses(module, noisy, times, velocity):
        error = (module(noisy, times) - velocity).square().mean((1, 2, 3))
        return error.view(-1, copies).mean(1)

    return module, rows, losses, copies


NETWORKS = {
    "critic of the demonstration": partial(critic, 16, 24, 64),
    "critic, narrow, 96 x 96": partial(critic, 16, 96, 64),
    "denoiser of the demonstration": partial(denoiser, (8, 16, 32), 24, 48, 1),
    "denoiser, 4 noise levels a record": partial(denoiser, (8, 16, 32), 24, 16, 4),
    "denoiser, wider": partial(denoiser, (32, 64, 64), 48, 8, 2),
    "the paper's critic": partial(critic, 96, 96, 6),
}


def exact(module, rows, losses, copies):
    """The clipped sum by its definition, in float64."""
    module = copy.deepcopy(module).double()
    parameters = list(module.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for first in range(0, len(rows[0]), copies):
        part = [r[first : first + copies] for r in rows]
        part = [r.double() if r.is_floating_point() else r for r in part]
        gradients = torch.autograd.grad(losses(module, *part).sum(), parameters)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        scale = min(1.0, float(CLIP / (1 + SLACK) / norm))
        total = [t + scale * g for t, g in zip(total, gradients, strict=True)]
    return total


def distance(first, second):
    parts = zip(first, second, strict=True)
    return float(torch.stack([(a.double() - b.double()).norm() for a, b in parts]).norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_stays_within_the_slack(name, record_property):
    module, rows, losses, copies = NETWORKS[name]()
    records = len(rows[0]) // copies

    def of(part):
        mine = slice(part.start * copies, part.stop * copies)
        return losses(module, *(r[mine] for r in rows))

    def added(numbers):
        """What these records add together, float64."""
        chosen = [[n * copies + c for n in numbers for c in range(copies)]]
        some = [r[chosen[0]] for r in rows]

        def of_some(part):
            mine = slice(part.start * copies, part.stop * copies)
            return losses(module, *(r[mine] for r in some))

        sums, _ = clipping.clipped_sum(
            module, of_some, len(numbers), CLIP / (1 + SLACK), rows=copies
        )
        return [part.double() for part in sums]

    every = list(range(records))
    together, alone = added(every), [added([n]) for n in every]
    largest = max(distance(one, [torch.zeros_like(p) for p in one]) for one in alone)
    groups = [[lambda n=n: of(slice(n, n + 1)).sum()] for n in every]
    by_group, _ = clipping.clipped_sum_of_groups(module, groups, CLIP / (1 + SLACK))
    singly = [sum(parts) for parts in zip(*alone, strict=True)]
    company = distance(together, singly)
    off = [distance(sums, exact(module, rows, losses, copies)) for sums in (together, by_group)]
    parameters = sum(p.numel() for p in module.parameters())
    record_property(
        "summary",
        f"slack, {name}: {parameters:,} weights, {records} records: largest norm {largest:.6f}, "
        f"E {company:.1e}, off float64 {off[0]:.1e} (patients {off[1]:.1e}), of {LEFT:.1e}",
    )
    assert company < LEFT
    assert max(off) < LEFT
    assert largest + 2 * company + 2.0**-ROUNDING < CLIP
    for gone in (0, records // 2, records - 1):
        less = added([n for n in every if n != gone])
        assert distance(together, less) + 2.0**-ROUNDING < CLIP
