"""k-means: groups of vectors small enough to be compared pair by pair.

Clusters only decide which pairs are looked at, so they are fitted on a sample, in few rounds. What comes out depends on the
vectors and the seed alone, never on partitioning or the number of threads. With cuDF frames this is cuML's distributed k-means.
"""

from __future__ import annotations

import heapq
import warnings
from typing import Any

import numpy as np

from imgcurate import vectors

#: Up to this many images one cluster is the default: comparing all of them costs no more than clustering them.
_ONE_CLUSTER_ROWS = 50_000
_SAMPLE_ROWS = 20_000
_SAMPLE_ROWS_PER_CLUSTER = 64
_MAX_ITERATIONS = 10
_BLOCK = 4096
_FIXED_POINT = 2.0**32


def choose_n_clusters(n: int) -> int:
    """Return the number of clusters for `n` images where the user names none.

    Examples
    --------
    >>> choose_n_clusters(20_000), choose_n_clusters(1_000_000)
    (1, 707)
    """
    return 1 if n <= _ONE_CLUSTER_ROWS else round((n / 2) ** 0.5)


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


def nearest(unit: Any, centroids: Any) -> tuple[np.ndarray, np.ndarray]:
    """Assign each vector to its nearest centroid.

    Parameters
    ----------
    unit : numpy.ndarray or cupy.ndarray of shape (n, d), float32
        Unit vectors.
    centroids : array of shape (k, d), float32
        Unit vectors, on the device of `unit`.

    Returns
    -------
    cluster : numpy.ndarray of shape (n,), int32
        The first of equally near ones.
    distance : numpy.ndarray of shape (n,), float32
        1 - cosine. Equal vectors have equal distances wherever they lie: near ties and distances are computed row by row in
        float64, because a BLAS product may round a row differently in another place.

    Notes
    -----
    Memory beside the input: blocks of 4096 rows by k float32.
    """
    xp = vectors.namespace(unit)
    # Twice the worst rounding error of a float32 dot product of unit vectors: what is further away is not the nearest.
    margin = np.float32(unit.shape[1] * 2.0**-23)
    cluster = np.zeros(len(unit), dtype=np.int32)
    distance = np.zeros(len(unit), dtype=np.float32)
    for start in range(0, len(unit), _BLOCK):
        block = unit[start : start + _BLOCK]
        dots = block @ centroids.T
        label = dots.argmax(axis=1)
        close = dots >= dots.max(axis=1, keepdims=True) - margin
        tied = xp.flatnonzero(close.sum(axis=1) > 1)
        for row in vectors.to_numpy(tied):
            candidates = xp.flatnonzero(close[row])
            label[row] = candidates[_dots(block[row][None], centroids[candidates]).argmax()]
        away = 1 - _dots(block, centroids[label])
        cluster[start : start + _BLOCK] = vectors.to_numpy(label)
        distance[start : start + _BLOCK] = vectors.to_numpy(xp.where(away > 0, away, 0))
    return cluster, distance


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
    """Dot products row by row in float64; one of the two may have a single row."""
    xp = vectors.namespace(a)
    wide = xp.multiply(a, b, dtype=xp.float64)
    return wide.sum(axis=1)
