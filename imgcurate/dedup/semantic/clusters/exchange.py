"""What semantic deduplication runs inside a task: rows on their way to the clusters where they are compared, and what is found there.

A bucket is some whole small clusters, or a part of a large one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from imgcurate import vectors
from imgcurate.dedup.graph.found import Found, copies_found
from imgcurate.dedup.semantic.clusters import assign
from imgcurate.dedup.semantic.normalise import Rows

#: Rows of a tile of a large cluster, and how many tasks of similar cost a thread gets.
_SMALLEST_TILE, _LARGEST_TILE = 4096, 8192
_TASKS_PER_THREAD = 4
_BUCKET_BYTES = 256 * 2**20
_HASH_BLOCK = 1024
_NO_ROWS = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


class Members(NamedTuple):
    """Rows in the clusters where they are compared; a row stands once for every cluster it goes to.

    Attributes
    ----------
    vectors : array of shape (n, d), float32
    row : numpy.ndarray of shape (n,)
        The rows' numbers, unique over all blocks.
    key : numpy.ndarray of shape (n,), uint64
        A hash of the vector.
    cluster : numpy.ndarray of shape (n,), int32
    labels : numpy.ndarray of shape (n, p), int32
        The nearest clusters of the row, nearest first; -1 is none.
    short : numpy.ndarray or None
        The screened vectors where they are known.
    ids : pyarrow.ChunkedArray of length n, or None
        Where they are to be written.
    """

    vectors: Any
    row: np.ndarray
    key: np.ndarray
    cluster: np.ndarray
    labels: np.ndarray
    short: Any = None
    ids: pa.ChunkedArray | None = None


class _Places(NamedTuple):
    """Members whose vectors still lie where they came from, so that each is copied once."""

    matrices: Sequence[Any]
    at: np.ndarray
    row: np.ndarray
    key: np.ndarray
    cluster: np.ndarray
    labels: np.ndarray

    def pick(self, chosen: np.ndarray) -> _Places:
        return _Places(self.matrices, *(column[chosen] for column in self[1:]))

    def vectors(self, chosen: np.ndarray | None = None) -> Any:
        """Return the vectors, or those chosen."""
        at = self.at if chosen is None else self.at[chosen]
        if len(self.matrices) == 1:
            return vectors.take(self.matrices[0], at)
        xp = vectors.namespace(self.matrices[0])
        out = xp.empty((len(at), self.matrices[0].shape[1]), dtype=xp.float32)
        start = 0
        for matrix in self.matrices:
            here = np.flatnonzero((at >= start) & (at < start + len(matrix)))
            out[xp.asarray(here)] = vectors.take(matrix, at[here] - start)
            start += len(matrix)
        return out

    def members(self) -> Members:
        return Members(self.vectors(), *self[2:])


class Layout(NamedTuple):
    """Which clusters are compared where: a large cluster is spread over several buckets, small ones share one.

    Attributes
    ----------
    first : numpy.ndarray of shape (k,)
        The first bucket of each cluster.
    parts : numpy.ndarray of shape (k,)
        Over how many buckets, from the first on, a cluster's rows are spread.
    n_buckets : int
    """

    first: np.ndarray
    parts: np.ndarray
    n_buckets: int

    def groups(self) -> list[range]:
        """Return the buckets that are compared with one another: all of one large cluster, or one by itself."""
        runs = {int(first): int(parts) for first, parts in zip(self.first, self.parts, strict=True) if first >= 0}
        return [range(first, first + parts) for first, parts in sorted(runs.items())]


def lay_out(sizes: np.ndarray, threads: int, dimension: int, whole: bool = False) -> Layout:
    """Plan tasks of similar cost: the comparisons inside small clusters together, those of a large one split into tiles.

    Parameters
    ----------
    sizes : numpy.ndarray of shape (k,)
        Rows of each cluster.
    threads : int
        How many tasks run at a time.
    dimension : int
    whole : bool
        Keep large clusters whole too.
    """
    sizes = sizes.astype(np.float64)
    work = sizes**2 / 2
    share = max(work.sum() / (_TASKS_PER_THREAD * threads), _SMALLEST_TILE**2 / 2)
    # A tile of more rows would be a task that holds too many pairs; of fewer, one of too many tasks.
    rows = np.clip((2 * share) ** 0.5, _SMALLEST_TILE, np.maximum(_LARGEST_TILE, sizes / 100))
    parts = np.where((work > share) & (not whole), np.ceil(sizes / rows), 1).astype(np.int64)
    first = np.full(len(sizes), -1, dtype=np.int64)
    large, small = np.flatnonzero(parts > 1), np.flatnonzero((parts == 1) & (sizes > 0))
    first[large] = np.cumsum(parts[large]) - parts[large]
    before = int(parts[large].sum())
    n_small = 0
    if len(small):
        by_work, by_memory = work[small].sum() / share, sizes[small].sum() * dimension * 4 / _BUCKET_BYTES
        n_small = min(len(small), int(np.ceil(max(by_work, by_memory, 1))))
        # Moving a row costs as much as comparing it with some thousand others.
        first[small] = before + pack(work[small] + 1000 * sizes[small], n_small)
    return Layout(first, parts, before + n_small)


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


def everywhere(rows: Rows) -> assign.Placed:
    """Place all rows in one cluster: everything is compared."""
    n = len(rows.vectors)
    nothing = np.zeros(0, dtype=np.int64)
    return assign.Placed(np.zeros((n, 1), np.int32), np.zeros(n, np.float32), (nothing, nothing.astype(np.int32)))


def split(
    group: Sequence[Rows],
    placed: Sequence[assign.Placed],
    offsets: Sequence[int],
    layout: Layout,
    copies: bool = False,
) -> tuple[Any, ...]:
    """Split the rows of some blocks by bucket, copies set apart unless `copies` says to leave them, with the ids of all.

    Returns
    -------
    tuple of `layout.n_buckets` Members and, last, a Found of copies
    """
    every = _places(group, placed, offsets)
    copy, original = _NO_ROWS
    if not copies:
        every, copy, original = without_copies(every)
    bucket = layout.first[every.cluster] + (every.key % layout.parts[every.cluster].astype(np.uint64)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(layout.n_buckets + 1))
    pieces = [every.pick(order[start:stop]).members() for start, stop in pairwise(bounds)]
    if copies:
        ids = pa.concat_tables([rows.table.select(["id"]) for rows in group], promote_options="permissive")["id"]
        at = [ids.take(pa.array(every.at[order[start:stop]])) for start, stop in pairwise(bounds)]
        pieces = [piece._replace(ids=names) for piece, names in zip(pieces, at, strict=True)]
    return (*pieces, copies_found(copy, original))


def together(blocks: Sequence[Rows], offsets: Sequence[int]) -> tuple[Members, Found]:
    """Put the rows of all blocks together as one cluster, copies set apart."""
    every, copy, original = without_copies(_places(blocks, [everywhere(block) for block in blocks], offsets))
    return every.members(), copies_found(copy, original)


def merge(pieces: Sequence[Members]) -> tuple[Members, Found]:
    """Put one bucket's pieces together, cluster by cluster, copies set apart."""
    every, copy, original = without_copies(_stack(pieces))
    return every.members(), copies_found(copy, original)


