"""How `make docs` builds the documentation: Markdown pages by MyST, the reference from the docstrings by autodoc and numpydoc, furo's theme.

Nothing is fetched: no intersphinx, and furo's styles and scripts are files beside the pages.
"""

import argparse
import os
from typing import Any

from imgcurate import __version__, cli

project = "imgcurate"
author = "the imgcurate maintainers"
copyright = "the imgcurate maintainers, Apache-2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

# Headings have the anchors that GitHub gives them, so that a link works there too.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# What stands between single backticks in a docstring is a name: of a verb, which becomes a link, or of a parameter.
default_role = "py:obj"
# NumPy docstrings say types in words that a person reads; signatures stay short.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

html_theme = "furo"
html_title = "imgcurate"
html_copy_source = False
html_show_sourcelink = False
# The prompt and what is printed are not copied.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"


def say_options(app: Any, page: str, source: list[str]) -> None:
    """Put what each command's ``--help`` says at the end of the page of the command line."""
    if page != "reference/command-line":
        return
    os.environ["COLUMNS"] = "86"
    parser = cli._parser()
    (commands,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in {"": parser, **commands}.items():
        source[0] += f"\n### imgcurate {name}\n\n```text\n{command.format_help()}```\n"


def setup(app: Any) -> None:
    app.connect("source-read", say_options)
