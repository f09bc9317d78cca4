"""Comparisons inside a task: the pairs of a bucket, of two tiles of one cluster, and of rows with others, by the rows' numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from dask.system import CPU_COUNT

from imgcurate import vectors
from imgcurate.dedup.graph.found import Found, concatenate
from imgcurate.dedup.semantic import join, normalise, screen, threads
from imgcurate.dedup.semantic.clusters import exchange
from imgcurate.dedup.semantic.clusters.exchange import Members
from imgcurate.dedup.semantic.normalise import Rows


def plan(bucket: Members, n_buckets: int, least: float) -> screen.Screen:
    """Choose how the rows of a large cluster are screened, by one of its buckets."""
    dtype = screen.choose_dtype(vectors.device(bucket.vectors))
    return screen.plan(bucket.vectors, len(bucket.row) * n_buckets, least, dtype)


def shorten(bucket: Members, chosen: screen.Screen) -> Members:
    """Screen the rows of a bucket once, for all the tiles that it takes part in."""
    return bucket._replace(short=screen.to_bits(screen.apply(bucket.vectors, chosen))) if len(bucket.row) else bucket


def compare_inside(bucket: Members, chosen: screen.Screen | None, least: float, exact: bool) -> Found:
    """Find the pairs inside each cluster of a bucket; `chosen` where it is part of a large one and has been shortened."""
    if chosen is not None and bucket.short is not None:
        short = screen.from_bits(bucket.short, chosen)
        pairs = join.compare(bucket.vectors, None, chosen, least, (short, short))
        return concatenate([in_numbers(bucket, bucket, pairs, exact)])
    bounds = np.flatnonzero(np.diff(bucket.cluster, prepend=-1, append=-1)).tolist()
    found = []
    for start, stop in pairwise(bounds):
        part = _slice(bucket, start, stop)
        found.append(in_numbers(part, part, join.pairs_within(part.vectors, least), exact))
    return concatenate(found)


def compare_all(
    blocks: Sequence[Rows], offsets: Sequence[int], centroids: np.ndarray | None, least: float
) -> tuple[Any, ...]:
    """Find the pairs of all rows, with all cores of the machine: below some size the way to other workers takes longer than the comparison.

    Returns
    -------
    tuple of a pyarrow.Table a block, as `normalise.place` gives it for one cluster, and, last, the Found
    """
    if centroids is None:
        centroids = normalise.mean(threads.deal(normalise.vector_sum, blocks, CPU_COUNT))
    center = centroids

    def place(at: int) -> Any:
        return normalise.place_in_one(blocks[at], offsets[at], center)

    tables = threads.deal(place, range(len(blocks)), CPU_COUNT)
    members, copies = exchange.together(blocks, offsets)
    unit = members.vectors
    chosen = screen.plan(unit, len(unit), least, screen.choose_dtype(vectors.device(unit)))
    pairs = join.compare(unit, None, chosen, least, n_threads=CPU_COUNT)
    return (*tables, concatenate([copies, in_numbers(members, members, pairs, exact=False)]))


def compare_across(a: Members, b: Members, chosen: screen.Screen, least: float, exact: bool) -> Found:
    """Find the pairs of one row of each of two buckets of the same cluster."""
    if not len(a.row) or not len(b.row):
        return concatenate([])
    shorts = (screen.from_bits(a.short, chosen), screen.from_bits(b.short, chosen))
    return in_numbers(a, b, join.compare(a.vectors, b.vectors, chosen, least, shorts), exact)


def compare_with_others(rows: Rows, offset: int, others: Rows, others_offset: int, least: float) -> Found:
    """Find the pairs of one of some blocks' rows and one of others."""
    pairs = join.pairs_between(rows.vectors, others.vectors, least)
    left, right = pairs.left.astype(np.int64) + offset, pairs.right.astype(np.int64) + others_offset
    return concatenate([])._replace(left=left, right=right, similarity=pairs.similarity)


def compare_with_cluster(bucket: Members, cluster: int, others: Any, others_offset: int, least: float) -> Found:
    """Find the pairs of one of a bucket's rows in a cluster and one of others in the same."""
    start, stop = np.searchsorted(bucket.cluster, [cluster, cluster + 1])
    pairs = join.pairs_between(bucket.vectors[start:stop], others, least)
    left, right = bucket.row[start:stop][pairs.left], pairs.right.astype(np.int64) + others_offset
    return concatenate([])._replace(left=left, right=right, similarity=pairs.similarity)


def in_numbers(a: Members, b: Members, pairs: join.Pairs, exact: bool) -> Found:
    """Name pairs by their rows' numbers; one that meets in several clusters is named in the lowest of them alone."""
    cluster, left, right = a.cluster[pairs.left], a.labels[pairs.left], b.labels[pairs.right]
    if exact or left.shape[1] == 1:
        here = cluster == np.minimum(left[:, 0], right[:, 0])
    else:
        shared = (left[:, :, None] == right[:, None, :]).any(axis=2) & (left >= 0)
        here = cluster == np.where(shared, left, np.iinfo(np.int32).max).min(axis=1)
    return concatenate([])._replace(
        left=a.row[pairs.left[here]], right=b.row[pairs.right[here]], similarity=pairs.similarity[here]
    )


def _slice(members: Members, start: int, stop: int) -> Members:
    return Members(*(column[start:stop] for column in members[:5]))
