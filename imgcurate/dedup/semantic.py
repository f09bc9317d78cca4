"""semantic_duplicates(): images whose embeddings point the same way, found inside k-means clusters.

This file plans and runs the steps on Dask; what happens inside a task stands in buckets.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import dask
import distributed
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from dask.delayed import Delayed
from dask.system import CPU_COUNT

from imgcurate import schema, vectors
from imgcurate.dedup import buckets, clusters, rank
from imgcurate.dedup.duplicates import Duplicates, check_eps

_BUCKET_BYTES = 256 * 2**20
_BUCKETS_PER_THREAD = 4


def semantic_duplicates(
    frame: Any,
    *,
    eps: float = 0.01,
    n_clusters: int | None = None,
    keep: rank.Keep = "hard",
    rule: buckets.Rule = "cover",
    probes: int = 1,
    seed: int = 42,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
    centroids: Any = None,
) -> Duplicates:
    """Find images whose embeddings are within `eps` of that of an image that stays.

    Vectors are scaled to unit length and clustered by k-means; inside a cluster images are ranked and compared pair by pair.
    Pairs that a cluster boundary splits are not found: one cluster, the default up to 50,000 images, loses none.

    Parameters
    ----------
    frame : Dask DataFrame
        With `id_field` (unique strings or integers) and `embedding_field` (vectors of one length). Rows with an ``error``, and
        rows whose vector is null, not finite or zero, are never compared and never removed.
    eps : float
        Two images are duplicates where their cosine is at least ``1 - eps``; ``1e-6`` is equal up to rounding.
    n_clusters : int, optional
        Default: 1 up to 50,000 images, else ``sqrt(n / 2)``. At most one cluster an image is made.
    keep : {"hard", "easy", "random"} or list of (column, "min" | "max")
        Which image of a group of duplicates stays: the farthest from the centroid, the nearest, one drawn by `seed`, or the
        best by columns such as ``[("aesthetic_score", "max"), ("width", "max")]`` (null values last).
    rule : {"cover", "pointwise"}
        ``cover``: an image goes only where one that is *kept* is within eps. ``pointwise``: it goes where any better-ranked one
        is, kept or not, as SemDeDup and NeMo Curator do.
    probes : int
        In how many clusters each image is looked for; only 1 is known so far.
    seed : int
        Of k-means and of ``keep="random"``.
    id_field, embedding_field : str
    centroids : array of shape (k, d), optional
        Centroids to use instead of k-means; they are scaled to unit length.

    Returns
    -------
    Duplicates
        Its ``pairs``, ``assignments`` and ``removals()`` are Dask frames, computed on the cluster.

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError
        Where an option is out of range, ids are null or repeat, or vectors are of several lengths.
    TypeError
        Where a column does not hold what it should.

    Notes
    -----
    Eager up to the clusters: `frame` is computed once, and its unit vectors stay on the cluster for as long as the result is
    held. The client receives nine bytes an image. What is removed does not depend on how the frame is partitioned.
    """
    check(
        frame, eps=eps, n_clusters=n_clusters, keep=keep, rule=rule, id_field=id_field, embedding_field=embedding_field
    )
    if probes != 1:
        raise ValueError(f"probes={probes!r}: an image is looked for in one cluster; n_clusters=1 compares everything")
    if not isinstance(seed, Integral):
        raise ValueError(f"seed={seed!r} must be a whole number")
    key_fields = rank.keep_columns(keep)
    given = _given_centroids(centroids, n_clusters)

    blocks, summaries = _prepare(frame, id_field, embedding_field, key_fields, seed)
    n_rows = sum(len(summary.hashes) for summary in summaries)
    used = [number for number, summary in enumerate(summaries) if summary.compared.any()]
    blocks, summaries = [blocks[number] for number in used], [summaries[number] for number in used]
    n_compared = sum(int(summary.compared.sum()) for summary in summaries)
    dimension = _one_dimension(summaries, given, embedding_field)
    k = len(given) if given is not None else min(n_clusters or clusters.choose_n_clusters(n_compared), n_compared)
    grouped: list[Delayed] = []
    if blocks:
        on_gpu = vectors.on_gpu(frame._meta)
        centroid_task = (
            dask.delayed(given) if given is not None else _fit(blocks, summaries, dimension, k, seed, on_gpu)
        )
        grouped = _group(blocks, centroid_task, dimension, keep)
    return Duplicates(
        grouped,
        like=frame._meta,
        id_field=id_field,
        n_rows=n_rows,
        n_compared=n_compared,
        n_clusters=k,
        eps=eps,
        rule=rule,
        keep=keep,
    )


def check(
    frame: Any,
    *,
    eps: float,
    n_clusters: int | None,
    keep: rank.Keep,
    rule: buckets.Rule,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
) -> None:
    """Raise what `semantic_duplicates` would raise of these arguments, as far as it is known before anything is computed."""
    check_eps(eps)
    if n_clusters is not None and (not isinstance(n_clusters, Integral) or n_clusters < 1):
        raise ValueError(f"n_clusters={n_clusters!r} must be a whole number of at least 1, or None to choose by size")
    if rule not in ("cover", "pointwise"):
        raise ValueError(f"rule={rule!r} is unknown: give 'cover' (every removed image has a kept twin) or 'pointwise'")
    _check_frame(frame, id_field, embedding_field, rank.keep_columns(keep))


def _check_frame(frame: Any, id_field: str, embedding_field: str, key_fields: list[str]) -> None:
    schema.require(frame, [id_field, embedding_field, *key_fields], "semantic_duplicates")
    known = vectors.to_arrow(frame._meta[list(dict.fromkeys([id_field, *key_fields]))]).schema
    if not pa.types.is_null(known.field(id_field).type):  # of an object column nothing is known before it is read
        buckets.check_id_type(known.field(id_field).type, id_field)
    kind = frame._meta[embedding_field].dtype
    if not pd.api.types.is_object_dtype(kind) and pd.api.types.is_string_dtype(kind):
        raise TypeError(
            f"column {embedding_field!r} holds text, not vectors; where it held arrays, Dask has turned them into text: store "
            "them as lists (Arrow, Parquet) or set dask.config.set({'dataframe.convert-string': False}) before reading"
        )
    for name in key_fields:
        if pa.types.is_nested(known.field(name).type):
            raise TypeError(f"keep: column {name!r} holds {known.field(name).type}, which has no order")


def _given_centroids(centroids: Any, n_clusters: int | None) -> np.ndarray | None:
    if centroids is None:
        return None
    given = vectors.to_numpy(centroids)
    if given.ndim != 2 or not len(given):
        raise ValueError(f"centroids must be a matrix of shape (clusters, dimension), not of shape {given.shape}")
    if n_clusters not in (None, len(given)):
        raise ValueError(f"n_clusters={n_clusters}, but {len(given)} centroids were given; leave n_clusters out")
    unit, valid = vectors.unit_rows(given)
    if not valid.all():
        raise ValueError(f"centroid {np.flatnonzero(~valid)[0]} is zero or not finite and has no direction")
    return unit


def _one_dimension(summaries: list[buckets.Summary], given: np.ndarray | None, embedding_field: str) -> int:
    found = sorted({summary.dimension for summary in summaries})
    if len(found) > 1:
        raise ValueError(
            f"column {embedding_field!r} holds vectors of several lengths: {found}; one frame holds one encoder"
        )
    if found and given is not None and given.shape[1] != found[0]:
        raise ValueError(
            f"centroids have dimension {given.shape[1]}, the vectors of column {embedding_field!r} {found[0]}"
        )
    return found[0] if found else 0


def _prepare(
    frame: Any, id_field: str, embedding_field: str, key_fields: list[str], seed: int
) -> tuple[list[Delayed], list[buckets.Summary]]:
    """Compute the frame, once: each partition's comparable rows stay on the cluster, the summaries come to the client."""
    columns = [id_field, embedding_field, *key_fields, *(["error"] if "error" in frame.columns else [])]
    prepare = dask.delayed(buckets.prepare, nout=3)
    parts = frame[list(dict.fromkeys(columns))].to_delayed()
    outputs = [output for part in parts for output in prepare(part, id_field, embedding_field, key_fields, seed)]
    persisted = dask.persist(*outputs)
    blocks, ids = list(persisted[0::3]), persisted[2::3]
    summaries = list(dask.compute(*persisted[1::3]))
    _refuse_repeated_ids(summaries, ids, id_field)
    return blocks, summaries


