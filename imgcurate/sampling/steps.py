"""The steps of a search for representatives, after the rows are there: clusters, shares, exchange, choice; through memory or through files.

Growth, for n rows, k clusters and groups of at most m: placing n k d operations, farthest-first n m d; memory of a task some groups, of the client some
numbers a cluster. Vectors move only for farthest-first, each once; of other rows a hundred bytes do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import dask
import numpy as np
from dask.delayed import Delayed

from imgcurate import fingerprint
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic.clusters import files, kmeans, sample
from imgcurate.dedup.semantic.store import VectorStore
from imgcurate.dedup.work.waves import threads, wait, written
from imgcurate.sampling import place, quotas, tree

#: For farthest-first: of a cluster about so many images. Of more than so many parts are made, because the products of all rows of a group are held.
_IMAGES_PER_CLUSTER, _LARGEST_GROUP = 1000, 2048
#: A task brings together about so many bytes, and a row takes so many beside its vector.
_BUCKET_BYTES, _ROW_BYTES = 128 << 20, 100

#: Of the sizes of some groups: how many rows each gives.
Shares = Callable[[np.ndarray], np.ndarray]


def cover(
    rows: frames.Frame, n: int, levels: list[int], seed: int, weighted: bool, gpu: bool
) -> tuple[list[Delayed], int]:
    """Choose `n` rows farthest-first inside clusters: tables of what was chosen, and from how many groups."""
    k = 1
    if rows.n_compared > _LARGEST_GROUP:
        k = max(2, min(rows.n_compared // _IMAGES_PER_CLUSTER, kmeans.most_clusters(rows.dimension)))
    k = min(*levels, rows.n_compared) if levels else k
    centers = sample.fit(rows, k, seed, gpu).persist() if k > 1 else None
    choice = _Choice(rows, centers, k, fingerprint.of("farthest-first", k, seed), True, weighted)
    return choice.make(lambda sizes: quotas.in_proportion(sizes, n))


def balance(
    rows: frames.Frame, n: int, levels: list[int], seed: int, weighted: bool, gpu: bool
) -> tuple[list[Delayed], int]:
    """Choose `n` rows down a tree of clusters, which is fitted on the CPU: tables of what was chosen, and from how many leaves."""
    if len(levels) < 2:
        levels = tree.choose_levels(rows.n_compared, kmeans.most_clusters(rows.dimension), *levels)
    levels = [min(level, rows.n_compared) for level in levels]
    size = kmeans.sample_size(rows.n_compared, levels[0], rows.dimension)
    grown = sample.of_sample(rows, size, tree.grow, levels, seed).persist()
    parents = grown.parents.compute()
    choice = _Choice(rows, grown.centroids, levels[0], fingerprint.of("hierarchical", levels, seed), False, weighted)
    return choice.make(lambda sizes: quotas.down_the_tree(sizes, parents, n, seed))


@dataclass(frozen=True)
class _Choice:
    """How rows are chosen.

    Attributes
    ----------
    rows : Frame
    centers : Delayed of numpy.ndarray, or None where there is one cluster
    n_clusters : int
    key : str
        What clusters depend on beside the rows.
    farthest : bool
        Farthest-first, in groups of bounded size; else the heaviest, or at random.
    weighted : bool
    """

    rows: frames.Frame
    centers: Delayed | None
    n_clusters: int
    key: str
    farthest: bool
    weighted: bool

    def make(self, shares: Shares) -> tuple[list[Delayed], int]:
        """Choose: tables of what was chosen, and from how many groups."""
        return self._in_memory(shares) if self.rows.folder is None else self._in_files(shares)

    def _in_memory(self, shares: Shares) -> tuple[list[Delayed], int]:
        rows = self.rows
        put = dask.delayed(place.place, nout=2)
        placed = dask.persist(
            *[
                output
                for block, first in zip(rows.blocks, rows.offsets, strict=True)
                for output in put(block, first, self.centers)
            ]
        )
        tables, sizes = list(placed[0::2]), np.sum(dask.compute(*placed[1::2]), axis=0)
        parts = self._parts(sizes)
        if len(sizes) < parts.sum():
            regroup = dask.delayed(place.regroup, nout=2)
            placed = dask.persist(*[output for table in tables for output in regroup(table, parts)])
            tables, sizes = list(placed[0::2]), np.sum(dask.compute(*placed[1::2]), axis=0)
        taken, bounds = shares(sizes), self._bounds(sizes)
        n_buckets = len(bounds) - 1
        # Groups of partitions, because every split has a task for every bucket.
        together = -(-len(tables) // max(4 * threads(), n_buckets))
        split = dask.delayed(place.split, nout=n_buckets)
        starts = range(0, len(tables), together)
        pieces = [
            list(split(tables[at : at + together], rows.blocks[at : at + together] if self.farthest else None, bounds))
            for at in starts
        ]
        choose = dask.delayed(place.choose)
        chosen = [
            choose(list(bucket), taken[low:high], low, self.weighted)
            for bucket, (low, high) in zip(zip(*pieces, strict=True), pairwise(bounds), strict=True)
            if taken[low:high].any()
        ]
        return _made(chosen), len(sizes)

    def _in_files(self, shares: Shares) -> tuple[list[Delayed], int]:
        """Do as `_in_memory` does through the folder of the rows: placed rows that are there of an earlier call are not made again."""
        rows, folder = self.rows, self.rows.folder
        assert folder is not None
        key = fingerprint.of(self.key, [(part.content, part.n_compared) for part in rows.parts])
        blocks = list(zip(rows.blocks, rows.offsets, strict=True))
        names = [fingerprint.of(key, os.path.basename(block.path), block.start, block.stop, at) for block, at in blocks]
        write = dask.delayed(place.write_placed, pure=False)
        counted = written(
            folder,
            "sampled",
            names,
            lambda number, path: write(*blocks[number], self.centers, path, folder.durable),
            lambda path: files.count([path], self.n_clusters),
        )
        paths = tuple(folder.file("sampled", name) for name in names)
        sizes = np.sum(counted, axis=0)
        parts = self._parts(sizes)
        if len(sizes) < parts.sum():
            count = dask.delayed(place.count_groups)
            sizes = np.sum(dask.compute(*[count(path, parts) for path in paths]), axis=0)
        taken = shares(sizes)
        store = VectorStore(rows.parts) if self.farthest else None
        read, choose = dask.delayed(place.read), dask.delayed(place.choose)
        chosen = [
            choose([read(paths, store, parts, low, high)], taken[low:high], low, self.weighted)
            for low, high in pairwise(self._bounds(sizes))
            if taken[low:high].any()
        ]
        return _made(chosen), len(sizes)

    def _parts(self, sizes: np.ndarray) -> np.ndarray:
        """Return into how many groups each cluster is cut."""
        return np.maximum(-(-sizes // _LARGEST_GROUP), 1) if self.farthest else np.ones(len(sizes), dtype=np.int64)

    def _bounds(self, sizes: np.ndarray) -> list[int]:
        """Cut the groups, in order, into runs of about as many rows: some for each thread, and none too large."""
        width = _ROW_BYTES + 4 * self.rows.dimension * self.farthest
        most = max(min(int(sizes.sum()) / (2 * threads()), _BUCKET_BYTES / width), 1)
        run = (np.cumsum(sizes) - sizes) // most
        return [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(sizes)]


def _made(chosen: list[Delayed]) -> list[Delayed]:
    """Return tables when they are there, because what they are made of is held for as long as the function that calls this runs."""
    held = list(dask.persist(*chosen))
    wait(held)
    return held
