"""semantic_duplicates(): images whose embeddings point the same way.

This file plans and runs the steps on Dask; what happens inside a task stands in normalise.py, exchange.py and nodes.py.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import dask
import numpy as np
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import schema, vectors
from imgcurate.dedup import corpus, recall
from imgcurate.dedup.graph import rank, rules
from imgcurate.dedup.result import Duplicates, build_graph, check_eps, id_dtype
from imgcurate.dedup.semantic import exchange, kmeans, normalise
from imgcurate.dedup.semantic import frame as frames

#: Pairs are stored for other thresholds as long as there are not more than so many in all, or an image.
_MOST_PAIRS, _MOST_PAIRS_PER_IMAGE = 20_000_000, 50
_SURVEYED_ROWS = 4096


def semantic_duplicates(
    frame: Any,
    *,
    eps: float = 0.01,
    n_clusters: int | None = None,
    keep: rank.Keep = "hard",
    rule: rules.Rule = "cover",
    probes: int = 2,
    exact: bool = False,
    min_similarity: float | None = None,
    against: Any = None,
    seed: int = 42,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
    centroids: Any = None,
) -> Duplicates:
    """Find images whose embeddings are within `eps` of that of an image that stays.

    Vectors are scaled to unit length and grouped by k-means; images that share one of their `probes` nearest clusters are compared, and
    a rule decides on the graph of all pairs which images go. ``exact=True`` compares every pair that can be near enough, and one cluster,
    the default up to about 100,000 images, compares all; else `Duplicates.recall` tells how many pairs were missed.

    Parameters
    ----------
    frame : Dask DataFrame
        With `id_field` (unique strings or integers) and `embedding_field` (vectors of one length). Rows with an ``error``, and
        rows whose vector is null, not finite or zero, are never compared and never removed.
    eps : float
        Two images are duplicates where their cosine is at least ``1 - eps``; ``1e-6`` is equal up to rounding.
    n_clusters : int, optional
        Default: 1 or about ``sqrt(n / 2)``, whichever costs less for so many vectors of their length. At most one cluster an image is made.
    keep : {"hard", "easy", "random", "id"} or list of (column, "min" | "max")
        Which image of a group of duplicates stays: the farthest from its centroid, the nearest, one drawn by `seed`, the one with the lowest
        id, or the best by columns such as ``[("aesthetic_score", "max"), ("width", "max")]`` (null values last).
    rule : {"cover", "pointwise", "component"}
        ``cover``: an image goes only where a better-ranked one that is *kept* is within eps. ``pointwise``: it goes where any better-ranked
        one is, kept or not, as SemDeDup and NeMo Curator do. ``component``: of images that are connected by pairs, the best-ranked stays.
    probes : int
        In how many clusters an image is compared; 1 as other tools do. Where more, also in the next one if that is nearly as near.
    exact : bool
        Lose no pair: an image goes to every cluster that may hold a partner of it, or everything is compared, whichever is cheaper.
    min_similarity : float, optional
        Down to which cosine pairs are stored, for other thresholds to be tried. Default: ``1 - 2 * eps``, or as far down towards it as a
        sample says that the pairs are at most 20 million or 50 an image.
    against : Dask DataFrame or path, optional
        A corpus that `frame` is compared with too, and that is kept whole: a frame with the same two columns, which is read once and compared
        in full, or a folder that `save_embeddings` wrote, of which only the clusters are read that images of `frame` go to.
    seed : int
        Of k-means and of ``keep="random"``.
    id_field, embedding_field : str
    centroids : array of shape (k, d), optional
        Centroids to use instead of k-means; they are scaled to unit length.

    Returns
    -------
    Duplicates
        Its frames are lazy views of pairs that lie on the cluster.

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
    Eager: `frame` is computed once and its pairs are found. Its unit vectors stay on the cluster for as long as the result is held, for
    `recall`. The client receives nine bytes an image. What is removed does not depend on how the frame is partitioned.
    """
    check(
        frame, eps=eps, n_clusters=n_clusters, keep=keep, rule=rule, probes=probes, exact=exact,
        min_similarity=min_similarity, id_field=id_field, embedding_field=embedding_field,
    )  # fmt: skip
    if not isinstance(seed, Integral):
        raise ValueError(f"seed={seed!r} must be a whole number")
    old = corpus.open_corpus(against, id_field, embedding_field) if against is not None else None
    if old is not None and old.centroids is not None:
        if centroids is not None or n_clusters is not None:
            raise ValueError(
                "the corpus given as against= brings its own centroids; leave n_clusters and centroids out"
            )
        centroids = old.centroids
    given = _given_centroids(centroids, n_clusters)

    held = frames.prepare(frame, id_field, embedding_field, rank.keep_columns(keep), seed)
    dimension = frames.one_dimension(
        held.summaries, embedding_field, None if given is None else given.shape[1], "centroids"
    )
    frames.one_encoder(held.summaries)
    n = held.n_compared
    on_gpu = vectors.on_gpu(frame._meta)
    k = len(given) if given is not None else n_clusters or kmeans.choose_n_clusters(n, dimension, probes, on_gpu)
    k = k if given is not None else min(k, n)
    least = min_similarity
    if least is None:
        least = _affordable(held, eps) if held.blocks else max(1 - 2 * eps, -1)
    tables: list[Delayed] = []
    found: list[Delayed] = []
    fixed = None
    if held.blocks:
        centers = dask.delayed(given) if given is not None else frames.fit(held, dimension, k, seed, on_gpu)
        # Pairs are stored a little further down, so that 1 - eps may be rounded either way.
        floor = max(least - 1e-7, -1)
        tables, found = _compare(held, centers, dimension, k, probes, floor, exact)
        if old is not None:
            crossed, fixed = old.compare(held, dimension, probes, exact, floor)
            found += crossed
    return Duplicates(
        build_graph(tables, found, keep, fixed),
        like=frame._meta,
        id_dtype=id_dtype(frame._meta[id_field]),
        id_field=id_field,
        n_rows=sum(len(summary.hashes) for summary in held.all_summaries),
        n_compared=n,
        n_clusters=k,
        eps=float(eps),
        min_similarity=float(least),
        rule=rule,
        keep=keep,
        recall=None if old is not None else _Search(held, tables),
    )


def check(
    frame: Any,
    *,
    eps: float,
    n_clusters: int | None,
    keep: rank.Keep,
    rule: rules.Rule,
    probes: int = 2,
    exact: bool = False,
    min_similarity: float | None = None,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
) -> None:
    """Raise what `semantic_duplicates` would raise of these arguments, as far as it is known before anything is computed."""
    check_eps(eps)
    for name, value in (("n_clusters", n_clusters), ("probes", probes)):
        if value is None and name == "n_clusters":
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            instead = ", or None to choose by size" if name == "n_clusters" else "; exact=True loses no pair at all"
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1{instead}")
    if not isinstance(exact, bool):
        raise ValueError(f"exact={exact!r} must be True or False")
    if min_similarity is not None:
        if not isinstance(min_similarity, Real) or not -1 <= float(min_similarity) <= 1:
            raise ValueError(f"min_similarity={min_similarity!r} must be a cosine, -1 to 1")
        if float(min_similarity) > 1 - eps + 1e-9:
            raise ValueError(
                f"min_similarity={min_similarity:g} is above 1 - eps = {1 - eps:g}: the pairs that eps asks for would not be stored"
            )
    if rule not in rules.RULES:
        raise ValueError(
            f"rule={rule!r} is unknown: give 'cover' (every removed image has a kept twin), 'pointwise' or 'component'"
        )
    _check_frame(frame, id_field, embedding_field, rank.keep_columns(keep))


def _check_frame(frame: Any, id_field: str, embedding_field: str, key_fields: list[str]) -> None:
    schema.require(frame, [id_field, embedding_field, *key_fields], "semantic_duplicates")
    columns = list(dict.fromkeys([id_field, embedding_field, *key_fields]))
    # Asked of Arrow, because pandas cannot be asked about cuDF's types.
    known = vectors.to_arrow(frame._meta[columns]).schema
    if not pa.types.is_null(known.field(id_field).type):  # of an object column nothing is known before it is read
        normalise.check_id_type(known.field(id_field).type, id_field)
    kind = known.field(embedding_field).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
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


def _affordable(held: frames.Held, eps: float) -> float:
    """Return down to which cosine pairs are stored where the user does not say."""
    wanted = max(1 - 2 * eps, -1)
    budget = max(_MOST_PAIRS, _MOST_PAIRS_PER_IMAGE * held.n_compared) / (held.n_compared**2 / 2)
    if budget >= 1:
        return wanted
    samples = [sample for sample, _ in frames.sample(held, _SURVEYED_ROWS)]
    return float(dask.delayed(normalise.affordable)(samples, wanted, 1 - eps, budget).compute())


def _compare(
    held: frames.Held, centers: Delayed, dimension: int, n_clusters: int, probes: int, least: float, exact: bool
) -> tuple[list[Delayed], list[Delayed]]:
    """Place all rows, bring those of each cluster together and compare them: the rows' tables, and the pairs."""
    place = dask.delayed(normalise.place, nout=3)
    n = held.n_compared
    placed = dask.persist(
        *[
            output
            for block, offset in zip(held.blocks, held.offsets, strict=True)
            for output in place(block, offset, centers, probes, least, exact)
        ]
    )
    tables, where = list(placed[0::3]), list(placed[1::3])
    sizes = np.sum(dask.compute(*placed[2::3]), axis=0)
    if n_clusters == 1 or (exact and kmeans.all_cost_less(sizes, n, dimension)):
        where, sizes, exact = [dask.delayed(exchange.everywhere)(block) for block in held.blocks], np.array([n]), False
    layout = exchange.lay_out(sizes, frames.threads(), dimension)
    # Groups of partitions, because every split has a task for every bucket: thousands of small partitions would make millions.
    per_group = -(-len(tables) // max(4 * frames.threads(), layout.n_buckets))
    starts = range(0, len(tables), per_group)
    split = dask.delayed(exchange.split, nout=layout.n_buckets + 1)
    pieces = [
        list(split(*(part[start : start + per_group] for part in (held.blocks, where, held.offsets)), layout))
        for start in starts
    ]
    merge = dask.delayed(exchange.merge, nout=2)
    merged = [merge(list(bucket)) for bucket in list(zip(*pieces, strict=True))[:-1]]
    found = [piece[-1] for piece in pieces] + [copies for _, copies in merged]
    inside, across = dask.delayed(exchange.compare_inside), dask.delayed(exchange.compare_across)
    for group in layout.groups():
        members = [merged[number][0] for number in group]
        chosen = None
        if len(group) > 1:
            chosen = dask.delayed(exchange.plan)(members[0], len(group), least)
            members = [dask.delayed(exchange.shorten)(part, chosen) for part in members]
        found += [inside(part, chosen, least, exact) for part in members]
        found += [across(a, b, chosen, least, exact) for at, a in enumerate(members) for b in members[at + 1 :]]
    return tables, list(dask.persist(*found))


class _Search:
    """The exact search of `Duplicates.recall`, which holds the vectors on the cluster."""

    def __init__(self, held: frames.Held, tables: list[Delayed]) -> None:
        self._held, self._tables = held, tables

    def __call__(self, found: Duplicates, size: int, seed: int) -> recall.Recall:
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"sample={size!r} must be a whole number of at least 1")
        if not self._held.blocks:
            return recall.estimate(np.zeros(0, np.int64), np.zeros(0, np.int64))
        least, take = 1 - found.eps, dask.delayed(recall.sample)
        pairs = list(zip(self._tables, self._held.blocks, strict=True))
        drawn = dask.delayed(recall.draw)([take(table, block, seed, size) for table, block in pairs], size)
        true = [dask.delayed(recall.true_pairs)(drawn, table, block, least) for table, block in pairs]
        graphed = found._graph
        known = dask.delayed(recall.found_pairs)(drawn, graphed.nodes, graphed.edges, least)
        *true, known = dask.compute(*true, known)
        return recall.estimate(np.sum(true, axis=0), known)
