"""What a verb is asked for is checked before anything is computed, and refused in one sentence."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def check_whole_number(name: str, value: Any, least: int = 1, *, instead: str = "") -> None:
    """Raise where an argument is no whole number of at least `least`.

    Parameters
    ----------
    name : str
        Of the argument.
    value : object
        What was given for it.
    least : int, default 1
    instead : str, optional
        What the message ends with: what else may be given.

    Raises
    ------
    ValueError
        Where it is less, or something else, such as a bool.

    Examples
    --------
    >>> check_whole_number("k", 10)
    >>> check_whole_number("n_clusters", 0.5, instead=", or None to choose by size")
    Traceback (most recent call last):
    ValueError: n_clusters=0.5 must be a whole number of at least 1, or None to choose by size
    """
    if not is_whole_number(value, least):
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}{instead}")


def is_whole_number(value: Any, least: int = 1) -> bool:
    """Tell whether a value is a whole number of at least `least`."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raise a ValueError where `seed` is no whole number, of any sign."""
    if not isinstance(seed, Integral):
        raise ValueError(f"{name}={seed!r} must be a whole number")


def check_cosine(name: str, cosine: Any) -> None:
    """Raise a ValueError where `cosine` is none."""
    if not isinstance(cosine, Real) or isinstance(cosine, bool) or not -1 <= float(cosine) <= 1:
        raise ValueError(f"{name}={cosine!r} must be a cosine, -1 to 1")
