"""A function that makes a row of each row, told to Dask as what it is: head() asks it for a few rows, and len() for none.

Of frames that are made so it is also known how to get at a few of their rows without the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from dask.dataframe.dask_expr import new_collection
from dask.dataframe.dask_expr._expr import Assign, DropnaFrame, Elemwise, Filter, MapPartitions, Projection, Query
from dask.dataframe.dask_expr._repartition import Repartition

# What leaves rows out by what is in them ...
_FILTERS = (Filter, DropnaFrame, Query)
# ... and what takes the others as they are, but for columns that are added or left out, or the partitions that they are in.
_SAME_ROWS = (Assign, Projection, Repartition)


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


def unfiltered(frame: Any) -> Any:
    """Return a frame with all rows again that filters have left out of it.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame

    Returns
    -------
    dask.dataframe.DataFrame
        Filters below something that is not made row by row stay, such as those of a mean that a column is compared with.

    Examples
    --------
    >>> import dask.dataframe as dd, pandas as pd
    >>> frame = dd.from_pandas(pd.DataFrame({"n": [1, 2, 3]}), npartitions=1)
    >>> few = frame[frame.n > 2]
    >>> unfiltered(few.assign(twice=few.n * 2)).compute()["twice"].tolist()
    [2, 4, 6]
    """
    filters, below = set(), frame.expr
    while isinstance(below, (*_FILTERS, *_SAME_ROWS)) and below.ndim == 2:
        filters |= {below._name} if isinstance(below, _FILTERS) else set()
        below = below.frame
    return new_collection(_without(frame.expr, filters, {}))


def of_ids(frame: Any, column: str, ids: Sequence[Any]) -> Any:
    """Return the rows of a frame that some ids name, each made of its own row alone, as far down as that is known.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    column : str
    ids : sequence
        Values of `column`.

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
    >>> of_ids(frame, "image_id", ["b"]).compute(scheduler="synchronous")["twice"].tolist(), seen
    ([2], [1])
    """
    root = _root(frame.expr, column, {})
    few = new_collection(root)
    few = few[few[column].isin(list(ids))]
    return new_collection(frame.expr.substitute(root, few.expr))


def columns_below(frame: Any, column: str) -> set[str]:
    """Return the columns that `of_ids` has without computing any."""
    root = _root(frame.expr, column, {})
    assigned, below = set(), frame.expr
    while below._name != root._name:
        assigned |= set(below.keys) if isinstance(below, Assign) else set()
        below = below.frame
    return set(root.columns) - assigned


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


def _without(expr: Any, filters: Collection[str], known: dict[str, Any]) -> Any:
    """Return an expression without the filters of those names, as far down as it is made row by row."""
    if expr._name not in known:
        if expr._name in filters:
            known[expr._name] = _without(expr.frame, filters, known)
        elif isinstance(expr, (Elemwise, Repartition)):
            operands = [_without(part, filters, known) if hasattr(part, "_name") else part for part in expr.operands]
            known[expr._name] = type(expr)(*operands)
        else:
            known[expr._name] = expr
    return known[expr._name]


def _root(expr: Any, column: str, known: dict[str, Any]) -> Any:
    """Return the lowest expression with a column of ids of which all of an expression is made row by row; that itself where there is none."""
    if expr._name not in known:
        # What else has the column may have changed it.
        row_by_row = _SAME_ROWS if expr.ndim == 2 and column in expr.columns else (Elemwise, Repartition)
        changed = isinstance(expr, Assign) and column in expr.keys
        below = []
        if isinstance(expr, row_by_row) and not changed:
            below = [_root(part, column, known) for part in expr.dependencies()]
        same = below and column in below[0].columns and len({root._name for root in below}) == 1
        known[expr._name] = below[0] if same else expr
    return known[expr._name]
