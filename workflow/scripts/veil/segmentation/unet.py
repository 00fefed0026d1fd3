"""The U-Net of Livne et al. 2019, its training and its augmentation (floor 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from veil import artifacts, config, training

ROTATION = math.radians(30)
SHEAR = math.radians(20)
ADAM_EPS = 1e-4
WARM_UP = 0.1  # of the steps of a cosine schedule


class Dropout(nn.Module):
    """Dropout that draws from a generator of its own, so that a run can be resumed."""

    def __init__(self, rate: float, random: torch.Generator):
        super().__init__()
        self.rate, self.random = rate, random

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        keep = torch.rand(x.shape, generator=self.random).to(x.device) >= self.rate
        return x * keep / (1 - self.rate)


class UNet(nn.Module):
    """Images (B, 1, H, W), standardised, to logits (B, 1, H, W).

    Two 3 x 3 convolutions a level with dropout between them, no normalisation, nearest
    upsampling and concatenation. H and W must halve len(channels) - 1 times. Initialised after
    Glorot, which starts near probabilities of 1/2.
    """

    def __init__(self, channels: Sequence[int], dropout: float, random: torch.Generator):
        super().__init__()
        ends = [1, *channels]
        self.down = nn.ModuleList(
            _level(ends[n], ends[n + 1], dropout, random) for n in range(len(channels))
        )
        self.up = nn.ModuleList(
            _level(channels[n + 1] + channels[n], channels[n], dropout, random)
            for n in reversed(range(len(channels) - 1))
        )
        self.head = nn.Conv2d(channels[0], 1, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.xavier_uniform_(layer.weight, generator=random)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for n, level in enumerate(self.down):
            x = level(functional.max_pool2d(x, 2) if n else x)
            skips.append(x)
        skips.pop()
        for level in self.up:
            wide = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = level(torch.cat([wide, skips.pop()], 1))
        logits: Tensor = self.head(x)
        return logits


def _level(inner: int, outer: int, dropout: float, random: torch.Generator) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(), Dropout(dropout, random),
        nn.Conv2d(outer, outer, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the Dice coefficient of a whole batch, with a smoothing of 1."""
    probability = torch.sigmoid(logits)
    overlap = (probability * labels).sum()
    return -(2 * overlap + 1) / (probability.sum() + labels.sum() + 1)


def dice_and_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The Dice loss plus the mean cross-entropy, as in nnU-Net (Isensee et al. 2021).

    Dice alone is flat where all voxels are foreground and where none is; the entropy has a slope
    at both, so that training does not end there.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, labels)
    return dice_loss(logits, labels) + entropy


LOSSES = {"dice": dice_loss, "dice-ce": dice_and_entropy}


