"""A page: what a notebook shows, and a file that opens anywhere, without a network and without a script."""

from __future__ import annotations

import math
import os
from functools import cache
from importlib import resources
from numbers import Integral, Real
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from imgcurate import storage
from imgcurate.printable import plural, printable

#: Of a text that a page shows; all of it stands in its title, which is seen when it is pointed at.
_SHOWN, _TITLE = 160, 2000
_FOLDER = 21


class Page:
    """What was made to be looked at.

    A notebook shows it by itself; `save` writes it as one file that any browser opens.

    Parameters
    ----------
    title : str
    body : markupsafe.Markup
    text : str
        What is shown where there is no HTML.

    Examples
    --------
    >>> Page("Two", Markup("<p>1 &lt; 2</p>"), "Page: 1 < 2")
    Page: 1 < 2
    """

    def __init__(self, title: str, body: Markup, text: str) -> None:
        self.title, self._body, self._text = title, body, text

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return str(fragment(self._body))

    def html(self) -> str:
        """Return the whole document."""
        return str(render("page.html", style=_style(), title=self.title, body=self._body))

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, storage_options: storage.Options = None
    ) -> None:
        """Write the page as one HTML file, which needs nothing beside it.

        Parameters
        ----------
        path : str or path
            Such as ``"page.html"``; its folder is made where it is missing.
        overwrite : bool, default False
            Replace a file that is there.
        storage_options : dict, optional
            For the fsspec filesystem.

        Raises
        ------
        FileExistsError
            Where there is such a file and `overwrite` is false, or a folder.
        TypeError, ValueError, NotADirectoryError, PermissionError
            Where `path` is no path, or one where no file can be.
        """
        refuse_file(path, storage_options, overwrite=overwrite)
        with storage.open_atomic(os.fspath(path), storage_options) as file:
            # Half a surrogate pair, from a file's name that is not UTF-8, is no character.
            file.write(self.html().encode("utf-8", "replace"))


def fragment(body: Markup) -> Markup:
    """Return what a notebook shows, with its style."""
    return render("fragment.html", style=_style(), body=body)


def refuse_file(path: Any, storage_options: storage.Options = None, *, overwrite: bool = False) -> None:
    """Raise where a page cannot be written, or something is there that is not to be replaced."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{path!r} is no path: name the file of the page, such as 'page.html'")
    if not os.fspath(path):
        raise ValueError("'' is no path: name the file of the page, such as 'page.html'")
    fs, place = storage.open_filesystem(os.fspath(path), storage_options)
    if fs.isdir(place):
        raise FileExistsError(
            f"{path} is a folder; name a file for the page, such as {str(path).rstrip('/')}/page.html"
        )
    if not overwrite and fs.exists(place):
        raise FileExistsError(f"{path} is there already; name another file, or pass overwrite=True")
    if storage.is_local(
        os.fspath(path)
    ):  # of a store, what is left of an address without its protocol looks like a path
        # The folders that are missing are made.
        folder = os.path.dirname(os.path.abspath(place))
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        if not os.path.isdir(folder):
            raise NotADirectoryError(f"{path} cannot be written: {folder} is no folder; name another file")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{path} cannot be written: {folder} may not be written to; name another file")


def render(template: str, **values: Any) -> Markup:
    """Return a template of this room, filled: every value is escaped that is not Markup."""
    return Markup(_environment().get_template(template).render(values))


def said(value: Any) -> str:
    """Return a value of a row as a person reads it.

    Examples
    --------
    >>> said(0.123456), said(1234567), said(2194.4), said(None), said(float("nan")), said(3.0), said("a\\nb"), said(1e-9)
    ('0.1235', '1,234,567', '2,194', '—', '—', '3', 'a\\\\nb', '1e-09')
    """
    if value is None:
        return "—"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        number = float(value)
        if math.isnan(number):
            return "—"
        return f"{number:,.0f}" if 1e15 > abs(number) >= 1000 or number.is_integer() else f"{number:.4g}"
    if isinstance(value, np.ndarray | list | tuple) and len(value) > 8:
        return f"{len(value):,} values"
    text = str(value)
    return "—" if text == "<NA>" else printable(text, _TITLE)


def share(part: float, whole: float) -> str:
    """Return a share as a person reads it.

    Examples
    --------
    >>> share(1, 3), share(0, 0), share(1, 100_000), share(99_999, 100_000), share(2, 2)
    ('33.3 %', '—', '< 0.1 %', '> 99.9 %', '100 %')
    """
    if not whole:
        return "—"
    percent = 100 * part / whole
    if part and percent < 0.05:
        return "< 0.1 %"
    if part < whole and percent >= 99.95:
        return "> 99.9 %"
    return f"{percent:.1f} %" if 0 < percent < 100 else f"{percent:.0f} %"


def _end(text: str) -> str:
    """Return the end of a folder's name, which tells it from others.

    Examples
    --------
    >>> _end("shards/00000"), _end("a/very/long/name/of/a/folder/00000")
    ('shards/00000', '…ame/of/a/folder/00000')
    """
    return printable(text if len(text) <= _FOLDER else f"…{text[-_FOLDER:]}")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("imgcurate.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"said": said, "short": lambda text: printable(str(text), _SHOWN), "end": _end}
    environment.globals |= {"share": share, "plural": plural}
    return environment


@cache
def _style() -> Markup:
    return Markup(resources.files("imgcurate.report").joinpath("style.css").read_text("utf-8"))
