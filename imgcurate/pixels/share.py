"""The share of the machine that decoding takes: cores, and pixels that are in memory at the same time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from imgcurate.pixels.formats import MAX_PIXELS


def worker_threads(gpu: bool) -> int:
    """Return how many cores are this worker's: what torch was given, or, beside a GPU, its share of the machine's."""
    import torch

    if not gpu:
        return max(1, torch.get_num_threads())
    from dask.system import CPU_COUNT

    return max(1, CPU_COUNT // torch.cuda.device_count())


# While it is decoded, of several forms and copies of a picture.
_BYTES_OF_A_PIXEL = 20


def pixels_that_fit() -> int:
    """Return how many pixels that are decoded at the same time take half of the memory of this worker, or of this machine outside of one."""
    return _half_of_memory() // _BYTES_OF_A_PIXEL


def most_memory() -> int:
    """Return how many bytes the decoding of one picture may take: what the largest takes that is taken unasked, or half of the memory where that is more."""
    return max(_half_of_memory(), _BYTES_OF_A_PIXEL * MAX_PIXELS)


def _half_of_memory() -> int:
    # A process that is no worker has not loaded it.
    workers = getattr(sys.modules.get("distributed.worker"), "Worker", None)
    limits = [worker.memory_manager.memory_limit for worker in getattr(workers, "_instances", ())]
    memory = min(filter(None, limits), default=None) or psutil.virtual_memory().total
    return int(memory) // 2


class Room:
    """Room for the pixels of pictures that are decoded at the same time, whatever the number of threads.

    As many of the largest as there are threads would not fit a worker's memory. Those that do not fit together wait for each other, in
    turn; one that is alone always may.

    Examples
    --------
    >>> room = Room()
    >>> with room.of(100, most=120):
    ...     room.taken
    100
    """

    def __init__(self) -> None:
        self.taken = 0
        self._turn, self._freed = threading.Lock(), threading.Condition()

    @contextmanager
    def of(self, pixels: int, most: int) -> Iterator[None]:
        """Wait until `pixels` more make no more than `most`, and take them."""
        # The next in turn waits alone: small pictures do not pass a large one for ever.
        with self._turn, self._freed:
            self._freed.wait_for(lambda: not self.taken or self.taken + pixels <= most)
            self.taken += pixels
        try:
            yield
        finally:
            with self._freed:
                self.taken -= pixels
                self._freed.notify()
