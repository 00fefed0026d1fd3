"""Generators: shapes of the paper, the interface, and what each loop charges."""

from __future__ import annotations

import itertools
import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from veil import artifacts, config, generators, training
from veil.generators import diffusion, fitted, wgan
from veil.generators.phantom import cut_from
from veil.privacy import clipping
from veil.privacy.randomness import Coins

CPU = torch.device("cpu")
TINY = config.WganGenerator(
    kind="wgan", generator_width=4, critic_width=4, latent=8, generator_updates=3, batch_size=8
)
PUBLISHED = TINY.model_copy(update={"loop": "as-published"})
DENOISER = config.DiffusionGenerator(
    kind="diffusion", channels=(4, 8), steps=3, batch_size=8, multiplicity=2, sampling_steps=3,
    public_steps=4, public_pairs=20, patient_batch_size=2, patient_patches=3,
    public={"kind": "phantom", "volumes": 1, "phantom": {"shape": (48, 48, 1)}},
)  # fmt: skip
STARTED = TINY.model_copy(update={"public": DENOISER.public, "public_updates": 2})
FITTED = config.FittedGenerator(
    kind="fitted", volumes=4, candidates=24, directions=2,
    phantom={
        "shape": (64, 64, 1),
        "vary": {"scanner.noise": (0.01, 0.4), "scanner.blur": (0.2, 2.0)},
    },
)  # fmt: skip


def task(settings=TINY, level="none", records=200):
    return config.Task(
        settings=settings, level=config.PrivacyLevel.parse(level), seed=11, size=16,
        records=records, patients=4, per_patient=50, delta=1 / 200,
    )  # fmt: skip


@pytest.fixture
def pairs(tmp_path, rng):
    data = rng.integers(0, 256, (200, 2, 16, 16)).astype(np.uint8)
    data[:, 1] //= 200
    artifacts.save_pairs(tmp_path / "pairs.npy", data)
    owners = pd.DataFrame({"participant_id": [f"sub-{n // 50}" for n in range(200)]})
    artifacts.write_table(tmp_path / "pairs.tsv", owners)
    return tmp_path / "pairs.npy"


def coins(records):
    """One stream for so many records."""
    return Coins([(np.random.default_rng(0), records)])


def started(given, folder):
    """The place of the public start of a task; None if it has no public stage."""
    study = config.Study(generators={"real": {"kind": "real"}, "g": given.settings}, points=())
    if not study.starts("g"):
        return None
    start = generators.build(given).learn_start(folder / "public", CPU, {})
    artifacts.save_tensors(folder / "start.safetensors", start, given.of_start())
    return folder / "start.safetensors"


PAPER = config.WganGenerator(kind="wgan", generator_width=96, critic_width=96)


def test_the_papers_generator_sizes():
    """Latent 128 to 3, 6, 12, 24, 48 and 96 pixels; 1,536 channels halving to 96, then 2."""
    network = wgan.build_generator(PAPER, 96)
    x, sizes = torch.zeros(1, 128), []
    for layer in network:
        x = layer(x)
        if isinstance(layer, torch.nn.ConvTranspose2d):
            sizes.append(tuple(x.shape[1:]))
    assert sizes == [
        (1536, 3, 3), (768, 6, 6), (384, 12, 12), (192, 24, 24), (96, 48, 48), (2, 96, 96),
    ]  # fmt: skip


def test_the_papers_critic_sizes():
    """96, 49, 25, 13, 7, 4 and 2 pixels; 2 channels doubling from 96 to 1,536, then 1."""
    network = wgan.build_critic(PAPER, 96)
    x, sizes = torch.zeros(1, 2, 96, 96), []
    for layer in network:
        x = layer(x)
        if isinstance(layer, torch.nn.Conv2d):
            sizes.append(tuple(x.shape[1:]))
    assert sizes == [
        (96, 49, 49), (192, 25, 25), (384, 13, 13), (768, 7, 7), (1536, 4, 4), (1, 2, 2),
    ]  # fmt: skip


