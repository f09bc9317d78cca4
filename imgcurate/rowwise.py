"""A function that makes a row of each row, told to Dask as what it is: head() asks it for a few rows, and len() for none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dask.dataframe.dask_expr import new_collection
from dask.dataframe.dask_expr._expr import Elemwise, MapPartitions


class MapRows(MapPartitions, Elemwise):
    """`MapPartitions` of which Dask knows that the rows of the result are those of the frame."""


def map_rows(frame: Any, function: Callable[..., Any], *arguments: Any, meta: Any, **options: Any) -> Any:
    """Apply a function to each partition of a frame, as ``frame.map_partitions`` does.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    function : callable
        Takes a partition of n rows, `arguments` and `options`, and returns n rows: to each row what it makes of that row, whatever others are
        beside it.
    *arguments, meta, **options
        As for ``map_partitions``.

    Returns
    -------
    dask.dataframe.DataFrame or Series
        Of which ``head(5)`` has `function` applied to the first five rows, where ``map_partitions`` takes the whole partition.

    Examples
    --------
    >>> import dask.dataframe as dd, pandas as pd
    >>> seen = []
    >>> def double(part):
    ...     seen.append(len(part))
    ...     return part * 2
    >>> frame = dd.from_pandas(pd.DataFrame({"n": range(100)}), npartitions=2)
    >>> first = map_rows(frame, double, meta=frame._meta).head(2, compute=False)
    >>> first.compute(scheduler="synchronous")["n"].tolist(), seen
    ([0, 2], [2])
    """
    mapped = frame.map_partitions(function, *arguments, meta=meta, **options)
    return new_collection(MapRows(*mapped.expr.operands))
