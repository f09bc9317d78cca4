"""Files wherever fsspec finds them: patterns to lists of URLs, and output that appears under its name only when it is whole."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]
from fsspec.implementations.local import LocalFileSystem

Options = Mapping[str, Any] | None
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def expand(urls: Paths, extensions: tuple[str, ...], storage_options: Options = None) -> dict[str, int | None]:
    """Find the files that paths, globs, braces and folders name.

    Parameters
    ----------
    urls : str, path, or sequence of these
        Each a file, a folder (searched to the bottom), a glob, or a pattern such as ``"s3://bucket/{00000..00041}.tar"``.
    extensions : tuple of str
        What a file of a folder must end in, in lower case, such as ``(".tar",)``. A file that is named is taken as it is.
    storage_options : mapping, optional
        For the fsspec filesystem.

    Returns
    -------
    dict of str to int or None
        URL as fsspec opens it to size in bytes, in order; the size is None where it was not asked for.

    Raises
    ------
    FileNotFoundError
        Where a pattern finds nothing.
    ValueError
        Where no pattern is given, one file is named twice, or braces are not balanced.
    """
    patterns = _patterns(urls)
    if not patterns:
        raise ValueError("no path was given: name a file, a folder, a glob or a pattern with braces")
    found: dict[str, int | None] = {}
    for pattern in patterns:
        try:
            names = list(braceexpand(pattern))
        except UnbalancedBracesError:
            raise ValueError(f"{pattern!r}: the braces are not balanced") from None
        for name in names:
            for url, size in _find(name, extensions, storage_options).items():
                if url in found:
                    raise ValueError(f"{url} is named twice; name each file once")
                found[url] = size
    return found


def root_of(urls: Paths) -> str:
    """Return the deepest folder that holds all that `urls` name: a folder's own path, a glob's part before its first wildcard."""
    folders = []
    for pattern in _patterns(urls):
        fixed = pattern.partition("*")[0].partition("?")[0].partition("[")[0].partition("{")[0]
        fs, path = fsspec.core.url_to_fs(fixed) if "::" not in fixed else (None, fixed)
        is_folder = fixed == pattern and (
            os.path.isdir(path) if isinstance(fs, LocalFileSystem) else pattern.endswith("/")
        )
        url = _as_url(fs, path) if fs is not None else path
        folders.append(url.rstrip("/") if is_folder or fixed.endswith("/") else url.rpartition("/")[0])
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


def open_input(url: str, storage_options: Options = None, **kwargs: Any) -> contextlib.AbstractContextManager[BinaryIO]:
    """Open a file for reading bytes; `kwargs` are fsspec's, for files that are not local."""
    if is_local(url):
        return open(url, "rb")  # fsspec's own wrapper costs a fifth of the time of listing a shard
    return fsspec.open(url, "rb", **{**(storage_options or {}), **kwargs})


def open_ranges(url: str, storage_options: Options = None) -> contextlib.AbstractContextManager[BinaryIO]:
    """Open a file of which pieces are read that are as large as they should be: nothing is read ahead."""
    if is_local(url) or "::" in url:
        return open_input(url, storage_options)
    fs, path = fsspec.core.url_to_fs(url, **(storage_options or {}))
    opened: contextlib.AbstractContextManager[BinaryIO] = fs.open(path, "rb", cache_type="none")
    return opened


def is_local(url: str) -> bool:
    """Tell whether a URL of a row is a path on this machine, as `expand` writes them."""
    return "://" not in url and "::" not in url


def size_of(url: str, storage_options: Options = None) -> int:
    """Return a file's size in bytes."""
    if is_local(url):
        return os.path.getsize(url)
    fs, path = fsspec.core.url_to_fs(url, **(storage_options or {}))
    return int(fs.size(path))


def read_if_there(url: str, storage_options: Options = None) -> bytes | None:
    """Return a file's content, or None where there is no such file."""
    try:
        with open_input(url, storage_options) as file:
            return file.read()
    except FileNotFoundError:
        return None


def replace_extension(url: str, extension: str) -> str:
    """Return `url` with another extension.

    Examples
    --------
    >>> replace_extension("a.b/cat.v1.jpg", ".txt")
    'a.b/cat.v1.txt'
    """
    return os.path.splitext(url)[0] + extension


