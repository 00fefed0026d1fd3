"""Texts as words that can be compared, whoever wrote them, and how (floor 5).

Folding leaves what two spellings of a name share: case, accents, width and invisible signs go,
umlauts and their two letters become one. What is compared are runs of such words, joined, so that
no separator matters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

BREAKLESS = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff"
    r"\uac00-\ud7a3\U00020000-\U0003ffff"
)
"""Scripts without spaces between words, or with endings at names: Han, kana, Hangul, Thai, ..."""
# What looks like a checksum is one piece, and so is a decimal: their parts are no numbers of
# patients. Five digits before the point at most, so that the number in 10042317.1.dcm is one.
PIECE = re.compile(
    r"(?<![^\W_])(?=(?:\d*[a-f]+\d+){2})[0-9a-f]{12,}(?![^\W_])"
    r"|(?<![\d.])(?:0|[1-9]\d{0,4})(?:\.\d+)+(?![^\W_])"
    rf"|\d+|[{BREAKLESS}]+|[^\W\d_{BREAKLESS}]+"
)
RUN = re.compile(rf"[{BREAKLESS}]+(?:(?:(?!\n)[\W_]){{1,3}}[{BREAKLESS}]+)*")
NOT_BREAKLESS = re.compile(rf"[^{BREAKLESS}]")
SPECIAL = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th",
     "ŋ": "n", "ə": "e", "ς": "σ"}
)  # fmt: skip
SECOND = re.compile(r"(?<=[aou])e|(?<=a)a")
"""The second letter of what is written for ä, ö, ü and å where there are none."""


def fold(text: str) -> str:
    """The text without case, accents, width and invisible signs."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    kept = [
        str(unicodedata.decimal(letter)) if letter.isdecimal() else letter
        for letter in text
        if unicodedata.category(letter) not in ("Mn", "Me", "Cf")
    ]
    return unicodedata.normalize("NFC", "".join(kept).translate(SPECIAL))


def shorten(joined: str) -> str:
    """What Müller, Mueller and Muller share, of a folded text; of its beginning, the beginning."""
    return SECOND.sub("", joined)


def pieces(text: str) -> list[str]:
    """Letters, numbers and words without breaks, in order."""
    return PIECE.findall(fold(text))


def words(text: str) -> list[tuple[str, ...]]:
    """The pieces between separators, in order: `sub-0042a` is (sub), (0042, a)."""
    found: list[list[str]] = []
    end = -1
    for match in PIECE.finditer(fold(text)):
        if match.start() == end:
            found[-1].append(match[0])
        else:
            found.append([match[0]])
        end = match.end()
    return [tuple(word) for word in found]


def runs(text: str) -> Iterator[str]:
    """Words of scripts without breaks, as far as only separators stand between them."""
    for match in RUN.finditer(fold(text)):
        yield NOT_BREAKLESS.sub("", match[0])


def parts(word: str, shortest: int, longest: int) -> Iterator[str]:
    """All parts of a word of these lengths."""
    for start in range(len(word) - shortest + 1):
        for end in range(start + shortest, min(start + longest, len(word)) + 1):
            yield word[start:end]
