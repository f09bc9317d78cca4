"""place_on_map(): where each image lies on a plane on which those that are alike lie close together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from imgcurate import identity, schema, vectors
from imgcurate.cluster import interruptible
from imgcurate.rowwise import map_rows

if TYPE_CHECKING:
    import dask.dataframe as dd

_MERGED, _BLOCK_ROWS = 16, 4096


class Plane(NamedTuple):
    """Where vectors are seen from.

    Attributes
    ----------
    mean : numpy.ndarray of shape (d,), float64
    axes : numpy.ndarray of shape (2, d), float64
    """

    mean: np.ndarray
    axes: np.ndarray


class _Drawn(NamedTuple):
    """Some images: the hashes of their ids, their unit vectors, and what encoders these are of."""

    hashes: np.ndarray
    ids: list[str]
    unit: np.ndarray
    encoders: frozenset[identity.Identity]


@interruptible
def place_on_map(
    frame: Any, *, sample: int = 10_000, id_field: str = "image_id", embedding_field: str = "embedding"
) -> dd.DataFrame:
    """Add the place of each image on a map: the two principal components of its embedding, as columns ``x`` and ``y``.

    Parameters
    ----------
    frame : Dask DataFrame
        With ids and embeddings of one encoder.
    sample : int, default 10_000
        The axes are those of so many images, which are drawn by hashes of their ids: of fewer, of all.
    id_field, embedding_field : str

    Returns
    -------
    Dask DataFrame
        Lazy, with ``x`` and ``y``, float32: of unit vectors, along the direction in which the images drawn spread most, and the next one; from the
        mean of these. NaN where an image has no vector, or one that has no direction.

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError
        Where the frame has columns ``x`` or ``y``, embeddings of several encoders, or `sample` is below 2.

    Notes
    -----
    The axes are computed at once, in float64 on one worker, from one pass over the ids and one over the embeddings: ``checkpoint`` or ``persist()``
    a frame before that has none yet, or they are computed twice. Neither axes nor places depend on partitioning. An axis points to where the
    largest of its coefficients is positive, so that maps of the same images are not mirrored.

    Two components of some hundred show little more than the coarsest groups. UMAP and t-SNE show finer ones, at the cost of distances between groups
    that mean nothing: `embedding-atlas <https://apple.github.io/embedding-atlas/>`_ makes such a map of the same Parquet file.

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
    if not isinstance(sample, Integral) or isinstance(sample, bool) or sample < 2:
        raise ValueError(f"sample={sample!r}: it must be a whole number, at least 2")
    plane = _plane_of(frame, int(sample), id_field, embedding_field)
    meta = vectors.empty_like(frame._meta, ["x", "y"])
    placed = map_rows(frame[[embedding_field]], _place_part, plane, embedding_field, meta=meta)
    return frame.assign(x=placed["x"], y=placed["y"])


def _plane_of(frame: Any, sample: int, id_field: str, embedding_field: str) -> Plane:
    """Return the plane of some images of a frame."""
    lowest = [dask.delayed(_lowest)([_hashes(part, id_field)], sample) for part in frame[[id_field]].to_delayed()]
    while len(lowest) > 1:
        lowest = [dask.delayed(_lowest)(lowest[at : at + _MERGED], sample) for at in range(0, len(lowest), _MERGED)]
    drawn = [
        dask.delayed(_draw)(part, lowest[0], id_field, embedding_field)
        for part in frame[[id_field, embedding_field]].to_delayed()
    ]
    (plane,) = dask.compute(dask.delayed(_plane)(drawn))
    return plane


@dask.delayed
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


def _plane(drawn: Sequence[_Drawn]) -> Plane:
    """Return the mean of unit vectors and the two directions in which they spread most."""
    identity.one({encoder for some in drawn for encoder in some.encoders}, "the frame")
    order = pd.DataFrame(
        {
            "hash": np.concatenate([some.hashes for some in drawn]),
            "id": list(chain.from_iterable(some.ids for some in drawn)),
        }
    )
    filled = [some.unit for some in drawn if len(some.unit)]
    if not filled:
        return Plane(np.zeros(0), np.zeros((2, 0)))
    # In one order and by one thread, so that sums are the same however the images were partitioned.
    unit = np.concatenate(filled)[order.sort_values(["hash", "id"], kind="stable").index].astype(np.float64)
    with threadpool_limits(1):
        mean = unit.mean(axis=0)
        unit -= mean
        _, directions = np.linalg.eigh(unit.T @ unit)
    axes = np.zeros((2, len(mean)))
    axes[: min(2, len(mean))] = directions.T[::-1][:2]
    largest = np.abs(axes).argmax(axis=1)
    axes *= np.where(axes[np.arange(2), largest] < 0, -1, 1)[:, None]
    return Plane(mean, axes)


def _place_part(part: Any, plane: Plane, embedding_field: str) -> Any:
    """Return the columns ``x`` and ``y`` of a partition."""
    unit, valid = vectors.unit_rows(vectors.to_matrix(part[embedding_field], len(plane.mean)))
    xp = vectors.namespace(unit)
    places = xp.full((len(unit), 2), xp.nan, dtype=xp.float32)
    mean, axes = xp.asarray(plane.mean), xp.asarray(plane.axes)
    for start in range(0, len(unit), _BLOCK_ROWS):
        # Summed row by row and not by a product of matrices, whose last bits depend on how many rows there are.
        block = unit[start : start + _BLOCK_ROWS].astype(xp.float64) - mean
        for axis in range(2):
            places[start : start + _BLOCK_ROWS, axis] = (block * axes[axis]).sum(axis=1)
    places[xp.asarray(~valid)] = xp.nan
    return part[[]].assign(
        x=vectors.to_series(places[:, 0], "x", like=part), y=vectors.to_series(places[:, 1], "y", like=part)
    )
