"""What semantic deduplication knows of a partition: its comparable rows with their unit vectors, and where they belong.

Rows travel as an Arrow table on the host and a matrix on the partition's device, never as a dataframe with an embedding
column: no dataframe is shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imgcurate import identity, vectors
from imgcurate.cluster.freed import keep_freed_memory
from imgcurate.dedup.dataframes.ids import plain_ids
from imgcurate.dedup.dataframes.repeated import Names
from imgcurate.dedup.graph import rank
from imgcurate.dedup.semantic.clusters import assign, kmeans


class Rows(NamedTuple):
    """Images that are compared: ``id``, ``hash``, ``key0``... (later ``cluster`` and ``distance``), and their unit vectors."""

    table: pa.Table
    vectors: Any


class Summary(NamedTuple):
    """What the client has to know of a partition."""

    n_rows: int
    n_compared: int
    dimension: int
    encoders: frozenset[identity.Identity] = frozenset()


def prepare(
    part: Any, id_field: str, embedding_field: str, key_fields: Sequence[str], seed: int
) -> tuple[Rows, Summary, np.ndarray, Names]:
    """Return a partition's comparable rows, its summary, and the hashes and ids of all its rows.

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
    keep_freed_memory()
    wanted = [id_field, *key_fields, *(["error"] if "error" in part.columns else [])]
    host = vectors.to_arrow(part[list(dict.fromkeys(wanted))])
    ids = plain_ids(host[id_field], id_field)
    hashes = rank.hash_ids(ids, seed)
    unit, usable = vectors.unit_rows(vectors.to_matrix(part[embedding_field]))
    if "error" in host.column_names:
        usable = usable & pc.is_null(host["error"]).to_numpy()
    keys = {f"key{number}": host[name] for number, name in enumerate(key_fields)}
    table = pa.table({"id": ids, "hash": hashes, **keys})
    encoders = identity.of_column(part[embedding_field])
    summary = Summary(len(ids), int(usable.sum()), unit.shape[1], encoders)
    if not usable.all():
        table, unit = table.filter(pa.array(usable)), vectors.take(unit, usable)
    return Rows(table, unit), summary, hashes, Names(ids, usable)


def prepare_several(
    parts: Sequence[Any], id_field: str, embedding_field: str, key_fields: Sequence[str], seed: int
) -> tuple[Rows, Summary, np.ndarray, Names]:
    """Do as `prepare` does with several partitions at once: small ones cost a task each."""
    prepared = [prepare(part, id_field, embedding_field, key_fields, seed) for part in parts]
    if len(prepared) == 1:
        return prepared[0]
    rows, summaries, hashes, names = zip(*prepared, strict=True)
    used = [part for part in rows if len(part.vectors)] or list(rows[:1])
    dimension = one_dimension([summary for summary in summaries if summary.n_compared], embedding_field)
    xp = vectors.namespace(used[0].vectors)
    table = pa.concat_tables([part.table for part in used], promote_options="permissive").combine_chunks()
    summary = Summary(
        sum(summary.n_rows for summary in summaries),
        sum(summary.n_compared for summary in summaries),
        dimension,
        frozenset(encoder for summary in summaries for encoder in summary.encoders),
    )
    every = pa.concat_tables([pa.table({"id": part.ids}) for part in names], promote_options="permissive")
    return (
        Rows(table, xp.concatenate([part.vectors for part in used])),
        summary,
        np.concatenate(hashes),
        Names(every["id"].combine_chunks(), np.concatenate([part.compared for part in names])),
    )


def one_dimension(summaries: Sequence[Any], embedding_field: str) -> int:
    """Return the length of the vectors; raises where they are of several."""
    found = sorted({summary.dimension for summary in summaries})
    if len(found) > 1:
        raise ValueError(
            f"column {embedding_field!r} holds vectors of several lengths: {found}; one frame holds one encoder"
        )
    return found[0] if found else 0


