"""Rows and their unit vectors in files of a folder that every worker sees: processes map them, and the system's cache holds what is looked at.

Of each part there are ``<key>.f32`` (the vectors, row by row), ``<key>.hashes`` (the hashes of all ids, sorted), ``<key>.other`` (the rows that are not
compared, where there are any) and, last, ``<key>.arrow`` (ids, hashes and what ranks them, and the counts): where that is, the part is whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from imgcurate import identity, storage, vectors
from imgcurate.dedup.dataframes.repeated import Names, write_names
from imgcurate.dedup.semantic.normalise import Rows, Summary, one_dimension
from imgcurate.dedup.work.mapped import map_matrix, map_table, write_table

_KNOWN = b"imgcurate"
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class StoredRows:
    """A run of the rows of a part: what `normalise.Rows` is in memory, mapped where it is looked at.

    Attributes
    ----------
    path : str
        Of the part's files, without extension.
    start, stop : int
    dimension : int
    """

    path: str
    start: int
    stop: int
    dimension: int

    @property
    def table(self) -> pa.Table:
        """``id``, ``hash``, ``key0``..."""
        return map_table(f"{self.path}.arrow").slice(self.start, self.stop - self.start)

    @property
    def vectors(self) -> np.ndarray:
        """The unit vectors, a matrix of float32."""
        return map_matrix(f"{self.path}.f32", self.dimension, "float32")[self.start : self.stop]


class Stored(NamedTuple):
    """What is known of a part that is there.

    Attributes
    ----------
    path : str
        Of its files, without extension.
    n_rows, n_compared : int
    dimension : int
    encoders : frozenset of Identity
    content : str
        xxh3_64 of what is in it.
    """

    path: str
    n_rows: int
    n_compared: int
    dimension: int
    encoders: frozenset[identity.Identity]
    content: str


def write_rows(
    parts: Iterable[tuple[Rows, Summary, np.ndarray, Names]], embedding_field: str, path: str, durable: bool
) -> Stored:
    """Write prepared partitions as one part; memory beside them: their hashes."""
    content = xxhash.xxh3_64()
    tables, hashes, named, summaries = [], [], [], []
    with storage.open_atomic(f"{path}.f32", durable=durable) as file:
        for rows, summary, hashed, names in parts:
            for start in range(0, len(rows.vectors), _ROWS_AT_ONCE):
                block = np.ascontiguousarray(vectors.to_numpy(rows.vectors[start : start + _ROWS_AT_ONCE]))
                file.write(block.data)
                content.update(block.data)
            if len(rows.table):
                tables.append(rows.table)
            named.append(names)
            hashes.append(hashed)
            summaries.append(summary)
    write_names(named, hashes, path, durable)
    table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({"id": pa.nulls(0)})
    for column in table.columns:
        for chunk in column.chunks:
            for buffer in filter(None, chunk.buffers()):
                content.update(memoryview(buffer))
    encoders = frozenset(encoder for summary in summaries for encoder in summary.encoders)
    known = {
        "n_rows": sum(summary.n_rows for summary in summaries),
        "n_compared": len(table),
        "dimension": one_dimension([summary for summary in summaries if summary.n_compared], embedding_field),
        "encoders": [asdict(encoder) for encoder in sorted(encoders)],
        "content": content.hexdigest(),
    }
    write_table(table.replace_schema_metadata({_KNOWN: json.dumps(known)}), f"{path}.arrow", durable)
    return _record(path, known)


def read_record(path: str) -> Stored:
    """Return what is known of a part that is there."""
    return _record(path, json.loads(map_table(f"{path}.arrow").schema.metadata[_KNOWN]))


class VectorStore:
    """All vectors of a frame by their rows' numbers, wherever they lie.

    Parameters
    ----------
    parts : sequence of Stored
        In order; the rows are numbered through.
    """

    def __init__(self, parts: Sequence[Stored]) -> None:
        self._paths = [part.path for part in parts]
        self._starts = np.cumsum([0, *(part.n_compared for part in parts)])
        self.dimension = max((part.dimension for part in parts), default=0)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of some rows, in their order: a matrix of float32."""
        out = np.empty((len(rows), self.dimension), dtype=np.float32)
        for part, at in self._by_part(rows):
            matrix = map_matrix(f"{self._paths[part]}.f32", self.dimension, "float32")
            out[at] = matrix[rows[at] - self._starts[part]]
        return out

    def _by_part(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self._starts)
        for part in np.flatnonzero(np.diff(bounds)):
            yield int(part), order[bounds[part] : bounds[part + 1]]


class RowVectors:
    """The vectors of some rows of a store, as a matrix that is read where it is looked at.

    Parameters
    ----------
    store : VectorStore
    rows : numpy.ndarray of shape (n,)
    """

    def __init__(self, store: VectorStore, rows: np.ndarray) -> None:
        self._store, self._rows = store, rows
        self.shape = (len(rows), store.dimension)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: Any) -> np.ndarray:
        """Return the vectors at some positions, or of a slice."""
        return self._store.take(self._rows[at])

    def only(self, at: Any) -> RowVectors:
        """Return those at some positions, or of a slice, unread."""
        return RowVectors(self._store, self._rows[at])


def _record(path: str, known: dict[str, Any]) -> Stored:
    encoders = frozenset(identity.Identity(**encoder) for encoder in known["encoders"])
    return Stored(path, known["n_rows"], known["n_compared"], known["dimension"], encoders, known["content"])
