"""Patterns to lists of files."""

from __future__ import annotations

import os
import re
import stat as modes
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from imgcurate.printable import printable
from imgcurate.storage.braces import filled_in
from imgcurate.storage.stores import (
    Entry,
    Options,
    as_url,
    check_protocol,
    entry_of,
    is_local,
    open_filesystem,
    path_of,
    retrying,
    to_text,
)

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_WILDCARDS = "*?["


class _Name(NamedTuple):
    """What a user named: a path as it is, or a pattern that may have wildcards."""

    text: str
    is_pattern: bool


def expand(
    urls: Paths,
    extensions: tuple[str, ...],
    storage_options: Options = None,
    *,
    beside: tuple[str, ...] = (),
    contained: tuple[str, ...] = (),
    called: str = "",
) -> dict[str, Entry]:
    """Find the files that paths, globs, braces and folders name.

    Parameters
    ----------
    urls : str, path, or sequence of these
        Each a file, a folder (searched to the bottom, but for folders below it that a run wrote), a glob, or a pattern such as
        ``"s3://bucket/{00000..00041}.tar"``. A path of this machine that is there is that path, whatever its name looks like.
    extensions : tuple of str
        What a file of a folder must end in, in lower case, such as ``(".tar",)``. A file that is named is taken as it is.
    storage_options : mapping, optional
        For the fsspec filesystem.
    beside : tuple of str, optional
        More extensions, of files that a folder may hold beside those.
    contained : tuple of str, optional
        Extensions of files of which links to nothing, and links out of a folder or out of that of a glob, are problems. Links to folders are not followed.
    called : str, optional
        What such files are called where a folder holds none. Default: by their extensions.

    Returns
    -------
    dict of str to Entry
        URL as fsspec opens it to size and version, in order. A file of this machine that cannot be read for what it is, such as a pipe, or
        whose name is not UTF-8, is an entry with a `problem`.

    Raises
    ------
    FileNotFoundError
        Where a pattern finds nothing.
    ValueError
        Where no pattern is given, one file is named twice, braces are not balanced or make more than a million names, or a URL is not one
        that may be opened.

    Warns
    -----
    UserWarning
        Where a folder holds one that a run wrote: it is read where it is named itself.
    """
    names = _names_of(urls)
    found: dict[str, Entry] = {}
    # A store is asked about each name, and thousands of answers in a row would take minutes.
    with ThreadPoolExecutor(max_workers=min(16, len(names))) as threads:
        find = partial(
            _find,
            extensions=extensions,
            beside=beside,
            contained=contained,
            called=called or f"{' or '.join(extensions)} file",
            storage_options=storage_options,
        )
        for listing in threads.map(find, names):
            for url, entry in listing.items():
                if url in found:
                    raise ValueError(f"{printable(url)} is named twice; name each file once")
                found[url] = entry
    return found


def patterns(urls: Paths) -> list[str]:
    """Return paths and globs as they are given, with braces filled in; raises ValueError where there are none, or braces are not balanced."""
    return [name.text for name in _names_of(urls)]


def root_of(urls: Paths, storage_options: Options = None) -> str:
    """Return the deepest folder that holds all that `urls` name: a folder's own path, a glob's part before its first wildcard."""
    folders = []
    for pattern in _given(urls):
        fixed = pattern if is_there(pattern) else re.split(r"[*?\[{]", pattern, maxsplit=1)[0]
        fs, path = open_filesystem(fixed, storage_options)
        url = as_url(fs, path)
        is_folder = fixed.endswith("/") or (fixed == pattern and fs.isdir(path))
        folders.append(url.rstrip("/") if is_folder else url.rpartition("/")[0])
    return common_folder(folders)


def common_folder(folders: Sequence[str]) -> str:
    """Return the longest run of leading path components that `folders` share.

    Examples
    --------
    >>> common_folder(["/data/a/x", "/data/b"])
    '/data'
    """
    parts = [folder.split("/") for folder in folders]
    shared = os.path.commonprefix(parts)  # of lists: whole components
    return "/".join(shared)


def relative(url: str, root: str) -> str:
    r"""Return `url` relative to the folder `root`, which `root_of` gave, or `common_folder` of paths; bytes that are not UTF-8 are escaped.

    Examples
    --------
    >>> relative("/data/a/b.tar", "/data"), relative("file:///caf%E9/b.tar", "/")
    ('a/b.tar', 'caf\\xe9/b.tar')
    """
    return _escaped(path_of(url).removeprefix(root).lstrip("/"))


def lies_below(url: str, roots: Sequence[str]) -> bool:
    """Tell whether a file lies in one of some folders, which are absolute; of this machine, where links lead to counts.

    Examples
    --------
    >>> lies_below("s3://bucket/a/b.tar", ["s3://bucket/a"]), lies_below("s3://bucket/a/../b.tar", ["s3://bucket/a"])
    (True, False)
    """
    url = path_of(url)
    if "\0" in url:  # which no file's name has
        return False
    try:
        check_protocol(url)
    except ValueError:
        return False
    path = os.path.realpath(url) if is_local(url) else url
    if ".." in path.split("/"):
        return False
    return any(
        path.startswith((os.path.realpath(root) if is_local(root) else root).rstrip("/") + "/") for root in roots
    )


def sizes_in(folder: str, storage_options: Options = None) -> dict[str, int]:
    """Return the names of the files in a folder, and their sizes in bytes; of a folder that is not there, none."""
    fs, path = open_filesystem(folder, storage_options)
    try:
        listing = retrying()(fs.ls, path, detail=True)
    except FileNotFoundError:
        return {}
    return {info["name"].rpartition("/")[2]: info["size"] for info in listing if info["type"] == "file"}


