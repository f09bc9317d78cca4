"""Images that kill the process that decodes them: found one by one, each in a process that may die."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import distributed
import psutil

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.02
# A fork that has neither come further nor computed for so long waits for a lock that another thread held when it was made.
_STUCK_SECONDS, _MOST_STUCK = 10, 3
# Dask's nanny ends a worker at 95 %.
_SHARE_OF_MEMORY = 0.9


def killers(
    rows: Iterable[int], work: Callable[[int], Any], *, memory_limit: int | None = None, times: int = 2
) -> dict[int, str]:
    """Return which of `rows` kill a process that works on them alone.

    Parameters
    ----------
    rows : iterable of int
    work : callable
        What is done with a row. Exceptions count for nothing.
    memory_limit : int, optional
        Bytes that the process may take. Default: nine tenths of what the Dask worker that asks may take, where that is limited.
    times : int
        How often a row must kill.

    Returns
    -------
    dict of int to str
        The row and how the process died, such as ``"signal 11"``.

    Notes
    -----
    The process is a fork of this one, so that it has what a worker's plugins have set, and says before each row which it is.

    Examples
    --------
    >>> killers(range(4), lambda row: os.kill(os.getpid(), 11) if row == 2 else None)
    {2: 'signal 11'}
    """
    waiting, found = list(rows), {}
    deaths: dict[int, int] = {}
    limit = memory_limit if memory_limit is not None else _of_worker()
    stuck = 0
    while waiting:
        try:
            begun, death = _in_a_child(waiting, work, limit)
        except _Stuck:
            stuck += 1
            if stuck == _MOST_STUCK:
                break
            continue
        if death is None:
            break
        if begun is None:  # it died before it came to a row: that is the fault of none
            break
        deaths[begun] = deaths.get(begun, 0) + 1
        waiting = waiting[waiting.index(begun) :]
        if deaths[begun] >= times:
            found[begun] = death
            waiting = waiting[1:]
    return found


class _Stuck(Exception):
    """A fork waits for what nobody will do."""


def _in_a_child(rows: list[int], work: Callable[[int], Any], limit: int | None) -> tuple[int | None, str | None]:
    """Work on rows, one after the other, in a fork of this process: the last that it began, and how it died if it did."""
    reading, writing = os.pipe()
    parent = os.getpid()
    with warnings.catch_warnings():
        # That threads hold locks is what the limit of time is for.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reading)
        _be_the_child(rows, work, writing, parent)
    os.close(writing)
    try:
        return _watch(child, reading, limit)
    finally:
        os.close(reading)


def _be_the_child(rows: list[int], work: Callable[[int], Any], writing: int, parent: int) -> None:
    with contextlib.suppress(BaseException):
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL("libc.so.6").prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        # How it dies is told by who asks, once, and not by the stacks of all threads of the process that it was.
        faulthandler.disable()
        gc.disable()  # what this process would finalise is the other's
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        import torch

        # The threads of the pools are not in a fork, and who asks for more than one waits for them.
        torch.set_num_threads(1)
        for row in rows:
            os.write(writing, f"{row}\n".encode())
            with contextlib.suppress(Exception):
                work(row)
    os._exit(0)


def _watch(child: int, reading: int, limit: int | None) -> tuple[int | None, str | None]:
    process = psutil.Process(child)
    said = b""
    heard, computed = time.monotonic(), 0.0
    while True:
        if select.select([reading], [], [], _LOOK_SECONDS)[0]:
            more = os.read(reading, 1 << 16)
            if not more:
                break
            said, heard = said + more, time.monotonic()
        with contextlib.suppress(psutil.Error):
            if limit is not None and process.memory_info().rss > limit:
                _end(child)
                return _last(said), f"it needs more than the {limit / 2**30:.1f} GiB of memory of a worker"
            if (now := sum(process.cpu_times()[:2])) > computed:
                heard, computed = time.monotonic(), now
        if time.monotonic() - heard > _STUCK_SECONDS:
            _end(child)
            raise _Stuck
    _, status = os.waitpid(child, 0)
    return _last(said), f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else None


def _end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _last(said: bytes) -> int | None:
    lines = said.decode().split()
    return int(lines[-1]) if lines else None


def _of_worker() -> int | None:
    try:
        limit = distributed.get_worker().memory_manager.memory_limit
    except (ValueError, AttributeError):
        return None
    return int(limit * _SHARE_OF_MEMORY) if limit else None
