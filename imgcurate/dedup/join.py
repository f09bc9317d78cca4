"""The similarity join: which of one cluster's vectors, in rank order, have an earlier one near them.

Arrays in, arrays out, on NumPy or CuPy. Neither function holds the n x n matrix nor a list of pairs: each keeps one best
match a row while it walks tiles of dot products below the diagonal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from imgcurate import vectors

#: Rows of a tile. Small, because the tiles on the diagonal are computed whole though only half of each is needed.
TILE = 512
#: Columns of a tile, in rows' worth of `TILE`: wide tiles keep BLAS at its full speed.
_WIDTH = 8
#: Dot products closer than this are equally near: float32 rounding moves those of identical vectors by up to half of it.
_TIE = np.float32(1e-6)


def threshold(eps: float) -> np.float32:
    """Return the smallest float32 that is at least ``1 - eps``.

    Comparing float32 dot products with it is the same as comparing them in float64 with ``1 - eps``.

    Examples
    --------
    >>> float(threshold(0.25)), float(threshold(0.1)) >= 1 - 0.1
    (0.75, True)
    """
    nearest = np.float32(1 - eps)
    return nearest if float(nearest) >= 1 - eps else np.nextafter(nearest, np.float32(2))


def cover(rows: Any, eps: float, *, tile: int = TILE) -> tuple[np.ndarray, np.ndarray]:
    """Walk the rows in order; keep a row unless an earlier *kept* row is within `eps` of it.

    Parameters
    ----------
    rows : numpy.ndarray or cupy.ndarray of shape (n, d), float32
        Unit vectors, best-ranked first.
    eps : float
        Two rows are duplicates where their dot product is at least ``1 - eps``.
    tile : int
        Rows compared at a time.

    Returns
    -------
    match : numpy.ndarray of shape (n,), int64
        The position of the nearest earlier kept row, the earliest of equally near ones; -1 where the row itself is kept.
    similarity : numpy.ndarray of shape (n,), float32
        The dot product with it; 0 where the row is kept.

    Notes
    -----
    Memory beside the input: one copy of the kept rows, and tiles of ``9 * tile**2`` float32 (9 MiB by default). At most
    n * (number of kept rows) dot products are computed, so a cluster of copies costs next to nothing.

    Examples
    --------
    >>> chain = np.array([[1, 0], [0.96, 0.28], [0.8432, 0.5376]], dtype=np.float32)
    >>> cover(chain, 0.05)[0]
    array([-1,  0, -1])
    """
    xp = vectors.namespace(rows)
    least = threshold(eps)
    n = len(rows)
    match = np.full(n, -1, dtype=np.int64)
    similarity = np.zeros(n, dtype=np.float32)
    kept = xp.empty_like(rows)  # NumPy commits its memory only as rows are written
    kept_at = np.empty(n, dtype=np.int64)
    count = 0
    for start in range(0, n, tile):
        block = rows[start : start + tile]
        best, at = _best_of(block, kept[:count], tile)
        inside = vectors.to_numpy(block @ block.T)
        chosen = _keep_in_order(inside >= least, best < least)
        best, at = _better(best, at, inside[:, chosen], chosen, count)
        new = count + len(chosen)
        kept[count:new] = block[xp.asarray(chosen)]
        kept_at[count:new] = start + chosen
        count = new
        gone = np.ones(len(block), dtype=bool)
        gone[chosen] = False
        match[start : start + tile][gone] = kept_at[at[gone]]
        similarity[start : start + tile][gone] = best[gone]
    return match, np.minimum(similarity, 1)


def best_earlier(rows: Any, *, tile: int = TILE) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest earlier row of each row.

    Parameters
    ----------
    rows : numpy.ndarray or cupy.ndarray of shape (n, d), float32
        Unit vectors, best-ranked first.
    tile : int
        Rows compared at a time.

    Returns
    -------
    match : numpy.ndarray of shape (n,), int64
        The position of the nearest earlier row, the earliest of equally near ones; -1 for the first row.
    similarity : numpy.ndarray of shape (n,), float32
        The dot product with it; 0 for the first row.

    Notes
    -----
    Memory beside the input: tiles of ``9 * tile**2`` float32 (9 MiB by default).

    Examples
    --------
    >>> best_earlier(np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32))
    (array([-1,  0,  1]), array([0. , 0. , 0.8], dtype=float32))
    """
    n = len(rows)
    match = np.full(n, -1, dtype=np.int64)
    similarity = np.zeros(n, dtype=np.float32)
    for start in range(0, n, tile):
        block = rows[start : start + tile]
        best, at = _best_of(block, rows[:start], tile)
        inside = vectors.to_numpy(block @ block.T)
        best, at = _better(best, at, inside, np.arange(len(block)), start)
        match[start : start + tile], similarity[start : start + tile] = at, best
    similarity[:1], match[:1] = 0, -1
    return match, np.clip(similarity, -1, 1)


def _best_of(block: Any, others: Any, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `block`, the highest dot product among `others` and the earliest position that has it."""
    xp = vectors.namespace(block)
    best = xp.full(len(block), -xp.inf, dtype=xp.float32)
    at = xp.full(len(block), -1, dtype=xp.int64)
    width = tile * _WIDTH
    for start in range(0, len(others), width):
        values, where = _highest(block @ others[start : start + width].T)
        at = xp.where(values > best + _TIE, where + start, at)
        best = xp.maximum(values, best)
    return vectors.to_numpy(best), vectors.to_numpy(at)


def _highest(dots: Any) -> tuple[Any, Any]:
    """Return each row's highest value, and the first column that has it up to rounding."""
    values = dots.max(axis=1)
    return values, (dots >= (values - _TIE)[:, None]).argmax(axis=1)


def _better(
    best: np.ndarray, at: np.ndarray, inside: np.ndarray, columns: np.ndarray, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """Improve `best` by those columns of the diagonal tile that stand before each row; column i is position `offset` + i."""
    if not len(columns):
        return best, at
    earlier = np.where(columns[None, :] < np.arange(len(best))[:, None], inside, -np.inf)
    values, where = _highest(earlier)
    return np.maximum(values, best), np.where(values > best + _TIE, where + offset, at)


def _keep_in_order(near: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Return the rows of a diagonal tile that are kept: alive, and near no earlier kept one."""
    near = np.tril(near, -1) & alive[None, :]
    keep = alive.copy()
    # Rows near nothing before them are kept whatever becomes of the others; only the rest has to be walked.
    for row in np.flatnonzero(alive & near.any(axis=1)):
        keep[row] = not (near[row] & keep).any()
    return np.flatnonzero(keep)
