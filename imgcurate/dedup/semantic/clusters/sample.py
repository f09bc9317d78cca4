"""A random sample of a frame's rows, and what is fitted to it in one task, k-means or another: in memory, or through the files of the rows.

Through files a task holds of the sample what the function that it calls looks at; k-means all of it, in the format of its products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dask
import numpy as np
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import fingerprint, storage, vectors
from imgcurate.dedup.semantic import normalise
from imgcurate.dedup.semantic.clusters import kmeans
from imgcurate.dedup.semantic.frame import Frame
from imgcurate.dedup.semantic.store import RowVectors, Stored, StoredRows, VectorStore
from imgcurate.dedup.work.mapped import map_table, write_table
from imgcurate.dedup.work.waves import threads, wait, written

#: A file of the sample is about so large: what is looked at of one may count as memory as a whole. There is one for each thread at least.
_FILE_BYTES = 16 << 20
_ROWS_AT_ONCE = 4096
_TABLE = "sample"


def fit(frame: Frame, n_clusters: int, seed: int, gpu: bool) -> Delayed:
    """Return the centroids of k-means, or of one cluster the mean."""
    if n_clusters == 1:
        return dask.delayed(normalise.mean)([dask.delayed(normalise.vector_sum)(block) for block in frame.blocks])
    size = kmeans.sample_size(frame.n_compared, n_clusters, frame.dimension)
    if not gpu or frame.folder is not None:
        return of_sample(frame, size, kmeans.fit, n_clusters, seed)
    pieces = dask.persist(*draw(frame, size)[0])
    sizes = dask.compute(*[dask.delayed(normalise.count)(piece) for piece in pieces])
    on_devices = [(piece.vectors, rows) for piece, rows in zip(pieces, sizes, strict=True) if rows]
    return dask.delayed(vectors.to_numpy(kmeans.fit_on_gpus(on_devices, frame.dimension, n_clusters, seed)))


def of_sample(frame: Frame, size: int, function: Callable[..., Any], *arguments: Any) -> Delayed:
    """Return what a function makes of a sample: of `size` rows that are the same, in the same order, however the frame is partitioned.

    Parameters
    ----------
    frame : Frame
    size : int
        All rows are taken where there are no more.
    function : callable
        Takes the unit vectors, a numpy.ndarray of shape (size, d), float32, or RowVectors where the frame is in files; and `arguments`.
    """
    if frame.folder is None:
        return dask.delayed(_in_memory)(*draw(frame, size), function, arguments)
    folder, size = frame.folder, min(size, frame.n_compared)
    limit, store, write = _limit(frame, size), VectorStore(frame.parts), dask.delayed(_write, pure=False)
    blocks = list(zip(frame.blocks, frame.offsets, strict=True))
    runs = _runs(blocks, max(threads(), size * frame.dimension * 4 // _FILE_BYTES))
    key = fingerprint.of([(part.content, part.n_compared) for part in frame.parts], size)
    names = [fingerprint.of(key, len(runs), number) for number in range(len(runs))]
    counts = written(
        folder, _TABLE, names, lambda number, path: write(runs[number], store, limit, path, folder.durable), _count
    )
    stored = [
        Stored(folder.file(_TABLE, name), count, count, frame.dimension, frozenset(), name)
        for name, count in zip(names, counts, strict=True)
    ]
    # Waited for, because the files are needed no longer.
    made = dask.delayed(_in_files)(stored, size, function, arguments).persist()
    wait([made])
    folder.keep(_TABLE, [])
    return made


def draw(frame: Frame, size: int) -> tuple[list[Delayed], int]:
    """Return the rows with the lowest hashes, and a few more, by blocks: `normalise.draw` takes just the `size` lowest."""
    size = min(size, frame.n_compared)
    limit, take = _limit(frame, size), dask.delayed(normalise.sample)
    return [take(run, limit) for run in _runs(frame.blocks, max(64, 4 * threads()))], size


def _limit(frame: Frame, size: int) -> np.uint64:
    """Return a hash that is above those of `size` rows and of few others."""
    # So many standard deviations more that too few would come once in a thousand million times.
    share = (size + 6 * size**0.5 + 10) / frame.n_compared
    return np.uint64(2**64 - 1) if share >= 1 else np.uint64(min(share, 1) * (2.0**64 - 2048))


def _runs(blocks: list[Any], at_most: int) -> list[list[Any]]:
    together = -(-len(blocks) // at_most)
    return [blocks[at : at + together] for at in range(0, len(blocks), together)]


def _in_memory(samples: Sequence[normalise.Rows], size: int, function: Callable[..., Any], arguments: Any) -> Any:
    return function(normalise.draw(samples, size), *arguments)


def _write(
    blocks: Sequence[tuple[StoredRows, int]], store: VectorStore, limit: np.uint64, path: str, durable: bool
) -> int:
    """Write the vectors and hashes of the rows whose hash is at most `limit`, by hash; returns how many they are.

    So a run of the sample is a run of each file: of rows all over a file that is mapped nearly all of it would count as the process's memory.
    """
    hashes, rows = [], []
    for block, first in blocks:
        hashed = block.table["hash"].to_numpy()
        at = np.flatnonzero(hashed <= limit)
        hashes.append(hashed[at])
        rows.append(at + first)
    order = np.argsort(np.concatenate(hashes), kind="stable")
    chosen = np.concatenate(rows)[order]
    with storage.open_atomic(f"{path}.f32", durable=durable) as file:
        for start in range(0, len(chosen), _ROWS_AT_ONCE):
            file.write(store.take(chosen[start : start + _ROWS_AT_ONCE]).data)
    table = pa.table({"hash": np.concatenate(hashes)[order]})
    write_table(table, f"{path}.arrow", durable)
    return len(table)


def _count(path: str) -> int:
    return len(map_table(f"{path}.arrow"))


def _in_files(stored: Sequence[Stored], size: int, function: Callable[..., Any], arguments: Any) -> Any:
    hashes = np.concatenate([map_table(f"{part.path}.arrow")["hash"].to_numpy() for part in stored])
    return function(RowVectors(VectorStore(stored), np.argsort(hashes, kind="stable")[:size]), *arguments)
