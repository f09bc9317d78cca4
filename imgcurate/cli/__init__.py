"""The command line: each command a thin layer over a verb or a job that exists, in words that a person types and a machine reads.

It is built on argparse, which Python brings. Typer and click make a command of a function's signature, and here several commands share options,
in groups; they would be one more package or six, whose API changes, and 15 to 30 ms of the 150 in which the help is there. What they do better,
completion, shtab makes of argparse's parsers.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import dask

from imgcurate import __version__
from imgcurate.cli import clusters, options
from imgcurate.cli.commands import (
    completion,
    convert,
    demo,
    inspect,
    outputs,
    remove,
    report,
    run,
    search,
    vectors,
    version,
)
from imgcurate.printable import printable

# A sentence that names files, ids and options fits.
_MOST_SAID = 2000
# What cannot be done as it is asked for, whenever it is asked again.
_ASKED_WRONGLY = (ValueError, TypeError, KeyError, FileNotFoundError, FileExistsError, NotADirectoryError)
# What says in a sentence what is wrong; of others the kind is part of it.
_SAYS_ENOUGH = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        The exit status: 0; 1 where something failed; 2 where it was asked for wrongly; 3 where no image is kept; 128 + the signal where it
        was stopped.
    """
    parser = _parser()
    given, others = parser.parse_known_args(arguments)
    if others:
        given.parser.refuse(others)
    if given.command is None:
        parser.print_help()
        return 0
    try:
        shown = {"imgcurate.progress": False} if given.quiet else {}
        with _stopped_by_sigterm(), _warnings_as_sentences(), dask.config.set(shown):
            return int(given.function(given) or 0)
    except KeyboardInterrupt as stop:
        print(f"\nimgcurate: {str(stop) or 'stopped'}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop.__cause__ or stop, _Terminated) else signal.SIGINT)
    except clusters.Failed as failed:
        return _end(failed.__cause__ or failed, given, 1)
    except Exception as problem:
        return _end(problem, given, 2 if isinstance(problem, _ASKED_WRONGLY) else 1)


def _end(problem: BaseException, given: argparse.Namespace, status: int) -> int:
    """Say what went wrong, in a sentence, and return the exit status."""
    if isinstance(problem, BrokenPipeError):
        # Who read what is printed has gone, and Python would complain once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if given.debug:
        for line in "".join(traceback.format_exception(problem)).splitlines():
            print(printable(line, _MOST_SAID), file=sys.stderr)
    print(f"imgcurate: {printable(as_options(_said(problem), given.parser.flags()), _MOST_SAID)}", file=sys.stderr)
    return status


def _said(problem: BaseException) -> str:
    """Return what a problem says, in a sentence."""
    if not isinstance(problem, _SAYS_ENOUGH):
        return f"{type(problem).__name__}: {problem} (--debug prints where)"
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

    What it has parsed has it as ``parser``. What it cannot parse it says in a sentence.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        form = partial(argparse.HelpFormatter, max_help_position=26)
        super().__init__(*arguments, **{"allow_abbrev": False, "formatter_class": form, **options})
        self.set_defaults(parser=self)

    def flags(self) -> dict[str, str]:
        """Return the options' names by those of the parameters."""
        # The first of one parameter's options: the others undo it.
        own = {action.dest: action.option_strings[0] for action in reversed(self._actions) if action.option_strings}
        return {"address": "--scheduler", **own}

    def refuse(self, others: Sequence[str]) -> NoReturn:
        """Say of arguments that are left over what was perhaps meant."""
        message = f"unrecognized arguments: {' '.join(others)}"
        if not others[0].startswith("-"):
            self.error(f"{message}; files and folders stand one after the other, before the options or after them")
        near = difflib.get_close_matches(others[0].partition("=")[0], self._option_string_actions, n=1)
        self.error(message + (f" (did you mean {near[0]}?)" if near else ""))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"imgcurate: {printable(message, _MOST_SAID)}; see {self.prog} --help\n")


@contextlib.contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Print warnings without the line of code that gave them."""

    def say(message: Warning | str, *where: Any, **more: Any) -> None:
        print(f"imgcurate: {printable(str(message), _MOST_SAID)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = say
        yield


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="imgcurate", description="Curate image datasets in WebDataset tar shards and folders.")
    parser.add_argument("--version", action="version", version=f"imgcurate {__version__}")
    options.add_common(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo.add_to(commands)
    inspect.add_to(commands)
    run.add_to(commands)
    report.add_to(commands)
    outputs.add_to(commands)
    search.add_to(commands)
    vectors.add_to(commands)
    remove.add_to(commands)
    convert.add_to(commands)
    version.add_to(commands)
    completion.add_to(commands, parser)
    for command in commands.choices.values():
        # What stands before the command holds where nothing stands after it.
        options.add_common(command, default=argparse.SUPPRESS)
        positionals = (action for action in command._actions if not action.option_strings)
        named = (f"{action.metavar or action.dest}{' ...' if action.nargs == '+' else ''}" for action in positionals)
        command.usage = " ".join([command.prog, "[OPTION ...]", *named])
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
