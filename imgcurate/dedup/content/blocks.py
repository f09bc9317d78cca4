"""What is done inside a task with a block of images: it is fingerprinted, written to files, and looked through for a range of keys.

A block is a large partition or a run of small ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imgcurate import storage, vectors
from imgcurate.dedup.dataframes.ids import plain_ids
from imgcurate.dedup.dataframes.repeated import Names, write_names
from imgcurate.dedup.graph import rank
from imgcurate.dedup.graph.found import Found, copies_found
from imgcurate.dedup.work.mapped import map_table, write_table

_KNOWN = b"imgcurate"


class Fingerprint(NamedTuple):
    """A kind of fingerprint.

    Attributes
    ----------
    verb : str
    read : callable
        Of a partition and the storage options: a table of its rows with ``key`` (uint64, null where an image cannot be compared, equal where
        fingerprints are) and what else is needed to tell which images are equal.
    equal : callable
        Of such a table without nulls and the storage options: the positions of the rows that equal an earlier one, and of those.
    """

    verb: str
    read: Callable[[Any, storage.Options], pa.Table]
    equal: Callable[[pa.Table, storage.Options], tuple[np.ndarray, np.ndarray]]


class Summary(NamedTuple):
    """What the client has to know of a block: how many rows it has, are compared, and go on; and how many bytes it takes in memory."""

    n_rows: int
    n_compared: int
    n_entries: int
    n_bytes: int


class Entries(NamedTuple):
    """The fingerprints of a block.

    Attributes
    ----------
    table : pyarrow.Table
        What `Fingerprint.read` gives of one of each set of equal images, in order of ``key``, and ``at``, its position in the block.
    copies : pyarrow.Table
        ``copy`` and ``original``, the positions of the others and of what they equal.
    """

    table: pa.Table
    copies: pa.Table


@dataclass(frozen=True)
class StoredEntries:
    """`Entries` in files, mapped where they are looked at."""

    path: str

    @property
    def table(self) -> pa.Table:
        return map_table(f"{self.path}.entries")

    @property
    def copies(self) -> pa.Table:
        return map_table(f"{self.path}.copies")


@dataclass(frozen=True)
class StoredTable:
    """A table in a file, mapped where it is looked at."""

    path: str

    @property
    def table(self) -> pa.Table:
        return map_table(self.path)


@dataclass(frozen=True)
class StoredImages:
    """The images of a block in a file: what `numbered` gives of them."""

    path: str
    start: int

    @property
    def table(self) -> pa.Table:
        return numbered(map_table(f"{self.path}.arrow"), self.start)


def print_block(
    partitions: Sequence[Any],
    kind: Fingerprint,
    id_field: str,
    keys: Sequence[str],
    seed: int,
    storage_options: storage.Options,
) -> tuple[pa.Table, Entries, Summary, np.ndarray, Names]:
    """Return a block's comparable images (``id``, ``hash``, ``key0``...), their fingerprints, its summary, and the hashes and ids of all its rows."""
    images, prints = [], []
    for part in partitions:
        host = vectors.to_arrow(part[list(dict.fromkeys([id_field, *keys]))])
        ids = plain_ids(host[id_field], id_field)
        ranks = {f"key{number}": host[name] for number, name in enumerate(keys)}
        images.append(pa.table({"id": ids, "hash": rank.hash_ids(ids, seed), **ranks}))
        prints.append(kind.read(part, storage_options))
    table, every = join(images).combine_chunks(), join(prints).combine_chunks()
    compared = pc.is_valid(every["key"]).to_numpy()
    names, hashes = Names(table["id"].combine_chunks(), compared), table["hash"].to_numpy()
    if not compared.all():
        table, every = table.filter(pa.array(compared)), every.filter(pa.array(compared))
    copy, original = kind.equal(every, storage_options)
    goes_on = np.ones(len(every), dtype=bool)
    goes_on[copy] = False
    at = np.flatnonzero(goes_on)
    at = at[np.argsort(every["key"].to_numpy()[at], kind="stable")]
    entries = Entries(
        every.take(pa.array(at)).append_column("at", pa.array(at)), pa.table({"copy": copy, "original": original})
    )
    n_bytes = sum(part.nbytes for part in (table, *entries, hashes, names.ids))
    return table, entries, Summary(len(compared), len(table), len(at), n_bytes), hashes, names


def write_block(block: tuple[pa.Table, Entries, Summary, np.ndarray, Names], path: str, durable: bool) -> Summary:
    """Write what `print_block` gives; where ``<path>.arrow`` is, the block is whole."""
    table, entries, summary, hashes, names = block
    write_names([names], [hashes], path, durable)
    write_table(entries.table, f"{path}.entries", durable)
    write_table(entries.copies, f"{path}.copies", durable)
    write_table(table.replace_schema_metadata({_KNOWN: json.dumps(summary)}), f"{path}.arrow", durable)
    return summary


def read_summary(path: str) -> Summary:
    """Return what is known of a block that is there."""
    return Summary(*json.loads(map_table(f"{path}.arrow").schema.metadata[_KNOWN]))


def numbered(table: pa.Table, start: int) -> pa.Table:
    """Give images their numbers; all are in one cluster."""
    n = len(table)
    return (
        table.append_column("row", pa.array(np.arange(start, start + n)))
        .append_column("cluster", pa.array(np.zeros(n, np.int32)))
        .append_column("distance", pa.array(np.zeros(n, np.float32)))
    )


def in_range(blocks: Iterable[tuple[Any, int]], number: int, n_ranges: int) -> pa.Table:
    """Return the entries of some blocks in one of several equal ranges of their keys, block by block, with their numbers as ``row``.

    Parameters
    ----------
    blocks : iterable of (Entries or StoredEntries, int)
        And the number of the first image of each.
    number, n_ranges : int
    """
    low, high = (2**64 * at // n_ranges for at in (number, number + 1))
    slices = []
    for entries, start in blocks:
        table = entries.table
        keys = table["key"].to_numpy()
        first, last = (np.searchsorted(keys, np.uint64(bound)) for bound in (low, min(high, 2**64 - 1)))
        part = table.slice(first, (len(keys) if high == 2**64 else last) - first)
        slices.append(part.append_column("row", pa.array(part["at"].to_numpy() + start)).drop_columns(["at"]))
    return join(slices)


def cut(blocks: Sequence[tuple[Any, int]], n_ranges: int) -> tuple[pa.Table, ...]:
    """Return the entries of some blocks by ranges of their keys."""
    return tuple(in_range(blocks, number, n_ranges) for number in range(n_ranges))


def join(tables: Sequence[pa.Table]) -> pa.Table:
    """Put tables together."""
    # Partitions may read a column differently, such as whole numbers as floats where some are missing, and of no rows anyhow.
    return pa.concat_tables([table for table in tables if len(table)] or tables[:1], promote_options="permissive")


def copies_of(entries: Any, start: int) -> Found:
    """Return the copies inside a block."""
    copies = entries.copies
    return copies_found(*(copies[name].to_numpy() + start for name in ("copy", "original")))