def gather(pieces: Sequence[Members]) -> Members:
    """Put one bucket's pieces together, cluster by cluster, copies among them."""
    every = _stack(pieces)
    order = np.lexsort((every.row, every.cluster))
    ids = pa.concat_tables([pa.table({"id": piece.ids}) for piece in pieces], promote_options="permissive")["id"]
    return every.pick(order).members()._replace(ids=ids.take(pa.array(order)))


def _places(group: Sequence[Rows], placed: Sequence[assign.Placed], offsets: Sequence[int]) -> _Places:
    columns = []
    start = 0
    for rows, where, offset in zip(group, placed, offsets, strict=True):
        at = np.concatenate([np.arange(len(where.labels)), where.also[0]])
        cluster = np.concatenate([where.labels[:, 0], where.also[1]])
        columns.append((at + start, at + offset, hash_vectors(rows.vectors)[at], cluster, where.labels[at]))
        start += len(rows.vectors)
    return _Places([rows.vectors for rows in group], *(np.concatenate(column) for column in zip(*columns, strict=True)))


def hash_vectors(unit: Any) -> np.ndarray:
    """Hash each vector to 64 bits: equal ones, bit by bit, equally."""
    xp = vectors.namespace(unit)
    n, dimension = unit.shape
    if dimension % 2:
        unit = xp.concatenate([unit, xp.zeros((n, 1), dtype=xp.float32)], axis=1)
    weights = xp.asarray(np.random.default_rng(0).integers(2**63, size=unit.shape[1] // 2, dtype=np.uint64) * 2 + 1)
    words = xp.ascontiguousarray(unit).view(xp.uint64)
    key = xp.empty(n, dtype=xp.uint64)
    for start in range(0, n, _HASH_BLOCK):
        key[start : start + _HASH_BLOCK] = xp.einsum("ij,j->i", words[start : start + _HASH_BLOCK], weights)
    mixed = vectors.to_numpy(key)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return mixed ^ (mixed >> np.uint64(29))


def without_copies(members: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Sort members by cluster and number, and set apart those whose vector is that of an earlier one of their cluster.

    Parameters
    ----------
    members : _Places, of memory or of files

    Returns
    -------
    members : _Places
        The others.
    copy, original : numpy.ndarray
        The numbers of those set apart, and of the ones they equal; each once, in the row's nearest cluster.
    """
    order = np.lexsort((members.row, members.key, members.cluster))
    cluster, key = members.cluster[order], members.key[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (cluster[1:] != cluster[:-1]) | (key[1:] != key[:-1])
    first = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    suspects = np.flatnonzero(~new)
    equal = np.zeros(len(order), dtype=bool)
    for start in range(0, len(suspects), _HASH_BLOCK):
        at = suspects[start : start + _HASH_BLOCK]
        a, b = (members.vectors(positions[at]) for positions in (order, first))
        equal[at] = vectors.to_numpy((a == b).all(axis=1))
    copies = order[equal]
    at_home = members.cluster[copies] == members.labels[copies, 0]
    copy, original = members.row[copies][at_home], members.row[first[equal]][at_home]
    stay = np.ones(len(order), dtype=bool)
    stay[copies] = False
    kept = np.flatnonzero(stay)
    return members.pick(kept[np.lexsort((members.row[kept], members.cluster[kept]))]), copy, original


def _stack(pieces: Sequence[Members]) -> _Places:
    columns = [np.concatenate(column) for column in list(zip(*pieces, strict=True))[1:5]]
    return _Places([piece.vectors for piece in pieces], np.arange(len(columns[0])), *columns)
