"""The nearest of each row of a bucket, as far as they are known: what a comparison with another bucket makes of them.

A bucket holds whole clusters: rows whose nearest centroid that is. Each of them is compared with the rows of the few clusters that are nearest to it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imgcurate import vectors
from imgcurate.dedup.semantic import screen, threads
from imgcurate.dedup.semantic.clusters.exchange import Members
from imgcurate.nearest import compare
from imgcurate.nearest.compare import Near, Short

#: So many rows are compared bit by bit at a time.
_EQUALS = 1024


class Lists(NamedTuple):
    """The nearest rows of each row of a bucket, by row, the nearest first, of equally near ones that of the lowest id.

    Attributes
    ----------
    row : numpy.ndarray of shape (p,), int64
        Positions in the bucket.
    similarity : numpy.ndarray of shape (p,), float32
    ids : pyarrow.Array of length p
    """

    row: np.ndarray
    similarity: np.ndarray
    ids: Any

    def floor(self, n: int, k: int) -> np.ndarray:
        """Return for each of n rows how near a row must be to be among the `k` nearest; minus infinity where fewer are known."""
        floor = np.full(n, -np.inf, dtype=np.float32)
        last = np.flatnonzero(np.diff(self.row, append=-1))
        full = last[np.diff(last, prepend=-1) == k]
        floor[self.row[full]] = self.similarity[full]
        return floor


class _Work(NamedTuple):
    """Rows of a bucket, and a run of rows of another one that they are compared with."""

    rows: np.ndarray
    start: int
    stop: int


def ready(bucket: Members) -> Members:
    """Return a bucket with ids by cluster, and there by id, so that of equally near rows the first is that of the lowest id."""
    keys = pa.table({"cluster": bucket.cluster, "id": bucket.ids})
    order = pc.sort_indices(keys, sort_keys=[("cluster", "ascending"), ("id", "ascending")]).to_numpy().astype(np.int64)
    matrix = bucket.vectors.only(order) if hasattr(bucket.vectors, "only") else vectors.take(bucket.vectors, order)
    short = None if bucket.short is None else bucket.short[order]
    ids = keys["id"].take(pa.array(order)).combine_chunks()
    rows, key, cluster, labels = (column[order] for column in (bucket.row, bucket.key, bucket.cluster, bucket.labels))
    return Members(matrix, rows, key, cluster, labels, short, ids)


def extend(here: Members, there: Members, known: Lists | None, k: int, device: str) -> Lists:
    """Return the nearest rows of those of `here` among those that are `known` and those of `there`, both of which are ready.

    Parameters
    ----------
    here, there : Members
    known : Lists, optional
    k : int
    device : {"cpu", "cuda"}
        Where products are taken.
    """
    assert there.ids is not None
    known = known or Lists(np.zeros(0, np.int64), np.zeros(0, np.float32), there.ids[:0])
    near = _without_surplus(there, k)
    home, others = _plan(here, there.cluster[near])
    if not home and not others:
        return known
    left = _shortened(here, device)
    right = left if here is there else _shortened(there, device)
    # What is found at home says how near others must be.
    for work in (home, others):
        if work:
            found = _compare(here, there, near, work, known.floor(len(here.row), k), k, left, right.only(near), device)
            known = _merge(here, there, known, k, found)
    return known


def finish(here: Members, known: Lists) -> pa.Table:
    """Return each row of a bucket with its nearest: ``id``, ``row``, ``neighbours`` and ``similarities``."""
    bounds = pa.array(np.searchsorted(known.row, np.arange(len(here.row) + 1)).astype(np.int32))
    return pa.table(
        {
            "id": here.ids,
            "row": here.row,
            "neighbours": pa.ListArray.from_arrays(bounds, known.ids),
            "similarities": pa.ListArray.from_arrays(bounds, pa.array(known.similarity)),
        }
    )


def _without_surplus(there: Members, k: int) -> np.ndarray:
    """Return the positions of the rows that may be near another: of more than ``k + 1`` of a cluster that are equal bit by bit those of the lowest ids.

    So many are as near to any row, and are named before the others.
    """
    order = np.lexsort((there.key, there.cluster))
    new = (np.diff(there.key[order], prepend=0) != 0) | (np.diff(there.cluster[order], prepend=-1) != 0)
    new[:1] = True
    starts = np.flatnonzero(new)
    first = np.repeat(starts, np.diff(starts, append=len(order)))
    surplus = np.flatnonzero(np.arange(len(order)) - first > k)
    stay = np.ones(len(order), dtype=bool)
    for at in (surplus[low : low + _EQUALS] for low in range(0, len(surplus), _EQUALS)):
        a, b = (compare.take(there.vectors, order[where]) for where in (at, first[at]))
        stay[order[at]] = ~vectors.to_numpy((a == b).all(axis=1))
    return np.flatnonzero(stay)


def _plan(here: Members, of: np.ndarray) -> tuple[list[_Work], list[_Work]]:
    """Return what is to be compared with rows of some clusters: those whose own it is, and those that are near to it."""
    bounds = np.flatnonzero(np.diff(of, prepend=-1, append=-1))
    clusters = of[bounds[:-1]]
    plans: tuple[list[_Work], list[_Work]] = [], []
    for plan, labels in zip(plans, (here.labels[:, :1], here.labels[:, 1:]), strict=True):
        row, column = np.nonzero(np.isin(labels, clusters))
        number = np.searchsorted(clusters, labels[row, column])
        order = np.argsort(number, kind="stable")
        ends = np.searchsorted(number[order], np.arange(len(clusters) + 1))
        for at, (first, last) in enumerate(pairwise(ends.tolist())):
            start, stop = int(bounds[at]), int(bounds[at + 1])
            height = compare.TILE[vectors.device(here.vectors)][0]
            for low in range(first, last, height):
                plan.append(_Work(row[order[low : min(low + height, last)]], start, stop))
        plan.sort(key=lambda work: -len(work.rows) * (work.stop - work.start))
    return plans


def _compare(
    here: Members,
    there: Members,
    near: np.ndarray,
    work: list[_Work],
    floor: np.ndarray,
    k: int,
    left: Short,
    right: Short,
    device: str,
) -> Near:
    """Return the nearest of each row in each cluster that it is compared with, but for those that are too far."""

    def compare_run(part: _Work) -> Near:
        # A row itself may be among those that pass.
        row, other = compare.passing(
            left.only(part.rows), right.only(slice(part.start, part.stop)), k + 1, floor[part.rows]
        )
        row, other = part.rows[row], near[other + part.start]
        different = here.row[row] != there.row[other]
        found = compare.measured(here.vectors, there.vectors, row[different], other[different])
        return compare.settle(here.vectors, there.vectors, found, k, floor)

    found = threads.deal(compare_run, work, None if device == "cpu" else 1)
    return Near(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def _merge(here: Members, there: Members, known: Lists, k: int, found: Near) -> Lists:
    if not len(found.row):
        return known
    assert there.ids is not None
    ids = pa.concat_arrays([known.ids, there.ids.take(pa.array(found.other))])
    row, similarity = np.concatenate([known.row, found.row]), np.concatenate([known.similarity, found.similarity])
    order = by_id_where_equal(row, similarity, ids)
    row, similarity = row[order], similarity[order]
    chosen = compare.best(row, similarity, k)
    return Lists(row[chosen], similarity[chosen], ids.take(pa.array(order[chosen])))


def by_id_where_equal(row: np.ndarray, similarity: np.ndarray, ids: pa.Array) -> np.ndarray:
    """Return positions by row, the most similar first, of equally similar ones by id; ids are looked at only there."""
    order = np.lexsort((-similarity, row))
    by_row, by_similarity = row[order], similarity[order]
    equal = (by_row[1:] == by_row[:-1]) & (by_similarity[1:] == by_similarity[:-1])
    tied = np.flatnonzero(np.append(equal, False) | np.insert(equal, 0, False))
    if not len(tied):
        return order
    rank = np.zeros(len(order), dtype=np.int64)
    rank[tied] = pc.rank(ids.take(pa.array(order[tied])), tiebreaker="dense").to_numpy()
    return order[np.lexsort((rank, -by_similarity, by_row))]


def _shortened(bucket: Members, device: str) -> Short:
    if bucket.short is None:
        return compare.shorten(bucket.vectors)
    whole = screen.Screen("bfloat16")
    short = screen.from_bits(np.ascontiguousarray(bucket.short), whole).to(device)
    # Where products in bfloat16 are slow, float32 of the same values: the bound holds for both.
    short = short.float() if screen.choose_dtype(device) == "float32" else short
    return Short(short, whole.margin(short.shape[1]))
