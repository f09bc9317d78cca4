"""``imgcurate completion``: a script with which a shell completes commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

_SHELLS = ("bash", "zsh", "fish")
# What is a file or a folder is called so in the help.
_FILES = ("INPUT", "IN", "OUT", "OUT.parquet", "EMBEDDINGS", "REMOVALS", "FILE", "DIR")


def add_to(commands: Any, parser: argparse.ArgumentParser) -> None:
    """Add the command to the parser's; `parser` is the one that is completed."""
    completion = commands.add_parser(
        "completion",
        help="print a script for a shell's completion",
        description='Print a script with which a shell completes commands, options and files: eval "$(imgcurate completion bash)", or put it where the shell '
        "looks for such, as ~/.local/share/bash-completion/completions/imgcurate, a folder of zsh's fpath as _imgcurate, or "
        "~/.config/fish/completions/imgcurate.fish.",
    )
    completion.add_argument("shell", choices=_SHELLS)
    completion.set_defaults(function=partial(_complete, parser))


def _complete(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    import shtab

    for action in _actions(parser):
        if action.metavar in _FILES:
            vars(action)["complete"] = shtab.FILE
    print(shtab.complete(parser, given.shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            # Beside a command's name a shell has room for a line, and shtab takes its description.
            helps = {command.dest: command.help for command in action._choices_actions}
            for name, command in action.choices.items():
                command.description = helps[name]
                yield from _actions(command)
