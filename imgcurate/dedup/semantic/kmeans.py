"""k-means: groups of vectors small enough to be compared pair by pair.

Clusters only decide which pairs are looked at, so they are fitted on a sample, in few rounds. What comes out depends on the
vectors and the seed alone, never on partitioning or the number of threads. With cuDF frames this is cuML's distributed k-means.
"""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import numpy as np

from imgcurate import vectors
from imgcurate.dedup.semantic import screen

#: What things cost, in multiplications of a low-precision matrix product: of a number of the sample, what is not products; of a product with
#: a centroid, and of a number of a row, what choosing the nearest costs; a number that moves between workers and is made ready there (on
#: GPUs, whose products are faster by more than their links); the length of a screened vector, and the reading of a product.
_SAMPLED, _SCORE, _PLACED, _MOVE, _MOVE_GPU, _SCREENED, _READ = 8000, 1300, 2600, 6500, 40_000, 140, 150
#: Of `probes` clusters a row goes to so many on average, and clusters are uneven: k times the sum of their squared sizes over that of n is
#: this times ``probes**2 sqrt(k)``. Both for rows like CLIP's.
_TAKEN, _UNEVEN = 0.9, 0.07
# A row goes to a cluster beside its nearest one within this share, a probe, of the distance that proves that no partner of it is there. A
# quarter, for two probes, finds as much of rows like CLIP's as all of it, for half the comparisons.
_NEARLY = 0.125
_SAMPLE_ROWS = 20_000
_SAMPLE_ROWS_PER_CLUSTER = 64
_SAMPLE_BYTES = 512 * 2**20
_ROUNDS, _MAX_ITERATIONS = 5, 10
_BLOCK = 1024
#: The longest vector on the grid: 1.5 times its square, a product with its half square, is below 2**24.
_LONGEST = 3300
#: Columns of products are looked at in so many groups first.
_GROUPS = 64
#: Rows and centroids that are multiplied at a time: on a CPU so few that they stay in its cache.
_PAIRS = {"cpu": 256, "cuda": 1 << 17}
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
        compare = min(dimension, _SCREENED) + _READ
        if k == 1:
            return n * n / 2 * compare
        # One task fits, while the other workers wait: of two, as few as there may be.
        fit = 2 * sample_size(n, k, dimension) * dimension * (k * _ROUNDS + _SAMPLED)
        place = n * (k * (dimension + _SCORE) + dimension * _PLACED)
        move = _TAKEN * probes * n * dimension * (_MOVE_GPU if gpu else _MOVE)
        return fit + place + move + _UNEVEN * (probes * n) ** 2 / (2 * k**0.5) * compare

    # About sqrt(n / 2): half or twice as many cost 1 to 4 % more or less from 100,000 images to 100 million.
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


