"""save_embeddings(): vectors saved cluster by cluster, for new images to be compared with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import dask
import numpy as np
import pyarrow as pa

from imgcurate import identity, storage, vectors
from imgcurate.cluster import interruptible
from imgcurate.dedup.dataframes import inputs
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic.clusters import sample
from imgcurate.dedup.semantic.clusters.exchange import Members
from imgcurate.dedup.semantic.clusters.files import StoredBucket
from imgcurate.dedup.semantic.corpus import files
from imgcurate.dedup.semantic.steps import Cluster, by_cluster
from imgcurate.dedup.work.mapped import work_folder
from imgcurate.dedup.work.waves import in_waves


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
    there = files.parts_in(fs, root)
    if there and not (append or overwrite):
        raise FileExistsError(f"{path} holds embeddings already; pass append=True to add to them, or overwrite=True")
    old = files.read(path, storage_options) if append else None
    rows = frames.prepare(frame, id_field, embedding_field, [], seed, None if work is None else work_folder(work))
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


def _buckets(clusters: Sequence[Cluster]) -> Iterator[tuple[Any, list[Cluster]]]:
    """Yield each bucket with its clusters."""
    of: dict[int, list[Cluster]] = {}
    for cluster in clusters:
        of.setdefault(id(cluster.bucket), []).append(cluster)
    for group in of.values():
        yield group[0].bucket, group


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
