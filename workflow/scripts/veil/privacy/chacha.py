"""The keystream of ChaCha20 (Bernstein 2008; RFC 8439), on a CPU by OpenSSL, on a GPU by torch.

Floor 2. The same key gives the same words on both, so that noise drawn on a GPU can be checked on
a CPU, and no random bits have to cross the bus.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SIGMA = np.frombuffer(b"expand 32-byte k", "<i4")


def keystream(
    key: bytes, nonce: bytes, first: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """int64 words (count,) of the keystream from block `first` on; 8 words make a block.

    `key` has 32 bytes and `nonce` 8. Blocks from 2^32 on, which no release reaches, are refused by
    OpenSSL (ValueError).
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
    """int32 (blocks, 16): twenty rounds on all blocks at once.

    A state is four rows of four words, and so a round is one quarter round of rows.
    """
    counter = torch.arange(first, first + blocks, dtype=torch.int64, device=device)
    fixed = np.concatenate([SIGMA, np.frombuffer(key, "<i4"), [0, 0], np.frombuffer(nonce, "<i4")])
    start = torch.from_numpy(fixed.astype(np.int32)).to(device)[:, None].repeat(1, blocks)
    start[12:14] = counter.view(torch.int32).view(-1, 2).T
    rows = list(start.view(4, 4, blocks).unbind())
    for _ in range(10):
        rows = _round(rows)
        turned = [row.roll(-n, 0) for n, row in enumerate(rows)]  # diagonals become columns
        rows = [row.roll(n, 0) for n, row in enumerate(_round(turned))]
    return (torch.cat(rows) + start).T.contiguous()


def _round(rows: list[Tensor]) -> list[Tensor]:
    state = list(rows)
    for x, y, z, turn in ((0, 1, 3, 16), (2, 3, 1, 12), (0, 1, 3, 8), (2, 3, 1, 7)):
        state[x] = state[x] + state[y]
        mixed = state[z] ^ state[x]
        # A right shift of int32 carries the sign along, which is masked away.
        state[z] = (mixed << turn) | ((mixed >> (32 - turn)) & ((1 << turn) - 1))
    return state
