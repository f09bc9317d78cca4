"""A frame whose comparable rows lie on the cluster, and what is done with all of them: a sample, and centroids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import dask
import distributed
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dask.delayed import Delayed
from dask.system import CPU_COUNT

from imgcurate import identity, vectors
from imgcurate.dedup.semantic import kmeans, normalise


class Held(NamedTuple):
    """A frame's comparable rows on the cluster, and what the client knows of them.

    Attributes
    ----------
    blocks : list of Delayed of normalise.Rows
        Of the partitions that have any.
    summaries : list of normalise.Summary
        Of those; `all_summaries` of all.
    offsets : list of int
        The number of each block's first row.
    n_compared : int
    """

    blocks: list[Delayed]
    summaries: list[normalise.Summary]
    all_summaries: list[normalise.Summary]
    offsets: list[int]
    n_compared: int


def prepare(frame: Any, id_field: str, embedding_field: str, key_fields: list[str], seed: int) -> Held:
    """Compute the frame, once: each partition's comparable rows stay on the cluster, the summaries come to the client."""
    columns = [id_field, embedding_field, *key_fields, *(["error"] if "error" in frame.columns else [])]
    task = dask.delayed(normalise.prepare, nout=3)
    parts = frame[list(dict.fromkeys(columns))].to_delayed()
    outputs = [output for part in parts for output in task(part, id_field, embedding_field, key_fields, seed)]
    persisted = dask.persist(*outputs)
    summaries = list(dask.compute(*persisted[1::3]))
    refuse_repeated_ids(summaries, persisted[2::3], id_field)
    used = [number for number, summary in enumerate(summaries) if summary.compared.any()]
    held, theirs = [persisted[0::3][number] for number in used], [summaries[number] for number in used]
    ends = list(accumulate((int(summary.compared.sum()) for summary in theirs), initial=0))
    return Held(held, theirs, summaries, ends[:-1], ends[-1])


def refuse_repeated_ids(summaries: list[normalise.Summary], ids: Sequence[Delayed], id_field: str) -> None:
    """Raise a ValueError where an id names more than one row."""
    hashes, counts = np.unique(np.concatenate([summary.hashes for summary in summaries]), return_counts=True)
    # Two ids may share a hash by chance, so the ids themselves are looked at.
    suspects = hashes[counts > 1]
    if not len(suspects):
        return
    where = [np.flatnonzero(np.isin(summary.hashes, suspects[:1000])) for summary in summaries]
    taken = dask.compute(*[dask.delayed(pc.take)(part, pa.array(at)) for part, at in zip(ids, where, strict=True)])
    times = Counter(name for part in taken for name in part.to_pylist())
    repeated = [name for name, count in times.items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(suspects):,} ids of column {id_field!r} name more than one row: {', '.join(map(repr, sorted(repeated)[:5]))}"
            f"{', ...' if len(repeated) > 5 else ''}; give every image an id of its own"
        )


def one_dimension(
    summaries: list[normalise.Summary], embedding_field: str, expected: int | None = None, of: str = ""
) -> int:
    """Return the length of the vectors; raises where they are of several, or not of the `expected` one, that of the `of`."""
    found = sorted({summary.dimension for summary in summaries})
    if len(found) > 1:
        raise ValueError(
            f"column {embedding_field!r} holds vectors of several lengths: {found}; one frame holds one encoder"
        )
    if found and expected not in (None, found[0]):
        raise ValueError(f"{of} have dimension {expected}, the vectors of column {embedding_field!r} {found[0]}")
    return found[0] if found else 0


def one_encoder(
    summaries: list[normalise.Summary], what: str = "the frame", beside: Any = ()
) -> identity.Identity | None:
    """Return what made the vectors, where it is known; raises where they, or those `beside` them, are of several encoders."""
    return identity.one([encoder for summary in summaries for encoder in summary.encoders] + list(beside), what)


def sample(held: Held, size: int) -> list[tuple[Delayed, int]]:
    """Return the rows with the lowest hashes: a random sample that is the same however the frame is partitioned."""
    hashes = [summary.hashes[summary.compared] for summary in held.summaries]
    size = min(size, held.n_compared)
    limit = np.partition(np.concatenate(hashes), size - 1)[size - 1]
    sizes = [int((part <= limit).sum()) for part in hashes]
    take = dask.delayed(normalise.sample)
    return [(take(block, limit), n) for block, n in zip(held.blocks, sizes, strict=True) if n]


def fit(held: Held, dimension: int, n_clusters: int, seed: int, gpu: bool) -> Delayed:
    """Return the centroids of k-means, or of one cluster the mean."""
    if n_clusters == 1:
        return dask.delayed(normalise.mean)([dask.delayed(normalise.vector_sum)(block) for block in held.blocks])
    samples = sample(held, kmeans.sample_size(held.n_compared, n_clusters))
    if gpu:
        pieces = [(piece.vectors, n) for piece, n in samples]
        return dask.delayed(vectors.to_numpy(kmeans.fit_on_gpus(pieces, dimension, n_clusters, seed)))
    return dask.delayed(normalise.fit)([piece for piece, _ in samples], n_clusters, seed)


def threads() -> int:
    """Return how many tasks run at a time."""
    try:
        return max(1, sum(distributed.get_client().nthreads().values()))
    except ValueError:
        return int(CPU_COUNT)
