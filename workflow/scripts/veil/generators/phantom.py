"""`phantom`: patches of public procedural volumes (floor 4). The floor of every table.

Privacy: reads nothing private, so epsilon is 0 at every unit. Its settings must not be
tuned on private patients: that would be a release nobody charged for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veil import config
from veil.cohorts import phantoms
from veil.generators.base import Generator
from veil.patches import choose_centres, cut
from veil.privacy import ledger


class Phantoms(Generator):
    """Draws phantoms and cuts patches as they are cut from patients."""

    def spent(self) -> dict[str, Any]:
        return ledger.public()

    def fit(self, state: Path, device: torch.device, identity: Mapping[str, Any]) -> None:
        pass

    def weights(self) -> dict[str, Tensor]:
        return {}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        pass

    def sample(self, pairs: int, seed: int, device: torch.device, threads: int) -> np.ndarray:
        settings = self.task.settings
        assert isinstance(settings, config.PhantomGenerator)
        return cut_from([settings.phantom] * settings.volumes, pairs, self.task.size, seed, threads)


def cut_from(
    chosen: Sequence[config.Phantom], pairs: int, size: int, seed: int, threads: int
) -> np.ndarray:
    """Pairs, uint8 (pairs, 2, size, size), as evenly as may be from a volume of each phantom.

    With `threads` of 0 in this process.
    """
    shares = np.full(len(chosen), pairs // len(chosen))
    shares[: pairs % len(chosen)] += 1
    seeds = np.random.SeedSequence(seed).generate_state(len(chosen), np.uint64)
    work = [
        (phantom, size, int(n), int(s))
        for phantom, n, s in zip(chosen, shares, seeds, strict=True)
        if n
    ]
    if not threads:
        return np.concatenate(list(map(_cut_one, work)))
    with ProcessPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(_cut_one, work)))


def _cut_one(work: tuple[config.Phantom, int, int, int]) -> np.ndarray:
    phantom, size, count, seed = work
    drawn = phantoms.draw(phantom, seed)
    cutting = config.Patches(size=size, per_patient=max(count, 2))
    rng = np.random.default_rng(seed)
    centres, _ = choose_centres(drawn.label.astype(bool), drawn.brain.astype(bool), cutting, rng)
    return cut(drawn.image, drawn.label, centres[:count], size)
