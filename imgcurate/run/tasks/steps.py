"""Steps of a run: their tasks on the cluster, a few at a time, how far they are, and what is done where none moves."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

import distributed
from dask.delayed import Delayed
from tqdm import tqdm

from imgcurate import cluster
from imgcurate.printable import printable
from imgcurate.run.tasks import progress

T = TypeVar("T")

logger = logging.getLogger("imgcurate")

# So many tasks a thread are with the scheduler at a time: enough for each to have its next one, and few enough to be forgotten quickly.
_AHEAD = 8
# Names of sources are in it.
_MOST_SAID = 2000
_LOOK_SECONDS, _ASK_SECONDS = 1.0, 10.0
# Without a worker, or with workers of which none computes, this is said, and this is when the run ends.
_PATIENCE_SECONDS, _END_SECONDS = 20.0, 600.0


class Stalled(RuntimeError):
    """No worker was left, or none moved, and new ones did not come."""


class Steps:
    """Runs tasks on the cluster, shows how far they are, and remembers how long each step took.

    Parameters
    ----------
    connect : callable
        Gives the cluster's client; called when the first task is to run.
    progress : bool
    """

    def __init__(self, connect: Callable[[], distributed.Client], progress: bool) -> None:
        self._connect, self.progress = connect, progress
        self.seconds: dict[str, float] = {}
        self.label = ""

    @functools.cached_property
    def client(self) -> distributed.Client:
        """The cluster's client."""
        return self._connect()

    @contextlib.contextmanager
    def __call__(self, label: str) -> Iterator[None]:
        self.label = label
        started = time.perf_counter()
        yield
        self.seconds[label] = round(time.perf_counter() - started, 2)

    def say(self, text: str) -> None:
        """Tell the user what was found: on stderr where progress is shown, else in the log."""
        text = printable(text, _MOST_SAID)
        if self.progress:
            tqdm.write(text, file=sys.stderr)
        else:
            logger.info(text)

    def run(
        self,
        tasks: Iterable[Delayed],
        total: int,
        *,
        unit: str = "part",
        size: Callable[[Any], int] = lambda result: 1,
        check: Callable[[Any], None] = lambda result: None,
        name: Callable[[int], str] = lambda number: "",
        shown: bool = True,
    ) -> list[Any]:
        """Compute delayed tasks, some at a time; the first that fails stops the others.

        Parameters
        ----------
        tasks : iterable of Delayed
            Drawn as they are needed.
        total : int
            What the sizes add up to, for the progress bar.
        unit : str
            What is counted.
        size : callable
            Result of a task to what it counts for.
        check : callable
            Told each result as it comes; may raise.
        name : callable
            Number of a task to what it works on, for messages.
        shown : bool
            Whether progress is, where any is.

        Returns
        -------
        list
            The results, in the order of the tasks.

        Raises
        ------
        Stalled
            Where no worker is left and no new one comes, or workers die of one task again and again.
        ConnectionError
            Where the scheduler goes away.
        """
        source = enumerate(tasks)
        results: dict[int, Any] = {}
        pending: dict[distributed.Future[Any], int] = {}
        done: queue.SimpleQueue[distributed.Future[Any]] = queue.SimpleQueue()
        watch = _Watch(self)
        try:
            with progress.shown(self.label, total, unit, visible=self.progress and shown) as bar:
                while True:
                    room = _AHEAD * watch.threads() - len(pending)
                    drawn = [item for _, item in zip(range(max(room, 0)), source, strict=False)]
                    futures = self.client.compute([task for _, task in drawn])
                    for (number, _), future in zip(drawn, futures, strict=True):
                        pending[future] = number
                        future.add_done_callback(done.put)
                    if not pending:
                        return [results[number] for number in sorted(results)]
                    try:
                        future = done.get(timeout=_LOOK_SECONDS)
                    except queue.Empty:
                        bar.update()
                        watch.look()
                        continue
                    watch.moved()
                    number = pending.pop(future)
                    result = results[number] = self._result_of(future, name(number))
                    check(result)
                    bar.update(size(result))
        finally:
            if pending:
                with contextlib.suppress(Exception):
                    self.client.cancel(list(pending))

    def watch(self, function: Callable[[], T]) -> T:
        """Call what waits for the cluster itself, and see meanwhile that the cluster moves; raises what `run` raises."""
        ended: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def call() -> None:
            try:
                ended.put((function(), None))
            except BaseException as problem:
                ended.put((None, problem))

        before = set(self.client.futures)
        # Not of a pool: where this one is stopped, nobody waits for it.
        threading.Thread(target=call, daemon=True, name="imgcurate-step").start()
        watch = _Watch(self)
        try:
            with progress.shown(self.label, None, "", visible=self.progress) as going_on:
                while True:
                    try:
                        result, problem = ended.get(timeout=_LOOK_SECONDS)
                        break
                    except queue.Empty:
                        going_on.update()
                        watch.look()
        except BaseException:
            # What the thread waits for; and so it ends.
            cluster.cancel(self.client, set(self.client.futures) - before)
            raise
        if problem is not None:
            return self._explain(problem, "")
        return result  # type: ignore[return-value]

    def _result_of(self, future: distributed.Future[Any], what: str) -> Any:
        try:
            return future.result()
        except Exception as problem:
            return self._explain(problem, what)

    def _explain(self, problem: BaseException, what: str) -> NoReturn:
        """Raise a problem in the words of a run: where workers died, or the scheduler went away."""
        if isinstance(problem, distributed.KilledWorker):
            of = f" ({what})" if what else ""
            raise Stalled(
                f"workers died one after the other of one task{of} while {self.label}: give each more memory (--memory-limit, or fewer "
                "--workers) and run the same command again to go on"
            ) from None
        if isinstance(problem, asyncio.CancelledError | concurrent.futures.CancelledError | OSError):
            cluster.check_alive(self.client, ask=True)
        raise problem


class _Watch:
    """Sees that the cluster is there and moves, while a step waits for it."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.asked = -math.inf
        self.moved()

    def threads(self) -> int:
        """Return how many tasks run at a time; workers come and go, so that it is asked again now and then."""
        if time.monotonic() - self.asked > _ASK_SECONDS:
            self.asked = time.monotonic()
            self.known = max(1, sum(self.steps.client.nthreads().values()))
        return self.known

    def moved(self) -> None:
        self.since = time.monotonic()
        self.told = 0.0

    def look(self) -> None:
        """Raise, say so, or start workers, where nothing computes."""
        client = self.steps.client
        cluster.check_alive(client)
        state = cluster.describe_workers(client)
        if state.executing:
            self.moved()
            return
        waited = time.monotonic() - self.since
        if waited > _END_SECONDS:
            raise Stalled(
                f"{self._what(state)} for {waited / 60:.0f} minutes while {self.steps.label}; run the same command again to go on"
            )
        if waited - self.told > _PATIENCE_SECONDS:
            self.told = waited
            started = cluster.revive(client) or cluster.restart_paused(client)
            then = f"; {started} started anew" if started else "; waiting"
            self.steps.say(f"{self._what(state)} for {waited:.0f} s{then}")

    def _what(self, state: Any) -> str:
        return "no worker is left" if not state.workers else f"{state.workers} workers and none of them computes"
