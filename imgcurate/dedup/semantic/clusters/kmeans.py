"""k-means: groups of vectors small enough to be compared pair by pair.

Clusters only decide which pairs are looked at, so they are fitted on a sample, in few rounds. What comes out depends on the
vectors and the seed alone, never on partitioning or the number of threads. With cuDF frames this is cuML's distributed k-means.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from typing import Any

import numpy as np

from imgcurate import vectors
from imgcurate.cluster.workers import ask_all
from imgcurate.dedup.semantic import screen
from imgcurate.dedup.semantic.shapes import in_steps

#: What things cost, in multiplications of a low-precision matrix product: of a number of the sample, what is not products; of a product with
#: a centroid, and of a number of a row, what choosing the nearest costs; a number that moves between workers and is made ready there (on
#: GPUs, whose products are faster by more than their links); the length of a screened vector, and the reading of a product.
_SAMPLED, _SCORE, _PLACED, _MOVE, _MOVE_GPU, _SCREENED, _READ = 8000, 1300, 2600, 6500, 40_000, 140, 150
#: Of `probes` clusters a row goes to so many on average, and clusters are uneven: k times the sum of their squared sizes over that of n is
#: this times ``probes**2 sqrt(k)``. Both for rows like CLIP's.
_TAKEN, _UNEVEN = 0.9, 0.07
_SAMPLE_ROWS = 20_000
_SAMPLE_ROWS_PER_CLUSTER = 64
_SAMPLE_BYTES = 512 * 2**20
#: Clusters of so many rows each, where that is more of them than sqrt(n / 2); none with a smaller share of the sample than so many rows.
_ROWS_PER_CLUSTER, _LEAST_SAMPLE = 1000, 16
#: More clusters than this are fitted in two levels.
_ONE_LEVEL = 1000
_ROUNDS, _MAX_ITERATIONS = 5, 10
_BLOCK = 1024
#: k-means++ draws from so many rows, or so many a cluster where those are more.
_DRAWN_FROM, _DRAWN_FROM_PER_CLUSTER = 8192, 8
#: The longest vector on the grid: 1.5 times its square, a product with its half square, is below 2**24.
_LONGEST = 3300
_FIXED_POINT = 2.0**32
#: In the order in which they are loaded.
_CUML_LIBRARIES = ("libkvikio", "librmm", "libraft", "libcuvs", "libnvforest", "libcuml")


def choose_n_clusters(n: int, dimension: int = 768, probes: int = 2, gpu: bool = False) -> int:
    """Return the number of clusters for `n` images where the user names none: one or, by cost, about ``sqrt(n / 2)`` or ``n / 1000``.

    One cluster costs the comparison of all pairs. Several cost the fitting, the placing of every image, its way to where its clusters
    are, and the comparisons inside them. Up to half a million images ``sqrt(n / 2)`` clusters are the larger number, above it ``n / 1000``, so
    that an image is compared with as many others however many there are. They end where a sample that one task holds has few rows for each.

    Parameters
    ----------
    n, dimension, probes : int
    gpu : bool

    Examples
    --------
    >>> choose_n_clusters(20_000), choose_n_clusters(1_000_000)
    (1, 1000)
    """

    def cost(k: int) -> float:
        compare = min(dimension, _SCREENED) + _READ
        if k == 1:
            return n * n / 2 * compare
        # One task fits, while the other workers wait: of two, as few as there may be.
        fit = 2 * sample_size(n, k, dimension) * dimension * (k * _ROUNDS + _SAMPLED)
        place = n * (k * (dimension + _SCORE) + dimension * _PLACED)
        move = _TAKEN * probes * n * dimension * (_MOVE_GPU if gpu else _MOVE)
        return fit + place + move + _UNEVEN * (probes * n) ** 2 / (2 * k**0.5) * compare

    most = most_clusters(dimension)
    return min(1, max(2, round((n / 2) ** 0.5), min(n // _ROWS_PER_CLUSTER, most)), key=cost)


def most_clusters(dimension: int) -> int:
    """Return of how many clusters a sample that one task holds has rows enough."""
    return _SAMPLE_BYTES // max(4 * dimension, 1) // _LEAST_SAMPLE


def all_cost_less(sizes: np.ndarray, n: int, dimension: int) -> bool:
    """Tell whether comparing `n` images with one another costs less than comparing them inside clusters of `sizes`.

    Vectors of one large cluster are screened by their leading directions, those of small ones whole.

    Examples
    --------
    >>> all_cost_less(np.array([60, 60]), 100, 768), all_cost_less(np.array([6, 6]), 100, 768)
    (True, False)
    """
    return bool(np.square(sizes.astype(np.float64)).sum() * dimension > n**2 * min(dimension, _SCREENED))


def sample_size(n: int, n_clusters: int, dimension: int = 768) -> int:
    """Return how many of `n` images k-means is fitted on: 64 a cluster, or as many as one task holds in float32.

    Examples
    --------
    >>> sample_size(1_000_000, 1000), sample_size(100_000_000, 10_922)
    (64000, 174762)
    """
    wanted = max(_SAMPLE_ROWS, _SAMPLE_ROWS_PER_CLUSTER * n_clusters)
    return min(n, max(min(wanted, _SAMPLE_BYTES // max(4 * dimension, 1)), n_clusters))


@screen.exact_products()
def fit(sample: Any, n_clusters: int, seed: int, init: str = "random") -> np.ndarray:
    """Fit k-means to host vectors by Lloyd's algorithm, from rows of the sample.

    Parameters
    ----------
    sample : numpy.ndarray of shape (m, d), float32, or RowVectors
        Unit vectors in an order that does not depend on partitioning; m >= `n_clusters`.
    n_clusters : int
    seed : int
    init : {"random", "k-means++"}
        How these rows are drawn. By k-means++ few rows far from all others get a centroid of their own, which takes longer.

    Returns
    -------
    numpy.ndarray of shape (n_clusters, d), float32
        Centroids of unit length. One that lost all its rows stays where it was.

    Notes
    -----
    Many clusters are fitted in two levels: about ``sqrt(k)`` groups first, and inside each group its share, by its rows, of the clusters. So
    time grows with ``m sqrt(k)``, and what it gives is as even, and as near to its rows, as in one level.

    Nothing is rounded on the way that depends on an order, so the centroids are the same bit by bit on any number of threads: vectors and
    centroids, less the mean, are rounded to a grid so coarse that their products are whole numbers below 2**24, which float32 sums exactly,
    and so fine that the format of the products (bfloat16 where the processor has it) is what limits them. Sums of members are whole numbers too.

    Memory beside the sample: its rows in that format, and blocks.
    """
    if n_clusters <= _ONE_LEVEL:
        return _lloyd(sample, n_clusters, seed, init)[0]
    groups, label = _lloyd(sample, round(n_clusters**0.5), seed, init)
    ends = np.rint(np.cumsum(np.bincount(label, minlength=len(groups))) * (n_clusters / len(sample))).astype(np.int64)
    shares = np.diff(ends, prepend=0).tolist()
    order, first = np.argsort(label, kind="stable"), np.searchsorted(np.sort(label), range(len(groups) + 1))
    return np.concatenate(
        [
            _lloyd(sample[order[first[group] : first[group + 1]]], share, seed, init)[0]
            for group, share in enumerate(shares)
            if share
        ]
    )


def _lloyd(sample: Any, n_clusters: int, seed: int, init: str) -> tuple[np.ndarray, np.ndarray]:
    """Return centroids, and for each row of the sample the one that was nearest in the last round."""
    import torch

    kind = torch.bfloat16 if screen.made_for_bfloat16() else torch.float32
    mean = vector_sum(sample) / _FIXED_POINT / len(sample)
    grid, scale = _on_grid(sample, mean, kind)
    rng = np.random.default_rng(seed % 2**64)
    drawn = rng.choice(len(sample), n_clusters, replace=False) if init == "random" else _spread(grid, n_clusters, rng)
    means = grid[torch.from_numpy(drawn)].double()
    labels = np.zeros(len(sample), dtype=np.int64)
    for _ in range(_ROUNDS):
        centers = in_steps(means.round().to(kind))
        # Of the squared distance, what differs between centroids: the nearest has the highest product less half its square.
        bias = (centers.double().square().sum(dim=1) / -2).round().to(kind)
        sums, counts = torch.zeros_like(means), torch.zeros((n_clusters, 1), dtype=torch.float64)
        for start in range(0, len(grid), _BLOCK):
            block = grid[start : start + _BLOCK]
            scores = torch.nn.functional.linear(in_steps(block), centers, bias)[: len(block), :n_clusters]
            label = screen.ordered(screen.to_bits(scores)).argmax(axis=1)
            labels[start : start + _BLOCK] = label
            sums.index_add_(0, torch.from_numpy(label), block.double())
            counts += torch.bincount(torch.from_numpy(label), minlength=n_clusters)[:, None]
        means = torch.where(counts > 0, sums / counts.clamp(min=1), means)
    return unit_centroids(mean + means.numpy() / scale), labels


def _spread(grid: Any, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Draw rows by k-means++: each with a chance in proportion to the squared distance from those drawn before it."""
    import torch

    most = max(_DRAWN_FROM, _DRAWN_FROM_PER_CLUSTER * n_clusters)
    among = rng.choice(len(grid), min(len(grid), most), replace=False)
    rows = grid[torch.from_numpy(among)].float()
    squares = rows.square().sum(dim=1).double().numpy()
    far, drawn = np.full(len(rows), np.inf), [int(rng.integers(len(rows)))]
    while len(drawn) < n_clusters:
        at = drawn[-1]
        # Whole numbers, as their sums are.
        far = np.minimum(far, squares + squares[at] - 2 * (rows @ rows[at]).double().numpy())
        sums = np.cumsum(far)
        # Where all are equal to one that is drawn, any is as good.
        drawn.append(min(int(np.searchsorted(sums, rng.random() * sums[-1], "right")), len(rows) - 1))
    return among[drawn]


