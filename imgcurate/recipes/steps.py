"""apply(): the rows that all steps of a recipe keep, and what each step removes; and what recipes have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import dask
import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype

from imgcurate import schema, vectors
from imgcurate.arguments import check_whole_number
from imgcurate.cluster import interruptible

#: What a step removes, in words; and a function that takes the rows that earlier steps left, and gives a boolean column of them or those that it keeps.
Step = tuple[str, Callable[[Any], Any]]

_FROM = {
    "bytes": "read_webdataset and read_files give it",
    "caption": "read_webdataset reads it from the .txt beside an image",
    "clip_score": "score_text(frame) adds it",
    "embedding": "embed(frame) adds it",
    "height": "embed(frame) or measure(frame) adds it",
    "width": "embed(frame) or measure(frame) adds it",
}


@interruptible
def apply(frame: Any, steps: Iterable[Step]) -> tuple[Any, pd.DataFrame]:
    """Keep the rows that all steps keep, and count what each step removes. Eager in the counts.

    Parameters
    ----------
    frame : Dask DataFrame
    steps : iterable of (str, callable)
        A recipe, or steps of your own: a name, and a function that takes the frame of what the steps before it left, and gives either a
        boolean column of it, true for the rows to keep and null where that cannot be said, or the frame of the rows to keep, as
        `top_fraction` and `remove` do. Before them all, rows with an ``error`` go, where the frame has that column.

    Returns
    -------
    kept : Dask DataFrame
        Lazy: the rows that are left.
    table : pandas.DataFrame
        One row a step: ``step`` (its name), ``read`` (rows that it got), ``removed``, ``left``, and ``share``: which share of all rows is left.

    Raises
    ------
    TypeError
        Where `frame` is no Dask dataframe, `steps` are none, or a step gives something else.
    ValueError
        Where a step gives more rows than it got.
    KeyError
        Where a column is missing that a step needs.

    Notes
    -----
    All is counted in one pass over the frame, of which a number a partition and step comes back; but a step that has to see all rows before it
    can choose, such as a share of the best or duplicates, makes a pass of its own. `kept` is computed again for what comes after: ``persist()``
    or `checkpoint` the frame before, where its columns are dear.

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> from imgcurate import recipes
    >>> rows = {"caption": ["a dog", "a red dog runs", None], "width": [640, 640, 640], "height": [480, 100, 480]}
    >>> frame = dd.from_dict(rows, npartitions=1)
    >>> steps = [("some caption", lambda frame: frame.caption.notnull()), *recipes.datacomp_basic()]
    >>> kept, table = recipes.apply(frame, steps)
    >>> print(table.to_string(index=False))
                                       step  read  removed  left    share
                               some caption     3        1     2 0.666667
               caption of more than 2 words     2        1     1 0.333333
          caption of more than 5 characters     1        0     1 0.333333
        shorter side of at least 200 pixels     1        1     0 0.000000
    longer side at most 3 times the shorter     0        0     0 0.000000
    """
    schema.require(frame, [], "recipes.apply")
    chain = _checked(steps)
    if "error" in frame.columns:
        chain.insert(0, ("no error", lambda rows: rows["error"].isnull()))
    stages = [frame]
    for name, step in chain:
        try:
            stages.append(_left(stages[-1], name, step(stages[-1])))
        except Exception as problem:
            problem.add_note(f"in step {name!r}")
            raise
    counts = np.array(dask.compute(*[stage.shape[0] for stage in stages]), dtype=np.int64)
    for (name, _), read, left in zip(chain, counts[:-1], counts[1:], strict=True):
        if left > read:
            raise ValueError(
                f"step {name!r} gave {left:,} rows of {read:,}; a step keeps some of the rows that it gets"
            )
    table = pd.DataFrame(
        {
            "step": [name for name, _ in chain],
            "read": counts[:-1],
            "removed": counts[:-1] - counts[1:],
            "left": counts[1:],
            "share": counts[1:] / max(int(counts[0]), 1),
        }
    )
    return stages[-1], table


def _checked(steps: Any) -> list[Step]:
    chain = list(steps) if isinstance(steps, Iterable) else [steps]
    for step in chain:
        if not isinstance(step, tuple) or len(step) != 2 or not isinstance(step[0], str) or not callable(step[1]):
            raise TypeError(
                f"{step!r} is no step; give a list of names and functions, such as recipes.laion() or "
                "[('wide', lambda frame: frame.width >= 200)]"
            )
    return chain


def _left(frame: Any, name: str, found: Any) -> Any:
    """Return the rows that a step keeps."""
    lazy = hasattr(found, "to_delayed") and hasattr(found, "ndim")
    if not lazy or (found.ndim == 1 and not (is_bool_dtype(found.dtype) or found.dtype == object)):
        what = f"a column of {found.dtype}" if lazy else type(found).__name__
        raise TypeError(
            f"step {name!r} gave {what}; a step gives a boolean column of the frame that it takes, or some of its rows"
        )
    if found.ndim == 2:
        return found
    # In a function of ours, because Dask's optimizer cannot take a chain of filters whose predicates end in astype.
    return frame[found.map_partitions(_without_nulls, meta=truths(frame))]


def _without_nulls(column: Any) -> Any:
    return column.fillna(False).astype(bool)


def column(frame: Any, name: str) -> Any:
    """Return a column that a recipe needs, or say in a KeyError where it comes from."""
    if name not in frame.columns:
        raise KeyError(f"the recipe needs column {name!r}: {_FROM[name]}")
    return frame[name]


def truths(frame: Any) -> Any:
    """Return an empty boolean column on the backend of a frame."""
    return vectors.empty_like(frame._meta, ["kept"])["kept"]


def check_share(name: str, share: float) -> None:
    """Raise a ValueError where `share` is none that a step could leave."""
    if not isinstance(share, Real) or not 0 < float(share) < 1:
        raise ValueError(f"{name}={share!r} must be above 0 and below 1: which share stays")


def check_n_clusters(n_clusters: int | None) -> None:
    """Raise a ValueError where `n_clusters` is neither a number of clusters nor None."""
    if n_clusters is not None:
        check_whole_number("n_clusters", n_clusters, instead=", or None to choose by size")
