"""Attacks on releases: memorisers are caught, and what learnt nothing is not accused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate
from sklearn.metrics import roc_auc_score, roc_curve

from veil import config
from veil.evaluation import membership
from veil.generators.phantom import cut_from

SIZE = 32
LOOK = config.Phantom(shape=(64, 64, 12), zooms=(1.0, 1.0, 1.6))


@pytest.fixture(scope="module")
def population():
    """Patches of 8 + 4 + 4 phantom patients: train, test, validation, and whose they are."""
    counts = {"train": 8, "test": 4, "validation": 4}
    pairs, owners = {}, {}
    for at, (name, patients) in enumerate(counts.items()):
        pairs[name] = cut_from([LOOK] * patients, 40 * patients, SIZE, seed=at, threads=0)
        owners[name] = np.repeat([f"{name}-{n}" for n in range(patients)], 40)
    return pairs, owners


def judged(population, synthetic, claim):
    pairs, owners = population
    points = {name: membership.embed(some) for name, some in pairs.items()}
    shown = membership.embed(synthetic)
    scores = {
        name: membership.attacks(points[name], shown, points["validation"])
        for name in ("train", "test")
    }
    return membership.table(scores, owners, claim).set_index("attack")


NO_CLAIM = {"epsilon_patient": None}


def canary_generator(pairs, rng):
    """Memorises on purpose: training patches with noise over the image."""
    copies = pairs[rng.permutation(len(pairs))].copy()
    noisy = copies[:, 0] + rng.normal(0, 12, copies[:, 0].shape)
    copies[:, 0] = np.clip(noisy, 0, 255).astype(np.uint8)
    return copies


def test_a_generator_that_memorises_is_caught(population, rng):
    found = judged(population, canary_generator(population[0]["train"], rng), NO_CLAIM)
    for attack in ("GAN-Leaks", "GAN-Leaks, calibrated"):
        assert found.auc[attack] > 0.9
        assert found.auc_low[attack] > 0.8
        assert found.tpr_at_1pct[attack] > 0.3
    assert found.auc["DOMIAS"] > 0.55  # five neighbours look past a single copy


def test_a_claim_that_such_a_generator_makes_is_refuted(population, rng):
    copies = canary_generator(population[0]["train"], rng)
    found = judged(population, copies, {"epsilon": 9.0, "epsilon_patient": 1.0, "delta": 1e-5})
    assert found.verdict["GAN-Leaks"] == "above the claim"
    assert set(judged(population, copies, NO_CLAIM).verdict) == {"within the claim"}


def test_public_phantoms_tell_nothing_of_who_was_in(population):
    fresh = cut_from([LOOK] * 10, 400, SIZE, seed=99, threads=0)
    found = judged(population, fresh, {"epsilon_patient": 0.0})
    assert (found.auc_low <= 0.5).all()
    assert (found.auc_high >= 0.5).all()
    assert set(found.auc_allowed) == {0.5}
    assert set(found.verdict) == {"within the claim"}
    assert found["tpr_at_0.1pct"].isna().all()  # 160 others cannot show one in a thousand


def test_rates_are_those_of_scikit_learn(rng):
    members = [rng.normal(1.0, 1, 400) for _ in range(5)]
    others = [rng.normal(0, 1, 500) for _ in range(3)]
    found = membership.judge(members, others)
    truth = np.repeat([1, 0], [2000, 1500])
    scores = np.concatenate([*members, *others])
    assert found["auc"] == pytest.approx(roc_auc_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    for rate, name in ((0.01, "tpr_at_1pct"), (0.001, "tpr_at_0.1pct")):
        assert found[name] == pytest.approx(true[false <= rate].max(), abs=2e-3)


def test_intervals_cover_the_truth_where_patients_differ():
    random = np.random.default_rng(7)

    def patients(count):  # of one law, but each with a level of its own
        return [random.normal(random.normal(), 1, 30) for _ in range(count)]

    found = [membership.judge(patients(8), patients(5)) for _ in range(300)]
    covered = np.mean([one["auc_low"] <= 0.5 <= one["auc_high"] for one in found])
    assert covered > 0.92
    width = np.mean([one["auc_high"] - one["auc_low"] for one in found])
    assert width < 0.95


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (0.5, 0.0), (1.0, 0.01), (8.0, 1e-5)])
def test_the_highest_auc_is_the_area_under_the_bound(epsilon, delta):
    corner = (1 - delta) / (1 + np.exp(epsilon))
    area, _ = integrate.quad(
        membership.most_true_positives, 0, 1, (epsilon, delta), points=[corner, 1 - delta]
    )
    assert membership.highest_auc(epsilon, delta) == pytest.approx(area, abs=1e-7)
    assert membership.most_true_positives(0.0, epsilon, delta) == pytest.approx(delta)


def test_randomised_response_meets_the_bound_exactly():
    epsilon = 1.3
    truth = np.exp(epsilon) / (1 + np.exp(epsilon))  # of answering truthfully
    assert membership.most_true_positives(1 - truth, epsilon, 0.0) == pytest.approx(truth)


def test_screens_see_copies_and_nothing_else(population, rng):
    pairs, owners = population
    points = {name: membership.embed(some) for name, some in pairs.items()}

    def screened(synthetic):
        space = {**points, "synthetic": membership.embed(synthetic)}
        found = membership.screens({"pixels": space}, owners["train"])
        return found.set_index("metric")["value"]

    copied = screened(canary_generator(pairs["train"], rng))
    fresh = screened(cut_from([LOOK] * 10, 400, SIZE, seed=99, threads=0))
    assert copied.authenticity < 0.3
    assert fresh.authenticity > 0.7
    assert copied.nearer_to_train > 0.65
    assert 0.4 < fresh.nearer_to_train < 0.6
    assert copied.distance_ratio < 0.9
    assert 0.95 < fresh.distance_ratio < 1.05


def test_the_most_alike_pair_is_found(population):
    """A copy with noise, and not the empty patches that all patients have."""
    train, held_out, others = (
        np.concatenate(
            [membership.embed(population[0][name]), np.zeros((1, 2 * membership.EDGE**2))]
        )
        for name in ("train", "test", "validation")
    )
    mixed = np.concatenate([others, train[17:18] + 1e-2]).astype(np.float32)
    sets = (mixed, train.astype(np.float32), held_out.astype(np.float32))
    first, second = membership.most_alike(*sets, 3)
    assert (first[0], second[0]) == (len(mixed) - 1, 17)
    assert len(others) - 1 not in first


def test_memory_and_order_do_not_change_distances(rng):
    points, others = rng.normal(size=(1100, 7)), rng.normal(size=(30, 7))
    full = np.linalg.norm(points[:, None] - others[None], axis=2)
    found = membership.nearest(points, others, 4)
    np.testing.assert_allclose(found, np.sort(full, 1)[:, :4], rtol=1e-6)
    distance, row = membership.closest_of(points, others)
    np.testing.assert_array_equal(row, full.argmin(1))
    np.testing.assert_allclose(distance, full.min(1), rtol=1e-6)
