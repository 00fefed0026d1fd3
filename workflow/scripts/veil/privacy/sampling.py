"""Poisson batches (floor 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def poisson_batch(records: int, rate: float, random: torch.Generator) -> Tensor:
    """Indices of one batch that holds each record independently with probability `rate`.

    Privacy: the amplification that accounting relies on needs exactly this: independent
    inclusion, at a public rate, drawn afresh for every noisy release. The batch may be empty;
    an empty batch is used (and noised) like any other.
    """
    return torch.nonzero(torch.rand(records, generator=random) < rate).flatten()
