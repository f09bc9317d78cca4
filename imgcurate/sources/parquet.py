"""Parquet as rows: what `imgcurate.write_parquet` or anyone else wrote."""

from __future__ import annotations

import os
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd

from imgcurate import schema, storage
from imgcurate.cluster import backend


def read_parquet(
    path: str | os.PathLike[str], *, columns: list[str] | None = None, storage_options: storage.Options = None
) -> Any:
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
        Arrow-typed, so that embeddings stay lists of float32 without a copy. The column ``size`` of an earlier version is ``bytes``.

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
    # cuDF's columns are Arrow's already. Dask would turn Arrow strings into pandas' own, with dtype_backend="pyarrow" too.
    options = {} if backend() == "cudf" else {"arrow_to_pandas": {"types_mapper": pd.ArrowDtype}}
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dd.read_parquet(os.fspath(path), storage_options=storage_options, **options)
    earlier = schema.today(frame.columns)
    frame = frame.rename(columns=earlier) if earlier else frame
    if columns is None:
        return frame
    schema.require_columns(frame, columns, "read_parquet")
    return frame[list(columns)]
