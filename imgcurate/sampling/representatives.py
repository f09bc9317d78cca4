"""representatives(): a smaller set that stands for the whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from imgcurate import identity, vectors
from imgcurate.arguments import check_seed, check_whole_number, is_whole_number
from imgcurate.cluster import interruptible
from imgcurate.dedup.dataframes import inputs
from imgcurate.dedup.dataframes.ids import id_dtype
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.work.mapped import work_folder
from imgcurate.sampling import steps
from imgcurate.sampling.result import Representatives

METHODS = ("farthest-first", "hierarchical")


@interruptible
def representatives(
    frame: Any,
    n: int | None = None,
    *,
    fraction: float | None = None,
    method: str = "farthest-first",
    weight: str | None = None,
    n_clusters: int | Sequence[int] | None = None,
    seed: int = 42,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
    work: str | os.PathLike[str] | None = None,
) -> Representatives:
    """Choose a smaller set of images that stands for the whole.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame, or pair of ids and a matrix of shape (n, d)
        With `id_field` (unique strings or integers; of a frame in memory it may be the index) and `embedding_field` (vectors of one length). Rows
        with an ``error``, and rows whose vector is null, not finite or zero, are never taken.
    n : int, optional
        How many images to take: just so many are.
    fraction : float, optional
        Which share of the images that can be taken, above 0 to 1, instead of `n`; rounded up.
    method : {"farthest-first", "hierarchical"}
        ``"farthest-first"`` covers what there is: k-means groups the images, each cluster gives its share of the whole, and inside it each image that is
        taken is the one least like those taken before (greedy k-centre, or core-set, selection). ``"hierarchical"`` balances concepts, so that what is
        rare in the frame is less so in the set: of clusters of clusters each gives as many as any other, or all that it has, and so down to the
        smallest, from which images are drawn at random.
    weight : str, optional
        A column of numbers, such as ``"aesthetic_score"``, by which of those that stand for the same the best is taken, null and NaN last. Farthest-first:
        each chosen image gives its place to the one of highest weight among those to which no other chosen one is nearer. Hierarchical: of the images
        of a smallest cluster those of highest weight are taken, not random ones. How many each cluster gives does not depend on it.
    n_clusters : int or sequence of int, optional
        Farthest-first: default 1 up to 2,048 images, else one for each 1,000. Hierarchical: the smallest clusters, or the clusters of each level from
        these up; default one for each 100 images, and at each level above a tenth, up to one of at most 100.
    seed : int
        Of k-means, and of what is drawn at random.
    id_field, embedding_field : str
    work : str or path, optional
        As for `semantic_duplicates`: a folder on a disk that every worker sees, for vectors that are large against the workers' memory. Default: a
        temporary folder, where all workers are on this machine.

    Returns
    -------
    Representatives
        Its ``frame`` has one row an image that was taken, lazily: its id, ``cluster``, and ``rank``, from 0, in the order in which those of its cluster
        were taken. ``frame.merge(found.frame, on="image_id")`` is the smaller set. ``n_excluded`` tells how many images could not be taken.

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError
        Where neither or both of `n` and `fraction` are given, or more images are asked for than can be taken; where an option is out of range, ids
        are null or repeat, or vectors are of several lengths or encoders.
    TypeError
        Where a column does not hold what it should.

    Notes
    -----
    Eager: `frame` is computed once, and its representatives are chosen; their ids stay in the workers' memory for as long as the result is held.
    What is chosen depends on the vectors, the ids, the weights and the seed, not on how the frame is partitioned.

    A cluster of more than 2,048 images is cut at random into parts for farthest-first, each of which has a number in ``cluster`` of its own. Where
    there is one cluster, no set of `n` images covers the frame at less than half the distance (Gonzalez, "Clustering to minimize the maximum intercluster distance",
    1985; Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", 2018). Shares are rounded by the largest
    remainder. Of equally far images the one of the lowest id is taken.

    Hierarchical is Vo et al., "Automatic data curation for self-supervised learning: a clustering-based approach", 2024: hierarchical k-means with
    resampling, fitted to a sample where the frame is large, and balanced sampling.

    Duplicates are images like others: remove them first.

    Examples
    --------
    >>> matrix = np.array([[1, 0], [0.96, 0.28], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> representatives((["a", "b", "c", "d"], matrix), n=2).frame
      image_id  cluster  rank
    0        c        0     0
    1        d        0     1

    >>> found = representatives(frame, fraction=0.1, method="hierarchical")  # doctest: +SKIP
    >>> small = frame.merge(found.frame, on="image_id")  # doctest: +SKIP
    """
    _check(n, fraction, method, weight, seed)
    inputs.refuse_name(id_field, "representatives", ("cluster", "rank"))
    levels = _levels(n_clusters, method)
    key_fields = [weight] if weight is not None else []
    frame, at_once = inputs.as_frame(frame, "representatives", id_field, embedding_field, key_fields)
    _check_numbers(frame._meta, key_fields)
    work = None if work is None else work_folder(work)
    rows = frames.prepare(frame, id_field, embedding_field, key_fields, seed, work)
    identity.one(rows.encoders, "the frame")
    n = _how_many(n, fraction, rows)
    plan = steps.cover if method == "farthest-first" else steps.balance
    found, groups = plan(rows, n, levels, seed, weight is not None, vectors.on_gpu(frame._meta))
    return Representatives(
        found,
        rows,
        like=frame._meta,
        id_dtype=id_dtype(frame._meta[id_field]),
        id_field=id_field,
        n=n,
        method=method,
        n_clusters=groups,
        at_once=at_once,
    )


def _check(n: Any, fraction: Any, method: Any, weight: Any, seed: Any) -> None:
    if (n is None) == (fraction is None):
        raise ValueError("give either n, how many images to take, or fraction, which share of them")
    if n is not None:
        check_whole_number("n", n, instead="; fraction= takes a share")
    if fraction is not None and (
        isinstance(fraction, bool) or not isinstance(fraction, Real) or not 0 < float(fraction) <= 1
    ):
        raise ValueError(f"fraction={fraction!r} must be a share above 0 and at most 1; n= takes a number of images")
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: give {' or '.join(map(repr, METHODS))}")
    if weight is not None and not isinstance(weight, str):
        raise TypeError(f"weight={weight!r} must be the name of a column of numbers")
    check_seed(seed)


def _levels(n_clusters: Any, method: str) -> list[int]:
    """Return how many clusters each level has, from the smallest ones up; none where that is to be chosen by size."""
    if n_clusters is None:
        return []
    several = (
        method == "hierarchical" and isinstance(n_clusters, Sequence | np.ndarray) and not isinstance(n_clusters, str)
    )
    levels = list(n_clusters) if several else [n_clusters]
    if not levels or not all(map(is_whole_number, levels)):
        of_levels = ", or one for each level" if method == "hierarchical" else ""
        raise ValueError(
            f"n_clusters={n_clusters!r} must be a whole number of at least 1{of_levels}, or None to choose by size"
        )
    if levels != sorted(levels, reverse=True):
        raise ValueError(f"n_clusters={n_clusters!r} must fall: the smallest clusters, which are the most, come first")
    return [int(level) for level in levels]


def _check_numbers(meta: Any, columns: list[str]) -> None:
    for name in columns:
        kind = vectors.to_pandas(meta[[name]]).dtypes[name]
        if not pd.api.types.is_numeric_dtype(kind):
            raise TypeError(f"column {name!r} holds {kind}, not numbers to weigh images by")


def _how_many(n: int | None, fraction: float | None, rows: frames.Frame) -> int:
    """Return how many images are to be taken; raises where there are not so many."""
    if n is None:
        # The tolerance undoes what binary fractions add: 0.3 * 10 is 3.
        n = max(1, int(np.ceil(float(fraction or 0) * rows.n_compared - 1e-9 * rows.n_compared)))
    if n > rows.n_compared:
        excluded = rows.n_rows - rows.n_compared
        raise ValueError(
            f"n={n:,} is more than the {rows.n_compared:,} images that have a usable vector and no error ({excluded:,} have not); ask for fewer"
        )
    return int(n)
