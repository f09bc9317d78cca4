"""Whether something stays in the workers' memory or goes through files, and how partitions are put together for it."""

from __future__ import annotations

import dask
import distributed
import psutil

from imgcurate.dedup.work.mapped import Folder, temporary

#: Vectors stay in memory where they take at most this share of the workers': they are held once, sent to their clusters `probes` times, and
#: beside them stands the frame itself.
_SHARE_IN_MEMORY = 1 / 8
#: Where there is no folder for them they may take this share, and the workers spill.
_SHARE_AT_MOST = 1 / 3


def choose(size: float, folder: Folder | None, *, gpu: bool, of: str = "vectors") -> tuple[bool, Folder | None]:
    """Decide between memory and files for so many bytes."""
    memory = _memory_of_workers()
    if size <= memory * _SHARE_IN_MEMORY or (gpu and folder is None):
        return True, None
    if folder is not None:
        return False, folder
    if _on_this_machine():
        return False, temporary(dask.config.get("temporary-directory", None))
    if size <= memory * _SHARE_AT_MOST:
        return True, None
    raise ValueError(
        f"about {size / 2**30:.1f} GiB of {of} are too many for workers with {memory / 2**30:.1f} GiB of memory: name a folder for them that every "
        "worker sees (work=)"
    )


def cut_into_groups(n: int, alone: list[int], together: int) -> list[range]:
    """Put up to so many partitions together, in order, but for those that were looked at alone.

    Examples
    --------
    >>> cut_into_groups(7, [0, 4], 3)
    [range(0, 1), range(1, 4), range(4, 5), range(5, 7)]
    """
    groups = []
    for number, end in zip(alone, [*alone[1:], n], strict=True):
        groups.append(range(number, number + 1))
        groups += [range(start, min(start + together, end)) for start in range(number + 1, end, together)]
    return groups


def _memory_of_workers() -> float:
    """Return how much memory all workers may use, in bytes."""
    try:
        workers = distributed.get_client().scheduler_info(n_workers=-1)["workers"].values()
    except ValueError:
        return float(psutil.virtual_memory().total)
    return float(sum(worker.get("memory_limit") or psutil.virtual_memory().total for worker in workers))


def _on_this_machine() -> bool:
    try:
        cluster = distributed.get_client().cluster
    except ValueError:
        return True
    return isinstance(cluster, distributed.LocalCluster)
