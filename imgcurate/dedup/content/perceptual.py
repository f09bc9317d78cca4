"""Images that look alike: equal perceptual hashes come together in a range of hashes, and the ranges are compared two by two.

Growth, for n images with m different hashes in r ranges: time n log n, and r m lookups in a few bands and what candidates they give (see
`hamming.pairs_within`); memory of a task two ranges, about 100 bytes a row; tasks r (r + 1) / 2, from 200 ranges on fewer, which take several pairs
of ranges, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dask.delayed import Delayed

from imgcurate import phash, storage, vectors
from imgcurate.dedup.content import hamming
from imgcurate.dedup.content.blocks import Fingerprint
from imgcurate.dedup.content.prints import Prints
from imgcurate.dedup.graph.found import Found, concatenate, copies_found
from imgcurate.dedup.graph.nodes import table_of
from imgcurate.dedup.result.thresholds import BITS

#: Rows of a range, about.
_RANGE_ROWS = 1 << 22
#: Ranges are compared in so many tasks, about, at most.
_MOST_TASKS = 20_000


def read(part: Any, storage_options: storage.Options, **limits: Any) -> pa.Table:
    """Return the perceptual hashes of a partition, mixed as ``key`` so that ranges of it are of one size, as `Fingerprint.read` does."""
    if "phash" not in part.columns:
        known = vectors.to_arrow(phash.phash_part(part, storage_options, **limits))
    else:
        known = vectors.to_arrow(part[["phash", *(["error"] if "error" in part.columns else [])]])
        kind = known["phash"].type
        if not pa.types.is_integer(kind) and len(part):
            raise TypeError(f"column 'phash' holds {kind}; hashes are unsigned 64-bit integers")
    comparable = pc.is_valid(known["phash"]).to_numpy()
    if "error" in known.column_names:
        comparable = comparable & pc.is_null(known["error"]).to_numpy()
    hashes = np.zeros(len(known), dtype=np.uint64)
    hashes[comparable] = known["phash"].filter(pa.array(comparable)).to_numpy().astype(np.uint64)
    return pa.table({"key": pa.array(_mix(hashes), mask=~comparable), "phash": hashes})


def equal(table: pa.Table, storage_options: storage.Options) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the rows of which an earlier one has the same hash, and of those, as `Fingerprint.equal` does."""
    _, first, which = np.unique(table["phash"].to_numpy(), return_index=True, return_inverse=True)
    original = first[which]
    copy = np.flatnonzero(original != np.arange(len(original)))
    return copy, original[copy]


def hashes(**limits: Any) -> Fingerprint:
    """Return the kind of fingerprint, of which the limits are those of `phash.phash_part`."""
    return Fingerprint("perceptual_duplicates", partial(read, **limits), equal)


def find(prints: Prints, max_distance: int) -> list[Delayed]:
    """Return what pairs and copies there are, as Delayed of Found."""
    tell_apart, inside, across = (dask.delayed(function) for function in (with_originals, pairs_inside, pairs_across))
    ranges = [tell_apart(rows) for rows in prints.by_range(_RANGE_ROWS)]
    if len(ranges) > 1:
        ranges = prints.hold(ranges)
    found = prints.copies() + [inside(rows, max_distance) for rows in ranges]
    if max_distance:  # else what differs is in no pair
        at_once = max(1, len(ranges) ** 2 // 2 // _MOST_TASKS)
        found += [
            across(rows, ranges[first : first + at_once], max_distance)
            for number, rows in enumerate(ranges, 1)
            for first in range(number, len(ranges), at_once)
        ]
    return found


def with_originals(table: pa.Table) -> pa.Table:
    """Return the hashes and rows of a range, and as ``original`` the first row that has the hash."""
    row, original = table["row"].to_numpy(), table["row"].to_numpy().copy()
    copy, first = equal(table, None)
    original[copy] = row[first]
    return pa.table({"phash": table["phash"], "row": row, "original": original})


def pairs_inside(rows: Any, max_distance: int) -> Found:
    """Return the copies of a range, and the pairs of its different hashes."""
    table = table_of(rows)
    row, original = table["row"].to_numpy(), table["original"].to_numpy()
    is_copy = row != original
    hashes, row_of = _different(table)
    pairs = _pairs(hamming.pairs_within(hashes, max_distance), row_of, row_of)
    return concatenate([copies_found(row[is_copy], original[is_copy]), pairs])


def pairs_across(rows: Any, others: Sequence[Any], max_distance: int) -> Found:
    """Return the pairs of a hash of one range and a hash of one of others."""
    hashes, row_of = _different(table_of(rows))
    found = []
    for other in others:
        other_hashes, other_row_of = _different(table_of(other))
        found.append(_pairs(hamming.pairs_between(hashes, other_hashes, max_distance), row_of, other_row_of))
    return concatenate(found)


def _different(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the different hashes of a range, and the row that each stands for."""
    row = table["row"].to_numpy()
    first = row == table["original"].to_numpy()
    return table["phash"].to_numpy()[first], row[first]


def _pairs(pairs: hamming.HashPairs, row: np.ndarray, other_row: np.ndarray) -> Found:
    similarity = (1 - pairs.distance / BITS).astype(np.float32)
    return concatenate([])._replace(left=row[pairs.left], right=other_row[pairs.right], similarity=similarity)


def _mix(hashes: np.ndarray) -> np.ndarray:
    """Scatter hashes over 64 bits, different ones apart: those of images crowd in a few places."""
    return (hashes ^ (hashes >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
