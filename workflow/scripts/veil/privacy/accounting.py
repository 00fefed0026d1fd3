"""What a mechanism costs, in one place (floor 2).

The mechanism is always the Poisson-subsampled Gaussian of DP-SGD (Abadi et al. 2016); several
of them compose. All bounds are for add-or-remove-one neighbours. The default accountant is
dp-accounting's privacy loss distributions (PLD). Renyi (RDP) and numerical (PRV, Gopi et al.
2021) accounting stand beside it as cross-checks, and Opacus's Renyi accountant reproduces the
ledger that Kossen et al. 2022 printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import binom, norm

# The grid of the privacy loss errs upwards by about DRAWS * GRID^2; this is how far, in parts of
# epsilon. A finer grid takes longer and changes nothing that is printed.
GRID_ERROR = 5e-4
PRV_BELOW = 15.0
PLD_BELOW = 300.0  # dp-accounting overflows beyond; such an epsilon protects nobody anyway
LEAST_NOISE = 0.3  # per draw; with less, a record shows in every batch it is in
RENYI_ORDERS = 1 + np.geomspace(1e-5, 200, 160)
STRICT_DELTA = 1e-5
"""Epsilon at this delta stands beside every other: with few patients 0.1 / patients flatters."""


@dataclass(frozen=True, kw_only=True)
class Charge:
    """Noisy sums of clipped contributions over Poisson batches.

    `draws` independent batches, each holding every unit (patch or patient) with probability
    `sampling_rate`, and `releases_per_draw` sums of each with noise of `noise_multiplier`
    times the clip norm.
    """

    sampling_rate: float
    noise_multiplier: float
    draws: int
    releases_per_draw: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling rate {self.sampling_rate}; allowed is (0, 1]")
        if not self.noise_multiplier > 0:
            raise ValueError(f"noise multiplier {self.noise_multiplier}; allowed is above 0")
        if self.draws < 0 or self.releases_per_draw < 1:
            raise ValueError("draws of at least 0 and releases per draw of at least 1 are allowed")

    @property
    def effective_noise(self) -> float:
        """k sums of one batch are together one sum with noise sigma / sqrt(k), not k draws."""
        return self.noise_multiplier / math.sqrt(self.releases_per_draw)


def accountant() -> str:
    """Name and version of the accountant behind `epsilon`."""
    return (
        f"dp-accounting {version('dp-accounting')}, PLD, an upper bound; its grid adds about "
        f"{GRID_ERROR:.2%}"
    )


def epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Epsilon per unit of all charges together, an upper bound by PLD accounting."""
    rough = _renyi_epsilon(charges, delta)
    return min(rough, _pld_epsilon(tuple(charges), delta, _grid(rough, charges))) if rough else 0.0


def cross_checks(charges: Sequence[Charge], delta: float) -> dict[str, float | None]:
    """The same epsilon by two other accountants: RDP (looser) and PRV (as tight).

    PRV's tables outgrow memory at large epsilons, where it is not computed (None).
    """
    rdp = _renyi_epsilon(charges, delta)
    if rdp > PRV_BELOW or not rdp:
        return {"rdp": rdp, "prv": None}
    from opacus.accountants import PRVAccountant

    book = PRVAccountant()
    book.history = [(c.effective_noise, c.sampling_rate, c.draws) for c in charges if c.draws]
    return {"rdp": rdp, "prv": float(book.get_epsilon(delta))}


def _grid(rough: float, charges: Sequence[Charge]) -> float:
    """The discretisation of the privacy loss for an epsilon that is about `rough`.

    In powers of two, so that epsilons at several deltas can be read off one loss.
    """
    draws = sum(charge.draws for charge in charges)
    return _power_of_two(float(np.clip(math.sqrt(GRID_ERROR * rough / draws), 1e-5, 0.05)))


def _power_of_two(wanted: float) -> float:
    """The next one that is not above."""
    return float(2.0 ** math.floor(math.log2(wanted)))


def _pld_epsilon(charges: tuple[Charge, ...], delta: float, grid: float) -> float:
    return float(_losses(charges, grid).get_epsilon(delta))


@lru_cache(maxsize=4)
def _losses(charges: tuple[Charge, ...], grid: float) -> Any:
    """The composed privacy loss, of which epsilon can be read at any delta."""
    from dp_accounting.pld import PLDAccountant

    return _composed(PLDAccountant(value_discretization_interval=grid), charges)