def _refuse_repeated_ids(summaries: list[buckets.Summary], ids: Sequence[Delayed], id_field: str) -> None:
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


def _fit(
    blocks: list[Delayed], summaries: list[buckets.Summary], dimension: int, n_clusters: int, seed: int, gpu: bool
) -> Delayed:
    if n_clusters == 1:
        return dask.delayed(buckets.mean)([dask.delayed(buckets.vector_sum)(block) for block in blocks])
    hashes = [summary.hashes[summary.compared] for summary in summaries]
    size = clusters.sample_size(sum(map(len, hashes)), n_clusters)
    limit = np.partition(np.concatenate(hashes), size - 1)[size - 1]
    sizes = [int((part <= limit).sum()) for part in hashes]
    samples = [(dask.delayed(buckets.sample)(block, limit), n) for block, n in zip(blocks, sizes, strict=True) if n]
    if gpu:
        pieces = [(sample.vectors, n) for sample, n in samples]
        return dask.delayed(vectors.to_numpy(clusters.fit_on_gpus(pieces, dimension, n_clusters, seed)))
    return dask.delayed(buckets.fit)([sample for sample, _ in samples], n_clusters, seed)


def _group(blocks: list[Delayed], centroids: Delayed, dimension: int, keep: rank.Keep) -> list[Delayed]:
    """Bring the rows of each cluster together: one split a partition, one merge a bucket of whole clusters."""
    place = dask.delayed(buckets.place, nout=2)
    placed = dask.persist(*[output for block in blocks for output in place(block, centroids)])
    sizes = np.sum(dask.compute(*placed[1::2]), axis=0)
    at_least = max(_BUCKETS_PER_THREAD * _threads(), -(-int(sizes.sum()) * dimension * 4 // _BUCKET_BYTES))
    n_buckets = min(int(np.count_nonzero(sizes)), at_least)
    bucket_of_cluster = dask.delayed(clusters.pack(sizes.astype(np.float64) ** 2, n_buckets))
    # Groups of partitions, because every split has a task for every bucket: thousands of small partitions would make millions.
    parts = list(placed[0::2])
    per_group = -(-len(parts) // at_least)
    groups = [parts[start : start + per_group] for start in range(0, len(parts), per_group)]
    split, merge = dask.delayed(buckets.split, nout=n_buckets), dask.delayed(buckets.merge)
    pieces = [list(split(group, bucket_of_cluster, n_buckets)) for group in groups]
    return list(dask.persist(*[merge(list(bucket), keep) for bucket in zip(*pieces, strict=True)]))


def _threads() -> int:
    try:
        return max(1, sum(distributed.get_client().nthreads().values()))
    except ValueError:
        return int(CPU_COUNT)