def _on_grid(sample: Any, mean: np.ndarray, kind: Any) -> tuple[Any, float]:
    """Return vectors less their mean, in whole numbers of `kind`, and by what they were multiplied."""
    import torch

    starts = range(0, len(sample), _BLOCK)
    mean = mean.astype(np.float32)
    longest = max(np.linalg.norm(sample[start : start + _BLOCK] - mean, axis=1).max() for start in starts)
    # Rounding to the grid and then to 8 bits makes a vector longer by at most sqrt(d) / 2 and one part in 256.
    scale = (_LONGEST * (1 - 2.0**-8) - sample.shape[1] ** 0.5) / max(float(longest), 1e-9)
    grid = torch.empty(sample.shape, dtype=kind)
    for start in starts:
        grid[start : start + _BLOCK] = torch.from_numpy(
            np.rint((sample[start : start + _BLOCK] - mean) * np.float32(scale))
        )
    return grid, scale


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
    # A worker that cannot load what it is sent dies of it, and the next that is started, for ever.
    ask_all(client, _load_cuml)
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


def _load_cuml() -> None:
    """Load cuML into this process.

    Raises
    ------
    ImportError
        Where that does not work, with what the loader of libraries says, which cuML keeps to itself.
    """
    try:
        import cuml.dask.cluster  # noqa: F401
    except ImportError as problem:
        raise ImportError(f"a worker cannot load cuML: {_refused() or problem}") from problem


def _refused() -> OSError | None:
    """Return what the loader says of the first of cuML's libraries that it refuses."""
    for name in _CUML_LIBRARIES:
        found = importlib.util.find_spec(name)
        for folder in (found and found.submodule_search_locations) or ():
            try:
                ctypes.CDLL(os.path.join(folder, "lib64", f"{name}.so"))
            except OSError as problem:
                return problem
    return None


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
