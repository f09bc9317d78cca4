"""Rules: which images of a graph of similar pairs go, and which image each of them duplicates.

Nodes are numbered in rank order, best first, so that every edge leads from an earlier node to a later one. Edges may come in several
chunks; each function says what one chunk has to tell, so that no machine needs all of them. NumPy arrays only, in rounds over whole arrays.

Copies are nodes whose vector equals another's bit by bit. Their edges would be the other's, squared in number, so they have none: each
names its leader, the best-ranked of its group, and stands for an edge to it of similarity 1 and for all the leader's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Rule = Literal["cover", "pointwise", "component"]
RULES = ("cover", "pointwise", "component")

OPEN, KEPT, GONE = 0, 1, 2


class Edges(NamedTuple):
    """Similar pairs: arrays of one length.

    Attributes
    ----------
    earlier, later : numpy.ndarray of int
    similarity : numpy.ndarray of float32
    """

    earlier: np.ndarray
    later: np.ndarray
    similarity: np.ndarray

    def at_least(self, least: float) -> Edges:
        """Return those of a similarity of at least `least`, compared in float64."""
        return self.where(self.similarity.astype(np.float64) >= least)

    def where(self, chosen: np.ndarray) -> Edges:
        """Return those for which `chosen`, a mask or positions, stands."""
        return Edges(*(column[chosen] for column in self))


class Copies(NamedTuple):
    """Nodes that are copies, and their leaders, in order of the leaders."""

    copy: np.ndarray
    leader: np.ndarray


class Twins(NamedTuple):
    """What a later node duplicates: candidates, or the answer. Arrays of one length."""

    node: np.ndarray
    twin: np.ndarray
    similarity: np.ndarray


def concatenate(chunks: Sequence[Edges]) -> Edges:
    """Put chunks of edges together."""
    if not chunks:
        return Edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    return Edges(*(np.concatenate(columns) for columns in zip(*chunks, strict=True)))


def keep_greedily(n: int, edges: Edges, state: np.ndarray | None = None) -> np.ndarray:
    """Walk the nodes in order; keep a node unless an earlier kept one is its neighbour.

    Parameters
    ----------
    n : int
    edges : Edges
    state : numpy.ndarray of shape (n,), int8, optional
        What is known: OPEN, KEPT or GONE.

    Returns
    -------
    numpy.ndarray of shape (n,), int8
        KEPT or GONE.

    Notes
    -----
    In rounds: a node all of whose earlier neighbours are gone is kept, and its neighbours go. Every edge is looked at once or twice, so
    the time is that of the edges, and of the rounds: as many as the longest chain of nodes that wait for one another.

    Examples
    --------
    >>> chain = Edges(np.array([0, 1]), np.array([1, 2]), np.array([0.9, 0.9], np.float32))
    >>> keep_greedily(3, chain).tolist()
    [1, 2, 1]
    """
    state = np.zeros(n, dtype=np.int8) if state is None else state.copy()
    edges = edges.where((state[edges.earlier] != GONE) & (state[edges.later] == OPEN))
    state[edges.later[state[edges.earlier] == KEPT]] = GONE
    edges = edges.where((state[edges.earlier] == OPEN) & (state[edges.later] == OPEN))
    order = np.argsort(edges.earlier, kind="stable")
    later = edges.later[order]
    start = np.searchsorted(edges.earlier[order], np.arange(n + 1))
    waits_for = np.bincount(edges.later, minlength=n)
    ready = np.flatnonzero((state == OPEN) & (waits_for == 0))
    while len(ready):
        state[ready] = KEPT
        gone = _neighbours(ready, start, later)
        gone = np.unique(gone[state[gone] == OPEN])
        state[gone] = GONE
        freed, times = np.unique(_neighbours(gone, start, later), return_counts=True)
        waits_for[freed] -= times
        ready = freed[(waits_for[freed] == 0) & (state[freed] == OPEN)]
    return state


def waiting(n: int, chunks: Sequence[Edges], state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell of each node, by some chunks, whether an undecided node is before it, and whether a kept one is.

    Returns
    -------
    waits, hit : numpy.ndarray of shape (n,), bool
    """
    waits, hit = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    for edges in chunks:
        waits[edges.later[state[edges.earlier] == OPEN]] = True
        hit[edges.later[state[edges.earlier] == KEPT]] = True
    return waits, hit


