"""A few rows of a frame of any size, by reductions that hold a few rows at each step and never a column.

Frames are Dask's, of pandas or cuDF partitions, or lie in memory; what comes back is pandas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import dask
import numpy as np
import pandas as pd

from imgcurate import rowwise, schema, vectors
from imgcurate.report import histogram

T = TypeVar("T")

#: Where an image lies.
PLACE = ("url", "offset", "bytes")
#: What is taken beside what is asked for, where a frame has it without computing it.
BESIDE = ("member", "etag", "caption", "error", "digest", "width", "height")
# Results that are put together in a task.
_MERGED = 16
_HASH = "sampled by"


def require(frame: Any, columns: Iterable[str], verb: str, *, of_images: bool = True) -> None:
    """Raise where something is no frame, or has not the columns asked for; or, of images, not where these lie.

    Raises
    ------
    TypeError, KeyError
    """
    if not hasattr(frame, "columns") or not (hasattr(frame, "to_delayed") or hasattr(frame, "iloc")):
        raise TypeError(f"{verb} takes a Dask, pandas or cuDF dataframe, not {type(frame).__name__}")
    missing = [name for name in PLACE if name not in frame.columns]
    if of_images and missing and not set(schema.today(frame.columns).values()) & set(missing):
        raise KeyError(
            f"{verb} shows images and needs column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}, which say where they lie: give it a "
            "frame of read_webdataset, read_files or read_parquet, or merge these columns into yours by id"
        )
    schema.require_columns(frame, [*(PLACE if of_images else ()), *columns], verb)


def names_of(columns: Any, verb: str) -> list[str]:
    """Return names of columns as a list; raises a TypeError where they are neither one name nor several.

    Examples
    --------
    >>> names_of("caption", "show"), names_of(None, "show")
    (['caption'], [])
    """
    if isinstance(columns, str):
        return [columns]
    try:
        return [] if columns is None else list(columns)
    except TypeError:
        raise TypeError(f"{verb}: columns={columns!r} is neither a column's name nor a list of names") from None


def sample(
    frame: Any, n: int, seed: int = 0, columns: Sequence[str] = (), *, id_field: str = "image_id"
) -> pd.DataFrame:
    """Return n rows drawn at random, in the frame's order; all rows where there are no more.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame
    n : int
    seed : int
        Rows are drawn by a hash of their ids, so that the same are drawn however the frame is partitioned.
    columns : sequence of str
        Columns to return beside `id_field`, those of `PLACE`, and those of `BESIDE` that cost nothing.
    id_field : str

    Returns
    -------
    pandas.DataFrame of at most n rows

    Notes
    -----
    Of a lazy frame the columns asked for are computed of the n rows only, where they are made row by row.
    """
    there = (
        rowwise.columns_below(rowwise.unfiltered(frame), id_field) if hasattr(frame, "to_delayed") else frame.columns
    )
    later = [name for name in columns if name not in there]
    first = taking(frame, [name for name in columns if name not in later], id_field)
    drawn = reduce(first, partial(_sampled, n=n, seed=seed, id_field=id_field), partial(_resampled, n=n))
    drawn = drawn.drop(columns=_HASH)
    return by_ids(frame, drawn[id_field].tolist(), columns, id_field=id_field) if later and len(drawn) else drawn


def top(
    frame: Any, column: str, n: int, largest: bool, columns: Sequence[str] = (), *, id_field: str = "image_id"
) -> pd.DataFrame:
    """Return the n first rows in the order of a column, as ``sort_values(column, ascending=not largest, kind="stable")`` has them, nulls last.

    The other arguments are those of `sample`.
    """
    taken = taking(frame, [column, *columns], id_field)
    first = partial(_first, column=column, n=n, largest=largest)
    return reduce(taken, first, lambda parts: first(pd.concat(parts, ignore_index=True)))


def by_ids(frame: Any, ids: Sequence[Any], columns: Sequence[str] = (), *, id_field: str = "image_id") -> pd.DataFrame:
    """Return the rows that some ids name, in that order; of an id that is not there none, of one that is there twice the first.

    The other arguments are those of `sample`. Of a lazy frame, filters are not asked again and columns are computed of these rows only, as
    far as `rowwise.of_ids` can.
    """
    ids = list(dict.fromkeys(ids))
    named = partial(_named, ids=ids, id_field=id_field)
    merge = partial(_merge_named, ids=ids, id_field=id_field)
    if not hasattr(frame, "to_delayed"):
        return _ordered(named(taking(frame, columns, id_field)), ids, id_field)
    taken = taking(rowwise.unfiltered(frame), columns, id_field)
    found = reduce(rowwise.of_ids(taken, id_field, ids)[list(taken.columns)], named, merge)
    if found[id_field].duplicated().any():
        # Filters tell these apart.
        found = reduce(taking(frame, columns, id_field), named, merge)
    return _ordered(found, ids, id_field)


def reduce(frame: Any, of_part: Callable[[Any], T], merge: Callable[[list[T]], T]) -> T:
    """Return what comes of all partitions of a frame, put together some at a time. Eager.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame
    of_part : callable
        Takes a partition; runs on the workers.
    merge : callable
        Takes several results, in the order of their partitions, and returns one of the same kind.
    """
    if not hasattr(frame, "to_delayed"):
        return of_part(frame)
    made, together = dask.delayed(of_part, pure=False), dask.delayed(merge, pure=False)
    parts = [made(part) for part in frame.to_delayed()]
    while len(parts) > 1:
        parts = [together(parts[at : at + _MERGED]) for at in range(0, len(parts), _MERGED)]
    found: T = parts[0].compute()
    return found


def around(part: Any, column: str, threshold: float | None, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the n rows of a partition just below a threshold, and the n just above or at it, nearest first.

    Without a threshold: the n lowest and the n highest, from the end on.
    """
    host = vectors.to_pandas(part[column]).reset_index(drop=True)
    known = ~np.isnan(histogram.as_numbers(host))
    if threshold is None:
        sides = ((known, False), (known, True))
    else:
        above = histogram.at_or_above(host, threshold)
        sides = ((known & ~above, True), (known & above, False))
    below, above = (_rows(part, _leading(host[side], n, largest)) for side, largest in sides)
    return below, above


