"""How many images are taken from each of some clusters: whole numbers that add up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def in_proportion(sizes: np.ndarray, n: int) -> np.ndarray:
    """Share `n` out in proportion, by the largest remainder; of equal remainders the lower number comes first.

    Parameters
    ----------
    sizes : numpy.ndarray of shape (k,), int64
    n : int
        At most the sum of `sizes`.

    Returns
    -------
    numpy.ndarray of shape (k,), int64
        None is larger than its size.

    Examples
    --------
    >>> in_proportion(np.array([50, 30, 20]), 7)
    array([4, 2, 1])
    """
    total = int(sizes.sum())
    # Python's whole numbers: the products of two sizes of a large frame are larger than 64 bits.
    whole, rest = zip(*(divmod(n * size, total) for size in sizes.tolist()), strict=True) if total else ((), ())
    quotas = np.array(whole or [0] * len(sizes), dtype=np.int64)
    order = sorted(range(len(rest)), key=lambda number: -rest[number])
    quotas[order[: n - int(quotas.sum())]] += 1
    return quotas


def balanced(sizes: np.ndarray, n: int, order: np.ndarray) -> np.ndarray:
    """Share `n` out evenly: the same to each, but to none more than its size.

    Parameters
    ----------
    sizes : numpy.ndarray of shape (k,), int64
    n : int
        At most the sum of `sizes`.
    order : numpy.ndarray of shape (k,)
        Those with the lowest numbers get one more where it does not come out even.

    Returns
    -------
    numpy.ndarray of shape (k,), int64

    Examples
    --------
    >>> balanced(np.array([90, 5, 3, 2]), 15, np.arange(4))
    array([5, 5, 3, 2])
    """
    if not n:
        return np.zeros(len(sizes), dtype=np.int64)
    rising = np.sort(sizes)
    left = np.arange(len(sizes), 0, -1)
    # What is given out where each gets as much as the first, the second... smallest has.
    given = np.cumsum(rising) - rising + rising * left
    full = int(np.searchsorted(given, n, "right"))
    before = int(rising[:full].sum())
    level = int(rising[-1]) if full == len(sizes) else (n - before) // int(left[full])
    quotas = np.minimum(sizes, level)
    hungry = np.flatnonzero(sizes > level)
    quotas[hungry[np.argsort(order[hungry], kind="stable")][: n - int(quotas.sum())]] += 1
    return quotas


def down_the_tree(sizes: np.ndarray, parents: Sequence[np.ndarray], n: int, seed: int) -> np.ndarray:
    """Share `n` out evenly among the clusters of the highest level, and what each gets among its own, down to the leaves.

    Parameters
    ----------
    sizes : numpy.ndarray of shape (k,), int64
        Of the leaves.
    parents : sequence of numpy.ndarray
        Of each level from the leaves up: in which cluster of the level above each cluster lies. None where there is one level.
    n : int
        At most the sum of `sizes`.
    seed : int
        Of the order in which clusters get one more where it does not come out even.

    Returns
    -------
    numpy.ndarray of shape (k,), int64

    Examples
    --------
    >>> down_the_tree(np.array([90, 4, 1, 1]), [np.array([0, 1, 1, 1])], 6, seed=0)
    array([3, 1, 1, 1])
    """
    levels = [sizes]
    for parent in parents:
        levels.append(np.bincount(parent, weights=levels[-1], minlength=int(parent.max()) + 1).astype(np.int64))
    rng = np.random.default_rng(seed % 2**64)
    quotas = balanced(levels[-1], n, rng.permutation(len(levels[-1])))
    for below, parent in zip(levels[-2::-1], reversed(parents), strict=True):
        order, shares = rng.permutation(len(below)), np.zeros(len(below), dtype=np.int64)
        by_parent = np.argsort(parent, kind="stable")
        bounds = np.searchsorted(parent[by_parent], np.arange(len(quotas) + 1))
        for number in np.flatnonzero(quotas):
            own = by_parent[bounds[number] : bounds[number + 1]]
            shares[own] = balanced(below[own], int(quotas[number]), order[own])
        quotas = shares
    return quotas
