"""outliers(): how far each image is from all others, to look at the strangest."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from imgcurate import vectors
from imgcurate.nearest.result import Neighbours
from imgcurate.nearest.search import neighbours


def outliers(
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
) -> Any:
    """Score each image by its mean distance from the `k` images that are nearest to it: the higher, the stranger.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame, pair of ids and a matrix of shape (n, d), or Neighbours
        Of what `neighbours` found nothing is computed again, and the other arguments are not looked at.
    k, n_clusters, probes, exact, seed, id_field, embedding_field, work
        As for `neighbours`.

    Returns
    -------
    Dask DataFrame, or pandas or cuDF DataFrame where `frame` lies in memory
        One row a compared image: its id and ``outlier_score``, float32, 0 to 2: the mean of 1 - cosine over its neighbours, NaN where it has none.

    Raises
    ------
    KeyError, ValueError, TypeError
        As `neighbours` does.

    Notes
    -----
    The distances of all k, and not that of the k-th alone, because the mean moves less with k; and distances as they are, not against those of the
    neighbours, as the local outlier factor takes them, which calls the rim of every dense group strange. In embeddings this simple score does as well as
    any: Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022; Kuan and Mueller, "Back to the basics: revisiting
    out-of-distribution detection baselines", 2022.

    Remove duplicates first: a stranger is near to its copies, and two altered ones among the ten neighbours hide most strangers (measured in
    ``benchmarks/outliers.py``).

    Examples
    --------
    >>> matrix = np.array([[1, 0], [0.9, 0.1], [0.9, -0.1], [0, 1]], dtype=np.float32)
    >>> scores = outliers((["a", "b", "c", "d"], matrix), k=2)
    >>> scores.nlargest(1, "outlier_score")["image_id"].tolist()
    ['d']

    >>> strange = outliers(frame).nlargest(50, "outlier_score").compute()  # doctest: +SKIP

    And to see them, in a notebook:

    >>> frame = frame.merge(outliers(frame), on="image_id", how="left")  # doctest: +SKIP
    >>> show(frame, sort=("outlier_score", "max"), columns="outlier_score")  # doctest: +SKIP
    """
    found = frame
    if not isinstance(frame, Neighbours):
        found = neighbours(
            frame,
            k,
            n_clusters=n_clusters,
            probes=probes,
            exact=exact,
            seed=seed,
            id_field=id_field,
            embedding_field=embedding_field,
            work=work,
        )
    lists = found.frame
    columns = [found.id_field, "similarities"]
    if hasattr(lists, "map_partitions") and hasattr(lists, "dask"):
        return lists[columns].map_partitions(_score, found.id_field, meta=_score(lists._meta[columns], found.id_field))
    return _score(lists[columns], found.id_field)


def _score(part: Any, id_field: str) -> Any:
    """Return the ids of a partition and their scores."""
    similarities = vectors.to_arrow(part)["similarities"].combine_chunks()
    lengths = np.diff(similarities.offsets.to_numpy())
    values = similarities.flatten().to_numpy().astype(np.float64)
    sums = np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights=1 - values, minlength=len(lengths))
    with np.errstate(invalid="ignore"):
        scores = (sums / lengths).astype(np.float32)
    return part[[id_field]].assign(outlier_score=vectors.to_series(scores, "outlier_score", part))
