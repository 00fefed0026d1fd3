"""Phantoms: deterministic, plausible, and brighter where the label says so."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from veil.cohorts import phantoms
from veil.config import Phantom, Scanner

SMALL = Phantom(shape=(64, 72, 24), zooms=(1.3, 1.3, 1.8))
FLAT = Phantom(shape=(96, 96, 1), zooms=(0.8, 0.8, 1.0))


@pytest.mark.parametrize("phantom", [SMALL, FLAT])
def test_the_seed_decides_everything(phantom):
    first, again, other = (phantoms.draw(phantom, seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert (first.image != other.image).any()
    assert (first.label != other.label).any()


@pytest.mark.parametrize("phantom", [SMALL, FLAT])
def test_shapes_types_and_label(phantom):
    drawn = phantoms.draw(phantom, 1)
    assert drawn.image.shape == drawn.label.shape == drawn.brain.shape == phantom.shape
    assert drawn.image.dtype == np.int16
    assert set(np.unique(drawn.label)) == {0, 1}
    assert not (drawn.label & ~drawn.brain & 1).any()


def test_vessels_are_bright_and_few():
    drawn = phantoms.draw(Phantom(), 2)
    brain, label = drawn.brain.astype(bool), drawn.label.astype(bool)
    assert 0.001 < label[brain].mean() < 0.03  # in a head, arteries fill about a percent
    assert drawn.image[label].mean() > 1.4 * drawn.image[brain & ~label].mean()


def test_the_tree_is_mostly_one_piece():
    drawn = phantoms.draw(Phantom(), 2)
    parts, count = ndimage.label(drawn.label, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    assert sizes.max() > 0.3 * drawn.label.sum(), f"{count} pieces"


def test_appearance_leaves_the_geometry_alone():
    plain = phantoms.draw(SMALL, 3)
    other = phantoms.draw(SMALL.model_copy(update={"scanner": Scanner(noise=0.3, blur=1.0)}), 3)
    np.testing.assert_array_equal(
        plain.label & plain.brain & other.brain, other.label & plain.brain
    )


def test_noise_is_rician():
    """Without signal the magnitude of two Gaussian channels has mean sigma x sqrt(pi / 2)."""
    look = Scanner(noise=0.2, bias=0.0, gain=1000.0)
    image = phantoms._scan(
        np.zeros((40, 40, 40), np.float32), look, np.ones(3), np.random.default_rng(0)
    )
    assert image.mean() == pytest.approx(1000 * 0.2 * np.sqrt(np.pi / 2), rel=0.01)


def test_partial_volume_of_a_straight_tube():
    """A tube's covered volume is its true volume, at any radius that fills a voxel."""
    length, zooms = 30.0, np.array([0.5, 0.5, 0.5])
    along = np.arange(-length / 2, length / 2, 0.1)
    points = np.column_stack([np.zeros((len(along), 2)) + 0.13, along])
    for radius in (0.8, 1.5, 2.5):
        tree = phantoms.Tree(
            points=points,
            radius=np.full(len(along), radius),
            flow=np.ones(len(along)),
            line=np.zeros(len(along)),
        )
        covered, _ = phantoms._rasterise(tree, (41, 41, 41), zooms)
        volume = covered[:, :, 10:30].sum() * zooms.prod() / (20 * zooms[2])
        assert volume == pytest.approx(np.pi * radius**2, rel=0.06)


def test_what_varies_differs_between_phantoms_and_nothing_else_does():
    look = Scanner(noise=0.0, bias=0.0, texture=0.0)
    phantom = FLAT.model_copy(update={"scanner": look, "vary": {"scanner.gain": (10.0, 1000.0)}})
    brightest = [int(phantoms.draw(phantom, seed).image.max()) for seed in range(6)]
    assert max(brightest) > 2 * min(brightest)
    fixed = phantoms.draw(phantom.with_values({"scanner.gain": 100.0}), 0)
    np.testing.assert_array_equal(fixed.label, phantoms.draw(phantom, 0).label)


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ({"scanner.nois": (0.1, 0.2)}, "did you mean 'scanner.noise'"),
        ({"scanner": (1, 2)}, "allowed are"),
        ({"scanner.noise": (0.3, 0.2)}, "must not be above"),
        ({"scanner.noise": (0.3, 2.0)}, "less than or equal to 1"),
    ],
)
def test_what_cannot_vary_is_refused_by_name(vary, said):
    with pytest.raises(ValueError, match=said) as error:
        Phantom(vary=vary)
    assert next(iter(vary)) in str(error.value)


def test_a_setting_that_is_a_range_varies_as_one_value():
    fixed = Phantom(vary={"scanner.vessel": (1, 4)}).with_values({"scanner.vessel": 2.5})
    assert fixed.scanner.vessel == (2.5, 2.5)
    with pytest.raises(ValueError, match="must not be above"):
        Scanner(vessel=(3, 2))


def test_a_ray_through_two_vessels_is_brighter_than_through_one():
    along = np.linspace(-10, 10, 200)
    points = np.zeros((400, 3))
    points[:200, 0], points[200:, 1] = along, along
    tree = phantoms.Tree(
        points=points, radius=np.full(400, 1.5), flow=np.ones(400), line=np.repeat([0, 1], 200)
    )
    depth = phantoms._depth(tree, (41, 41), np.array([0.5, 0.5]))
    assert depth[20, 20] == pytest.approx(6.0, rel=0.02)
    assert depth[30, 20] == pytest.approx(3.0, rel=0.02)


def test_a_vessel_thinner_than_a_pixel_keeps_its_cross_section():
    along = np.arange(-10, 10, 0.05)
    points = np.column_stack([along, np.full((len(along), 2), 0.07)])
    for radius in (0.1, 1.0):
        tree = phantoms.Tree(
            points=points, radius=np.full(len(along), radius), flow=np.ones(len(along)),
            line=np.zeros(len(along)),
        )  # fmt: skip
        depth = phantoms._depth(tree, (31, 41), np.array([0.5, 0.5]))
        assert depth[15].sum() * 0.5 == pytest.approx(np.pi * radius**2, rel=0.25)
