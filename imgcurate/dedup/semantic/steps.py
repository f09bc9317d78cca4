"""The steps of a search for similar pairs, after the rows are there: centroids, exchange, join; through memory or through files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import dask
import numpy as np
from dask.delayed import Delayed

from imgcurate import fingerprint, storage
from imgcurate.dedup.graph import build, rank
from imgcurate.dedup.graph.found import counts, read_found
from imgcurate.dedup.semantic import normalise
from imgcurate.dedup.semantic.clusters import compare, exchange, files, kmeans
from imgcurate.dedup.semantic.clusters.sample import fit
from imgcurate.dedup.semantic.frame import Frame
from imgcurate.dedup.semantic.store import VectorStore
from imgcurate.dedup.work.waves import in_waves, threads

_FILES_OF_A_SUM = 64
#: Vectors of so many bytes are compared in one task, which may take all cores.
_ALONE_BYTES = 128 << 20


@dataclass(frozen=True)
class Search:
    """How pairs are looked for.

    Attributes
    ----------
    n_clusters, probes : int
    least : float
        The lowest cosine of a pair.
    exact : bool
    seed : int
    centroids : numpy.ndarray of shape (n_clusters, d), or None
        Where they are given.
    few_pairs : bool
        Whether it is known that a task can hold all that are found.
    """

    n_clusters: int
    probes: int
    least: float
    exact: bool
    seed: int
    centroids: np.ndarray | None = None
    few_pairs: bool = False


class Pairs(NamedTuple):
    """What a search found.

    Attributes
    ----------
    tables : list of Delayed of pyarrow.Table, or of files.AssignedRows
        All rows with their clusters, block by block.
    found : list of Delayed of found.Found
    paths : list of str
        The files that hold it, where there are any.
    counts : numpy.ndarray of shape (files, 2)
        How many pairs and copies each file holds.
    """

    tables: list[Any]
    found: list[Delayed]
    paths: list[str] | None = None
    counts: np.ndarray | None = None

    def graph(self, rows: Frame, keep: rank.Keep, crossed: list[Delayed], fixed: build.Fixed | None) -> build.Graph:
        """Return the graph of all pairs, with those that were found with a corpus."""
        if self.paths is None or self.counts is None or fixed is not None or build.fits_one_part(self.counts):
            return build.build(self.tables, self.found + crossed, keep, fixed)
        assert rows.folder is not None
        key = fingerprint.of([os.path.basename(path) for path in self.paths], keep)
        return build.build_in_parts(self.tables, self.paths, self.counts, keep, rows.n_compared, rows.folder, key)


def find_pairs(rows: Frame, search: Search, gpu: bool) -> Pairs:
    """Look for all pairs: centroids, exchange, join."""
    if rows.folder is not None:
        return _in_files(rows, search, gpu)
    given = search.centroids
    few = rows.n_compared * rows.dimension * 4 <= _ALONE_BYTES and search.n_clusters == 1 and search.few_pairs
    if few and not gpu:
        return _alone(rows, search)
    centers = dask.delayed(given) if given is not None else fit(rows, search.n_clusters, search.seed, gpu)
    return _in_memory(rows, centers, search)


def _alone(rows: Frame, search: Search) -> Pairs:
    """Place and compare all rows in one task."""
    compare_all = dask.delayed(compare.compare_all, nout=len(rows.blocks) + 1)
    *tables, found = dask.persist(*compare_all(rows.blocks, rows.offsets, search.centroids, search.least))
    return Pairs(list(tables), [found])


def _in_memory(rows: Frame, centers: Any, search: Search) -> Pairs:
    """Place all rows, bring those of each cluster together and compare them, from memory to memory."""
    n_clusters, probes, least, exact = search.n_clusters, search.probes, search.least, search.exact
    dimension = rows.dimension
    place = dask.delayed(normalise.place, nout=3)
    n = rows.n_compared
    placed = dask.persist(
        *[
            output
            for block, offset in zip(rows.blocks, rows.offsets, strict=True)
            for output in place(block, offset, centers, probes, least, exact)
        ]
    )
    tables, where = list(placed[0::3]), list(placed[1::3])
    sizes = np.sum(dask.compute(*placed[2::3]), axis=0)
    if n_clusters == 1 or (exact and kmeans.all_cost_less(sizes, n, dimension)):
        where, sizes, exact = [dask.delayed(exchange.everywhere)(block) for block in rows.blocks], np.array([n]), False
    layout = exchange.lay_out(sizes, threads(), dimension)
    # Groups of partitions, because every split has a task for every bucket: thousands of small partitions would make millions.
    per_group = -(-len(tables) // max(4 * threads(), layout.n_buckets))
    starts = range(0, len(tables), per_group)
    split = dask.delayed(exchange.split, nout=layout.n_buckets + 1)
    pieces = [
        list(split(*(part[start : start + per_group] for part in (rows.blocks, where, rows.offsets)), layout))
        for start in starts
    ]
    merge = dask.delayed(exchange.merge, nout=2)
    merged = [merge(list(bucket)) for bucket in list(zip(*pieces, strict=True))[:-1]]
    found = [piece[-1] for piece in pieces] + [copies for _, copies in merged]
    inside, across = dask.delayed(compare.compare_inside), dask.delayed(compare.compare_across)
    for group in layout.groups():
        members = [merged[number][0] for number in group]
        chosen = None
        if len(group) > 1:
            chosen = dask.delayed(compare.plan)(members[0], len(group), least)
            members = [dask.delayed(compare.shorten)(part, chosen) for part in members]
        found += [inside(part, chosen, least, exact) for part in members]
        found += [across(a, b, chosen, least, exact) for at, a in enumerate(members) for b in members[at + 1 :]]
    return Pairs(tables, list(dask.persist(*found)))


def by_cluster(rows: Frame, centroids: np.ndarray, probes: int, least: float) -> tuple[np.ndarray, list[Cluster]]:
    """Bring the rows of each cluster together, for comparisons with others: how many each cluster has, and in which bucket it is."""
    if rows.folder is not None:
        search = Search(len(centroids), probes, least, False, 0, centroids)
        plan = _plan(rows, search, False, "corpus-")
        paths, sizes, _ = _exchange(rows, search, plan)
        exchanged = files.Exchanged(paths, VectorStore(rows.parts))
        stored = [
            (range(bucket.low, bucket.high), files.StoredBucket(exchanged, tuple(plan.tables), bucket.low, bucket.high))
            for bucket in files.lay_out(sizes, 1, rows.dimension)
        ]
        return sizes, [Cluster(number, bucket) for clusters, bucket in stored for number in clusters if sizes[number]]
    place, given = dask.delayed(normalise.place, nout=3), dask.delayed(centroids)
    placed = dask.persist(
        *[
            output
            for block, offset in zip(rows.blocks, rows.offsets, strict=True)
            for output in place(block, offset, given, probes, least, False)
        ]
    )
    sizes = np.sum(dask.compute(*placed[2::3]), axis=0)
    layout = exchange.lay_out(sizes, threads(), rows.dimension, whole=True)
    pieces = [
        dask.delayed(exchange.split, nout=layout.n_buckets + 1)([block], [where], [offset], layout, True)
        for block, where, offset in zip(rows.blocks, placed[1::3], rows.offsets, strict=True)
    ]
    merged = [dask.delayed(exchange.gather)(list(bucket)) for bucket in list(zip(*pieces, strict=True))[:-1]]
    # Persisted, because what they are made of is held for as long as this function runs.
    merged = list(dask.persist(*merged))
    return sizes, [Cluster(number, merged[layout.first[number]]) for number in np.flatnonzero(sizes).tolist()]


class Cluster(NamedTuple):
    """A cluster that has rows, and the bucket that holds them: Delayed of exchange.Members, or a files.StoredBucket."""

    number: int
    bucket: Any


class _Plan(NamedTuple):
    """What a search through files is called, so that what is there of an earlier call is known."""

    key: str
    names: list[str]
    tables: list[files.AssignedRows]
    centroids: str
    prefix: str


def _plan(rows: Frame, search: Search, gpu: bool, prefix: str = "") -> _Plan:
    folder = rows.folder
    assert folder is not None
    of_rows = fingerprint.of([(part.content, part.n_compared) for part in rows.parts])
    of_centroids = fingerprint.of(of_rows, search.n_clusters, search.seed, search.centroids)
    table = f"{prefix}centroids"
    folder.keep(table, [of_centroids])
    centroids = folder.file(table, f"{of_centroids}.npy")
    if not os.path.exists(centroids):
        centers = search.centroids
        if centers is None:
            centers = fit(rows, search.n_clusters, search.seed, gpu).compute()
        with storage.open_atomic(centroids, durable=folder.durable) as file:
            np.save(file, centers)
    key = fingerprint.of(of_centroids, search.probes, search.least, search.exact)
    names = [
        fingerprint.of(key, os.path.basename(b.path), b.start, b.stop, at)
        for b, at in zip(rows.blocks, rows.offsets, strict=True)
    ]
    folder.keep(f"{prefix}assigned", names)
    tables = [
        files.AssignedRows(block, first, folder.file(f"{prefix}assigned", f"{name}.arrow"))
        for block, first, name in zip(rows.blocks, rows.offsets, names, strict=True)
    ]
    return _Plan(key, names, tables, centroids, prefix)


def _in_files(rows: Frame, search: Search, gpu: bool) -> Pairs:
    """Do as `_in_memory` does through the folder of the rows: what is there of an earlier call is not made again."""
    folder = rows.folder
    assert folder is not None
    plan = _plan(rows, search, gpu)
    known = folder.read_json(f"pairs.{plan.key}.json")
    there = folder.names("assigned") | folder.names("pairs")
    needed = [f"{name}.arrow" for name in plan.names] + [f"{name}.npz" for name, _, _ in known or []]
    if known is None or not there.issuperset(needed):
        known = _find_through_files(rows, search, plan, "cuda" if gpu else "cpu")
        folder.write_json(f"pairs.{plan.key}.json", known)
    for table in ("placed", "tiles"):  # pairs are all that is needed of them
        folder.keep(table, [])
    folder.keep("pairs", [name for name, _, _ in known])
    known = [part for part in known if part[1] or part[2]]
    paths = [folder.file("pairs", f"{name}.npz") for name, _, _ in known]
    of_files = np.array([part[1:] for part in known], dtype=np.int64).reshape(-1, 2)
    return Pairs(plan.tables, [dask.delayed(read_found)(path) for path in paths], paths, of_files)


def _find_through_files(rows: Frame, search: Search, plan: _Plan, device: str) -> list[tuple[str, int, int]]:
    """Write all pairs: the names of their parts, and how many pairs and copies each holds."""
    folder = rows.folder
    assert folder is not None
    paths, sizes, exact = _exchange(rows, search, plan)
    exchanged = dask.delayed(files.Exchanged(paths, VectorStore(rows.parts)), traverse=False).persist()
    how = (search.least, exact, device)
    inside, tiles, count = (
        dask.delayed(function, pure=False) for function in (files.compare_bucket, files.compare_tiles, counts)
    )
    made: list[str] = []

    def compared(name: str, task: Any, *arguments: Any) -> Delayed:
        made.append(name)
        path = folder.file("pairs", f"{name}.npz")
        there = os.path.exists(path)
        return count(path) if there else task(exchanged, *arguments, path, folder.durable)

    def tasks() -> Iterator[Delayed]:
        for bucket in files.lay_out(sizes, threads(), rows.dimension):
            name = fingerprint.of(plan.key, exact, bucket)
            if bucket.tiles == 1:
                yield compared(name, inside, bucket, *how)
                continue
            size = int(sizes[bucket.low])
            choose = dask.delayed(files.plan_cluster)
            screen = choose(exchanged, bucket.low, size, search.least, device).compute()
            # Another machine may have shortened them otherwise, in an earlier call.
            tile = f"{name}-{fingerprint.of(screen.dtype, screen.basis)[:8]}"
            chosen = dask.delayed(screen, traverse=False).persist()
            shorts = [folder.file("tiles", f"{tile}-{number}") for number in range(bucket.tiles)]
            write = dask.delayed(files.write_tile, pure=False)
            in_waves(
                write(exchanged, bucket, number, chosen, path, folder.durable)
                for number, path in enumerate(shorts)
                if not os.path.exists(f"{path}.arrow")
            )
            for at, left in enumerate(shorts):
                for beside, right in enumerate(shorts[at:], at):
                    yield compared(f"{name}-{at}-{beside}", tiles, bucket.low, left, right, chosen, *how)

    folder.names("pairs"), folder.names("tiles")
    numbers = in_waves(tasks())
    return [(name, n_pairs, n_copies) for name, (n_pairs, n_copies) in zip(made, numbers, strict=True)]


def _exchange(rows: Frame, search: Search, plan: _Plan) -> tuple[tuple[str, ...], np.ndarray, bool]:
    """Write all rows by cluster: the files, how many rows each cluster has, and whether the search among them is still the exact one of clusters."""
    folder, names, placed = rows.folder, plan.names, f"{plan.prefix}placed"
    assert folder is not None
    durable = folder.durable
    folder.keep(placed, [*names, *(f"{name}-all" for name in names)])
    blocks = list(zip(rows.blocks, rows.offsets, plan.tables, names, strict=True))
    paths = tuple(folder.file(placed, name) for name in names)
    decided = f"{plan.prefix}everywhere.{plan.key}.json"
    how = (plan.centroids, search.probes, search.least, search.exact)
    everywhere = folder.read_json(decided)
    if everywhere is None:
        everywhere = False
        if search.exact and search.n_clusters > 1:
            # Before anything is written: rows that may have partners everywhere would be written once for each cluster.
            sizes = _sum([dask.delayed(files.place_sizes)(block, *how) for block in rows.blocks])
            everywhere = kmeans.all_cost_less(sizes, rows.n_compared, rows.dimension)
        folder.write_json(decided, everywhere)
    there = folder.names(f"{plan.prefix}assigned")
    if not everywhere:
        there &= folder.names(placed)
    assign = dask.delayed(files.assign_block, pure=False)
    in_waves(
        assign(block, first, *how, table.path, None if everywhere else folder.file(placed, name), durable)
        for block, first, table, name in blocks
        if f"{name}.arrow" not in there
    )
    if not everywhere:
        return paths, _sizes(paths, search.n_clusters), search.exact
    paths = tuple(f"{path}-all" for path in paths)
    folder.keep(placed, [f"{name}-all" for name in names])
    there = folder.names(placed)
    write = dask.delayed(files.everywhere, pure=False)
    in_waves(
        write(block, first, path, durable)
        for (block, first, _, name), path in zip(blocks, paths, strict=True)
        if f"{name}-all.arrow" not in there
    )
    return paths, np.array([rows.n_compared]), False


def _sizes(paths: tuple[str, ...], n_clusters: int) -> np.ndarray:
    """Return how many rows each cluster has."""
    count = dask.delayed(files.count)
    starts = range(0, len(paths), _FILES_OF_A_SUM)
    return _sum([count(paths[at : at + _FILES_OF_A_SUM], n_clusters) for at in starts])


def _sum(sizes: list[Delayed]) -> np.ndarray:
    """Add up what tasks count; the client gets one sum."""
    total = dask.delayed(files.total)
    while len(sizes) > _FILES_OF_A_SUM:
        sizes = [total(sizes[at : at + _FILES_OF_A_SUM]) for at in range(0, len(sizes), _FILES_OF_A_SUM)]
    return np.asarray(total(sizes).compute())