def absolute(url: str | os.PathLike[str], storage_options: Options = None) -> str:
    """Return a URL that means the same on every worker: local paths are made absolute."""
    fs, path = fsspec.core.url_to_fs(os.fspath(url), **(storage_options or {}))
    return _as_url(fs, path)


@contextlib.contextmanager
def staged_folder(
    url: str | os.PathLike[str], extension: str, *, overwrite: bool = False, storage_options: Options = None
) -> Iterator[str]:
    """Give a folder to write files into that appear in `url`, under their names, when the block ends, and never if it raises.

    Parameters
    ----------
    url : str or path
        The folder for the output; made if it is not there.
    extension : str
        Of the files that are written, such as ``".tar"``.
    overwrite : bool, default False
        Replace files of that extension that are there already. They go when the new ones are whole, so a job may read what it
        replaces.
    storage_options : mapping, optional
        For the fsspec filesystem.

    Yields
    ------
    str
        The folder to write into, as every worker can open it.

    Raises
    ------
    FileExistsError
        Where such files are there and `overwrite` is false, or where `url` is a file.
    """
    fs, path = fsspec.core.url_to_fs(os.fspath(url), **(storage_options or {}))
    path = path.rstrip("/")
    if fs.isfile(path):
        raise FileExistsError(f"{url} is a file; name a folder for the output")
    fs.makedirs(path, exist_ok=True)
    earlier = [name for name in fs.ls(path, detail=False) if name.endswith(extension)]
    if earlier and not overwrite:
        raise FileExistsError(
            f"{url} already holds {len(earlier)} {extension} file{'s' * (len(earlier) > 1)}; name another folder, or pass overwrite=True"
        )
    staging = f"{path}/.unfinished-{uuid.uuid4().hex[:12]}"
    fs.makedirs(staging)
    try:
        yield _as_url(fs, staging)
        for name in earlier:
            fs.rm_file(name)
        for name in sorted(fs.ls(staging, detail=False)):
            fs.mv(name, f"{path}/{name.rpartition('/')[2]}")
    finally:
        with contextlib.suppress(FileNotFoundError):
            fs.rm(staging, recursive=True)


def open_output(url: str, storage_options: Options = None) -> contextlib.AbstractContextManager[BinaryIO]:
    """Open a file for writing bytes."""
    return fsspec.open(url, "wb", **(storage_options or {}))


def write_parquet_table(table: pa.Table, url: str, storage_options: Options = None) -> None:
    """Write an Arrow table as one Parquet file."""
    with open_output(url, storage_options) as file:
        pq.write_table(table, file, compression="zstd")


def read_parquet_table(url: str, columns: list[str] | None = None, storage_options: Options = None) -> pa.Table:
    """Read one Parquet file, or some of its columns, as an Arrow table."""
    with open_input(url, storage_options) as file:
        return pq.read_table(file, columns=columns)


def _as_url(fs: Any, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _patterns(urls: Paths) -> list[str]:
    return [os.fspath(url) for url in ([urls] if isinstance(urls, str | os.PathLike) else urls)]


def _find(pattern: str, extensions: tuple[str, ...], storage_options: Options) -> dict[str, int | None]:
    if "::" in pattern:  # a chain such as simplecache::s3://...; fsspec opens it, but cannot list through it in general
        return {pattern: None}
    fs, path = fsspec.core.url_to_fs(pattern, **(storage_options or {}))
    if any(sign in path for sign in "*?["):
        listing = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
        if not listing:
            raise FileNotFoundError(f"no file matches {pattern!r}")
    elif isinstance(fs, LocalFileSystem) and not fs.exists(path):
        raise FileNotFoundError(f"{pattern!r} does not exist")
    elif fs.isdir(path):
        listing = {
            n: i for n, i in fs.find(path, detail=True).items() if n.lower().endswith(extensions) and not _is_hidden(n)
        }
        if not listing:
            raise FileNotFoundError(f"the folder {pattern!r} holds no {' or '.join(extensions)} file")
    else:
        return {_as_url(fs, path): None}
    return {_as_url(fs, name): info.get("size") for name, info in sorted(listing.items())}


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")
