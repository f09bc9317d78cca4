"""Tasks in waves: a scheduler that holds a hundred thousand of them takes a minute to start, and its memory grows with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import dask
import distributed
from dask.delayed import Delayed
from dask.system import CPU_COUNT

from imgcurate.dedup.work.mapped import Folder

_WAVE = 4000


def in_waves(tasks: Iterable[Delayed]) -> list[Any]:
    """Compute tasks so many at a time, and return what they give, in their order."""
    results: list[Any] = []
    left = iter(tasks)
    while wave := [task for _, task in zip(range(_WAVE), left, strict=False)]:
        results += dask.compute(*wave)
    return results


def written(
    folder: Folder, table: str, names: Sequence[str], write: Callable[[int, str], Delayed], read: Callable[[str], Any]
) -> list[Any]:
    """Write those files of a table that are not there of an earlier call, and remove what is not of this one.

    Parameters
    ----------
    folder : Folder
    table : str
    names : sequence of str
        Of the files, without extension; each is whole where its ``.arrow`` is there.
    write : callable
        Of the number of a file and its path: the task that writes it and says what is known of it.
    read : callable
        Of the path of a file that is there: what is known of it.

    Returns
    -------
    list
        What is known of each.
    """
    folder.keep(table, names)
    there = folder.names(table)
    paths = [folder.file(table, name) for name in names]
    wanted = [number for number, name in enumerate(names) if f"{name}.arrow" not in there]
    made = dict(zip(wanted, in_waves(write(number, paths[number]) for number in wanted), strict=True))
    return [made[number] if number in made else read(path) for number, path in enumerate(paths)]


def threads() -> int:
    """Return how many tasks run at a time."""
    try:
        return max(1, sum(distributed.get_client().nthreads().values()))
    except ValueError:
        return int(CPU_COUNT)


def wait(persisted: Sequence[Delayed]) -> None:
    """Wait until all is there: what it is made from may go with whoever holds it."""
    if futures := distributed.futures_of(list(persisted)):  # none where there is no cluster
        distributed.wait(futures)
