"""A histogram that is counted in one pass, partition by partition, and is the same however the rows are partitioned.

Its bins are of width 2^k and begin at multiples of it, so that those of two partitions fit onto each other once neighbours are added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from imgcurate import vectors

#: A histogram has no more bins.
MOST_BINS = 128
#: A float64 has so many bits; narrower bins hold nothing that wider ones do not tell apart.
_BITS, _SMALLEST = 53, -1074
_LARGEST = np.finfo(np.float64).max


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often a column's values lie where.

    Attributes
    ----------
    exponent, first : int
        Bin number i holds the values from ``(first + i) * 2**exponent`` up to, and without, where the next begins.
    counts : numpy.ndarray of shape (bins,), int64
        With at least one bin at each end that is not empty; no bins where there is no finite value.
    missing, infinite : int
        Values that are null or NaN, and those that are infinite: in no bin.
    low, high : float
        The lowest and the highest finite value; NaN where there is none.
    whole : bool
        Whether all finite values are whole numbers.
    at_least : int
        How many values, infinite ones too, are at or above the threshold that they were compared with; 0 where there was none.
    """

    exponent: int
    first: int
    counts: np.ndarray
    missing: int = 0
    infinite: int = 0
    low: float = math.nan
    high: float = math.nan
    whole: bool = True
    at_least: int = 0

    @property
    def n(self) -> int:
        """How many values there are, infinite ones too."""
        return int(self.counts.sum()) + self.infinite

    @property
    def edges(self) -> np.ndarray:
        """Where the bins begin, and where the last ends: float64 of shape (bins + 1,), the largest that there is where that is larger."""
        places = (self.first + np.arange(len(self.counts) + 1)).astype(np.float64)
        with np.errstate(over="ignore"):
            return np.clip(np.ldexp(places, self.exponent), -_LARGEST, _LARGEST)

    def coarser(self, exponent: int) -> Histogram:
        """Return the same with bins of another width, not less than this one's."""
        if exponent <= self.exponent or not len(self.counts):
            return self
        # A shift of a whole number is its floor: a bin goes into the one that it lies in.
        shift = min(exponent - self.exponent, 62)
        at = (self.first + np.arange(len(self.counts))) >> shift
        counts = np.zeros(int(at[-1] - at[0]) + 1, dtype=np.int64)
        np.add.at(counts, at - at[0], self.counts)
        return replace(self, exponent=exponent, first=int(at[0]), counts=counts)

    def shown(self, most: int) -> Histogram:
        """Return the same with at most so many bins, and of whole numbers none narrower than 1: for a chart."""
        exponent = max(self.exponent, 0) if self.whole else self.exponent
        if len(self.counts):
            exponent = max(exponent, _exponent(self.low, self.high, most))
        return self.coarser(exponent)


def of_column(column: Any, threshold: float | None = None) -> Histogram:
    """Count the values of a partition's column.

    Parameters
    ----------
    column : pandas or cuDF Series of numbers
    threshold : float, optional
        That `Histogram.at_least` counts by, compared as ``column >= threshold`` does.

    Raises
    ------
    TypeError
        Where the column does not hold numbers.

    Examples
    --------
    >>> found = of_column(pd.Series([0.0, 0.5, 0.5, 1.0, None]), threshold=0.5)
    >>> found.n, found.missing, found.at_least, int(found.counts.sum()), found.low, found.high
    (4, 1, 3, 4, 0.0, 1.0)
    """
    host = vectors.to_pandas(column)
    numbers = as_numbers(host)
    missing = np.isnan(numbers)
    finite = numbers[np.isfinite(numbers)]
    found = Histogram(
        _SMALLEST,
        0,
        np.zeros(0, dtype=np.int64),
        missing=int(missing.sum()),
        infinite=len(numbers) - int(missing.sum()) - len(finite),
        at_least=int(at_or_above(host, threshold).sum()) if threshold is not None else 0,
    )
    if not len(finite):
        return found
    low, high = float(finite.min()), float(finite.max())
    exponent = _exponent(low, high, MOST_BINS)
    at = _places(finite, exponent)
    first = int(at.min())
    counts = np.bincount(at - first).astype(np.int64)
    whole = bool((finite == np.floor(finite)).all())
    return replace(found, exponent=exponent, first=first, counts=counts, low=low, high=high, whole=whole)


def merge(histograms: Sequence[Histogram]) -> Histogram:
    """Return the histogram of all values that several were made of.

    Examples
    --------
    >>> parts = [of_column(pd.Series(values)) for values in ([0.0, 1.0], [1.0, 100.0])]
    >>> together, at_once = merge(parts), of_column(pd.Series([0.0, 1.0, 1.0, 100.0]))
    >>> together.exponent == at_once.exponent, together.counts.tolist() == at_once.counts.tolist()
    (True, True)
    """
    missing, infinite, at_least = (
        sum(getattr(part, name) for part in histograms) for name in ("missing", "infinite", "at_least")
    )
    filled = [part for part in histograms if len(part.counts)]
    if not filled:
        return replace(histograms[0], missing=missing, infinite=infinite, at_least=at_least)
    low, high = min(part.low for part in filled), max(part.high for part in filled)
    exponent = _exponent(low, high, MOST_BINS)
    parts = [part.coarser(exponent) for part in filled]
    first = min(part.first for part in parts)
    counts = np.zeros(max(part.first + len(part.counts) for part in parts) - first, dtype=np.int64)
    for part in parts:
        counts[part.first - first : part.first - first + len(part.counts)] += part.counts
    whole = all(part.whole for part in filled)
    return Histogram(exponent, first, counts, missing, infinite, low, high, whole, at_least)


def as_numbers(column: pd.Series) -> np.ndarray:
    """Return a column on the host as float64, NaN where it is null; raises a TypeError where it does not hold numbers."""
    try:
        kinds = pd.api.types.is_numeric_dtype, pd.api.types.is_bool_dtype, pd.api.types.is_object_dtype
        if not any(is_kind(column.dtype) for is_kind in kinds):
            raise TypeError
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise TypeError(f"column {column.name!r} does not hold numbers") from None


def at_or_above(column: pd.Series, threshold: float) -> np.ndarray:
    """Return which values ``column >= threshold`` keeps, as a mask: a float32 is compared as one."""
    kept = column >= threshold
    return kept.to_numpy(dtype=bool, na_value=False) if kept.dtype != bool else kept.to_numpy()


def _places(values: np.ndarray, exponent: int) -> np.ndarray:
    # In two steps, because 2**1074 is no float64.
    half = exponent // 2
    at = np.floor(np.ldexp(np.ldexp(values, -half), half - exponent)).astype(np.int64)
    # What is too small beside a bin to be told from 0 is below it all the same.
    at[(values < 0) & (at == 0)] = -1
    return at


def _exponent(low: float, high: float, most: int) -> int:
    """Return the least k for which bins of width 2^k are at most so many: a wider range never has a smaller one."""
    largest = max(abs(low), abs(high))
    k = max(math.frexp(largest)[1] - _BITS, _SMALLEST) if largest else _SMALLEST
    span = high - low
    if span and math.isfinite(span):
        # Not from the smallest on, one by one.
        k = max(k, math.frexp(span / most)[1] - 2)
    elif span:
        k = max(k, math.frexp(high / most - low / most)[1] - 2)
    ends = np.array([low, high])
    while int(np.diff(_places(ends, k))[0]) >= most:
        k += 1
    return k
