"""A corpus that new images are compared with and that is kept whole: a frame, or embeddings saved cluster by cluster.

A saved corpus is a folder with a folder for each time something was saved to it, ``part.00000`` and so on: ``centroids.parquet`` (each cluster's
centroid and number of rows) and ``cluster.00000.parquet`` and so on (ids and unit vectors of one cluster), plain Parquet all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import identity, storage, vectors
from imgcurate.cluster import interruptible
from imgcurate.dedup import inputs
from imgcurate.dedup.graph import build
from imgcurate.dedup.graph.found import Found
from imgcurate.dedup.semantic import compare, normalise, sample
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic.exchange import Members
from imgcurate.dedup.semantic.files import StoredBucket
from imgcurate.dedup.semantic.steps import Cluster, by_cluster
from imgcurate.dedup.waves import in_waves
from imgcurate.printable import printable

_ROWS_OF_A_TASK = 32_768


class Part(NamedTuple):
    """One file of a saved corpus: the rows of a cluster, and their number."""

    url: str
    cluster: int
    rows: int


@interruptible
def save_embeddings(
    frame: Any,
    path: str | os.PathLike[str],
    *,
    n_clusters: int | None = None,
    append: bool = False,
    overwrite: bool = False,
    seed: int = 42,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
    storage_options: storage.Options = None,
    work: str | os.PathLike[str] | None = None,
) -> int:
    """Save embeddings cluster by cluster, for `semantic_duplicates` to compare new images with. Eager.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame, or pair of ids and a matrix of shape (n, d)
        With `id_field` and `embedding_field`. Rows with an ``error`` or without a usable vector are left out.
    path : str or path
        A folder.
    n_clusters : int, optional
        Default: about ``sqrt(n / 2)``, so that a few images touch little of the corpus.
    append : bool, default False
        Add to what is there, by its centroids.
    overwrite : bool, default False
        Replace what is there.
    seed : int
        Of k-means.
    id_field, embedding_field : str
    storage_options : dict, optional
        For the fsspec filesystem.
    work : str or path, optional
        As for `semantic_duplicates`: a folder for vectors that are many.

    Returns
    -------
    int
        Rows saved.

    Raises
    ------
    FileExistsError
        Where embeddings are there and neither `append` nor `overwrite` is given.
    FileNotFoundError
        Where none are there to append to.

    Examples
    --------
    >>> save_embeddings(kept, "corpus")  # doctest: +SKIP
    >>> found = semantic_duplicates(new, against="corpus")  # doctest: +SKIP
    """
    frame, _ = inputs.as_frame(frame, "save_embeddings", id_field, embedding_field)
    if n_clusters is not None and append:
        raise ValueError("append=True places images by the centroids that are there; leave n_clusters out")
    fs, root = storage.open_filesystem(os.fspath(path), storage_options)
    there = _parts_in(fs, root)
    if there and not (append or overwrite):
        raise FileExistsError(f"{path} holds embeddings already; pass append=True to add to them, or overwrite=True")
    old = saved_corpus(path, id_field, storage_options) if append else None
    rows = frames.prepare(
        frame, id_field, embedding_field, [], seed, None if work is None else frames.work_folder(work)
    )
    if old is not None:
        rows.refuse_other_dimension(old.centroids.shape[1], "the saved embeddings", embedding_field)
    encoder = identity.one(
        rows.encoders | (old.encoders if old else frozenset()),
        "the frame, or what is saved there," if old else "the frame",
    )
    if not rows.n_compared:
        raise ValueError("no row of the frame has a usable vector: there is nothing to save")
    if old is not None:
        centroids = old.centroids
    else:
        k = min(n_clusters or max(1, round((rows.n_compared / 2) ** 0.5)), rows.n_compared)
        centroids = sample.fit(rows, k, seed, vectors.on_gpu(frame._meta)).compute()
    sizes, clusters = by_cluster(rows, centroids, 1, -1.0)
    target = f"{storage.absolute(path, storage_options).rstrip('/')}/part.{len(there) if append else 0:05d}"
    if not append:
        for folder in there[1:]:
            fs.rm(folder, recursive=True)
    with storage.staged_folder(
        target, ".parquet", overwrite=bool(there) and not append, storage_options=storage_options
    ) as folder:
        write = dask.delayed(_write_clusters)
        kind = pa.list_(pa.float32())
        summary = pa.table(
            {
                "cluster": np.arange(len(centroids)),
                "rows": sizes.astype(np.int64),
                "centroid": pa.array(list(centroids), type=kind),
            }
        )
        summary = summary.replace_schema_metadata(identity.to_metadata(encoder))
        in_waves(
            write(bucket, [cluster.number for cluster in of_bucket], id_field, folder, storage_options)
            for bucket, of_bucket in _buckets(clusters)
        )
        # Last, because without them there is no part: on a store, files are seen as they are written.
        storage.write_parquet_table(summary, f"{folder}/centroids.parquet", storage_options)
    return rows.n_compared


def open_corpus(against: Any, id_field: str, embedding_field: str) -> FrameCorpus | SavedCorpus:
    """Return what `semantic_duplicates` compares new images with."""
    if isinstance(against, str | os.PathLike):
        return saved_corpus(against, id_field, None)
    of = " (in the frame given as against)"
    against, _ = inputs.as_frame(against, "semantic_duplicates", id_field, embedding_field, where=of)
    return FrameCorpus(against, id_field, embedding_field)


class FrameCorpus:
    """A frame: read once, and compared in full."""

    centroids: None = None

    def __init__(self, frame: Any, id_field: str, embedding_field: str) -> None:
        self._frame, self._id_field, self._embedding_field = frame, id_field, embedding_field

    def compare(self, new: frames.Frame, probes: int, exact: bool, least: float) -> tuple[list[Delayed], build.Fixed]:
        """Return the pairs of a new image and one of the corpus, and how to name those of the corpus."""
        work = f"{new.folder.path}/against" if new.folder is not None and new.folder.durable else None
        old = frames.prepare(self._frame, self._id_field, self._embedding_field, [], 0, work)
        if old.n_compared:
            old.refuse_other_dimension(new.dimension, "the new images", self._embedding_field)
        identity.one(new.encoders | old.encoders, "the comparison with the corpus")
        task = dask.delayed(compare.compare_with_others)
        found = [
            task(rows, at, others, other_at + new.n_compared, least)
            for rows, at in _grouped(new)
            for others, other_at in _grouped(old)
        ]

        def fixed(wanted: Delayed) -> list[Delayed]:
            name = dask.delayed(_name_block)
            return [
                name(block, offset + new.n_compared, wanted)
                for block, offset in zip(old.blocks, old.offsets, strict=True)
            ]

        return list(dask.persist(*found)), fixed


class SavedCorpus:
    """What `save_embeddings` wrote: only the clusters are read that new images go to."""

    def __init__(
        self,
        centroids: np.ndarray,
        parts: list[Part],
        encoders: frozenset[identity.Identity],
        id_field: str,
        storage_options: storage.Options,
    ) -> None:
        self.centroids, self.parts, self.encoders = centroids, parts, encoders
        self._id_field, self._storage_options = id_field, storage_options

    def compare(self, new: frames.Frame, probes: int, exact: bool, least: float) -> tuple[list[Delayed], build.Fixed]:
        """Return the pairs of a new image and one of the corpus, and how to name those of the corpus."""
        identity.one(new.encoders | self.encoders, "the comparison with the corpus")
        # The images of the corpus lie in one cluster each, so the new ones are looked for in twice as many.
        width = len(self.centroids) if exact else 2 * probes
        sizes, clusters = by_cluster(new, self.centroids, width, least)
        touched = [part for part in self.parts if part.rows and sizes[part.cluster]]
        starts = np.cumsum([new.n_compared, *(part.rows for part in touched)])[:-1].tolist()
        task = dask.delayed(_compare_with_part)
        bucket_of = {cluster.number: cluster.bucket for cluster in clusters}
        found = [
            task(bucket_of[part.cluster], part, start, least, self._storage_options)
            for part, start in zip(touched, starts, strict=True)
        ]

        def fixed(wanted: Delayed) -> list[Delayed]:
            name = dask.delayed(_name_part)
            return [
                name(part, start, wanted, self._id_field, self._storage_options)
                for part, start in zip(touched, starts, strict=True)
            ]

        return list(dask.persist(*found)), fixed


def read_part(part: Part, id_field: str, storage_options: storage.Options) -> tuple[pa.ChunkedArray, Any]:
    """Return the ids and the unit vectors of a file."""
    table = _read_table(part.url, [id_field, "embedding"], storage_options)
    if len(table) != part.rows:
        raise _lies(part.url, f"it has {len(table):,} images and {part.rows:,} were saved")
    return table[id_field], vectors.to_matrix(table.to_pandas(types_mapper=pd.ArrowDtype)["embedding"])


def _buckets(clusters: Sequence[Cluster]) -> Iterator[tuple[Any, list[Cluster]]]:
    """Yield each bucket with its clusters."""
    of: dict[int, list[Cluster]] = {}
    for cluster in clusters:
        of.setdefault(id(cluster.bucket), []).append(cluster)
    for group in of.values():
        yield group[0].bucket, group


def saved_corpus(path: str | os.PathLike[str], id_field: str, storage_options: storage.Options) -> SavedCorpus:
    """Return what `save_embeddings` wrote to a folder."""
    fs, root = storage.open_filesystem(os.fspath(path), storage_options)
    folders = [folder for folder in _parts_in(fs, root) if fs.exists(f"{folder}/centroids.parquet")]
    if not folders:
        raise FileNotFoundError(f"{os.fspath(path)!r} holds no embeddings that save_embeddings wrote")
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
    return SavedCorpus(centroids, parts, known, id_field, storage_options)


def is_saved(path: str | os.PathLike[str], storage_options: storage.Options) -> bool:
    """Tell whether `save_embeddings` wrote to a folder."""
    fs, root = storage.open_filesystem(os.fspath(path), storage_options)
    return any(fs.exists(f"{folder}/centroids.parquet") for folder in _parts_in(fs, root))


def _parts_in(fs: Any, root: str) -> list[str]:
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


def _grouped(rows: frames.Frame) -> list[tuple[Delayed, int]]:
    """Put small blocks together, because a comparison is a task for every two."""
    groups: list[tuple[list[Delayed], int, int]] = []
    ends = [*rows.offsets[1:], rows.n_compared]
    for block, start, end in zip(rows.blocks, rows.offsets, ends, strict=True):
        if groups and end - groups[-1][1] <= _ROWS_OF_A_TASK:
            groups[-1][0].append(block)
        else:
            groups.append(([block], start, end))
    return [(dask.delayed(normalise.stack)(group), start) for group, start, _ in groups]


def _compare_with_part(
    bucket: Members | StoredBucket, part: Part, start: int, least: float, storage_options: storage.Options
) -> Found:
    table = _read_table(part.url, ["embedding"], storage_options)
    if len(table) != part.rows:
        raise _lies(part.url, f"it has {len(table):,} images and {part.rows:,} were saved")
    matrix = vectors.to_matrix(table.to_pandas(types_mapper=pd.ArrowDtype)["embedding"])
    # Of a bucket in files this cluster alone is read, and no ids.
    members = bucket if isinstance(bucket, Members) else bucket.only(part.cluster).members()
    others = vectors.namespace(members.vectors).asarray(matrix)
    return compare.compare_with_cluster(members, part.cluster, others, start, least)


def _name_part(part: Part, start: int, wanted: np.ndarray, id_field: str, storage_options: storage.Options) -> pa.Table:
    here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + part.rows)]
    if not len(here):
        return _named(pa.nulls(0), here, part.cluster)
    ids = _read_table(part.url, [id_field], storage_options)[id_field]
    return _named(normalise.plain_ids(ids, id_field).take(pa.array(here - start)), here, part.cluster)


def _name_block(block: normalise.Rows, offset: int, wanted: np.ndarray) -> pa.Table:
    start, stop = np.searchsorted(wanted, [offset, offset + len(block.vectors)])
    here = wanted[start:stop]
    return _named(block.table["id"].combine_chunks().take(pa.array(here - offset)), here, 0)


def _named(ids: Any, rows: np.ndarray, cluster: int) -> pa.Table:
    return pa.table({"id": ids, "row": rows, "cluster": pa.array(np.full(len(rows), cluster, dtype=np.int32))})


def _write_clusters(
    bucket: Members | StoredBucket,
    numbers: Sequence[int],
    id_field: str,
    folder: str,
    storage_options: storage.Options,
) -> None:
    members = bucket if isinstance(bucket, Members) else bucket.members_with_ids()
    assert members.ids is not None
    for cluster in numbers:
        at = np.flatnonzero(members.cluster == cluster)
        matrix = vectors.to_numpy(vectors.take(members.vectors, at))
        table = pa.table(
            {
                id_field: members.ids.take(pa.array(at)),
                "embedding": pa.ListArray.from_arrays(
                    pa.array(np.arange(len(at) + 1, dtype=np.int32) * matrix.shape[1]), pa.array(matrix.reshape(-1))
                ),
            }
        )
        storage.write_parquet_table(table, f"{folder}/cluster.{cluster:05d}.parquet", storage_options)
