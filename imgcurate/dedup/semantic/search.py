"""semantic_duplicates(): images whose embeddings point the same way.

This file plans and runs the steps on Dask; what happens inside a task stands in normalise.py, clusters and the nodes of the graph.
"""

from __future__ import annotations

import os
from typing import Any

import dask
import numpy as np
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import identity, schema, vectors
from imgcurate.arguments import check_cosine, check_seed, check_whole_number
from imgcurate.cluster import interruptible
from imgcurate.dedup.dataframes import inputs
from imgcurate.dedup.dataframes.ids import check_id_type, id_dtype
from imgcurate.dedup.graph import rank, rules
from imgcurate.dedup.result import Duplicates, check_eps, thresholds
from imgcurate.dedup.semantic import corpus, ground_truth, normalise, steps
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic.clusters import kmeans, sample
from imgcurate.dedup.work.mapped import work_folder

#: Pairs are stored for other thresholds as long as there are not more than so many in all, or an image.
_MOST_PAIRS, _MOST_PAIRS_PER_IMAGE = 20_000_000, 50
_SURVEYED_PAIRS, _FEWEST_SURVEYED, _MOST_SURVEYED = 10_000, 512, 2048


@interruptible
def semantic_duplicates(
    frame: Any,
    *,
    eps: float | None = None,
    n_clusters: int | None = None,
    keep: rank.Keep = "largest",
    rule: rules.Rule = "cover",
    probes: int = 2,
    exact: bool = False,
    min_similarity: float | None = None,
    against: Any = None,
    seed: int = 42,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
    centroids: Any = None,
    work: str | os.PathLike[str] | None = None,
) -> Duplicates:
    """Find images whose embeddings are within `eps` of that of an image that stays.

    Vectors are scaled to unit length and grouped by k-means; images that share a cluster near to both are compared, and
    a rule decides on the graph of all pairs which images go. ``exact=True`` compares every pair that can be near enough, and one cluster,
    the default up to about 100,000 images, compares all; else `Duplicates.recall` tells how many pairs were missed.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame, or pair of ids and a matrix of shape (n, d)
        With `id_field` (unique strings or integers; of a frame in memory it may be the index) and `embedding_field` (vectors of one length). Rows
        with an ``error``, and rows whose vector is null, not finite or zero, are never compared and never removed.
    eps : float, optional
        Two images are duplicates where their cosine is at least ``1 - eps``; ``1e-6`` is equal up to rounding. Default: what is known of the
        encoder that the type of the embedding column names (0.01 for CLIP, 0.2 for ``efficientnet-lite0``), else 0.01, as for cuDF's columns, which
        name none; the result says which.
    n_clusters : int, optional
        Default: 1, or where that costs less for so many vectors of their length about ``sqrt(n / 2)``, above half a million ``n / 1000``. At
        most one cluster an image is made.
    keep : {"largest", "hard", "easy", "random", "id"} or list of (column, "min" | "max")
        Which image of a group of duplicates stays: the one with the most pixels, of as many that with the most bytes, of as many that with the
        lowest id (where the frame has ``width``, ``height`` and ``bytes``, as after `embed`; else ``"hard"``, and the result says so); the
        farthest from its centroid; the nearest; one drawn by `seed`; the one with the lowest id; or the best by columns such as
        ``[("aesthetic_score", "max"), ("width", "max")]`` (null values last).
    rule : {"cover", "pointwise", "component"}
        ``cover``: an image goes only where a better-ranked one that is *kept* is within eps. ``pointwise``: it goes where any better-ranked
        one is, kept or not, as SemDeDup and NeMo Curator do. ``component``: of images that are connected by pairs, the best-ranked stays.
    probes : int
        1: an image goes to its nearest cluster, as in other tools. More: to up to so many and one further that are nearly as near as the nearest,
        the farther off the more probes there are; as many as there are clusters lose no pair.
    exact : bool
        Lose no pair: an image goes to every cluster that may hold a partner of it, or everything is compared, whichever is cheaper.
    min_similarity : float, optional
        Down to which cosine pairs are stored, for other thresholds to be tried. Default: ``1 - 2 * eps``, or as far down towards it as a
        sample says that the pairs are at most 20 million or 50 an image.
    against : as `frame`, or path, optional
        A corpus that `frame` is compared with too, and that is kept whole: a frame with the same two columns, which is read once and compared
        in full, or a folder that `save_embeddings` wrote, of which only the clusters are read that images of `frame` go to.
    seed : int
        Of k-means and of ``keep="random"``.
    id_field, embedding_field : str
    centroids : array of shape (k, d), optional
        Centroids to use instead of k-means; they are scaled to unit length.
    work : str or path, optional
        A folder on a disk that every worker sees, for the vectors of a frame that is large against the workers' memory: it takes about twice their
        float32 bytes (more with `exact`, more probes, or vectors without any structure), and a call that was stopped goes on from it. It is this
        frame's own: another call in it takes its place, and it may be removed when the result is no longer needed. Default: a temporary
        folder, where all workers are on this machine. Small frames stay in memory.

    Returns
    -------
    Duplicates
        Its frames are lazy views of pairs that lie on the cluster. Where `frame` lies in memory they are pandas (or cuDF) frames, computed when they
        are asked for.

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
    Eager: `frame` is computed once and its pairs are found. Its unit vectors stay in the workers' memory or in files for as long as the result is
    held, for `recall`; which is decided by the sizes of some partitions and an eighth of the workers' memory, and both ways find the same
    pairs. The client receives some numbers a partition. What is removed does not depend on how the frame is partitioned.

    Examples
    --------
    >>> matrix = np.array([[1, 0], [0, 1], [1, 0.01]], dtype=np.float32)
    >>> semantic_duplicates((["a", "b", "c"], matrix), keep="id").pairs[["image_id", "duplicate_of"]]
      image_id duplicate_of
    0        c            a
    """
    _check_options(eps, n_clusters, rule, probes, exact, min_similarity)
    check_seed(seed)
    inputs.refuse_name(id_field, "semantic_duplicates", ("duplicate_of", "similarity", "cluster"))
    keep, why_keep = rank.in_force(keep, getattr(frame, "columns", ()), "hard")
    key_fields, given_frame = rank.keep_columns(keep), frame
    frame, at_once = inputs.as_frame(frame, "semantic_duplicates", id_field, embedding_field, key_fields)
    _check_frame(frame, id_field, embedding_field, key_fields)
    old = corpus.open_corpus(against, id_field, embedding_field) if against is not None else None
    if old is not None and old.centroids is not None:
        if centroids is not None or n_clusters is not None:
            raise ValueError(
                "the corpus given as against= brings its own centroids; leave n_clusters and centroids out"
            )
        centroids = old.centroids
    given = _given_centroids(centroids, n_clusters)
    work = None if work is None else work_folder(work)

    rows = frames.prepare(frame, id_field, embedding_field, key_fields, seed, work)
    if given is not None:
        rows.refuse_other_dimension(given.shape[1], "centroids", embedding_field)
    encoder = identity.one(rows.encoders, "the frame")
    why_eps = ""
    if eps is None:
        eps, why_eps = thresholds.eps_of(encoder)
        _check_similarity(min_similarity, eps)
    n = rows.n_compared
    on_gpu = vectors.on_gpu(frame._meta)
    k = len(given) if given is not None else n_clusters or kmeans.choose_n_clusters(n, rows.dimension, probes, on_gpu)
    k = k if given is not None else min(k, n)
    least = min_similarity
    if least is None:
        least = _affordable(rows, eps) if n else max(1 - 2 * eps, -1)
    pairs, fixed = steps.Pairs([], []), None
    crossed: list[Delayed] = []
    if n:
        # Pairs are stored a little further down, so that 1 - eps may be rounded either way.
        search = steps.Search(k, probes, max(least - 1e-7, -1), exact, seed, given, min_similarity is None)
        pairs = steps.find_pairs(rows, search, on_gpu)
        if old is not None:
            crossed, fixed = old.compare(rows, probes, exact, search.least)
    return Duplicates(
        pairs.graph(rows, keep, crossed, fixed),
        like=frame._meta,
        id_dtype=id_dtype(frame._meta[id_field]),
        id_field=id_field,
        n_rows=rows.n_rows,
        n_compared=n,
        n_clusters=k,
        eps=float(eps),
        min_similarity=float(least),
        rule=rule,
        keep=keep,
        chosen={"eps": why_eps, "keep": why_keep},
        at_once=at_once,
        recall=None if old is not None else ground_truth.ExactSearch(rows, pairs.tables),
        folder=rows.folder,
        images=given_frame,
    )


