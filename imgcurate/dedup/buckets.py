"""What semantic deduplication runs inside a task: a partition's rows, their split by cluster, and the matches of a bucket.

A bucket is some whole clusters. Rows travel as an Arrow table on the host and a matrix on the partition's device, never as
a dataframe with an embedding column: no dataframe is shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from imgcurate import schema, vectors
from imgcurate.dedup import clusters, join, rank

Rule = Literal["cover", "pointwise"]


class Rows(NamedTuple):
    """Images that are compared: ``id``, ``hash``, ``key0``... (later ``cluster`` and ``distance``), and their unit vectors."""

    table: pa.Table
    vectors: Any


class Summary(NamedTuple):
    """What the client has to know of a partition."""

    hashes: np.ndarray
    compared: np.ndarray
    dimension: int


def prepare(
    part: Any, id_field: str, embedding_field: str, key_fields: Sequence[str], seed: int
) -> tuple[Rows, Summary, pa.Array]:
    """Return a partition's comparable rows, its summary (of all rows) and the ids of all rows.

    Parameters
    ----------
    part : pandas or cuDF DataFrame
    id_field, embedding_field : str
    key_fields : sequence of str
        The columns to rank by.
    seed : int
        Of the ids' hash.

    Raises
    ------
    ValueError
        Where an id is null, or the vectors are not of one length.
    TypeError
        Where ids are neither strings nor integers, or the embedding column does not hold vectors.
    """
    wanted = [id_field, *key_fields, *(["error"] if "error" in part.columns else [])]
    host = vectors.to_arrow(part[list(dict.fromkeys(wanted))])
    ids = _ids(host[id_field], id_field)
    hashes = rank.hash_ids(ids, seed)
    unit, usable = vectors.unit_rows(vectors.to_matrix(part[embedding_field]))
    if "error" in host.column_names:
        usable = usable & pc.is_null(host["error"]).to_numpy()
    keys = {f"key{number}": host[name] for number, name in enumerate(key_fields)}
    table = pa.table({"id": ids, "hash": hashes, **keys})
    summary = Summary(hashes, usable, unit.shape[1])
    if not usable.all():
        table, unit = table.filter(pa.array(usable)), unit[vectors.namespace(unit).asarray(usable)]
    return Rows(table, unit), summary, ids


def sample(rows: Rows, limit: np.uint64) -> Rows:
    """Return the rows whose hash is at most `limit`."""
    chosen = np.flatnonzero(rows.table["hash"].to_numpy() <= limit)
    return _take(rows, chosen)


def fit(samples: Sequence[Rows], n_clusters: int, seed: int) -> np.ndarray:
    """Fit centroids to the samples of all partitions, put in the order of their hashes."""
    hashes = np.concatenate([rows.table["hash"].to_numpy() for rows in samples])
    matrix = np.concatenate([rows.vectors for rows in samples])
    return clusters.fit(matrix[np.argsort(hashes, kind="stable")], n_clusters, seed)


def vector_sum(rows: Rows) -> np.ndarray:
    """Return the exact sum of the rows' vectors."""
    return clusters.vector_sum(rows.vectors)


