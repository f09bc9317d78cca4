"""All pairs of 64-bit hashes within a Hamming distance: complete, without comparing every pair where that can be avoided."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from imgcurate.dedup.graph.rules import runs

_BITS = 64
#: Candidate pairs held at a time.
_BLOCK = 1 << 20
#: Rows and columns of a tile where everything is compared: its XORs stay in the cache.
_TILE = (16, 8192)
#: More patterns of flipped bits than this are not looked up; comparing everything is faster.
_MOST_MASKS = 4096
#: Hashes that are compared to learn how many candidates the bands of this data give.
_SAMPLE = 512

# What things cost, in comparisons inside a tile (half a nanosecond): to look up one hash under one mask, the fixed part of one
# lookup, and to make and check one candidate.
_COST_LOOKUP, _COST_MASK, _COST_CANDIDATE = 30, 100_000, 8


class HashPairs(NamedTuple):
    """Rows whose hashes are near, and rows whose hashes are equal.

    Attributes
    ----------
    left, right : numpy.ndarray of shape (p,), int32
        Positions, left < right, of hashes that differ, sorted. Only the first row of each distinct hash appears.
    distance : numpy.ndarray of shape (p,), uint8
        In how many bits they differ; at least 1.
    copies, originals : numpy.ndarray of shape (c,), int32
        Row ``copies[k]``, in rising order, has the hash of the earlier row ``originals[k]``, which is the first that has it.
    """

    left: np.ndarray
    right: np.ndarray
    distance: np.ndarray
    copies: np.ndarray
    originals: np.ndarray


class _Band(NamedTuple):
    """Bits ``shift`` to ``shift + width`` of a hash, in which two hashes must agree but for `radius` bits to be candidates."""

    shift: int
    width: int
    radius: int

    @property
    def masks(self) -> int:
        return sum(math.comb(self.width, flips) for flips in range(self.radius + 1))


def pairs_within(hashes: np.ndarray, max_distance: int) -> HashPairs:
    """Find the pairs of hashes that differ in at most `max_distance` bits.

    Parameters
    ----------
    hashes : numpy.ndarray of shape (n,), uint64
        n is below 2**31.
    max_distance : int
        0 to 63.

    Returns
    -------
    HashPairs
        Each pair of distinct hashes once, and each further row of a hash once: the pairs inside a group of equal hashes, whose
        number grows with its square, follow from that and are not listed.

    Raises
    ------
    ValueError
        Where `max_distance` is not 0 to 63.
    TypeError
        Where `hashes` are not one row of uint64.

    Notes
    -----
    Multi-index hashing (M. Norouzi, A. Punjani, D. Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012).
    The 64 bits are cut into m bands. Write the distance r = m k + a with 0 <= a < m. Claim: two hashes within r differ in at
    most k bits in one of the first a + 1 bands, or in at most k - 1 bits in one of the others. Proof: otherwise they differ in
    at least k + 1 bits in each of the first a + 1 bands and in at least k in each of the other m - a - 1, together in
    (a + 1)(k + 1) + (m - a - 1) k = m k + a + 1 = r + 1 bits or more. So looking up, in every band, each hash with up to k
    (or k - 1) bits flipped meets every pair; where k is 0 the other bands are not needed. A pair that several bands meet is
    taken from the first of them.

    m is what a sample of the data says is cheapest, or all pairs are compared, where that is cheaper still: always at large
    distances, at small n, and where most hashes share a band. Beside the input and the answer, memory is some arrays of
    n numbers and 2**20 candidates.

    Examples
    --------
    >>> found = pairs_within(np.array([0b0000, 0b0111, 0b0001, 0b0000], dtype=np.uint64), 1)
    >>> [column.tolist() for column in found]
    [[0], [2], [1], [3], [0]]
    """
    _check(hashes, max_distance)
    distinct, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    original = first[which]
    copies = np.flatnonzero(original != np.arange(len(hashes)))
    found = [_positions(first, *pairs) for pairs in _near(distinct, None, int(max_distance))]
    left, right, distance = _concatenate(found)
    order = np.lexsort((right, left))
    return HashPairs(
        left[order], right[order], distance[order], copies.astype(np.int32), original[copies].astype(np.int32)
    )


def pairs_between(hashes: np.ndarray, others: np.ndarray, max_distance: int) -> HashPairs:
    """Find the pairs of a hash of one set and a hash of another that differ in at most `max_distance` bits.

    Parameters
    ----------
    hashes, others : numpy.ndarray of shape (n,) and (m,), uint64
        No hash of one is in the other; n and m are below 2**31.
    max_distance : int
        0 to 63.

    Returns
    -------
    HashPairs
        ``left`` are positions in `hashes`, ``right`` in `others`; there are no copies.

    Raises
    ------
    ValueError, TypeError
        As `pairs_within`.

    Examples
    --------
    >>> found = pairs_between(np.array([0b1111, 0b0000], dtype=np.uint64), np.array([0b0011], dtype=np.uint64), 2)
    >>> [column.tolist() for column in found]
    [[0, 1], [0, 0], [2, 2], [], []]
    """
    _check(hashes, max_distance)
    _check(others, max_distance)
    left, right, distance = _concatenate(list(_near(hashes, others, int(max_distance))))
    order = np.lexsort((right, left))
    columns = left[order].astype(np.int32), right[order].astype(np.int32), distance[order]
    return HashPairs(*columns, np.zeros(0, np.int32), np.zeros(0, np.int32))


def _check(hashes: np.ndarray, max_distance: int) -> None:
    if not 0 <= max_distance < _BITS:
        raise ValueError(f"max_distance={max_distance}: two 64-bit hashes are compared within 0 to 63 bits")
    if hashes.ndim != 1 or hashes.dtype != np.uint64:
        raise TypeError(f"hashes must be one row of uint64, not {hashes.dtype} of shape {hashes.shape}")


_Found = tuple[np.ndarray, np.ndarray, np.ndarray]


def _near(hashes: np.ndarray, others: np.ndarray | None, reach: int) -> Iterator[_Found]:
    """Yield (i, j, distance) of hashes that differ, each pair once: of one set where `others` is None, else of one with one of the others."""
    if reach == 0 or not _n_pairs(hashes, others):
        return iter(())
    bands = _plan(hashes, others, reach)
    return _everything(hashes, others, reach) if bands is None else _banded(hashes, others, reach, bands)


def _n_pairs(hashes: np.ndarray, others: np.ndarray | None) -> float:
    return len(hashes) * (len(hashes) - 1) / 2 if others is None else float(len(hashes) * len(others))


def _plan(hashes: np.ndarray, others: np.ndarray | None, reach: int) -> list[_Band] | None:
    """Choose the bands, or None to compare everything."""
    pairs = _n_pairs(hashes, others)
    if pairs < _COST_MASK:
        return None
    # Inside one set half of the hashes are looked up under each mask, because a flipped key is looked for where it is the higher one.
    looked_up = len(hashes) if others is None else 2 * len(hashes)
    # Seeded, so that one input takes one way; the answer is the same on any.
    draw = np.random.default_rng(0)
    sample = draw.choice(hashes, min(len(hashes), _SAMPLE), replace=False)
    if others is None:
        rows, columns = np.triu_indices(len(sample), 1)
        differing = sample[rows] ^ sample[columns]
    else:
        differing = (sample[:, None] ^ draw.choice(others, min(len(others), _SAMPLE), replace=False)).ravel()
    best, least = None, pairs
    for count in range(1, reach + 2):
        bands = _bands(reach, count)
        lookups = sum(band.masks for band in bands)
        if lookups > _MOST_MASKS:
            continue
        share = sum(float((_inside(differing, band) <= band.radius).mean()) for band in bands)
        cost = lookups * (_COST_MASK + _COST_LOOKUP * looked_up) + _COST_CANDIDATE * share * pairs
        if cost < least:
            best, least = bands, cost
    return best


def _bands(reach: int, count: int) -> list[_Band]:
    """Cut 64 bits into `count` bands, the wider first; those that the pigeonhole principle does not need are left out."""
    radius, rest = divmod(reach, count)
    width, wider = divmod(_BITS, count)
    widths = [width + (band < wider) for band in range(count)]
    shifts = itertools.accumulate(widths, initial=0)
    bands = [_Band(s, w, radius - (k > rest)) for k, (s, w) in enumerate(zip(shifts, widths, strict=False))]
    return [band for band in bands if band.radius >= 0]


def _banded(hashes: np.ndarray, others: np.ndarray | None, reach: int, bands: list[_Band]) -> Iterator[_Found]:
    for k, band in enumerate(bands):
        order, ordered = _in_order(hashes, band)
        other_order, other_ordered = (order, ordered) if others is None else _in_order(others, band)
        other_keys = None if others is None else _key(other_ordered, band)
        for rows, low, length in _candidates(_key(ordered, band), other_keys, band):
            for i, j in _expand(rows, low, length):
                differing = ordered[i] ^ other_ordered[j]
                distance = np.bitwise_count(differing)
                near = np.flatnonzero(distance <= reach)
                differing = differing[near]
                for earlier in bands[:k]:
                    is_new = _inside(differing, earlier) > earlier.radius
                    near, differing = near[is_new], differing[is_new]
                if len(near):
                    yield order[i[near]], other_order[j[near]], distance[near]


def _in_order(hashes: np.ndarray, band: _Band) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(_key(hashes, band), kind="stable")
    return order, hashes[order]


def _candidates(keys: np.ndarray, others: np.ndarray | None, band: _Band) -> Iterator[_Found]:
    """Yield (rows, low, length): each row with the run of rows that it is to be compared with, each pair once.

    `keys` are sorted, and so are `others`, which are `keys` themselves where they are None; a run is of the rows whose key is the row's own
    with some of its bits flipped.
    """
    groups, starts, counts = np.unique(keys, return_index=True, return_counts=True)
    met, low, length = groups, starts, counts
    if others is None:
        # Equal keys: each row with the rest of its group.
        row = np.arange(len(keys))
        yield row, row + 1, np.repeat(starts + counts, counts) - row - 1
    else:
        met, low, length = np.unique(others, return_index=True, return_counts=True)
    for flips in range(1 if others is None else 0, band.radius + 1):
        for bits in itertools.combinations(range(band.width), flips):
            mask = np.uint64(sum(1 << bit for bit in bits))
            here = np.arange(len(groups))
            if others is None:
                # The flipped key is the higher one, so that two groups meet once.
                here = np.flatnonzero((groups >> np.uint64(bits[-1])) & np.uint64(1) == 0)
            wanted = groups[here] ^ mask
            there = np.minimum(np.searchsorted(met, wanted), len(met) - 1)
            is_met = met[there] == wanted
            here, there = here[is_met], there[is_met]
            yield (
                runs(starts[here], starts[here] + counts[here]),
                np.repeat(low[there], counts[here]),
                np.repeat(length[there], counts[here]),
            )


def _expand(rows: np.ndarray, low: np.ndarray, length: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (i, j) of each row with each of its run, in blocks of whole runs."""
    ends = np.cumsum(length)
    start = 0
    while start < len(rows):
        done = ends[start] - length[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + _BLOCK, side="right")))
        yield (
            np.repeat(rows[start:stop], length[start:stop]),
            runs(low[start:stop], low[start:stop] + length[start:stop]),
        )
        start = stop


