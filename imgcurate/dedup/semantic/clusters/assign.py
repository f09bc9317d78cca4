"""Which clusters each row goes to: the nearest, and those where it may have a partner."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from imgcurate import vectors
from imgcurate.dedup.semantic import screen
from imgcurate.dedup.semantic.clusters import kmeans
from imgcurate.dedup.semantic.shapes import in_steps

# A row goes to a cluster beside its nearest one within this share, a probe, of the distance that proves that no partner of it is there. A
# quarter, for two probes, finds as much of rows like CLIP's as all of it, for half the comparisons.
_NEARLY = 0.125
#: Rows that are compared with centroids at a time: on a GPU so many that it works longer than it takes to be told what to do.
_BLOCK = {"cpu": 1024, "cuda": 8192}
#: Of more centroids than this a row is compared with those of its neighbourhood only: of so many neighbourhoods, times sqrt(k), the nearest,
#: with so many centroids, times sqrt(k). Of rows like CLIP's, 999 of 1,000 find their nearest there.
_ALL = 1000
_NEIGHBOURHOODS, _NEIGHBOURS = 4, 6
#: Columns of products are looked at in so many groups first.
_GROUPS = 64
#: Rows and centroids that are multiplied at a time: on a CPU so few that they stay in its cache.
_PAIRS = {"cpu": 256, "cuda": 1 << 17}


class Placed(NamedTuple):
    """Where the rows of a block belong.

    Attributes
    ----------
    labels : numpy.ndarray of shape (n, 1 or probes + 1), int32
        The nearest clusters, nearest first; -1 where the row is not placed in that one, because no partner of it can be there.
    distance : numpy.ndarray of shape (n,), float32
        1 - cosine to the nearest centroid.
    also : tuple of two numpy.ndarray of shape (m,)
        Rows, and a cluster beside the nearest one that each of them goes to.
    """

    labels: np.ndarray
    distance: np.ndarray
    also: tuple[np.ndarray, np.ndarray]

    def sizes(self, n_clusters: int) -> np.ndarray:
        """Return how many rows each cluster gets."""
        return np.bincount(np.concatenate([self.labels[:, 0], self.also[1]]), minlength=n_clusters)


def place(unit: Any, centroids: np.ndarray, probes: int = 1, least: float = -1.0, exact: bool = False) -> Placed:
    """Place each vector in its nearest clusters, or in all where a partner of it can be.

    Parameters
    ----------
    unit : numpy.ndarray or cupy.ndarray of shape (n, d), float32
        Unit vectors.
    centroids : numpy.ndarray of shape (k, d), float32
        Unit vectors.
    probes : int
        1: in the nearest cluster. More: in up to one more, those that are nearly as near as the nearest. At least as many as there are
        clusters: in every one where it can have a partner whose nearest that is.
    least : float
        The lowest cosine of a pair that is wanted.
    exact : bool
        Place a row, beside its nearest cluster, in every one of a lower number where it can have a partner, so that every pair meets in the
        lower of its two nearest clusters.

    Returns
    -------
    Placed

    Notes
    -----
    A row ``x`` of cluster ``a`` has no partner ``y`` in cluster ``b`` where ``x . (c_a - c_b) > reach``, which is
    ``|c_a - c_b| sqrt(2 - 2 least)``: because ``y`` is at least as near ``c_b`` as ``c_a``, ``y . (c_a - c_b) <= 0``, and
    ``(x - y) . (c_a - c_b) <= |x - y| |c_a - c_b|`` with ``|x - y|^2 = 2 - 2 x . y``. With two probes a row goes to ``b`` where
    it is within a quarter of the reach. A pair is then lost only where both are further, so that ``x - y`` is within 60 degrees of
    ``c_a - c_b``; or where more clusters are near than a row may go to.

    Products in low precision, whose error is bounded (screen.py), tell which few centroids may be among the nearest; these are compared
    in full. Equal vectors are placed equally wherever they lie, because that is done row by row: a matrix product may round a row
    differently in another place. Memory beside the input: blocks of 1024 rows (on a GPU 8192) by k numbers.

    Of many centroids only those around a row are looked at (on CPUs, and unless every partner must be met): k-means of the centroids gives
    neighbourhoods, and a row is compared with the centroids nearest to that of its own. So a row costs ``10 sqrt(k)`` products instead of k.
    """
    xp = vectors.namespace(unit)
    first_of: dict[bytes, int] = {}  # of equal centroids the one of the lowest number takes the rows
    for number, centroid in enumerate(centroids):
        first_of.setdefault(centroid.tobytes(), number)
    kept = np.fromiter(first_of.values(), np.int64)
    distinct = xp.asarray(centroids[kept])
    coarse = _coarse(distinct, vectors.device(unit))
    complete = exact or probes >= len(centroids)
    reach = xp.asarray(_reach(centroids[kept], least) + 2 * coarse.margin) if complete else None
    width = 1 if complete or probes == 1 else probes + 1
    near = xp.full((len(unit), width), -1, dtype=xp.int32)
    gap = xp.zeros((len(unit), width), dtype=xp.float32)
    distance = xp.zeros(len(unit), dtype=xp.float32)
    also: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.int64), np.zeros(0, np.int32))]
    around = vectors.device(unit) == "cpu" and not complete and len(distinct) > _ALL
    for at, among in _neighbourhoods(unit, distinct) if around else _blocks(unit):
        block = unit[at]
        here, those = (coarse, distinct) if among is None else (coarse.only(among), distinct[among])
        scores = _scores(block, here)
        found, cosines = _nearest(block, those, scores, here, width)
        distance[at] = xp.maximum(1 - _dots(block, those[found[:, 0]]), 0)
        near[at, : found.shape[1]] = found if among is None else among[found]
        gap[at, : found.shape[1]] = cosines[:, :1] - cosines
        if reach is not None:
            first, values, every = found[:, :1], _values(scores, coarse), xp.arange(len(distinct))
            meets = xp.take_along_axis(values, first, axis=1) - values <= reach[first[:, 0]]
            meets &= (every < first) if exact else (every != first)
            row, cluster = (vectors.to_numpy(positions) for positions in xp.nonzero(meets))
            also.append((row + at.start, kept[cluster].astype(np.int32)))
    near, gap = vectors.to_numpy(near), vectors.to_numpy(gap)
    if width > 1:
        near = np.where(gap <= min(1, _NEARLY * probes) * _reach_of(distinct, near, least), near, -1)
        row, column = np.nonzero(near[:, 1:] >= 0)
        also.append((row, kept[near[row, column + 1]].astype(np.int32)))
    labels = np.where(near >= 0, kept[near], -1).astype(np.int32)
    rows, clusters = (np.concatenate(column) for column in zip(*also, strict=True))
    return Placed(labels, vectors.to_numpy(distance), (rows, clusters))


def distances(unit: Any, centroid: np.ndarray) -> np.ndarray:
    """Return 1 - cosine of each row to the one centroid that there is, a matrix of one row, as `place` does."""
    xp = vectors.namespace(unit)
    distance = xp.empty(len(unit), dtype=xp.float32)
    size = _BLOCK[vectors.device(unit)]
    for start in range(0, len(unit), size):
        block = unit[start : start + size]
        center = xp.broadcast_to(xp.asarray(centroid), block.shape)
        distance[start : start + size] = xp.maximum(1 - _dots(block, center), 0)
    return vectors.to_numpy(distance)


def _blocks(unit: Any) -> Iterator[tuple[Any, None]]:
    """Yield rows to compare with all centroids, block by block."""
    size = _BLOCK[vectors.device(unit)]
    for start in range(0, len(unit), size):
        yield slice(start, start + size), None


def _neighbourhoods(unit: np.ndarray, centroids: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield rows and the numbers of the centroids around them, rising, block by block."""
    middles, around = _around(centroids.tobytes(), centroids.shape[1])
    own = place(unit, middles).labels[:, 0]
    order, first = np.argsort(own, kind="stable"), np.searchsorted(np.sort(own), range(len(middles) + 1))
    for number in range(len(middles)):
        for low in range(first[number], first[number + 1], _BLOCK["cpu"]):
            yield order[low : min(low + _BLOCK["cpu"], first[number + 1])], around[number]


