"""Clipped, noised sums of per-record gradients (floor 2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def clipped_sum(gradients: Sequence[Tensor], clip_norm: float) -> list[Tensor]:
    """Sum per-record gradients (each (B, *shape)) after scaling each record to `clip_norm`.

    Privacy: one record moves the result by at most `clip_norm` in joint L2 norm over all
    tensors. A record whose gradient is not finite counts as zero, so that it can neither
    break the bound nor the model.
    """
    flat = [gradient.flatten(1) for gradient in gradients]
    norms = torch.stack([part.norm(dim=1) for part in flat]).norm(dim=0)
    weights = torch.where(norms.isfinite(), (clip_norm / (norms + 1e-6)).clamp(max=1), 0)
    return [
        torch.einsum("b,b...->...", weights, gradient.nan_to_num(0, 0, 0))
        for gradient in gradients
    ]


def add_noise(sums: Iterable[Tensor], deviation: float, random: torch.Generator) -> list[Tensor]:
    """Add Gaussian noise of this standard deviation to each coordinate.

    Privacy: `deviation` is noise multiplier times clip norm. Noise is drawn on the CPU from
    the generator passed in; who knows its seed can subtract it.
    """
    return [
        total + deviation * torch.randn(total.shape, generator=random).to(total.device)
        for total in sums
    ]


def per_record_gradients(module: nn.Module) -> list[Tensor]:
    """Take the per-record gradients that Opacus's hooks left on a module's parameters."""
    gradients = []
    for parameter in module.parameters():
        gradients.append(parameter.grad_sample)
        parameter.grad_sample = None  # type: ignore[attr-defined]
    return gradients  # type: ignore[return-value]
