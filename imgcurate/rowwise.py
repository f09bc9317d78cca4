"""A function that makes a row of each row, told to Dask as what it is: head() asks it for a few rows, and len() for none.

Of frames that are made so it is also known how to get at a few of their rows without the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from dask.dataframe.dask_expr import new_collection
from dask.dataframe.dask_expr._expr import Assign, DropnaFrame, Elemwise, Filter, MapPartitions, Projection, Query
from dask.dataframe.dask_expr._repartition import Repartition

# What leaves rows out by what is in them.
_FILTERS = (Filter, DropnaFrame, Query)
# What makes rows of rows one by one, or puts them into other partitions.
_ROWS = (Elemwise, Repartition)


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


def before(frame: Any, names: Collection[str]) -> Any:
    """Return a frame whose columns `names` are what they were before verbs assigned them; those that were not there then are not there.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    names : collection of str

    Returns
    -------
    dask.dataframe.DataFrame
        With the same rows. What was persisted, or read from files, stays as it is.

    Examples
    --------
    >>> import dask.dataframe as dd, pandas as pd
    >>> frame = dd.from_pandas(pd.DataFrame({"error": ["read", "read"], "n": [1, 2]}), npartitions=1)
    >>> later = frame.assign(error="decode", digest="0")
    >>> before(later[later.n == 2], ["error", "digest"]).compute().to_dict("list")
    {'error': ['read'], 'n': [2]}
    """
    return new_collection(_before(frame.expr, frozenset(names)))


def of_ids(frame: Any, column: str, ids: Sequence[Any]) -> Any:
    """Return the rows of a frame that some ids name, each made of its own row alone, as far down as that is known.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    column : str
    ids : sequence
        Values of `column`, which are there: no filter of the frame is asked again.

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy. `map_rows` and Dask's own operations on each row are applied to those rows only; other operations, to all rows.

    Examples
    --------
    >>> import dask.dataframe as dd, pandas as pd
    >>> seen = []
    >>> def double(part):
    ...     seen.append(len(part))
    ...     return part["n"] * 2
    >>> frame = dd.from_pandas(pd.DataFrame({"image_id": ["a", "b", "c"], "n": range(3)}), npartitions=1)
    >>> frame = frame.assign(twice=map_rows(frame, double, meta=frame._meta["n"]))
    >>> of_ids(frame[frame.twice > 0], "image_id", ["b"]).compute(scheduler="synchronous")["twice"].tolist(), seen
    ([2], [1])
    """
    unfiltered = _unfiltered(frame.expr, {})
    root = _root(unfiltered, column, {})
    few = new_collection(root)
    few = few[few[column].isin(list(ids))]
    return new_collection(unfiltered.substitute(root, few.expr))


def columns_below(frame: Any, column: str) -> list[str]:
    """Return the columns that `of_ids` has without computing any."""
    return list(_root(_unfiltered(frame.expr, {}), column, {}).columns)


def _before(expr: Any, names: frozenset[str]) -> Any:
    if isinstance(expr, Assign):
        pairs = [pair for pair in zip(expr.keys, expr.vals, strict=True) if pair[0] not in names]
        frame = _before(expr.frame, names)
        return Assign(frame, *[item for pair in pairs for item in pair]) if pairs else frame
    if isinstance(expr, Filter):
        return Filter(_before(expr.frame, names), expr.predicate)
    if isinstance(expr, Projection) and expr.ndim == 2:
        frame = _before(expr.frame, names)
        return Projection(frame, [name for name in expr.columns if name in frame.columns])
    if isinstance(expr, Repartition):
        return expr.substitute_parameters({"frame": _before(expr.frame, names)})
    return expr


def _unfiltered(expr: Any, known: dict[str, Any]) -> Any:
    """Return an expression of rows without what leaves rows out."""
    if expr._name not in known:
        if isinstance(expr, _FILTERS):
            known[expr._name] = _unfiltered(expr.frame, known)
        elif isinstance(expr, _ROWS):
            operands = [_unfiltered(part, known) if hasattr(part, "_meta") else part for part in expr.operands]
            known[expr._name] = type(expr)(*operands)
        else:
            known[expr._name] = expr
    return known[expr._name]


def _root(expr: Any, column: str, known: dict[str, Any]) -> Any:
    """Return the lowest expression with a column that all of an expression is made of row by row; that itself where there is none."""
    if expr._name not in known:
        below = [_root(part, column, known) for part in expr.dependencies()] if isinstance(expr, _ROWS) else []
        same = below and all(root._name == below[0]._name for root in below)
        assigns = isinstance(expr, Assign) and column in expr.keys
        known[expr._name] = below[0] if same and not assigns and column in below[0].columns else expr
    return known[expr._name]
