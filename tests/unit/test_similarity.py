"""How alike sets of pairs are: the Fréchet distance against its textbook form, and what it sees."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import linalg
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from veil import artifacts
from veil.evaluation import diversity, shapes, similarity


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


def manifold_by_definition(real, synthetic, k):
    """Precision, recall, density and coverage with loops, as their papers write them."""

    def radius(rows, row):
        return np.sort(np.linalg.norm(rows - rows[row], axis=1))[k]

    inside = np.array(
        [[np.linalg.norm(r - s) < radius(real, i) for s in synthetic] for i, r in enumerate(real)]
    )
    other = np.array(
        [
            [np.linalg.norm(r - s) < radius(synthetic, j) for j, s in enumerate(synthetic)]
            for r in real
        ]
    )
    return {
        "precision": inside.any(0).mean(),
        "recall": other.any(1).mean(),
        "density": inside.sum() / (k * len(synthetic)),
        "coverage": inside.any(1).mean(),
    }


def test_manifold_scores_are_their_definitions(rng):
    real, synthetic = rng.normal(size=(40, 3)), 0.4 + 0.7 * rng.normal(size=(30, 3))
    found = similarity.manifold_scores(real, synthetic)
    assert found == pytest.approx(manifold_by_definition(real, synthetic, 5))
    far = similarity.manifold_scores(real, synthetic + 100)
    assert far == dict.fromkeys(found, 0.0)


def test_collapse_costs_recall_and_not_precision(rng):
    real = rng.normal(size=(300, 4))
    found = similarity.manifold_scores(real, 0.1 * rng.normal(size=(300, 4)))
    assert found["precision"] > 0.95
    assert found["recall"] < 0.2


class Pooled(torch.nn.Module):
    """Stands in for the network's file: small, and called alike."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert return_features
        assert images.dtype == torch.uint8
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1)


def test_inception_is_loaded_if_it_is_the_file_that_was_meant(rng, tmp_path):
    path = tmp_path / "network.pt"
    torch.jit.script(Pooled()).save(path)
    inception = similarity.Inception(path, artifacts.file_hash(path))
    images = rng.integers(0, 255, (5, 24, 24)).astype(np.uint8)
    found = inception.features(images)
    assert found.shape == (5, 48)
    expected = images.reshape(5, 4, 6, 4, 6).mean((2, 4)).reshape(5, -1)
    np.testing.assert_allclose(found[:, :16], expected, rtol=1e-5)
    with pytest.raises(artifacts.ArtifactError, match="inception_sha256"):
        similarity.Inception(path, "0" * 64)
    with pytest.raises(artifacts.ArtifactError, match="no such file"):
        similarity.Inception(tmp_path / "none.pt", "0" * 64)


def test_mean_ssim_is_that_of_scikit_image(rng):
    images = np.stack([gaussian_filter(rng.normal(size=(24, 31)), s) for s in (0.5, 1, 2, 3) * 4])
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    images = np.rint(255 * (images - low) / (high - low)).astype(np.uint8)
    images[5], images[6] = 0, 255
    images[7] = images[8]
    pairs = combinations(images, 2)
    expected = np.mean([structural_similarity(a, b, data_range=255, win_size=7) for a, b in pairs])
    assert diversity.mean_ssim(images) == pytest.approx(expected, abs=1e-6)


def test_mean_ssim_does_not_depend_on_blocks(rng, monkeypatch):
    images = rng.integers(0, 255, (20, 16, 16)).astype(np.uint8)
    whole = diversity.mean_ssim(images)
    monkeypatch.setattr(diversity, "BLOCK", 7)
    assert diversity.mean_ssim(images) == pytest.approx(whole, abs=1e-6)
    assert diversity.mean_ssim(np.repeat(images[:1], 6, 0)) == pytest.approx(1, abs=1e-5)


def test_geometry_of_shapes_that_one_can_count():
    labels = np.zeros((3, 32, 32), np.uint8)
    labels[0, 4:9] = 1  # one band, 5 wide: radius 3, 32 long at most
    labels[1, 2:5, 2:30], labels[1, 20:23, 2:30] = 1, 1
    found = shapes.geometry(labels)  # the third is empty, and left out
    assert list(found.parts) == [1, 2]
    assert found.radius[0] == pytest.approx(3, abs=0.3)
    assert found.radius[1] == pytest.approx(2, abs=0.2)
    assert found.length[0] == pytest.approx(1000 * 30 / 1024, rel=0.15)
    assert found.area[0] == pytest.approx(5 / 32)
    assert shapes.distances(found, found) == dict.fromkeys(found.columns, 0.0)
    thicker = shapes.geometry(np.repeat(labels[:1], 2, 0))
    assert shapes.distances(found, thicker)["radius"] == pytest.approx(0.5, abs=0.2)
    assert all(np.isnan(v) for v in shapes.distances(found, shapes.geometry(labels[2:])).values())
