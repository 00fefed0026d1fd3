"""What is known to identify a patient or a machine, and where a text holds it (floor 5).

A token (a cell of a table, say) is sought whole, in any order of its words, without initials, and
word by word; days and telephone numbers in every form. What every bundle holds anyway is not
sought, nor what is so short that it stands in any text by chance.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise, permutations

from veil.release import vocabulary
from veil.release.suspects import YEAR_SHORT, Day, days, short_days
from veil.release.words import BREAKLESS, parts, pieces, runs, shorten, words

Word = tuple[str, ...]

SHORTEST = 4
"""Letters and digits of the shortest token: shorter ones stand in any text by chance."""
SHORTEST_ELSEWHERE = 3
"""The same in other alphabets, which no bundle uses by itself."""
SHORTEST_RUN = 2
"""The same in scripts without breaks: a whole name in Chinese."""
LONGEST_RUN = 8
"""Characters of the longest part of a text without breaks that is compared."""
TELLING = 6
"""Letters from which a token is sought within words too."""
DIGITS = 7
"""Digits from which a number is told even where separators stand in it, as telephone numbers."""
DECIMAL = 6
"""Digits from which a decimal is sought: shorter ones are scores, ages and sizes."""
ORDERS = 4
"""Words up to which every order of them is sought."""
MOST = 48
"""Pieces of a text that are compared at once: a name may be written with spaces between letters."""
PROSE = 6
"""Words of a cell up to which it is no note in prose."""
PLAIN = re.compile(r"\b[a-z]+\b")
SUBJECT = ("sub", "subj", "subject", "participant")
PLACE = re.compile(r"(?i)/(?!/)\S*/|~\S*/|[a-z]:[\\/]|\\\\|\w+:/")
TELEPHONE = re.compile(r"[+(0][\d ()/.\-]{7,24}|\d{2,5}(?:[ /.\-]{1,2}\d{2,}){1,4}")
NUMBERS = re.compile(r"\d[\d ()/.\-]{5,}\d")
DECIMALS = re.compile(r"\d+\.\d+(?: \d+\.\d+)*")


def tokens_of(values: Iterable[object]) -> set[str]:
    """Those of the values that are text with something in it to seek."""
    return {
        text
        for value in values
        if isinstance(value, str)
        and (text := value.strip())
        and (_is_enough(tuple(pieces(text))) or days_of(text))
    }


def days_of(token: str) -> set[Day]:
    """The days that a token may mean; a year of two digits is one of either century."""
    found = {day for meant, _ in days(token) for day in meant}
    if YEAR_SHORT.fullmatch(token):
        found |= {
            (century + day[0], *day[1:]) for day in short_days(token) for century in (1900, 2000)
        }
    return found


class Sought:
    """Tokens, ready to be looked for in texts."""

    def __init__(self, tokens: Iterable[str]):
        self.whole: dict[str, str] = {}
        """The token behind each key: pieces joined, in an order in which they may stand."""
        self.alone: set[str] = set()
        """Keys that the cohort writes in one word."""
        self.unbroken: dict[str, str] = {}
        """Keys in scripts without breaks, which are sought anywhere."""
        self.days: dict[Day, str] = {}
        self.telephones: dict[str, str] = {}
        for token in sorted(set(tokens)):
            self._add(token)
        self.ordered = sorted(self.whole.keys() - _own_words())
        own = {key for text in _own_pieces() for key, _ in self._in_pieces(text)}
        self.ordered = sorted(self.whole.keys() - _own_words() - own)
        self.whole = {key: self.whole[key] for key in self.ordered}

    def find(self, text: str) -> Iterator[tuple[str, str]]:
        """What identifies somebody in the text, with the token that it belongs to."""
        yield from self._in_pieces(pieces(text))
        yield from self._within_words(text)
        for run in set(runs(text)):
            for part in parts(run, SHORTEST_RUN, LONGEST_RUN):
                if part in self.unbroken:
                    yield part, self.unbroken[part]
        yield from self._days_in(text)
        yield from self._numbers_in(text)

    # ------------------------------------------------------------------ from a token to keys

    def _add(self, token: str) -> None:
        spelt = words(token)
        if PLACE.match(token):
            self._add_key(_flat(spelt), token)
            return
        for order in _orders(token, spelt):
            self._add_key(_flat(order), token)
        for day in (meant := days_of(token)):
            self._add_day(day, token)
        digits = re.sub(r"\D", "", token)
        if len(digits) >= DIGITS and TELEPHONE.fullmatch(token) and not meant:
            self.telephones[digits[-DIGITS:]] = token
        for word in () if meant else _singles(token, spelt):
            self.alone.add(self._add_key(word, token))
        for word in spelt:
            self._add_subject(word, token)
        for run in _unbroken(spelt):
            self.unbroken.setdefault(run, token)

    def _add_key(self, key: Word, token: str) -> str:
        joined = shorten("".join(key))
        if _is_enough(key) and not vocabulary.COMMON.issuperset(key):
            self.whole.setdefault(joined, token)
        return joined

    def _add_day(self, day: Day, token: str) -> None:
        """A day in figures; its other forms are read from the text."""
        self.days[day] = self.days[day[0] % 100, day[1], day[2]] = token
        year, month, date = (f"{number:02d}" for number in day)
        for order in ((year, month, date), (date, month, year), (month, date, year)):
            self._add_key(order, token)

    def _add_subject(self, word: Word, token: str) -> None:
        """An id that is a number: sub-0042 is sub-42 and subject 42 as well."""
        if token.lower() == f"sub-{word[0]}" and len(word) == 1 and word[0].isdigit():
            for prefix in SUBJECT:
                for number in {word[0], word[0].lstrip("0") or "0"}:
                    self.whole.setdefault(prefix + number, token)

    # ------------------------------------------------------------------ from keys to findings

    def _in_pieces(self, every: list[str]) -> Iterator[tuple[str, str]]:
        """Keys that are runs of pieces of a text, with and without its single letters."""
        longer = [piece for piece in every if len(piece) > 1 or piece.isdigit()]
        for stream in (every, longer) if len(longer) < len(every) else (every,):
            yield from self._in_stream(stream)

    def _in_stream(self, stream: list[str]) -> Iterator[tuple[str, str]]:
        for start in range(len(stream)):
            joined = ""
            for end in range(start, min(start + MOST, len(stream))):
                joined += stream[end]
                key = shorten(joined)
                at = bisect_left(self.ordered, key)
                if at == len(self.ordered) or not self.ordered[at].startswith(key):
                    break
                if self.ordered[at] == key and not self._by_chance(key, stream[start : end + 1]):
                    yield key, self.whole[key]

    def _by_chance(self, key: str, found: list[str]) -> bool:
        """Whether a key is no more than other words of a text, side by side."""
        if len(found) == 1:
            return False
        if key.isdigit():
            return len(key) < DIGITS
        if any(key == prefix + found[-1] for prefix in SUBJECT):
            return False
        own = _own_words()
        numbers = [piece for piece in found if piece.isdigit() and len(piece) < SHORTEST]
        common = [piece for piece in found if len(piece) > 1 and shorten(piece) in own]
        # Patient 40 is also what a table says of an epsilon; patient40 is found as a word.
        in_one = key in self.alone or bool(numbers)
        return in_one and len({*numbers, *common}) == len(set(found))

    def _within_words(self, text: str) -> Iterator[tuple[str, str]]:
        """Long keys within words that are not every bundle's."""
        longest = max(map(len, self.whole), default=0)
        for word in {shorten("".join(word)) for word in words(text)} - _own_words():
            for part in parts(word, TELLING, longest):
                if part in self.whole and _is_telling(part):
                    yield part, self.whole[part]

    def _days_in(self, text: str) -> Iterator[tuple[str, str]]:
        if not self.days:
            return
        for meant, shown in days(text):
            for day in meant & self.days.keys():
                yield shown, self.days[day]
        for day in short_days(text):
            if day in self.days:
                yield "-".join(map(str, day)), self.days[day]

    def _numbers_in(self, text: str) -> Iterator[tuple[str, str]]:
        """Numbers with separators in them, as telephones', whatever code they begin with."""
        for match in NUMBERS.finditer(text):
            if not DECIMALS.fullmatch(match[0]):
                digits = re.sub(r"\D", "", match[0])
                if digits in self.whole:
                    yield match[0], self.whole[digits]
                for number in parts(digits, DIGITS, DIGITS) if self.telephones else ():
                    if number in self.telephones:
                        yield match[0], self.telephones[number]


