"""Attacks on a release: who was in the training set, and what was copied from it (floor 2).

An attacker is given patches of training patients (members) and of test patients (others) and says
which is which from the synthetic pairs, knowing the validation patients' patches as a sample of
the population. Patients, not patches, are the sample: intervals are over them.

| attack | a patch is the likelier a member | from |
|---|---|---|
| GAN-Leaks | the nearer the nearest synthetic pair | Chen et al. 2020 |
| GAN-Leaks, calibrated | the same, against the nearest reference patch | Chen et al. 2020 |
| DOMIAS | the denser synthetic pairs lie there, against reference | van Breugel et al. 2023 |
| reconstruction | the better the model itself knows it | Hu and Pang 2023 |

Privacy: scores are exact numbers about real patients and stay on the private side. That an attack
fails proves nothing; that it passes what an epsilon allows refutes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch.nn import functional

EDGE = 24
"""Pixels that patches are averaged to before they are compared."""
NEIGHBOURS = 5
RATES = (0.01, 0.001)
CONFIDENCE = 0.95
SLIGHT = 0.05
"""Distance between embedded pairs that says nothing: that of one pixel by a twentieth."""
WITH_WEIGHTS = "reconstruction, with the weights"


def embed(pairs: np.ndarray) -> np.ndarray:
    """Pixels of image and label, float32 (n, 2 EDGE^2), of uint8 pairs (n, 2, H, W)."""
    scaled = torch.from_numpy(pairs / np.array([255, 1], np.float32).reshape(2, 1, 1))
    if pairs.shape[-1] > EDGE:
        scaled = functional.adaptive_avg_pool2d(scaled, EDGE)
    return scaled.flatten(1).float().numpy()


def nearest(points: np.ndarray, others: np.ndarray, neighbours: int = 1) -> np.ndarray:
    """Distances (n, neighbours), rising, from points (n, d) to the nearest of others (m, d)."""
    target = torch.from_numpy(others)
    kept = min(neighbours, len(others))
    parts = [
        torch.cdist(rows, target).topk(kept, largest=False).values
        for rows in torch.from_numpy(points).split(512)
    ]
    return torch.cat(parts).numpy()


def attacks(
    candidates: np.ndarray, synthetic: np.ndarray, reference: np.ndarray
) -> dict[str, np.ndarray]:
    """Score (n,) of each candidate (n, d) by each attack, higher for likelier members."""
    to_synthetic = nearest(candidates, synthetic, NEIGHBOURS).astype(float)
    to_reference = nearest(candidates, reference, NEIGHBOURS).astype(float)
    # A density by nearest neighbours is a power of the distance: their ratio ranks alike.
    tiny = 1e-6
    return {
        "GAN-Leaks": -to_synthetic[:, 0],
        "GAN-Leaks, calibrated": to_reference[:, 0] - to_synthetic[:, 0],
        "DOMIAS": np.log(to_reference[:, -1] + tiny) - np.log(to_synthetic[:, -1] + tiny),
    }


# ------------------------------------------------------------------ how well an attack did


def judge(members: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> dict[str, float]:
    """How well scores tell members from others: one array of scores a patient.

    `auc` with `auc_low` and `auc_high`, and for each of RATES the true positive rate `tpr_at_1pct`,
    `tpr_at_0.1pct` with its ends; NaN where there are too few others to see that rate. Intervals
    are over patients, by Student's t (for the AUC on the components of Obuchowski 1997).
    """
    wins = np.array([[_auc(mine, theirs) for theirs in others] for mine in members])
    weight = np.outer([len(mine) for mine in members], [len(theirs) for theirs in others])
    auc = float((wins * weight).sum() / weight.sum())
    row_parts, column_parts = wins.mean(1), wins.mean(0)
    low, high = _interval(auc, row_parts, column_parts)
    found = {"auc": auc, "auc_low": low, "auc_high": high}
    pool = np.concatenate(others)
    for rate in RATES:
        name = rate_name(rate)
        if len(pool) < 1 / rate:
            found |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
            continue
        threshold = np.sort(pool)[-int(rate * len(pool)) - 1]
        hits = np.array([np.mean(mine > threshold) for mine in members])
        share = float(np.average(hits, weights=[len(mine) for mine in members]))
        low, high = _interval(share, hits)
        found |= {name: share, f"{name}_low": low, f"{name}_high": high}
    return found


def rate_name(rate: float) -> str:
    """Column of the true positive rate at a false positive rate: `tpr_at_0.1pct`."""
    return f"tpr_at_{100 * rate:g}pct"


def _auc(members: np.ndarray, others: np.ndarray) -> float:
    """Chance that a member scores higher than another, ties counting half."""
    ranks = stats.rankdata(np.concatenate([members, others]))[: len(members)]
    n = len(members)
    return float((ranks.sum() - n * (n + 1) / 2) / (n * len(others)))


def _interval(centre: float, *parts: np.ndarray) -> tuple[float, float]:
    """Ends of a t interval around `centre`, whose error is that of the means of all `parts`.

    Degrees of freedom by Welch and Satterthwaite; without two patients on each side, 0 to 1.
    """
    if min(map(len, parts)) < 2:
        return 0.0, 1.0
    terms = np.array([part.var(ddof=1) / len(part) for part in parts])
    total = terms.sum()
    if not total:
        return centre, centre
    degrees = total**2 / (terms**2 / [len(part) - 1 for part in parts]).sum()
    half = stats.t.ppf((1 + CONFIDENCE) / 2, degrees) * np.sqrt(total)
    return max(0.0, centre - half), min(1.0, centre + half)


# ------------------------------------------------------------------ what a claim allows


def most_true_positives(rate: float, epsilon: float, delta: float) -> float:
    """The highest true positive rate at a false positive `rate` that (epsilon, delta) allows.

    The trade-off of Kairouz, Oh and Viswanath 2015, for any attacker whatsoever.
    """
    if np.isinf(epsilon):
        return 1.0
    above = min(np.exp(epsilon) * rate + delta, 1.0)
    return float(min(above, 1 - np.exp(-epsilon) * max(1 - delta - rate, 0.0)))


def highest_auc(epsilon: float, delta: float) -> float:
    """The highest AUC that (epsilon, delta) allows: the area under `most_true_positives`.

    Which is a polygon with one corner, where both bounds meet.
    """
    if np.isinf(epsilon):
        return 1.0
    corner = (1 - delta) / (1 + np.exp(epsilon))
    rates = [0, corner, 1 - delta, 1]
    return float(np.trapezoid([delta, 1 - corner, 1, 1], rates))


def table(
    scores: Mapping[str, Mapping[str, np.ndarray]],
    owners: Mapping[str, np.ndarray],
    claim: Mapping[str, Any],
) -> pd.DataFrame:
    """One row an attack, judged beside what the claim allows any attacker on a patient.

    `scores` has each attack's (n,) of `train` and `test` patches, `owners` whose they are, (n,);
    `claim` is a privacy statement. A patch is a member if its patient is, so that the patient's
    epsilon bounds what may be found. The verdict is `above the claim` where all of the AUC's
    interval is.
    """
    epsilon = np.inf if claim["epsilon_patient"] is None else claim["epsilon_patient"]
    delta = claim.get("delta", 0.0)
    bound = highest_auc(epsilon, delta)
    allowed = {f"{rate_name(r)}_allowed": most_true_positives(r, epsilon, delta) for r in RATES}
    rows = []
    for attack in scores["train"]:
        parts = (by_owner(scores[name][attack], owners[name]) for name in ("train", "test"))
        found = judge(*parts)
        verdict = "above the claim" if found["auc_low"] > bound else "within the claim"
        row = {"attack": attack, **found, "auc_allowed": bound, **allowed, "verdict": verdict}
        rows.append(row | {"members": len(owners["train"]), "others": len(owners["test"])})
    return pd.DataFrame(rows)


def by_owner(values: np.ndarray, owners: np.ndarray) -> list[np.ndarray]:
    """Values (n,) as one array for each owner, in the order of their names."""
    return [values[owners == owner] for owner in np.unique(owners)]


# ------------------------------------------------------------------ what was copied


def screens(spaces: Mapping[str, Mapping[str, np.ndarray]], owners: np.ndarray) -> pd.DataFrame:
    """One row a space and screen; each space holds points `synthetic`, `train` and `test`."""
    rows = [
        {"metric": metric, "features": name, "value": value}
        for name, space in spaces.items()
        for metric, value in memorisation(
            space["synthetic"], space["train"], owners, space["test"]
        ).items()
    ]
    return pd.DataFrame(rows)


def memorisation(
    synthetic: np.ndarray, train: np.ndarray, owners: np.ndarray, held_out: np.ndarray
) -> dict[str, float]:
    """Screens for copies among synthetic points (n, d): heuristics, and no guarantee.

    - `nearer_to_train`: the share that is nearer to a training patch than to any held-out patch,
      both sets cut to one size: about 0.5 without copies;
    - `authenticity`: the share that is farther from its nearest training patch than that is from
      the nearest of another patient (Alaa et al. 2022, section 4, here by patient);
    - `distance_ratio`: median distance to training over that to held-out patches: about 1.
    """
    size = min(len(train), len(held_out))
    to_train, to_held_out = (
        nearest(synthetic, rows[np.linspace(0, len(rows) - 1, size).astype(int)])[:, 0]
        for rows in (train, held_out)
    )
    distance, closest = closest_of(synthetic, train)
    apart = _distance_to_other_owners(train, owners, np.unique(closest))
    return {
        "nearer_to_train": float(np.mean((to_train < to_held_out) + (to_train == to_held_out) / 2)),
        "authenticity": float(np.mean(distance > apart[closest])),
        "distance_ratio": float(np.median(to_train) / max(np.median(to_held_out), 1e-12)),
    }


def most_alike(
    synthetic: np.ndarray, train: np.ndarray, held_out: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the synthetic points that are most like a training point, and of those.

    The distance counts against that to the nearest held-out point: an empty patch is near to one
    of everybody's, and copies none.
    """
    distance, closest = closest_of(synthetic, train)
    usual, _ = closest_of(synthetic, held_out)
    first = np.argsort((distance + SLIGHT) / (usual + SLIGHT), kind="stable")[:count]
    return first, closest[first]


def closest_of(points: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (n,) of each point to the nearest of `others`, and its row (n,) there."""
    target = torch.from_numpy(others)
    found = [torch.cdist(rows, target).min(1) for rows in torch.from_numpy(points).split(512)]
    distances, rows = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return distances, rows


def _distance_to_other_owners(
    train: np.ndarray, owners: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """For the `wanted` rows the distance to the nearest patch of another owner; others NaN."""
    apart = np.full(len(train), np.nan)
    for owner in np.unique(owners[wanted]):
        mine = wanted[owners[wanted] == owner]
        theirs = train[owners != owner]
        apart[mine] = nearest(train[mine], theirs)[:, 0] if len(theirs) else np.inf
    return apart
