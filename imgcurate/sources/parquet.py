"""Parquet as rows: what `imgcurate.write_parquet` or anyone else wrote."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import dask.dataframe as dd
import pyarrow as pa

from imgcurate import images, schema, storage, vectors
from imgcurate.cluster import backend
from imgcurate.printable import printable
from imgcurate.rowwise import map_rows


def read_parquet(
    path: str | os.PathLike[str],
    *,
    columns: list[str] | None = None,
    roots: storage.Paths | None = None,
    storage_options: storage.Options = None,
) -> dd.DataFrame:
    """Read Parquet files as a Dask dataframe.

    Parameters
    ----------
    path : str or path
        A file, a folder or a glob.
    columns : list of str, optional
        Those to read. Default: all.
    roots : path or list of these, optional
        Folders in which the images of other people's rows must lie: a row whose ``url`` leads elsewhere gets an ``error``, with which it is
        never read or written. Default: rows may name any file that whoever runs this may read, as a script may.
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    dask.dataframe.DataFrame
        With the types that pandas gives, but for whole numbers and lists of columns of other names than imgcurate's: these have Arrow's, which
        hold nulls, and embeddings without a copy. The column ``size`` of an earlier version is ``bytes``.

    Raises
    ------
    FileNotFoundError
        Where there is no Parquet file.
    KeyError
        Where a column is missing, or `roots` are given and there is no column ``url``.

    Examples
    --------
    >>> frame = read_parquet("curated/images.parquet")  # doctest: +SKIP
    """
    storage.expand(path, (".parquet", ".pq"), storage_options)
    frame = storage.read_parquet_frame(
        os.fspath(path), storage_options, arrow_to_pandas={"types_mapper": schema.by_kind}
    )
    earlier = schema.today(frame.columns)
    frame = frame.rename(columns=earlier) if earlier else frame
    frame = map_rows(frame, schema.typed, meta=schema.typed(frame._meta), required_columns=[])
    frame = vectors.to_backend(frame, backend())
    if columns is not None:
        schema.require_columns(frame, columns, "read_parquet")
        frame = frame[list(columns)]
    if roots is None:
        return frame
    schema.require(frame, ["url"], "read_parquet with roots")
    below = absolute_roots(roots, storage_options)
    return frame.map_partitions(_refuse_outside, below, meta=_refuse_outside(frame._meta, below))


def absolute_roots(roots: storage.Paths, storage_options: storage.Options = None) -> tuple[str, ...]:
    """Return the folders in which images must lie as they mean the same on every worker."""
    folders = [roots] if isinstance(roots, str | os.PathLike) else list(roots)
    return tuple(storage.absolute(folder, storage_options) for folder in folders)


def outside(url: str | None, roots: Sequence[str]) -> str | None:
    """Say that a row's URL does not lie below one of `roots`, or None.

    Examples
    --------
    >>> outside("s3://bucket/a.jpg", ["s3://bucket"]), outside("/etc/passwd", ["s3://bucket"])
    (None, '/etc/passwd is not below s3://bucket')
    """
    if url is not None and storage.lies_below(url, roots):
        return None
    return f"{printable(str(url), 200)} is not below {', '.join(roots)}"


def _refuse_outside(part: Any, roots: Sequence[str]) -> Any:
    """Return a partition with an error at each row whose URL does not lie below one of `roots`."""
    if not len(part):
        return part if "error" in part.columns else part.assign(error=vectors.empty_like(part, ["error"])["error"])
    columns = images.host_columns(part, ["url", "error"])
    errors = columns.get("error", [None] * len(part))
    for row, url in enumerate(columns["url"]):
        if errors[row] is None and (problem := outside(url, roots)) is not None:
            errors[row] = f"read: {problem}"
    error = images.columns_like(part, {"error": pa.array(errors, type=schema.TYPES["error"])})
    return part.assign(error=error["error"])