def augment(images: Tensor, labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotate by up to 30 degrees, shear by up to 20, flip vertically: each pair by its own draw.

    Images and labels (B, 1, H, W) move together; outside the patch is the image's minimum
    and no label.
    """
    draws = torch.rand(len(images), 3, generator=random)
    angle, shear = (draws[:, 0] * 2 - 1) * ROTATION, (draws[:, 1] * 2 - 1) * SHEAR
    flip = torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
    matrix = torch.zeros(len(images), 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = torch.cos(angle), -torch.sin(angle + shear) * flip
    matrix[:, 1, 0], matrix[:, 1, 1] = torch.sin(angle), torch.cos(angle + shear) * flip
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    grid = grid.to(images.device)
    low = images.amin((2, 3), keepdim=True)
    moved = functional.grid_sample(images - low, grid, "bilinear", align_corners=False) + low
    return moved, functional.grid_sample(labels, grid, "nearest", align_corners=False)


class Segmenter:
    """A trained U-Net with the mean and deviation its images are standardised with."""

    def __init__(self, network: UNet, mean: float, deviation: float, device: torch.device):
        self.network = channels_last(network.to(device)).eval()
        self.mean, self.deviation, self.device = mean, deviation, device

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities float32 (B, H, W) for uint8 images (B, H, W) scaled as patches are."""
        batch = torch.from_numpy(images.astype(np.float32))[:, None].to(self.device)
        batch = ((batch - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        with _autocast(self.device):
            logits = self.network(batch)
        probability: np.ndarray = torch.sigmoid(logits.float())[:, 0].cpu().numpy()
        return probability

    def save(self, path: Path, channels: Sequence[int]) -> None:
        """Write weights and standardisation."""
        meta = {"channels": list(channels), "mean": self.mean, "deviation": self.deviation}
        artifacts.save_tensors(path, self.network.state_dict(), meta)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Segmenter:
        """Read what `save` wrote."""
        tensors, meta = artifacts.load_tensors(path)
        network = UNet(meta["channels"], 0.0, torch.Generator())
        network.load_state_dict(tensors)
        return cls(network, meta["mean"], meta["deviation"], device)


def train(
    pairs: np.ndarray, settings: config.Segmentation, cell: str, *, seed: int, state: Path,
    device: torch.device, identity: Mapping[str, Any],
) -> Segmenter:  # fmt: skip
    """Train one cell of the grid on image-label pairs, uint8 (N, 2, H, W)."""
    rate, dropout, moves = config.Grid.parse(cell)
    images = pairs[:, 0]
    mean, deviation = float(images.mean()), max(float(images.std()), 1e-3)
    random = torch.Generator().manual_seed(seed)
    network = UNet(settings.channels, dropout, random)
    trainee = _Training(
        channels_last(network.to(device)), pairs, mean, deviation,
        rate=rate, moves=moves, settings=settings, random=random, device=device,
    )  # fmt: skip
    training.Loop(steps=settings.steps, folder=state, identity=identity, name="u-net").run(trainee)
    return Segmenter(network, mean, deviation, device)


class _Training:
    """One optimiser step of one U-Net."""

    def __init__(
        self, network: UNet, pairs: np.ndarray, mean: float, deviation: float, *,
        rate: float, moves: bool, settings: config.Segmentation, random: torch.Generator,
        device: torch.device,
    ):  # fmt: skip
        self.network, self.pairs, self.mean, self.deviation = network, pairs, mean, deviation
        self.rate, self.moves, self.settings = rate, moves, settings
        self.random, self.device, self.taken = random, device, 0
        # Where every voxel is foreground, the Dice loss is flat. Adam, which divides by the slope,
        # would go on into that flat and never come back: its eps must not be far below the slopes.
        self.optimiser = torch.optim.Adam(network.parameters(), rate, eps=ADAM_EPS)

    def step(self) -> dict[str, float]:
        self._set_rate()
        chosen = torch.randint(len(self.pairs), (self.settings.batch_size,), generator=self.random)
        batch = torch.from_numpy(self.pairs[chosen.numpy()].astype(np.float32)).to(self.device)
        images, labels = (batch[:, :1] - self.mean) / self.deviation, batch[:, 1:]
        if self.moves:
            images, labels = augment(images, labels, self.random)
        self.network.train()
        with _autocast(self.device):
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        loss = LOSSES[self.settings.loss](logits.float(), labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.taken += 1
        return {"loss": float(loss.detach())}

    def _set_rate(self) -> None:
        if self.settings.schedule == "cosine":
            done = self.taken / self.settings.steps
            # Without the slow start quick rates run into "no foreground at all", and stay there.
            risen = min((self.taken + 1) / (WARM_UP * self.settings.steps), 1.0)
            for group in self.optimiser.param_groups:
                group["lr"] = self.rate * risen * (1 + math.cos(math.pi * done)) / 2

    def state(self) -> dict[str, Tensor]:
        packed = training.pack(network=self.network, optimiser=self.optimiser, random=self.random)
        return packed | {"taken": torch.tensor(self.taken)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        training.unpack(state, network=self.network, optimiser=self.optimiser, random=self.random)
        self.taken = int(state["taken"])


def channels_last(network: UNet) -> UNet:
    """The network with its weights laid out channels last, which its convolutions prefer."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA cards that have it; on CPUs it is slower than float32."""
    fit = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fit)
