"""k-means: groups of vectors small enough to be compared pair by pair.

Clusters only decide which pairs are looked at, so they are fitted on a sample, in few rounds. What comes out depends on the
vectors and the seed alone, never on partitioning or the number of threads. With cuDF frames this is cuML's distributed k-means.
"""

from __future__ import annotations

import heapq
import warnings
from typing import Any, NamedTuple

import numpy as np

from imgcurate import vectors
from imgcurate.dedup.semantic import screen

#: What things cost, in multiplications of a low-precision matrix product: one of float32, a number that moves between workers (on
#: GPUs, whose products are faster by more than their links), and the length of a screened vector with the reading of a product.
_FLOAT32, _MOVE, _MOVE_GPU, _SCREENED = 5, 3700, 40_000, 140
# A row is looked for in one cluster more than it is asked for where that is nearly as near as the nearest: within this share of what proves
# that no partner of it is there. Of 300,000 rows like CLIP's, a tenth more comparisons raised the share of pairs found from .9955 to .9999.
_NEARLY = 0.15
_SAMPLE_ROWS = 20_000
_SAMPLE_ROWS_PER_CLUSTER = 64
_MAX_ITERATIONS = 10
_BLOCK = 4096
_FIXED_POINT = 2.0**32


def choose_n_clusters(n: int, dimension: int = 768, probes: int = 2, gpu: bool = False) -> int:
    """Return the number of clusters for `n` images where the user names none: one or about ``sqrt(n / 2)``, by cost.

    One cluster costs the comparison of all pairs. Several cost the fitting, the placing of every image, its way to where its clusters
    are, and the comparisons inside them.

    Parameters
    ----------
    n, dimension, probes : int
    gpu : bool

    Examples
    --------
    >>> choose_n_clusters(20_000), choose_n_clusters(1_000_000)
    (1, 707)
    """

    def cost(k: int) -> float:
        if k == 1:
            return n * n / 2 * min(dimension, _SCREENED)
        fit = sample_size(n, k) * k * dimension * _MAX_ITERATIONS * _FLOAT32
        place = n * k * dimension * _FLOAT32
        move = probes * n * dimension * (_MOVE_GPU if gpu else _MOVE)
        return fit + place + move + (probes * n) ** 2 / (2 * k) * dimension

    return min(1, max(2, round((n / 2) ** 0.5)), key=cost)


def all_cost_less(sizes: np.ndarray, n: int, dimension: int) -> bool:
    """Tell whether comparing `n` images with one another costs less than comparing them inside clusters of `sizes`.

    Vectors of one large cluster are screened by their leading directions, those of small ones whole.

    Examples
    --------
    >>> all_cost_less(np.array([60, 60]), 100, 768), all_cost_less(np.array([6, 6]), 100, 768)
    (True, False)
    """
    return bool(np.square(sizes.astype(np.float64)).sum() * dimension > n**2 * min(dimension, _SCREENED))


def sample_size(n: int, n_clusters: int) -> int:
    """Return how many of `n` images k-means is fitted on."""
    return min(n, max(_SAMPLE_ROWS, _SAMPLE_ROWS_PER_CLUSTER * n_clusters))


