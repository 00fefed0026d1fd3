"""Shared by all tests: the project's root, the tiny study, real scans where there are any."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)


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
