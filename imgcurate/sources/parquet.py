"""Parquet as rows: what `imgcurate.write_parquet` or anyone else wrote."""

from __future__ import annotations

import os

import dask.dataframe as dd

from imgcurate import schema, storage
from imgcurate.cluster import backend
from imgcurate.rowwise import map_rows


def read_parquet(
    path: str | os.PathLike[str], *, columns: list[str] | None = None, storage_options: storage.Options = None
) -> dd.DataFrame:
    """Read Parquet files as a Dask dataframe.

    Parameters
    ----------
    path : str or path
        A file, a folder or a glob.
    columns : list of str, optional
        Those to read. Default: all.
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
        Where a column is missing.

    Examples
    --------
    >>> frame = read_parquet("curated/images.parquet")  # doctest: +SKIP
    """
    storage.expand(path, (".parquet", ".pq"), storage_options)
    on_host = backend() != "cudf"
    options = {"arrow_to_pandas": {"types_mapper": schema.by_kind}} if on_host else {}
    frame = dd.read_parquet(os.fspath(path), storage_options=storage_options, **options)
    earlier = schema.today(frame.columns)
    frame = frame.rename(columns=earlier) if earlier else frame
    if on_host:
        frame = map_rows(frame, schema.typed, meta=schema.typed(frame._meta), required_columns=[])
    if columns is None:
        return frame
    schema.require_columns(frame, columns, "read_parquet")
    return frame[list(columns)]
