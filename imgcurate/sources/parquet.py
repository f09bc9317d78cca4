"""Parquet as rows: what `imgcurate.write_parquet` or anyone else wrote."""

from __future__ import annotations

import glob
import os
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa

from imgcurate import images, schema, storage, vectors
from imgcurate.cluster import backend
from imgcurate.printable import printable


def read_parquet(
    path: str | os.PathLike[str],
    *,
    columns: list[str] | None = None,
    roots: storage.Paths | None = None,
    storage_options: storage.Options = None,
) -> Any:
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
        Arrow-typed, so that embeddings stay lists of float32 without a copy. The column ``size`` of an earlier version is ``bytes``.

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
    # cuDF's columns are Arrow's already. Dask would turn Arrow strings into pandas' own, with dtype_backend="pyarrow" too.
    options: dict[str, Any] = {} if backend() == "cudf" else {"arrow_to_pandas": {"types_mapper": pd.ArrowDtype}}
    place = os.fspath(path)
    if storage.is_there(place) and (glob.has_magic(place) or "::" in place):
        # Dask would take it for a pattern or a chain.
        options["filesystem"], place = storage.open_filesystem(place, None)
        place = glob.escape(place)
    else:
        options["storage_options"] = storage_options
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dd.read_parquet(place, **options)
    earlier = schema.today(frame.columns)
    frame = frame.rename(columns=earlier) if earlier else frame
    if columns is not None:
        schema.require_columns(frame, columns, "read_parquet")
        frame = frame[list(columns)]
    if roots is None:
        return frame
    schema.require(frame, ["url"], "read_parquet with roots")
    folders = [roots] if isinstance(roots, str | os.PathLike) else list(roots)
    below = [storage.absolute(folder, storage_options) for folder in folders]
    return frame.map_partitions(_refuse_outside, below, meta=_refuse_outside(frame._meta, below))


def _refuse_outside(part: Any, roots: list[str]) -> Any:
    """Return a partition with an error at each row whose URL does not lie below one of `roots`."""
    if not len(part):
        return part if "error" in part.columns else part.assign(error=vectors.empty_like(part, ["error"])["error"])
    columns = images.host_columns(part, ["url", "error"])
    errors = columns.get("error", [None] * len(part))
    for row, url in enumerate(columns["url"]):
        if errors[row] is None and not (url is not None and storage.lies_below(url, roots)):
            errors[row] = f"read: {printable(str(url), 200)} is not below {', '.join(roots)}"
    error = images.columns_like(part, {"error": pa.array(errors, type=schema.TYPES["error"])})
    return part.assign(error=error["error"])
