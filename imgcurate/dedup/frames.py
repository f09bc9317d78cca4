"""Tables of what was found as frames of a user's backend, whose ids have the type that they had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import schema, vectors


def id_dtype(column: Any) -> Any:
    """Return the type that ids have in the results: that of the frame's column on the host, plain where it is categorical."""
    dtype = vectors.to_pandas(column).dtype
    if isinstance(dtype, pd.ArrowDtype) and pa.types.is_dictionary(dtype.pyarrow_dtype):
        return schema.dtype(dtype.pyarrow_dtype.value_type)
    if not isinstance(dtype, pd.CategoricalDtype):
        return dtype
    return dtype.categories.dtype if pd.api.types.is_integer_dtype(dtype.categories.dtype) else schema.TEXT


class Prefix(str):
    """Of a frame's keys; keeps the result, and with it what lies on the cluster or in a temporary folder, for as long as the frame is there.

    Dask's graphs name what was persisted and do not hold it, and of all that a frame is made of this is what stays in this process.
    """

    def __new__(cls, result: Any, name: str) -> Prefix:
        self = super().__new__(cls, name)
        self._result = result
        return self

    _result: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def lazily(
    result: Any, tables: Sequence[Delayed], columns: Sequence[str], host: pd.DataFrame, like: Any, name: str
) -> dd.DataFrame:
    """Return what a result found as a Dask dataframe that keeps the result.

    Parameters
    ----------
    result : object
        What holds the tables, as of `Prefix`.
    tables : sequence of Delayed of pyarrow.Table
        A partition each; without any, the frame has an empty one.
    columns : sequence of str
        Those of the tables.
    host : pandas.DataFrame of no rows
        Names and types of these columns in the frame.
    like : pandas or cuDF DataFrame
        On the backend of the frame.
    name : str
        What keys begin with.
    """
    meta = vectors.from_pandas(host, like)
    parts = [dask.delayed(as_part)(table, columns, host, meta) for table in tables] or [dask.delayed(meta)]
    return dd.from_delayed(parts, meta=meta, verify_meta=False, prefix=Prefix(result, name))


def as_part(table: pa.Table, columns: Sequence[str], like: pd.DataFrame, meta: Any) -> Any:
    """Return columns of a table as a partition on the backend of `meta`, with the names and types of `like`."""
    return vectors.from_pandas(on_host(table, columns, like), meta)


def on_host(table: pa.Table, columns: Sequence[str], like: pd.DataFrame) -> pd.DataFrame:
    """Return columns of a table as pandas, with the names and types of `like`."""
    part = schema.to_pandas(table.select(list(columns)).rename_columns(list(like.columns)))
    return part.astype(dict(like.dtypes))


def arrow_type(dtype: Any) -> pa.DataType:
    """Return what ids of a pandas type are in Arrow."""
    if isinstance(dtype, pd.ArrowDtype):
        return dtype.pyarrow_dtype
    if not pd.api.types.is_integer_dtype(dtype):
        return pa.string()
    # As `normalise.plain_ids` has them: hashes of 64 bits are ids too.
    return pa.uint64() if pd.api.types.is_unsigned_integer_dtype(dtype) and dtype.itemsize == 8 else pa.int64()


def arrow_id_dtype(kind: pa.DataType) -> Any:
    """Return the type that ids of an Arrow type have in pandas."""
    return np.dtype(kind.to_pandas_dtype()) if pa.types.is_integer(kind) else schema.dtype(kind)
