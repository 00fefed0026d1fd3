"""Audits: what they can find at most, and that they find what is there and nothing else."""

from __future__ import annotations

import faults
import numpy as np
import pytest

from veil import config, generators
from veil.privacy import accounting, audit
from veil.privacy.mechanism import Mechanism

DELTA = 1e-5


@pytest.mark.parametrize(("count", "known"), [(41, 2.58), (100, 3.5), (1000, 5.8), (5000, 7.4)])
def test_the_ceiling_of_one_run_is_the_known_one(count, known):
    found = audit.epsilon_of_guesses(count, count, count, 0.0, 0.05)
    assert found == pytest.approx(known, abs=0.1)


def test_guesses_no_better_than_chance_bound_nothing():
    assert audit.epsilon_of_guesses(1000, 200, 100, DELTA, 0.05) == 0
    scores = np.random.default_rng(0).normal(size=4000)
    inside = np.random.default_rng(1).random(4000) < 0.5
    assert audit.gradient_canary(scores, inside, DELTA).lower_bound < 0.2
    assert audit.one_run(scores, inside, DELTA).lower_bound < 0.2


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_randomised_responses_are_bounded_from_below_and_never_above(epsilon):
    """A mechanism whose epsilon is exact: a bit that is kept with probability e^eps / (1 + e^eps)."""
    random, found = np.random.default_rng(0), []
    for _ in range(20):
        inside = random.random(8_000) < 0.5
        kept = random.random(8_000) < 1 / (1 + np.exp(-epsilon))
        scores = np.where(kept, inside, ~inside) + random.normal(0, 1e-3, 8_000)
        found.append([attack(scores, inside, 0.0).lower_bound
                      for attack in (audit.gradient_canary, audit.one_run)])  # fmt: skip
    found = np.array(found)
    assert (found.mean(0) > 0.8 * epsilon).all()
    assert ((found > epsilon).sum(0) <= 3).all()  # of 20, each with a chance of 0.05 at most


def rehearsed(sigma=1.0, canaries=2048, updates=60, **settings) -> tuple[list[dict], dict]:
    """Verdicts on a run of full batches, where noise alone protects, and its statement."""
    chosen = config.WganGenerator(kind="wgan", generator_updates=updates, **settings)
    given = faults.task(
        f"sigma-{sigma:g}", settings=chosen, records=32, patients=1, per_patient=32, delta=DELTA
    )
    chosen_canaries = audit.Canaries(canaries, np.random.default_rng(3))
    generator = generators.build(given)
    watched = generator.rehearse(chosen_canaries)
    statement = {"unit": "patch", "epsilon": accounting.epsilon([generator.charge], DELTA)}
    return audit.verdicts(audit.bounds(watched, chosen_canaries, DELTA), statement), statement


def test_a_sound_mechanism_is_not_refuted_and_the_bound_is_not_idle():
    rows, statement = rehearsed(sigma=12.0, critic_updates=1)
    assert statement["epsilon"] < rows[0]["ceiling"]
    assert {row["verdict"] for row in rows} <= {"not refuted", "not refuted (out of reach)"}
    assert rows[0]["verdict"] == "not refuted"
    assert rows[0]["lower_bound"] > 0.1 * statement["epsilon"]


def test_a_mechanism_with_too_little_noise_is_refuted(monkeypatch):
    plain = Mechanism._noised

    def quieter(self, points, lattice):
        exact = [lattice.values(part) for part in points]
        noisy = plain(self, points, lattice)
        return [own + (sent - own) / 6 for own, sent in zip(exact, noisy, strict=True)]

    monkeypatch.setattr(Mechanism, "_noised", quieter)
    rows, _ = rehearsed(sigma=24.0, critic_updates=1)
    assert rows[0]["verdict"] == "refuted", rows


@pytest.mark.parametrize("loop", ["as-published", "valid"])
def test_the_published_claim_is_refuted_and_what_veil_states_is_not(loop):
    """A batch used 50 times over: the published ledger counts 100 draws where it is one."""
    reuse = {"critic_updates": 50} if loop == "as-published" else {}
    chosen = config.WganGenerator(kind="wgan", loop=loop, generator_updates=120, **reuse)
    given = faults.task("sigma-3", settings=chosen, records=3200, delta=1 / 3200)
    canaries = audit.Canaries(2048, np.random.default_rng(3))
    generator = generators.build(given)
    statement = {
        "unit": "patch",
        "epsilon": accounting.epsilon([generator.charge], given.delta),
        "epsilon_published": generator.published_epsilon(),
    }
    found = audit.bounds(generator.rehearse(canaries), canaries, given.delta)
    verdict = {
        (row["claim_of"], row["method"]): row["verdict"] for row in audit.verdicts(found, statement)
    }
    assert verdict["stated", "gradient canary"] != "refuted"
    assert verdict["stated", "one run"] != "refuted"
    if loop == "as-published":
        assert verdict["published", "gradient canary"] == "refuted", (found, statement)
