"""Pieces of files of vectors: NumPy arrays, Parquet and Arrow, read as an Arrow table of what stands beside the vectors, and their matrix."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from imgcurate import storage, vectors
from imgcurate.printable import printable, quoted

_NUMBERED = re.compile(r"(.*?)(\d+)")
#: Fewer numbered columns than this are taken for vectors only where they are named.
_FEWEST_COLUMNS = 8
_ARROW_FILE = b"ARROW1"


class Header(NamedTuple):
    """What a ``.npy`` file says of its array, and at which byte this begins."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int


def read_header(url: str, storage_options: storage.Options) -> Header:
    """Read the header of a ``.npy`` file.

    Raises
    ------
    ValueError
        Where it is none, or holds Python objects, which are a pickle and are not loaded.
    """
    with storage.open_input(url, storage_options) as file:
        return _header(file, url)


def read_rows(url: str, start: int, stop: int | None, storage_options: storage.Options) -> np.ndarray:
    """Return some rows of the array in a ``.npy`` file."""
    with storage.open_input(url, storage_options) as file:
        header = _header(file, url)
        stop = header.shape[0] if stop is None else stop
        size = header.dtype.itemsize * int(np.prod(header.shape[1:]))
        if header.fortran:
            content = file.read()
            return np.frombuffer(content, header.dtype).reshape(header.shape, order="F")[start:stop]
        file.seek(header.offset + start * size)
        content = file.read((stop - start) * size)
    if len(content) < (stop - start) * size:
        raise ValueError(f"{printable(url)} is shorter than its header says: its end is missing")
    return np.frombuffer(content, header.dtype).reshape(stop - start, *header.shape[1:])


def read_matrix(url: str, start: int, stop: int | None, storage_options: storage.Options) -> np.ndarray:
    """Return vectors of a ``.npy`` file as float32; where it holds uint16, those are the bits of float16."""
    rows = read_rows(url, start, stop, storage_options)
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise ValueError(
            f"{printable(url)} holds {rows.dtype} of shape {rows.shape}, not a vector of numbers in each row"
        )
    return (rows.view(np.float16) if rows.dtype == np.uint16 else rows).astype(np.float32)


