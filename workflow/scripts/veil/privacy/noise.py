"""Gaussian noise on a lattice, exactly (floor 2).

What a private sum is rounded to, and the noise that it meets there, are integers: multiples of a
public spacing. Adding them is exact, so that nothing is left in the low bits of what is released
(Mironov 2012 recovered whole sums from those of floating-point noise).

The noise is a Gaussian rounded to the lattice. Rounding commutes with adding integers, so a release
is the rounded release of the Gaussian mechanism on an integer sum: post-processing of just what the
accountant charges. (A discrete Gaussian would be exact as well, but is no post-processing of the
continuous one, for which losses are computed.)

The rounding is exact by interval refinement (Haney et al. 2022, arXiv 2207.13793). A deviate is a
function, after Box and Muller, of two real numbers of endlessly many random bits. In float64 it is
known to within a bound; where that interval holds a border between two integers, further bits
are drawn and the function is evaluated anew in interval arithmetic, until one integer is left.

Privacy: no error is left to be charged to delta, in the tail or elsewhere. What would void it: bits
that are not random (`randomness`), or a float64 function in error by more than `PRECISION`, of
which the tests find less than a tenth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from veil.privacy.randomness import Randomness

BITS = 52
"""Of each uniform number, before any are added."""
PRECISION = 2.0**-46
"""Bound on the absolute error of a cosine, and the relative one of a radius, in float64."""
BLOCK = 2**14
"""Pairs of deviates at a time, so that buffers stay in the cache; on a GPU as many as there are."""
SHORT = 64
"""Where a release has so many coordinates or fewer, all go through interval arithmetic."""
LEAST_BITS = 20
"""The spacing is at most 2^-20 of the clip norm."""
ROUNDING = 9
"""Rounding a whole sum moves it by at most 2^-9 of the clip norm."""


@dataclass(frozen=True)
class Lattice:
    """Multiples of a public power of two."""

    spacing: float

    @classmethod
    def of(cls, clip_norm: float, coordinates: int) -> Lattice:
        """The lattice for sums of so many coordinates of contributions of at most `clip_norm`.

        Rounding two sums moves their difference by at most spacing x sqrt(coordinates), which is
        at most 2^-ROUNDING of the clip norm.
        """
        bits = max(LEAST_BITS, ROUNDING + math.ceil(math.log2(coordinates) / 2))
        return cls(2.0 ** (math.frexp(clip_norm)[1] - 1 - bits))

    def nearest(self, values: Tensor) -> Tensor:
        """The nearest points, as int64 multiples of the spacing."""
        return (values.double() / self.spacing).round().long()

    def towards_zero(self, values: Tensor) -> Tensor:
        """The points next to `values` on the side of zero, int64: no norm grows."""
        return (values.double() / self.spacing).trunc().long()

    def values(self, points: Tensor) -> Tensor:
        """Where points lie, float64."""
        return points.double() * self.spacing

    def deviation(self, value: float) -> float:
        """A standard deviation in units of the spacing, never rounded down."""
        return math.nextafter(value / self.spacing, math.inf)


def add_noise(points: Tensor, source: Randomness, deviation: float, release: int) -> None:
    """Add rounded Gaussian deviates of this standard deviation to int64 points (n,), in place.

    Each point has a deviate of its own: those of the release of this number, the same on whatever
    device.
    """
    pairs = -(-len(points) // 2)
    block = BLOCK if points.device.type == "cpu" else pairs
    for at in range(0, pairs, block):
        size = min(block, pairs - at)
        words = [source.words(release, which, at, size, points.device) for which in range(2)]
        noise, unsure = _in_float64(words[0], words[1], deviation)
        if len(points) <= SHORT:
            unsure[:] = True
        for row, column in unsure.nonzero().tolist():
            known = [int(stream[row]) for stream in words]
            noise[row, column] = _refined(source, release, at + row, known, column, deviation)
        part = points[2 * at : 2 * (at + size)]
        part += noise.flatten()[: len(part)]


def rounded_normal(
    source: Randomness, deviation: float, count: int, *, release: int,
    device: torch.device | str = "cpu",
) -> Tensor:  # fmt: skip
    """The deviates of a release by themselves, int64 (count,)."""
    out = torch.zeros(count, dtype=torch.int64, device=device)
    add_noise(out, source, deviation, release)
    return out


def _in_float64(first: Tensor, second: Tensor, deviation: float) -> tuple[Tensor, Tensor]:
    """Rounded deviates of two words (n,) each, int64 (n, 2), and which of them are not certain."""
    radius_of, turn = (
        ((words >> (64 - BITS)).bitwise_and_(2**BITS - 1)).double().add_(0.5).mul_(2.0**-BITS)
        for words in (first, second)
    )
    radius = radius_of.log().mul_(-2).sqrt_()
    # How far the true value may lie: the functions' errors, and half a step of each number.
    error = (radius_of * radius).reciprocal_().mul_(2.0 ** (1 - BITS))
    error.add_(radius, alpha=PRECISION).mul_(deviation)
    radius.mul_(deviation)
    angle = turn.mul_(2 * math.pi)
    rounded = torch.empty(len(first), 2, dtype=torch.int64, device=first.device)
    unsure = torch.empty_like(rounded, dtype=torch.bool)
    for column, wave in enumerate((angle.cos(), angle.sin_())):
        raised = wave.mul_(radius).add_(0.5)
        below = raised.floor()
        rounded[:, column] = below.long()
        # The distance from the middle between two borders is half at a border.
        unsure[:, column] = raised.sub_(below).sub_(0.5).abs_().add_(error) >= 0.5
    return rounded, unsure


def _refined(
    source: Randomness, release: int, pair: int, words: list[int], column: int, deviation: float
) -> int:
    """One rounded deviate, with as many bits as it takes."""
    from mpmath import iv

    known = [(word % 2**64) >> (64 - BITS) for word in words]
    more = 0
    while True:
        bits = BITS + 512 * more
        if more:
            known = [
                (word % 2**64) >> (64 - BITS) << (512 * more)
                | source.further_bits(release, pair, which, more)
                for which, word in enumerate(words)
            ]
        iv.prec = bits + 64
        first, second = (iv.mpf([n, n + 1]) / iv.mpf(2) ** bits for n in known)
        if first.a > 0:
            angle = 2 * iv.pi * second
            turned = iv.sin(angle) if column else iv.cos(angle)
            raised = iv.sqrt(-2 * iv.log(first)) * turned * iv.mpf(deviation) + iv.mpf(0.5)
            low, high = (_floor(end) for end in (raised.a, raised.b))
            if low == high:
                return low
        more += 1


def _floor(end) -> int:  # type: ignore[no-untyped-def]
    from mpmath import mp

    return int(mp.floor(mp.make_mpf(end._mpi_[0])))