def merge_around(
    parts: list[tuple[pd.DataFrame, pd.DataFrame]], column: str, threshold: float | None, n: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put together what `around` returned of several partitions."""
    below, above = (pd.concat(side, ignore_index=True) for side in zip(*parts, strict=True))
    lowest = threshold is None
    return _first(below, column, n, largest=not lowest), _first(above, column, n, largest=lowest)


def taking(frame: Any, columns: Sequence[str], id_field: str) -> Any:
    """Return those columns of a frame that are looked at, the others of `BESIDE` as they were before they were computed."""
    if hasattr(frame, "to_delayed"):
        frame = rowwise.before(frame, set(BESIDE) - set(columns))
    known = [name for name in (*PLACE, *BESIDE) if name in frame.columns]
    first = [id_field] if id_field in frame.columns else []
    return frame[list(dict.fromkeys([*first, *columns, *known]))]


def _first(part: Any, column: str, n: int, largest: bool) -> pd.DataFrame:
    return _rows(part, _leading(vectors.to_pandas(part[column]).reset_index(drop=True), n, largest))


def _leading(keys: pd.Series, n: int, largest: bool) -> np.ndarray:
    """Return the labels of the n first of some keys, nulls last."""
    leading: np.ndarray = (
        keys.sort_values(ascending=not largest, kind="stable", na_position="last").index[:n].to_numpy()
    )
    return leading


def _sampled(part: Any, n: int, seed: int, id_field: str) -> pd.DataFrame:
    ids = vectors.to_pandas(part[id_field]).astype(str).to_numpy(dtype=object)
    hashes = pd.util.hash_array(ids, hash_key=f"{seed % 2**64:016x}", categorize=False)
    at = np.sort(np.argsort(hashes, kind="stable")[:n])
    return _rows(part, at).assign(**{_HASH: hashes[at]})


def _resampled(parts: list[pd.DataFrame], n: int) -> pd.DataFrame:
    together = pd.concat(parts, ignore_index=True)
    at = np.sort(np.argsort(together[_HASH].to_numpy(), kind="stable")[:n])
    return together.iloc[at].reset_index(drop=True)


def _named(part: Any, ids: Sequence[Any], id_field: str) -> pd.DataFrame:
    host = vectors.to_pandas(part[id_field]).reset_index(drop=True)
    # Two of each at most: that an id is there twice is seen, and no more is held.
    here = host[host.isin(ids)]
    return _rows(part, here.groupby(here).head(2).index.to_numpy())


def _merge_named(parts: list[pd.DataFrame], ids: Sequence[Any], id_field: str) -> pd.DataFrame:
    return _named(pd.concat(parts, ignore_index=True), ids, id_field)


def _ordered(found: pd.DataFrame, ids: Sequence[Any], id_field: str) -> pd.DataFrame:
    found = found.drop_duplicates(id_field).set_index(id_field, drop=False)
    return found.loc[[value for value in ids if value in found.index]].reset_index(drop=True)


def _rows(part: Any, at: np.ndarray) -> pd.DataFrame:
    """Return rows of a partition on the host, by their positions."""
    host: pd.DataFrame = vectors.to_pandas(part.iloc[at]).reset_index(drop=True)
    return host