@contextmanager
def _opened(url: str, storage_options: storage.Options) -> Any:
    try:
        with storage.open_input(url, storage_options) as file:
            yield file
    except (pa.ArrowException, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise
        raise ValueError(f"{printable(url)} cannot be read: {printable(str(problem))}") from None


def read_schema(url: str, storage_options: storage.Options) -> pa.Schema:
    """Return the schema of a Parquet or Arrow file."""
    with _opened(url, storage_options) as file:
        return pq.read_schema(file) if is_parquet(url) else _reader(file).schema


def row_groups(url: str, storage_options: storage.Options) -> list[int]:
    """Return how many bytes each row group of a Parquet file holds."""
    with _opened(url, storage_options) as file:
        known = pq.read_metadata(file)
    return [known.row_group(number).total_byte_size for number in range(known.num_row_groups)]


def read_table(
    url: str, start: int, stop: int | None, columns: Sequence[str], storage_options: storage.Options
) -> pa.Table:
    """Return columns of a Parquet file's row groups, or of an Arrow file, of those that it has."""
    with _opened(url, storage_options) as file:
        if is_parquet(url):
            content = pq.ParquetFile(file)
            there = [name for name in content.schema_arrow.names if name in columns]
            return content.read_row_groups(range(start, content.num_row_groups if stop is None else stop), there)
        fields = [number for number, name in enumerate(_reader(file).schema.names) if name in columns]
        file.seek(0)
        # Of the others, which may be the images themselves, nothing is decoded.
        return _reader(file, included_fields=fields).read_all()


def is_parquet(url: str) -> bool:
    """Tell whether a file is Parquet by its name; else it is Arrow's own format."""
    return url.lower().endswith((".parquet", ".pq"))


def vector_columns(schema: pa.Schema, named: str | None, url: str) -> list[str]:
    """Return the column of lists that holds the vectors, or the numbered columns that are their elements, in order.

    Parameters
    ----------
    schema : pyarrow.Schema
    named : str or None
        The column, or what its numbered columns begin with. Default: "embedding", the only column of lists of numbers, or the most columns of
        numbers that are numbered through.
    url : str
        For messages.

    Examples
    --------
    >>> wide = pa.schema([("id", pa.string()), *((f"emb_{n}", pa.float32()) for n in (10, *range(10)))])
    >>> vector_columns(wide, None, "wide.parquet")[-2:]
    ['emb_9', 'emb_10']
    """
    if named is not None and named in schema.names:
        return [named]
    lists = [field.name for field in schema if _holds_vectors(field.type)]
    if named is None and lists:
        if len(lists) > 1 and "embedding" not in lists:
            raise ValueError(
                f"{printable(url)} has several columns of vectors, {quoted(lists)}: name one as embedding_field="
            )
        return ["embedding"] if "embedding" in lists else lists
    wide = _numbered_columns(schema)
    if named is not None:
        prefixes = [prefix for prefix in wide if prefix.rstrip("_-. ") == named.rstrip("_-. ")]
        if not prefixes:
            raise KeyError(
                f"{printable(url)} has no column {named!r}, nor numbered ones; it has {quoted(schema.names, 20)}"
            )
        return wide[prefixes[0]]
    longest = max(map(len, wide.values()), default=0)
    found = [columns for columns in wide.values() if len(columns) == longest]
    if longest < _FEWEST_COLUMNS:
        raise ValueError(
            f"{printable(url)} has no column of vectors (lists of numbers, or numbered columns); it has {quoted(schema.names, 20)}"
        )
    if len(found) > 1:
        raise ValueError(
            f"{printable(url)} has several runs of {longest} numbered columns, from {quoted(columns[0] for columns in found)} on: name one as embedding_field="
        )
    return found[0]


def to_matrix(table: pa.Table, columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of a table's columns, float32, and which rows have one; lists of uint16 are the bits of float16."""
    if len(columns) > 1:
        # Halves cannot be cast by Arrow on its own everywhere.
        rows = [table[name].to_numpy().astype(np.float32) for name in columns]
        return np.stack(rows, axis=1), np.ones(len(table), dtype=bool)
    column = table[columns[0]].combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    matrix = vectors.to_matrix(pd.Series(pd.arrays.ArrowExtensionArray(column), name=columns[0]))
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if column.type.value_type == pa.uint16():
        bits = np.where(valid[:, None], matrix, 0).astype(np.uint16)
        matrix = bits.view(np.float16).astype(np.float32)
    return matrix, valid


def index_column(metadata: Mapping[bytes, bytes] | None) -> str | None:
    """Return the column in which pandas wrote a frame's index; of several levels, none."""
    known = json.loads((metadata or {}).get(b"pandas", b"{}"))
    names = [name for name in known.get("index_columns", []) if isinstance(name, str)]
    return names[0] if len(names) == 1 else None


def _header(file: BinaryIO, url: str) -> Header:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as problem:
        raise ValueError(f"{printable(url)} is no array that NumPy wrote: {printable(str(problem))}") from None
    if dtype.hasobject:
        raise ValueError(
            f"{printable(url)} holds Python objects, a pickle, which is not loaded: save it as an array of numbers, or of ids as numpy.array(ids, dtype=str)"
        )
    if not shape:
        raise ValueError(f"{printable(url)} holds one number, not one for each image")
    return Header(shape, fortran, dtype, file.tell())


def _reader(file: BinaryIO, included_fields: list[int] | None = None) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=included_fields)
    begin = file.read(len(_ARROW_FILE))
    file.seek(0)
    return (
        pa.ipc.open_file(file, options=options) if begin == _ARROW_FILE else pa.ipc.open_stream(file, options=options)
    )


def _holds_vectors(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _numbered_columns(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the columns of numbers that are numbered from 0 or 1 without a gap, by what stands before the number."""
    groups: dict[str, dict[int, str]] = {}
    for field in schema:
        match = _NUMBERED.fullmatch(field.name)
        if match and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)):
            groups.setdefault(match[1], {})[int(match[2])] = field.name
    return {
        prefix: [names[number] for number in sorted(names)]
        for prefix, names in groups.items()
        if min(names) in (0, 1) and max(names) - min(names) == len(names) - 1
    }
