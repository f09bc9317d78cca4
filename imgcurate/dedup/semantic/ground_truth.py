"""The ground truth of a search for pairs: of a random sample of images, all that an exact search finds, and those that were found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import numpy as np

from imgcurate import vectors
from imgcurate.arguments import check_whole_number
from imgcurate.dedup.graph import nodes, rank, rules
from imgcurate.dedup.result import Duplicates
from imgcurate.dedup.result.recall import Recall, estimate
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic import join
from imgcurate.dedup.semantic.normalise import Rows


class ExactSearch:
    """The exact search of `Duplicates.recall`, which holds the vectors on the cluster."""

    def __init__(self, rows: frames.Frame, tables: list[Any]) -> None:
        self._rows, self._tables = rows, tables

    def __call__(self, found: Duplicates, size: int, seed: int) -> Recall:
        check_whole_number("sample", size)
        if not self._rows.blocks:
            return estimate(np.zeros(0, np.int64), np.zeros(0, np.int64))
        least, take = 1 - found.eps, dask.delayed(sample)
        pairs = list(zip(self._tables, self._rows.blocks, strict=True))
        drawn = dask.delayed(draw)([take(table, block, seed, size) for table, block in pairs], size)
        true = [dask.delayed(true_pairs)(drawn, table, block, least) for table, block in pairs]
        counted = dask.delayed(found_pairs)
        known = [counted(drawn, part.nodes, part.edges, least) for part in found._graph.parts]
        true, known = dask.compute(true, known)
        every = np.sum(true, axis=0)
        return estimate(every, np.sum([np.zeros_like(every), *known], axis=0))


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
