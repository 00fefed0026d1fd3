"""The profiles on a real SLURM of one node: see slurm.py, which says what it needs."""

from __future__ import annotations

import time

import pytest
import slurm


@pytest.fixture(scope="module")
def cluster():
    if reason := slurm.why_not():
        pytest.skip(f"no SLURM: {reason}")
    with slurm.Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("slurm") / "project"


@pytest.mark.parametrize("check", slurm.CHECKS, ids=lambda check: check.__name__)
def test_on_slurm(cluster, place, check, record_property):
    start = time.monotonic()
    note = check(cluster, place)
    record_property("summary", f"SLURM, {check.__name__}: {time.monotonic() - start:.0f} s, {note}")
