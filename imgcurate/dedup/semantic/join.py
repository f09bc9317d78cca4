"""The similarity join: all pairs of unit vectors whose cosine reaches a threshold.

Arrays in, arrays out, on NumPy or CuPy. Products are taken tile by tile in low precision (screen.py), and only the pairs
that pass are computed in full, in float64: the answer is that of brute force, and no n x n matrix is held. On a CPU, rows of
tiles are dealt to threads, and what they find is put together in the order of the rows: the answer is the same for any number.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from imgcurate import vectors
from imgcurate.dedup.semantic import screen, threads
from imgcurate.dedup.semantic.screen import Screen
from imgcurate.dedup.semantic.shapes import in_steps

#: Rows and columns of a tile. On a CPU it stays in a core's cache until it is read. Few rows, because the tile on the diagonal is computed
#: whole though half of it is needed.
_TILE = {"cpu": (1536, 1536), "cuda": (4096, 32768)}
#: Columns of which only the highest product is looked at first; a tile's rows are a multiple, or all there are.
_CELL = 64
#: Fewer rows than this are compared in float64 at once.
_FEW = 96
#: Computing a pair alone takes as long as this many inside a matrix product in float64.
_ALONE = 40
_PAIR_BLOCK = {"cpu": 2048, "cuda": 1 << 17}
#: So many pairs' rows stay in a core's cache.
_DOT_BLOCK = 128


class Pairs(NamedTuple):
    """Pairs of rows.

    Attributes
    ----------
    left, right : numpy.ndarray of shape (p,), int32
        Positions; inside one set of rows left < right.
    similarity : numpy.ndarray of shape (p,), float32
        Their cosines, computed in float64 and rounded.
    """

    left: np.ndarray
    right: np.ndarray
    similarity: np.ndarray


def pairs_within(rows: Any, least: float, *, low_precision: bool | None = None) -> Pairs:
    """Find the pairs of rows whose cosine is at least `least`.

    Parameters
    ----------
    rows : numpy.ndarray or cupy.ndarray of shape (n, d), float32
        Unit vectors.
    least : float
        The lowest cosine, -1 to 1.
    low_precision : bool, optional
        Whether to screen in bfloat16 (CPU) or float16 (GPU). Default: where this machine is faster with it.

    Returns
    -------
    Pairs
        Each once, left < right: those of a float64 brute force.

    Notes
    -----
    Memory beside the input: the screened vectors (at most 2 bytes a number), one tile, and the pairs.

    Examples
    --------
    >>> pairs_within(np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32), 0.7)
    Pairs(left=array([1], dtype=int32), right=array([2], dtype=int32), similarity=array([0.8], dtype=float32))
    """
    chosen = screen.plan(rows, len(rows), least, screen.choose_dtype(vectors.device(rows), low_precision))
    return compare(rows, None, chosen, least)


def pairs_between(rows: Any, others: Any, least: float, *, low_precision: bool | None = None) -> Pairs:
    """Find the pairs of one of `rows` and one of `others` whose cosine is at least `least`.

    Parameters
    ----------
    rows, others : numpy.ndarray or cupy.ndarray of shape (n, d) and (m, d), float32
        Unit vectors.
    least, low_precision
        As for `pairs_within`.

    Returns
    -------
    Pairs
        ``left`` are positions in `rows`, ``right`` in `others`.
    """
    dtype = screen.choose_dtype(vectors.device(rows), low_precision)
    chosen = screen.plan(others, len(others), least, dtype, other=len(rows))
    return compare(rows, others, chosen, least)


@screen.exact_products()
def compare(
    rows: Any,
    others: Any,
    chosen: Screen,
    least: float,
    shorts: tuple[Any, Any] = (None, None),
    n_threads: int | None = None,
) -> Pairs:
    """Find the pairs inside `rows`, or where `others` is given, of `rows` with them.

    Parameters
    ----------
    rows, others : array of shape (n, d) and (m, d), float32
        Unit vectors.
    chosen : Screen
    least : float
    shorts : pair of torch.Tensor, optional
        What `screen.apply` gives for both, where that is known.
    n_threads : int, optional
        On a CPU. Default: as many as torch has.

    Returns
    -------
    Pairs
    """
    triangle = others is None
    others = rows if triangle else others
    margin = chosen.margin(rows.shape[1])
    if len(rows) * len(others) <= _FEW * _FEW or least - margin <= 0:
        found = list(_in_full(rows, others, triangle, least))
    else:
        left = screen.apply(rows, chosen, n_threads) if shorts[0] is None else shorts[0]
        right = left if triangle else screen.apply(others, chosen, n_threads) if shorts[1] is None else shorts[1]
        found = _screened(rows, others, left, right, triangle, least, least - margin, n_threads)
    if not found:
        return Pairs(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    return Pairs(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def cosines(a: Any, b: Any) -> np.ndarray:
    """Return the cosine of each row of `a` with the same row of `b`, both of unit length.

    Returns
    -------
    numpy.ndarray of shape (n,), float32
        Summed in float64, so that it is the same wherever a row lies; never above 1.
    """
    xp = vectors.namespace(a)
    return vectors.to_numpy(xp.minimum(xp.einsum("ij,ij->i", a, b, dtype=xp.float64).astype(xp.float32), 1))


def _screened(
    rows: Any,
    others: Any,
    left: Any,
    right: Any,
    triangle: bool,
    least: float,
    floor: float,
    n_threads: int | None,
) -> list[Pairs]:
    import torch

    height, width = _TILE[left.device.type]
    # Of rows of zeros the products are below every floor that is screened for.
    left, right = in_steps(left), in_steps(right, _CELL)
    height, width = min(height, len(left)), min(width, len(right))
    # Positive floats order as the integers with the same bits, and negative ones are negative integers.
    bits = torch.int32 if left.dtype == torch.float32 else torch.int16
    lowest = int(_round_down(floor, left.dtype).view(bits))
    own = threading.local()

    def row_of_tiles(start: int) -> list[Pairs]:
        if not hasattr(own, "buffer"):
            own.buffer = torch.empty(height * width, dtype=left.dtype, device=left.device)
        found: list[Pairs] = []
        block = left[start : start + height]
        for column in range(start if triangle else 0, len(right), width):
            beside = right[column : column + width]
            dots = own.buffer[: len(block) * len(beside)].view(len(block), len(beside))
            torch.mm(block, beside.T, out=dots)
            if triangle and column == start:
                dots[:, : len(block)].triu_(1)
            cells = dots.view(bits).view(-1, _CELL)
            hot = _where((cells.amax(dim=1) >= lowest)[:, None])[0]
            if not len(hot):
                continue
            cell, offset = _where(cells[hot] >= lowest)
            place = hot[cell] * _CELL + offset
            line, offset = place // len(beside), place % len(beside)
            if len(place) * _ALONE > dots.numel():
                tile = rows[start : start + height], others[column : column + width]
                found += _tile_in_full(*tile, start, column, triangle, least)
            else:
                found += _checked(rows, others, line + start, offset + column, least)
        return found

    starts = range(0, len(left), height)
    return list(chain.from_iterable(threads.deal(row_of_tiles, starts, n_threads if left.device.type == "cpu" else 1)))


def _where(passing: Any) -> Any:
    """Return the rows and columns of a mask's true values; on the CPU by NumPy, which takes a quarter of torch's time."""
    import torch

    if passing.device.type != "cpu":
        return passing.nonzero(as_tuple=True)
    flat = torch.from_numpy(np.flatnonzero(passing.numpy()))
    return flat // passing.shape[1], flat % passing.shape[1]


def _checked(rows: Any, others: Any, left: Any, right: Any, least: float) -> Iterator[Pairs]:
    """Compute in full the pairs that have passed."""
    i, j = _like(left, rows), _like(right, others)
    if left.device.type == "cpu":
        near = _nearly(rows, others, i, j, least)
        i, j = i[near], j[near]
    size = _PAIR_BLOCK[left.device.type]
    for start in range(0, len(i), size):
        a, b = i[start : start + size], j[start : start + size]
        similarity = cosines(rows[a], others[b])
        good = similarity.astype(np.float64) >= least
        if good.any():
            yield Pairs(_host(a)[good].astype(np.int32), _host(b)[good].astype(np.int32), similarity[good])


def _nearly(rows: np.ndarray, others: np.ndarray, left: np.ndarray, right: np.ndarray, least: float) -> np.ndarray:
    """Return which pairs may be near enough by their products in float32, which most that have passed are not.

    A sum of d products of two unit vectors, added up in whatever order, is off by at most ``d u / (1 - d u)`` (Higham, 2002, section 3.1), with u
    the unit roundoff, 2^-24; twice that is more than rounding may have added to their lengths and to the threshold.
    """
    dots = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), _DOT_BLOCK):
        at = slice(start, start + _DOT_BLOCK)
        np.vecdot(rows[left[at]], others[right[at]], out=dots[at])
    return np.flatnonzero(dots >= np.float32(least - (rows.shape[1] + 8) * 2.0**-23))


def _in_full(rows: Any, others: Any, triangle: bool, least: float) -> Iterator[Pairs]:
    height, width = _TILE[vectors.device(rows)]
    for start in range(0, len(rows), height):
        for column in range(start if triangle else 0, len(others), width):
            yield from _tile_in_full(
                rows[start : start + height], others[column : column + width], start, column, triangle, least
            )


def _tile_in_full(block: Any, beside: Any, start: int, column: int, triangle: bool, least: float) -> Iterator[Pairs]:
    """Compare the rows from `start` on with a run of others that begins at `column`, by a matrix product in float64."""
    import torch

    similarity = (screen.as_tensor(block).double() @ screen.as_tensor(beside).double().T).float().clamp_(max=1)
    near = similarity.double() >= least
    if triangle:
        height, width = near.shape
        at = torch.arange(start, start + height, device=near.device)[:, None]
        near &= at < torch.arange(column, column + width, device=near.device)
    line, offset = _where(near)
    if len(line):
        found = similarity[line, offset]
        yield Pairs(_host(line + start).astype(np.int32), _host(offset + column).astype(np.int32), _host(found))


def _round_down(value: float, dtype: Any) -> Any:
    """Return the largest number of `dtype` that is at most the positive `value`.

    Comparing tensors with a Python number rounds it to nearest, which would eat the margin.
    """
    import torch

    nearest = torch.tensor(value, dtype=torch.float64).to(dtype)
    return torch.nextafter(nearest, torch.zeros_like(nearest)) if float(nearest) > value else nearest


def _like(positions: Any, rows: Any) -> Any:
    """Return a tensor of positions as an array that indexes `rows`."""
    return vectors.namespace(rows).from_dlpack(positions)


def _host(array: Any) -> np.ndarray:
    return array.cpu().numpy() if hasattr(array, "cpu") else vectors.to_numpy(array)
