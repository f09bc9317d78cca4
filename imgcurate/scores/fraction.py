"""top_fraction(): the best rows by a column, without bringing the column together anywhere."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
from dask.delayed import Delayed

from imgcurate import schema, vectors
from imgcurate.cluster import interruptible

if TYPE_CHECKING:
    import dask.dataframe as dd

# A number is found 16 bits at a time, from the highest: four counts of 65,536, however many rows there are.
_BITS = 16
_STEPS = 64 // _BITS
_MERGED = 16


@interruptible
def top_fraction(frame: Any, column: str, fraction: float) -> dd.DataFrame:
    """Keep the rows with the highest values of a column.

    Parameters
    ----------
    frame : Dask DataFrame
    column : str
        Of numbers. Rows where it is null or NaN are not kept and do not count.
    fraction : float
        Which share of the rows that have a value to keep, above 0 to 1.

    Returns
    -------
    Dask DataFrame
        Lazy: the rows whose value is at least the threshold, which is exactly the ``ceil(fraction * n)``-th highest of n values (error 0). All
        rows that are equal to the threshold are kept.

    Raises
    ------
    KeyError
        Where the frame has no such column.
    ValueError
        Where `fraction` is out of range, or the column has no value.
    TypeError
        Where the column does not hold numbers.

    Notes
    -----
    The threshold is computed at once: `column`, and what it is made of, is computed once and stays on the workers while values are counted by
    the highest 16 bits of their float64 form, then by the next 16 among those that are left, four times in all. Half a megabyte a partition
    travels; nothing is sorted. ``persist()`` the frame before, or it is computed again for what comes after.

    Examples
    --------
    >>> import dask.dataframe as dd, pandas as pd
    >>> frame = dd.from_pandas(pd.DataFrame({"score": [0.1, 0.9, 0.5, 0.7]}), npartitions=2)
    >>> top_fraction(frame, "score", 0.5)["score"].compute().tolist()
    [0.9, 0.7]
    """
    schema.require(frame, [column], "top_fraction")
    if not isinstance(fraction, Real) or isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction!r} must be a share above 0 and at most 1")
    threshold = _threshold(frame[[column]], column, fraction)
    return frame[frame[column] >= threshold]


def _threshold(frame: Any, column: str, fraction: float) -> float:
    keys = list(dask.persist(*[dask.delayed(_keys)(part, column) for part in frame.to_delayed()]))
    count = dask.delayed(_count)
    prefix, rank = 0, None
    for step in range(_STEPS):
        totals = _sum([count(part, prefix, step) for part in keys]).compute()
        if rank is None:
            n = int(totals.sum())
            if not n:
                raise ValueError(f"column {column!r} has no value, so there are no highest ones")
            # The tolerance undoes what binary fractions add: 0.3 * 10 is 3.
            rank = min(n, max(1, int(np.ceil(fraction * n - 1e-9 * n))))
        above = np.cumsum(totals[::-1])
        at = int(np.searchsorted(above, rank))
        rank -= int(above[at - 1]) if at else 0
        prefix = prefix << _BITS | (len(totals) - 1 - at)
    return float(_from_keys(np.array([prefix], dtype=np.uint64))[0])


def _keys(part: Any, column: str) -> np.ndarray:
    """Return a partition's values as whole numbers in the same order."""
    values = vectors.to_pandas(part[[column]])[column]
    try:
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise TypeError(f"column {column!r} does not hold numbers") from None
    numbers = numbers[~np.isnan(numbers)] + 0.0  # -0.0 is 0.0
    bits = numbers.view(np.uint64)
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def _from_keys(keys: np.ndarray) -> np.ndarray:
    sign = np.uint64(1 << 63)
    return np.where(keys & sign, keys & ~sign, ~keys).view(np.float64)


def _count(keys: np.ndarray, prefix: int, step: int) -> np.ndarray:
    """Count the keys that begin with `prefix` (of ``step`` times 16 bits) by their next 16 bits."""
    if step:
        keys = keys[keys >> np.uint64(64 - _BITS * step) == np.uint64(prefix)]
    following = keys >> np.uint64(64 - _BITS * (step + 1)) & np.uint64(2**_BITS - 1)
    return np.bincount(following.astype(np.int64), minlength=2**_BITS)


def _sum(parts: list[Delayed]) -> Delayed:
    while len(parts) > 1:
        parts = [dask.delayed(_total)(parts[at : at + _MERGED]) for at in range(0, len(parts), _MERGED)]
    return parts[0]


def _total(counts: list[np.ndarray]) -> np.ndarray:
    return np.sum(counts, axis=0)
