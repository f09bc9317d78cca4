"""Images whose stored bytes are equal: a digest says which may be, and a comparison byte by byte which are.

Of equal digests, those of one block are compared where they are made; one of each goes on to the range of its digest. Growth, for n images of
which s share their digest with one of another block: time n log n, and 2 s images read; memory of a task one range, about 130 bytes a row; tasks
one a range and one for each some thousand of the s.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from dask.delayed import Delayed

from imgcurate import storage, vectors
from imgcurate.dedup.content import digest
from imgcurate.dedup.content.blocks import Fingerprint
from imgcurate.dedup.content.prints import Prints
from imgcurate.dedup.graph.found import Found, copies_found
from imgcurate.dedup.graph.nodes import table_of
from imgcurate.dedup.work.waves import in_waves

#: What reading an image takes.
PLACE = ["url", "offset", "bytes"]
#: Rows of a range, about.
_RANGE_ROWS = 1 << 20
#: Images are compared in tasks of so many, or of more where there would be too many tasks; inside of one so many at a time.
_TASK_IMAGES, _MOST_TASKS, _AT_ONCE = 2000, 10_000, 1 << 14


def read(part: Any, storage_options: storage.Options, max_bytes: int) -> pa.Table:
    """Return the digests of a partition, their high halves as ``key``, and where its images lie, as `Fingerprint.read` does."""
    known = vectors.to_arrow(digest.digest_part(part, storage_options, max_bytes))
    high, low = digest.halves(known["digest"])
    comparable = pc.and_(pc.is_valid(known["digest"]), pc.is_null(known["error"])).to_numpy()
    place = vectors.to_arrow(part[PLACE])
    columns = {name: _plain(place[name]) for name in PLACE}
    return pa.table({"key": pa.array(high, mask=~comparable), "low": low, **columns})


def equal(table: pa.Table, storage_options: storage.Options) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the rows of which an earlier one has the same bytes, and of those, as `Fingerprint.equal` does."""
    order, group = _groups(table)
    copies, originals = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    while len(order):
        first = np.flatnonzero(np.diff(group, prepend=-1))
        original = np.repeat(order[first], np.diff(first, append=len(order)))
        others = order != original
        order, original, group = order[others], original[others], group[others]
        same = np.zeros(len(order), dtype=bool)
        for start in range(0, len(order), _AT_ONCE):
            at = slice(start, start + _AT_ONCE)
            same[at] = digest.same_bytes(_places(table, order[at]), _places(table, original[at]), storage_options)
        copies.append(order[same])
        originals.append(original[same])
        # What shares a digest by chance or by design may still have copies of its own.
        order, group = order[~same], group[~same]
    return np.concatenate(copies), np.concatenate(originals)


def digests(max_bytes: int) -> Fingerprint:
    """Return the kind of fingerprint, of which `max_bytes` limits what is read."""
    return Fingerprint("exact_duplicates", partial(read, max_bytes=max_bytes), equal)


def find(prints: Prints, storage_options: storage.Options) -> list[Delayed]:
    """Return what copies there are, as Delayed of Found."""
    share = dask.delayed(sharing)
    shared = prints.hold([share(rows) for rows in prints.by_range(_RANGE_ROWS)])
    count = dask.delayed(_length)
    counts = in_waves(count(rows) for rows in shared)
    images = max(_TASK_IMAGES, sum(counts) // _MOST_TASKS)
    verify = dask.delayed(verified)
    found = prints.copies()
    for rows, n_rows in zip(shared, counts, strict=True):
        n_tasks = -(-n_rows // images)
        found += [verify(rows, number, n_tasks, storage_options) for number in range(n_tasks)]
    return found


def sharing(table: pa.Table) -> pa.Table:
    """Return the rows of a range that share their digest with another, group by group, numbered as ``group``."""
    order, group = _groups(table)
    return table.take(pa.array(order)).append_column("group", pa.array(group))


def verified(shared: Any, number: int, n_tasks: int, storage_options: storage.Options) -> Found:
    """Return the copies among one of several shares of a range's groups."""
    table = table_of(shared)
    group = table["group"].to_numpy()
    at = [len(group) * share // n_tasks for share in (number, number + 1)]
    # Each group whole: one across a bound is the next share's.
    first, last = (len(group) if bound == len(group) else int(np.searchsorted(group, group[bound])) for bound in at)
    mine = table.slice(first, last - first)
    copy, original = equal(mine, storage_options)
    row = mine["row"].to_numpy()
    return copies_found(row[copy], row[original])


def _groups(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the rows that share their digest, group by group and in order inside of each, and their groups' numbers."""
    high, low = table["key"].to_numpy(), table["low"].to_numpy()
    order = np.lexsort((low, high))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)
    group = np.cumsum(new) - 1
    shared = np.bincount(group, minlength=1)[group] > 1
    return order[shared], group[shared]


def _places(table: pa.Table, at: np.ndarray) -> pd.DataFrame:
    return table.select(PLACE).take(pa.array(at)).to_pandas(types_mapper=pd.ArrowDtype)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts as such that all partitions agree in, and numbers as they are."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_text = pa.types.is_string(column.type) or pa.types.is_string_view(column.type)
    # Beyond 2 GiB of them in one piece.
    return column.cast(pa.large_string()) if is_text else column


def _length(rows: Any) -> int:
    return len(table_of(rows))
