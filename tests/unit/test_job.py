"""What every entry point does: with a GPU that was promised, with inputs from the future."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
import torch

import job


@pytest.mark.parametrize(
    ("resources", "refused"),
    [
        ({"gpu": 1, "require_gpu": 1}, True),
        ({"gpu": 0, "gres": "gpu:1", "require_gpu": 1}, True),
        ({"gpu": 0, "require_gpu": 1}, False),
        ({"require_gpu": 1}, False),
        ({"gpu": 1, "require_gpu": 0}, False),
        ({"gpu": 1}, False),  # every local run
    ],
)
def test_a_job_that_was_promised_a_gpu_fails_before_it_works(monkeypatch, resources, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    worked = run(resources)
    assert worked != refused


def test_it_says_what_is_missing_and_what_is_allowed(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not run({"gpu": 1, "require_gpu": 1})
    for words in (
        "train_generator: ",
        "no CUDA device",
        "require_gpu: 0",
    ):
        assert words in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert run({"gpu": 1, "require_gpu": 1})


def test_an_input_of_a_clock_that_runs_ahead_is_waited_for_or_refused(tmp_path, caplog):
    path = tmp_path / "pairs.npy"
    path.write_bytes(b"0")
    os.utime(path, (0, time.time() + 1.5))
    start = path.stat().st_mtime
    assert run({}, path) and time.time() >= start
    os.utime(path, (0, time.time() + 86400))
    assert not run({}, path)
    assert f"{path}: last written at " in caplog.text and "`touch` it" in caplog.text


def run(resources, *inputs):
    """Whether a job with these resources comes to its work."""
    snakemake = SimpleNamespace(
        log=[], input=inputs, output=[], threads=1, rule="train_generator", resources=resources
    )
    try:
        with job.running(snakemake):
            return True
    except SystemExit:
        return False
