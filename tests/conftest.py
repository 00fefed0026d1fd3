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
CASE = re.compile(r"[a-z]+, (?:patch|patient|as published)(?=\]$)")


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
    """Print what tests counted (their property `summary`), and which statements hold of what."""
    stats = terminalreporter.stats
    passed, failed = stats.get("passed", []), stats.get("failed", [])
    for report in [*passed, *failed]:
        for name, value in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(value)
    held, broken = statements(passed), statements(failed)
    for case in sorted({*held, *broken}):
        missing = broken.get(case, set())
        good = held.get(case, set()) - missing
        shown = f"{len(good)} hold" + (f", broken: {', '.join(sorted(missing))}" if missing else "")
        terminalreporter.write_line(f"statements, {case}: {shown} ({', '.join(sorted(good))})")


def statements(reports) -> dict[str, set[str]]:
    """Numbers of the statements that reports are of, by the generator that they were tried on."""
    found: dict[str, set[str]] = {}
    for report in reports:
        if match := STATEMENT.search(report.nodeid):
            case = CASE.search(report.nodeid)
            found.setdefault(case[0] if case else "of the library", set()).add(match[0])
    return found
