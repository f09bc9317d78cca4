"""The similarity join against brute force in float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgcurate.dedup import join
from imgcurate.vectors import unit_rows


def with_copies(n: int, d: int, seed: int, noise: float = 0.1) -> np.ndarray:
    """Unit vectors, some of which are copies of others, exact or nearly so."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)).astype(np.float32)
    for copy in range(n // 2):
        rows[rng.integers(n)] = (
            rows[rng.integers(n)] + noise * (copy % 3) * rng.standard_normal(d).astype(np.float32) / d**0.5
        )
    return unit_rows(rows)[0]


def brute_cover(rows: np.ndarray, eps: float) -> tuple[list[int], set[int]]:
    cosines = rows.astype(np.float64) @ rows.astype(np.float64).T
    kept: list[int] = []
    nearest = {}
    for row in range(len(rows)):
        near = [other for other in kept if cosines[row, other] >= 1 - eps]
        if near:
            nearest[row] = max(near, key=lambda other: cosines[row, other])
        else:
            kept.append(row)
    return kept, set(nearest)


def far_from_threshold(rows: np.ndarray, eps: float) -> bool:
    cosines = rows.astype(np.float64) @ rows.astype(np.float64).T
    return bool((np.abs(cosines - (1 - eps)) > 1e-6).all())


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 90), d=st.sampled_from([1, 2, 3, 16, 300]), seed=st.integers(0, 10**6),
    eps=st.sampled_from([1e-5, 0.013, 0.11, 0.7, 1.3]), tile=st.sampled_from([1, 7, 32, 512]),
)  # fmt: skip
def test_cover_keeps_what_brute_force_keeps(n: int, d: int, seed: int, eps: float, tile: int) -> None:
    rows = with_copies(n, d, seed)
    if not far_from_threshold(rows, eps):
        return
    match, similarity = join.cover(rows, eps, tile=tile)
    kept, removed = brute_cover(rows, eps)
    assert np.flatnonzero(match < 0).tolist() == kept
    assert (similarity[match < 0] == 0).all()
    cosines = rows.astype(np.float64) @ rows.astype(np.float64).T
    for row in removed:
        earlier = [other for other in kept if other < row]
        assert match[row] in earlier
        assert similarity[row] == pytest.approx(cosines[row, match[row]], abs=1e-6)
        assert cosines[row, match[row]] >= cosines[row, earlier].max() - 3e-6


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 90), d=st.sampled_from([1, 2, 3, 16, 300]), seed=st.integers(0, 10**6),
    tile=st.sampled_from([1, 7, 32, 512]),
)  # fmt: skip
def test_best_earlier_finds_what_brute_force_finds(n: int, d: int, seed: int, tile: int) -> None:
    rows = with_copies(n, d, seed)
    match, similarity = join.best_earlier(rows, tile=tile)
    cosines = rows.astype(np.float64) @ rows.astype(np.float64).T
    assert match[:1].tolist() == [-1] * min(n, 1)
    for row in range(1, n):
        best = cosines[row, :row].max()
        assert 0 <= match[row] < row
        assert similarity[row] == pytest.approx(best, abs=1e-6)
        assert cosines[row, match[row]] >= best - 3e-6


def test_of_equal_copies_the_earliest_is_named() -> None:
    rng = np.random.default_rng(0)
    once = unit_rows(rng.standard_normal((700, 768)).astype(np.float32))[0]
    match, similarity = join.best_earlier(np.concatenate([once, once, once]))
    assert match[700:].tolist() == [*range(700), *range(700)]
    assert (similarity[700:] > 1 - 1e-6).all() and similarity.max() <= 1


def test_a_chain_loses_only_its_middle_by_cover_and_its_tail_by_best_earlier() -> None:
    angles = np.array([0.0, 0.2, 0.4])
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert join.cover(chain, 0.05)[0].tolist() == [-1, 0, -1]
    match, similarity = join.best_earlier(chain)
    assert match.tolist() == [-1, 0, 1] and (similarity >= join.threshold(0.05)).tolist() == [False, True, True]


def test_a_removed_image_is_matched_with_its_nearest_kept_one_even_inside_its_own_tile() -> None:
    angles = np.array([0.0, 0.5, 0.3])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    for tile in (1, 2, 3):
        match, similarity = join.cover(rows, 0.05, tile=tile)
        assert match.tolist() == [-1, -1, 1]
        assert similarity[2] == pytest.approx(np.cos(0.2), abs=1e-6)


def test_opposite_vectors_are_no_duplicates() -> None:
    rows = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    assert join.cover(rows, 1.9)[0].tolist() == [-1, -1]
    assert join.best_earlier(rows)[1].tolist() == [0, -1]


def test_many_equal_vectors_take_little_memory() -> None:
    rows = np.tile(np.array([[0.6, 0.8, 0, 0, 0, 0, 0, 0]], dtype=np.float32), (20_000, 1))
    tracemalloc.start()
    match, _ = join.cover(rows, 1e-6)
    earlier, _ = join.best_earlier(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert match[0] == -1 and (match[1:] == 0).all() and (earlier[1:] == 0).all()
    assert peak < 64 * 2**20


@pytest.mark.parametrize("eps", [1e-6, 0.01, 0.1, 0.3, 1.0, 1.7])
def test_the_threshold_compares_as_float64_does(eps: float) -> None:
    least = join.threshold(eps)
    below = np.nextafter(least, np.float32(-2))
    assert float(least) >= 1 - eps > float(below)
