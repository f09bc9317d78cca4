"""The rules against walks over every pair in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcurate.dedup.graph import rules
from imgcurate.dedup.graph.rules import KEPT, OPEN, Copies, Edges, Rule

NONE = Copies(np.zeros(0, np.int64), np.zeros(0, np.int64))


def solve(
    n: int, chunks: list[Edges], rule: Rule, copies: Copies = NONE, rounds: int = 0
) -> dict[int, tuple[int, Any]]:
    """Run a rule as tasks do, chunk by chunk."""
    answer = None
    if rule == "cover":
        answer = np.full(n, OPEN, dtype=np.int8)
        answer[copies.copy] = rules.GONE
        for _ in range(rounds):
            answer = rules.settle(answer, [rules.waiting(n, [edges], answer) for edges in chunks])
        answer = rules.keep_greedily(n, rules.concatenate(chunks), answer)
        known = [rules.twins_of_cover(edges, answer, copies) for edges in chunks]
    elif rule == "pointwise":
        known = [rules.twins_pointwise(edges, copies) for edges in chunks]
    else:
        stars = []
        for edges in chunks:
            root = rules.roots(n, [(edges.earlier, edges.later)])
            stars.append((np.flatnonzero(root != np.arange(n)), root[root != np.arange(n)]))
        answer = rules.roots(n, [*stars, (copies.copy, copies.leader)])
        known = [rules.twins_of_component(edges, answer) for edges in chunks]
    found = rules.finish(n, rule, known, copies, answer)
    return {int(a): (int(b), float(s)) for a, b, s in zip(*found, strict=True)}


def by_hand(similarity: np.ndarray, rule: Rule) -> dict[int, tuple[int, Any]]:
    """Walk in order over a full matrix, where 0 is no edge."""
    n = len(similarity)
    near = (similarity > 0) & ~np.eye(n, dtype=bool)
    found: dict[int, tuple[int, Any]] = {}
    for node in range(n):
        if rule == "component":
            seen, reached = {node}, [node]
            while reached:
                for other in np.flatnonzero(near[reached.pop()]):
                    if other not in seen:
                        seen.add(int(other))
                        reached.append(int(other))
            candidates = [min(seen)] if min(seen) != node else []
        else:
            candidates = [
                other for other in range(node) if near[node, other] and (rule != "cover" or other not in found)
            ]
        if candidates:
            twin = min(candidates, key=lambda other: (-similarity[node, other], other))
            found[node] = (twin, float(similarity[node, twin]) or float("nan"))
    return found


def matrix_of(n: int, groups: np.ndarray, density: float, rng: np.random.Generator) -> np.ndarray:
    """Similarities between groups; equal inside a group, and of members of two groups equal to those of the groups."""
    k = int(groups.max(initial=0)) + 1
    between = np.where(rng.random((k, k)) < density, rng.choice([0.5, 0.75, 0.9, 1.0], (k, k)), 0)
    between = np.triu(between, 1) + np.triu(between, 1).T + np.eye(k)
    return between[np.ix_(groups, groups)].astype(np.float32)


@given(
    n=st.integers(1, 40), k=st.integers(1, 40), density=st.sampled_from([0.0, 0.03, 0.2, 0.9]), seed=st.integers(0, 10**6),
    rule=st.sampled_from(rules.RULES), cut=st.integers(1, 4), rounds=st.integers(0, 3),
)  # fmt: skip
def test_every_rule_does_what_a_walk_over_all_pairs_does(
    n: int, k: int, density: float, seed: int, rule: Any, cut: int, rounds: int
) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(min(k, n), size=n)
    similarity = matrix_of(n, groups, density, rng)
    first = np.array([np.flatnonzero(groups == group)[0] for group in groups])
    copy = np.flatnonzero(first != np.arange(n))
    leads = np.flatnonzero(first == np.arange(n))
    a, b = np.nonzero(np.triu(similarity[np.ix_(leads, leads)], 1))
    order = rng.permutation(len(a))
    edges = Edges(leads[a][order], leads[b][order], similarity[leads[a], leads[b]][order])
    chunks = [edges.where(np.arange(len(order)) % cut == part) for part in range(cut)]
    found = solve(n, chunks, rule, rules.group_copies(copy, first[copy]), rounds)
    expected = by_hand(similarity, rule)
    assert found.keys() == expected.keys()
    for node, (twin, near) in expected.items():
        assert found[node][0] == twin
        assert found[node][1] == pytest.approx(near, nan_ok=True)


def test_a_long_chain_in_rank_order_alternates() -> None:
    n = 20_001
    chain = Edges(np.arange(n - 1), np.arange(1, n), np.full(n - 1, 0.9, np.float32))
    assert np.flatnonzero(rules.keep_greedily(n, chain) == KEPT).tolist() == list(range(0, n, 2))
    assert {twin for twin, _ in solve(n, [chain], "component").values()} == {0}
    assert len(solve(n, [chain], "pointwise")) == n - 1


def test_fixed_nodes_are_never_removed() -> None:
    edges = Edges(np.array([0, 1]), np.array([2, 2]), np.array([0.9, 0.95], np.float32))
    root = rules.roots(3, [(edges.earlier, edges.later)])
    found = rules.finish(3, "component", [rules.twins_of_component(edges, root)], NONE, root, n_fixed=2)
    assert found.node.tolist() == [2]