# All blocks of rows have the same centroids.
@lru_cache(maxsize=2)
def _around(content: bytes, dimension: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the middles of the neighbourhoods of centroids, and the numbers of the centroids nearest to each, rising."""
    centroids = np.frombuffer(content, np.float32).reshape(-1, dimension)
    root = len(centroids) ** 0.5
    middles = kmeans.fit(centroids, round(_NEIGHBOURHOODS * root), 0)
    size, exact = round(_NEIGHBOURS * root), centroids.astype(np.float64)
    around: list[np.ndarray] = []
    for start in range(0, len(middles), _GROUPS):
        # In float64, so that rounding, which depends on the machine, leaves the order as it is.
        farness = middles[start : start + _GROUPS].astype(np.float64) @ -exact.T
        around += list(np.sort(np.argpartition(farness, size, axis=1)[:, :size], axis=1))
    return middles, around


class _Coarse(NamedTuple):
    """Centroids for products in low precision.

    Attributes
    ----------
    centers : torch.Tensor of shape (k rounded up to whole groups, d)
        Centroids less their mean, which changes a row's cosines by the same amount, over the length of the longest.
    n_clusters : int
    length : float
        That length.
    margin : float
        How far a cosine that is computed with them may be off.
    """

    centers: Any
    n_clusters: int
    length: float
    margin: float

    def only(self, among: np.ndarray) -> _Coarse:
        """Return some of the centroids."""
        return self._replace(centers=in_steps(self.centers[among], _GROUPS), n_clusters=len(among))


def _coarse(centroids: Any, device: str) -> _Coarse:
    import torch

    dtype = screen.choose_dtype(device)
    given = screen.as_tensor(centroids)
    given = given - given.mean(dim=0, dtype=torch.float64).float()
    length = float(given.norm(dim=1).max().clamp(min=1e-9))
    centers = in_steps(given / length, _GROUPS)
    margin = screen.Screen(dtype).margin(centroids.shape[1])
    return _Coarse(centers.to(getattr(torch, dtype)), len(given), length, length * margin)


@screen.exact_products()
def _scores(block: Any, coarse: _Coarse) -> Any:
    """Return the products of rows with coarse centroids as integers in the same order, those of what fills up the last group lowest."""
    rows = in_steps(screen.as_tensor(block).to(coarse.centers.dtype))
    scores = screen.ordered(screen.to_bits((rows @ coarse.centers.T)[: len(block)]))
    scores[:, coarse.n_clusters :] = vectors.namespace(block).iinfo(scores.dtype).min
    return scores


def _values(scores: Any, coarse: _Coarse) -> Any:
    """Return what `_scores` was made of: cosines, less the same for every centroid, float32."""
    bits = screen.ordered(scores[:, : coarse.n_clusters].copy())
    values = screen.as_tensor(bits).view(coarse.centers.dtype).float() * coarse.length
    return vectors.namespace(scores).from_dlpack(values)


def _nearest(block: Any, centroids: Any, scores: Any, coarse: _Coarse, width: int) -> tuple[Any, Any]:
    """Return the `width` nearest centroids of each row, or all there are, nearest first, and their cosines.

    Of equally near ones the lower number comes first. Cosines are float32, computed row by row.
    """
    xp = vectors.namespace(block)
    width = min(width, coarse.n_clusters)
    # So many are at least as high as the lowest of the highest of so many groups.
    highest = xp.sort(scores.reshape(len(block), -1, _GROUPS).max(axis=1), axis=1)[:, -width]
    floor = _values(highest[:, None], coarse._replace(n_clusters=1)) - 2 * coarse.margin
    low = screen.as_tensor(floor / coarse.length).to(coarse.centers.dtype)
    # Rounding to nearest may have moved it up by a step.
    passing = scores >= screen.ordered(screen.to_bits(low)) - 1
    passing[:, coarse.n_clusters :] = False
    row, cluster = xp.divmod(xp.flatnonzero(passing), passing.shape[1])
    step = _PAIRS[vectors.device(block)]
    cosines = xp.concatenate(
        [
            xp.einsum("ij,ij->i", block[row[start : start + step]], centroids[cluster[start : start + step]])
            for start in range(0, len(row), step)
        ]
    )
    first = xp.searchsorted(row, xp.arange(len(block)))
    column = xp.arange(len(row)) - first[row]
    left = xp.full((len(block), int(column.max()) + 1), -xp.inf, dtype=xp.float32)
    left[row, column] = cosines
    every, near, values = xp.arange(len(block)), [], []
    for _ in range(width):
        best = left.argmax(axis=1)
        near.append(cluster[first + best])
        values.append(left[every, best])
        left[every, best] = -xp.inf
    return xp.stack(near, axis=1), xp.stack(values, axis=1)


def _reach(centroids: np.ndarray, least: float) -> np.ndarray:
    """Return the reach between every two centroids, as a matrix."""
    gram = centroids.astype(np.float64) @ centroids.T.astype(np.float64)
    apart = np.sqrt(np.maximum(np.diag(gram)[:, None] + np.diag(gram) - 2 * gram, 0))
    return (apart * max(2 - 2 * least, 0) ** 0.5 + _slack(centroids)).astype(np.float32)


def _reach_of(centroids: Any, near: np.ndarray, least: float) -> np.ndarray:
    """Return the reach between each row's nearest centroid and its others; -1 where there is no other."""
    pairs, where = np.unique(near[:, :1].astype(np.int64) * len(centroids) + near, return_inverse=True)
    a, b = np.divmod(pairs, len(centroids))
    reach = np.empty(len(pairs))
    size = _BLOCK[vectors.device(centroids)]
    for start in range(0, len(pairs), size):
        at = slice(start, start + size)
        between = vectors.take(centroids, a[at]) - vectors.take(centroids, b[at])
        reach[at] = vectors.to_numpy(_dots(between, between)) ** 0.5
    reach = reach * max(2 - 2 * least, 0) ** 0.5 + _slack(centroids)
    return np.where(near >= 0, reach[where].reshape(near.shape), -1)


def _slack(centroids: Any) -> float:
    """Return what rounding may add to a row's distance from the border of two clusters: that of four float32 dot products."""
    return float(centroids.shape[1] * 2.0**-22 + 1e-6)


def _dots(a: Any, b: Any) -> Any:
    """Dot products row by row in float64."""
    xp = vectors.namespace(a)
    return xp.einsum("ij,ij->i", a, b, dtype=xp.float64)
