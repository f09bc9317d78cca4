"""The files of a saved corpus: what is in them, and what is wrong with them.

A saved corpus is a folder with a folder for each time something was saved to it, ``part.00000`` and so on: ``centroids.parquet`` (each cluster's
centroid and number of rows) and ``cluster.00000.parquet`` and so on (ids and unit vectors of one cluster), plain Parquet all.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from imgcurate import identity, storage, vectors
from imgcurate.printable import printable


class Part(NamedTuple):
    """One file of a saved corpus: the rows of a cluster, and their number."""

    url: str
    cluster: int
    rows: int


class Saved(NamedTuple):
    """What a saved corpus says of itself.

    Attributes
    ----------
    centroids : numpy.ndarray of shape (k, d), float32
    parts : list of Part
    encoders : frozenset of Identity
    """

    centroids: np.ndarray
    parts: list[Part]
    encoders: frozenset[identity.Identity]


def read(path: str | os.PathLike[str], storage_options: storage.Options) -> Saved:
    """Return what `save_embeddings` says of what it wrote to a folder."""
    fs, root = storage.open_filesystem(os.fspath(path), storage_options)
    folders = [folder for folder in parts_in(fs, root) if fs.exists(f"{folder}/centroids.parquet")]
    if not folders:
        raise FileNotFoundError(
            f"{os.fspath(path)!r} holds no embeddings that save_embeddings wrote; imgcurate.read_embeddings reads other files of embeddings as a frame"
        )
    base = storage.absolute(path, storage_options).rstrip("/")
    parts, centroids, encoders = [], None, set()
    for folder in folders:
        name = folder.rpartition("/")[2]
        summary = _read_table(f"{base}/{name}/centroids.parquet", None, storage_options)
        encoders.add(identity.from_metadata(summary.schema.metadata))
        stored, sizes = _summary(summary, f"{base}/{name}/centroids.parquet")
        if centroids is None:
            centroids = stored
        if stored.shape != centroids.shape:
            raise _lies(f"{base}/{name}/centroids.parquet", "its clusters are not those of the other parts")
        parts += [
            Part(f"{base}/{name}/cluster.{cluster:05d}.parquet", cluster, rows) for cluster, rows in enumerate(sizes)
        ]
    assert centroids is not None
    known = frozenset(encoder for encoder in encoders if encoder is not None)
    return Saved(centroids, parts, known)


def read_part(part: Part, id_field: str, storage_options: storage.Options) -> tuple[pa.ChunkedArray, Any]:
    """Return the ids and the unit vectors of a file."""
    table = _read_table(part.url, [id_field, "embedding"], storage_options)
    return table[id_field], _matrix(table, part)


def read_vectors(part: Part, storage_options: storage.Options) -> Any:
    """Return the unit vectors of a file, of which no ids are read."""
    return _matrix(_read_table(part.url, ["embedding"], storage_options), part)


def read_ids(part: Part, id_field: str, storage_options: storage.Options) -> pa.ChunkedArray:
    """Return the ids of a file, of which no vectors are read."""
    return _read_table(part.url, [id_field], storage_options)[id_field]


def is_saved(path: str | os.PathLike[str], storage_options: storage.Options) -> bool:
    """Tell whether `save_embeddings` wrote to a folder."""
    fs, root = storage.open_filesystem(os.fspath(path), storage_options)
    return any(fs.exists(f"{folder}/centroids.parquet") for folder in parts_in(fs, root))


def parts_in(fs: Any, root: str) -> list[str]:
    """Return the folders of a saved corpus, in order; by listing it, for its own name may look like a pattern."""
    names = (name.rstrip("/") for name in fs.ls(root, detail=False)) if fs.exists(root) else ()
    return sorted(name for name in names if name.rpartition("/")[2].startswith("part."))


def _read_table(url: str, columns: list[str] | None, storage_options: storage.Options) -> pa.Table:
    try:
        table = storage.read_parquet_table(url, columns, storage_options)
    except (pa.ArrowException, OSError, ValueError) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise
        raise ValueError(
            f"{printable(url)} is damaged ({printable(str(problem))}); save the embeddings again"
        ) from None
    missing = [name for name in columns or () if name not in table.column_names]
    if missing:
        raise _lies(url, f"the column {missing[0]!r} is missing")
    return table


def _matrix(table: pa.Table, part: Part) -> Any:
    if len(table) != part.rows:
        raise _lies(part.url, f"it has {len(table):,} images and {part.rows:,} were saved")
    return vectors.to_matrix(table.to_pandas(types_mapper=pd.ArrowDtype)["embedding"])


def _summary(summary: pa.Table, url: str) -> tuple[np.ndarray, list[int]]:
    """Return the centroids of shape (k, d), float32, and how many images each cluster has."""
    try:
        centroids = np.stack(summary["centroid"].to_numpy()).astype(np.float32)
        sizes = summary["rows"].to_pylist()
    except (KeyError, ValueError, TypeError):
        raise _lies(url, "it has no centroids") from None
    if centroids.ndim != 2 or not np.isfinite(centroids).all():
        raise _lies(url, "it has no centroids")
    if not all(isinstance(rows, int) and rows >= 0 for rows in sizes):
        raise _lies(url, "the sizes of the clusters are no numbers")
    return centroids, sizes


def _lies(url: str, what: str) -> ValueError:
    return ValueError(f"{printable(url)} is not what save_embeddings wrote: {what}; save the embeddings again")
