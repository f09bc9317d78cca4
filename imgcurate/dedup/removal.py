"""remove(): the anti-join. Rows whose id is on a list go; nothing is shuffled.

The list is hashed in parts, sorted once, and held once by each worker process; a partition looks up its own ids in it, so that its cost
is that of its rows.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import schema, vectors
from imgcurate.dedup import lookup
from imgcurate.dedup.result import Duplicates
from imgcurate.dedup.waves import wait

_NAMED = 5


def remove(frame: Any, removals: Any, on: str = "image_id", *, missing: str = "warn") -> dd.DataFrame:
    """Drop the rows whose id is on a removal list.

    Parameters
    ----------
    frame : Dask DataFrame
        With column `on`.
    removals : Duplicates, Dask or pandas DataFrame or Series, or path
        The ids: the result of `semantic_duplicates`, column `on` of a frame, a series, or column `on` of a Parquet file or
        directory. Repeated and null ids count for nothing.
    on : str
    missing : {"warn", "raise", "ignore"}
        What to do where `frame` lacks some of the ids: warn and say which, raise, or not look. Looking reads column `on` of
        `frame` once, eagerly.

    Returns
    -------
    Dask DataFrame
        The other rows of `frame`, lazily; a consumer of some columns has only those and `on` computed.

    Raises
    ------
    KeyError
        Where `frame` or `removals` has no column `on`.
    TypeError
        Where one holds numbers and the other text, one holds a mixture, or `removals` is of no kind named above.
    ValueError
        Where ids are missing and ``missing="raise"``.

    Notes
    -----
    A partition costs what its rows cost, however long the list is. The list takes 13 to 14 bytes an id and the ids in Arrow's memory, once in each
    worker process (not spread over them).

    Examples
    --------
    >>> frame = dd.from_pandas(pd.DataFrame({"image_id": ["a", "b", "c"]}), npartitions=2)
    >>> remove(frame, pd.Series(["b"]))["image_id"].compute().tolist()
    ['a', 'c']
    """
    if missing not in ("warn", "raise", "ignore"):
        raise ValueError(f"missing={missing!r} is unknown: give 'warn', 'raise' or 'ignore'")
    schema.require(frame, [on], "remove")
    column = _id_column(removals, on)
    _check_kinds(frame, column, on)
    pieces = column.to_delayed() if hasattr(column, "to_delayed") else [column]
    # A task holds the list and every partition's depends on it: it stands in the graph once, and in a worker's memory once.
    # Started at once: a lazy list may be a view of a Duplicates that only this function's caller holds, and not for long.
    # Pure, so that what is made of the frame has the same keys in another process, and a checkpoint or a folder of work knows it again.
    hashed = [dask.delayed(_hashed, pure=True)(piece) for piece in pieces]
    ids = dask.delayed(lookup.build, pure=True)(hashed).persist()
    wait([ids])
    if missing != "ignore":
        _report_missing(frame, ids, on, missing)
    meta = pd.Series([], dtype=bool) if not vectors.on_gpu(frame._meta) else frame._meta[on].isnull()
    listed = frame[on].map_partitions(_is_listed, ids, meta=meta)
    return frame[~listed]


def _id_column(removals: Any, on: str) -> Any:
    """Return the ids as a Dask or host Series."""
    if isinstance(removals, Duplicates):
        return removals.removals()[removals.id_field]
    if isinstance(removals, str | os.PathLike):
        removals = _read(os.fspath(removals))
    removals = vectors.to_pandas(removals)
    if not isinstance(removals, pd.DataFrame | pd.Series) and not hasattr(removals, "to_delayed"):
        raise TypeError(
            f"remove takes ids as a frame, a series, a Duplicates or the path of a Parquet directory, not "
            f"{type(removals).__name__}; pandas.Series(ids) makes a series"
        )
    if removals.ndim == 1:
        return removals
    schema.require_columns(removals, [on], "remove (in the removal list)")
    return removals[on]


def _read(path: str) -> Any:
    try:
        return dd.read_parquet(path)
    except (FileNotFoundError, ValueError) as problem:
        raise FileNotFoundError(f"no Parquet files of ids to remove at {path!r}: {problem}") from problem


def _check_kinds(frame: Any, column: Any, on: str) -> None:
    lazy = hasattr(column, "to_delayed")
    listed = column._meta if lazy else column.dropna()
    if not lazy and listed.empty:
        return
    ours, theirs = _kind(frame._meta[on]), _kind(listed)
    if {ours, theirs} == {"numbers", "text"}:
        raise TypeError(
            f"column {on!r} of the frame holds {ours}, the removal list holds {theirs}: nothing would be removed; convert one of "
            f"them, for example removals.astype({{{on!r}: {frame._meta[on].dtype.name!r}}})"
        )


def _kind(column: Any) -> str | None:
    """Return "numbers" or "text"; None where the type does not tell (an object column that is still to be read)."""
    host = vectors.to_pandas(column)
    if pd.api.types.is_numeric_dtype(host.dtype):
        return "numbers"
    if isinstance(host.dtype, pd.CategoricalDtype):
        return None
    if host.dtype == object:
        inferred = pd.api.types.infer_dtype(host, skipna=True)
        return {"string": "text", "integer": "numbers", "floating": "numbers"}.get(inferred)
    return "text" if pd.api.types.is_string_dtype(host.dtype) else None


def _hashed(column: Any) -> lookup.Hashed:
    return lookup.hashed(vectors.to_pandas(column))


def _is_listed(column: Any, ids: lookup.Lookup) -> Any:
    host = vectors.to_pandas(column)
    listed = ids.find(lookup.plain(host)) >= 0
    if not vectors.on_gpu(column):
        return pd.Series(listed, index=column.index, name=column.name)
    # What is listed of this partition goes back, not the list.
    return column.isin(vectors.from_pandas(host[listed].to_frame(name="id"), column)["id"])


def _found(part: Any, ids: lookup.Lookup, on: str) -> np.ndarray:
    found = np.unique(ids.find(lookup.plain(vectors.to_pandas(part)[on])))
    return found[found >= 0]


def _missing(ids: lookup.Lookup, found: Sequence[np.ndarray]) -> tuple[int, int, list[Any]]:
    absent = np.ones(len(ids.ids), dtype=bool)
    for rows in found:
        absent[rows] = False
    named = np.flatnonzero(absent)[:_NAMED]
    return int(absent.sum()), len(absent), ids.ids.take(pa.array(named)).to_pylist()


def _report_missing(frame: Any, ids: Delayed, on: str, missing: str) -> None:
    found = [dask.delayed(_found)(part, ids, on) for part in frame[[on]].to_delayed()]
    n_missing, n_ids, named = dask.delayed(_missing)(ids, found).compute()
    if not n_missing:
        return
    dots = ", ..." if n_missing > len(named) else ""
    sentence = f"{n_missing:,} of {n_ids:,} ids to remove are not in the frame: {', '.join(map(repr, named))}{dots}"
    if missing == "raise":
        raise ValueError(sentence)
    warnings.warn(sentence, stacklevel=3)
