"""Farthest-first selection (Gonzalez, 1985), which covers what it is given: arrays in, positions out."""

from __future__ import annotations

from typing import Any

import numpy as np

from imgcurate import vectors

#: Vectors are rounded to multiples of this: products of two unit vectors are then sums that float64 holds, so that they are the same in any order of
#: summation, on any processor.
_STEP = 2.0**-25


def farthest_first(unit: Any, k: int, weight: np.ndarray | None = None) -> np.ndarray:
    """Choose rows one after the other, each the one that is farthest from all chosen before it.

    The first is the one nearest to the mean of all. No choice of as many rows covers all others at less than half the distance.

    Parameters
    ----------
    unit : numpy.ndarray or cupy.ndarray of shape (n, d), float32
        Unit vectors.
    k : int
        At most n.
    weight : numpy.ndarray of shape (n,), optional
        Each chosen row then gives its place to the one of highest weight among those that it is the nearest chosen one of; of equal weights the nearest.

    Returns
    -------
    numpy.ndarray of shape (k,), int64
        Positions in the order in which they were chosen; of equally good rows the first.

    Notes
    -----
    Holds the products of all rows with one another.

    Examples
    --------
    >>> rows = np.array([[1, 0], [0.96, 0.28], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> farthest_first(rows, 3), farthest_first(rows, 3, weight=np.array([0, 9, 0, 0]))
    (array([2, 3, 0]), array([2, 3, 1]))
    """
    xp = vectors.namespace(unit)
    rows = xp.rint(unit.astype(xp.float64) / _STEP) * _STEP
    mean = xp.rint(rows.sum(axis=0) / len(rows) / _STEP) * _STEP
    at = int(vectors.to_numpy(rows @ mean).argmax())
    products = vectors.to_numpy(rows @ rows.T)
    near = np.full(len(rows), -np.inf)  # the product with the nearest chosen row, infinite of those that are chosen
    owner = np.zeros(len(rows), dtype=np.int64)
    chosen = np.empty(k, dtype=np.int64)
    for number in range(k):
        chosen[number] = at
        closer = products[at] > near
        owner[closer], near[closer] = number, products[at][closer]
        owner[at], near[at] = number, np.inf
        at = int(near.argmin())
    if weight is None:
        return chosen
    order = np.lexsort((-near, -weight, owner))
    return order[np.searchsorted(owner[order], np.arange(k))]
