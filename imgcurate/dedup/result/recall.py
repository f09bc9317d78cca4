"""Which share of the true pairs was found, estimated from an exact search for a random sample of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from imgcurate import vectors
from imgcurate.dedup.graph import nodes, rank, rules
from imgcurate.dedup.semantic import join
from imgcurate.dedup.semantic.normalise import Rows


class Recall(NamedTuple):
    """An estimate of the share of true pairs that were found.

    Attributes
    ----------
    recall, low, high : float
        The share in the sample, and the ends of its 95 % interval; NaN, 0 and 1 where no image of the sample has a true partner.
    true_pairs, found_pairs, images : int
        Pairs of the sampled images that an exact search finds, those that had been found, and the sampled images.
    """

    recall: float
    low: float
    high: float
    true_pairs: int
    found_pairs: int
    images: int

    def __repr__(self) -> str:
        if not self.true_pairs:
            return f"Recall(no pairs: none of {self.images:,} sampled images has a true partner, so there was nothing to find)"
        return (
            f"Recall(recall={self.recall:.4g}, low={self.low:.4g}, high={self.high:.4g}, true_pairs={self.true_pairs}, "
            f"found_pairs={self.found_pairs}, images={self.images})"
        )


def sample(table: Any, rows: Rows, seed: int, size: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return a block's candidates for the sample: hashes, the rows' numbers, and vectors.

    The whole frame's `size` lowest hashes are the sample, whatever the partitions.
    """
    table = nodes.table_of(table)
    hashes = rank.hash_ids(table["id"].combine_chunks(), seed)
    chosen = np.argsort(hashes, kind="stable")[:size]
    return hashes[chosen], table["row"].to_numpy()[chosen], vectors.take(rows.vectors, chosen)


def draw(candidates: Sequence[tuple[np.ndarray, np.ndarray, Any]], size: int) -> tuple[np.ndarray, Any]:
    """Return the sample's row numbers and vectors."""
    hashes, numbers = (np.concatenate(column) for column in list(zip(*candidates, strict=True))[:2])
    chosen = np.argsort(hashes, kind="stable")[:size]
    xp = vectors.namespace(candidates[0][2])
    return numbers[chosen], vectors.take(xp.concatenate([matrix for _, _, matrix in candidates]), chosen)


def true_pairs(drawn: tuple[np.ndarray, Any], table: Any, rows: Rows, least: float) -> np.ndarray:
    """Count each sampled image's partners in a block, itself excluded."""
    sampled, matrix = drawn
    numbers = nodes.table_of(table)["row"].to_numpy()
    pairs = join.pairs_between(matrix, rows.vectors, least)
    other = sampled[pairs.left] != numbers[pairs.right]
    return np.bincount(pairs.left[other], minlength=len(sampled))


def found_pairs(
    drawn: tuple[np.ndarray, Any], ranked: nodes.Nodes, edges: Sequence[rules.Edges], least: float
) -> np.ndarray:
    """Count each sampled image's partners in the graph, copies among them."""
    n = len(ranked.table)
    leader = np.arange(n)
    leader[ranked.copies.copy] = ranked.copies.leader
    size = np.bincount(leader, minlength=n)  # of each leader's group
    partners = (size - 1).astype(np.float64)
    for chunk in edges:
        near = chunk.at_least(least)
        partners += np.bincount(near.later, weights=size[near.earlier], minlength=n)
        partners += np.bincount(near.earlier, weights=size[near.later], minlength=n)
    sampled = drawn[0]
    found = np.zeros(len(sampled), dtype=np.int64)
    if not n:
        return found
    rows = ranked.table["row"].to_numpy()
    order = np.argsort(rows)
    node = order[np.minimum(np.searchsorted(rows[order], sampled), n - 1)]
    there = rows[node] == sampled
    found[there] = np.rint(partners[leader[node[there]]])
    return found


def estimate(true: np.ndarray, found: np.ndarray) -> Recall:
    """Estimate the recall from the pairs of each sampled image; see `Duplicates.recall`.

    Parameters
    ----------
    true, found : numpy.ndarray of shape (images,)
        Partners of each image: all, and those found.

    Examples
    --------
    >>> estimate(np.array([1, 0, 2, 1]), np.array([1, 0, 2, 0])).recall
    0.75
    """
    from scipy.stats import beta

    found = np.minimum(found, true)
    total, hits = int(true.sum()), int(found.sum())
    if not total:
        return Recall(float("nan"), 0.0, 1.0, 0, 0, len(true))
    share = hits / total
    worth = total**2 / int(np.square(true).sum())
    low = float(beta.ppf(0.025, worth * share, worth * (1 - share) + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, worth * share + 1, worth * (1 - share))) if hits < total else 1.0
    return Recall(share, low, high, total, hits, len(true))
