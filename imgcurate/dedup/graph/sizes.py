"""Which threshold leaves so many images: people ask for a size, not for a cosine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: The highest similarity below 1 in float32, which similarities are stored in.
_HIGHEST = float(np.nextafter(np.float32(1), np.float32(0)))


def similarity_that_removes(wanted: int, count: Callable[[float], int], lowest: float) -> float | None:
    """Return the highest threshold that removes at least so many images, by halving what lies between.

    Parameters
    ----------
    wanted : int
    count : callable
        Of a threshold: how many images it removes. It is asked at most 32 times.
    lowest : float
        Down to which similarity pairs are known.

    Returns
    -------
    float or None
        `lowest` or a number of float32; None where `lowest` does not remove so many. Of a rule that may remove fewer images at a lower threshold,
        one that removes so many while the next higher number does not.

    Examples
    --------
    >>> similarities = np.array([0.95, 0.875, 0.75, 0.5], dtype=np.float32)
    >>> similarity_that_removes(3, lambda least: int((similarities >= least).sum()), 0.5)
    0.75
    """
    if count(lowest) < wanted:
        return None
    # In the order of the floats; the number before `low` stands for `lowest`, which may lie between two of them.
    low, high = _place(lowest) - 1, _place(_HIGHEST) + 1
    best = lowest
    while high - low > 1:
        middle = (low + high) // 2
        least = _at(middle)
        if least >= lowest and count(least) < wanted:
            high = middle
        else:
            low, best = middle, max(best, least)
    return best


def _place(value: float) -> int:
    """Return the place of a float32 among all of them."""
    bits = int(np.float32(value).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _at(place: int) -> float:
    value = float(np.int32(abs(place)).view(np.float32))
    return value if place >= 0 else -value
