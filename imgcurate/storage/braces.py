"""Braces in the names of files: how many names they make, told before any is made, and the names."""

from __future__ import annotations

import re

from braceexpand import UnbalancedBracesError, alphabet, braceexpand  # type: ignore[attr-defined]

from imgcurate.printable import printable

# More names than anybody has files for in one call.
_MOST_NAMES = 1_000_000
# Of numbers with more digits than this there are too many between two, or one is written in vain.
_MOST_DIGITS = 30
_MOST_DEEP = 20
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?")


def filled_in(pattern: str) -> list[str]:
    r"""Return the names that a pattern with braces makes; a backslash takes from a brace or comma its meaning.

    Raises
    ------
    ValueError
        Where braces are not balanced, are nested more than 20 deep, or make more than a million names.

    Examples
    --------
    >>> filled_in("{a,b{0..2}}.tar"), filled_in(r"\{a,b\}.tar")
    (['a.tar', 'b0.tar', 'b1.tar', 'b2.tar'], ['{a,b}.tar'])
    """
    if count(pattern) > _MOST_NAMES:
        raise ValueError(f"{printable(repr(pattern))}: the braces make more than {_MOST_NAMES:,} names; give fewer")
    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError:
        raise ValueError(f"{printable(repr(pattern))}: the braces are not balanced") from None


def count(pattern: str) -> int:
    """Return how many names a pattern makes, or more than a million where it makes more; of what `filled_in` refuses, any number.

    Examples
    --------
    >>> count("{a,b{0..2}}-{x..z}.tar"), count("{0..9}" * 1000) > 1_000_000
    (12, True)
    """
    # Of each brace that is open: where it begins, the names of its alternatives that are complete, and those of the last.
    begins, complete, last = [0], [0], [1]
    at, stop = 0, len(pattern)
    while at < stop and max(complete[-1], last[-1]) <= _MOST_NAMES:
        sign = pattern[at]
        if sign == "{":
            if len(begins) > _MOST_DEEP:
                raise ValueError(
                    f"{printable(repr(pattern))}: the braces are nested more than {_MOST_DEEP} deep; give fewer"
                )
            begins.append(at + 1)
            complete.append(0)
            last.append(1)
        elif sign == "," and len(begins) > 1:
            complete[-1] += last[-1]
            last[-1] = 1
        elif sign == "}" and len(begins) > 1:
            begin, names = begins.pop(), complete.pop() + last.pop()
            last[-1] *= max(names, _in_range(pattern, begin, at))
        at += 2 if sign == "\\" else 1
    return max(complete[-1], last[-1])


def _in_range(pattern: str, begin: int, end: int) -> int:
    """Return how many numbers or letters a range such as ``0..9`` has; of what is none, one."""
    match = _NUMBERS.fullmatch(pattern, begin, end) or _LETTERS.fullmatch(pattern, begin, end)
    if match is None:
        return 1
    first, last, step = match.groups()
    if max(len(first), len(last)) > _MOST_DIGITS:
        return _MOST_NAMES + 1
    places = [alphabet.index(limit) if limit in alphabet else int(limit) for limit in (first, last)]
    return abs(places[1] - places[0]) // (int((step or "1")[:_MOST_DIGITS]) or 1) + 1
