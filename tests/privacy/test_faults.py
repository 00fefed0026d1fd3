"""Kills, flipped bits and files of other runs: a short version of `faults.py`, and what else may lie about."""

from __future__ import annotations

import faults
import numpy as np
import pytest
import torch

from veil import artifacts
from veil.privacy.mechanism import ChargeError


@pytest.fixture
def place(tmp_path):
    faults.prepare(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", faults.KINDS)
def test_killed_runs_end_in_the_same_bytes(kind, place, rng):
    found = faults.kill(faults.task(**faults.KINDS[kind]), place, 2, rng)
    assert found["killed"] == found["equal to the bit"] == 2


def test_flipped_bits_are_refused_by_name(place, rng):
    assert faults.flip(faults.task(), place, 45, rng) == {"refused": 45}


@pytest.mark.parametrize("name", faults.RESULTS[:2] + faults.RESULTS[3:])
def test_a_file_cut_short_is_refused_by_name(name, place, rng):
    given = faults.task()
    faults.produce(given, place, place / "run")
    path = place / "run" / name
    whole = path.read_bytes()
    for size in (0, *rng.integers(1, len(whole), 6)):
        path.write_bytes(whole[:size])
        with pytest.raises(artifacts.ArtifactError, match=path.name):
            faults.read(path.name, given, place, place / "run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"level": "sigma-0.7"}, "task.level"),
        ({"seed": 2}, "task.seed is 1 there and 2 here"),
        ({"loop": "as-published"}, "task.settings.loop"),
        ({"delta": 0.02}, "task.delta is 0.01 there and 0.02 here"),
    ],
)
def test_a_state_of_another_configuration_is_refused_by_name(changes, words, place):
    faults.fit(faults.task(), place, place / "run")
    with pytest.raises(artifacts.ArtifactError, match=words):
        faults.fit(faults.task(**changes), place, place / "run")


def test_a_state_with_fewer_or_more_draws_than_steps_is_refused(place):
    """Forged whole: the checksum is right and the ledger inside is older than the weights."""
    given = faults.task()
    faults.fit(given, place, place / "run")
    path = place / "run/state/checkpoint.safetensors"
    tensors, meta = artifacts.load_tensors(path)
    for draws in (0, 145, 155):
        tensors["mechanism.draws"] = torch.tensor(draws)
        artifacts.save_tensors(path, tensors, meta)
        with pytest.raises(ChargeError, match=f"{draws} draws were made and 150 charged"):
            faults.fit(given, place, place / "run")


def test_a_run_with_secure_noise_resumes_and_never_repeats(place):
    """The key lies in the checkpoint, so that a kill changes nothing; another run has another."""
    given = faults.task(noise="secure")
    made = []
    for out in (place / "first", place / "second"):
        faults.fit(given, place, out)
        tensors, _ = artifacts.load_tensors(out / "state/checkpoint.safetensors")
        made.append(tensors)
    assert not torch.equal(made[0]["mechanism.noise"], made[1]["mechanism.noise"])
    name = next(n for n in made[0] if n.startswith("critic.") and n.endswith("weight"))
    assert not torch.equal(made[0][name], made[1][name])


def test_secure_streams_go_on_where_they_stood():
    from veil.privacy.noise import rounded_normal
    from veil.privacy.randomness import Secure

    first, second, names = Secure(), Secure(), np.arange(5, dtype=np.uint64)
    second.load_state(first.state())
    for release in (0, 7):
        assert torch.equal(*(rounded_normal(s, 1e6, 777, release=release) for s in (first, second)))
    np.testing.assert_array_equal(first.uniform(3, names), second.uniform(3, names))