def test_the_papers_upsampling_generator():
    """One linear layer to 1,536 x 3 x 3, then six convolutions, the last with stride 2."""
    network = wgan.build_generator(PAPER.model_copy(update={"architecture": "upsampling"}), 96)
    convolutions = [layer for layer in network if isinstance(layer, torch.nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [1536, 768, 384, 192, 96, 2]
    assert network[0].out_features == 96 * 16 * 3 * 3
    assert network(torch.zeros(1, 128)).shape == (1, 2, 96, 96)


@pytest.mark.parametrize("size", [16, 24, 32, 48, 64, 128])
@pytest.mark.parametrize("architecture", ["transposed", "upsampling"])
def test_every_allowed_size(size, architecture):
    settings = TINY.model_copy(update={"architecture": architecture})
    fake = wgan.build_generator(settings, size)(torch.randn(2, 8))
    assert fake.shape == (2, 2, size, size)
    assert wgan.build_critic(settings, size)(fake).shape[:2] == (2, 1)


@pytest.mark.parametrize("settings", [TINY, PUBLISHED, STARTED, DENOISER])
@pytest.mark.parametrize("level", ["none", "sigma-1", "eps-2"])
def test_fit_save_load_sample(tmp_path, pairs, settings, level):
    given = task(settings, level)
    generator = generators.build(given, pairs, started(given, tmp_path))
    generator.fit(tmp_path / "state", CPU, {})
    first = generator.sample(20, seed=3, device=CPU, threads=1)
    assert first.dtype == np.uint8
    assert first.shape == (20, 2, 16, 16)
    assert set(np.unique(first[:, 1])) <= {0, 1}
    fresh = generators.build(task(settings, level))
    fresh.load(generator.weights())
    np.testing.assert_array_equal(fresh.sample(20, seed=3, device=CPU, threads=1), first)
    assert (fresh.sample(20, seed=4, device=CPU, threads=1) != first).any()


@contextmanager
def ended_in_step(number):
    """Within, a run saves after every step and is ended in this one."""

    def record(loop, values):
        if values["step"] == number:
            raise InterruptedError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        hours = itertools.count(0, 3600)
        patch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(hours)))
        patch.setattr(training.Loop, "_record", record)
        yield


@pytest.mark.parametrize(
    "settings", [TINY, STARTED, DENOISER], ids=["wgan", "wgan from phantoms", "diffusion"]
)
def test_resuming_changes_nothing(tmp_path, pairs, settings):
    given = task(settings, "sigma-1")
    start = started(given, tmp_path)
    whole, first, second = (generators.build(given, pairs, start) for _ in range(3))
    whole.fit(tmp_path / "whole", CPU, {})
    with ended_in_step(3):
        first.fit(tmp_path / "halves", CPU, {})
    second.fit(tmp_path / "halves", CPU, {})
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, second.weights()[name]), name


def test_real_hands_patches_through(pairs):
    generator = generators.build(task(config.RealGenerator(kind="real")), pairs)
    drawn = generator.sample(50, seed=1, device=CPU, threads=1)
    originals = {bytes(pair) for pair in artifacts.open_pairs(pairs)}
    assert len({bytes(pair) for pair in drawn}) == 50
    assert {bytes(pair) for pair in drawn} <= originals
    assert generator.spent()["guarantee"] == "none"
    assert generator.spent()["epsilon"] is None


def test_phantom_is_public_and_needs_no_patches():
    settings = config.PhantomGenerator(
        kind="phantom", volumes=2, phantom=config.Phantom(shape=(48, 48, 12), zooms=(1.3, 1.3, 2.0))
    )
    generator = generators.build(task(settings))
    drawn = generator.sample(31, seed=1, device=CPU, threads=1)
    assert drawn.shape == (31, 2, 16, 16)
    assert drawn[:, 1].any()
    assert generator.spent()["epsilon"] == generator.spent()["epsilon_patient"] == 0


def test_every_registered_generator_builds():
    kinds = {
        model.model_fields["kind"].annotation.__args__[0]
        for model in config.models_in(config.Generator)
    }
    assert kinds == set(generators.REGISTRY)


@pytest.mark.parametrize("settings", [DENOISER, STARTED], ids=["diffusion", "wgan"])
def test_resuming_a_start_changes_nothing(tmp_path, settings):
    given = task(settings)
    whole = generators.build(given).learn_start(tmp_path / "whole", CPU, {})
    with ended_in_step(2):
        generators.build(given).learn_start(tmp_path / "halves", CPU, {})
    halves = generators.build(given).learn_start(tmp_path / "halves", CPU, {})
    for name, tensor in whole.items():
        assert torch.equal(tensor, halves[name]), name