def settle(state: np.ndarray, known: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Take one round of `keep_greedily` by what `waiting` says of all chunks: a node that waits for none is decided."""
    waits, hit = (np.logical_or.reduce(columns) for columns in zip(*known, strict=True))
    settled = state.copy()
    settled[(state == OPEN) & hit] = GONE
    settled[(state == OPEN) & ~hit & ~waits] = KEPT
    return settled


def roots(n: int, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the first node of each node's connected component.

    Parameters
    ----------
    n : int
    pairs : sequence of (numpy.ndarray, numpy.ndarray)
        Both ends of some edges.

    Returns
    -------
    numpy.ndarray of shape (n,), int64

    Examples
    --------
    >>> roots(4, [(np.array([1]), np.array([2])), (np.array([2]), np.array([3]))]).tolist()
    [0, 1, 1, 1]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nothing = np.zeros(0, dtype=np.int64)
    a, b = (np.concatenate([nothing, *(pair[end] for pair in pairs)]) for end in (0, 1))
    count, label = connected_components(
        coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(n, n)), directed=False
    )
    first = np.full(count, n, dtype=np.int64)
    np.minimum.at(first, label, np.arange(n))
    return first[label]


def twins_of_cover(edges: Edges, state: np.ndarray, copies: Copies) -> Twins:
    """Name for each node that is gone the kept ones before it that a chunk knows of."""
    # A copy of a node that is gone may lie behind kept neighbours of it that the node itself lies before.
    before = edges.where((state[edges.earlier] == KEPT) & (state[edges.later] == GONE))
    behind = edges.where((state[edges.earlier] == GONE) & (state[edges.later] == KEPT))
    return _join(
        Twins(before.later, before.earlier, before.similarity),
        _of_copies(before.later, before.earlier, before.similarity, copies),
        _of_copies(behind.earlier, behind.later, behind.similarity, copies),
    )


def twins_pointwise(edges: Edges, copies: Copies) -> Twins:
    """Name for each node its nearest earlier one in a chunk."""
    # A copy's leader is as near as can be: only an earlier node that is as near could be named in its place.
    as_near = edges.where(edges.similarity >= 1)
    return _join(
        nearest(Twins(edges.later, edges.earlier, edges.similarity)),
        _of_copies(as_near.later, as_near.earlier, as_near.similarity, copies),
        _of_copies(as_near.earlier, as_near.later, as_near.similarity, copies),
    )


def twins_of_component(edges: Edges, root: np.ndarray) -> Twins:
    """Name for each node the root of its component where a chunk has an edge between them."""
    direct = edges.where(root[edges.later] == edges.earlier)
    return Twins(direct.later, direct.earlier, direct.similarity)


def nearest(candidates: Twins) -> Twins:
    """Return for each node the candidate with the highest similarity, the earliest of equally similar ones."""
    order = np.lexsort((candidates.twin, -candidates.similarity, candidates.node))
    node = candidates.node[order]
    first = order[np.flatnonzero(np.diff(node, prepend=-1))]
    return Twins(*(column[first] for column in candidates))


def finish(n: int, rule: Rule, known: Sequence[Twins], copies: Copies, answer: Any, n_fixed: int = 0) -> Twins:
    """Put together what the chunks say.

    Parameters
    ----------
    n : int
    rule : {"cover", "pointwise", "component"}
    known : sequence of Twins
    copies : Copies
    answer : numpy.ndarray of shape (n,)
        The state of each node (cover) or its root (component).
    n_fixed : int
        So many first nodes are never removed.

    Returns
    -------
    Twins
        One row a removed node, in order. The similarity of a root that a node was not compared with is NaN.
    """
    if rule == "component":
        node = np.flatnonzero(answer != np.arange(n))
        node = node[node >= n_fixed]
        similarity = np.full(n, np.nan, dtype=np.float32)
        for twins in known:
            similarity[twins.node] = twins.similarity
        similarity[copies.copy] = np.where(answer[copies.copy] == copies.leader, 1, similarity[copies.leader])
        return Twins(node, answer[node], similarity[node])
    leading = copies.leader if rule == "pointwise" else copies.leader[answer[copies.leader] == KEPT]
    copy = copies.copy if rule == "pointwise" else copies.copy[answer[copies.leader] == KEPT]
    own = Twins(copy, leading, np.ones(len(copy), dtype=np.float32))
    found = nearest(_join(*known, own))
    return Twins(*(column[found.node >= n_fixed] for column in found))


def group_copies(copy: np.ndarray, leader: np.ndarray) -> Copies:
    """Return copies in order of their leaders, as `Copies` are."""
    order = np.lexsort((copy, leader))
    return Copies(copy[order], leader[order])


def _of_copies(leader: np.ndarray, other: np.ndarray, similarity: np.ndarray, copies: Copies) -> Twins:
    """Hand the neighbours of leaders to their copies, as candidates where they are earlier than the copy."""
    start, stop = (np.searchsorted(copies.leader, leader, side) for side in ("left", "right"))
    where = np.repeat(np.arange(len(leader)), stop - start)
    found = Twins(copies.copy[runs(start, stop)], other[where], similarity[where])
    return Twins(*(column[found.twin < found.node] for column in found))


def _join(*twins: Twins) -> Twins:
    return Twins(*(np.concatenate(columns) for columns in zip(*twins, strict=True)))


def _neighbours(nodes: np.ndarray, start: np.ndarray, later: np.ndarray) -> np.ndarray:
    return later[runs(start[nodes], start[nodes + 1])]


def runs(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Return the numbers from each start up to its stop, one run after the other."""
    length = stop - start
    return np.arange(length.sum()) + np.repeat(start - (np.cumsum(length) - length), length)
