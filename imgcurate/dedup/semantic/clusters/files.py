"""The exchange through files: rows sorted by cluster, in bfloat16, so that each bucket is one run of every file.

Of each block of rows there are ``assigned/<key>.arrow`` (each row's cluster and distance), ``placed/<key>.bf16`` (its vectors, once for every cluster that they go to, by
cluster and hash) and ``placed/<key>.arrow`` (cluster, hash, row and labels of each). Half the bytes of the vectors for every cluster they go to: the screen needs no
more, and the few pairs that pass it are computed from the vectors in full.

Growth, for n rows in b blocks, k clusters and m buckets: placing n k d operations, of many clusters 10 n sqrt(k) d; n probes / 2 vectors written and read; b reads a bucket; memory of a task one block,
one bucket, or two tiles of a cluster that is larger than a bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from imgcurate import storage
from imgcurate.dedup.graph import nodes
from imgcurate.dedup.graph.found import concatenate, copies_found, read_found, write_found
from imgcurate.dedup.semantic import join, normalise, screen
from imgcurate.dedup.semantic.clusters import assign, exchange
from imgcurate.dedup.semantic.clusters.compare import in_numbers
from imgcurate.dedup.semantic.clusters.exchange import Members
from imgcurate.dedup.semantic.screen import Screen
from imgcurate.dedup.semantic.store import RowVectors, StoredRows, VectorStore
from imgcurate.dedup.work.mapped import map_matrix, map_table, write_table

#: A bucket is at most so large, in bfloat16, and a tile of a cluster that is larger.
_BUCKET_BYTES = 96 << 20
_TILE_BYTES = 32 << 20
_SAMPLE_ROWS = 2048
_WHOLE = Screen("bfloat16")


@dataclass(frozen=True)
class AssignedRows:
    """A block of rows with their numbers and clusters, mapped where it is looked at.

    Attributes
    ----------
    rows : StoredRows
    first : int
        The number of the first row.
    path : str
        Of the file of their clusters.
    """

    rows: StoredRows
    first: int
    path: str

    @property
    def table(self) -> pa.Table:
        """``id``, ``hash``, ``key0``..., ``row``, ``cluster`` and ``distance``."""
        table, assigned = self.rows.table, map_table(self.path)
        table = table.append_column("row", pa.array(np.arange(self.first, self.first + len(table))))
        return table.append_column("cluster", assigned["cluster"]).append_column("distance", assigned["distance"])


class Exchanged(NamedTuple):
    """All rows by cluster.

    Attributes
    ----------
    paths : tuple of str
        Of the blocks' files, without extension.
    vectors : VectorStore
    """

    paths: tuple[str, ...]
    vectors: VectorStore


class Bucket(NamedTuple):
    """A run of clusters; where it is one that is too large, `tiles` says into how many parts it is cut.

    Attributes
    ----------
    low, high : int
        The first cluster, and the one after the last.
    tiles : int
    """

    low: int
    high: int
    tiles: int


def assign_block(
    rows: StoredRows,
    first: int,
    centroids: str,
    probes: int,
    least: float,
    exact: bool,
    assigned: str,
    placed: str | None,
    durable: bool,
) -> None:
    """Place a block's rows, write their clusters, and unless everything is compared their vectors by cluster."""
    where = assign.place(rows.vectors, np.load(centroids), probes, least, exact)
    table = pa.table({"cluster": pa.array(where.labels[:, 0]), "distance": pa.array(where.distance)})
    write_table(table, assigned, durable)
    # At last, because a block is whole where its vectors are: who dies between the two has written nothing that counts.
    if placed is not None:
        write_placed(rows, first, where, placed, durable)


def place_sizes(rows: StoredRows, centroids: str, probes: int, least: float, exact: bool) -> np.ndarray:
    """Return how many of a block's rows each cluster would get."""
    given = np.load(centroids)
    return assign.place(rows.vectors, given, probes, least, exact).sizes(len(given))