@lru_cache
def _own_pieces() -> tuple[list[str], ...]:
    return tuple(map(pieces, vocabulary.own_texts()))


@lru_cache
def _own_words() -> frozenset[str]:
    """Single words of every bundle, and common ones."""
    own = (piece for text in _own_pieces() for piece in text)
    return frozenset(map(shorten, (*own, *vocabulary.COMMON)))


def _flat(some: Iterable[Word]) -> Word:
    return tuple(piece for word in some for piece in word)


def _is_enough(key: Word) -> bool:
    """Whether pieces are so long, together, that they do not stand in any text by chance."""
    joined = "".join(key)
    if re.fullmatch(r"[\d.]*", joined):
        digits = len(joined.replace(".", ""))
        least = DIGITS if len(key) > 1 else DECIMAL if "." in joined else SHORTEST
        return digits >= least
    if re.search(f"[{BREAKLESS}]{{{SHORTEST_RUN}}}", joined):
        return True
    elsewhere = not joined.isascii() and joined.isalpha()
    return len(joined) >= (SHORTEST_ELSEWHERE if elsewhere else SHORTEST)


def _is_telling(key: str) -> bool:
    """Whether a key tells even within a word: long, and no part of a checksum."""
    return not re.fullmatch(r"[0-9a-f.]+", key)


