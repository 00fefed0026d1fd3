"""Shared by all tests: the project's root, the tiny study, real scans where there are any."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)
STATEMENT = re.compile(r"(?<=test_statements.py::test_)\d\d")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; tests that need it skip, saying so, where there is none."""
    place = os.environ.get("VEIL_REAL_DATA", "")
    if not place or not (path := Path(place).resolve()).is_dir():
        pytest.skip("VEIL_REAL_DATA is not set: no real scans to test on")
    return path


def pytest_terminal_summary(terminalreporter):
    """Print what tests counted (their property `summary`), and how many statements hold."""
    passed = terminalreporter.stats.get("passed", [])
    for report in [*passed, *terminalreporter.stats.get("failed", [])]:
        for name, value in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(value)
    held = {name for report in passed for name in STATEMENT.findall(report.nodeid)}
    broken = {
        name
        for report in terminalreporter.stats.get("failed", [])
        for name in STATEMENT.findall(report.nodeid)
    }
    if held | broken:
        terminalreporter.write_line(f"statements that hold: {len(held - broken)}/17")
