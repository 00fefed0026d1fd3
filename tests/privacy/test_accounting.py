"""Epsilons against published, independent and limiting values."""

from __future__ import annotations

import pytest

from veil.privacy import accounting
from veil.privacy.accounting import Charge

RATE, DELTA, BATCHES = 32 / 41_000, 1 / 41_000, 1281

# sigma, epochs, printed, valid loop, five releases a batch of real records alone
TABLE = [
    (2.0, 50, 1.3, 0.82, 1.13),
    (1.5, 50, 1.9, 1.19, 2.36),
    (1.2, 50, 2.7, 1.65, 5.7),
    (1.0, 50, None, 2.24, 13.0),
    (0.8, 50, 5.7, 3.53, 37.8),
    (0.725, 50, None, 4.52, 60.6),
    (0.65, 50, 10.2, 6.24, 101),
    (0.65, 29, 7.4, 4.59, 73),
]


def published(sigma, epochs):
    return Charge(
        sampling_rate=RATE, noise_multiplier=sigma, draws=BATCHES * epochs, releases_per_draw=5
    )


@pytest.mark.parametrize(("sigma", "epochs", "printed", "valid", "true"), TABLE)
def test_the_papers_ledger_and_what_holds(sigma, epochs, printed, valid, true):
    loop = published(sigma, epochs)
    if printed:
        claim = accounting.published_epsilon(loop, DELTA, BATCHES * epochs * 10)
        assert claim == pytest.approx(printed, abs=0.05)
    assert accounting.epsilon([loop], DELTA) == pytest.approx(true, rel=0.01)
    fresh = Charge(sampling_rate=RATE, noise_multiplier=sigma, draws=BATCHES * epochs * 5)
    assert accounting.epsilon([fresh], DELTA) == pytest.approx(valid, rel=0.01)


@pytest.mark.parametrize(("sigma", "rate", "draws"), [(1.0, 0.01, 1000), (2.0, 0.05, 500)])
def test_a_patient_of_one_record_is_a_record(sigma, rate, draws):
    charge = Charge(sampling_rate=rate, noise_multiplier=sigma, draws=draws)
    patient = accounting.patient_epsilon([charge], 1e-5, 1)
    assert patient == pytest.approx(accounting.epsilon([charge], 1e-5), rel=0.1)


def test_a_patient_of_many_records_in_full_batches_is_a_shifted_gaussian():
    """Without sampling, k records are one record of k times the norm."""
    charge = Charge(sampling_rate=1.0, noise_multiplier=50.0, draws=4)
    big = Charge(sampling_rate=1.0, noise_multiplier=5.0, draws=4)
    patient = accounting.patient_epsilon([charge], 1e-5, 10)
    assert patient == pytest.approx(accounting.epsilon([big], 1e-5), rel=0.02)


def test_the_papers_patients():
    """The setting printed as 7.4 leaves a patient of 1,000 patches an epsilon near 280,000."""
    patient = accounting.patient_epsilon([published(0.65, 29)], DELTA, 1000)
    assert patient == pytest.approx(2.8e5, rel=0.05)


@pytest.mark.parametrize("target", [1.0, 5.0])
def test_calibration_meets_its_target_and_no_more(target):
    noise = accounting.calibrate(target, DELTA, 0.01, 1000)

    def cost(sigma):
        return accounting.epsilon(
            [Charge(sampling_rate=0.01, noise_multiplier=sigma, draws=1000)], DELTA
        )

    assert cost(noise) <= target
    assert cost(noise - 3e-4) > target


def test_reusing_a_batch_costs_more_than_fresh_ones():
    reused = Charge(sampling_rate=RATE, noise_multiplier=1.0, draws=1000, releases_per_draw=5)
    fresh = Charge(sampling_rate=RATE, noise_multiplier=1.0, draws=5000)
    assert accounting.epsilon([reused], DELTA) > 2 * accounting.epsilon([fresh], DELTA)


@pytest.mark.parametrize(
    "wrong", [{"sampling_rate": 0}, {"sampling_rate": 1.5}, {"noise_multiplier": 0}, {"draws": -1}]
)
def test_impossible_charges_are_refused(wrong):
    with pytest.raises(ValueError, match="allowed"):
        Charge(**{"sampling_rate": 0.1, "noise_multiplier": 1.0, "draws": 1, **wrong})


def test_a_budget_is_used_up_and_not_passed():
    plan = Charge(sampling_rate=0.01, noise_multiplier=1.0, draws=5000)
    draws = accounting.draws_within(2.0, 1e-5, plan)
    assert 0 < draws < 5000

    def cost(count):
        charge = Charge(sampling_rate=0.01, noise_multiplier=1.0, draws=count)
        return accounting.epsilon([charge], 1e-5)

    assert cost(draws) <= 2.0 < cost(draws + 1)
    assert accounting.draws_within(100, 1e-5, plan) == 5000


def test_a_record_of_a_protected_patient_is_bounded_by_two_steps():
    charge = Charge(sampling_rate=0.2, noise_multiplier=10, draws=500)
    record = accounting.record_epsilon([charge], 1e-3)
    patient = accounting.epsilon([charge], 1e-3)
    assert 2 * patient < record < 4 * patient


def test_events_compose():
    one = Charge(sampling_rate=0.01, noise_multiplier=1.0, draws=1000)
    two = Charge(sampling_rate=1.0, noise_multiplier=5.0, draws=1)
    both = accounting.epsilon([one, two], 1e-5)
    assert both > accounting.epsilon([one], 1e-5)
    assert both < accounting.epsilon([one], 5e-6) + accounting.epsilon([two], 5e-6)
