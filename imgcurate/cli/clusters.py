"""The cluster that a command runs on, and how it ends when somebody stops it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a command runs."""
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="a running Dask scheduler; default: this machine's GPUs or cores"
    )
    parser.add_argument("--scheduler-file", metavar="FILE", help="the file that a running Dask scheduler wrote")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes to start; default: one a core")
    parser.add_argument("--memory-limit", metavar="SIZE", help="memory of a worker, such as 8GiB; default: its share")


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the file systems that a command reads and writes."""
    parser.add_argument(
        "--storage-options",
        type=storage_options,
        metavar="JSON",
        help="for the file systems of shards and output, such as '{\"anon\": true}' or anon=true,endpoint_url=http://...",
    )


@contextlib.contextmanager
def connected(options: argparse.Namespace) -> Iterator[Callable[[], Any]]:
    """Give what starts, or finds, a command's cluster; where somebody stops the command its processes are gone at once, and quietly.

    Raises
    ------
    KeyboardInterrupt
        With the sentence that says how to go on, from the signal.
    """
    from imgcurate.cluster import connect, kill

    # What a user has to know of the cluster a run says itself, in a sentence. Dask gives several of its loggers a level of their own.
    for name in ("distributed", "tornado", "asyncio", *logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("distributed", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    stack, clients = contextlib.ExitStack(), []

    def start() -> Any:
        client = connect(
            options.scheduler,
            scheduler_file=options.scheduler_file,
            workers=options.workers,
            memory_limit=options.memory_limit,
        )
        clients.append(stack.enter_context(client))
        if importlib.util.find_spec("bokeh") is not None:
            print(f"dashboard: {client.dashboard_link}", file=sys.stderr)
        return client

    try:
        with stack:
            try:
                yield start
            except KeyboardInterrupt:
                _be_quiet()
                for client in clients:
                    kill(client)
                stack.pop_all()
                raise
    except KeyboardInterrupt as stop:
        _be_quiet()
        raise KeyboardInterrupt("stopped; run the same command again to go on where it was") from stop


def _be_quiet() -> None:
    """Let nothing that happens while processes are ended be printed, and nobody stop it half-way."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def storage_options(text: str) -> dict[str, Any]:
    """Return options for fsspec from JSON, or from ``name=value,...`` of which each value is JSON or else text.

    Examples
    --------
    >>> storage_options("anon=true,endpoint_url=http://127.0.0.1:9000"), storage_options('{"key": "a,b"}')
    ({'anon': True, 'endpoint_url': 'http://127.0.0.1:9000'}, {'key': 'a,b'})
    """
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as problem:
            raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {problem}") from None
    found: dict[str, Any] = {}
    for item in text.split(","):
        name, sign, value = item.partition("=")
        if not sign or not name.strip():
            raise argparse.ArgumentTypeError(f"{item!r} is not NAME=VALUE; several are parted by commas, or give JSON")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found