def test_denoiser_learns_from_phantoms(tmp_path):
    settings = DENOISER.model_copy(update={"public_steps": 150, "public_rate": 5e-3})
    generators.build(task(settings)).learn_start(tmp_path / "state", CPU, {})
    lines = (tmp_path / "state/history.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 150
    assert np.mean(losses[130:]) < 0.7 * np.mean(losses[:20])


def test_training_goes_on_from_the_start(tmp_path, pairs):
    """With steps too small to move anything, what comes out is the start."""
    settings = DENOISER.model_copy(update={"learning_rate": 1e-12})
    given = task(settings, "sigma-1")
    path = started(given, tmp_path)
    generator = generators.build(given, pairs, path)
    generator.fit(tmp_path / "state", CPU, {})
    start, _ = artifacts.load_tensors(path)
    fresh = generators.build(given).weights()
    for name, tensor in generator.weights().items():
        torch.testing.assert_close(tensor, start[name], rtol=0, atol=1e-7)
    assert any(not torch.equal(fresh[name], start[name]) for name in start)


def test_a_start_of_other_settings_is_refused_by_name(tmp_path, pairs):
    path = started(task(DENOISER), tmp_path)
    other = DENOISER.model_copy(update={"public_steps": 5})
    with pytest.raises(artifacts.ArtifactError, match=r"settings\.public_steps is 4 there"):
        generators.build(task(other), pairs, path).fit(tmp_path / "state", CPU, {})
    private = DENOISER.model_copy(update={"steps": 4})
    generators.build(task(private), pairs, path).fit(tmp_path / "state", CPU, {})


OTHER = {
    "steps": 9, "batch_size": 5, "patient_batch_size": 7, "patient_patches": 9, "multiplicity": 3,
    "learning_rate": 0.5, "clip_norm": 2.5, "tuned": "norms", "timesteps": (0.2, 0.8),
    "sampling_steps": 7, "volumes": 3, "bandwidth": 2.0, "generator_updates": 9, "label_threshold": -0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    "settings", [DENOISER, STARTED, FITTED], ids=["diffusion", "wgan", "fitted"]
)
def test_a_start_does_not_read_what_only_private_training_reads(tmp_path, settings):
    """So that one start serves every private setting, and their change makes no new one."""
    usual = generators.build(task(settings)).learn_start(tmp_path / "usual", CPU, {})
    for key in sorted(settings.PRIVATE_KEYS):
        changed = settings.model_copy(update={key: OTHER[key]})
        start = generators.build(task(changed)).learn_start(tmp_path / key, CPU, {})
        assert all(torch.equal(tensor, start[name]) for name, tensor in usual.items()), key
        study = config.Study(generators={"real": {"kind": "real"}, "g": changed}, points=())
        assert getattr(study.start_task("g", 0).settings, key) != OTHER[key]


def test_the_seed_decides_every_weight_of_the_denoiser():
    one, same, other = (
        generators.build(task(DENOISER).model_copy(update={"seed": seed})).network.state_dict()
        for seed in (3, 3, 4)
    )
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name])
        assert "norm" in name or not torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(("which", "least"), [("norms", 1), ("late", 2), ("all", 3)])
def test_private_steps_move_what_is_tuned_and_no_more(tmp_path, pairs, which, least):
    settings = DENOISER.model_copy(update={"tuned": which, "public": None, "average": 0.0})
    generator = generators.build(task(settings, "sigma-1"), pairs)
    before = {name: tensor.clone() for name, tensor in generator.network.state_dict().items()}
    generator.fit(tmp_path / "state", CPU, {})
    after = generator.network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    chosen = {id(parameter) for parameter in diffusion.tuned(generator.network, which)}
    named = dict(generator.network.named_parameters())
    assert moved == {name for name in named if id(named[name]) in chosen}
    assert len(moved) >= least * 10


def test_copies_of_a_record_count_as_one(pairs):
    """However many noise levels show a record, it moves the sum by at most the clip norm."""
    settings = DENOISER.model_copy(update={"multiplicity": 16, "public": None})
    generator = generators.build(task(settings, "sigma-1"), pairs)
    objective = diffusion.Denoising(settings)
    rows = objective.rows(artifacts.open_pairs(pairs)[:1], 16, (0.0, 1.0), coins(1))
    assert len(rows[0]) == 16

    def losses(part):
        return objective.losses(generator.network, *rows).view(-1, 16).mean(1)

    sums, _ = clipping.clipped_sum(generator.network, losses, 1, 1e-3, rows=16)
    assert torch.stack([part.norm() for part in sums]).norm() == pytest.approx(1e-3, rel=1e-4)


