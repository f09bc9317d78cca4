"""From pairs of numbered rows to a graph in rank order, and from a rule's answer back to ids. Runs inside tasks, on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imgcurate.dedup.graph import rank, rules
from imgcurate.dedup.graph.found import Found
from imgcurate.dedup.graph.rules import Copies, Edges, Rule, Twins


class Nodes(NamedTuple):
    """The images that have a pair, or are a copy, in rank order.

    Attributes
    ----------
    table : pyarrow.Table of m rows
        ``id``, ``row`` and ``cluster``.
    copies : Copies
    n_fixed : int
        So many first nodes are never removed: those of the corpus that new images are compared with.
    """

    table: pa.Table
    copies: Copies
    n_fixed: int


def involved(found: Sequence[Found]) -> np.ndarray:
    """Return the numbers of the rows that have a pair or are a copy, sorted."""
    return np.unique(np.concatenate([np.zeros(0, np.int64), *(f[at] for f in found for at in (0, 1, 3, 4))]))


def union(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return all of the rows, once, sorted."""
    return np.unique(np.concatenate([np.zeros(0, np.int64), *rows]))


def copies_alone(found: Found) -> Found:
    """Return what was found without the pairs."""
    return found._replace(left=found.left[:0], right=found.right[:0], similarity=found.similarity[:0])


def take(tables: Sequence[Any], rows: np.ndarray) -> pa.Table:
    """Return those of some blocks' rows that are among `rows`."""
    taken = []
    for table in map(table_of, tables):
        numbers = table["row"].to_numpy()
        first, last = (numbers[0], numbers[-1]) if len(numbers) else (0, -1)
        here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last, "right")]
        taken.append(table.take(pa.array(np.searchsorted(numbers, here))))
    return pa.concat_tables(taken, promote_options="permissive")


def rank_nodes(tables: Sequence[pa.Table], fixed: Sequence[pa.Table], found: Sequence[Found], keep: rank.Keep) -> Nodes:
    """Put images into rank order, those that are never removed first.

    Parameters
    ----------
    tables : sequence of pyarrow.Table
        ``id``, ``row``, ``cluster`` and what `rank.order` needs; of the images that may be removed.
    fixed : sequence of pyarrow.Table
        ``id``, ``row`` and ``cluster`` of those that may not.
    found : sequence of Found
        For its copies.
    keep : as for `semantic_duplicates`
    """
    columns = ["id", "row", "cluster"]
    if not tables:
        nothing = pa.array([], pa.int64())
        empty = pa.table({"id": pa.nulls(0), "row": nothing, "cluster": nothing, "leader": nothing})
        return Nodes(empty, rules.group_copies(np.zeros(0, np.int64), np.zeros(0, np.int64)), 0)
    # Partitions may read a column differently, such as whole numbers as floats where some are missing.
    table = pa.concat_tables(tables, promote_options="permissive")
    table = table.take(pa.array(rank.order(table, keep))).select(columns)
    n_fixed = 0
    if fixed:
        first = pa.concat_tables([part.select(columns) for part in fixed], promote_options="permissive").sort_by("id")
        n_fixed = len(first)
        table = pa.concat_tables([first, table], promote_options="permissive")
    table = table.combine_chunks()
    copy, original = (np.concatenate([np.zeros(0, np.int64), *(f[at] for f in found)]) for at in (3, 4))
    where = Numbers(table)
    copy, original = where(copy), where(original)
    of = np.arange(len(table))
    of[copy] = original
    while not np.array_equal(of, of[of]):  # the original of a block may be the copy of another block's
        of = of[of]
    leader = np.full(len(table), len(table), dtype=np.int64)
    np.minimum.at(leader, of, np.arange(len(table)))
    leader = leader[of]
    copies = np.flatnonzero(leader != np.arange(len(table)))
    # The pairs of a group stand with its original: where another of it ranks higher, that one takes them.
    table = table.append_column("leader", pa.array(leader))
    return Nodes(table, rules.group_copies(copies, leader[copies]), n_fixed)


class Numbers:
    """Translates rows' numbers into nodes."""

    def __init__(self, table: pa.Table) -> None:
        rows = table["row"].to_numpy()
        self._order = np.argsort(rows)
        self._rows = rows[self._order]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return self._order[np.searchsorted(self._rows, rows)] if len(rows) else np.zeros(0, np.int64)


