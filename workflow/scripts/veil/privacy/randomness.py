"""Where the coins and the noise of a private mechanism come from (floor 2).

One key, and nothing else, decides all of them. A coin is a function of (key, purpose, step, whose
it is): AES-256 of the last two under a key of the purpose. So nobody's coins move when somebody
else comes or goes, and a place in a stream never has to be kept. Noise is a keystream of ChaCha20,
one for each release, the same on a CPU and on a GPU.

`Seeded` has its key from a seed: it repeats, so that a study can be made again to the bit.
`Secure` has it from the operating system.

Privacy: the guarantee assumes that coins and noise are unknown to whoever sees the release. With
`Seeded` that holds only against those who do not know the seed. With `Secure` it holds against
everybody who cannot read the register or the checkpoint of a run that has not ended: the key lies
there, on the private side, so that a killed run draws the same again, and is deleted with it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from veil.privacy import chacha


class Randomness:
    """Coins and noise of one key of 32 bytes."""

    kind: str
    """`seeded` or `secure`."""
    description: str
    """What a privacy statement says of it."""

    def __init__(self, key: bytes):
        self._key = key

    def uniform(self, step: int, identities: np.ndarray) -> np.ndarray:
        """A coin for each unit, float64 in [0, 1), (n,), of uint64 identities (n,)."""
        found: np.ndarray = (self._coins("inclusion", step, identities)[:, 0] >> 11) * 2.0**-53
        return found

    def own(self, step: int, identities: np.ndarray) -> list[np.random.Generator]:
        """For each unit a stream of its own, for whatever else it meets in this step."""
        keys = self._coins("own", step, identities)
        return [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def words(
        self, release: int, which: int, first: int, count: int, device: torch.device
    ) -> Tensor:
        """Random int64 (count,) of one release's stream 0 or 1, from word `first` (8 n) on."""
        key, nonce = self._subkey(f"noise {which}"), release.to_bytes(8, "little")
        return chacha.keystream(key, nonce, first // 8, count, device)

    def further_bits(self, release: int, pair: int, which: int, words: int) -> int:
        """`words` x 512 bits more of one uniform number, the `which`-th of a pair of deviates."""
        name = b"".join(n.to_bytes(8, "little") for n in (release, pair, which))
        key = self._subkey("further bits")
        parts = (
            hashlib.blake2b(name + n.to_bytes(8, "little"), key=key).digest() for n in range(words)
        )
        return int.from_bytes(b"".join(parts), "big")

    def state(self) -> Tensor:
        """The key, as uint8: everything that is needed to go on."""
        return torch.frombuffer(bytearray(self._key), dtype=torch.uint8)

    def load_state(self, state: Tensor) -> None:
        """Take up the key that `state` gave."""
        self._key = bytes(state.tolist())

    def _subkey(self, purpose: str) -> bytes:
        return hashlib.blake2b(purpose.encode(), key=self._key, digest_size=32).digest()

    def _coins(self, purpose: str, step: int, identities: np.ndarray) -> np.ndarray:
        """Two uint64 for each identity (n, 2)."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        blocks = np.stack([identities, np.full_like(identities, step)], axis=1)
        # Every block is another one, so that encrypting each by itself is a random function.
        cipher = Cipher(algorithms.AES(self._subkey(purpose)), modes.ECB()).encryptor()
        return np.frombuffer(cipher.update(blocks.tobytes()), np.uint64).reshape(-1, 2)


class Seeded(Randomness):
    """From a seed: repeatable, and only as secret as the seed."""

    kind = "seeded"
    description = (
        "pseudo-random, from the study's seed and the result's path, so that the run repeats. "
        "Whoever holds a release can find a guessable seed by trying: for studies, not for "
        "release, which wants noise: secure."
    )

    def __init__(self, seed: int):
        super().__init__(hashlib.blake2b(f"seed {seed}".encode(), digest_size=32).digest())


class Secure(Randomness):
    """From the operating system: nobody can repeat the run."""

    kind = "secure"
    description = (
        "ChaCha20, and AES-256 for coins, under a key from the operating system that was deleted "
        "when the result was finished. Nobody can repeat the run."
    )

    def __init__(self, secret: bytes | None = None, purpose: str = "") -> None:
        """A new key, or that of a purpose from a secret that the operating system gave before."""
        name = purpose.encode()
        given = secret and hashlib.blake2b(name, key=secret, digest_size=32).digest()
        super().__init__(given or os.urandom(32))


KINDS: dict[str, type[Randomness]] = {"seeded": Seeded, "secure": Secure}


def source(kind: str, seed: int, secret: bytes | None = None, purpose: str = "") -> Randomness:
    """The source of this kind: `seeded` by the seed, or `secure` by the secret, if there is one."""
    return Secure(secret, purpose) if kind == "secure" else Seeded(seed)


Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


class Coins:
    """Random numbers for records of which some share a stream: those of one unit."""

    def __init__(self, streams: Sequence[tuple[np.random.Generator, int]]):
        """Each stream with the number of records that it serves, in the order of the records."""
        self._streams = streams

    def uniform(self, *shape: int) -> Tensor:
        """float64 in [0, 1), (records, *shape)."""
        return self._together(lambda random, size: random.random(size), shape, np.float64)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float32 (records, *shape)."""
        return self._together(
            lambda random, size: random.standard_normal(size, np.float32), shape, np.float32
        )

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """From low to below high, int64 (records, *shape)."""
        return self._together(
            lambda random, size: random.integers(low, high, size), shape, np.int64
        )

    def _together(self, draw: Draw, shape: tuple[int, ...], kind: type) -> Tensor:
        parts = [draw(random, (count, *shape)) for random, count in self._streams]
        return torch.from_numpy(np.concatenate([np.empty((0, *shape), kind), *parts]))


def identities(records: Sequence[bytes]) -> np.ndarray:
    """A name for each record or unit, uint64 (n,), from what it holds.

    Equal ones are told apart by number, so that each has coins of its own: names depend on the
    contents that are there, and not on their order.
    """
    seen: dict[bytes, int] = {}
    names = np.empty(len(records), np.uint64)
    for row, record in enumerate(records):
        number = seen[record] = seen.get(record, -1) + 1
        name = hashlib.blake2b(record + number.to_bytes(8, "little"), digest_size=8).digest()
        names[row] = int.from_bytes(name, "little")
    return names
