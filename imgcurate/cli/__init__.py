"""The command line: `imgcurate run` curates shards, `verify` checks what a run wrote, `convert` decompresses shards, `demo` shows the job on
real photos."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from imgcurate import __version__
from imgcurate.cli import convert, demo, run
from imgcurate.printable import printable

# A sentence that names files, ids and options fits.
_MOST_SAID = 2000


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where something is wrong, 2 for a wrong command, 128 + the signal where stopped."""
    options = _parser().parse_args(arguments)
    try:
        with _stopped_by_sigterm():
            return int(options.function(options) or 0)
    except KeyboardInterrupt as stop:
        print(f"\nimgcurate: {stop or 'stopped'}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop.__cause__ or stop, _Terminated) else signal.SIGINT)
    except BrokenPipeError:
        # Who read what is printed has gone, and Python would complain once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as problem:
        print(f"imgcurate: {printable(_said(problem), _MOST_SAID)}", file=sys.stderr)
        return 1


def _said(problem: Exception) -> str:
    """Return what a problem says, in a sentence."""
    if isinstance(problem, KeyError) and problem.args:
        return str(problem.args[0])
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{problem.strerror}: {problem.filename}; make room and run the same command again to go on"
    return str(problem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="imgcurate", description="Curate image datasets in WebDataset tar shards.")
    parser.add_argument("--version", action="version", version=f"imgcurate {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    run.add_to(commands)
    convert.add_to(commands)
    demo.add_to(commands)
    return parser


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
