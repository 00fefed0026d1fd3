"""The keystream of ChaCha20 (Bernstein 2008; RFC 8439), on a CPU by OpenSSL, on a GPU by torch.

Floor 2. The same key gives the same words on both, so that noise drawn on a GPU can be checked on
a CPU, and no random bits have to cross the bus.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SIGMA = np.frombuffer(b"expand 32-byte k", "<i4")
QUARTERS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip


def keystream(
    key: bytes, nonce: bytes, first: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """int64 words (count,) of the keystream from block `first` on; 8 words make a block.

    `key` has 32 bytes and `nonce` 8; blocks are counted in 64 bits, as in Bernstein's original.
    """
    blocks = -(-count // 8)
    if torch.device(device).type == "cpu":
        return torch.from_numpy(_by_openssl(key, nonce, first, blocks))[:count]
    return by_torch(key, nonce, first, blocks, device).view(torch.int64).flatten()[:count]


def _by_openssl(key: bytes, nonce: bytes, first: int, blocks: int) -> np.ndarray:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    counter = first.to_bytes(8, "little")
    cipher = Cipher(algorithms.ChaCha20(key, counter + nonce), mode=None).encryptor()
    return np.frombuffer(bytearray(cipher.update(bytes(64 * blocks))), "<i8")


def by_torch(
    key: bytes, nonce: bytes, first: int, blocks: int, device: torch.device | str
) -> Tensor:
    """int32 (blocks, 16): twenty rounds on all blocks at once."""
    counter = torch.arange(first, first + blocks, dtype=torch.int64, device=device)
    fixed = np.concatenate([SIGMA, np.frombuffer(key, "<i4"), [0, 0], np.frombuffer(nonce, "<i4")])
    start = [torch.full((blocks,), int(word), dtype=torch.int32, device=device) for word in fixed]
    start[12:14] = counter.view(torch.int32).view(-1, 2).T
    state = list(start)
    for _ in range(10):
        for quarter in QUARTERS:
            _quarter_round(state, *quarter)
    return torch.stack([word + given for word, given in zip(state, start, strict=True)], dim=1)


def _quarter_round(state: list[Tensor], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[x] = state[x] + state[y]
        mixed = state[z] ^ state[x]
        # A right shift of int32 carries the sign along, which is masked away.
        state[z] = (mixed << turn) | ((mixed >> (32 - turn)) & ((1 << turn) - 1))