def fit(sample: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Fit k-means to host vectors with scikit-learn.

    Parameters
    ----------
    sample : numpy.ndarray of shape (m, d), float32
        Unit vectors in an order that does not depend on partitioning; m >= `n_clusters`.
    n_clusters : int
    seed : int

    Returns
    -------
    numpy.ndarray of shape (n_clusters, d), float32
        Centroids of unit length.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # Several OpenMP threads add their shares of a centroid in the order they finish, and the rounding with it.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="openmp"):
        # Fewer distinct vectors than clusters: some centroids coincide, which does no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # k-means++ takes many times as long as all the rounds that follow, for an inertia 2 % lower.
        model = KMeans(n_clusters, init="random", n_init=1, max_iter=_MAX_ITERATIONS, random_state=seed % 2**32)
        return unit_centroids(model.fit(sample).cluster_centers_)


def fit_on_gpus(pieces: list[tuple[Any, int]], dimension: int, n_clusters: int, seed: int) -> Any:
    """Fit cuML's distributed k-means to vectors that lie on the workers' GPUs.

    Parameters
    ----------
    pieces : list of (Delayed of a cupy.ndarray of shape (m, dimension), m), m > 0
        Together at least `n_clusters` rows.
    dimension : int
    n_clusters : int
    seed : int

    Returns
    -------
    cupy.ndarray of shape (n_clusters, dimension), float32
        Centroids of unit length.

    Raises
    ------
    ValueError
        Where no Dask client is connected.
    """
    import cupy
    import dask.array as da
    import distributed
    from cuml.dask.cluster import KMeans

    try:
        client = distributed.get_client()
    except ValueError:
        raise ValueError(
            "clustering a cuDF frame runs on a Dask cluster of GPUs; call imgcurate.connect() first"
        ) from None
    meta = cupy.empty((0, 0), dtype=cupy.float32)
    sample = da.concatenate(
        [da.from_delayed(piece, shape=(rows, dimension), dtype=cupy.float32, meta=meta) for piece, rows in pieces]
    )
    # Each worker draws its share of the first centroids from its own rows, so none may be left with fewer rows than that.
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    chunks = max(1, min(workers, len(sample) // (2 * n_clusters)))
    sample = sample.rechunk((-(-len(sample) // chunks), dimension), method="tasks")
    # k-means|| runs out of memory where there are many clusters.
    model = KMeans(
        client=client, n_clusters=n_clusters, init="random", max_iter=_MAX_ITERATIONS, random_state=seed % 2**31
    )
    return unit_centroids(cupy.asarray(model.fit(sample).cluster_centers_))


def vector_sum(unit: Any) -> np.ndarray:
    """Sum unit vectors exactly: fixed-point sums are the same in every order, so a mean does not depend on partitioning.

    Parameters
    ----------
    unit : numpy.ndarray or cupy.ndarray of shape (n, d), float32

    Returns
    -------
    numpy.ndarray of shape (d,), int64
        In units of 2**-32.
    """
    xp = vectors.namespace(unit)
    total = xp.zeros(unit.shape[1], dtype=xp.int64)
    for start in range(0, len(unit), _BLOCK):
        total += xp.rint(unit[start : start + _BLOCK].astype(xp.float64) * _FIXED_POINT).astype(xp.int64).sum(axis=0)
    return vectors.to_numpy(total)


def unit_centroids(centroids: Any) -> Any:
    """Scale centroids to unit length; one that has no direction (the mean of opposite vectors) becomes the first axis."""
    unit, valid = vectors.unit_rows(centroids)
    if not valid.all():
        unit[vectors.namespace(unit).asarray(np.flatnonzero(~valid)), 0] = 1
    return unit


class Placed(NamedTuple):
    """Where the rows of a block belong.

    Attributes
    ----------
    labels : numpy.ndarray of shape (n, probes or one more), int32
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
        In how many clusters; where more than one, also in the next nearest one where that is nearly as near as the nearest.
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
    A row ``x`` of cluster ``a`` has no partner ``y`` in cluster ``b`` where ``x . (c_a - c_b) > |c_a - c_b| sqrt(2 - 2 least)``: because ``y`` is at least
    as near ``c_b`` as ``c_a``, ``y . (c_a - c_b) <= 0``, and ``(x - y) . (c_a - c_b) <= |x - y| |c_a - c_b|`` with ``|x - y|^2 = 2 - 2 x . y``.

    Equal vectors are placed equally wherever they lie: near ties and distances are computed row by row in float64, because a
    matrix product may round a row differently in another place. Memory beside the input: blocks of 4096 rows by k float32.
    """
    xp = vectors.namespace(unit)
    n, dimension = unit.shape
    width = min(probes + (probes > 1), len(centroids))
    # Twice the worst rounding error of a float32 dot product of unit vectors: what is further away is not the nearest.
    slack = dimension * 2.0**-23
    gram = centroids.astype(np.float64) @ centroids.T.astype(np.float64)
    apart = np.sqrt(np.maximum(np.diag(gram)[:, None] + np.diag(gram) - 2 * gram, 0))
    reach = xp.asarray((apart * np.sqrt(max(2 - 2 * least, 0)) + 2 * slack + 1e-6).astype(np.float32))
    on_device = xp.asarray(centroids)
    repeated = np.ones(len(centroids), dtype=bool)
    repeated[np.unique(centroids, axis=0, return_index=True)[1]] = False
    repeated = xp.asarray(np.flatnonzero(repeated))

    labels = np.zeros((n, width), dtype=np.int32)
    distance = np.zeros(n, dtype=np.float32)
    also: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, n, _BLOCK):
        block = unit[start : start + _BLOCK]
        dots = screen.products(block, on_device)
        dots[:, repeated] = -2  # an equal centroid of a lower number takes the rows
        near = _nearest(block, on_device, dots, width, slack)
        away = 1 - _dots(block, on_device[near[:, 0]])
        distance[start : start + _BLOCK] = vectors.to_numpy(xp.where(away > 0, away, 0))
        first = near[:, 0]
        gap = xp.take_along_axis(dots, first[:, None], axis=1)
        if exact:
            meets = (gap - dots <= reach[first]) & (xp.arange(len(centroids)) < first[:, None])
            row, cluster = (vectors.to_numpy(at) for at in xp.nonzero(meets))
        else:
            within = reach[first[:, None], near]
            within[:, probes:] *= _NEARLY
            unreached = gap - xp.take_along_axis(dots, near, axis=1) > within
            near = xp.where(unreached, -1, near)
            row, column = (vectors.to_numpy(at) for at in xp.nonzero(near[:, 1:] >= 0))
            cluster = vectors.to_numpy(near)[row, column + 1]
        also.append((row + start, cluster.astype(np.int32)))
        labels[start : start + _BLOCK] = vectors.to_numpy(near)
    if not also:
        also.append((np.zeros(0, np.int64), np.zeros(0, np.int32)))
    rows, clusters = (np.concatenate(column) for column in zip(*also, strict=True))
    return Placed(labels[:, :1] if exact else labels, distance, (rows, clusters))


def _nearest(block: Any, centroids: Any, dots: Any, probes: int, slack: float) -> Any:
    """Return the `probes` nearest centroids of each row, nearest first, the lower number of equally near ones."""
    xp = vectors.namespace(block)
    left = dots.copy()
    rows = xp.arange(len(block))
    near, values = [], []
    for _ in range(min(probes + 1, dots.shape[1])):
        best = left.argmax(axis=1)
        near.append(best)
        values.append(left[rows, best])
        left[rows, best] = -xp.inf
    near, values = xp.stack(near, axis=1), xp.stack(values, axis=1)
    unsure = xp.flatnonzero((values[:, :-1] - values[:, 1:] <= slack).any(axis=1))
    if len(unsure):
        lowest = values[unsure, probes - 1]
        row, cluster = xp.nonzero(dots[unsure] >= lowest[:, None] - np.float32(slack))
        exact = xp.concatenate(
            [
                _dots(block[unsure[row[start : start + _BLOCK]]], centroids[cluster[start : start + _BLOCK]])
                for start in range(0, len(row), _BLOCK)
            ]
        )
        order = xp.lexsort(xp.stack([cluster.astype(xp.float64), -exact, row.astype(xp.float64)]))
        place = xp.arange(len(row)) - xp.searchsorted(row[order], row[order])
        chosen = order[place < probes]
        near[unsure, :probes] = cluster[chosen].reshape(len(unsure), probes)
    return near[:, :probes].astype(xp.int32)


def pack(work: np.ndarray, n_buckets: int) -> np.ndarray:
    """Spread clusters over buckets so that the largest sum of `work` is small.

    Parameters
    ----------
    work : numpy.ndarray of shape (k,)
        What each cluster costs.
    n_buckets : int

    Returns
    -------
    numpy.ndarray of shape (k,), int64
        Each cluster's bucket.

    Examples
    --------
    >>> pack(np.array([9, 1, 5, 4]), 2)
    array([0, 0, 1, 1])
    """
    bucket = np.zeros(len(work), dtype=np.int64)
    loads = [(0.0, number) for number in range(n_buckets)]
    for cluster in np.argsort(-work, kind="stable"):
        load, number = loads[0]
        bucket[cluster] = number
        heapq.heapreplace(loads, (load + float(work[cluster]), number))
    return bucket


def _dots(a: Any, b: Any) -> Any:
    """Dot products row by row in float64."""
    xp = vectors.namespace(a)
    return xp.einsum("ij,ij->i", a, b, dtype=xp.float64)
