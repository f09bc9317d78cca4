"""Tasks in waves: a scheduler that holds a hundred thousand of them takes a minute to start, and its memory grows with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import dask
import distributed
from dask.delayed import Delayed

_WAVE = 4000


def in_waves(tasks: Iterable[Delayed]) -> list[Any]:
    """Compute tasks so many at a time, and return what they give, in their order."""
    results: list[Any] = []
    left = iter(tasks)
    while wave := [task for _, task in zip(range(_WAVE), left, strict=False)]:
        results += dask.compute(*wave)
    return results


def wait(persisted: Sequence[Delayed]) -> None:
    """Wait until all is there: what it is made from may go with whoever holds it."""
    if futures := distributed.futures_of(list(persisted)):  # none where there is no cluster
        distributed.wait(futures)
