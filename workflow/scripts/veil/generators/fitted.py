"""`fitted`: phantoms whose settings follow a few private numbers (floor 4).

What the settings of a phantom do to its patches is learned on phantoms alone: many are drawn from
the ranges under `vary`, the same statistics are taken of each as of a patient, and the few
directions in which settings show most are found by canonical correlation. Then one private
release tells the mean of the training patients along those directions, and the settings are
drawn anew, near to it, by approximate Bayesian computation with a regression adjustment (Beaumont,
Zhang and Balding 2002).

Privacy: the release is one Gaussian mechanism on a sum of one clipped vector a patient, all
patients in it; everything before it is public and everything after it is post-processing. Unit
patient, add or remove one. What would void it: ranges or directions that were chosen by looking
at the private patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from veil import config
from veil.generators.phantom import cut_from
from veil.generators.private import PrivateGenerator
from veil.privacy.audit import Canaries, Watched
from veil.provenance import derive_seed

PATCHES = 40  # of a public phantom, for its statistics
DRAWS_AT_LEAST = 10  # phantoms that a posterior must rest on, or it is widened
RIDGE = 1e-3


class Fitted(PrivateGenerator):
    """Settings of phantoms, drawn from what the private patients allow."""

    access = "mean statistics of the training patients"

    def __init__(self, task: config.Task, patches: Path | None = None, start: Path | None = None):
        super().__init__(task, patches, start)
        assert isinstance(task.settings, config.FittedGenerator)
        self.settings = task.settings
        self.names = sorted(task.settings.phantom.vary)
        self.drawn = torch.zeros(task.settings.volumes, len(self.names), dtype=torch.float64)

    @property
    def batch(self) -> int:
        return self.units  # every patient is in the one sum

    @property
    def steps_wanted(self) -> int:
        return 1

    @property
    def clip_norm(self) -> float:
        return self.settings.clip_norm

    def fit(self, state: Path, device: torch.device, identity: Mapping[str, Any]) -> None:
        pairs, owners, mechanism = self.private()
        if owners is None:
            owners = self.rows_of_patients()
        lesson = Directions(**{name: part.numpy() for name, part in self.given_start().items()})
        seen = np.stack([lesson.along(statistics(pairs[rows])) for rows in owners])
        batch = mechanism.draw()
        chosen = seen if self.task.level.kind == "none" else seen[batch.indices.numpy()]
        mean = batch.release_vectors(torch.from_numpy(chosen)).numpy() / self.task.patients
        mechanism.settle()
        error = 0.0
        if self.task.level.kind != "none":
            error = self.charge.noise_multiplier * self.clip_norm / self.task.patients
        random = np.random.default_rng(derive_seed(self.task.seed, "settings"))
        drawn = lesson.settings_near(
            mean, error, self.settings.bandwidth, self.settings.volumes, random
        )
        self.drawn = torch.from_numpy(drawn)

    def learn_start(
        self, state: Path, device: torch.device, identity: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        found = learn_directions(self.settings, self.task.size, self.task.seed)
        return {name: torch.from_numpy(part) for name, part in vars(found).items()}

    def rehearse(self, canaries: Canaries) -> Watched:
        watched, _ = self.watched(canaries)
        batch = watched.draw()
        shown = canaries[batch.indices.numpy()][:, 1].reshape(len(batch), canaries.edge**2)
        # Beyond the clip norm, and pointing down as a gradient does.
        batch.release_vectors(torch.from_numpy(-2.0 * self.clip_norm * shown))
        return watched

    def work(self) -> float:
        """None to speak of."""
        return 0.0

    def speed(self) -> float:
        return 1.0

    def weights(self) -> dict[str, Tensor]:
        return {"settings": self.drawn}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        self.drawn = weights["settings"]

    def sample(self, pairs: int, seed: int, device: torch.device, threads: int) -> np.ndarray:
        phantoms = [
            self.settings.phantom.with_values(dict(zip(self.names, row, strict=True)))
            for row in self.drawn.tolist()
        ]
        return cut_from(phantoms, pairs, self.task.size, seed, threads)


# ------------------------------------------------------------------ what is measured


def statistics(pairs: np.ndarray) -> np.ndarray:
    """What patches look like, as a mean over them: float64 (n,), each within about -1..1.

    `pairs` are uint8 (B, 2, H, W). Patches without label or without background tell nothing of
    contrast and count for the share of label alone.
    """
    share = pairs[:, 1].mean((1, 2))
    told = [_of_patch(image, label > 0) for image, label in pairs[(share > 0) & (share < 1)]]
    mean = np.mean(told, 0) if told else np.zeros(len(LOOKS))
    return np.concatenate([[share.mean(), (share > 0).mean()], mean])


LOOKS = (
    "vessel q10", "vessel q50", "vessel q90", "tissue q10", "tissue q50", "tissue q90", "contrast",
    "noise", "sharpness", "patchiness", "radius over 1", "radius over 2", "radius over 4",
)  # fmt: skip


def _of_patch(image: np.ndarray, label: np.ndarray) -> list[float]:
    """The LOOKS of one image, uint8 (H, W), with its label, bool (H, W)."""
    grey = image.astype(np.float32) / 255
    near = ndimage.binary_dilation(label, iterations=2)
    tissue = grey[~near] if not near.all() else grey[~label]
    vessel = grey[label]
    contrast = float(np.median(vessel) - np.median(tissue))
    smooth = ndimage.uniform_filter(grey, 3)
    slope = np.hypot(*np.gradient(grey))
    border = near & ~ndimage.binary_erosion(label)
    depth = ndimage.distance_transform_edt(label)[label]
    return [
        *np.quantile(vessel, (0.1, 0.5, 0.9)),
        *np.quantile(tissue, (0.1, 0.5, 0.9)),
        contrast,
        float(np.median(np.abs(grey - smooth)[~near if not near.all() else ~label])) * 10,
        float(slope[border].mean()) / max(abs(contrast), 0.05) / 2,
        float(np.std(ndimage.uniform_filter(grey, 9)[~label])) * 4,
        *(float((depth > radius).mean()) for radius in (1, 2, 4)),
    ]


# ------------------------------------------------------------------ what it says of settings


@dataclass(frozen=True, kw_only=True)
class Directions:
    """Public phantoms, and the directions in which their settings show.

    settings (m, p) in the units of `vary`, standing for m phantoms; `along` maps statistics
    to `places` (m, k), of which the phantoms have mean 0 and deviation 1.
    """

    settings: np.ndarray
    ends: np.ndarray
    """Of the ranges, (p, 2)."""
    centre: np.ndarray
    matrix: np.ndarray
    """(n, k)."""
    places: np.ndarray

    def along(self, found: np.ndarray) -> np.ndarray:
        """Statistics (n,) along the directions (k,)."""
        there: np.ndarray = (found - self.centre) @ self.matrix
        return there

    def settings_near(
        self, mean: np.ndarray, error: float, bandwidth: float, count: int,
        random: np.random.Generator,
    ) -> np.ndarray:  # fmt: skip
        """Settings (count, p) of phantoms near `mean` (k,), known up to `error`.

        Phantoms weigh by a normal kernel as wide as bandwidth and error together, which is widened
        until enough of them carry weight, and are then moved along the regression of settings on
        places; never out of their ranges.
        """
        away = ((self.places - mean) ** 2).sum(1)
        width = bandwidth**2 + error**2
        while True:
            weight = np.exp(-(away - away.min()) / (2 * width))
            weight /= weight.sum()
            if 1 / (weight**2).sum() >= min(DRAWS_AT_LEAST, len(weight) / 2):
                break
            width *= 1.3
        chosen = random.choice(len(weight), count, p=weight)
        slope = np.linalg.lstsq(
            self.places - self.places.mean(0), self.settings - self.settings.mean(0), rcond=None
        )[0]
        # What is known of the mean only up to an error moves settings only so far.
        trust = 1 / (1 + error**2)
        spread = bandwidth * random.normal(size=(count, len(mean)))
        target = trust * mean + spread
        moved = self.settings[chosen] + (target - self.places[chosen]) @ slope
        clipped: np.ndarray = np.clip(moved, *self.ends.T)
        return clipped


def learn_directions(settings: config.FittedGenerator, size: int, seed: int) -> Directions:
    """Draw public phantoms from their ranges and find where their settings show."""
    names = sorted(settings.phantom.vary)
    ends = np.array([settings.phantom.vary[name] for name in names])
    random = np.random.default_rng(derive_seed(seed, "candidates"))
    low, high = ends.T
    drawn = low + (high - low) * random.random((settings.candidates, len(names)))
    phantoms = [settings.phantom.with_values(dict(zip(names, row, strict=True))) for row in drawn]
    seeds = random.integers(2**62, size=len(drawn))
    with ProcessPoolExecutor(1) as pool:
        found = np.stack(
            list(pool.map(_statistics_of, phantoms, [size] * len(drawn), map(int, seeds)))
        )
    centre = found.mean(0)
    matrix = canonical_directions(drawn, found - centre, settings.directions)
    return Directions(
        settings=drawn, ends=ends, centre=centre, matrix=matrix, places=(found - centre) @ matrix
    )


def _statistics_of(phantom: config.Phantom, size: int, seed: int) -> np.ndarray:
    return statistics(cut_from([phantom], PATCHES, size, seed, threads=0))


def canonical_directions(settings: np.ndarray, found: np.ndarray, count: int) -> np.ndarray:
    """Of centred statistics (m, n), the `count` directions (n, k) best foretold by settings (m, p).

    Along each the given phantoms have deviation 1.
    """
    values, axes = np.linalg.eigh(found.T @ found / len(found))
    whitener = axes / np.sqrt(values + RIDGE * values.max())
    white = found @ whitener
    inputs = (settings - settings.mean(0)) / settings.std(0)
    foretold = inputs @ np.linalg.lstsq(inputs, white, rcond=None)[0]
    _, _, rows = np.linalg.svd(foretold, full_matrices=False)
    matrix = whitener @ rows[:count].T
    scaled: np.ndarray = matrix / (found @ matrix).std(0)
    return scaled
