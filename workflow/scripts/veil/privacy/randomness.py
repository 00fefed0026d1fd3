"""Where the coins of a private mechanism come from (floor 2).

`Seeded` repeats: the same seed gives the same batches and the same noise, so a study can be
made again to the bit. `Secure` does not: its key comes from the operating system, and without
the key its output cannot be told from chance.

Privacy: the guarantee assumes that batches and noise are unknown to whoever sees the release.
With `Seeded` that holds only against those who do not know the seed. With `Secure` it holds
against everybody who cannot read the checkpoint of a run that has not ended: the key lies in
it, on the private side, so that a killed run can go on, and is deleted with it. Both give
normal deviates in floating point, whose rounding is not covered by any epsilon (Mironov 2012);
`Secure` adds four deviates for each one, which makes recovering them from the low bits
impractical (Holohan and Braghin 2021), but is no proof.
"""

from __future__ import annotations

import json
import math
import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**18  # deviates drawn at a time, so that buffers stay in the cache


class Randomness(Protocol):
    """A stream of random numbers whose place can be saved."""

    description: str
    """What a privacy statement says of it."""

    def uniform(self, count: int) -> Tensor:
        """float64 in [0, 1), (count,)."""

    def normal(self, count: int) -> Tensor:
        """Standard normal deviates, float32 (count,)."""

    def state(self) -> Tensor:
        """Where the stream stands, as uint8."""

    def load_state(self, state: Tensor) -> None:
        """Go on where `state` stood."""


class Seeded:
    """NumPy's Philox, from a seed: repeatable, and only as secret as the seed.

    Normals are drawn in float64 and rounded once. Drawn in float32 they would end at 5.8
    deviations, and a sum beyond that would betray a record for certain.
    """

    description = (
        "pseudo-random, from the study's seed and the result's path, so that the run repeats. "
        "Whoever holds a release can find a guessable seed by trying: for studies, not for "
        "release, which wants noise: secure."
    )

    def __init__(self, seed: int):
        self._bits = np.random.Philox(seed)
        self._random = np.random.Generator(self._bits)

    def uniform(self, count: int) -> Tensor:
        return torch.from_numpy(self._random.random(count))

    def normal(self, count: int) -> Tensor:
        return torch.from_numpy(self._random.standard_normal(count)).float()

    def state(self) -> Tensor:
        text = json.dumps(self._bits.state, default=np.ndarray.tolist, sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def load_state(self, state: Tensor) -> None:
        self._bits.state = json.loads(bytes(state.tolist()))


class Secure:
    """AES-256 in counter mode, keyed by the operating system; normals by Box and Muller."""

    description = (
        "AES-256-CTR under a key from the operating system that was deleted when the run ended; "
        "floating-point noise, the sum of four deviates for each one. Nobody can repeat the run."
    )

    def __init__(self) -> None:
        self._key, self._used = os.urandom(32), 0
        self._open()

    def uniform(self, count: int) -> Tensor:
        return torch.from_numpy(self._words(count) >> np.uint64(11)).double() * 2.0**-53

    def normal(self, count: int) -> Tensor:
        out = torch.empty(count)
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            # Two Box-Muller pairs, four deviates: their sum, halved, is one deviate again.
            total = sum(self._pair(size) for _ in range(2))
            out[start : start + size] = total / 2
        return out

    def state(self) -> Tensor:
        text = self._key + self._used.to_bytes(16, "big")
        return torch.frombuffer(bytearray(text), dtype=torch.uint8)

    def load_state(self, state: Tensor) -> None:
        text = bytes(state.tolist())
        self._key, self._used = text[:32], int.from_bytes(text[32:], "big")
        self._open()

    def _pair(self, count: int) -> Tensor:
        """Sum of the two independent deviates of Box and Muller, float64 (count,)."""
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform(count)))
        angle = 2 * math.pi * self.uniform(count)
        return radius * (torch.cos(angle) + torch.sin(angle))

    def _words(self, count: int) -> np.ndarray:
        # Whole blocks of 16 bytes, so that the place in the stream is a block number.
        size = 16 * math.ceil(count / 2)
        self._used += size // 16
        return np.frombuffer(self._stream.update(bytes(size)), np.uint64, count)

    def _open(self) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        counter = modes.CTR(self._used.to_bytes(16, "big"))
        self._stream = Cipher(algorithms.AES(self._key), counter).encryptor()


def source(kind: str, seed: int) -> Randomness:
    """The stream of this kind: `seeded` or `secure` (which ignores the seed)."""
    return Secure() if kind == "secure" else Seeded(seed)


def description(kind: str) -> str:
    """What a privacy statement says of a kind of stream."""
    return Secure.description if kind == "secure" else Seeded.description