def write_placed(rows: StoredRows, first: int, where: assign.Placed, path: str, durable: bool) -> None:
    """Write a block's vectors by cluster, and there by hash."""
    matrix = rows.vectors
    at = np.concatenate([np.arange(len(where.labels)), where.also[0]])
    cluster = np.concatenate([where.labels[:, 0], where.also[1]])
    key = exchange.hash_vectors(matrix)[at]
    order = np.lexsort((key, cluster))
    at, cluster, key = at[order], cluster[order], key[order]
    with storage.open_atomic(f"{path}.bf16", durable=durable) as file:
        whole = screen.to_bits(screen.apply(matrix, _WHOLE))
        for start in range(0, len(at), 1 << 14):
            file.write(np.ascontiguousarray(whole[at[start : start + (1 << 14)]]).data)
    columns = {"cluster": cluster, "key": key, "row": at + first, **_columns_of(where.labels[at])}
    write_table(pa.table(columns), f"{path}.arrow", durable)


def everywhere(rows: StoredRows, first: int, path: str, durable: bool) -> None:
    """Write a block's rows as of one cluster: everything is compared."""
    write_placed(rows, first, exchange.everywhere(normalise.Rows(pa.table({}), rows.vectors)), path, durable)


def count(paths: Sequence[str], n_clusters: int) -> np.ndarray:
    """Return how many rows each cluster has in some blocks."""
    sizes = np.zeros(n_clusters, dtype=np.int64)
    for path in paths:
        sizes += np.bincount(map_table(f"{path}.arrow")["cluster"].to_numpy(), minlength=n_clusters)
    return sizes


def total(sizes: Sequence[np.ndarray]) -> np.ndarray:
    """Add up what `count` returns."""
    return np.sum(sizes, axis=0)


