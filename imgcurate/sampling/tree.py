"""Clusters of clusters, by hierarchical k-means with resampling: groups of images at the bottom, broad concepts at the top.

Of Vo et al., "Automatic Data Curation for Self-Supervised Learning: A Clustering-Based Approach", 2024. k-means puts most centroids where most images
are; centroids of centroids, and centroids of equally many from each cluster, lie more evenly over what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from imgcurate.dedup.semantic.clusters import assign, kmeans
from imgcurate.dedup.semantic.store import RowVectors

#: Where the user names no number of leaves, so many images for each. Each level above has a tenth of the clusters, but not fewer than ten, and ends the
#: tree where these are no more than a hundred: of fewer and more concepts than that both are brought out.
_IMAGES_PER_LEAF, _PER_PARENT, _FEWEST, _HIGHEST = 100, 10, 10, 100
#: k-means is fitted so many times more, to what lies nearest to each centroid: to half of a cluster of mean size. On mixtures of which one concept had
#: 90 % of the rows more did not even out much more.
_RESAMPLED = 3


class Tree(NamedTuple):
    """Levels of clusters.

    Attributes
    ----------
    centroids : numpy.ndarray of shape (k, d), float32
        Of the leaves.
    parents : list of numpy.ndarray
        Of each level but the highest, from the leaves up: in which cluster of the next level each cluster lies.
    """

    centroids: np.ndarray
    parents: list[np.ndarray]


def choose_levels(n: int, most: int, leaves: int | None = None) -> list[int]:
    """Return how many clusters each level has, from the leaves up, for `n` images.

    Parameters
    ----------
    n : int
    most : int
        The largest number of leaves that can be fitted.
    leaves : int, optional

    Examples
    --------
    >>> choose_levels(100_000, 10_000), choose_levels(60, 10_000)
    ([1000, 100], [1])
    """
    levels = [leaves or max(1, min(n // _IMAGES_PER_LEAF, most))]
    while levels[-1] > (_FEWEST if len(levels) == 1 else _HIGHEST):
        levels.append(max(levels[-1] // _PER_PARENT, _FEWEST))
    return levels


def grow(sample: Any, levels: Sequence[int], seed: int) -> Tree:
    """Fit a tree to a sample.

    Parameters
    ----------
    sample : numpy.ndarray of shape (m, d), float32, or RowVectors
        Unit vectors in an order that does not depend on partitioning.
    levels : sequence of int
        How many clusters each level has, falling; the first at most m.
    seed : int
    """
    centroids, parents = _level(sample, levels[0], seed)[0], []
    rows = centroids
    for number in levels[1:]:
        rows, label = _level(rows, number, seed)
        parents.append(label)
    return Tree(centroids, parents)


def _level(rows: Any, n_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return centroids of `rows`, and which is the nearest to each."""
    centroids = kmeans.fit(rows, n_clusters, seed, "k-means++")
    placed = assign.place(rows, centroids)
    most = len(rows) // (2 * n_clusters)
    for _ in range(_RESAMPLED if most > 1 else 0):
        near = _nearest_of_each(placed, most)
        if len(near) < n_clusters:
            break
        nearest = rows.only(near) if isinstance(rows, RowVectors) else rows[near]
        centroids = kmeans.fit(nearest, n_clusters, seed, "k-means++")
        placed = assign.place(rows, centroids)
    return centroids, placed.labels[:, 0].astype(np.int64)


def _nearest_of_each(placed: assign.Placed, most: int) -> np.ndarray:
    """Return up to so many rows of each cluster, those nearest to its centroid."""
    label = placed.labels[:, 0]
    order = np.lexsort((placed.distance, label))
    starts = np.searchsorted(label[order], label[order])
    return np.sort(order[np.arange(len(order)) - starts < most])