def mean(sums: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean direction, as a matrix of one centroid."""
    return clusters.unit_centroids(np.sum(sums, axis=0)[None].astype(np.float64))


def place(rows: Rows, centroids: np.ndarray) -> tuple[Rows, np.ndarray]:
    """Return the rows with their cluster and distance, and the number of rows in each cluster."""
    cluster, distance = clusters.nearest(rows.vectors, vectors.namespace(rows.vectors).asarray(centroids))
    table = rows.table.append_column("cluster", pa.array(cluster)).append_column("distance", pa.array(distance))
    return Rows(table, rows.vectors), np.bincount(cluster, minlength=len(centroids))


def split(group: Sequence[Rows], bucket_of_cluster: np.ndarray, n_buckets: int) -> tuple[Rows, ...]:
    """Split the rows of some partitions by the bucket of their cluster."""
    buckets = [bucket_of_cluster[rows.table["cluster"].to_numpy()] for rows in group]
    return tuple(
        _concatenate([_take(rows, np.flatnonzero(of == number)) for rows, of in zip(group, buckets, strict=True)])
        for number in range(n_buckets)
    )


def merge(pieces: Sequence[Rows], keep: rank.Keep) -> Rows:
    """Put one bucket's pieces together, cluster by cluster, best-ranked first."""
    table = _one_table(pieces)
    order = rank.order(table, keep)
    xp = vectors.namespace(pieces[0].vectors)
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    matrix = xp.empty((len(order), pieces[0].vectors.shape[1]), dtype=xp.float32)
    start = 0
    for piece in pieces:
        stop = start + len(piece.vectors)
        matrix[xp.asarray(position[start:stop])] = piece.vectors
        start = stop
    return Rows(table.take(pa.array(order)).combine_chunks(), matrix)


def match(bucket: Rows, eps: float, rule: Rule) -> pd.DataFrame:
    """Find each image's match inside its cluster.

    Parameters
    ----------
    bucket : Rows
        In rank order, cluster by cluster.
    eps : float
    rule : {"cover", "pointwise"}
        ``pointwise`` gives every image its nearest earlier one however far it is, so that the answer serves every eps.

    Returns
    -------
    pandas.DataFrame
        ``id``, ``duplicate_of`` (the id itself where there is no match), ``similarity`` (then 0), ``cluster``,
        ``centroid_distance``, ``matched``.
    """
    cluster = bucket.table["cluster"].to_numpy()
    bounds = np.flatnonzero(np.diff(cluster, prepend=-1, append=-1))
    found = np.full(len(cluster), -1, dtype=np.int64)
    similarity = np.zeros(len(cluster), dtype=np.float32)
    for start, stop in pairwise(bounds):
        unit = bucket.vectors[start:stop]
        local, similarity[start:stop] = join.cover(unit, eps) if rule == "cover" else join.best_earlier(unit)
        found[start:stop] = np.where(local >= 0, local + start, -1)
    matched = found >= 0
    ids = bucket.table["id"]
    twin = ids.take(pa.array(np.where(matched, found, np.arange(len(found)))))
    return matches_table(ids, twin, similarity, cluster, bucket.table["distance"], matched)


def matches_table(ids: Any, twin: Any, similarity: Any, cluster: Any, distance: Any, matched: Any) -> pd.DataFrame:
    """Build the table that `match` returns."""
    table = pa.table(
        {
            "id": ids,
            "duplicate_of": twin,
            "similarity": pa.array(similarity, schema.TYPES["similarity"]),
            "cluster": pa.array(cluster, schema.TYPES["cluster"]),
            "centroid_distance": distance,
            "matched": matched,
        }
    )
    return table.to_pandas(types_mapper=pd.ArrowDtype)


def is_removed(matches: pd.DataFrame, eps: float) -> np.ndarray:
    """Tell which images of `match`'s answer have a match within `eps`."""
    near = matches["similarity"].to_numpy(dtype=np.float32) >= join.threshold(eps)
    return near & matches["matched"].to_numpy(dtype=bool)


def count(bucket_or_matches: Rows | pd.DataFrame, all_eps: Sequence[float]) -> np.ndarray:
    """Count the removed images for each eps: from pointwise matches, or by the cover rule from a bucket."""
    if isinstance(bucket_or_matches, Rows):
        return np.array([match(bucket_or_matches, eps, "cover")["matched"].sum() for eps in all_eps], dtype=np.int64)
    return np.array([is_removed(bucket_or_matches, eps).sum() for eps in all_eps], dtype=np.int64)


def view(matches: pd.DataFrame, columns: Sequence[str], eps: float | None, meta: Any, id_dtype: Any) -> Any:
    """Return columns of `match`'s answer as a partition on the backend and with the names and id type of `meta`.

    Parameters
    ----------
    matches : pandas.DataFrame
    columns : sequence of str
    eps : float or None
        Only images that have a match within eps; None: every image.
    meta : pandas or cuDF DataFrame
    id_dtype : pandas dtype
    """
    chosen = matches if eps is None else matches[is_removed(matches, eps)]
    part = chosen[list(columns)].reset_index(drop=True)
    part = part.astype({name: id_dtype for name in ("id", "duplicate_of") if name in columns})
    part.columns = pd.Index(list(meta.columns))
    return vectors.from_pandas(part, meta)


def _ids(column: pa.ChunkedArray, name: str) -> pa.Array:
    ids = column.combine_chunks()
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if ids.null_count:
        raise ValueError(
            f"{ids.null_count} of {len(ids)} rows of a partition have no {name!r}; give every image an id first"
        )
    if not len(ids) and pa.types.is_null(ids.type):
        return ids.cast(pa.large_string())
    check_id_type(ids.type, name)
    if pa.types.is_integer(ids.type):
        return ids if pa.types.is_uint64(ids.type) else ids.cast(pa.int64())
    return ids.cast(pa.large_string())


def check_id_type(kind: pa.DataType, name: str) -> None:
    """Raise a TypeError where ids of type `kind` can be neither hashed nor named."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not is_text and not pa.types.is_integer(kind):
        raise TypeError(f"column {name!r} holds {kind}; ids are strings or whole numbers")


def _one_table(pieces: Sequence[Rows]) -> pa.Table:
    # Partitions may read a column differently, such as whole numbers as floats where some are missing.
    return pa.concat_tables([piece.table for piece in pieces], promote_options="permissive")


def _concatenate(pieces: Sequence[Rows]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]
    xp = vectors.namespace(pieces[0].vectors)
    return Rows(_one_table(pieces), xp.concatenate([piece.vectors for piece in pieces]))


def _take(rows: Rows, chosen: np.ndarray) -> Rows:
    xp = vectors.namespace(rows.vectors)
    return Rows(rows.table.take(pa.array(chosen)), rows.vectors[xp.asarray(chosen)])
