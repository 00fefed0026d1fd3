"""What looks like a path, an address, a number or a day that identifies somebody (floor 5).

By form alone: nothing here knows the cohort.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from veil.release.words import fold

Day = tuple[int, int, int]
"""Year, month, day."""

FORMS = {
    "an absolute path": re.compile(
        r"(?<![\w./<])/(?!/)(?:[\w.@+-]+/+[\w.@+-]"
        r"|(?:home|users|volumes|mnt|media|data|srv|tmp|root|var|opt|scratch)/)"
        r"|(?<![\w~/])~[\w.-]*/[\w.]",
        re.IGNORECASE,
    ),
    "a Windows path": re.compile(
        r"\b[a-z]:[\\/]{1,2}\w|\\\\[\w.$-]+\\{1,2}[\w$]", re.IGNORECASE
    ),
    "an address of a file": re.compile(
        r"\b(?:file|smb|cifs|nfs|afp|ftp|sftp|scp|ssh|s3|gs|hdfs|dicom):/", re.IGNORECASE
    ),
    "a DICOM UID": re.compile(r"\b[0-2](?:\.\d+){6,}\b|\b1\.2\.840\.\d+(?:\.\d+)+"),
    "a mail address": re.compile(r"[\w.+-]+@[\w-]+\.\w{2,}"),
    "a telephone number": re.compile(
        r"(?<![\w.])(?:\+[1-9]\d{0,2}[ ()./-]{0,3}\d[\d ()/.-]{5,}\d"
        r"|\(0?\d{2,5}\) ?\d{3,}[ -]?\d{2,})"
    ),
}  # fmt: skip
MONTHS = (
    "jan january januar janner janvier janv enero ene gennaio gen janeiro januari styczen stycznia "
    "января январь янв ιανουαριου ιανουαριος ιαν",
    "feb february februar fevrier fevr febrero febbraio fevereiro fev februari luty lutego "
    "февраля февраль фев φεβρουαριου φεβρουαριος φεβ",
    "mar march marz mars marzo marco maart mrt mrz marca марта март мар μαρτιου μαρτιος μαρ",
    "apr april avril avr abril abr aprile kwiecien kwietnia апреля апрель апр "
    "απριλιου απριλιος απρ",
    "may mai mayo maggio mag maio mei maj maja мая маи μαιου μαιος μαι",
    "jun june juni juin junio giugno giu junho czerwiec czerwca июня июнь июн ιουνιου ιουνιος ιουν",
    "jul july juli juillet juil julio luglio lug julho lipiec lipca июля июль июл "
    "ιουλιου ιουλιος ιουλ",
    "aug august aout agosto ago augustus sierpien sierpnia августа август авг "
    "αυγουστου αυγουστος αυγ",
    "sep sept september septembre septiembre settembre set setembro wrzesien wrzesnia "
    "сентября сентябрь сен сент σεπτεμβριου σεπτεμβριοσ σεπ σεπτ",
    "oct october oktober okt octobre octubre ottobre ott outubro out pazdziernik pazdziernika "
    "октября октябрь окт οκτωβριου οκτωβριοσ οκτ",
    "nov november novembre noviembre novembro listopad listopada ноября ноябрь ноя нояб "
    "νοεμβριου νοεμβριος νοε",
    "dec december dezember dez decembre diciembre dic dicembre dezembro grudzien grudnia декабря "
    "декабрь дек δεκεμβριου δεκεμβριος δεκ",
)
MONTH = {fold(word): number for number, words in enumerate(MONTHS, 1) for word in words.split()}
_YEAR, _DAY, _WORD = r"((?:19|20)\d\d)", r"(\d{1,2})", r"([^\W\d_]{3,12})"
YEAR_FIRST = re.compile(
    rf"(?<![^\W_])(?<!\d\.){_YEAR}(?:-?(\d\d)-?(\d\d)|([./_])(\d\d?)\4(\d\d?)|-(\d\d?)-(\d\d?))"
    r"(?=(?:\d{4}(?:\d\d)?)?(?![^\W_tz]))"
)
YEAR_LAST = re.compile(rf"(?<![^\W_])(?<!\d\.){_DAY}([-./_]) ?{_DAY}\2 ?{_YEAR}(?!\d)")
YEAR_SHORT = re.compile(r"(?<![\w.])(\d{1,2})([-./])(\d{1,2})\2(\d\d)(?![\w.]\d)(?!\d)")
DAY_MONTH_YEAR = re.compile(
    rf"(?<!\d){_DAY}(?:st|nd|rd|th|er)?[\W_]{{0,3}}(?:of |de |den )?{_WORD}[\W_]{{0,3}}"
    rf"(?:of |de )?{_YEAR}(?!\d)"
)
MONTH_DAY_YEAR = re.compile(
    rf"(?<![^\W\d_]){_WORD}[\W_]{{0,3}}{_DAY}(?:st|nd|rd|th)?[\W_]{{1,3}}{_YEAR}(?!\d)"
)
YEAR_MONTH_DAY = re.compile(rf"(?<!\d){_YEAR}[\W_]{{0,3}}{_WORD}[\W_]{{0,3}}{_DAY}(?!\d)")
EASTERN = re.compile(r"(\d{4}) ?[年년] ?(\d{1,2}) ?[月월] ?(\d{1,2}) ?[日일]")
VERSION = re.compile(r"(?:[=~<>]=|\bv|\bversion )$")
"""What stands before a version: `2026.3.3` is one there, and no day."""


def suspects(text: str) -> Iterator[str]:
    """What the text holds that looks as if it identified somebody or a machine."""
    for what, form in FORMS.items():
        if match := form.search(text):
            yield f"holds {what}: {match[0]!r}"
    for _, shown in days(text):
        yield f"holds a day: {shown!r}"
        return


def days(text: str) -> Iterator[tuple[set[Day], str]]:
    """What each day in the text may mean, and how it is written."""
    folded = fold(text)
    for match in YEAR_FIRST.finditer(folded):
        year, *others = (group for group in match.groups() if group and group.isdigit())
        dotted = match[4] == "."
        if not (dotted and VERSION.search(folded, 0, match.start())):
            yield from _valid({(year, *others)}, match)
    for match in YEAR_LAST.finditer(folded):
        yield from _valid({(match[4], match[3], match[1]), (match[4], match[1], match[3])}, match)
    for match in DAY_MONTH_YEAR.finditer(folded):
        yield from _valid({(match[3], match[2], match[1])}, match)
    for match in MONTH_DAY_YEAR.finditer(folded):
        yield from _valid({(match[3], match[1], match[2])}, match)
    for form in (YEAR_MONTH_DAY, EASTERN):
        for match in form.finditer(folded):
            yield from _valid({match.groups()}, match)


def short_days(text: str) -> Iterator[Day]:
    """Days with two digits of the year: too common to suspect, but known ones can be told."""
    for match in YEAR_SHORT.finditer(text):
        one, other, year = int(match[1]), int(match[3]), int(match[4])
        days = {(year, one, other), (year, other, one)}
        yield from (day for day in days if 1 <= day[1] <= 12 and 1 <= day[2] <= 31)


def _valid(readings: set[tuple[str, ...]], match: re.Match[str]) -> Iterator[tuple[set[Day], str]]:
    read = {
        (int(year), MONTH.get(month, 0) if not month.isdigit() else int(month), int(day))
        for year, month, day in readings
    }
    if known := {day for day in read if 1 <= day[1] <= 12 and 1 <= day[2] <= 31}:
        yield known, match[0]