def _orders(token: str, spelt: list[Word]) -> Iterator[tuple[Word, ...]]:
    """Orders in which the words of a token may stand, with its initials and without."""
    longer = [word for word in spelt if len("".join(word)) > 1]
    for some in (spelt, longer):
        yield tuple(some)
        if re.search(r"[^\W\d_]", token):
            yield tuple(reversed(some))
            if len(some) <= ORDERS:
                yield from permutations(some)
    if "^" in token or len(longer) <= 3:
        for some in (spelt, longer):
            for pair in pairwise(word for word in some if word[0].isalpha()):
                yield from (pair, pair[::-1])


def _singles(token: str, spelt: list[Word]) -> Iterator[Word]:
    """Words that are sought alone: of letters, or the number of an id."""
    numbers = [piece for word in spelt for piece in word if piece.isdigit()]
    # Of a note in prose, names alone: its other words may stand in any description.
    plain = set(PLAIN.findall(token)) if len(spelt) > PROSE else set()
    for word in spelt:
        if all(piece.isalpha() for piece in word) and "".join(word) not in plain:
            yield word
        for piece in word:
            if piece.isdigit() and (len(numbers) == 1 or len(piece) >= DECIMAL):
                yield (piece,)


def _unbroken(spelt: list[Word]) -> Iterator[str]:
    """Names in scripts without breaks, in either order."""
    found = [piece for piece in _flat(spelt) if re.match(f"[{BREAKLESS}]", piece)]
    yield from (piece for piece in found if len(piece) >= SHORTEST_RUN)
    if 1 < len(found) <= ORDERS:
        yield from map("".join, permutations(found))
    if len(found) == 1 and 2 <= len(found[0]) <= ORDERS:
        yield found[0][1:] + found[0][0]
