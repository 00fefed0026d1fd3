"""`real`: hands the training patches through (floor 4). The ceiling of every table.

Privacy: none whatsoever; its "synthetic" set is real patients and never leaves the building.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veil import artifacts
from veil.generators.base import Generator
from veil.privacy import ledger


class Real(Generator):
    """The training patches themselves; nothing is learned."""

    def spent(self) -> dict[str, Any]:
        return ledger.without_privacy()

    def fit(self, state: Path, device: torch.device, identity: Mapping[str, Any]) -> None:
        pass

    def weights(self) -> dict[str, Tensor]:
        return {}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        pass

    def sample(self, pairs: int, seed: int, device: torch.device, threads: int) -> np.ndarray:
        """A random subset of the patches, without repeats; all of them if too few."""
        assert self.patches is not None, "the real patches are needed to hand them through"
        patches = artifacts.open_pairs(self.patches)
        chosen = np.random.default_rng(seed).permutation(len(patches))[:pairs]
        return patches[np.sort(chosen)]
