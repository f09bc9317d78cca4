"""Files wherever fsspec finds them: patterns to lists of URLs, and output that appears under its name only when it is whole."""

from __future__ import annotations

import glob
import os
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.dirfs import DirFileSystem

from imgcurate.storage.atomic import open_atomic, remove, staged_folder
from imgcurate.storage.listing import (
    Paths,
    common_folder,
    expand,
    is_there,
    lies_below,
    patterns,
    problem_of,
    relative,
    root_of,
    sizes_in,
)
from imgcurate.storage.reading import digest_of, is_file, open_input, open_ranges, open_sequential, read_if_there
from imgcurate.storage.stores import (
    Entry,
    Options,
    absolute,
    etag,
    is_local,
    open_filesystem,
    passes,
    path_of,
    retrying,
    size_of,
    stat,
    to_text,
)

__all__ = [
    "Entry", "Options", "Paths", "absolute", "common_folder", "digest_of", "etag", "expand", "is_file", "is_local", "is_there", "lies_below", "open_atomic", "open_filesystem", "open_input",
    "open_ranges", "open_sequential", "passes", "path_of", "patterns", "problem_of", "read_if_there", "read_parquet_frame", "read_parquet_table", "relative", "remove", "replace_extension",
    "retrying", "root_of", "size_of", "sizes_in", "staged_folder", "stat", "to_text", "write_parquet_table",
]  # fmt: skip


def replace_extension(url: str, extension: str) -> str:
    """Return `url` with another extension.

    Examples
    --------
    >>> replace_extension("a.b/cat.v1.jpg", ".txt")
    'a.b/cat.v1.txt'
    """
    return os.path.splitext(url)[0] + extension


def write_parquet_table(table: pa.Table, url: str, storage_options: Options = None) -> None:
    """Write an Arrow table as one Parquet file."""
    with open_atomic(url, storage_options) as file:
        pq.write_table(table, file, compression="zstd")


def read_parquet_table(url: str, columns: list[str] | None = None, storage_options: Options = None) -> pa.Table:
    """Read one Parquet file, or some of its columns, as an Arrow table."""
    with open_input(url, storage_options) as file:
        return pq.read_table(file, columns=columns)


def read_parquet_frame(path: str, storage_options: Options = None, **options: Any) -> Any:
    """Read Parquet files as a Dask dataframe of pandas partitions; `options` are those of Dask's reader."""
    import dask
    import dask.dataframe as dd

    if is_there(path) and (glob.has_magic(path) or "::" in path or to_text(path) != path):
        # Dask would take it for a pattern or a chain, and to Arrow a path is text, which not every name is.
        fs, path = open_filesystem(path, None)
        folder, name = (path, "") if fs.isdir(path) else os.path.split(path)
        path, options["filesystem"] = glob.escape(name), DirFileSystem(folder, fs)
    else:
        options["storage_options"] = storage_options
    # dask-cudf's reader knows no dictionaries, and takes lists for text until they are read.
    with dask.config.set({"dataframe.backend": "pandas"}):
        return dd.read_parquet(path, **options)
