"""Radiomics features against pyradiomics' own numbers, and what their Fréchet distance sees."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy.ndimage import gaussian_filter

from veil.evaluation import radiomics, similarity


def patches():
    """Five of 17 x 23 that need no random numbers: what pyradiomics measured has to be the same."""
    y, x = np.indices((17, 23))
    scatter = (7919 * y * y + 104729 * x * x + 31 * x * y) % 256
    sine = 128 + 100 * np.sin(y / 3) * np.cos(x / 4)
    bright_on_dark = np.where(scatter % 11 == 0, 200, 20)
    images = (scatter, sine, bright_on_dark, 90 + (x + y) % 40, np.full_like(x, 60))
    return np.stack(images).astype(np.uint8)


def test_features_are_those_of_pyradiomics():
    """Fixture: version 3.0.1, binWidth 25, the patch within a border of pixels outside the mask."""
    expected = pd.read_csv(ROOT / "tests/fixtures/pyradiomics.tsv", sep="\t", index_col="feature").T
    found = radiomics.features(patches())
    assert len(found.columns) == int(radiomics.FEATURES.removeprefix("pyradiomics-"))
    assert set(found.columns) == set(expected.columns)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_features_do_not_depend_on_the_other_images():
    images = patches()
    together = radiomics.features(images)
    alone = pd.concat([radiomics.features(images[[row]]) for row in range(len(images))])
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def textures(rng, count=200):
    """Patches of 24 x 24 whose brightness, contrast and grain differ from one to the next."""
    images = np.empty((count, 24, 24))
    for image in images:
        grain = gaussian_filter(rng.normal(size=image.shape), rng.uniform(0.7, 1.5))
        image[:] = rng.normal(110, 10) + rng.uniform(20, 40) * grain / grain.std()
    return np.clip(images, 0, 255).astype(np.uint8)


def test_distance_is_nothing_to_itself_and_grows_with_blur_and_noise(rng):
    images = textures(rng, 400)
    reference = radiomics.features(images[::2])

    def away(changed):
        return radiomics.distance(radiomics.features(changed.astype(np.uint8)), reference)

    assert away(images[::2]) == pytest.approx(0, abs=1e-8)
    others = images[1::2]
    blurred = [gaussian_filter(others, (0, width, width)) for width in (0.5, 1, 2)]
    noisy = [np.clip(others + rng.normal(0, s, others.shape), 0, 255) for s in (10, 20, 40)]
    same = away(others)
    for changed in (blurred, noisy):
        near, middle, far = (away(images) for images in changed)
        assert 2 * same < near < middle < far
        assert middle > 5 * same


def test_a_distance_is_in_units_of_the_reference(rng):
    first, second = (radiomics.features(textures(rng, 60)) for _ in range(2))
    centre, deviation = second.mean(), second.std(ddof=0)
    expected = similarity.frechet_distance(
        ((first - centre) / deviation).to_numpy(), ((second - centre) / deviation).to_numpy()
    )
    assert radiomics.distance(first, second) == pytest.approx(expected)
    assert radiomics.distance(1000 * first, 1000 * second) == pytest.approx(expected)


def test_features_that_do_not_vary_in_the_reference_are_dropped_by_name(rng):
    synthetic, reference = (radiomics.features(textures(rng, 60)) for _ in range(2))
    assert radiomics.space(reference) == radiomics.FEATURES
    others = [synthetic.drop(columns="glcm_Id"), reference.drop(columns="glcm_Id")]
    reference["glcm_Id"] = 0.1 + 1e-15 * np.arange(60)
    assert radiomics.space(reference) == f"{radiomics.FEATURES} without glcm_Id"
    assert radiomics.distance(synthetic, reference) == pytest.approx(radiomics.distance(*others))
