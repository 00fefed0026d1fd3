"""Lower bounds on epsilon, found by attacking the mechanism that a claim is about (floor 2).

The attack is on the code that trains, at the point's own schedule: its loop, its sampler, its
clipping and its noise run on canaries instead of patients. Canary i's gradient points along axis
i with the full clip norm, so that every noisy sum shows each of them on its own axis, and one
run holds as many independent trials as there are axes (Nasr et al. 2023; Steinke et al. 2023).
Each canary is present with probability 1/2; who watches every noisy sum guesses which.

Privacy: nothing private is read. A bound above a claim refutes the claim, at the stated
confidence. A bound below it proves nothing, least of all when `ceiling`, the bound that perfect
guesses would have given, is below the claim too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm
from torch import Tensor, nn

from veil.privacy.accounting import Charge
from veil.privacy.clipping import Losses
from veil.privacy.mechanism import Batch, Mechanism
from veil.privacy.randomness import Randomness

CONFIDENCE = 0.95
SHARES = (0.02, 0.1, 0.5)  # of the canaries, how many the one-run audit guesses about


@dataclass(frozen=True)
class Bound:
    """What an audit found."""

    method: str
    lower_bound: float
    ceiling: float
    """The lower bound had every guess been right."""
    confidence: float = CONFIDENCE


class Canaries:
    """Records of which each moves one coordinate of a gradient, and which of them are present.

    Stands where a memory map of pairs would: `canaries[rows]` are uint8 pairs (B, 2, edge, edge)
    whose label has one voxel, the present canaries' own.
    """

    def __init__(self, count: int, random: np.random.Generator):
        self.edge = math.ceil(math.sqrt(count))
        self.count = count
        self.inside = random.random(count) < 0.5
        self._rows = np.flatnonzero(self.inside)

    @property
    def identities(self) -> np.ndarray:
        """Of those that are present, uint64 (n,)."""
        return self._rows.astype(np.uint64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        pairs = np.zeros((len(rows), 2, self.edge**2), np.uint8)
        pairs[np.arange(len(rows)), 1, self._rows[rows]] = 1
        return pairs.reshape(-1, 2, self.edge, self.edge)


class Probe(nn.Module):
    """A linear critic on labels alone: a record's gradient is its label, beyond the clip norm."""

    def __init__(self, edge: int, clip_norm: float):
        super().__init__()
        self.weights = nn.Linear(edge**2, 1, bias=False)
        self.scale = 2 * clip_norm

    def forward(self, pairs: Tensor) -> Tensor:
        return self.scale * self.weights(pairs[:, 1].flatten(1))


class Watched(Mechanism):
    """A mechanism whose every private release is seen by an attacker who keeps score.

    The score of a canary is the log-likelihood ratio of all noisy sums on its axis, present
    against absent; the releases of one draw that show canaries (not those of fakes alone) are read
    together.
    """

    def __init__(
        self, charge: Charge, canaries: Canaries, *, clip_norm: float, sampler: Randomness,
        noise: Randomness, shown_a_draw: int = 1,
    ):  # fmt: skip
        super().__init__(
            charge, units=canaries.count, present=len(canaries), clip_norm=clip_norm,
            sampler=sampler, noise=noise, identities=canaries.identities,
        )  # fmt: skip
        self.scores, self.shown_a_draw = np.zeros(canaries.edge**2), shown_a_draw
        self._seen: list[np.ndarray] = []

    def draw(self) -> Batch:
        return _WatchedBatch(self, super().draw().indices)

    def see(self, sums: list[Tensor]) -> None:
        """Take note of one release; the critic's gradient is minus the records' sum."""
        self._seen.append(-sums[0].flatten().double().numpy() / self.clip_norm)
        if len(self._seen) == self.shown_a_draw:
            rate = self.charge.sampling_rate
            variance = self.charge.noise_multiplier**2 / self.shown_a_draw
            absent = math.log1p(-rate) if rate < 1 else -math.inf
            shown = (2 * np.mean(self._seen, axis=0) - 1) / (2 * variance)
            self.scores += np.logaddexp(absent, shown + math.log(rate))
            self._seen = []


class _WatchedBatch(Batch):
    _mechanism: Watched

    def release(
        self, module: nn.Module, losses: Losses, records: int, rows: int = 1
    ) -> tuple[list[Tensor], Tensor]:
        sums, values = super().release(module, losses, records, rows)
        self._mechanism.see(sums)
        return sums, values

    def release_groups(
        self, module: nn.Module, groups: Iterable[Iterable[Callable[[], Tensor]]]
    ) -> tuple[list[Tensor], Tensor]:
        sums, values = super().release_groups(module, groups)
        self._mechanism.see(sums)
        return sums, values

    def release_vectors(self, vectors: Tensor) -> Tensor:
        total = super().release_vectors(vectors)
        self._mechanism.see([total])
        return total


class Silence(nn.Module):
    """A generator of fakes that say nothing: no label, no gradient."""

    def __init__(self, edge: int):
        super().__init__()
        self.edge, self.nothing = edge, nn.Parameter(torch.zeros(()))

    def forward(self, latents: Tensor) -> Tensor:
        return self.nothing.expand(len(latents), 2, self.edge, self.edge)


# ------------------------------------------------------------------ from scores to bounds