def sample_size(n: int, n_clusters: int, dimension: int = 768) -> int:
    """Return how many of `n` images k-means is fitted on: 64 a cluster, or as many as one task holds in float32.

    Examples
    --------
    >>> sample_size(1_000_000, 707), sample_size(100_000_000, 7071)
    (45248, 174762)
    """
    wanted = max(_SAMPLE_ROWS, _SAMPLE_ROWS_PER_CLUSTER * n_clusters)
    return min(n, max(min(wanted, _SAMPLE_BYTES // max(4 * dimension, 1)), n_clusters))


@screen.exact_products()
def fit(sample: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Fit k-means to host vectors by Lloyd's algorithm, from rows drawn at random.

    Parameters
    ----------
    sample : numpy.ndarray of shape (m, d), float32
        Unit vectors in an order that does not depend on partitioning; m >= `n_clusters`.
    n_clusters : int
    seed : int

    Returns
    -------
    numpy.ndarray of shape (n_clusters, d), float32
        Centroids of unit length. One that lost all its rows stays where it was.

    Notes
    -----
    Nothing is rounded on the way that depends on an order, so the centroids are the same bit by bit on any number of threads: vectors and
    centroids, less the mean, are rounded to a grid so coarse that their products are whole numbers below 2**24, which float32 sums exactly,
    and so fine that the format of the products (bfloat16 where it is fast) is what limits them. Sums of members are whole numbers too.

    Memory beside the sample: its rows in that format, and blocks.
    """
    import torch

    kind = getattr(torch, screen.choose_dtype("cpu"))
    mean = vector_sum(sample) / _FIXED_POINT / len(sample)
    grid, scale = _on_grid(sample, mean, kind)
    drawn = np.random.default_rng(seed % 2**64).choice(len(sample), n_clusters, replace=False)
    means = grid[torch.from_numpy(drawn)].double()
    for _ in range(_ROUNDS):
        centers = means.round().to(kind)
        # Of the squared distance, what differs between centroids: the nearest has the highest product less half its square.
        bias = (centers.double().square().sum(dim=1) / -2).round().to(kind)
        sums, counts = torch.zeros_like(means), torch.zeros((n_clusters, 1), dtype=torch.float64)
        for start in range(0, len(grid), _BLOCK):
            block = grid[start : start + _BLOCK]
            scores = torch.nn.functional.linear(block, centers, bias)
            label = torch.from_numpy(_ordered(screen.to_bits(scores)).argmax(axis=1))
            sums.index_add_(0, label, block.double())
            counts += torch.bincount(label, minlength=n_clusters)[:, None]
        means = torch.where(counts > 0, sums / counts.clamp(min=1), means)
    return unit_centroids(mean + means.numpy() / scale)


def _on_grid(sample: np.ndarray, mean: np.ndarray, kind: Any) -> tuple[Any, float]:
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
    differently in another place. Memory beside the input: blocks of 1024 rows by k numbers.
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
    for start in range(0, len(unit), _BLOCK):
        block, at = unit[start : start + _BLOCK], slice(start, start + _BLOCK)
        scores = _scores(block, coarse)
        found, cosines = _nearest(block, distinct, scores, coarse, width)
        near[at, : found.shape[1]], gap[at, : found.shape[1]] = found, cosines[:, :1] - cosines
        distance[at] = xp.maximum(1 - _dots(block, distinct[found[:, 0]]), 0)
        if reach is not None:
            first, values, every = found[:, :1], _values(scores, coarse), xp.arange(len(distinct))
            meets = xp.take_along_axis(values, first, axis=1) - values <= reach[first[:, 0]]
            meets &= (every < first) if exact else (every != first)
            row, cluster = (vectors.to_numpy(positions) for positions in xp.nonzero(meets))
            also.append((row + start, kept[cluster].astype(np.int32)))
    near, gap = vectors.to_numpy(near), vectors.to_numpy(gap)
    if width > 1:
        near = np.where(gap <= min(1, _NEARLY * probes) * _reach_of(distinct, near, least), near, -1)
        row, column = np.nonzero(near[:, 1:] >= 0)
        also.append((row, kept[near[row, column + 1]].astype(np.int32)))
    labels = np.where(near >= 0, kept[near], -1).astype(np.int32)
    rows, clusters = (np.concatenate(column) for column in zip(*also, strict=True))
    return Placed(labels, vectors.to_numpy(distance), (rows, clusters))


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


def _coarse(centroids: Any, device: str) -> _Coarse:
    import torch

    dtype = screen.choose_dtype(device)
    given = screen.as_tensor(centroids)
    given = given - given.mean(dim=0, dtype=torch.float64).float()
    length = float(given.norm(dim=1).max().clamp(min=1e-9))
    centers = torch.nn.functional.pad(given / length, (0, 0, 0, -len(given) % _GROUPS))
    margin = screen.Screen(dtype).margin(centroids.shape[1])
    return _Coarse(centers.to(getattr(torch, dtype)), len(given), length, length * margin)


@screen.exact_products()
def _scores(block: Any, coarse: _Coarse) -> Any:
    """Return the products of rows with coarse centroids as integers in the same order, those of what fills up the last group lowest."""
    scores = _ordered(screen.to_bits(screen.as_tensor(block).to(coarse.centers.dtype) @ coarse.centers.T))
    scores[:, coarse.n_clusters :] = vectors.namespace(block).iinfo(scores.dtype).min
    return scores


def _values(scores: Any, coarse: _Coarse) -> Any:
    """Return what `_scores` was made of: cosines, less the same for every centroid, float32."""
    bits = _ordered(scores[:, : coarse.n_clusters].copy())
    values = screen.as_tensor(bits).view(coarse.centers.dtype).float() * coarse.length
    return vectors.namespace(scores).from_dlpack(values)


def _ordered(bits: Any) -> Any:
    """Turn the bits of floats, in place, into integers in the same order, or such integers back."""
    bits ^= (bits >> (8 * bits.itemsize - 1)) & vectors.namespace(bits).iinfo(bits.dtype).max
    return bits


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
    passing = scores >= _ordered(screen.to_bits(low)) - 1
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
    for start in range(0, len(pairs), _BLOCK):
        at = slice(start, start + _BLOCK)
        between = vectors.take(centroids, a[at]) - vectors.take(centroids, b[at])
        reach[at] = vectors.to_numpy(_dots(between, between)) ** 0.5
    reach = reach * max(2 - 2 * least, 0) ** 0.5 + _slack(centroids)
    return np.where(near >= 0, reach[where].reshape(near.shape), -1)


def _slack(centroids: Any) -> float:
    """Return what rounding may add to a row's distance from the border of two clusters: that of four float32 dot products."""
    return float(centroids.shape[1] * 2.0**-22 + 1e-6)


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
