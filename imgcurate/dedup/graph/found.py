"""What a search finds: similar pairs, and copies, by the numbers of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imgcurate import storage


class Found(NamedTuple):
    """Similar pairs, and copies, by the rows' numbers.

    Attributes
    ----------
    left, right : numpy.ndarray
    similarity : numpy.ndarray of float32
    copy, original : numpy.ndarray
        Rows whose vector is that of another, bit by bit; they are in no pair.
    """

    left: np.ndarray
    right: np.ndarray
    similarity: np.ndarray
    copy: np.ndarray
    original: np.ndarray


def concatenate(found: Sequence[Found]) -> Found:
    """Put what was found together."""
    nothing = np.zeros(0, dtype=np.int64)
    empty = Found(nothing, nothing, np.zeros(0, np.float32), nothing, nothing)
    return Found(*(np.concatenate(columns) for columns in zip(empty, *found, strict=True)))


def copies_found(copy: np.ndarray, original: np.ndarray) -> Found:
    """Return copies and nothing else."""
    return concatenate([])._replace(copy=copy, original=original)


def write_found(found: Found, path: str, durable: bool) -> tuple[int, int]:
    """Write pairs and copies, and return how many there are."""
    with storage.open_atomic(path, durable=durable) as file:
        np.savez(file, **found._asdict())
    return len(found.left), len(found.copy)


def read_found(path: str) -> Found:
    """Return what `write_found` wrote."""
    with np.load(path) as file:
        return Found(*(file[name] for name in Found._fields))


def counts(found: Found | str) -> tuple[int, int]:
    """Return how many pairs and copies were found, or are in a file of `write_found`."""
    known = read_found(found) if isinstance(found, str) else found
    return len(known.left), len(known.copy)