def check(
    frame: Any,
    *,
    eps: float | None,
    n_clusters: int | None,
    keep: rank.Keep,
    rule: rules.Rule,
    probes: int = 2,
    exact: bool = False,
) -> None:
    """Raise what `semantic_duplicates` would raise of these arguments, as far as it is known before anything is computed."""
    _check_options(eps, n_clusters, rule, probes, exact, None)
    _check_frame(frame, "image_id", "embedding", rank.keep_columns(keep))


def _check_options(
    eps: float | None,
    n_clusters: int | None,
    rule: rules.Rule,
    probes: int,
    exact: bool,
    min_similarity: float | None,
) -> None:
    if eps is not None:
        check_eps(eps)
    if n_clusters is not None:
        check_whole_number("n_clusters", n_clusters, instead=", or None to choose by size")
    check_whole_number("probes", probes, instead="; exact=True loses no pair at all")
    if not isinstance(exact, bool):
        raise ValueError(f"exact={exact!r} must be True or False")
    if min_similarity is not None:
        check_cosine("min_similarity", min_similarity)
        if eps is not None:
            _check_similarity(min_similarity, eps)
    if rule not in rules.RULES:
        raise ValueError(
            f"rule={rule!r} is unknown: give 'cover' (every removed image has a kept twin), 'pointwise' or 'component'"
        )


