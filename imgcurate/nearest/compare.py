"""The k nearest of some unit vectors to others, by cosine: arrays in, arrays out.

Products are taken tile by tile in the number format that the machine multiplies fastest, whose error is bounded (dedup/semantic/screen.py). What may be
among the nearest by that bound is computed in full, in float64, so the answer is that of brute force, and no n x n matrix is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from imgcurate import vectors
from imgcurate.dedup.semantic import join, screen
from imgcurate.dedup.semantic.shapes import in_steps

#: Rows that are taken at a time, and columns of a tile of products, which on a CPU stays in a core's cache until it is read.
TILE = {"cpu": (512, 4096), "cuda": (8192, 32768)}
#: Of so many columns, at most, only the highest product is looked at first.
_CELL = 64
#: So many pairs are computed in full at a time: on a CPU their rows stay in a core's cache.
_DOTS = {"cpu": 128, "cuda": 1 << 17}
_IN_FULL = {"cpu": 2048, "cuda": 1 << 17}


class Near(NamedTuple):
    """Pairs of a row and one that is near it.

    Attributes
    ----------
    row, other : numpy.ndarray of shape (p,), int64
        Positions.
    similarity : numpy.ndarray of shape (p,), float32
    """

    row: np.ndarray
    other: np.ndarray
    similarity: np.ndarray

    def where(self, chosen: np.ndarray) -> Near:
        """Return those for which `chosen`, a mask or positions, stands."""
        return Near(*(column[chosen] for column in self))


class Short(NamedTuple):
    """Unit vectors in a number format that is multiplied fast.

    Attributes
    ----------
    vectors : torch.Tensor of shape (n, d)
    margin : float
        How far a product of two may be off, either way.
    """

    vectors: Any
    margin: float

    def only(self, rows: Any) -> Short:
        """Return some of them."""
        return self._replace(vectors=self.vectors[rows])


def shorten(unit: Any) -> Short:
    """Return unit vectors, a NumPy or CuPy matrix of float32, as this machine multiplies them fastest."""
    whole = screen.Screen(screen.choose_dtype(vectors.device(unit)))
    return Short(screen.apply(unit, whole), whole.margin(unit.shape[1]))


def nearest(rows: Any, others: Any, k: int) -> Near:
    """Find the `k` nearest of `others` to each of `rows`.

    Parameters
    ----------
    rows, others : numpy.ndarray or cupy.ndarray of shape (n, d) and (m, d), float32
        Unit vectors.
    k : int

    Returns
    -------
    Near
        By row, the nearest first, of equally near ones the earlier of `others`. Similarities are cosines, computed in float64 and rounded.

    Examples
    --------
    >>> found = nearest(np.array([[1, 0]], dtype=np.float32), np.array([[0, 1], [0.6, 0.8], [1, 0]], dtype=np.float32), 2)
    >>> found.other.tolist(), found.similarity.tolist()
    ([2, 1], [1.0, 0.6000000238418579])
    """
    floor = np.full(len(rows), -np.inf, dtype=np.float32)
    row, other = passing(shorten(rows), shorten(others), k, floor)
    return settle(rows, others, measured(rows, others, row, other), k, floor)


def settle(rows: Any, others: Any, found: Near, k: int, floor: np.ndarray) -> Near:
    """Return the `k` nearest of what was found, by float32 products, as `nearest` does.

    Parameters
    ----------
    rows, others : array of shape (n, d) and (m, d), float32, or RowVectors
    found : Near
        What `measured` gave.
    k : int
    floor : numpy.ndarray of shape (n,), float32
        What is less similar to a row than this is left out.
    """
    found = _nearly(found, k, floor, rows.shape[1])
    found = found.where(np.lexsort((found.other, found.row)))
    parts = [np.zeros(0, dtype=np.float32)]
    for at in _slices(len(found.row), _IN_FULL[vectors.device(rows)]):
        parts.append(join.cosines(take(rows, found.row[at]), take(others, found.other[at])))
    found = found._replace(similarity=np.concatenate(parts))
    found = found.where(np.flatnonzero(found.similarity >= floor[found.row]))
    return found.where(best(found.row, found.similarity, k))


def measured(rows: Any, others: Any, row: np.ndarray, other: np.ndarray) -> Near:
    """Return pairs with their products in float32."""
    xp = vectors.namespace(rows)
    products = np.empty(len(row), dtype=np.float32)
    for at in _slices(len(row), _DOTS[vectors.device(rows)]):
        a, b = take(rows, row[at]), take(others, other[at])
        products[at] = np.vecdot(a, b) if xp is np else vectors.to_numpy(xp.einsum("ij,ij->i", a, b))
    return Near(row, other, products)


def _nearly(found: Near, k: int, floor: np.ndarray, dimension: int) -> Near:
    """Return which pairs may be among the `k` nearest of a row by products in float32.

    These are off by no more than what stands at ``join._nearly``.
    """
    off = (dimension + 8) * 2.0**-23
    chosen = found.where(best(found.row, found.similarity, k))
    last = np.flatnonzero(np.diff(chosen.row, append=-1))
    full = last[np.diff(last, prepend=-1) == k]
    lowest = floor.astype(np.float64) - off
    lowest[chosen.row[full]] = np.maximum(lowest[chosen.row[full]], chosen.similarity[full] - 2 * off)
    return found.where(np.flatnonzero(found.similarity >= lowest[found.row]))


def best(row: np.ndarray, similarity: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the `k` highest similarities of each row, by row, the highest first and of equal ones the earliest."""
    order = np.lexsort((-similarity, row))
    place = row[order]
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    number = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return order[number < k]


