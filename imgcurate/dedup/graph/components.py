"""Cutting a graph that is too large for one task into parts of whole connected components: a rule decides on each by itself.

What stays depends on ranks inside a component alone, so no part needs to know of another. Growth, for n rows and p pairs: the components are found in one pass over
the pairs, file by file, with 8 bytes a row on disk and one file's pairs in memory; then each pair is written and read once more.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from imgcurate import storage
from imgcurate.dedup.graph.found import Found, concatenate, read_found
from imgcurate.dedup.work.mapped import Folder, map_table, write_table


def components(found: Sequence[str], n_rows: int, path: str) -> None:
    """Write, of each row, one that is nearer to the first row of its component: a forest, by joining the trees that a pair connects.

    Parameters
    ----------
    found : sequence of str
        Files of pairs.
    n_rows : int
        The rows are numbered from 0 up to it.
    path : str
        Where to write the numbers, 8 bytes each.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # Written before it is mapped: a process that touches a page for which the disk has no room dies.
    with storage.open_atomic(path, durable=False) as file:
        for start in range(0, n_rows, 1 << 22):
            file.write(np.arange(start, min(start + (1 << 22), n_rows)).data)
    above = np.memmap(path, dtype=np.int64, mode="r+", shape=(n_rows,))
    for pairs in found:
        part = read_found(pairs)
        rows, place = np.unique(np.concatenate([part.left, part.copy, part.right, part.original]), return_inverse=True)
        roots, of_row = np.unique(_root(above, rows), return_inverse=True)
        one, other = np.split(of_row[place], 2)
        edges = coo_array((np.ones(len(one), dtype=np.int8), (one, other)), shape=(len(roots), len(roots)))
        count, component = connected_components(edges, directed=False)
        first = np.full(count, n_rows, dtype=np.int64)
        np.minimum.at(first, component, roots)
        above[roots] = first[component]
        above[rows] = first[component][of_row]
        # What was looked at stays in the system's cache and no longer counts as this process's memory.
        above._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    above.flush()


def route(found: str, forest: str, n_rows: int, n_parts: int, path: str) -> np.ndarray:
    """Write the pairs and copies of a file sorted by the part that their components belong to, and return how many each part gets."""
    part = read_found(found)
    above = np.memmap(forest, dtype=np.int64, mode="r", shape=(n_rows,))
    of_pair, of_copy = (_mix(_root(above, rows)) % np.uint64(n_parts) for rows in (part.left, part.copy))
    for kind, number, columns in (
        ("pairs", of_pair, {"left": part.left, "right": part.right, "similarity": part.similarity}),
        ("copies", of_copy, {"copy": part.copy, "original": part.original}),
    ):
        order = np.argsort(number, kind="stable")
        table = pa.table({"part": number[order], **{name: column[order] for name, column in columns.items()}})
        write_table(table, f"{path}.{kind}", durable=False)
    return np.bincount(np.concatenate([of_pair, of_copy]).astype(np.int64), minlength=n_parts)


def gather(folder: Folder, names: Sequence[str], part: int) -> Found:
    """Return the pairs and copies of one part."""
    found = []
    for name in names:
        path = folder.file("graph", name)
        pairs, copies = (_rows_of(map_table(f"{path}.{kind}"), part) for kind in ("pairs", "copies"))
        columns = [*(pairs[name] for name in ("left", "right", "similarity")), copies["copy"], copies["original"]]
        found.append(Found(*(column.to_numpy() for column in columns)))
    return concatenate(found)


def _rows_of(table: pa.Table, part: int) -> pa.Table:
    start, stop = np.searchsorted(table["part"].to_numpy(), [part, part + 1])
    return table.slice(start, stop - start)


def _root(above: np.ndarray, rows: np.ndarray) -> np.ndarray:
    found = above[rows]
    while not np.array_equal(found, higher := above[found]):
        found = higher
    return found


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Scatter numbers over 64 bits (the finisher of SplitMix64, Steele, Lea and Flood, 2014)."""
    mixed = numbers.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
