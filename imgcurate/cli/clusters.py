"""The cluster that a command runs on, and how it ends when somebody stops it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any


class Failed(Exception):
    """Of what went wrong once all that was asked for had been seen to be right; its cause says what."""


class Cluster:
    """A command's cluster, which is started, or found, when it is first asked for.

    Called, it gives its client, and work has begun: what goes wrong from there on has failed, and was not asked for wrongly.

    Attributes
    ----------
    working : bool
        Whether work has begun.
    clients : list of distributed.Client
        The client, once it is there.
    """

    def __init__(self, options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
        self._options, self._stack = options, stack
        self.working = False
        self.clients: list[Any] = []

    def start(self) -> Any:
        """Return the client of the cluster, while what is asked for is still looked at."""
        from imgcurate.cluster import connect

        if not self.clients:
            client = connect(
                self._options.scheduler,
                scheduler_file=self._options.scheduler_file,
                workers=self._options.workers,
                memory_limit=self._options.memory_limit,
            )
            self.clients.append(self._stack.enter_context(client))
            if importlib.util.find_spec("bokeh") is not None and not self._options.quiet:
                print(f"dashboard: {client.dashboard_link}", file=sys.stderr)
        return self.clients[0]

    def __call__(self) -> Any:
        client = self.start()
        self.working = True
        return client


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Let what is raised have failed, in commands that need no cluster; see `Failed`."""
    try:
        yield
    except Exception as problem:
        raise Failed from problem


@contextlib.contextmanager
def connected(options: argparse.Namespace, *, goes_on: bool = False) -> Iterator[Cluster]:
    """Give a command's cluster; where somebody stops the command its processes are gone at once, and quietly.

    Parameters
    ----------
    options : argparse.Namespace
    goes_on : bool, default False
        Whether the command, given again, goes on where it was stopped, which is then said.

    Raises
    ------
    Failed
        Of what is raised once work has begun.
    KeyboardInterrupt
        With the sentence that says so, from the signal.
    """
    from imgcurate.cluster import kill

    # What a user has to know of the cluster a run says itself, in a sentence. Dask gives several of its loggers a level of their own.
    for name in ("distributed", "tornado", "asyncio", *logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("distributed", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    stack = contextlib.ExitStack()
    cluster = Cluster(options, stack)
    try:
        with stack:
            try:
                yield cluster
            except KeyboardInterrupt:
                _be_quiet()
                for client in cluster.clients:
                    kill(client)
                stack.pop_all()
                raise
    except KeyboardInterrupt as stop:
        _be_quiet()
        again = "; run the same command again to go on where it was" if goes_on else ""
        raise KeyboardInterrupt(f"stopped{again}") from stop
    except Exception as problem:
        if cluster.working:
            raise Failed from problem
        raise


def _be_quiet() -> None:
    """Let nothing that happens while processes are ended be printed, and nobody stop it half-way."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