@screen.exact_products()
def passing(rows: Short, others: Short, k: int, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs whose product says that they may be among the `k` nearest of a row, and not below its `floor`.

    The k-th highest of the highest products of cells is at most the k-th highest product, and no product is off by more than `margin`: so what is less by
    twice that is not among the nearest. It is known better with every tile; what passed before is looked at again at the end.
    """
    import torch

    left, right, margin = rows.vectors, others.vectors, max(rows.margin, others.margin)
    if not len(left) or not len(right):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    n, width, cell = len(left), min(TILE[left.device.type][1], len(right)), _CELL
    left = in_steps(left)
    while cell > 1 and min(len(right), width) < 4 * k * cell:
        cell //= 2
    bits = torch.int32 if left.dtype == torch.float32 else torch.int16
    highest = torch.full((n, k), torch.iinfo(bits).min, dtype=bits, device=left.device)
    known = _lowest(torch.from_numpy(floor).to(left.device).double() - margin, left.dtype)
    found: list[tuple[Any, Any, Any]] = []
    for start in range(0, len(right), width):
        # Of rows of zeros the products are below every floor that is above zero, and those that pass another one are left out below.
        beside = right[start : start + width]
        dots = (left @ in_steps(beside, _CELL).T)[:n]
        # Positive floats order as the integers with the same bits, and negative ones are negative integers.
        cells = dots.view(bits).view(n, -1, cell)
        tops = cells.amax(dim=2)
        merged = torch.cat([highest, tops], dim=1)
        highest = merged.topk(k, dim=1).values
        lowest = torch.maximum(known, _lowest(_values(highest[:, -1:], left.dtype) - 2 * margin, left.dtype)[:, 0])
        row, hot = _where(tops >= lowest[:, None])
        at, offset = _where(cells[row, hot] >= lowest[row][:, None])
        row, column = row[at], hot[at] * cell + offset
        real = column < len(beside)
        row, column = row[real], column[real]
        found.append((row, column + start, cells.view(n, -1)[row, column]))
    row, column, value = (torch.cat(columns) for columns in zip(*found, strict=True))
    chosen = value >= lowest[row]
    return row[chosen].cpu().numpy(), column[chosen].cpu().numpy()


def _values(bits: Any, dtype: Any) -> Any:
    """Return what integers stand for in float64; of negative ones, whose order is another, the lowest."""
    import torch

    values = bits.contiguous().view(dtype).double()
    return torch.where(bits < 0, -torch.inf, values)


def _lowest(values: Any, dtype: Any) -> Any:
    """Return the integers that stand for floats of `dtype` that are at most these; where these are not positive, the lowest of all."""
    import torch

    bits = torch.int32 if dtype == torch.float32 else torch.int16
    floats = values.clamp(min=0).to(dtype)
    floats = torch.where(floats.double() > values, torch.nextafter(floats, torch.zeros_like(floats)), floats)
    return torch.where(values > 0, floats.view(bits), torch.iinfo(bits).min)


def _where(passing: Any) -> tuple[Any, Any]:
    """Return the rows and columns of a mask's true values; on the CPU by NumPy, which takes a quarter of torch's time."""
    import torch

    if passing.device.type != "cpu":
        return passing.nonzero(as_tuple=True)
    flat = torch.from_numpy(np.flatnonzero(passing.numpy()))
    return flat // passing.shape[1], flat % passing.shape[1]


def take(rows: Any, at: np.ndarray) -> Any:
    """Return some rows of a matrix, or of RowVectors, by their positions."""
    return rows[vectors.namespace(rows).asarray(at)]


def _slices(n: int, step: int) -> Iterator[slice]:
    for start in range(0, n, step):
        yield slice(start, start + step)