def problem_of(path: str, folder: str | None = None, contained: bool = True) -> str | None:
    """Say why a file of this machine cannot be read for what it is.

    Parameters
    ----------
    path : str
    folder : str, optional
        Below it names must be UTF-8.
    contained : bool, default True
        Whether links must lead somewhere, and not out of the folder.

    Returns
    -------
    str or None
        None also of what is not there, which who reads it will say; so is a link to nothing unless `contained`.
    """
    name = path.rpartition("/")[2] if folder is None else path.removeprefix(folder)
    if _escaped(name) != name:
        return "its name is not UTF-8; rename it"
    is_link = False
    try:
        found = os.lstat(path)
        is_link = modes.S_ISLNK(found.st_mode)
        if is_link:
            found = os.stat(path)
    except OSError as problem:
        return f"a link that cannot be followed ({problem.strerror})" if is_link and contained else None
    if not modes.S_ISREG(found.st_mode):
        return "not a regular file"
    if is_link and folder is not None and contained:
        inside = os.path.realpath(folder).rstrip("/") + "/"
        if not os.path.realpath(path).startswith(inside):
            return f"a link out of the folder {folder}; copy what it leads to"
    return None


def is_there(pattern: str) -> bool:
    """Tell whether a pattern is the path of something on this machine."""
    return is_local(pattern) and os.path.lexists(open_filesystem(pattern, None)[1])


def _find(
    name: _Name,
    extensions: tuple[str, ...],
    beside: tuple[str, ...],
    contained: tuple[str, ...],
    called: str,
    storage_options: Options,
) -> dict[str, Entry]:
    fs, path = open_filesystem(name.text, storage_options)
    if name.is_pattern and any(sign in path for sign in _WILDCARDS):
        found = retrying()(fs.glob, path, detail=True)
        listing = {name: info for name, info in found.items() if info["type"] != "directory"}
        if not listing:
            raise FileNotFoundError(f"no file matches {printable(repr(name.text))}")
        folder = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
        return _entries(fs, listing, folder, contained)
    try:
        info = {"type": "directory"} if name.text.endswith("/") else retrying()(fs.info, path)
        if info["type"] == "file" or not (info["type"] == "directory" or fs.isdir(path)):
            return _entries(fs, {path: info})
        found = retrying()(fs.find, path, detail=True)
    except FileNotFoundError:
        found = {}
    if not found and not fs.exists(path):
        raise FileNotFoundError(f"{printable(repr(name.text))} does not exist")
    runs = _folders_of_runs(path.rstrip("/"), found)
    found = {file: info for file, info in found.items() if not file.startswith(tuple(f"{run}/" for run in runs))}
    for run in runs:
        warnings.warn(
            f"{printable(run)} is what a run wrote and is not read as part of {printable(name.text)}; name it to read it",
            stacklevel=2,
        )
    # A link to a folder is listed as a file, and nothing below it.
    links = sorted(name for name, info in found.items() if info.get("islink") and os.path.isdir(name))
    if links:
        warnings.warn(
            f"links to folders are not followed: {printable(links[0])}{f' and {len(links) - 1:,} more' if links[1:] else ''} in "
            f"{printable(name.text)}; name what is to be read as well",
            stacklevel=2,
        )
    listing = {
        name: info
        for name, info in found.items()
        if name.lower().endswith(extensions + beside) and not _is_hidden(name)
    }
    if not any(name.lower().endswith(extensions) for name in listing):
        raise FileNotFoundError(f"the folder {printable(repr(name.text))} holds no {called}")
    entries = _entries(fs, listing, path, contained)
    return {url: entry._replace(amid=True) for url, entry in entries.items()}


def _entries(
    fs: Any, listing: dict[str, Any], folder: str | None = None, contained: tuple[str, ...] = ()
) -> dict[str, Entry]:
    entries = {}
    for name, info in sorted(listing.items()):
        inside = name.lower().endswith(contained)
        problem = problem_of(name, folder, inside) if isinstance(fs, LocalFileSystem) else None
        entry = entry_of(fs, name, info)._replace(problem=problem)
        entries[to_text(as_url(fs, name))] = entry
    return entries


def _folders_of_runs(folder: str, files: Iterable[str]) -> list[str]:
    """Return the folders below `folder` that a run wrote, or writes.

    Examples
    --------
    >>> _folders_of_runs("a", ["a/0.tar", "a/out/.run/run.json", "a/out/shards/0.tar"])
    ['a/out']
    """
    names = set(files)
    runs = {name.removesuffix("/.run/run.json") for name in names if name.endswith("/.run/run.json")}
    # Of a finished run the rest may have been removed.
    finished = {name.removesuffix("/manifest.json") for name in names if name.endswith("/manifest.json")}
    accounts = ("shards.parquet", "files.parquet/part.00000.parquet")
    runs |= {run for run in finished if any(f"{run}/{account}" in names for account in accounts)}
    return sorted(run for run in runs if run.startswith(f"{folder}/"))


def _escaped(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _given(urls: Paths) -> list[str]:
    given = [urls] if isinstance(urls, str | os.PathLike) else urls
    if not isinstance(given, Iterable):
        raise TypeError(f"{urls!r} is no path: give one as text, or a list of them")
    return [os.fspath(url) for url in given]


def _names_of(urls: Paths) -> list[_Name]:
    names = [name for pattern in _given(urls) for name in _names(pattern)]
    if not names:
        raise ValueError("no path was given: name a file, a folder, a glob or a pattern with braces")
    return names


def _names(pattern: str) -> Iterable[_Name]:
    """Expand the braces of a pattern, unless it is the path of something that is there."""
    if is_there(pattern):
        return [_Name(pattern, is_pattern=False)]
    return [_Name(text, is_pattern=not is_there(text)) for text in filled_in(pattern)]


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")