def number(found: Sequence[Found], nodes: Nodes) -> Edges:
    """Return pairs as edges between nodes; those of copies lead from and to their leaders."""
    where, leader = Numbers(nodes.table), nodes.table["leader"].to_numpy()
    left, right = (leader[where(np.concatenate([np.zeros(0, np.int64), *(f[at] for f in found)]))] for at in (0, 1))
    similarity = np.concatenate([np.zeros(0, np.float32), *(f.similarity for f in found)])
    kind = np.int32 if len(leader) < 2**31 else np.int64
    return Edges(np.minimum(left, right).astype(kind), np.maximum(left, right).astype(kind), similarity)


def first_state(nodes: Nodes) -> np.ndarray:
    """Return what `rules.keep_greedily` starts from: copies go whatever becomes of the others."""
    state = np.full(len(nodes.table), rules.OPEN, dtype=np.int8)
    state[nodes.copies.copy] = rules.GONE
    return state


def still_open(edges: Edges, least: float, state: np.ndarray) -> Edges:
    """Return the edges on which something still depends."""
    near = edges.at_least(least)
    return near.where((state[near.later] == rules.OPEN) & (state[near.earlier] != rules.GONE))


def waiting(edges: Edges, least: float, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `rules.waiting` says by one chunk."""
    return rules.waiting(len(state), [edges.at_least(least)], state)


def keep_greedily(nodes: Nodes, chunks: Sequence[Edges], state: np.ndarray) -> np.ndarray:
    """Decide what is left to decide."""
    return rules.keep_greedily(len(nodes.table), rules.concatenate(chunks), state)


def star(edges: Edges, least: float, nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Return a chunk's connected components as edges to their first nodes."""
    near = edges.at_least(least)
    root = rules.roots(len(nodes.table), [(near.earlier, near.later)])
    node = np.flatnonzero(root != np.arange(len(root)))
    return node, root[node]


def roots(nodes: Nodes, stars: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the first node of each node's component, by all chunks' stars and the copies."""
    return rules.roots(len(nodes.table), [*stars, (nodes.copies.copy, nodes.copies.leader)])


def twins(edges: Edges, least: float, rule: Rule, nodes: Nodes, answer: Any) -> Twins:
    """Return what a chunk knows of each removed node's twin."""
    if rule == "component":
        # The best of a component may be too far away to be an edge under this threshold, and be stored none the less.
        return rules.twins_of_component(edges, answer)
    near = edges.at_least(least)
    if rule == "cover":
        return rules.twins_of_cover(near, answer, nodes.copies)
    return rules.twins_pointwise(near, nodes.copies)


def matches(nodes: Nodes, known: Sequence[Twins], rule: Rule, answer: Any) -> pa.Table:
    """Return the removed images: ``id``, ``duplicate_of``, ``similarity``, ``cluster``, and the rows' numbers, in rank order."""
    found = rules.finish(len(nodes.table), rule, known, nodes.copies, answer, nodes.n_fixed)
    node, twin = pa.array(found.node), pa.array(found.twin)
    ids, rows = nodes.table["id"], nodes.table["row"]
    return pa.table(
        {
            "id": ids.take(node),
            "duplicate_of": ids.take(twin),
            "similarity": pa.array(found.similarity, from_pandas=True),
            "cluster": nodes.table["cluster"].take(node),
            "row": rows.take(node),
            "twin_row": rows.take(twin),
        }
    )


def edge_table(edges: Edges, nodes: Nodes) -> pa.Table:
    """Return pairs by name: ``id``, ``other_id``, ``similarity``, the better-ranked image second."""
    ids = nodes.table["id"]
    return pa.table(
        {
            "id": ids.take(pa.array(edges.later)),
            "other_id": ids.take(pa.array(edges.earlier)),
            "similarity": edges.similarity,
        }
    )


def copy_table(nodes: Nodes) -> pa.Table:
    """Return each copy with the first of its group, as `edge_table` does."""
    copies = nodes.copies
    return edge_table(Edges(copies.leader, copies.copy, np.ones(len(copies.copy), np.float32)), nodes)


def groups(removed: pa.Table) -> pa.Table:
    """Return the kept images that have duplicates: ``id``, how many (``removed``), which (``duplicates``), and the lowest similarity."""
    grouped = removed.group_by("duplicate_of", use_threads=False).aggregate(
        [("id", "count"), ("id", "list"), ("similarity", "min")]
    )
    table = pa.table(
        {
            "id": grouped["duplicate_of"],
            "removed": grouped["id_count"],
            "duplicates": grouped["id_list"],
            "similarity": grouped["similarity_min"],
        }
    )
    return table.sort_by([("removed", "descending"), ("id", "ascending")])


def least_similar(parts: Sequence[pa.Table], n: int) -> pa.Table:
    """Return the `n` removed images least similar to what they duplicate, least first."""
    removed = pa.concat_tables(parts, promote_options="permissive")
    order = pc.sort_indices(removed, sort_keys=[("similarity", "ascending"), ("id", "ascending")])
    return removed.take(order[:n])


def table_of(rows: Any) -> pa.Table:
    """Return the table of some rows that lie in memory, as one, or in files."""
    return rows if isinstance(rows, pa.Table) else rows.table


def rows_of(removed: Sequence[pa.Table]) -> np.ndarray:
    """Return the rows' numbers of the removed images of all parts, sorted: 8 bytes each."""
    return np.sort(np.concatenate([np.zeros(0, np.int64), *(table["row"].to_numpy() for table in removed)]))


def without(table: Any, removed: np.ndarray) -> pa.Table:
    """Return a block's images that stay."""
    table = table_of(table)
    numbers = table["row"].to_numpy()
    at = np.searchsorted(removed, numbers)
    at[at == len(removed)] = 0
    gone = removed[at] == numbers if len(removed) else np.zeros(len(numbers), dtype=bool)
    return table.filter(pa.array(~gone))


def assigned(tables: Sequence[Any], keep: rank.Keep, part: int, n_parts: int) -> pa.Table:
    """Return one of several parts of all images, by cluster, each cluster best-ranked first."""
    mine = [table.filter(pa.array(table["cluster"].to_numpy() % n_parts == part)) for table in map(table_of, tables)]
    table = pa.concat_tables(mine, promote_options="permissive")
    return table.take(pa.array(rank.order(table, keep, by_cluster=True)))


def near_misses(edges: Edges, nodes: Nodes, removed: pa.Table, least: float, n: int) -> pa.Table:
    """Return a chunk's `n` most similar pairs below a threshold at which both images stay, as `edge_table` does, most similar first."""
    stays = ~np.isin(nodes.table["row"].to_numpy(), removed["row"].to_numpy())
    below = edges.where(edges.similarity.astype(np.float64) < least)
    below = below.where(stays[below.earlier] & stays[below.later])
    if len(below.similarity) > n:
        # All that are as similar as the last, so that the nodes' order decides between them.
        below = below.where(below.similarity >= np.partition(below.similarity, -n)[-n])
    order = np.lexsort((below.later, below.earlier, -below.similarity))[:n]
    return edge_table(below.where(order), nodes)


def most_similar(tables: Sequence[pa.Table], n: int) -> pa.Table:
    """Return the `n` most similar of pairs by name, most similar first."""
    pairs = pa.concat_tables(tables, promote_options="permissive")
    keys = [("similarity", "descending"), ("id", "ascending"), ("other_id", "ascending")]
    return pairs.take(pc.sort_indices(pairs, sort_keys=keys)[:n])


def largest_groups(removed: pa.Table, n: int, most: int) -> list[tuple[int, pa.Table]]:
    """Return the `n` largest groups, largest first: how many go, and of `most` of these, the least similar first, what `matches` says."""
    sizes = removed.group_by("duplicate_of", use_threads=False).aggregate([("id", "count")])
    sizes = sizes.sort_by([("id_count", "descending"), ("duplicate_of", "ascending")])[:n]
    found = []
    for kept, size in zip(sizes["duplicate_of"], sizes["id_count"].to_pylist(), strict=True):
        group = removed.filter(pc.equal(removed["duplicate_of"], kept))
        found.append((size, least_similar([group], most)))
    return found
