"""Steps of a job: their tasks on the cluster, how far they are, and how long they took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import distributed
from tqdm import tqdm


class Steps:
    """Runs tasks on the cluster, shows how far they are, and remembers how long each step took."""

    def __init__(self, client: distributed.Client, progress: bool) -> None:
        self.client, self.progress = client, progress
        self.seconds: dict[str, float] = {}
        self.label = ""
        self.interval = 0.1 if sys.stderr.isatty() else 10  # a log does not need ten lines a second

    @contextmanager
    def __call__(self, label: str) -> Iterator[None]:
        self.label = label
        started = time.perf_counter()
        yield
        self.seconds[label] = round(time.perf_counter() - started, 2)

    def run(
        self, tasks: list[Any], images: int | None = None, images_of: Callable[[Any], int] = lambda result: 1
    ) -> list[Any]:
        """Compute delayed tasks; the first that fails stops the others.

        Parameters
        ----------
        tasks : list of Delayed
        images : int, optional
            How many images they work on, for the progress bar. Default: it counts tasks.
        images_of : callable
            Result of a task to the number of its images.
        """
        futures = self.client.compute(tasks)
        self._watch(futures, len(tasks) if images is None else images, "part" if images is None else "image", images_of)
        return list(self.client.gather(futures))

    def hold(self, frame: Any) -> Any:
        """Compute a frame and keep it in the workers' memory."""
        held = frame.persist()
        self._watch(distributed.futures_of(held), held.npartitions, "part", lambda result: 1)
        return held

    def _watch(self, futures: list[Any], total: int, unit: str, size: Callable[[Any], int]) -> None:
        options = {"unit": unit, "unit_scale": True, "disable": not self.progress, "mininterval": self.interval}
        with tqdm(total=total, desc=f"{self.label:<18}", **options) as bar:
            for future in distributed.as_completed(futures):
                problem = future.exception()
                if problem is not None:
                    self.client.cancel(futures)
                    raise problem
                bar.update(size(future.result()) if unit == "image" else 1)
