"""Watching: what a run tells of itself while it goes on."""

from __future__ import annotations

import itertools
import json
import math
import os
import time

import numpy as np
import pytest
import torch

from veil import artifacts, config, generators, training
from veil.report import progress

SETTINGS = config.WganGenerator(
    kind="wgan", generator_width=4, critic_width=4, latent=8, batch_size=8, generator_updates=6,
)  # fmt: skip


def task(level: str) -> config.Task:
    return config.Task(
        settings=SETTINGS, level=config.PrivacyLevel.parse(level), size=16, records=200, per_patient=50,
        patients=4, delta=1e-3, seed=3,
    )  # fmt: skip


@pytest.fixture
def running(tmp_path, rng, monkeypatch):
    """A results folder in which a private training has told of its last step."""
    monkeypatch.setattr(training, "SECONDS_BETWEEN_LINES", -1)
    pairs = rng.integers(0, 256, (200, 2, 16, 16)).astype(np.uint8)
    pairs[:, 1] //= 200
    artifacts.save_pairs(tmp_path / "patches.npy", pairs)
    given = task("sigma-1")
    generator = generators.build(given, tmp_path / "patches.npy")
    state = tmp_path / "results/first/wgan/sigma-1/seed-0/generator/state"
    identity = {"task": json.loads(given.model_dump_json())}
    generator.fit(state, torch.device("cpu"), identity)
    return tmp_path / "results", state / training.PROGRESS, generator


def test_a_training_says_its_step_epsilon_and_losses(running, tmp_path):
    results, told, generator = running
    (tmp_path / "logs").mkdir()
    text = progress.shown(results, tmp_path / "logs")
    stated = generator.spent()
    assert "first/wgan/sigma-1/seed-0/generator: step 6 of 6  0 s left" in text
    assert f"ε so far {stated['epsilon']:.3g} per patch" in text
    assert "(δ = 0.001, add or remove one patch, " in text
    assert "no run yet" in text
    for name in json.loads(told.read_text())["values"]:
        assert name in text


def test_epsilon_grows_with_the_steps_up_to_what_is_stated(running):
    _, _, generator = running
    spent = [generator.epsilons_after(step) for step in (0, 1, 3, 6)]
    assert spent[0] == (0.0, 0.0)
    for of_unit in zip(*spent, strict=True):
        assert all(a < b for a, b in itertools.pairwise(of_unit))
    assert spent[-1] == generator.ledger.epsilons()
    assert generators.build(task("none")).epsilons_after(1) == (math.inf, math.inf)


def test_jobs_are_counted_in_the_newest_run(tmp_path):
    for number, steps in enumerate(("3 of 9 steps (33%) done\n", "1 of 500 steps (0.2%) done\n")):
        log = tmp_path / f"{number}.snakemake.log"
        log.write_text(steps)
        os.utime(log, (number, number))
    assert progress.jobs(tmp_path) == "1 of 500 jobs done"


def test_a_silent_training_is_called_silent(running, tmp_path):
    results, told, _ = running
    long_ago = time.time() - 2 * progress.QUIET
    os.utime(told, (long_ago, long_ago))
    assert "(silent for 10 min)" in progress.shown(results, tmp_path)
