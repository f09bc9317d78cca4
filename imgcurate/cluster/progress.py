"""How far a verb is, on one line that is gone when the verb ends: at a terminal, or below a notebook's cell."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import dask
import distributed
from dask.callbacks import Callback
from distributed.protocol.pickle import dumps
from distributed.utils import is_kernel
from tqdm import tqdm

# A verb that is done before needs no line.
_PATIENCE_SECONDS = 2.0
_LOOK_SECONDS = 0.25
# The line is cleared within a moment, unless the terminal takes nothing; nobody waits for that.
_CLEAR_SECONDS = 1.0


class _Tasks(NamedTuple):
    """Tasks that are done, and those that are still to be done as far as is known: a verb asks for more when it sees what came of the first."""

    done: int = 0
    left: int = 0


_Draw = Callable[[_Tasks, str], None]

_thread: threading.Thread | None = None


@contextlib.contextmanager
def shown(name: str, client: distributed.Client | None) -> Iterator[None]:
    """Show how far what is called `name` is, from two seconds on, where somebody can see it and has not said otherwise.

    Only the main thread's work is shown, so that nothing is where a task or a thread of somebody's own calls a verb; and of verbs that call others
    the first. All tasks of a cluster count, whoever asked for them.

    Parameters
    ----------
    name : str
    client : distributed.Client or None
        Whose scheduler is asked, beside what Dask computes in this process.
    """
    global _thread
    line = _line()
    if line is None:
        yield
        return
    ended, here = threading.Event(), _InProcess()
    # With the caller's context, which knows the cell of the notebook.
    run = contextvars.copy_context().run
    thread = threading.Thread(
        target=run,
        args=(_show, name, line, _Counter(client, here), ended),
        daemon=True,
        name="imgcurate-progress",
    )
    try:
        with here:
            with contextlib.suppress(RuntimeError):  # of a process that may start no more threads
                thread.start()
                _thread = thread
            yield
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join(_CLEAR_SECONDS)


def _line() -> Callable[[], AbstractContextManager[_Draw]] | None:
    """Return what draws a line for the user; None where it is to be seen by nobody."""
    if (
        not dask.config.get("imgcurate.progress", True)
        or threading.current_thread() is not threading.main_thread()
        or (_thread is not None and _thread.is_alive())
    ):
        return None
    if is_kernel():
        return _in_notebook
    with contextlib.suppress(AttributeError, ValueError):  # there is no stderr, or it is closed
        if sys.stderr.isatty():
            return _at_terminal
    return None


def _show(
    name: str, line: Callable[[], AbstractContextManager[_Draw]], counter: _Counter, ended: threading.Event
) -> None:
    began = time.monotonic()
    with contextlib.suppress(Exception):  # work does not fail because nobody can be told how far it is
        counter.look()
        if ended.wait(_PATIENCE_SECONDS):
            return
        with line() as draw:
            while True:
                tasks, seconds = counter.look(), tqdm.format_interval(time.monotonic() - began)
                known = sum(tasks)
                draw(tasks, f"{name}: {tasks.done:,} of {known:,} tasks, {seconds}" if known else f"{name}: {seconds}")
                if ended.wait(_LOOK_SECONDS):
                    return


@contextlib.contextmanager
def _at_terminal() -> Iterator[_Draw]:
    with tqdm(total=0, leave=False, bar_format=" ", dynamic_ncols=True, file=sys.stderr) as bar:

        def draw(tasks: _Tasks, text: str) -> None:
            bar.n, bar.total = tasks.done, sum(tasks)
            bar.bar_format = "{bar:20} " + text
            bar.refresh()

        yield draw


@contextlib.contextmanager
def _in_notebook() -> Iterator[_Draw]:
    from IPython.display import display

    # Not by ipywidgets, which not everybody has: elements of HTML that is replaced.
    handle = display({"text/plain": "", "text/html": ""}, raw=True, display_id=True)

    def draw(tasks: _Tasks, text: str) -> None:
        known = f' value="{tasks.done}" max="{sum(tasks)}"' if sum(tasks) else ""
        handle.update({"text/plain": text, "text/html": f"<progress{known}></progress> {text}"}, raw=True)

    try:
        yield draw
    finally:
        handle.update({"text/plain": "", "text/html": ""}, raw=True)


class _Counter:
    """Counts tasks since it was first asked, without waiting for anybody."""

    def __init__(self, client: distributed.Client | None, here: _InProcess) -> None:
        self._client, self._here = client, here
        self._asked: concurrent.futures.Future[Any] | None = None
        self._before: int | None = None
        self._there = _Tasks()

    def look(self) -> _Tasks:
        """Return the tasks as of the last answer, and ask again."""
        if self._asked is not None and self._asked.done():
            done, left = self._asked.result()["result"]
            self._before = done if self._before is None else self._before
            self._there = _Tasks(done - self._before, left)
            self._asked = None
        if self._asked is None and self._client is not None and self._client.status == "running":
            self._asked = _ask(self._client)
        here = self._here.tasks()
        return _Tasks(self._there.done + here.done, self._there.left + here.left)


def _ask(client: distributed.Client) -> concurrent.futures.Future[Any]:
    """Ask the scheduler how many tasks were ever done, and how many are left: sums of numbers that it keeps, a few for each kind of task."""

    # A function within one, which is sent as it is: a scheduler need not have this package.
    def count(dask_scheduler: Any) -> tuple[int, int]:
        kinds = list(dask_scheduler.task_prefixes.values())
        left = ("waiting", "queued", "no-worker", "processing")
        return (
            sum(kind.state_counts["memory"] for kind in kinds),
            sum(kind.states[state] for kind in kinds for state in left),
        )

    question = client.scheduler.run_function(function=dumps(count), args=dumps(()), kwargs=dumps({}), wait=True)
    return asyncio.run_coroutine_threadsafe(question, client.loop.asyncio_loop)


class _InProcess(Callback):
    """Counts the tasks that Dask computes in this process, in threads or one after the other, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._done = 0
        self._states: dict[int, Any] = {}

    def _start_state(self, graph: Any, state: Any) -> None:
        self._states[id(state)] = state

    def _finish(self, graph: Any, state: Any, failed: bool) -> None:
        self._done += len(self._states.pop(id(state), {"finished": ()})["finished"])

    def tasks(self) -> _Tasks:
        states = list(self._states.values())
        left = sum(len(state[name]) for state in states for name in ("ready", "waiting", "running"))
        return _Tasks(self._done + sum(len(state["finished"]) for state in states), left)
