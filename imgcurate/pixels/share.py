"""The share of the machine that decoding takes: cores, and pixels that are in memory at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


def worker_threads(gpu: bool) -> int:
    """Return how many cores are this worker's: what torch was given, or, beside a GPU, its share of the machine's."""
    import torch

    if not gpu:
        return max(1, torch.get_num_threads())
    from dask.system import CPU_COUNT

    return max(1, CPU_COUNT // torch.cuda.device_count())


class Room:
    """Room for the pixels of pictures that are decoded at the same time, whatever the number of threads.

    A picture takes up to twenty bytes a pixel while it is decoded, so that as many of the largest as there are threads would not fit a
    worker's memory. Those that would not fit together wait for each other, in turn; one that is alone always may.

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
