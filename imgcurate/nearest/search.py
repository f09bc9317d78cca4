"""neighbours(): the images that are nearest to each image.

This file plans and runs the steps on Dask: rows are brought together by cluster, through memory or through files, and bucket is compared with
bucket. What happens inside a task stands in lists.py.

Growth, for n rows in b buckets and k clusters: placing n k d operations, comparing n (probes + 1) n / k d, or n n d where everything is compared.
Each row moves once, to its bucket, and a task holds two buckets. In memory there are b b tasks; through files b, which read all rows that they need.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import fingerprint, identity, vectors
from imgcurate.arguments import check_seed, check_whole_number
from imgcurate.cluster import interruptible
from imgcurate.dedup.dataframes import inputs
from imgcurate.dedup.dataframes.ids import id_dtype
from imgcurate.dedup.result.shown import with_places
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic.clusters import assign, exchange, files, kmeans, sample
from imgcurate.dedup.semantic.clusters.exchange import Members
from imgcurate.dedup.semantic.store import StoredRows, VectorStore
from imgcurate.dedup.work.mapped import map_table, work_folder, write_table
from imgcurate.dedup.work.waves import threads, wait, written
from imgcurate.nearest import lists
from imgcurate.nearest.result import Neighbours, numbered

#: Up to so many images everything is compared; of more there are sqrt(n / 2) clusters, or of so many images each, whichever are more. Smaller clusters
#: cost less, but an image's nearest lie in more of them: of a million like CLIP's .976 of the ten nearest are found in 1000, .992 in 707.
_ALL, _ROWS_PER_CLUSTER = 50_000, 2000
_BUCKET_BYTES = 128 << 20


@interruptible
def neighbours(
    frame: Any,
    k: int = 10,
    *,
    n_clusters: int | None = None,
    probes: int = 8,
    exact: bool = False,
    seed: int = 42,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
    work: str | os.PathLike[str] | None = None,
) -> Neighbours:
    """Find the `k` images that are nearest to each image, by the cosine of their embeddings.

    Vectors are scaled to unit length and grouped by k-means; each image is compared with those of the clusters that are nearest to it, or with
    ``exact=True``, and up to 50,000 images, with all. `Neighbours.recall` tells how many of the nearest were found.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame, or pair of ids and a matrix of shape (n, d)
        With `id_field` (unique strings or integers; of a frame in memory it may be the index) and `embedding_field` (vectors of one length). Rows
        with an ``error``, and rows whose vector is null, not finite or zero, have no neighbours and are none.
    k : int
    n_clusters : int, optional
        Default: 1 up to 50,000 images, else ``sqrt(n / 2)``, above two million ``n / 2000``.
    probes : int
        1: an image is compared with those of its nearest cluster. More: with those of up to so many and one further. As many as there are clusters
        compare everything.
    exact : bool
        Compare everything.
    seed : int
        Of k-means.
    id_field, embedding_field : str
    work : str or path, optional
        As for `semantic_duplicates`: a folder on a disk that every worker sees, for vectors that are large against the workers' memory. It takes one
        and a half times their float32 bytes. Default: a temporary folder, where all workers are on this machine.

    Returns
    -------
    Neighbours
        Its ``frame`` has one row a compared image, lazily: its id, ``neighbours`` (up to `k` ids, the nearest first, of equally near ones the lowest
        id; never its own) and ``similarities`` (their cosines). Fewer than `k` where there are not more in the clusters that were looked at.
        ``frame.explode(["neighbours", "similarities"])`` has a row for each pair, and ``show()`` shows some images with theirs.

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError
        Where an option is out of range, ids are null or repeat, or vectors are of several lengths or encoders.
    TypeError
        Where a column does not hold what it should.

    Notes
    -----
    Eager: `frame` is computed once, and its neighbours are found; they stay in the workers' memory or in files for as long as the result is held,
    with the unit vectors, for `recall`. What is found does not depend on how the frame is partitioned. Similarities are computed in float64 and
    rounded to float32; a screen in the number format that the machine multiplies fastest, whose error is bounded, tells which need be.

    What to expect: of vectors like CLIP's the defaults find more than .999 of the ten nearest among 100,000, and .993 among a million, where
    ``probes=4`` finds .962 and takes nine tenths of the time (``benchmarks/neighbours.py``). Among more images fewer are found, because each is
    compared with as many clusters: give more `probes`, which cost comparisons alone, and ask `Neighbours.recall`.

    Examples
    --------
    >>> matrix = np.array([[1, 0], [0, 1], [0.8, 0.6]], dtype=np.float32)
    >>> neighbours((["a", "b", "c"], matrix), k=1).frame
      image_id neighbours similarities
    0        a      ['c']        [0.8]
    1        b      ['c']        [0.6]
    2        c      ['a']        [0.8]
    """
    _check(k, n_clusters, probes, exact, seed)
    inputs.refuse_name(id_field, "neighbours", ("neighbours", "similarities", "outlier_score"))
    found_in = with_places(frame)
    frame, at_once = inputs.as_frame(frame, "neighbours", id_field, embedding_field)
    work = None if work is None else work_folder(work)
    rows = frames.prepare(frame, id_field, embedding_field, [], seed, work)
    identity.one(rows.encoders, "the frame")
    n = rows.n_compared
    clusters = min(n_clusters or _choose_n_clusters(n, rows.dimension), n)
    if exact or clusters <= probes:
        clusters = min(n, 1)
    gpu = vectors.on_gpu(frame._meta)
    found: list[Delayed] = []
    if n:
        centers = sample.fit(rows, clusters, seed, gpu).persist() if clusters > 1 else None
        find = _in_memory if rows.folder is None else _in_files
        found = find(rows, centers, clusters, probes, seed, int(k), "cuda" if gpu else "cpu")
    return Neighbours(
        found,
        rows,
        like=frame._meta,
        id_dtype=id_dtype(frame._meta[id_field]),
        id_field=id_field,
        k=int(k),
        n_clusters=clusters,
        probes=probes,
        at_once=at_once,
        images=found_in,
    )


def _check(k: Any, n_clusters: Any, probes: Any, exact: Any, seed: Any) -> None:
    check_whole_number("k", k)
    if n_clusters is not None:
        check_whole_number("n_clusters", n_clusters, instead=", or None to choose by size")
    check_whole_number("probes", probes, instead="; exact=True compares everything")
    if not isinstance(exact, bool):
        raise ValueError(f"exact={exact!r} must be True or False")
    check_seed(seed)


def _choose_n_clusters(n: int, dimension: int) -> int:
    """Return the number of clusters for `n` images where the user names none, of which a sample that one task holds has rows enough.

    Examples
    --------
    >>> [_choose_n_clusters(n, 768) for n in (50_000, 100_000, 1_000_000, 10_000_000, 100_000_000)]
    [1, 224, 707, 5000, 10922]
    """
    most = kmeans.most_clusters(dimension)
    return 1 if n <= _ALL else min(max(round((n / 2) ** 0.5), n // _ROWS_PER_CLUSTER), most)


def _in_memory(
    rows: frames.Frame, centers: Any, n_clusters: int, probes: int, seed: int, k: int, device: str
) -> list[Delayed]:
    """Return the neighbours of the rows of each bucket, from memory to memory."""
    if centers is None:
        where = [dask.delayed(exchange.everywhere)(block) for block in rows.blocks]
        layout = exchange.lay_out(np.array([rows.n_compared]), threads(), rows.dimension)
    else:
        place = dask.delayed(_place, nout=2)
        placed = dask.persist(*[output for block in rows.blocks for output in place(block, centers, probes)])
        where = list(placed[0::2])
        layout = _lay_out(np.sum(dask.compute(*placed[1::2]), axis=0), rows.dimension)
    # Groups of partitions, because every split has a task for every bucket.
    together = -(-len(where) // max(4 * threads(), layout.n_buckets))
    split = dask.delayed(exchange.split, nout=layout.n_buckets + 1)
    columns = rows.blocks, where, rows.offsets
    pieces = [
        list(split(*(column[at : at + together] for column in columns), layout, True))
        for at in range(0, len(where), together)
    ]
    gather, extend, finish = (dask.delayed(task) for task in (_gather, lists.extend, lists.finish))
    buckets = dask.persist(*[gather(list(bucket)) for bucket in list(zip(*pieces, strict=True))[:-1]])
    found = []
    for at, here in enumerate(buckets):
        known = None
        # Its own clusters first: what is near there says how near others must be.
        for there in (here, *buckets[at + 1 :], *buckets[:at]):
            known = extend(here, there, known, k, device)
        found.append(finish(here, known))
    found = list(dask.persist(*found))
    wait(found)
    return found


def _place(rows: Any, centers: np.ndarray, probes: int) -> tuple[assign.Placed, np.ndarray]:
    """Return which clusters are near each row, of which it lies in the nearest alone; and how many rows each cluster has."""
    placed = assign.place(rows.vectors, centers, probes, least=-1.0)
    placed = placed._replace(also=(np.zeros(0, np.int64), np.zeros(0, np.int32)))
    return placed, placed.sizes(len(centers))


def _lay_out(sizes: np.ndarray, dimension: int) -> exchange.Layout:
    """Spread clusters over buckets of about as many rows: some for each thread, and none too large."""
    by_memory = -(-int(sizes.sum()) * dimension * 4 // _BUCKET_BYTES)
    n_buckets = min(max(2 * threads(), int(by_memory)), int(np.count_nonzero(sizes)))
    return exchange.Layout(exchange.pack(sizes, n_buckets), np.ones(len(sizes), dtype=np.int64), n_buckets)


def _gather(pieces: Sequence[Members]) -> Members:
    return lists.ready(exchange.gather(pieces))


def _in_files(
    rows: frames.Frame, centers: Any, n_clusters: int, probes: int, seed: int, k: int, device: str
) -> list[Delayed]:
    """Return the neighbours of the rows of each bucket, through the folder of the rows: what is there of an earlier call is not made again."""
    folder = rows.folder
    assert folder is not None
    durable = folder.durable
    key = fingerprint.of([(part.content, part.n_compared) for part in rows.parts], n_clusters, probes, seed)
    blocks = [Block(block, first) for block, first in zip(rows.blocks, rows.offsets, strict=True)]
    buckets: list[Any] = list(blocks)
    if centers is not None:
        names = [fingerprint.of(key, os.path.basename(b.rows.path), b.rows.start, b.rows.stop, b.first) for b in blocks]
        write = dask.delayed(_write_placed, pure=False)
        sizes = written(
            folder,
            "homes",
            names,
            lambda number, path: write(blocks[number], centers, probes, path, durable),
            lambda path: files.count([path], n_clusters),
        )
        exchanged = files.Exchanged(tuple(folder.file("homes", name) for name in names), VectorStore(rows.parts))
        buckets = [
            files.StoredBucket(exchanged, tuple(blocks), bucket.low, bucket.high)
            for bucket in files.lay_out(np.sum(sizes, axis=0), threads(), rows.dimension)
        ]
    every = dask.delayed(buckets, traverse=False).persist()
    # How clusters are put together depends on the threads, which another run may have more of.
    spans = [(b.first, len(b.rows.table)) if isinstance(b, Block) else (b.low, b.high) for b in buckets]
    names = [fingerprint.of(key, k, span) for span in spans]
    find = dask.delayed(_find, pure=False)
    paths = written(
        folder, "nearest", names, lambda number, path: find(every, number, k, device, path, durable), lambda path: path
    )
    return [dask.delayed(map_table)(f"{path}.arrow") for path in paths]


@dataclass(frozen=True)
class Block:
    """A block of rows in files with their numbers, which where everything is compared is a bucket.

    Attributes
    ----------
    rows : StoredRows
    first : int
        The number of the first row.
    """

    rows: StoredRows
    first: int

    @property
    def table(self) -> pa.Table:
        """``id``, ``hash`` and ``row``."""
        return numbered(self.rows, self.first).table

    @property
    def vectors(self) -> np.ndarray:
        """The unit vectors, a matrix of float32."""
        return self.rows.vectors

    def screened(self) -> Members:
        """Return the rows as one cluster."""
        n = len(self.vectors)
        zeros = np.zeros(n, dtype=np.int32)
        number, key = np.arange(self.first, self.first + n), exchange.hash_vectors(self.vectors)
        return Members(self.vectors, number, key, zeros, zeros[:, None], ids=self.rows.table["id"])


def _write_placed(block: Block, centers: np.ndarray, probes: int, path: str, durable: bool) -> np.ndarray:
    """Write a block's vectors by cluster, and return how many each cluster has."""
    placed, sizes = _place(block, centers, probes)
    files.write_placed(block.rows, block.first, placed, path, durable)
    return sizes


def _find(buckets: Sequence[Any], number: int, k: int, device: str, path: str, durable: bool) -> str:
    """Write the neighbours of the rows of a bucket."""
    here = lists.ready(buckets[number].screened())
    known = lists.extend(here, here, None, k, device)
    for other in (*buckets[number + 1 :], *buckets[:number]):
        if isinstance(other, Block) or ((here.labels >= other.low) & (here.labels < other.high)).any():
            known = lists.extend(here, lists.ready(other.screened()), known, k, device)
    write_table(lists.finish(here, known), f"{path}.arrow", durable)
    return path
