"""The command line: `imgcurate run` curates shards, `verify` checks what a run wrote, `convert` decompresses shards, `demo` shows the job on
real photos."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imgcurate import __version__
from imgcurate.cli import convert, demo, report, run
from imgcurate.printable import printable

# A sentence that names files, ids and options fits.
_MOST_SAID = 2000


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        The exit status: 0; 1 where something is wrong; 2 for a wrong command; 3 where a run kept no image; 128 + the signal where it was
        stopped.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        with _stopped_by_sigterm(), _warnings_as_sentences():
            return int(options.function(options) or 0)
    except KeyboardInterrupt as stop:
        print(f"\nimgcurate: {stop or 'stopped'}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop.__cause__ or stop, _Terminated) else signal.SIGINT)
    except BrokenPipeError:
        # Who read what is printed has gone, and Python would complain once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as problem:
        print(f"imgcurate: {printable(as_options(_said(problem), options.flags), _MOST_SAID)}", file=sys.stderr)
        return 1


def _said(problem: Exception) -> str:
    """Return what a problem says, in a sentence."""
    if isinstance(problem, KeyError) and problem.args:
        return str(problem.args[0])
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{problem.strerror}: {problem.filename}; make room and run the same command again to go on"
    return str(problem)


def as_options(text: str, flags: Mapping[str, str]) -> str:
    """Return a message with the names of parameters as those of the command line's options.

    Examples
    --------
    >>> flags = {"eps": "--eps", "overwrite": "--overwrite", "model_dir": "--model-dir"}
    >>> as_options("eps=3: it must be below 1, or pass overwrite=True", flags)
    '--eps 3: it must be below 1, or pass --overwrite'
    >>> as_options("model_dir 'eps' does not exist", flags)
    "--model-dir 'eps' does not exist"
    """
    # What has no underscore and no value may be any word.
    words = "|".join(name for name in flags if "_" in name) or "(?!)"
    value = r"""'[^']*'|"[^"]*"|\[[^]]*\]|[^\s,;:)]+"""
    pattern = rf"(?<![\w./=-])(?:({'|'.join(flags)})=({value})?|({words})(?![\w./=]))"

    def option(match: re.Match[str]) -> str:
        name, value, word = match.groups()
        return " ".join([flags[name or word], *([value] if value not in (None, "True") else [])])

    return re.sub(pattern, option, text)


class _Parser(argparse.ArgumentParser):
    """A parser, and that of each of its commands, whose options are written out: a prefix of one may be that of another tomorrow.

    What it has parsed has the options' names by those of the parameters, as ``flags``.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.flags = {"address": "--scheduler"}
        super().__init__(*arguments, **{"allow_abbrev": False, **options})
        self.set_defaults(flags=self.flags)

    def add_argument(self, *arguments: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*arguments, **options)
        if action.option_strings:
            self.flags.setdefault(action.dest, action.option_strings[0])
        return action


@contextlib.contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Print warnings without the line of code that gave them."""

    def say(message: Warning | str, *where: Any, **more: Any) -> None:
        print(f"imgcurate: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = say
        yield


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="imgcurate", description="Curate image datasets in WebDataset tar shards and folders.")
    parser.add_argument("--version", action="version", version=f"imgcurate {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run.add_to(commands)
    convert.add_to(commands)
    demo.add_to(commands)
    report.add_to(commands)
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