def gradient_canary(scores: np.ndarray, inside: np.ndarray, delta: float) -> Bound:
    """Bound from the error rates of one threshold, by Clopper and Pearson.

    `scores` float (m,), `inside` bool (m,). The threshold is chosen on an eighth of the
    canaries and its errors are counted on the others, so that choosing costs nothing. Two
    inequalities are tried, each at half the error probability.
    """
    first = np.arange(len(scores)) % 8 == 0
    truth = inside[~first]
    present, absent = int(truth.sum()), int((~truth).sum())
    threshold = _best_threshold(scores[first], inside[first], present, absent, delta)
    guessed = scores[~first] >= threshold
    caught, alarms = int((guessed & truth).sum()), int((guessed & ~truth).sum())
    found = _from_errors(caught, present, alarms, absent, delta)
    return Bound("gradient canary", found, _from_errors(present, present, 0, absent, delta))


def _best_threshold(
    scores: np.ndarray, inside: np.ndarray, present: int, absent: int, delta: float
) -> float:
    """The threshold that would do best on so many canaries, by smoothed error rates.

    Counted tails of a few canaries are guesswork: each score stands for a small normal around
    it, half as wide as Silverman's rule has it, which suits what is not normal as well.
    """

    def beyond(own: np.ndarray, count: int) -> np.ndarray:
        width = max(0.53 * own.std() * len(own) ** -0.2, 1e-9)
        return np.rint(count * norm.sf((thresholds[:, None] - own) / width).mean(1)).astype(int)

    if inside.all() or not inside.any():
        return float(np.median(scores))
    thresholds = np.quantile(scores, np.linspace(0, 1, 400))
    expected = zip(beyond(scores[inside], present), beyond(scores[~inside], absent), strict=True)
    bounds = [_from_errors(int(c), present, int(a), absent, delta) for c, a in expected]
    return float(thresholds[int(np.argmax(bounds))])


def _from_errors(caught: int, present: int, alarms: int, absent: int, delta: float) -> float:
    """max(ln((TPR - delta) / FPR), ln((TNR - delta) / FNR)) at the ends of confidence bounds.

    Four one-sided bounds, each at a quarter of the error probability, hold together.
    """
    part = (1 - CONFIDENCE) / 4
    one = (_lower(caught, present, part) - delta) / _upper(alarms, absent, part)
    other = (_lower(absent - alarms, absent, part) - delta) / _upper(
        present - caught, present, part
    )
    return math.log(max(one, other, 1.0))


def _lower(hits: int, trials: int, part: float) -> float:
    return float(beta.ppf(part, hits, trials - hits + 1)) if hits else 0.0


def _upper(hits: int, trials: int, part: float) -> float:
    return float(beta.ppf(1 - part, hits + 1, trials - hits)) if hits < trials else 1.0


def one_run(scores: np.ndarray, inside: np.ndarray, delta: float) -> Bound:
    """Bound from the number of right guesses (Steinke, Nasr and Jagielski 2023, theorem 5.2).

    The highest scores are guessed present and the lowest absent, for several numbers of
    guesses fixed beforehand, among which the error probability is shared.
    """
    order, part = np.argsort(scores), (1 - CONFIDENCE) / len(SHARES)
    bounds, ceilings = [], []
    for share in SHARES:
        side = max(round(len(scores) * share / 2), 1)
        right = int(inside[order[-side:]].sum() + (~inside[order[:side]]).sum())
        bounds.append(epsilon_of_guesses(len(scores), 2 * side, right, delta, part))
        ceilings.append(epsilon_of_guesses(len(scores), 2 * side, 2 * side, delta, part))
    return Bound("one run", max(bounds), max(ceilings))


def epsilon_of_guesses(canaries: int, guesses: int, right: int, delta: float, part: float) -> float:
    """The largest epsilon under which so many right guesses have probability at most `part`."""

    def excess(epsilon: float) -> float:
        rate = 1 / (1 + math.exp(-epsilon))
        tail = float(binom.sf(right - 1, guesses, rate))
        steps = np.arange(1, right + 1)
        slack = np.max((binom.sf(right - steps - 1, guesses, rate) - tail) / steps, initial=0)
        return tail + 2 * canaries * delta * float(slack) - part

    if excess(0.0) > 0:
        return 0.0
    return float(brentq(excess, 0.0, 50.0)) if excess(50.0) > 0 else 50.0


# ------------------------------------------------------------------ verdicts


def bounds(watched: Watched, canaries: Canaries, delta: float) -> list[Bound]:
    """What both audits find in what an attacker saw."""
    scores = watched.scores[: canaries.count]
    attacks = (gradient_canary, one_run)
    return [attack(scores, canaries.inside, delta) for attack in attacks]


def verdicts(found: list[Bound], statement: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each bound and claim: does the claim stand?

    Claims are those about the statement's own unit: the bound that Veil states and, for the
    as-published loop, the epsilon that its authors would print.
    """
    own = "epsilon_patient" if statement["unit"] == "patient" else "epsilon"
    claims = {"stated": statement[own], "published": statement.get("epsilon_published")}
    return [
        {
            "method": bound.method,
            "unit": statement["unit"],
            "claim_of": name,
            "claim": claim,
            "lower_bound": bound.lower_bound,
            "confidence": bound.confidence,
            "ceiling": bound.ceiling,
            "verdict": _verdict(bound, claim),
        }
        for name, claim in claims.items()
        if claim is not None
        for bound in found
    ]


def _verdict(bound: Bound, claim: float) -> str:
    if bound.lower_bound > claim:
        return "refuted"
    return "not refuted" if bound.ceiling > claim else "not refuted (out of reach)"