def _check_similarity(min_similarity: float | None, eps: float) -> None:
    if min_similarity is not None and float(min_similarity) > 1 - eps + 1e-9:
        raise ValueError(
            f"min_similarity={min_similarity:g} is above 1 - eps = {1 - eps:g}: the pairs that eps asks for would not be stored"
        )


def _check_frame(frame: Any, id_field: str, embedding_field: str, key_fields: list[str]) -> None:
    schema.require(frame, [id_field, embedding_field, *key_fields], "semantic_duplicates")
    columns = list(dict.fromkeys([id_field, embedding_field, *key_fields]))
    # Asked of Arrow, because pandas cannot be asked about cuDF's types.
    known = vectors.to_arrow(frame._meta[columns]).schema
    if not pa.types.is_null(known.field(id_field).type):  # of an object column nothing is known before it is read
        check_id_type(known.field(id_field).type, id_field)
    kind = known.field(embedding_field).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        raise TypeError(
            f"column {embedding_field!r} holds text, not vectors; where it held arrays, Dask has turned them into text: store "
            "them as lists (Arrow, Parquet), or give the pandas frame itself, before it becomes one of Dask"
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


def _affordable(rows: frames.Frame, eps: float) -> float:
    """Return down to which cosine pairs are stored where the user does not say."""
    wanted = max(1 - 2 * eps, -1)
    budget = max(_MOST_PAIRS, _MOST_PAIRS_PER_IMAGE * rows.n_compared) / (rows.n_compared**2 / 2)
    if budget >= 1:
        return wanted
    # So many rows that as many pairs of them as may be stored are some thousands.
    size = int(np.clip((2 * _SURVEYED_PAIRS / budget) ** 0.5, _FEWEST_SURVEYED, _MOST_SURVEYED))
    samples, size = sample.draw(rows, size)
    return float(dask.delayed(normalise.affordable)(samples, size, wanted, 1 - eps, budget).compute())
