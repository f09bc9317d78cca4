"""place_on_map(): where each image lies on a plane on which those that are alike lie close together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from imgcurate import identity, schema, vectors
from imgcurate.arguments import check_whole_number
from imgcurate.cluster import interruptible
from imgcurate.rowwise import map_rows

if TYPE_CHECKING:
    import dask.dataframe as dd

_MERGED, _BLOCK_ROWS = 16, 512
#: How an image is placed.
METHODS = ("pca", "umap")
# UMAP looks at so many neighbours of each image, and cannot place fewer images than a few.
_NEIGHBOURS, _FEWEST, _SEED = 15, 10, 42
# An image that was not drawn lies between so many that were; nearer than this is at the same place.
_NEAREST, _NO_DISTANCE = 5, 1e-6


class Plane(NamedTuple):
    """What vectors are projected to.

    Attributes
    ----------
    mean : numpy.ndarray of shape (d,), float64
    axes : numpy.ndarray of shape (2, d), float64
    """

    mean: np.ndarray
    axes: np.ndarray

    @property
    def dimension(self) -> int:
        """How long vectors are; 0 where none was drawn."""
        return len(self.mean)

    def place(self, unit: Any) -> Any:
        """Return the places of unit vectors, of shape (n, 2)."""
        xp = vectors.namespace(unit)
        # Row by row and not by a product of matrices, whose last bits depend on how many rows there are.
        along = [xp.einsum("ij,j->i", unit, xp.asarray(axis), dtype=xp.float64) for axis in self.axes]
        return xp.stack(along, axis=1) - xp.asarray(self.axes @ self.mean)


class Landmarks(NamedTuple):
    """Unit vectors that have a place, beside which others find theirs.

    Attributes
    ----------
    unit : numpy.ndarray of shape (n, d), float32
    places : numpy.ndarray of shape (n, 2), float64
    """

    unit: np.ndarray
    places: np.ndarray

    @property
    def dimension(self) -> int:
        """How long vectors are."""
        return self.unit.shape[1]

    def place(self, unit: Any) -> Any:
        """Return the places of unit vectors: the mean of their nearest landmarks', by inverse distance; of a landmark its own."""
        xp = vectors.namespace(unit)
        distances = 1 - unit @ xp.asarray(self.unit).T
        nearest = xp.argpartition(distances, _NEAREST - 1, axis=1)[:, :_NEAREST]
        weights = 1 / xp.maximum(xp.take_along_axis(distances, nearest, axis=1).astype(xp.float64), _NO_DISTANCE)
        return (xp.asarray(self.places)[nearest] * weights[:, :, None]).sum(axis=1) / weights.sum(axis=1)[:, None]


class _Drawn(NamedTuple):
    """Some images: the hashes of their ids, their unit vectors, and what encoders these are of."""

    hashes: np.ndarray
    ids: list[str]
    unit: np.ndarray
    encoders: frozenset[identity.Identity]


