"""U-Net, augmentation and inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from veil import config, patches
from veil.cohorts import phantoms
from veil.evaluation.segmentation import dice
from veil.segmentation import inference, unet

CPU = torch.device("cpu")


@pytest.fixture
def discs(rng):
    """Bright discs on noise, with their masks: uint8 (N, 2, 16, 16)."""
    x, y = np.mgrid[:16, :16]
    pairs = np.zeros((120, 2, 16, 16), np.uint8)
    for pair in pairs:
        cx, cy = rng.uniform(4, 12, 2)
        pair[1] = (x - cx) ** 2 + (y - cy) ** 2 < 9
        pair[0] = np.clip(60 + 120 * pair[1] + rng.normal(0, 15, (16, 16)), 0, 255)
    return pairs


SETTINGS = config.Segmentation(channels=(4, 8), batch_size=16, steps=120)


@pytest.mark.parametrize(
    "cell", ["lr-0.01_dropout-0.1_augment-on", "lr-0.01_dropout-0_augment-off"]
)
def test_a_unet_learns_discs(tmp_path, discs, cell):
    segmenter = unet.train(
        discs[:100], SETTINGS, cell, seed=1, state=tmp_path, device=CPU, identity={}
    )
    found = segmenter(discs[100:, 0]) > 0.5
    overlap = 2 * (found & (discs[100:, 1] > 0)).sum() / (found.sum() + discs[100:, 1].sum())
    assert overlap > 0.8
    segmenter.save(tmp_path / "unet.safetensors", SETTINGS.channels)
    again = unet.Segmenter.load(tmp_path / "unet.safetensors", CPU)
    np.testing.assert_array_equal(again(discs[:5, 0]), segmenter(discs[:5, 0]))


@pytest.fixture(scope="module")
def angiograms():
    """Patches of 2-D phantoms, a quarter of them vessel: uint8 (N, 2, 48, 48)."""
    drawing = config.Phantom(
        shape=(300, 300, 1), zooms=(0.3, 0.3, 1.0),
        vessels=config.Vessels(branches=30, trunk_radius=(0.8, 3.2), least_radius=0.2),
    )  # fmt: skip
    parts, cutting = [], config.Patches(size=48, per_patient=60)
    for seed in range(6):
        drawn, rng = phantoms.draw(drawing, seed), np.random.default_rng(seed)
        label, brain = drawn.label.astype(bool), drawn.brain.astype(bool)
        centres, _ = patches.choose_centres(label, brain, cutting, rng)
        parts.append(patches.cut(drawn.image, drawn.label, centres, 48))
    return np.concatenate(parts)


@pytest.mark.parametrize("loss", ["dice", "dice-ce"])
@pytest.mark.parametrize("seed", [0, 3, 5, 9])
def test_no_seed_ends_with_foreground_everywhere(tmp_path, angiograms, seed, loss):
    """The Dice loss is flat there; a quick Adam once ran into it with every fourth seed."""
    settings = config.Segmentation(
        channels=(12, 24, 48, 96), batch_size=8, steps=60, loss=loss, schedule="constant"
    )
    cell = "lr-0.0015_dropout-0_augment-off"
    segmenter = unet.train(
        angiograms, settings, cell, seed=seed, state=tmp_path, device=CPU, identity={}
    )
    labels = angiograms[:100, 1].astype(bool)
    found = segmenter(angiograms[:100, 0]) > 0.5
    assert dice(found, labels) > dice(np.ones_like(labels), labels) + 0.2


def test_the_papers_unet_has_its_channels():
    network = unet.UNet((32, 64, 128, 256, 512), 0.1, torch.Generator())
    widths = [m.out_channels for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    down, up = [32, 32, 64, 64, 128, 128, 256, 256, 512, 512], [256, 256, 128, 128, 64, 64, 32, 32]
    assert widths == [*down, *up, 1]
    assert network(torch.zeros(1, 1, 96, 96)).shape == (1, 1, 96, 96)


def test_dice_loss_by_hand():
    logits = torch.tensor([[100.0, -100.0]])
    assert unet.dice_loss(logits, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(-1)
    assert unet.dice_loss(logits, torch.tensor([[0.0, 1.0]])).item() == pytest.approx(-1 / 3)


def test_entropy_has_a_slope_where_dice_is_flat():
    """No foreground at all, and nothing else: a network must find back from both."""
    labels = torch.zeros(1, 1000)
    labels[:, :30] = 1
    for value in (-20.0, 20.0):
        slopes = []
        for loss in unet.LOSSES.values():
            logits = torch.full((1, 1000), value, requires_grad=True)
            loss(logits, labels).backward()
            slopes.append(logits.grad.abs().sum())
        assert slopes[0] < 1e-6
        assert slopes[1] > 0.02


def test_augmentation_really_happens(discs):
    images = torch.from_numpy(discs[:32, :1].astype(np.float32))
    labels = torch.from_numpy(discs[:32, 1:].astype(np.float32))
    moved, masks = unet.augment(images, labels, torch.Generator().manual_seed(1))
    changed = (moved != images).flatten(1).any(1).float().mean()
    assert changed == 1
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    # Image and label move together: the moved mask still lies on the bright disc.
    assert moved[masks > 0].mean() > 2 * moved[masks == 0].mean()


def test_augmentation_turns_by_up_to_thirty_degrees_and_flips():
    """A horizontal bar's orientation and a corner mark tell angle and flip of each draw."""
    image = torch.zeros(400, 1, 33, 33)
    image[:, :, 16, :] = 1
    image[:, :, 4:8, 14:19] = 1  # above the bar
    moved, _ = unet.augment(image, image, torch.Generator().manual_seed(2))
    mass = moved[:, 0].sum(2)
    flipped = mass[:, 22:].sum(1) > mass[:, :11].sum(1)
    assert 0.4 < flipped.float().mean() < 0.6
    bar = torch.zeros(400, 1, 33, 33)
    bar[:, :, :, 16] = 1  # vertical: sheared and turned
    moved, _ = unet.augment(bar, bar, torch.Generator().manual_seed(3))
    columns = torch.arange(33.0)
    top = (moved[:, 0, 6] * columns).sum(1) / moved[:, 0, 6].sum(1)
    bottom = (moved[:, 0, 26] * columns).sum(1) / moved[:, 0, 26].sum(1)
    tilt = torch.rad2deg(torch.atan((top - bottom) / 20)).abs()
    assert 25 < tilt.max() < 55
    assert tilt.median() > 5


@pytest.mark.parametrize("stride", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("shape", [(50, 41, 3), (16, 16, 1), (10, 40, 2)])
def test_inference_covers_the_region_exactly(rng, stride, shape):
    """With a segmenter that says yes everywhere, the mask is the region."""
    image = rng.integers(0, 100, shape)
    region = rng.random(shape) < 0.3
    found = inference.segment(
        image, region, lambda tiles: np.ones(tiles.shape, np.float32), 16, stride
    )
    np.testing.assert_array_equal(found, region)


def test_inference_puts_tiles_where_they_came_from(rng):
    """With a segmenter that thresholds its tile, one tile a slice gives the thresholded slice."""
    image = rng.integers(0, 1000, (16, 16, 4))
    region = np.ones(image.shape, bool)
    found = inference.segment(image, region, lambda tiles: tiles / 255.0, 16, 1.0)
    expected = np.stack([patches.scale(image[:, :, z]) / 255.0 > 0.5 for z in range(4)], axis=2)
    np.testing.assert_array_equal(found, expected)


def test_an_empty_region_gives_an_empty_mask():
    image = np.zeros((20, 20, 3))
    assert not inference.segment(image, image > 0, lambda t: np.ones(t.shape), 16, 1.0).any()
