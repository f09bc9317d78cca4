"""What a process keeps of the memory that it has freed, and when it gives it back."""

from __future__ import annotations

import ctypes
import time
from functools import cache, partial

import distributed
from tornado.ioloop import PeriodicCallback

# glibc's names for what mallopt sets, and the largest that it takes for the last.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT_BYTES, _HEAP_BYTES, _MAPPED_BYTES = 256 << 20, 64 << 20, 32 << 20
_KEPT_SECONDS = 60
_given_back_at = time.monotonic()

#: A worker looks so often whether its memory is short.
_LOOK_SECONDS = 0.5
_WATCH = "imgcurate-freed-memory"


def keep_freed_memory() -> None:
    """Let this process keep the memory that it has freed; all but what is in use goes back when this is called a minute later.

    Dask's nanny makes workers give back every freed block above 64 KiB at once, and what threads other than the first have freed goes back in
    heaps of 64 MiB whatever the nanny says. Pixels and a network's activations then come as fresh pages, zeroed, again and again, which costs
    an image of 5 megapixels a third of its decoding, a ViT-B/32 a tenth to a third of its speed and a ViT-L/14 a thirteenth. Where the C library
    is not glibc nothing is changed.

    A worker gives it back as soon as its memory is so full that Dask spills. To Dask what is freed and kept is in use: it pauses workers for it, and
    one that is paused runs no task that would give anything back, so that it would wait for ever.
    """
    global _given_back_at
    libc = _keeping_libc()
    if libc is None:
        return
    if time.monotonic() - _given_back_at >= _KEPT_SECONDS:
        _given_back_at = time.monotonic()
        libc.malloc_trim(0)
    try:
        worker = distributed.get_worker()
    except ValueError:  # not in a worker's task
        return
    if _WATCH not in worker.periodic_callbacks:
        watch = PeriodicCallback(partial(_give_back_when_short, worker, libc), _LOOK_SECONDS * 1000)
        worker.periodic_callbacks[_WATCH] = watch  # which ends with the worker
        worker.loop.add_callback(watch.start)


def _give_back_when_short(worker: distributed.Worker, libc: ctypes.CDLL) -> None:
    manager = worker.memory_manager
    limit, share = manager.memory_limit, manager.memory_spill_fraction or manager.memory_pause_fraction
    if limit and share and worker.monitor.get_process_memory() > share * limit:
        libc.malloc_trim(0)


@cache
def _keeping_libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        # A thread's heap that has become free is unmapped unless the one before it is lacking this much.
        libc.mallopt(_M_TOP_PAD, _HEAP_BYTES)
    except (AttributeError, OSError):
        return None
    return libc