def _renyi_epsilon(charges: Sequence[Charge], delta: float) -> float:
    from absl import logging
    from dp_accounting.rdp import RdpAccountant

    if not any(charge.draws for charge in charges):
        return 0.0
    # It warns of every order whose series does not converge, and rightly does without it.
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return float(_composed(RdpAccountant(), charges).get_epsilon(delta))
    finally:
        logging.set_verbosity(level)


def _composed(book: Any, charges: Sequence[Charge]) -> Any:
    import dp_accounting as dp

    for charge in charges:
        if charge.draws:
            gaussian = dp.GaussianDpEvent(charge.effective_noise)
            step = dp.PoissonSampledDpEvent(charge.sampling_rate, gaussian)
            book.compose(dp.SelfComposedDpEvent(step, charge.draws))
    return book


def published_epsilon(charge: Charge, delta: float, noisy_steps: int) -> float:
    """The ledger of Kossen et al. 2022: every noisy step counted as an independent draw.

    Renyi accounting with the conversion of Balle et al. 2020, as Opacus does it. It is not a
    bound on anything that re-uses a batch; it exists to be printed beside `epsilon`.
    """
    from opacus.accountants import RDPAccountant

    book = RDPAccountant()
    book.history = [(charge.noise_multiplier, charge.sampling_rate, noisy_steps)]
    return float(book.get_epsilon(delta))


def patient_epsilon(charges: Sequence[Charge], delta: float, records_per_patient: int) -> float:
    """Epsilon per patient, where a patient holds up to `records_per_patient` records.

    A batch holds Binomial(records_per_patient, q) of a patient's records, each moving the sum
    by up to the clip norm: exactly a mixture of Gaussians. Renyi divergences of that mixture
    by quadrature, refined by PLD accounting where the result is small enough for it.
    """
    bound = filter_epsilon([(charge, records_per_patient) for charge in charges], delta)
    if bound > PLD_BELOW:
        return bound
    losses = _patient_losses(tuple(charges), records_per_patient, _grid(bound, charges))
    return min(bound, float(losses.get_epsilon_for_delta(delta)))


@lru_cache(maxsize=4)
def _patient_losses(charges: tuple[Charge, ...], records_per_patient: int, grid: float) -> Any:
    """The composed privacy loss of a patient with so many records."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    book = pld.identity(value_discretization_interval=grid)
    for charge in charges:
        if charge.draws:
            shifts, weights = _shifts(charge.sampling_rate, records_per_patient)
            one = pld.from_mixture_gaussian_mechanism(
                charge.effective_noise, shifts, weights, value_discretization_interval=grid
            )
            book = book.compose(one.self_compose(charge.draws))
    return book


def patient_accountant(found: float) -> str:
    """How `patient_epsilon` came by what it found."""
    if found > PLD_BELOW:
        return (
            "Renyi divergences of the exact mixture of Gaussians by quadrature, converted after "
            "Balle et al. 2020: an upper bound"
        )
    return "the same accountant on the exact mixture of Gaussians"


def record_epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Epsilon of one record among a patient's, where the patient is the unit that is charged.

    Adding a record changes its patient's contribution, which is removing the patient and adding
    another: two steps between neighbours, so (2 e, (1 + exp(e)) d) for every (e, d) that holds
    for patients (group privacy, Dwork and Roth 2014, lemma 2.2).
    """
    rough, part = _renyi_epsilon(charges, delta), delta / 2
    if not rough:
        return 0.0
    losses = _losses(tuple(charges), _grid(rough, charges))
    for _ in range(20):
        one = float(losses.get_epsilon(part))
        if one > PLD_BELOW:  # exp(one) leaves the floats soon after
            return math.inf
        if (1 + math.exp(one)) * part <= delta:
            return 2 * one
        part = delta / (1 + math.exp(one)) / 1.05
    return math.inf


