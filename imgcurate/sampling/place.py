"""What a search for representatives runs inside a task: rows are placed in groups, brought together by group, and chosen from.

A group is a cluster, or a part of one that is larger than a task compares: parts are cut by the hash of the ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imgcurate import vectors
from imgcurate.dedup.semantic.clusters import assign
from imgcurate.dedup.semantic.store import VectorStore
from imgcurate.dedup.work.mapped import map_table, write_table
from imgcurate.sampling.farthest import farthest_first

_BEST = [("cluster", "ascending"), ("weight", "descending"), ("hash", "ascending"), ("id", "ascending")]


class Piece(NamedTuple):
    """Some rows of some groups.

    Attributes
    ----------
    table : pyarrow.Table of n rows
        ``id``, ``hash``, ``row`` (number), ``weight`` and ``cluster``.
    vectors : array of shape (n, d), float32, or None
        Where they are needed and do not lie in files.
    """

    table: pa.Table
    vectors: Any


def place(rows: Any, first: int, centroids: np.ndarray | None) -> tuple[pa.Table, np.ndarray]:
    """Return a block's table, and how many rows each cluster has."""
    n = len(rows.vectors)
    cluster = np.zeros(n, np.int32) if centroids is None else assign.place(rows.vectors, centroids).labels[:, 0]
    names = rows.table.column_names
    weight = rows.table["key0"].cast(pa.float64(), safe=False) if "key0" in names else pa.array(np.zeros(n))
    # What is missing is lighter than everything.
    weight = pc.fill_null(pc.if_else(pc.is_nan(weight), -np.inf, weight), -np.inf)
    columns = {"row": np.arange(first, first + n), "weight": weight, "cluster": cluster}
    table = pa.table({"id": rows.table["id"], "hash": rows.table["hash"], **columns})
    return table, np.bincount(cluster, minlength=1 if centroids is None else len(centroids))


def regroup(table: pa.Table, parts: np.ndarray) -> tuple[pa.Table, np.ndarray]:
    """Return a table whose ``cluster`` is the group of each row: clusters are cut into `parts`, numbered through. And how many rows each has."""
    cluster = table["cluster"].to_numpy()
    first = np.cumsum(parts) - parts
    part = (table["hash"].to_numpy() >> np.uint64(32)) * parts[cluster].astype(np.uint64) >> np.uint64(32)
    group = (first[cluster] + part.astype(np.int64)).astype(np.int32)
    at = table.schema.get_field_index("cluster")
    return table.set_column(at, "cluster", pa.array(group)), np.bincount(group, minlength=int(parts.sum()))


def split(tables: Sequence[pa.Table], blocks: Sequence[Any] | None, bounds: Sequence[int]) -> list[Piece]:
    """Split the rows of some blocks by runs of groups; with their vectors where the blocks are given."""
    table = pa.concat_tables(tables, promote_options="permissive")
    group = table["cluster"].to_numpy()
    order = np.argsort(group, kind="stable")
    cuts = np.searchsorted(group[order], bounds)
    matrix = None if blocks is None else _stacked([rows.vectors for rows in blocks])
    pieces = []
    for start, stop in pairwise(cuts):
        here = order[start:stop]
        pieces.append(Piece(table.take(pa.array(here)), None if matrix is None else vectors.take(matrix, here)))
    return pieces


def write_placed(rows: Any, first: int, centroids: np.ndarray | None, path: str, durable: bool) -> np.ndarray:
    """Write a block's table by cluster, and return how many rows each cluster has."""
    table, sizes = place(rows, first, centroids)
    write_table(table.take(pc.sort_indices(table["cluster"])), f"{path}.arrow", durable)
    return sizes


def count_groups(path: str, parts: np.ndarray) -> np.ndarray:
    """Return how many rows of a block each group has."""
    return regroup(map_table(f"{path}.arrow"), parts)[1]


def read(paths: Sequence[str], store: VectorStore | None, parts: np.ndarray, low: int, high: int) -> Piece:
    """Read a run of groups from the files of all blocks; vectors, where there is a store, are read from it when they are looked at."""
    clusters = np.searchsorted(np.cumsum(parts), [low, high - 1], "right")
    tables = []
    for path in paths:
        table = map_table(f"{path}.arrow")
        start, stop = np.searchsorted(table["cluster"].to_numpy(), [clusters[0], clusters[1] + 1])
        table = regroup(table.slice(start, stop - start), parts)[0]
        group = table["cluster"].to_numpy()
        tables.append(table.filter(pa.array((group >= low) & (group < high))))
    return Piece(pa.concat_tables(tables, promote_options="permissive"), store)


def choose(pieces: Sequence[Piece], quotas: np.ndarray, low: int, weighted: bool) -> pa.Table:
    """Choose so many rows of each group of a run that begins with group `low`.

    Returns
    -------
    pyarrow.Table
        ``id``, ``cluster`` (the group) and ``rank``, 0 for the row of a group that was chosen first.
    """
    table = pa.concat_tables([piece.table for piece in pieces], promote_options="permissive").combine_chunks()
    kept = [piece.vectors for piece in pieces if piece.vectors is not None]
    keys = [("cluster", "ascending"), ("id", "ascending")] if kept else _BEST
    order = pc.sort_indices(table, sort_keys=keys).to_numpy().astype(np.int64)
    group, weight = table["cluster"].to_numpy()[order], table["weight"].to_numpy()[order]
    bounds = np.searchsorted(group, np.arange(low, low + len(quotas) + 1))
    chosen, ranks = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    matrix = None
    if kept and not isinstance(kept[0], VectorStore):
        matrix = _stacked(kept)
    for number in np.flatnonzero(quotas):
        here, quota = order[bounds[number] : bounds[number + 1]], int(quotas[number])
        if kept:
            rows = kept[0].take(table["row"].to_numpy()[here]) if matrix is None else vectors.take(matrix, here)
            own = weight[bounds[number] : bounds[number + 1]] if weighted else None
            here = here[farthest_first(rows, quota, own)]
        chosen.append(here[:quota])
        ranks.append(np.arange(quota))
    taken = table.take(pa.array(np.concatenate(chosen)))
    return pa.table({"id": taken["id"], "cluster": taken["cluster"], "rank": pa.array(np.concatenate(ranks))})


def _stacked(matrices: Sequence[Any]) -> Any:
    return matrices[0] if len(matrices) == 1 else vectors.namespace(matrices[0]).concatenate(matrices)
