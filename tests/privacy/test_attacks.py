"""Attackers who know everything but the target: the other patients, the code, the configuration,
every public seed, and whether the target is there or not is all that they want to know.

Each attack recognised its target in nearly every trial before sums and noise met on a lattice and
coins were a record's own (docs/privacy.md, errata). What is asserted is a lower bound on epsilon, by
Clopper and Pearson at 99.99 %: it must stay below the epsilon that is claimed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from harness import CASES, Case, cohort, train
from scipy.stats import beta

from veil import config, generators
from veil.generators import fitted
from veil.privacy import clipping
from veil.privacy.accounting import Charge, calibrate, gaussian_epsilon
from veil.privacy.mechanism import Mechanism
from veil.privacy.noise import Lattice, rounded_normal
from veil.privacy.randomness import Secure
from veil.provenance import derive_seed
from veil.release import bundle

CONFIDENCE = 0.9999


def shown(caught: int, alarms: int, trials: int, delta: float) -> float:
    """The epsilon that so many right and wrong alarms of `trials` each prove, both ways round."""
    part = (1 - CONFIDENCE) / 4

    def low(hits):
        return float(beta.ppf(part, hits, trials - hits + 1)) if hits else 0.0

    def high(hits):
        return float(beta.ppf(1 - part, hits + 1, trials - hits)) if hits < trials else 1.0

    one = (low(caught) - delta) / high(alarms)
    other = (low(trials - alarms) - delta) / high(trials - caught)
    return math.log(max(one, other, 1.0))


def test_the_bound_sees_a_perfect_attack():
    assert shown(2000, 0, 2000, 5e-4) > 5
    assert shown(1000, 1000, 2000, 5e-4) == 0


# ------------------------------------------------------------------ low bits of a sum


def low_bits_say_in(left: np.ndarray) -> bool:
    """Whether what is left of a release, once the sum with the target is taken off, is made of
    float32 numbers, as noise was."""
    return bool((np.abs(left - left.astype(np.float32)) < 1e-11).all())


def test_a_sums_low_bits_say_nothing():
    """2,000 patients present and 2,000 absent, at epsilon 1: whatever digits are looked at."""
    count, clip_norm, trials = 200, 4.0, 2000
    delta = 0.1 / count
    sigma = calibrate(1.0, delta, 1.0, 1)
    vectors = torch.from_numpy(10 * np.random.default_rng(0).normal(size=(count, 6)))
    charge = Charge(sampling_rate=1.0, noise_multiplier=sigma, draws=1)

    def released(given):
        door = Mechanism(
            charge, units=count, present=len(given), clip_norm=clip_norm, sampler=Secure(),
            noise=Secure(),
        )  # fmt: skip
        return door.draw().release_vectors(given).numpy(), door

    _, door = released(vectors)
    lattice = Lattice.of(clip_norm, 6)
    points = lattice.towards_zero(clipping.clipped_vectors(vectors, door.bound)).sum(0)
    exact = lattice.values(points).numpy()
    own = (
        exact
        - lattice.values(
            lattice.towards_zero(clipping.clipped_vectors(vectors[1:], door.bound)).sum(0)
        ).numpy()
    )
    left = {
        present: np.array([released(given)[0] - exact for _ in range(trials)])
        for present, given in ((True, vectors), (False, vectors[1:]))
    }
    attacks = {
        "float32 noise": low_bits_say_in,
        "a finer lattice": lambda row: bool((row / lattice.spacing % 1 > 1e-9).any()),
        "parity": lambda row: int((row / lattice.spacing).round().sum()) % 2 == 0,
        "low byte": lambda row: int((row / lattice.spacing).round()[0]) % 256 < 128,
        # The best there is: a likelihood ratio along the target's own contribution.
        "likelihood": lambda row: float(row @ own) > -float(own @ own) / 2,
    }
    hits = {
        name: [sum(map(attack, left[present])) for present in (True, False)]
        for name, attack in attacks.items()
    }
    found = {name: shown(*each, trials, delta) for name, each in hits.items()}
    assert max(found.values()) < 1.0, found
    # The best attack does see what epsilon 1 lets it see.
    assert hits["likelihood"][0] - hits["likelihood"][1] > 0.04 * trials


# ------------------------------------------------------------------ `fitted`, end to end


MANY = config.FittedGenerator(
    kind="fitted", volumes=20, candidates=20, directions=2,
    phantom={
        "shape": (48, 48, 1),
        "vary": {
            "scanner.noise": (0.01, 0.4), "scanner.blur": (0.2, 1.5), "scanner.texture": (0.0, 0.3),
            "scanner.bias": (0.0, 0.6), "vessels.tortuosity": (0.1, 0.6), "scanner.vessel": (1.5, 4.0),
        },
    },
)  # fmt: skip
"""More settings than directions, so that an attacker can tell which candidate a setting came of."""


def recovered(drawn: np.ndarray, lesson: fitted.Directions, target: np.ndarray) -> np.ndarray:
    """The noisy mean behind released settings, undone by whoever knows start and seed."""
    slope = np.linalg.lstsq(
        lesson.places - lesson.places.mean(0), lesson.settings - lesson.settings.mean(0), rcond=None
    )[0]
    low, high = lesson.ends.T
    found = []
    for row, spread in zip(drawn, target, strict=True):
        free = (row > low) & (row < high)
        if free.sum() < len(row):
            continue
        best = None
        for place, settings in zip(lesson.places, lesson.settings, strict=True):
            y, a = (row - settings), slope.T
            x, *_ = np.linalg.lstsq(a, y, rcond=None)
            miss = np.abs(a @ x - y).max()
            if best is None or miss < best[0]:
                best = (miss, x + place - spread)
        found.append(best[1])
    return np.array(found)


@pytest.mark.slow
def test_released_settings_do_not_tell_a_patient():
    """`fitted` at epsilon 1 with secure noise, 100 times with the target and 100 without: an
    attacker undoes everything public, gets the noisy mean to the last digit, and looks at its low
    bits and its likelihood."""
    case = Case(MANY, "patient-eps-1")
    data, trials = cohort(patients=6), 100
    runs = {True: [], False: []}
    for _ in range(trials):
        runs[True].append(train(case, data, source="secure"))
        runs[False].append(train(case, data.without(True, 0), source="secure"))
    first = runs[True][0]
    door, settings = first.mechanism, case.settings
    spread = attackers_spread(case, first)
    lesson = attackers_lesson(case)
    patients = [data.pairs[data.owners == name] for name in np.unique(data.owners)]
    vectors = torch.from_numpy(np.stack([lesson.along(fitted.statistics(p)) for p in patients]))
    lattice = Lattice.of(door.clip_norm, 2)
    points = lattice.towards_zero(clipping.clipped_vectors(vectors, door.bound))
    exact, own = (lattice.values(p).numpy() for p in (points.sum(0), points[0]))
    deviation = door.charge.noise_multiplier * settings.clip_norm
    trust = 1 / (1 + (deviation / len(patients)) ** 2)
    votes: dict[str, dict[bool, int]] = {}
    undone = 0
    for present, made in runs.items():
        for run in made:
            means = recovered(run.generator.weights()["settings"].numpy(), lesson, spread)
            mean = np.median(means, 0) / trust if len(means) else np.full(2, np.nan)
            sent = run.mechanism.flat()[0].numpy()
            undone += bool(len(means))
            if len(means):
                # The attack is real: it has the released number, whole.
                np.testing.assert_allclose(mean * len(patients), sent, rtol=1e-6, atol=1e-6)
            left = sent - exact
            says = {
                "float32 noise": low_bits_say_in(left),
                "finer digits": bool((np.abs(left / lattice.spacing % 1) > 1e-9).any()),
                "likelihood": float(left @ own) > -float(own @ own) / 2,
            }
            for name, said in says.items():
                votes.setdefault(name, {True: 0, False: 0})[present] += said
    delta = case.task().delta
    bounds = {name: shown(v[True], v[False], trials, delta) for name, v in votes.items()}
    assert max(bounds.values()) < 1.0, (bounds, votes)
    assert undone > trials / 2, "the attacker undoes too few releases to say anything"


def attackers_lesson(case: Case) -> fitted.Directions:
    """The public start, which anybody can learn again."""
    given = case.task()
    return fitted.learn_directions(given.settings, given.size, given.seed)


def attackers_spread(case: Case, run) -> np.ndarray:
    """The public part of the draw of settings, from the seed that everybody knows."""
    given = case.task()
    random = np.random.default_rng(derive_seed(given.seed, "settings"))
    random.random(given.settings.volumes)
    return given.settings.bandwidth * random.normal(size=(given.settings.volumes, 2))


# ------------------------------------------------------------------ the denoiser's coins


@pytest.mark.parametrize("name", ["diffusion, patch", "diffusion, patient"])
def test_a_denoisers_coins_do_not_tell_who_came_first(name):
    """The first unit is taken away, which once moved the coins of all after it: the sum moved by 7
    clip norms. With the seed public, and all other coins known, it moves by at most one."""
    case, data = CASES[name], cohort()
    whole = train(case, data, rate=1.0, clip_norm=1e-3)
    less = train(
        case, data.without(case.patient, 0), script=whole.mechanism, rate=1.0, clip_norm=1e-3
    )
    pairs = zip(whole.mechanism.exact, less.mechanism.exact, strict=True)
    steps = np.array([float((a - b).norm()) / whole.mechanism.clip_norm for a, b in pairs])
    assert (steps <= 1).all()
    assert (steps > 0.95).all()
    charge = whole.mechanism.charge
    mu = [math.sqrt(x) / charge.noise_multiplier for x in ((steps**2).sum(), len(steps))]
    real, claimed = (gaussian_epsilon(value, case.task().delta) for value in mu)
    assert real <= claimed


# ------------------------------------------------------------------ the noise itself


def test_rounded_noise_has_the_probabilities_of_a_rounded_normal():
    """Counted on a coarse lattice, where each integer has a probability to speak of."""
    from scipy.stats import chisquare, norm

    for deviation in (0.7, 3.0):
        drawn = rounded_normal(Secure(), deviation, 400_000, release=0).numpy()
        ends = np.arange(-int(4 * deviation), int(4 * deviation) + 1)
        cut = np.clip(drawn, ends[0] - 1, ends[-1] + 1)
        counts = np.bincount(cut - ends[0] + 1, minlength=len(ends) + 2)
        edges = np.concatenate([[-np.inf], ends - 0.5, [ends[-1] + 0.5, np.inf]])
        expected = np.diff(norm.cdf(edges / deviation))
        assert chisquare(counts, len(drawn) * expected / expected.sum()).pvalue > 1e-5


def test_noise_reaches_beyond_where_float32_ends():
    """Deviates of float32 end at 5.8: a sum beyond would betray a unit for certain. Words that stand
    for rarer ones are refined, to as many bits as it takes."""
    from veil.privacy import noise

    class Rare(Secure):
        def words(self, release, which, first, count, device):
            words = super().words(release, which, first, count, device).clone()
            if which == 0:
                words &= 2**12 - 1  # the least uniform number that 52 bits can say
            return words

    drawn = rounded_normal(Rare(), 1e6, 2000, release=0).double() / 1e6
    radius = drawn.view(-1, 2).norm(dim=1)
    assert radius.min() > 8.4
    assert len(radius.unique()) > 990
    assert noise.BITS == 52


@pytest.mark.parametrize("name", CASES)
def test_no_private_point_of_patients_is_let_out_with_seeded_coins(name):
    """Whatever signature there is: with the seed, coins and noise can be taken off."""
    for noise, said in (("seeded", "the noise is 'seeded'"), ("secure", None)):
        statement = generators.build(CASES[name].task(noise=noise)).spent()
        if statement["holds"] != "bound":
            said = "as-published"
        if said is None:
            bundle.check(statement, False, name, "Dr Who, who wants to see this leave")
        else:
            with pytest.raises(bundle.ReleaseError, match=said):
                bundle.check(statement, False, name, "Dr Who, who wants to see this leave")