@interruptible
def place_on_map(
    frame: Any,
    *,
    method: str = "pca",
    sample: int = 10_000,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
) -> dd.DataFrame:
    """Add the place of each image on a map, by its embedding, as columns ``x`` and ``y``.

    Parameters
    ----------
    frame : Dask DataFrame
        With ids and embeddings of one encoder.
    method : {"pca", "umap"}, default "pca"
        The two principal components: fast, and distances are what they seem. Or UMAP, which shows finer groups, while distances between these mean
        little; it needs the package umap-learn, and for cuDF frames cuML.
    sample : int, default 10_000
        The map is made of so many images, which are drawn by hashes of their ids, or of all where there are fewer; then every image is placed on it.
    id_field, embedding_field : str

    Returns
    -------
    Dask DataFrame
        Lazy, with ``x`` and ``y``, float32; NaN where an image has no vector, or one that has no direction, and where
        none of those drawn has one. By PCA of unit vectors from the mean of
        those drawn along the direction in which they spread most, and along the next. By UMAP of cosines; an image that was not drawn lies between
        the five nearest that were, the nearer to each the more it is like it.

    Raises
    ------
    KeyError
        Where a column is missing.
    ImportError
        Where the method is "umap" and umap-learn, or for cuDF frames cuML, is not installed.
    ValueError
        Where the frame has columns ``x`` or ``y`` or embeddings of several encoders, the method is unknown, `sample` is below 2, or UMAP is asked
        for of a sample of fewer than ten images, or there are not so many.

    Notes
    -----
    The map is made at once, on one worker, from one pass over the ids and one over the embeddings: ``checkpoint`` or ``persist()`` a frame before that
    has none yet, or they are computed twice. It does not depend on partitioning: principal components are those of float64 sums in the order of the
    hashes, and places along them are the same bits; UMAP, of a fixed seed, gets the images in that order, and places differ by rounding. An axis of PCA
    points to where the largest of its coefficients is positive, so that maps of the same images are not mirrored.

    UMAP: McInnes et al., "UMAP: Uniform manifold approximation and projection for dimension reduction", 2018. The maps of umap-learn and of cuML show
    the same groups in other places.

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> vectors = [[1.0, 0.1, 0.0], [1.0, -0.1, 0.0], [0.0, 0.1, 1.0], [0.0, -0.1, 1.0]]
    >>> frame = dd.from_dict({"image_id": ["a", "b", "c", "d"], "embedding": vectors}, npartitions=1)
    >>> place_on_map(frame)[["x", "y"]].compute().astype("float64").round(2).to_numpy().tolist()
    [[0.7, 0.1], [0.7, -0.1], [-0.7, 0.1], [-0.7, -0.1]]

    >>> placed = place_on_map(read_parquet("embedded"))  # doctest: +SKIP
    >>> placed.compute().plot.scatter("x", "y")  # doctest: +SKIP
    """
    schema.require(frame, [id_field, embedding_field], "place_on_map")
    there = [name for name in ("x", "y") if name in frame.columns]
    if there:
        raise ValueError(f"the frame already has a column {there[0]!r}; drop or rename it first")
    if method not in METHODS:
        raise ValueError(f"method={method!r}: give one of {', '.join(METHODS)}")
    check_whole_number("sample", sample, _FEWEST if method == "umap" else 2)
    if method == "umap":
        _import_umap(vectors.on_gpu(frame._meta))
    chart = _chart_of(frame, method, int(sample), id_field, embedding_field)
    meta = vectors.empty_like(frame._meta, ["x", "y"])
    placed = map_rows(frame[[embedding_field]], _place_part, chart, embedding_field, meta=meta)
    return frame.assign(x=placed["x"], y=placed["y"])


def _chart_of(frame: Any, method: str, sample: int, id_field: str, embedding_field: str) -> Any:
    """Return what places vectors, by some images of a frame: a Plane, or Landmarks, which stay on a worker."""
    lowest = [
        dask.delayed(_lowest)([dask.delayed(_hashes)(part, id_field)], sample)
        for part in frame[[id_field]].to_delayed()
    ]
    while len(lowest) > 1:
        lowest = [dask.delayed(_lowest)(lowest[at : at + _MERGED], sample) for at in range(0, len(lowest), _MERGED)]
    drawn = [
        dask.delayed(_draw)(part, lowest[0], id_field, embedding_field)
        for part in frame[[id_field, embedding_field]].to_delayed()
    ]
    chart = dask.delayed(_chart)(drawn, method, vectors.on_gpu(frame._meta))
    if method == "pca":
        return chart.compute()
    # Too large for the graph.
    (held,) = dask.persist(chart)
    dask.delayed(bool)(held).compute()  # raises what went wrong
    return held


def _hashes(part: Any, id_field: str) -> np.ndarray:
    return _hashed(vectors.to_pandas(part[[id_field]])[id_field])


def _hashed(ids: pd.Series) -> np.ndarray:
    """Return numbers by which to draw images: they have nothing to do with what these are, and are the same for the same ids."""
    return pd.util.hash_array(ids.to_numpy(object), categorize=False)


def _lowest(hashes: Sequence[np.ndarray], n: int) -> np.ndarray:
    every = np.concatenate(hashes)
    return np.partition(every, n - 1)[:n] if len(every) > n else every


