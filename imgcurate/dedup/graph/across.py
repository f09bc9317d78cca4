"""What a graph of similar pairs says of images of different splits: the nearest of each other split. Runs inside tasks, on the host.

Copies stand in the graph once: where a thousand images of one split equal a thousand of another, that is two thousand answers and not a million pairs.

Growth, for m images with pairs, e pairs and s splits: time (e + m) s log(e + m); memory of a task one chunk of pairs, and s answers an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imgcurate.dedup.graph import rank
from imgcurate.dedup.graph.nodes import Nodes, table_of, take
from imgcurate.dedup.graph.rules import Edges


class Nearest(NamedTuple):
    """The nearest of a split to what leads a group of copies: arrays of one length, by node and split.

    Attributes
    ----------
    node : numpy.ndarray
    split : numpy.ndarray
        Its number.
    similarity : numpy.ndarray of float32
    other : numpy.ndarray
        A node of that split; of equally near ones the first.
    """

    node: np.ndarray
    split: np.ndarray
    similarity: np.ndarray
    other: np.ndarray


def rows_of(ranked: Nodes) -> np.ndarray:
    """Return the numbers of the rows that have pairs or are copies, sorted."""
    return np.sort(ranked.table["row"].to_numpy())


def splits_of(tables: Sequence[Any], rows: np.ndarray, splits: pa.Array) -> np.ndarray:
    """Return the numbers of the splits of those of some blocks' rows that are among `rows`; they are ranked by their split."""
    return pc.index_in(take(tables, rows)["key0"].cast(splits.type), splits).to_numpy()


def count_splits(table: Any) -> pa.Table:
    """Return how many images of a block each split has: ``split`` and ``images``."""
    counted = pc.value_counts(table_of(table)["key0"].combine_chunks())
    return pa.table({"split": counted.field("values"), "images": counted.field("counts")})


