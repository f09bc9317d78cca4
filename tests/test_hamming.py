"""Pairs of near hashes against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcurate.dedup.content import hamming


def brute_force(hashes: np.ndarray, distance: int) -> set[tuple[int, int, int]]:
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    left, right = np.nonzero(np.triu(bits <= distance, 1))
    return {(int(a), int(b), int(bits[a, b])) for a, b in zip(left, right, strict=True)}


def written_out(found: hamming.HashPairs, n: int) -> set[tuple[int, int, int]]:
    """All pairs, those of equal hashes included."""
    members: dict[int, list[int]] = {row: [row] for row in range(n)}
    for copy, original in zip(found.copies.tolist(), found.originals.tolist(), strict=True):
        assert original < copy
        members[original].append(copy)
    pairs = {(a, b, 0) for rows in members.values() for a in rows for b in rows if a < b and len(rows) > 1}
    for left, right, distance in zip(found.left.tolist(), found.right.tolist(), found.distance.tolist(), strict=True):
        pairs |= {(min(a, b), max(a, b), distance) for a in members[left] for b in members[right]}
    return pairs


def some_hashes(n: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    hashes = rng.integers(2**64, size=n, dtype=np.uint64)
    if kind == "equal":
        hashes[:] = 7
    elif kind == "bits":
        hashes = np.uint64(1) << rng.integers(64, size=n, dtype=np.uint64)
    elif kind == "near" and n:
        flips = np.zeros(n, dtype=np.uint64)
        for _ in range(8):
            flips |= np.uint64(1) << rng.integers(64, size=n, dtype=np.uint64)
        hashes = hashes[rng.integers(max(n // 6, 1), size=n)] ^ flips
    return hashes


@given(
    n=st.integers(0, 120), distance=st.sampled_from([*range(21), 40, 63]), seed=st.integers(0, 10**6),
    kind=st.sampled_from(["random", "near", "equal", "bits"]),
)  # fmt: skip
def test_all_pairs_of_brute_force_are_found_once(n: int, distance: int, seed: int, kind: str) -> None:
    hashes = some_hashes(n, kind, np.random.default_rng(seed))
    found = hamming.pairs_within(hashes, distance)
    assert written_out(found, n) == brute_force(hashes, distance)
    assert len(set(zip(found.left.tolist(), found.right.tolist(), strict=True))) == len(found.left)


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 10])
def test_banding_loses_no_pair_among_many_hashes(distance: int) -> None:
    rng = np.random.default_rng(distance)
    hashes = rng.integers(2**64, size=6000, dtype=np.uint64)
    for bit in range(distance + 1):
        hashes[bit * 100 : bit * 100 + 100] = hashes[3000:3100]
        for flip in rng.choice(64, bit, replace=False):
            hashes[bit * 100 : bit * 100 + 100] ^= np.uint64(1) << np.uint64(flip)
    assert written_out(hamming.pairs_within(hashes, distance), 6000) == brute_force(hashes, distance)


@given(
    n=st.integers(0, 120), distance=st.sampled_from([*range(21), 40, 63]), seed=st.integers(0, 10**6),
    kind=st.sampled_from(["random", "near", "bits"]), share=st.floats(0, 1),
)  # fmt: skip
def test_all_pairs_between_two_sets_are_found_once(n: int, distance: int, seed: int, kind: str, share: float) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.permutation(np.unique(some_hashes(n, kind, rng)))
    one, other = np.split(hashes, [int(share * len(hashes))])
    found = hamming.pairs_between(one, other, distance)
    bits = np.bitwise_count(one[:, None] ^ other[None, :])
    expected = [(a, b, bits[a, b]) for a, b in zip(*np.nonzero(bits <= distance), strict=True)]
    assert list(zip(found.left, found.right, found.distance, strict=True)) == expected
    assert not len(found.copies) and not len(found.originals)


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 10])
def test_sets_that_are_compared_two_by_two_say_what_the_whole_says(distance: int) -> None:
    rng = np.random.default_rng(distance)
    hashes = rng.integers(2**64, size=6000, dtype=np.uint64)
    for number in range(2000):
        hashes[number] = hashes[number + 2000]
        for flip in rng.choice(64, number % 11, replace=False):
            hashes[number] ^= np.uint64(1) << np.uint64(flip)
    parts = np.split(np.unique(hashes), [1500, 1700, 4500])
    starts = np.cumsum([0, *map(len, parts)])
    pairs = set()
    for a, one in enumerate(parts):
        for b, other in enumerate(parts[a:], a):
            found = hamming.pairs_within(one, distance) if a == b else hamming.pairs_between(one, other, distance)
            pairs |= set(zip(found.left + starts[a], found.right + starts[b], found.distance, strict=True))
    whole = hamming.pairs_within(np.unique(hashes), distance)
    assert pairs == set(zip(whole.left, whole.right, whole.distance, strict=True))


@pytest.mark.parametrize("distance", [-1, 64])
def test_a_distance_out_of_range_is_refused(distance: int) -> None:
    with pytest.raises(ValueError, match="max_distance"):
        hamming.pairs_within(np.zeros(2, np.uint64), distance)
