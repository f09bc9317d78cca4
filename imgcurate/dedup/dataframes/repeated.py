"""Ids that name more than one row, found by ranges of their hashes.

Growth, in n rows: time n log n; memory of a task eight million hashes; tasks one a range, and where hashes lie in memory one for some partitions that
are cut by range; of the client nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import dask
import numpy as np
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import storage
from imgcurate.dedup.work.mapped import map_matrix, map_table, write_table
from imgcurate.dedup.work.waves import in_waves
from imgcurate.printable import quoted

_HASHES_AT_ONCE = 1 << 23
#: Partitions in memory are put together to so many before each is cut into a piece for every range.
_MOST_CUT = 128


class Names(NamedTuple):
    """The ids of all rows of a partition, and which rows are compared."""

    ids: pa.Array
    compared: np.ndarray


def refuse_repeated(
    hashes: Sequence[Any], names: Sequence[Delayed], n_rows: int, id_field: str, suspects: np.ndarray | None = None
) -> None:
    """Raise a ValueError where an id names more than one row; each task sorts the hashes of one range.

    Parameters
    ----------
    hashes : sequence of Delayed of numpy.ndarray of uint64, or of the paths of files of them, sorted
    names : sequence of Delayed of (ids, hashes)
        Of the same partitions; asked where two hashes are equal.
    n_rows : int
    id_field : str
    suspects : numpy.ndarray of uint64, optional
        The hashes that occur more than once, where that is known.
    """
    if suspects is None:
        n_ranges = max(1, -(-n_rows // _HASHES_AT_ONCE))
        of_ranges = [list(hashes)] * n_ranges
        if n_ranges > 1 and not isinstance(hashes[0], str):
            cut, of_a_task = dask.delayed(_cut, nout=n_ranges), -(-len(hashes) // _MOST_CUT)
            pieces = [list(cut(hashes[at : at + of_a_task], n_ranges)) for at in range(0, len(hashes), of_a_task)]
            of_ranges = [list(pieces_of_range) for pieces_of_range in zip(*pieces, strict=True)]
        find = dask.delayed(repeated)
        suspects = np.concatenate(in_waves(find(of, number, n_ranges) for number, of in enumerate(of_ranges)))
    if not len(suspects):
        return
    # Two ids may share a hash by chance, so the ids themselves are looked at.
    taken = in_waves(dask.delayed(_ids_of)(part, suspects[:1000]) for part in names)
    times = Counter(name for part in taken for name in part.to_pylist())
    repeats = [name for name, count in times.items() if count > 1]
    if repeats:
        raise ValueError(
            f"{len(suspects):,} ids of column {id_field!r} name more than one row: {quoted(sorted(repeats))}; "
            "give every image an id of its own"
        )


def repeated(hashes: Sequence[Any], number: int, n_ranges: int) -> np.ndarray:
    """Return the hashes of one of several ranges that occur more than once."""
    every = np.sort(_in_range(hashes, number, n_ranges))
    return np.unique(every[1:][every[1:] == every[:-1]])


def named(names: Names, hashes: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    """Return what `refuse_repeated` asks for."""
    return names.ids, hashes


def write_names(named: Sequence[Names], hashes: Sequence[np.ndarray], path: str, durable: bool) -> None:
    """Write the hashes of all ids of a part, and the rows that are not compared."""
    with storage.open_atomic(f"{path}.hashes", durable=durable) as file:
        file.write(np.sort(np.concatenate(hashes)).data)
    others = [
        pa.table({"id": names.ids, "hash": hashed}).filter(pa.array(~names.compared))
        for names, hashed in zip(named, hashes, strict=True)
    ]
    left_out = pa.concat_tables(others, promote_options="permissive")
    if len(left_out):
        write_table(left_out, f"{path}.other", durable)


def read_names(path: str) -> tuple[pa.Array, np.ndarray]:
    """Return the ids of all rows of a part, and their hashes."""
    tables = [map_table(f"{path}.arrow"), *([map_table(f"{path}.other")] if os.path.exists(f"{path}.other") else [])]
    tables = [table.select(["id", "hash"]) for table in tables if len(table)]
    if not tables:
        return pa.nulls(0), np.zeros(0, np.uint64)
    table = pa.concat_tables(tables)
    return table["id"].combine_chunks(), table["hash"].to_numpy()


def _cut(hashes: Sequence[np.ndarray], n_ranges: int) -> tuple[np.ndarray, ...]:
    return tuple(_in_range(hashes, number, n_ranges) for number in range(n_ranges))


def _in_range(hashes: Sequence[Any], number: int, n_ranges: int) -> np.ndarray:
    low, high = (np.uint64(min(2**64 * at // n_ranges, 2**64 - 1)) for at in (number, number + 1))
    here = []
    for part in hashes:
        if isinstance(part, str):
            numbers = map_matrix(part, 1, "uint64")[:, 0]
            start, stop = np.searchsorted(numbers, [low, high]) if n_ranges > 1 else (0, len(numbers))
            stop = len(numbers) if number == n_ranges - 1 else stop
            here.append(numbers[start:stop])
        else:
            last = number == n_ranges - 1
            here.append(part if n_ranges == 1 else part[(part >= low) & ((part < high) | last)])
    return np.concatenate(here)


def _ids_of(part: tuple[pa.Array, np.ndarray], suspects: np.ndarray) -> pa.Array:
    ids, hashes = part
    return ids.take(pa.array(np.flatnonzero(np.isin(hashes, suspects))))