def test_private_steps_see_the_part_of_the_schedule_they_are_told():
    objective = diffusion.Denoising(DENOISER)
    pairs = np.zeros((400, 2, 8, 8), np.uint8)
    _, times, _ = objective.rows(pairs, 1, (0.3, 0.6), coins(400))
    assert times.min() >= 300
    assert times.max() < 600


def of_noise(tmp_path, noise):
    """Patches of four patients, all scanned with one noise, in the way of the study."""
    phantom = FITTED.phantom.with_values({"scanner.noise": noise, "scanner.blur": 0.7})
    data = cut_from([phantom] * 4, 200, 16, seed=5, threads=0)
    path = tmp_path / f"noise-{noise}.npy"
    artifacts.save_pairs(path, data)
    owners = pd.DataFrame({"participant_id": [f"sub-{n // 50}" for n in range(200)]})
    artifacts.write_table(path.with_suffix(".tsv"), owners)
    return path


def test_fitted_phantoms_follow_the_patients(tmp_path):
    """Fitted to noisy patients the phantoms are noisier than those fitted to clean ones."""
    noise, start = {}, started(task(FITTED), tmp_path)
    for level in ("none", "patient-eps-10"):
        for truth in (0.03, 0.35):
            generator = generators.build(task(FITTED, level), of_noise(tmp_path, truth), start)
            generator.fit(tmp_path / "state", CPU, {})
            noise[truth] = generator.drawn[:, generator.names.index("scanner.noise")].mean()
        assert noise[0.03] + 0.1 < noise[0.35], level


def test_fitted_sample_load_and_ranges(tmp_path, pairs):
    given = task(FITTED, "patient-eps-1")
    generator = generators.build(given, pairs, started(given, tmp_path))
    generator.fit(tmp_path / "state", CPU, {})
    first = generator.sample(20, seed=3, device=CPU, threads=1)
    assert first.shape == (20, 2, 16, 16)
    fresh = generators.build(task(FITTED, "patient-eps-1"))
    fresh.load(generator.weights())
    np.testing.assert_array_equal(fresh.sample(20, seed=3, device=CPU, threads=1), first)
    for column, name in enumerate(generator.names):
        low, high = FITTED.phantom.vary[name]
        assert ((generator.drawn[:, column] >= low) & (generator.drawn[:, column] <= high)).all()


def test_fitted_asks_every_patient_once():
    generator = generators.build(task(FITTED, "patient-eps-2"))
    assert generator.charge.draws == 1
    assert generator.charge.sampling_rate == 1
    assert generator.spent()["epsilon_patient"] == pytest.approx(2, rel=0.01)
    with pytest.raises(ValueError, match="patient-eps-X"):
        study = config.Study(generators={**config.Study().generators, "fitted": FITTED})
        study.check_point("first", "fitted", "eps-1")


def test_statistics_of_anything_are_finite(rng):
    flat = np.zeros((3, 2, 16, 16), np.uint8)
    full = flat.copy()
    full[:, 1] = 1
    single = flat.copy()
    single[:, 1, 8, 8] = 1
    noise = rng.integers(0, 256, (3, 2, 16, 16)).astype(np.uint8)
    noise[:, 1] %= 2
    for pairs in (flat, full, single, noise):
        assert np.isfinite(fitted.statistics(pairs)).all()
        assert (np.abs(fitted.statistics(pairs)) <= 5).all()


def test_directions_are_those_that_settings_move(rng):
    """One setting moves one of twenty statistics; the rest is noise."""
    settings = rng.random((200, 1))
    found = rng.normal(size=(200, 20))
    found[:, 7] = 5 * settings[:, 0] + 0.1 * rng.normal(size=200)
    found -= found.mean(0)
    matrix = fitted.canonical_directions(settings, found, 1)
    assert abs(np.corrcoef(found @ matrix[:, 0], settings[:, 0])[0, 1]) > 0.98
    assert (found @ matrix).std() == pytest.approx(1)


def test_public_start_costs_nothing_and_changes_what_is_learned(tmp_path, pairs):
    plain = generators.build(task(TINY, "sigma-1"), pairs)
    given = task(STARTED, "sigma-1")
    from_phantoms = generators.build(given, pairs, started(given, tmp_path))
    assert from_phantoms.spent() == plain.spent()
    assert from_phantoms.work() == plain.work()
    assert from_phantoms.public_work() > 0
    for generator in (plain, from_phantoms):
        generator.fit(tmp_path / str(id(generator)), CPU, {})
    learned = from_phantoms.weights()
    assert any(not torch.equal(tensor, learned[name]) for name, tensor in plain.weights().items())