def lay_out(sizes: np.ndarray, threads: int, dimension: int) -> list[Bucket]:
    """Cut the clusters, in order, into buckets of bounded memory and similar work.

    Examples
    --------
    >>> lay_out(np.array([900, 0, 800, 90_000]), 2, 512)
    [Bucket(low=0, high=3, tiles=1), Bucket(low=3, high=4, tiles=3)]
    """
    most = _BUCKET_BYTES // (2 * dimension)
    tile = max(_TILE_BYTES // (2 * dimension), 1)
    share = max(float(np.square(sizes.astype(np.float64)).sum()) / (8 * threads), 4096.0**2)
    buckets: list[Bucket] = []
    low, rows, work = 0, 0, 0.0
    for cluster, size in enumerate(sizes.tolist()):
        alone = size > most or size * size > 2 * share
        if rows and (alone or rows + size > most or work + size * size > share):
            buckets.append(Bucket(low, cluster, 1))
            low, rows, work = cluster, 0, 0.0
        if alone:
            buckets.append(Bucket(cluster, cluster + 1, max(1, -(-size // tile))))
            low = cluster + 1
            continue
        rows, work = rows + size, work + size * size
    if rows:
        buckets.append(Bucket(low, len(sizes), 1))
    return buckets


def compare_bucket(
    exchanged: Exchanged, bucket: Bucket, least: float, exact: bool, device: str, path: str, durable: bool
) -> tuple[int, int]:
    """Find the pairs inside the clusters of a bucket, and write them; returns how many pairs and copies there are."""
    places, copy, original = exchange.without_copies(_read(exchanged, bucket.low, bucket.high))
    members = places.members()
    short = _on_device(members.short, device)
    bounds = np.flatnonzero(np.diff(members.cluster, prepend=-1, append=-1)).tolist()
    found = [copies_found(copy, original)]
    for start, stop in pairwise(bounds):
        part = _slice(members, start, stop)
        shorts = (short[start:stop], short[start:stop])
        found.append(in_numbers(part, part, join.compare(part.vectors, None, _WHOLE, least, shorts), exact))
    return write_found(concatenate(found), path, durable)


def plan_cluster(exchanged: Exchanged, cluster: int, size: int, least: float, device: str) -> Screen:
    """Choose how the rows of a cluster that is cut into tiles are screened, by those of the lowest hashes: a random sample."""
    keys, rows = [], []
    for path in exchanged.paths:
        table = map_table(f"{path}.arrow")
        start, stop = np.searchsorted(table["cluster"].to_numpy(), [cluster, cluster + 1])
        stop = min(stop, start + _SAMPLE_ROWS)
        keys.append(table["key"].to_numpy()[start:stop])
        rows.append(table["row"].to_numpy()[start:stop])
    chosen = np.concatenate(rows)[np.argsort(np.concatenate(keys), kind="stable")[:_SAMPLE_ROWS]]
    return screen.plan(exchanged.vectors.take(chosen), size, least, screen.choose_dtype(device))


def write_tile(exchanged: Exchanged, bucket: Bucket, tile: int, chosen: Screen, path: str, durable: bool) -> None:
    """Write the shortened vectors of one tile of a cluster; its copies are set apart, in ``<path>.npz``."""
    low, high = (2**64 * at // bucket.tiles for at in (tile, tile + 1))
    places = _read(exchanged, bucket.low, bucket.high, (low, high))
    places, copy, original = exchange.without_copies(places)
    with storage.open_atomic(f"{path}.short", durable=durable) as file:
        for start in range(0, len(places.row), 1 << 14):
            matrix = exchanged.vectors.take(places.row[start : start + (1 << 14)])
            file.write(np.ascontiguousarray(screen.to_bits(screen.apply(matrix, chosen))).data)
    write_found(copies_found(copy, original), f"{path}.npz", durable)
    write_table(pa.table({"row": places.row, **_columns_of(places.labels)}), f"{path}.arrow", durable)


def compare_tiles(
    exchanged: Exchanged,
    cluster: int,
    a: str,
    b: str,
    chosen: Screen,
    least: float,
    exact: bool,
    device: str,
    path: str,
    durable: bool,
) -> tuple[int, int]:
    """Find the pairs of one row of each of two tiles of a cluster, or inside one, and write them."""
    left = _read_tile(exchanged, cluster, a, chosen)
    right = left if a == b else _read_tile(exchanged, cluster, b, chosen)
    found = read_found(f"{a}.npz") if a == b else concatenate([])
    if len(left.row) and len(right.row):
        shorts = _typed(left.short, chosen, device), _typed(right.short, chosen, device)
        others = None if a == b else right.vectors
        pairs = in_numbers(left, right, join.compare(left.vectors, others, chosen, least, shorts), exact)
        found = concatenate([found, pairs])
    return write_found(found, path, durable)


class _Places(NamedTuple):
    """Rows in the clusters where they are compared, whose vectors lie in files: the one of entry ``file[i]`` at ``at[i]``."""

    exchanged: Exchanged
    file: np.ndarray
    at: np.ndarray
    row: np.ndarray
    key: np.ndarray
    cluster: np.ndarray
    labels: np.ndarray

    def pick(self, chosen: np.ndarray) -> _Places:
        return _Places(self.exchanged, *(column[chosen] for column in self[1:]))

    def vectors(self, chosen: np.ndarray) -> np.ndarray:
        return self.exchanged.vectors.take(self.row[chosen])

    def members(self) -> Members:
        store = self.exchanged.vectors
        short = np.empty((len(self.row), store.dimension), dtype=np.int16)
        for number in np.unique(self.file):
            here = np.flatnonzero(self.file == number)
            whole = map_matrix(f"{self.exchanged.paths[number]}.bf16", store.dimension, "int16")
            short[here] = whole[self.at[here]]
        return Members(RowVectors(store, self.row), self.row, self.key, self.cluster, self.labels, short)


def _read(exchanged: Exchanged, low: int, high: int, keys: tuple[int, int] = (0, 2**64)) -> _Places:
    """Read which rows some clusters have, or one those whose hashes lie in a range."""
    columns: list[list[np.ndarray]] = [[], [], [], [], [], []]
    for number, path in enumerate(exchanged.paths):
        table = map_table(f"{path}.arrow")
        cluster, key = table["cluster"].to_numpy(), table["key"].to_numpy()
        start, stop = np.searchsorted(cluster, [low, high])
        if keys != (0, 2**64):
            ends = [np.uint64(min(bound, 2**64 - 1)) for bound in keys]
            before = np.searchsorted(key[start:stop], ends)
            start, stop = start + before[0], stop if keys[1] == 2**64 else start + before[1]
        table = table.slice(start, stop - start)
        entries = np.full(stop - start, number), np.arange(start, stop)
        columns_here = [table[name].to_numpy() for name in ("row", "key", "cluster")]
        for column, values in zip(columns, (*entries, *columns_here, _labels(table)), strict=True):
            column.append(np.array(values))
    return _Places(exchanged, *(np.concatenate(column) for column in columns))


@dataclass(frozen=True)
class StoredBucket:
    """Some clusters, read where they are looked at.

    Attributes
    ----------
    exchanged : Exchanged
    tables : tuple of AssignedRows, or of anything with a table of ``id`` and ``row``
        Of all rows.
    low, high : int
    """

    exchanged: Exchanged
    tables: tuple[Any, ...]
    low: int
    high: int

    def members(self) -> Members:
        """Return the rows, cluster by cluster; the vectors are read from the store."""
        places = _read(self.exchanged, self.low, self.high)
        places = places.pick(np.lexsort((places.row, places.cluster)))
        vectors = RowVectors(self.exchanged.vectors, places.row)
        return Members(vectors, places.row, places.key, places.cluster, places.labels)

    def members_with_ids(self) -> Members:
        """Return the rows as `members` does, with their ids."""
        return self._named(self.members())

    def screened(self) -> Members:
        """Return the rows with their ids and their vectors in bfloat16, in any order."""
        return self._named(_read(self.exchanged, self.low, self.high).members())

    def _named(self, members: Members) -> Members:
        rows, where = np.unique(members.row, return_inverse=True)
        return members._replace(ids=nodes.take(self.tables, rows)["id"].take(pa.array(where)))

    def only(self, cluster: int) -> StoredBucket:
        """Return one of the clusters."""
        return StoredBucket(self.exchanged, self.tables, cluster, cluster + 1)


def _read_tile(exchanged: Exchanged, cluster: int, path: str, chosen: Screen) -> Members:
    table = map_table(f"{path}.arrow")
    row = table["row"].to_numpy()
    bits = "int32" if chosen.dtype == "float32" else "int16"
    short = map_matrix(f"{path}.short", chosen.width(exchanged.vectors.dimension), bits)
    key, clusters = np.zeros(0, np.uint64), np.full(len(row), cluster)
    return Members(RowVectors(exchanged.vectors, row), row, key, clusters, _labels(table), short)


def _columns_of(labels: np.ndarray) -> dict[str, np.ndarray]:
    return {f"label{number}": column for number, column in enumerate(labels.T)}


def _labels(table: pa.Table) -> np.ndarray:
    names = [name for name in table.column_names if name.startswith("label")]
    return np.stack([table[name].to_numpy() for name in names], axis=1)


def _slice(members: Members, start: int, stop: int) -> Members:
    at = slice(start, stop)
    return Members(members.vectors.only(at), *(column[at] for column in members[1:5]))


def _on_device(bits: np.ndarray, device: str) -> Any:
    """Return vectors in bfloat16, or where products of that are slow as float32 of the same values: the bound of the screen holds for both."""
    whole = _typed(bits, _WHOLE, device)
    return whole.float() if screen.choose_dtype(device) == "float32" else whole


def _typed(bits: np.ndarray, chosen: Screen, device: str) -> Any:
    return screen.from_bits(np.ascontiguousarray(bits), chosen).to(device)
