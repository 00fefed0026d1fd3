"""How alike sets of pairs are: the Fréchet distance against its textbook form, and what it sees."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from veil.evaluation import similarity


def textbook(first, second):
    """Heusel et al. 2017, by the root of the product of covariances."""
    one, two = np.cov(first.T), np.cov(second.T)
    gap = first.mean(0) - second.mean(0)
    return gap @ gap + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real)


def bars(rng, count=200, shift=0, noise=10):
    """Pairs of bright bars and their labels, which lie `shift` pixels aside."""
    pairs = np.zeros((count, 2, 24, 24), np.uint8)
    for pair, place in zip(pairs, rng.integers(4, 16, count), strict=True):
        pair[0, place : place + 4] = 200
        pair[1, place + shift : place + shift + 4] = 1
    pairs[:, 0] += rng.integers(0, noise, (count, 24, 24)).astype(np.uint8)
    return pairs


@pytest.mark.parametrize("count", [400, 12])  # 12 of 30: singular covariances
def test_frechet_distance_is_the_textbooks(rng, count):
    mix = rng.normal(size=(30, 30))
    first, second = rng.normal(size=(count, 30)) @ mix, 0.3 + rng.normal(size=(300, 30))
    expected = textbook(first, second)
    assert similarity.frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)
    assert similarity.frechet_distance(first, first) == pytest.approx(0, abs=1e-8)


def test_features_see_noise_and_labels_that_lie_aside(rng):
    real = similarity.features(bars(rng))
    again, noisy, aside = (
        similarity.frechet_distance(similarity.features(bars(rng, **how)), real)
        for how in ({}, {"noise": 50}, {"shift": 3})
    )
    assert noisy > 5 * again
    assert aside > 5 * again


def test_features_are_the_same_in_parts_and_together(rng, monkeypatch):
    pairs = bars(rng, 20)
    whole = similarity.features(pairs)
    assert whole.shape == (20, 2 * sum(similarity.WIDTHS))
    monkeypatch.setattr(similarity, "ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(similarity.features(pairs), whole, atol=1e-5)
