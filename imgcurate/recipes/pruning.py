"""Filters by embeddings alone: SemDeDup, SSL prototypes, and D4, which is both."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np

from imgcurate import vectors
from imgcurate.arguments import check_cosine
from imgcurate.dedup import remove, semantic_duplicates
from imgcurate.dedup.dataframes import inputs
from imgcurate.dedup.result.thresholds import check_eps
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic.clusters import assign, sample
from imgcurate.recipes.steps import Step, check_n_clusters, check_share, column
from imgcurate.rowwise import map_rows
from imgcurate.scores.fraction import top_fraction

_DISTANCE = "distance from the nearest centroid"


def semdedup(eps: float | None = None, *, n_clusters: int | None = None, seed: int = 42) -> list[Step]:
    """Return SemDeDup: within clusters, of images that are nearly equal the one that is farthest from the centroid stays.

    Parameters
    ----------
    eps, n_clusters, seed
        As for `semantic_duplicates`. SemDeDup had 50,000 clusters of 440 million images.

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``image_id`` and ``embedding``.

    Raises
    ------
    ValueError
        Where an option is out of range.

    Notes
    -----
    A. Abbas et al., "SemDeDup", 2023 (arXiv 2303.09540): `semantic_duplicates` with ``keep="hard"``, ``rule="pointwise"`` and ``probes=1``. Its
    own defaults find pairs that a border of clusters parts, and remove no image without a twin that stays.

    Examples
    --------
    >>> kept, table = recipes.apply(frame, recipes.laion() + recipes.semdedup(0.03))  # doctest: +SKIP
    """
    if eps is not None:
        check_eps(eps)
    check_n_clusters(n_clusters)

    def deduplicated(frame: Any) -> Any:
        found = _semdedup(frame, seed, eps=eps, n_clusters=n_clusters)
        return remove(frame, found, missing="ignore")

    return [("no semantic duplicate", deduplicated)]


def prototypes(fraction: float, *, n_clusters: int | None = None, seed: int = 42) -> list[Step]:
    """Return pruning by SSL prototypes: the images that are nearest to the centroid of their cluster, the most prototypical, go.

    Parameters
    ----------
    fraction : float
        Which share of the images with an embedding stays: those that are farthest from their centroids.
    n_clusters : int, optional
        Default: about ``sqrt(n / 2)``.
    seed : int
        Of k-means.

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``image_id`` and ``embedding``.

    Raises
    ------
    ValueError
        Where an option is out of range; when it is applied, where no row has a usable vector.

    Notes
    -----
    B. Sorscher et al., "Beyond neural scaling laws", NeurIPS 2022 (arXiv 2206.14486), with spherical k-means as D4 has it. All clusters are pruned by one
    distance, so that dense ones lose more.

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> from imgcurate import recipes
    >>> rows = {"image_id": ["a", "b", "c"], "embedding": [[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]}
    >>> steps = recipes.prototypes(0.34, n_clusters=1)
    >>> recipes.apply(dd.from_dict(rows, npartitions=1), steps)[0]["image_id"].compute().tolist()
    ['b', 'c']
    """
    check_share("fraction", fraction)
    check_n_clusters(n_clusters)

    def far_from_centroids(frame: Any) -> Any:
        distances = _distances(frame, n_clusters, seed)
        return top_fraction(frame.assign(**{_DISTANCE: distances}), _DISTANCE, fraction)[list(frame.columns)]

    return [(f"the {100 * fraction:g}% farthest from their centroids", far_from_centroids)]


def d4(
    r_proto: float,
    *,
    r_dedup: float = 0.75,
    min_similarity: float = 0.9,
    n_clusters: int | None = None,
    seed: int = 42,
) -> list[Step]:
    """Return D4: SemDeDup down to a share, then k-means of what is left and pruning by SSL prototypes down to another.

    Parameters
    ----------
    r_proto : float
        Which share of what SemDeDup left `prototypes` leaves.
    r_dedup : float, default 0.75
        Which share of the rows SemDeDup leaves at most: by the smallest eps that does so.
    min_similarity : float, default 0.9
        Down to which cosine pairs are stored, among which that eps is looked for.
    n_clusters, seed
        As for `semantic_duplicates` and `prototypes`.

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``image_id`` and ``embedding``.

    Raises
    ------
    ValueError
        Where an option is out of range; when it is applied, where all pairs that are stored leave more than `r_dedup`.

    Notes
    -----
    K. Tirumala et al., "D4", NeurIPS 2023 (arXiv 2308.12284), which measured it on text. It clusters anew after duplicates are gone, because they draw
    centroids to themselves.

    Examples
    --------
    >>> from imgcurate import recipes
    >>> [name for name, _ in recipes.d4(0.5)]
    ['no semantic duplicate, at most 75% left', 'the 50% farthest from their centroids']
    """
    check_share("r_dedup", r_dedup)
    check_share("r_proto", r_proto)
    check_cosine("min_similarity", min_similarity)

    def deduplicated(frame: Any) -> Any:
        stored = {"eps": 1 - min_similarity, "min_similarity": min_similarity, "n_clusters": n_clusters}
        return remove(frame, _semdedup(frame, seed, **stored).to_fraction(r_dedup), missing="ignore")

    first = (f"no semantic duplicate, at most {100 * r_dedup:g}% left", deduplicated)
    return [first, *prototypes(r_proto, n_clusters=n_clusters, seed=seed)]


def _semdedup(frame: Any, seed: int, **options: Any) -> Any:
    column(frame, "embedding")
    return semantic_duplicates(frame, keep="hard", rule="pointwise", probes=1, seed=seed, **options)


def _distances(frame: Any, n_clusters: int | None, seed: int) -> Any:
    """Return 1 - cosine of each row to the nearest centroid of k-means, as a column; null where a row has no vector."""
    column(frame, "embedding")
    checked = inputs.as_frame(frame, "prototypes", "image_id", "embedding").frame
    rows = frames.prepare(checked, "image_id", "embedding", [], seed)
    if not rows.n_compared:
        raise ValueError("no row that is left has a usable vector: there is nothing to cluster")
    k = min(n_clusters or max(1, round((rows.n_compared / 2) ** 0.5)), rows.n_compared)
    centroids = dask.persist(sample.fit(rows, k, seed, vectors.on_gpu(frame._meta)))[0]
    meta = vectors.empty_like(frame._meta, ["centroid_distance"])["centroid_distance"]
    return map_rows(frame[["embedding"]], _distance, centroids, meta=meta)


def _distance(part: Any, centroids: np.ndarray) -> Any:
    matrix = vectors.to_matrix(part["embedding"], centroids.shape[1])
    unit, valid = vectors.unit_rows(matrix)
    distances = np.full(len(matrix), np.nan, dtype=np.float32)
    if valid.any():
        distances[valid] = assign.place(vectors.take(unit, valid), centroids).distance
    return vectors.to_series(distances, "centroid_distance", part)
