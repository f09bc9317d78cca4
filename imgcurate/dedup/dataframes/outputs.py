"""Tables of what was found as frames of a user's backend, whose ids have the type that they had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import schema, vectors


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


class Result:
    """What a verb found among the images of a frame, and how it goes back to who gave the frame.

    Attributes
    ----------
    n_rows, n_compared, n_excluded : int
        Images in the frame; those that took part; those that did not, because of an error or for lack of what is compared.
    id_field : str
    """

    def __init__(self, n_rows: int, n_compared: int, *, like: Any, id_dtype: Any, id_field: str, at_once: bool) -> None:
        self.n_rows, self.n_compared, self.n_excluded = n_rows, n_compared, n_rows - n_compared
        self.id_field = id_field
        self._like, self._id_dtype, self._at_once = like, id_dtype, at_once

    def _excluded(self) -> str:
        return f", {self.n_excluded:,} excluded" if self.n_excluded else ""

    def _as_frame(
        self, tables: Sequence[Delayed], columns: Sequence[str], host: pd.DataFrame, name: str, by: Sequence[str] = ()
    ) -> Any:
        """Return tables as `lazily` does, or where the frame was in memory computed, and in order of some columns."""
        frame = lazily(self, tables, columns, host, self._like, name)
        if not self._at_once:
            return frame
        made = frame.compute()
        return made.sort_values(list(by), ignore_index=True) if by else made.reset_index(drop=True)


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
