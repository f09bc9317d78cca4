"""What a verb is asked for is checked before anything is computed, and refused in one sentence."""

from __future__ import annotations

from numbers import Integral
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
