"""Every way in which the bytes of a file may be read as text (floor 5).

Who looks for a name must look where it may hide: in another encoding, in escapes of JSON, XML,
addresses and mail, in base64 and hexadecimal. A reading too many costs time; one too few lets a
patient out.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Iterator

ROUNDS = 3
"""How often escapes are undone: they may be escaped themselves."""
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
OCTETS = re.compile(
    r"(?:%[0-9a-f]{2}|=[89A-F][0-9A-F]|\\x[0-9a-f]{2}|\\[0-3][0-7]{2})+", re.IGNORECASE
)
OCTET = re.compile(r"(?:%|=|\\x)([0-9a-f]{2})|\\([0-7]{3})", re.IGNORECASE)
CODE_POINT = re.compile(
    r"[\\%]u([0-9a-f]{4})|\\u\{([0-9a-f]{1,6})\}|\\U([0-9a-f]{8})|&#x([0-9a-f]{2,6});?"
    r"|U\+([0-9a-f]{4,6})",
    re.IGNORECASE,
)
SIMPLE = re.compile(r"\\([nrtbf\"'/\\])")
GARBLED = re.compile(r"[\u0080-\u00ff\u0152-\u0192\u02c6\u02dc\u2013-\u2122]{2,}")
TAG = re.compile(r"<[^<>]{1,99}>")
HYPHEN = re.compile(r"-\r?\n\s*")
BASE64 = re.compile(r"[A-Za-z0-9+/_-]{6,}={0,2}")
HEXADECIMAL = re.compile(r"\b(?:[0-9A-Fa-f]{2}[ :]?){4,}\b")


def decoded(raw: bytes) -> list[str]:
    """The bytes as text: in UTF-8 alone, if they are plain UTF-8, else in all that they may be."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        found = [
            raw.decode("utf-8", "ignore"),
            raw.decode("latin-1"),
            raw.decode("cp1252", "ignore"),
        ]
    else:
        if not CONTROLS.search(text):
            return [text]
        found = [text]
    for codec, width in (("utf-16", 2), ("utf-32", 4)):
        for order in ("-le", "-be"):
            found += [raw[at:].decode(codec + order, "ignore") for at in range(width)]
    return found


def unescaped(text: str) -> list[str]:
    """The text, and what it becomes as its escapes are undone one after the other."""
    found = [text]
    for _ in range(ROUNDS):
        if (plain := _undone(found[-1])) == found[-1]:
            break
        found.append(plain)
    for view in list(found):
        found += [TAG.sub("", view), HYPHEN.sub("", view), GARBLED.sub(_mended, view)]
    return list(dict.fromkeys(found))


def packed(text: str) -> Iterator[str]:
    """Texts that stand in the text as base64 or as hexadecimal digits."""
    runs = set(BASE64.findall(text))
    runs |= {part for run in runs for part in run.split("/") if len(part) >= 6}
    for run in runs:
        plain = run.rstrip("=").replace("-", "+").replace("_", "/")
        if len(plain) % 4 != 1:
            yield from _as_text(base64.b64decode(plain + "=" * (-len(plain) % 4)))
    for run in set(HEXADECIMAL.findall(text)):
        yield from _as_text(binascii.unhexlify(re.sub(r"[ :]", "", run)))


def _as_text(raw: bytes) -> Iterator[str]:
    """The bytes as printable text, in the encodings in which they are some."""
    for codec in ("utf-8", "utf-16-le", "utf-16-be", "latin-1"):
        try:
            text = raw.decode(codec).strip("\r\n\0\ufeff")
        except UnicodeDecodeError:
            continue
        if text.isprintable():
            yield text


def _undone(text: str) -> str:
    """The text with one layer of every kind of escape taken off."""
    text = CODE_POINT.sub(_character, text)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = OCTETS.sub(lambda run: _of_octets(bytes(map(_octet, OCTET.finditer(run[0])))), text)
    return html.unescape(SIMPLE.sub(lambda m: m[1] if m[1] in "\"'/\\" else " ", text))


def _character(match: re.Match[str]) -> str:
    code = int(next(filter(None, match.groups())), 16)
    return chr(code) if code < 0x110000 else match[0]


def _octet(match: re.Match[str]) -> int:
    return int(match[1], 16) if match[1] else int(match[2], 8)


def _of_octets(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _mended(match: re.Match[str]) -> str:
    """UTF-8 that somebody took for Latin-1 and wrote as UTF-8 once more."""
    for codec in ("latin-1", "cp1252"):
        try:
            return match[0].encode(codec).decode()
        except UnicodeError:
            continue
    return match[0]
