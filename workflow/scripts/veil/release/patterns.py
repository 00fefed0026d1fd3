"""Tokens in data that is no text: pixels, voxels, weights, packed streams (floor 5).

Fast, since there is much of it: tables of the first bytes leave a few places to look at. Tissue
may be as bright as letters, so that noise spells short names by chance: what a file would hold
anyway, by how often its values occur, is not found.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from veil.release.sought import TELLING, Sought
from veil.release.words import BREAKLESS, pieces, shorten

CHUNK = 2**22
CHANCE = 1e-8
"""Expected number of times up to which a find in a file is more than an accident of its values."""
WORD = re.compile(r"[^\W_]+")
RUN = re.compile(f"[{BREAKLESS}]+")


class Patterns:
    """The bytes of long tokens, in a few encodings, ready to be looked for."""

    def __init__(self, tokens: Iterable[str], sought: Sought):
        self.shown: dict[bytes, str] = {}
        for token in sorted(set(tokens)):
            for text in _texts(token, sought):
                self.shown.update(dict.fromkeys(_spellings(text), token))
        self.starting = defaultdict(list)
        for pattern in self.shown:
            self.starting[pattern[:TELLING]].append(pattern)
        starts = np.frombuffer(b"".join(self.starting), "<u2").reshape(-1, TELLING // 2)
        self.codes = np.unique(_code(starts.T))
        self.tables = np.zeros((TELLING // 2, 2**16), bool)
        for table, pairs in zip(self.tables, starts.T, strict=True):
            table[pairs] = True

    def find(self, data: bytes) -> Iterator[str]:
        """Tokens that the data holds, but those that such data holds by chance."""
        found = {pattern for at in self._places(data) for pattern in self._at(data, at)}
        for pattern in sorted(found):
            rest = np.frombuffer(data.replace(pattern, b""), np.uint8)
            shares = np.bincount(rest, minlength=256) / max(1, len(rest))
            if len(data) * shares[np.frombuffer(pattern, np.uint8)].prod() < CHANCE:
                yield self.shown[pattern]

    def _places(self, data: bytes) -> Iterator[int]:
        """Where the first bytes of some pattern may stand."""
        every = np.frombuffer(data, np.uint8)
        for start in range(0, max(0, len(every) - TELLING + 1), CHUNK):
            part = every[start : start + CHUNK + TELLING - 1].astype(np.uint16)
            pairs = part[:-1] | part[1:] << 8
            places = np.flatnonzero(self.tables[0][pairs[: len(part) - TELLING + 1]])
            for step, table in enumerate(self.tables[1:], 1):
                places = places[table[pairs[places + 2 * step]]]
            codes = _code([pairs[places + 2 * step] for step in range(TELLING // 2)])
            near = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
            yield from (start + places[self.codes[near] == codes]).tolist() if len(near) else ()

    def _at(self, data: bytes, at: int) -> Iterator[bytes]:
        for pattern in self.starting.get(data[at : at + TELLING], ()):
            if data.startswith(pattern, at):
                yield pattern


def _code(pairs: Iterable[np.ndarray]) -> np.ndarray:
    """Pairs of bytes that follow each other as one number."""
    low, middle, high = (pair.astype(np.uint64) for pair in pairs)
    return low | middle << np.uint64(16) | high << np.uint64(32)


def _texts(token: str, sought: Sought) -> Iterator[str]:
    """A token and its words, as far as they are sought and long enough."""
    for text in {token, *WORD.findall(token)}:
        letters = "".join(WORD.findall(text))
        if len(letters) >= TELLING and shorten("".join(pieces(text))) in sought.whole:
            yield text
    yield from (run for run in RUN.findall(token) if len(run) > 1)


def _spellings(text: str) -> Iterator[bytes]:
    """Bytes of a text in two normal forms, four cases and three encodings."""
    for form in ("NFC", "NFD"):
        composed = unicodedata.normalize(form, text)
        for spelt in {composed, composed.upper(), composed.lower(), composed.title()}:
            for codec in ("utf-8", "utf-16-le", "latin-1"):
                pattern = spelt.encode(codec, "ignore")
                if len(pattern) >= TELLING and (codec != "latin-1" or len(pattern) == len(spelt)):
                    yield pattern
