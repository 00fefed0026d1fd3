"""The interface of every generator (floor 4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veil.config import Task
from veil.privacy.audit import Canaries, Watched


class Generator(ABC):
    """Fit on private patches under a privacy level, then sample labelled pairs."""

    def __init__(self, task: Task, patches: Path | None = None, start: Path | None = None):
        """`patches` is the place of the private patches, for those that may read them, and `start`
        that of what `learn_start` gave, for those that are to go on from it."""
        self.task, self.patches, self.start = task, patches, start

    @abstractmethod
    def spent(self) -> dict[str, Any]:
        """The privacy statement: a function of public settings, so it can be read beforehand."""

    def learn_start(
        self, state: Path, device: torch.device, identity: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Learn from public phantoms alone, resuming as `fit` does, what `fit` goes on from.

        For generators with a public stage (`config.Study.starts`).
        """
        raise NotImplementedError(f"{type(self).__name__} has no public stage")

    @abstractmethod
    def fit(self, state: Path, device: torch.device, identity: Mapping[str, Any]) -> None:
        """Learn from the patches, resuming from the state folder if it holds a checkpoint."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """What `sample` needs, and nothing of what only training needed."""

    @abstractmethod
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take up what `weights` gave."""

    @abstractmethod
    def sample(self, pairs: int, seed: int, device: torch.device, threads: int) -> np.ndarray:
        """Labelled pairs, uint8 (pairs, 2, size, size), as in `artifacts.save_pairs`."""

    def recognise(self, pairs: np.ndarray, seed: int, device: torch.device) -> np.ndarray | None:
        """For an attacker who holds the weights: how well the model knows each of the pairs (n,).

        None for generators that cannot tell.
        """
        return None

    def rehearse(self, canaries: Canaries) -> Watched:
        """Train on canaries as `fit` trains on patches, watched by an attacker.

        For generators that take a privacy level; others have nothing to audit.
        """
        raise NotImplementedError(f"{type(self).__name__} has no private training to audit")