def _draw(part: Any, lowest: np.ndarray, id_field: str, embedding_field: str) -> _Drawn:
    """Return the images of a partition whose hashes are not above the lowest ones."""
    ids = vectors.to_pandas(part[[id_field]])[id_field].reset_index(drop=True)
    hashes = _hashed(ids)
    at = np.flatnonzero(hashes <= lowest.max()) if len(lowest) else np.arange(0)
    column = part[embedding_field].iloc[at]
    unit, valid = vectors.unit_rows(vectors.to_matrix(column))
    at = at[valid]
    return _Drawn(hashes[at], ids[at].tolist(), vectors.to_numpy(unit)[valid], frozenset(identity.of_column(column)))


def _chart(drawn: Sequence[_Drawn], method: str, on_gpu: bool) -> Plane | Landmarks:
    """Return what places vectors, by the images drawn, whatever order they come in."""
    identity.one({encoder for some in drawn for encoder in some.encoders}, "the images")
    order = pd.DataFrame(
        {
            "hash": np.concatenate([some.hashes for some in drawn]),
            "id": list(chain.from_iterable(some.ids for some in drawn)),
        }
    )
    filled = [some.unit for some in drawn if len(some.unit)]
    dimensions = sorted({unit.shape[1] for unit in filled})
    if len(dimensions) > 1:
        raise ValueError(
            f"the images have embeddings of {' and '.join(map(str, dimensions))} dimensions; give those of one encoder"
        )
    unit = np.concatenate(filled) if filled else np.zeros((0, 0), np.float32)
    unit = unit[order.sort_values(["hash", "id"], kind="stable").index]
    return Landmarks(unit, _by_umap(unit, on_gpu)) if method == "umap" else _by_pca(unit)


def _by_pca(unit: np.ndarray) -> Plane:
    """Return the mean of vectors and the two directions in which they spread most."""
    mean, axes = np.zeros(unit.shape[1]), np.zeros((2, unit.shape[1]))
    if not len(unit):
        return Plane(mean, axes)
    # Sums of several threads come in any order.
    with threadpool_limits(1):
        apart = unit.astype(np.float64)
        mean = apart.mean(axis=0)
        apart -= mean
        _, directions = np.linalg.eigh(apart.T @ apart)
    axes[: min(2, len(mean))] = directions.T[::-1][:2]
    largest = np.abs(axes).argmax(axis=1)
    axes *= np.where(axes[np.arange(2), largest] < 0, -1, 1)[:, None]
    return Plane(mean, axes)


def _by_umap(unit: np.ndarray, on_gpu: bool) -> np.ndarray:
    """Return the places that UMAP gives to vectors."""
    if len(unit) < _FEWEST:
        raise ValueError(
            f"UMAP needs at least {_FEWEST} images with a vector, and there are {len(unit)}; method='pca' places them"
        )
    neighbours = min(_NEIGHBOURS, len(unit) - 1)
    # With a seed umap-learn takes no more than one job, and says so where it was not told.
    options = {} if on_gpu else {"n_jobs": 1}
    model = _import_umap(on_gpu)(n_neighbors=neighbours, metric="cosine", random_state=_SEED, **options)
    with threadpool_limits(1):
        return np.asarray(model.fit_transform(unit), dtype=np.float64)


def _import_umap(on_gpu: bool) -> Any:
    """Return the class UMAP, of cuML or of umap-learn."""
    try:
        if on_gpu:
            from cuml.manifold import UMAP
        else:
            from umap import UMAP
    except ImportError:
        package = "cuml-cu13" if on_gpu else "umap-learn"
        raise ImportError(f"method='umap' needs {package}: pip install {package}; method='pca' needs nothing") from None
    return UMAP


def _place_part(part: Any, chart: Plane | Landmarks, embedding_field: str) -> Any:
    """Return the columns ``x`` and ``y`` of a partition."""
    unit, valid = vectors.unit_rows(vectors.to_matrix(part[embedding_field], chart.dimension or None))
    xp = vectors.namespace(unit)
    places = xp.full((len(unit), 2), xp.nan, dtype=xp.float32)
    if valid.any() and chart.dimension:
        for start in range(0, len(unit), _BLOCK_ROWS):
            places[start : start + _BLOCK_ROWS] = chart.place(unit[start : start + _BLOCK_ROWS])
        places[xp.asarray(~valid)] = xp.nan
    return part[[]].assign(
        x=vectors.to_series(places[:, 0], "x", like=part), y=vectors.to_series(places[:, 1], "y", like=part)
    )