def _everything(hashes: np.ndarray, others: np.ndarray | None, reach: int) -> Iterator[_Found]:
    height, width = _TILE
    within = others is None
    others = hashes if others is None else others
    differing = np.empty((height, width), dtype=np.uint64)
    counts = np.empty((height, width), dtype=np.uint8)
    for top in range(0, len(hashes), height):
        rows = hashes[top : top + height, None]
        for start in range(top if within else 0, len(others), width):
            columns = others[start : start + width]
            shape = (slice(len(rows)), slice(len(columns)))
            np.bitwise_xor(rows, columns, out=differing[shape])
            distance = np.bitwise_count(differing[shape], out=counts[shape])
            i, j = np.divmod(np.flatnonzero(distance <= reach), len(columns))
            if within:
                # The first tile of a row of tiles holds some pairs twice, and hashes with themselves.
                above = i + top < j + start
                i, j = i[above], j[above]
            if len(i):
                yield i + top, j + start, distance[i, j]


def _key(hashes: np.ndarray, band: _Band) -> np.ndarray:
    return (hashes >> np.uint64(band.shift)) & np.uint64((1 << band.width) - 1)


def _inside(differing: np.ndarray, band: _Band) -> np.ndarray:
    """Return how many of the differing bits lie in a band."""
    return np.bitwise_count(_key(differing, band))


def _positions(first: np.ndarray, i: np.ndarray, j: np.ndarray, distance: np.ndarray) -> _Found:
    a, b = first[i].astype(np.int32), first[j].astype(np.int32)
    return np.minimum(a, b), np.maximum(a, b), distance


def _concatenate(found: list[_Found]) -> _Found:
    if not found:
        return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.uint8)
    left, right, distance = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return left, right, distance