def filter_epsilon(charges: Sequence[tuple[Charge, int]], delta: float) -> float:
    """Epsilon of one patient over accesses that were chosen one after the other, each with how
    many of the patient's records it may have seen (1 where the patient is the unit).

    By adding up Renyi divergences or, where every unit was in every batch, the squared mu of
    Gaussian differential privacy. With an order (or mu) and a bound that were fixed beforehand both
    are filters: they hold however each access was chosen in view of what the ones before it gave
    (Feldman and Zrnic 2021; Smith and Thakurta 2022). Of composed privacy loss distributions no
    such thing is proven. Here the best order is taken afterwards.
    """
    live = [(charge, records) for charge, records in charges if charge.draws]
    if not live:
        return 0.0
    total = np.zeros(len(RENYI_ORDERS))
    for charge, records in live:
        total += charge.draws * _divergences(charge, records)
    bound = _from_renyi(total, delta)
    if all(charge.sampling_rate == 1 for charge, _ in live):
        squares = (c.draws * (records / c.effective_noise) ** 2 for c, records in live)
        bound = min(bound, gaussian_epsilon(math.sqrt(sum(squares)), delta))
    return bound


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of mu-Gaussian differential privacy (Dong, Roth and Su 2022, corollary 2.13)."""

    def excess(epsilon: float) -> float:
        beyond = math.exp(epsilon + norm.logcdf(-epsilon / mu - mu / 2))
        return float(norm.cdf(-epsilon / mu + mu / 2) - beyond - delta)

    most = mu * mu / 2 - mu * float(norm.ppf(delta)) + 1
    return float(brentq(excess, 0, most)) * (1 + 1e-9) if excess(0) > 0 else 0.0


def draws_within(target: float, delta: float, charge: Charge) -> int:
    """The most draws, at most `charge.draws`, whose epsilon per unit is at most `target`."""

    def fits(draws: int) -> bool:
        return epsilon([replace(charge, draws=draws)], delta) <= target

    if fits(charge.draws):
        return charge.draws
    low, high = 0, charge.draws  # `low` fits, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@cache
def calibrate(
    target: float, delta: float, sampling_rate: float, draws: int, releases_per_draw: int = 1
) -> float:
    """The least noise multiplier, to 1e-4 and rounded up, whose `epsilon` is at most `target`."""

    grid = _power_of_two(math.sqrt(GRID_ERROR * target / draws))

    def charged(noise: float) -> tuple[Charge]:
        return (
            Charge(
                sampling_rate=sampling_rate,
                noise_multiplier=noise,
                draws=draws,
                releases_per_draw=releases_per_draw,
            ),
        )

    def excess(noise: float) -> float:
        return _pld_epsilon(charged(noise), delta, grid) / target - 1

    least = LEAST_NOISE * math.sqrt(releases_per_draw)
    low, high = least, max(1.0, 2 * least)
    while excess(high) > 0:
        low, high = high, 2 * high
        if high > 10_000:
            raise ValueError(f"eps-{target:g} cannot be reached with noise multipliers to 10,000")
    if low == least and excess(low) <= 0:
        raise ValueError(
            f"eps-{target:g} is met even by the noise multiplier {least:.3g}; allowed are smaller "
            "epsilons, or 'none'"
        )
    noise = math.ceil(brentq(excess, low, high, xtol=5e-5) * 1e4) / 1e4
    while epsilon(charged(noise), delta) > target:  # as it will be stated, on a grid of its own
        noise = round(noise + 1e-4, 4)
    return noise


def _shifts(sampling_rate: float, records: int) -> tuple[np.ndarray, np.ndarray]:
    """How far one patient moves a sum, in clip norms, and with what probability."""
    count = np.arange(records + 1)
    weight = binom.pmf(count, records, sampling_rate)
    keep = weight > 1e-18
    return count[keep].astype(float), weight[keep] / weight[keep].sum()


@lru_cache(maxsize=64)
def _divergences(charge: Charge, records: int) -> np.ndarray:
    """Renyi divergences of one draw, for a patient of so many records."""
    return _mixture_divergences(*_shifts(charge.sampling_rate, records), charge.effective_noise)


def _mixture_divergences(shifts: np.ndarray, weights: np.ndarray, noise: float) -> np.ndarray:
    """Renyi divergences at RENYI_ORDERS between the mixture and N(0, noise^2), the worse way."""
    x = np.linspace(-14 * noise, shifts[-1] + 14 * noise, 60_001)
    base = norm.logpdf(x, 0, noise) + math.log(x[1] - x[0])
    ratio = logsumexp(
        shifts * (2 * x[:, None] - shifts) / (2 * noise**2), b=weights, axis=1
    )  # log P(x) / Q(x)
    worst = []
    for order in RENYI_ORDERS:
        adding = logsumexp(base + order * ratio)
        removing = logsumexp(base + (1 - order) * ratio)
        worst.append(max(adding, removing) / (order - 1))
    return np.array(worst)


def _from_renyi(divergences: np.ndarray, delta: float) -> float:
    """Convert Renyi divergences to epsilon (Balle et al. 2020, theorem 21)."""
    a = RENYI_ORDERS
    bounds = divergences + np.log((a - 1) / a) - (math.log(delta) + np.log(a)) / (a - 1)
    return float(max(bounds[np.isfinite(bounds)].min(), 0))
