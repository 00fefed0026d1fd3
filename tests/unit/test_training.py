"""The loop: killed at any step it ends where an undisturbed run ends; damage is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from veil import artifacts, training

SCRIPT = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, {library!r})
from veil import training

class Walk:
    def __init__(self):
        self.model = torch.nn.Linear(3, 3)
        torch.nn.init.ones_(self.model.weight); torch.nn.init.ones_(self.model.bias)
        self.optimiser = torch.optim.Adam(self.model.parameters(), 0.1)
        self.random = torch.Generator().manual_seed(5)
    def step(self):
        loss = self.model(torch.randn(4, 3, generator=self.random)).square().mean()
        self.optimiser.zero_grad(); loss.backward(); self.optimiser.step()
        time.sleep({pause})
        return {{"loss": float(loss.detach())}}
    def parts(self):
        return dict(model=self.model, optimiser=self.optimiser, random=self.random)
    def state(self):
        return training.pack(**self.parts())
    def load_state(self, state):
        training.unpack(state, **self.parts())

training.Loop(steps=60, folder=Path(sys.argv[1]), identity={{"run": 1}}, seconds_between_saves=0.0).run(Walk())
"""


def start(folder: Path, pause: float) -> subprocess.Popen:
    text = SCRIPT.format(library=str(ROOT / "workflow/scripts"), pause=pause)
    return subprocess.Popen([sys.executable, "-c", text, str(folder)])


def steps_in(folder: Path) -> int:
    path = folder / "history.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_killed_runs_end_where_an_undisturbed_one_ends(tmp_path):
    """Killed three times, each time after more steps; privacy/faults.py does it by the dozen."""
    assert start(tmp_path / "whole", 0).wait() == 0
    for steps in (7, 20, 41):
        run = start(tmp_path / "killed", 0.02)
        while run.poll() is None and steps_in(tmp_path / "killed") < steps:
            time.sleep(0.005)
        run.kill()
        run.wait()
    assert steps_in(tmp_path / "killed") < 60
    assert start(tmp_path / "killed", 0).wait() == 0
    whole, meta = artifacts.load_tensors(tmp_path / "whole/checkpoint.safetensors")
    killed, _ = artifacts.load_tensors(tmp_path / "killed/checkpoint.safetensors")
    assert meta["step"] == 60
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    lines = [json.loads(x) for x in (tmp_path / "killed/history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61))


class Still:
    def step(self):
        return {}

    def state(self):
        return {"x": torch.ones(3)}

    def load_state(self, state):
        self.loaded = state


def test_a_checkpoint_of_another_configuration_is_refused_by_name(tmp_path):
    training.Loop(steps=2, folder=tmp_path, identity={"task": {"rate": 1, "seed": 3}}).run(Still())
    other = training.Loop(steps=2, folder=tmp_path, identity={"task": {"rate": 2, "seed": 3}})
    with pytest.raises(artifacts.ArtifactError, match=r"task.rate is 1 there and 2 here.*delete"):
        other.run(Still())
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_flipped_bits_are_refused(tmp_path, rng):
    path = tmp_path / "checkpoint.safetensors"
    training.Loop(steps=1, folder=tmp_path, identity={}).run(Still())
    whole = path.read_bytes()
    for place in rng.integers(0, len(whole), 100):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(artifacts.ArtifactError):
            artifacts.load_tensors(path)


def test_equal_tensors_give_equal_bytes(tmp_path):
    for n in range(6):
        artifacts.save_tensors(
            tmp_path / f"{n}.safetensors", {"x": torch.ones(2)}, {"a": 1, "b": 2}
        )
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    artifacts.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        artifacts.write_json(path, {"a": float("nan")})
    assert artifacts.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_tables_keep_identifiers_as_text(tmp_path):
    (tmp_path / "a.tsv").write_text("participant_id\tvalue\n007\tn/a\n")
    table = artifacts.read_table(tmp_path / "a.tsv")
    assert table["participant_id"].tolist() == ["007"]
    assert np.isnan(table["value"].iloc[0])


PLACE = """
import sys; sys.path.insert(0, {library!r})
from veil import training
print(training.place_among_jobs(), flush=True)
sys.stdin.read()
"""


def test_jobs_beside_each_other_spread_over_the_gpus(monkeypatch, tmp_path):
    """Real processes take their places; only the GPUs are imagined."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    text = PLACE.format(library=str(ROOT / "workflow/scripts"))
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    try:
        assert {int(job.stdout.readline()) for job in jobs} == {0, 1, 2}
        monkeypatch.setattr(training.tempfile, "tempdir", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert training.choose_device.__wrapped__() == torch.device("cuda", 1)  # place 3
        jobs[1].kill()
        jobs[1].wait()
        assert training.place_among_jobs() < 3  # a place that a dead job left
    finally:
        for job in jobs:
            job.kill()
            job.wait()
        for file in training.HELD:
            file.close()
        training.HELD.clear()