def by_node(ranked: Nodes, of_rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return what `splits_of` says of the rows, in order, of the nodes."""
    numbers = np.empty(len(ranked.table), dtype=np.int64)
    numbers[np.argsort(ranked.table["row"].to_numpy())] = np.concatenate([np.zeros(0, np.int64), *of_rows])
    return numbers


def nearest_by_edges(edges: Edges, least: float, ranked: Nodes, split: np.ndarray) -> Nearest:
    """Return the nearest of each split by a chunk of pairs, to each node that leads.

    Parameters
    ----------
    edges : Edges
    least : float
        Pairs of this similarity count.
    ranked : Nodes
        Ranked by split, and by id inside of one.
    split : numpy.ndarray of shape (nodes,)
    """
    near = edges.at_least(least)
    ends = np.concatenate([near.earlier, near.later]), np.concatenate([near.later, near.earlier])
    first = _first_of_each(ranked, split)
    at, of = _expand(first.node, ends[1])
    similarity = np.concatenate([near.similarity, near.similarity])[at]
    return _nearest([Nearest(ends[0][at], first.split[of], similarity, first.other[of])])


def nearest_in_others(
    ranked: Nodes, split: np.ndarray, found: Sequence[Nearest], splits: pa.Array, kind: int
) -> pa.Table:
    """Return the nearest image of each other split to every image, by all chunks and the copies.

    Parameters
    ----------
    ranked, split
        As for `nearest_by_edges`.
    found : sequence of Nearest
    splits : pyarrow.Array
        Their names.
    kind : int
        What is written as ``kind``.

    Returns
    -------
    pyarrow.Table
        ``id``, ``split``, ``duplicate_of``, ``other_split``, ``kind`` and ``similarity``.
    """
    # What a node leads is a copy of it, of similarity 1.
    known = _nearest([_first_of_each(ranked, split), *found])
    node, of = _expand(known.node, ranked.table["leader"].to_numpy())
    other = known.split[of] != split[node]
    node, of = node[other], of[other]
    ids = ranked.table["id"]
    return pa.table(
        {
            "id": ids.take(pa.array(node)),
            "split": splits.take(pa.array(split[node])),
            "duplicate_of": ids.take(pa.array(known.other[of])),
            "other_split": splits.take(pa.array(known.split[of])),
            "kind": np.full(len(node), kind, dtype=np.int8),
            "similarity": known.similarity[of],
        }
    )


def cut(table: pa.Table, n_ranges: int) -> tuple[pa.Table, ...]:
    """Return what `nearest_in_others` gives in ranges of the ids' hashes."""
    ranges = rank.hash_ids(table["id"].combine_chunks(), 0) % np.uint64(n_ranges)
    return tuple(table.filter(pa.array(ranges == number)) for number in range(n_ranges))


def strictest(tables: Sequence[pa.Table]) -> pa.Table:
    """Return of each image and other split what the first kind says that says anything, by split, other split and id."""
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    keys = ["split", "other_split", "id"]
    table = table.sort_by([(name, "ascending") for name in (*keys, "kind")])
    new = np.ones(len(table), dtype=bool)
    if len(table):
        same = [pc.equal(table[name][1:], table[name][:-1]).to_numpy() for name in keys]
        new[1:] = ~np.logical_and.reduce(same)
    return table.filter(pa.array(new))


def count(table: pa.Table) -> Counter[tuple[Any, Any, int]]:
    """Return how many images of each split are in each other one, by kind."""
    counted = table.group_by(["split", "other_split", "kind"]).aggregate([([], "count_all")]).to_pylist()
    return Counter({(row["split"], row["other_split"], row["kind"]): row["count_all"] for row in counted})


def least_similar(table: pa.Table, n: int) -> pa.Table:
    """Return `n` pairs of each two splits, each pair once, by splits, those least alike first."""
    # Most pairs have two rows, one each way: the lower split comes first.
    turn = pc.greater(table["split"], table["other_split"])
    ways = {"id": "duplicate_of", "split": "other_split", "duplicate_of": "id", "other_split": "split"}
    turned = {name: pc.if_else(turn, table[other], table[name]) for name, other in ways.items()}
    pairs = pa.table({**turned, "kind": table["kind"], "similarity": table["similarity"]})
    kinds = [("split", "ascending"), ("other_split", "ascending"), ("kind", "descending"), ("similarity", "ascending")]
    host = pairs.sort_by([*kinds, ("id", "ascending"), ("duplicate_of", "ascending")]).to_pandas()
    host = host[~host.duplicated(["id", "duplicate_of"])].groupby(["split", "other_split"], sort=False).head(n)
    return pa.Table.from_pandas(host, pairs.schema, preserve_index=False)


def _first_of_each(ranked: Nodes, split: np.ndarray) -> Nearest:
    """Return the first node of each split in every group of copies, by the node that leads it."""
    leader = ranked.table["leader"].to_numpy()
    node = np.arange(len(leader))
    return _nearest([Nearest(leader, split, np.ones(len(leader), dtype=np.float32), node)])


def _nearest(found: Sequence[Nearest]) -> Nearest:
    """Return the nearest of each split to each node, by node and split."""
    node, split, similarity, other = (np.concatenate(columns) for columns in zip(*found, strict=True))
    order = np.lexsort((other, -similarity, split, node))
    node, split = node[order], split[order]
    new = (np.diff(node, prepend=-1) != 0) | (np.diff(split, prepend=-1) != 0)
    return Nearest(node[new], split[new], similarity[order][new], other[order][new])


def _expand(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every pair of positions in `wanted` and in `known`, which is sorted, whose values are equal.

    Examples
    --------
    >>> [found.tolist() for found in _expand(np.array([2, 2, 5]), np.array([5, 1, 2]))]
    [[0, 2, 2], [2, 0, 1]]
    """
    start, stop = np.searchsorted(known, wanted), np.searchsorted(known, wanted, "right")
    counts = stop - start
    at = np.repeat(np.arange(len(wanted)), counts)
    return at, np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts) + start[at]
