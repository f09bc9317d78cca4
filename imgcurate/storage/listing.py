"""Patterns to lists of files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from imgcurate.storage.stores import Entry, Options, as_url, entry_of, open_filesystem, retrying, stat

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def expand(
    urls: Paths, extensions: tuple[str, ...], storage_options: Options = None, *, beside: tuple[str, ...] = ()
) -> dict[str, Entry]:
    """Find the files that paths, globs, braces and folders name.

    Parameters
    ----------
    urls : str, path, or sequence of these
        Each a file, a folder (searched to the bottom, but for folders below it that a run wrote), a glob, or a pattern such as
        ``"s3://bucket/{00000..00041}.tar"``.
    extensions : tuple of str
        What a file of a folder must end in, in lower case, such as ``(".tar",)``. A file that is named is taken as it is.
    storage_options : mapping, optional
        For the fsspec filesystem.
    beside : tuple of str, optional
        More extensions, of files that a folder may hold beside those.

    Returns
    -------
    dict of str to Entry
        URL as fsspec opens it to size and version, in order.

    Raises
    ------
    FileNotFoundError
        Where a pattern finds nothing.
    ValueError
        Where no pattern is given, one file is named twice, or braces are not balanced.

    Warns
    -----
    UserWarning
        Where a folder holds one that a run wrote: it is read where it is named itself.
    """
    names = patterns(urls)
    found: dict[str, Entry] = {}
    # A store is asked about each name, and thousands of answers in a row would take minutes.
    with ThreadPoolExecutor(max_workers=min(16, len(names))) as threads:
        find = partial(_find, extensions=extensions, beside=beside, storage_options=storage_options)
        for listing in threads.map(find, names):
            for url, entry in listing.items():
                if url in found:
                    raise ValueError(f"{url} is named twice; name each file once")
                found[url] = entry
    return found


def patterns(urls: Paths) -> list[str]:
    """Return paths and globs as they are given, with braces filled in; raises ValueError where there are none, or braces are not balanced."""
    given = _given(urls)
    if not given:
        raise ValueError("no path was given: name a file, a folder, a glob or a pattern with braces")
    names: list[str] = []
    for pattern in given:
        try:
            names += braceexpand(pattern)
        except UnbalancedBracesError:
            raise ValueError(f"{pattern!r}: the braces are not balanced") from None
    return names


def root_of(urls: Paths, storage_options: Options = None) -> str:
    """Return the deepest folder that holds all that `urls` name: a folder's own path, a glob's part before its first wildcard."""
    folders = []
    for pattern in _given(urls):
        fixed = pattern.partition("*")[0].partition("?")[0].partition("[")[0].partition("{")[0]
        fs, path = open_filesystem(fixed, storage_options) if "::" not in fixed else (None, fixed)
        url = as_url(fs, path) if fs is not None else path
        is_folder = fixed.endswith("/") or (fixed == pattern and fs is not None and fs.isdir(path))
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
    """Return `url` relative to the folder `root`."""
    return url.removeprefix(root).lstrip("/")


def sizes_in(folder: str, storage_options: Options = None) -> dict[str, int]:
    """Return the names of the files in a folder, and their sizes in bytes; of a folder that is not there, none."""
    fs, path = open_filesystem(folder, storage_options)
    try:
        listing = retrying()(fs.ls, path, detail=True)
    except FileNotFoundError:
        return {}
    return {info["name"].rpartition("/")[2]: info["size"] for info in listing if info["type"] == "file"}


def _find(
    pattern: str, extensions: tuple[str, ...], beside: tuple[str, ...], storage_options: Options
) -> dict[str, Entry]:
    if "::" in pattern:  # a chain such as simplecache::s3://...; fsspec opens it, but cannot list through it in general
        return {pattern: stat(pattern, storage_options)}
    fs, path = open_filesystem(pattern, storage_options)
    if any(sign in path for sign in "*?["):
        found = retrying()(fs.glob, path, detail=True)
        listing = {name: info for name, info in found.items() if info["type"] == "file"}
        if not listing:
            raise FileNotFoundError(f"no file matches {pattern!r}")
        return {as_url(fs, name): entry_of(fs, name, info) for name, info in sorted(listing.items())}
    try:
        info = {"type": "directory"} if pattern.endswith("/") else retrying()(fs.info, path)
        if info["type"] != "directory":
            return {as_url(fs, path): entry_of(fs, path, info)}
        found = retrying()(fs.find, path, detail=True)
    except FileNotFoundError:
        found = {}
    if not found and not fs.exists(path):
        raise FileNotFoundError(f"{pattern!r} does not exist")
    runs = _folders_of_runs(path.rstrip("/"), found)
    found = {name: info for name, info in found.items() if not name.startswith(tuple(f"{run}/" for run in runs))}
    for run in runs:
        warnings.warn(
            f"{run} is what a run wrote and is not read as part of {pattern}; name it to read it", stacklevel=2
        )
    listing = {
        name: entry_of(fs, name, info)._replace(amid=True)
        for name, info in sorted(found.items())
        if name.lower().endswith(extensions + beside) and not _is_hidden(name)
    }
    if not any(name.lower().endswith(extensions) for name in listing):
        raise FileNotFoundError(f"the folder {pattern!r} holds no {' or '.join(extensions)} file")
    return {as_url(fs, name): entry for name, entry in listing.items()}


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
    runs |= {run for run in finished if f"{run}/shards.parquet" in names}
    return sorted(run for run in runs if run.startswith(f"{folder}/"))


def _given(urls: Paths) -> list[str]:
    return [os.fspath(url) for url in ([urls] if isinstance(urls, str | os.PathLike) else urls)]


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")
