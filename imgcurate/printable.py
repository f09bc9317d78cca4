"""What is said to a person: text of strangers, such as names, captions and messages of decoders, made safe to print, and numbers of things."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

# Control characters, which terminals obey, halves of surrogate pairs, and what ends a line ...
_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
# ... and what turns the direction of writing, so that a name reads as another.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

#: How much of an error tells its kind.
MOST_OF_AN_ERROR = 200
# Of encodings, formats and codecs: names that have digits, which are no numbers.
_WITH_DIGITS = r"UTF-(?:8|16|32)|ISO-8859-\d+|JPEG[ -]?2000|VP8L?|AV1|H\.26\d"
_OF_ONE_IMAGE = re.compile(rf"""(?P<kept>{_WITH_DIGITS})|(?P<name>'[^']*'|"[^"]*"|(?<!\S)\S*/\S+)|\d[\d,.]*(?<=\d)""")
_LIST = re.compile(r"(: the sample has|images in one sample:) .*")


def printable(text: str, most: int = 300) -> str:
    """Return a text on one line, with its control characters escaped and no more than `most` characters of it.

    Parameters
    ----------
    text : str
    most : int, default 300

    Returns
    -------
    str

    Examples
    --------
    >>> printable("café \\x1b[31m\\n"), printable("a" * 9, most=4)
    ('café \\\\x1b[31m\\\\n', 'aaa…')
    """
    if len(text) > most:
        text = text[: most - 1] + "…"
    if text.isprintable():
        return text
    return "".join(_escaped(sign) for sign in text)


def quoted(values: Iterable[Any], most: int = 5) -> str:
    """Return a few values as a message names them: each quoted, on one line and short, and dots for those that are left out.

    Parameters
    ----------
    values : iterable
    most : int, default 5

    Returns
    -------
    str

    Examples
    --------
    >>> quoted(["a", 7, "b\\n"]), quoted("abcdefg", most=2)
    ("'a', 7, 'b\\\\n'", "'a', 'b', ...")
    """
    named = list(itertools.islice(values, most + 1))
    return ", ".join([*(printable(repr(value), 100) for value in named[:most]), *["..."][: len(named) > most]])


def plural(n: int, noun: str) -> str:
    """Return a number of things.

    Examples
    --------
    >>> plural(1, "image"), plural(2000, "image")
    ('1 image', '2,000 images')
    """
    return f"{n:,} {noun}{'s' * (n != 1)}"


def kind_of(error: str) -> str:
    """Return an error without what is of one image alone: names, paths and numbers. Errors of a kind are counted together.

    Examples
    --------
    >>> kind_of("decode: 70000 x 70000 pixels is more than the limit of 89 megapixels"), kind_of("member 'a.jpg' is stored 2 times")
    ('decode: N x N pixels is more than the limit of N megapixels', "member '...' is stored N times")
    """
    text = _OF_ONE_IMAGE.sub(
        lambda found: found["kept"] or ("'...'" if found["name"] else "N"), _LIST.sub(r"\1 ...", error)
    )
    return text[:MOST_OF_AN_ERROR]


def _escaped(sign: str) -> str:
    if sign in _DIRECTIONS or unicodedata.category(sign) in _CATEGORIES:
        return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
    return sign
