"""The private step: exact clipping, calibrated noise, Poisson batches, and the valid loop's shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from veil import config, generators
from veil.generators import wgan
from veil.privacy import clipping, sampling

SETTINGS = config.WganGenerator(
    kind="wgan", generator_width=4, critic_width=4, latent=8, generator_updates=2, batch_size=8
)


def naive(module, score, batch, clip_norm):
    """One record at a time, as the definition reads."""
    total = [torch.zeros_like(p) for p in module.parameters()]
    for record in batch:
        gradients = torch.autograd.grad(
            score(module(record[None])).sum(), list(module.parameters())
        )
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        scale = min(1.0, float(clip_norm / norm))
        total = [t + scale * g for t, g in zip(total, gradients, strict=True)]
    return total


def critic():
    torch.manual_seed(0)
    return wgan.build_critic(SETTINGS, 16).double()


def biased():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 4, (3, 2), (1, 2), (0, 1)),
        nn.InstanceNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 5, 7), nn.ReLU(), nn.Linear(7, 1),
    ).double()  # fmt: skip


@pytest.mark.parametrize("module", [critic, biased])
@pytest.mark.parametrize("kept", [2**40, 0])
@pytest.mark.parametrize("clip_norm", [0.01, 0.3, 1e6])
def test_clipped_sums_are_exact(module, kept, clip_norm, monkeypatch):
    """Both ways to get norms and sums agree with one record at a time, in float64."""
    monkeypatch.setattr(clipping, "KEPT_BYTES", kept)
    network, batch = module(), torch.randn(7, 2, 16, 16, dtype=torch.float64)
    found, scores = clipping.clipped_sum(network, wgan.mean_score, batch, clip_norm)
    expected = naive(network, wgan.mean_score, batch, clip_norm)
    torch.testing.assert_close(scores, wgan.mean_score(network(batch)).detach())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("kept", [2**40, 0])
def test_removing_a_record_moves_the_sum_by_at_most_the_clip_norm(kept, monkeypatch):
    monkeypatch.setattr(clipping, "KEPT_BYTES", kept)
    network, batch = critic(), 40 * torch.randn(6, 2, 16, 16, dtype=torch.float64)
    whole, _ = clipping.clipped_sum(network, wgan.mean_score, batch, 0.05)
    for gone in range(6):
        rest = torch.cat([batch[:gone], batch[gone + 1 :]])
        less, _ = clipping.clipped_sum(network, wgan.mean_score, rest, 0.05)
        moved = (
            torch.stack([(a - b).square().sum() for a, b in zip(whole, less, strict=True)])
            .sum()
            .sqrt()
        )
        assert moved <= 0.05


@pytest.mark.parametrize("kept", [2**40, 0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_that_is_no_number_counts_as_zero(kept, value, monkeypatch):
    monkeypatch.setattr(clipping, "KEPT_BYTES", kept)
    network, batch = critic(), torch.randn(5, 2, 16, 16, dtype=torch.float64)
    good, _ = clipping.clipped_sum(network, wgan.mean_score, batch[:4], 0.3)
    batch[4, 0, 3, 3] = value
    found, _ = clipping.clipped_sum(network, wgan.mean_score, batch, 0.3)
    for ours, theirs in zip(found, good, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_other_records_do_not_change_a_records_gradient():
    network, batch = critic(), torch.randn(6, 2, 16, 16, dtype=torch.float64)
    alone, _ = clipping.clipped_sum(network, wgan.mean_score, batch[:1], 0.3)
    pair, _ = clipping.clipped_sum(network, wgan.mean_score, batch[[0, 4]], 0.3)
    other, _ = clipping.clipped_sum(network, wgan.mean_score, batch[[4]], 0.3)
    for a, b, c in zip(alone, pair, other, strict=True):
        torch.testing.assert_close(a, b - c)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 2, 3, groups=2),
        nn.GroupNorm(1, 2),
        nn.Conv2d(2, 2, 3, padding="same"),
    ],
)
def test_layers_that_cannot_be_clipped_are_refused(layer):
    with pytest.raises(TypeError, match="allowed are Linear and Conv2d"):
        clipping.clipped_sum(nn.Sequential(layer), wgan.mean_score, torch.zeros(2, 2, 8, 8), 1.0)


def test_noise_has_its_deviation_and_never_repeats():
    random = torch.Generator().manual_seed(1)
    first, second = (clipping.add_noise([torch.zeros(200_000)], 0.7, random)[0] for _ in range(2))
    assert first.std().item() == pytest.approx(0.7, rel=0.02)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01


def test_batches_are_poisson():
    random = torch.Generator().manual_seed(3)
    draws = torch.zeros(4000, 50)
    for row in draws:
        row[sampling.poisson_batch(50, 0.1, random)] = 1
    assert draws.mean().item() == pytest.approx(0.1, abs=0.005)
    sizes = draws.sum(1)
    assert sizes.var().item() == pytest.approx(50 * 0.1 * 0.9, rel=0.1)
    correlation = torch.corrcoef(draws.T) - torch.eye(50)
    assert correlation.abs().max() < 0.08


def game(pairs, loop="valid", noise=1.0, rate=0.05):
    settings = SETTINGS.model_copy(update={"loop": loop})
    return wgan._Game(
        wgan.build_generator(settings, 16), wgan.build_critic(settings, 16), pairs,
        settings=settings, rate=rate, noise=noise, seed=1, device=torch.device("cpu"),
    )  # fmt: skip


@pytest.fixture
def pairs(rng):
    return rng.integers(0, 2, (100, 2, 16, 16)).astype(np.uint8) * 255


class Count:
    """Wraps a function and counts its calls and the sizes it saw."""

    def __init__(self, wrapped):
        self.wrapped, self.results = wrapped, []

    def __call__(self, *args):
        self.results.append(self.wrapped(*args))
        return self.results[-1]


@pytest.mark.parametrize("loop", ["valid", "as-published"])
def test_what_is_charged_is_what_is_drawn_and_released(pairs, loop, monkeypatch):
    draws, noises = Count(sampling.poisson_batch), Count(clipping.add_noise)
    monkeypatch.setattr(sampling, "poisson_batch", draws)
    monkeypatch.setattr(clipping, "add_noise", noises)
    match = game(pairs, loop)
    for _ in range(3):
        match.step()
    settings = SETTINGS.model_copy(update={"loop": loop, "generator_updates": 3})
    task = config.Task(
        settings=settings, level=config.PrivacyLevel.parse("sigma-1"), seed=1, size=16,
        records=160, per_patient=10, delta=0.01,
    )  # fmt: skip
    charge = generators.build(task).charge
    assert charge.draws == len(draws.results)
    real_and_fake = 2 if loop == "as-published" else 1
    assert charge.draws * charge.releases_per_draw * real_and_fake == len(noises.results)


def test_empty_batches_are_used_and_noised(pairs, monkeypatch):
    noises = Count(clipping.add_noise)
    monkeypatch.setattr(clipping, "add_noise", noises)
    match = game(pairs, rate=1e-9)
    before = [p.clone() for p in match.critic.parameters()]
    match.step()
    assert len(noises.results) == SETTINGS.critic_updates
    assert any((a != b).any() for a, b in zip(before, match.critic.parameters(), strict=True))


def test_fakes_and_divisor_are_public(pairs, monkeypatch):
    """Neither moves with the size of the private batch."""
    match, counts = game(pairs), []
    fakes = match._fakes
    monkeypatch.setattr(match, "_fakes", lambda n: counts.append(n) or fakes(n))
    for _ in range(4):
        match.step()
    assert set(counts) == {SETTINGS.batch_size}


def test_sampling_rate_and_delta_do_not_follow_the_data():
    """The statement is a function of public settings: it can be read before any data is there."""
    study = config.Study()
    task = study.task("first", "wgan", "sigma-2", 1)
    assert task.records == 2000
    assert task.delta == 1 / 2000
    statement = generators.build(task).spent()
    assert statement["sampling_rate"] == 32 / 2000


def test_a_statement_never_stands_alone():
    task = config.Study().task("first", "wgan-as-published", "sigma-2", 1)
    statement = generators.build(task).spent()
    for key in ("epsilon", "epsilon_patient", "delta", "unit", "neighbouring_relation", "sampling",
                "accountant", "selection", "noise", "epsilon_published"):  # fmt: skip
        assert statement[key], key
    assert (
        statement["epsilon_patient"] > statement["epsilon"] > statement["epsilon_published"] * 0.5
    )
    assert "dp-accounting" in statement["accountant"]
    assert "does not hold" in statement["text"]


def test_the_published_loop_is_refused_a_label_it_does_not_earn():
    """eps-X of the as-published loop is calibrated on the bound that holds, not on its claim."""
    task = config.Study().task("first", "wgan-as-published", "eps-8", 1)
    statement = generators.build(task).spent()
    assert statement["epsilon"] <= 8
    assert statement["epsilon"] == pytest.approx(8, rel=0.01)