def stack(rows: Sequence[Rows]) -> Rows:
    """Put the rows of some blocks together."""
    if not rows:
        return Rows(pa.table({"id": pa.nulls(0)}), np.zeros((0, 0), dtype=np.float32))
    xp = vectors.namespace(rows[0].vectors)
    tables = [part.table.select(["id", "hash"]) for part in rows]
    return Rows(pa.concat_tables(tables), xp.concatenate([part.vectors for part in rows]))


def sample(blocks: Sequence[Rows], limit: np.uint64) -> Rows:
    """Return the rows of some blocks whose hash is at most `limit`."""
    chosen = [np.flatnonzero(rows.table["hash"].to_numpy() <= limit) for rows in blocks]
    tables = [rows.table.select(["id", "hash"]).take(pa.array(at)) for rows, at in zip(blocks, chosen, strict=True)]
    xp = vectors.namespace(blocks[0].vectors)
    matrix = xp.concatenate([vectors.take(rows.vectors, at) for rows, at in zip(blocks, chosen, strict=True)])
    return Rows(pa.concat_tables(tables, promote_options="permissive"), matrix)


def count(rows: Rows) -> int:
    """Return the number of rows."""
    return len(rows.vectors)


def draw(samples: Sequence[Rows], size: int) -> np.ndarray:
    """Return the `size` vectors of the lowest hashes, on the host, in the order of their hashes."""
    hashes = np.concatenate([rows.table["hash"].to_numpy() for rows in samples])
    chosen = np.argsort(hashes, kind="stable")[:size]
    place = np.full(len(hashes), -1)
    place[chosen] = np.arange(len(chosen))
    # Piece by piece: they are not held twice beside what is drawn.
    drawn = np.empty((len(chosen), samples[0].vectors.shape[1]), dtype=np.float32)
    ends = np.cumsum([len(rows.vectors) for rows in samples])
    for rows, to in zip(samples, np.split(place, ends[:-1]), strict=True):
        drawn[to[to >= 0]] = vectors.to_numpy(rows.vectors)[to >= 0]
    return drawn


def affordable(samples: Sequence[Rows], size: int, wanted: float, needed: float, share: float) -> float:
    """Return the lowest cosine from `wanted` to `needed` that at most `share` of the pairs of a sample of `size` reach.

    Pairs of equal vectors count once for each: copies have no pairs with one another.
    """
    matrix = np.unique(draw(samples, size), axis=0)
    if len(matrix) < 2:
        return wanted
    dots = matrix @ matrix.T
    dots = dots[np.triu_indices(len(dots), 1)]
    # At least ten pairs of the sample, or chance would decide.
    most = max(int(share * len(dots)), 10)
    if most >= len(dots):
        return wanted
    lowest = float(np.partition(dots, len(dots) - most)[len(dots) - most])
    return float(min(max(lowest, wanted), needed))


def vector_sum(rows: Rows) -> np.ndarray:
    """Return the exact sum of the rows' vectors."""
    return kmeans.vector_sum(rows.vectors)


def mean(sums: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean direction, as a matrix of one centroid."""
    return kmeans.unit_centroids(np.sum(sums, axis=0)[None].astype(np.float64))


def place(
    rows: Rows, offset: int, centroids: np.ndarray, probes: int, least: float, exact: bool
) -> tuple[pa.Table, assign.Placed, np.ndarray]:
    """Return the rows' table with their number, cluster and distance; where they go; and how many each cluster gets."""
    placed = assign.place(rows.vectors, centroids, probes, least, exact)
    table = _placed(rows, offset, placed.labels[:, 0], placed.distance)
    return table, placed, placed.sizes(len(centroids))


def place_in_one(rows: Rows, offset: int, centroid: np.ndarray) -> pa.Table:
    """Return the rows' table as `place` does where there is one cluster."""
    distance = assign.distances(rows.vectors, centroid)
    return _placed(rows, offset, np.zeros(len(distance), dtype=np.int32), distance)


def _placed(rows: Rows, offset: int, cluster: np.ndarray, distance: np.ndarray) -> pa.Table:
    table = rows.table.append_column("row", pa.array(np.arange(offset, offset + len(cluster))))
    table = table.append_column("cluster", pa.array(cluster))
    return table.append_column("distance", pa.array(distance))
