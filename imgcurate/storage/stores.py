"""The filesystem of a URL, what it says of a file, and which of its errors pass."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

import fsspec
import tenacity
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.registry import known_implementations, registry

from imgcurate.printable import printable

Options = Mapping[str, Any] | None

# What the URL of a row may name by itself. fsspec knows many more protocols: some run what they read, or make of one URL many.
# "dir" leads only where the storage options say.
_PROTOCOLS = (
    "file", "local", "memory", "dir", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "hdfs", "hf", "http", "https",
)  # fmt: skip

# Errors that say what is so, not that something went wrong on the way.
_STAYING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_STAYING_CODES = {errno.EINVAL, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOSYS, errno.EBADF}
# Clients of stores have errors of their own for a connection that failed, which are no OSErrors. Looked up among the modules that
# are loaded: one that is not has raised nothing.
_NETWORK = (("botocore.exceptions", "HTTPClientError"), ("aiohttp", "ClientError"), ("urllib3.exceptions", "HTTPError"))
_EXPIRED = (("s3fs.utils", "FileExpired"),)  # the file is another one now, and stays it
# What filesystems call them.
_ETAGS = ("ETag", "etag", "Content-MD5")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")


class Entry(NamedTuple):
    """A file's size in bytes and its `etag`; None where a listing does not tell.

    Attributes
    ----------
    size : int or None
    etag : str or None
    amid : bool
        Whether all files of its folder that were asked for were listed with it.
    problem : str or None
        Why it cannot be read.
    """

    size: int | None
    etag: str | None
    amid: bool = False
    problem: str | None = None


def open_filesystem(url: str, storage_options: Options) -> tuple[Any, str]:
    """Return the filesystem of a URL and the path in it. What it remembers of listings is forgotten: files may have changed since.

    A path of this machine is taken as it is, whatever is in it.

    Raises
    ------
    ValueError
        Where the URL is a chain of several, or of a protocol that may not be in a row.
    ImportError
        Where the package that opens such URLs is not installed; says which one is.

    Examples
    --------
    >>> open_filesystem("/photos/cat::dog.jpg", None)[1]
    '/photos/cat::dog.jpg'
    >>> open_filesystem("reference://a::file:///b.json", None)
    Traceback (most recent call last):
    ValueError: 'reference://a::file:///b.json' is a chain of several URLs, which is not opened; copy the file and give its own URL
    """
    url = path_of(url)
    if is_local(url):
        # Not by what strips protocols, as which it takes the beginning of "file:x.jpg"; and "~.jpg" is nobody's home.
        path = os.path.join(os.getcwd(), make_path_posix(url))
        return fsspec.filesystem("file"), path.rstrip("/") or "/"
    check_protocol(url)
    try:
        fs, path = fsspec.core.url_to_fs(url, **(storage_options or {}))
    except ImportError as problem:
        if re.match(r"s3a?://", url):
            raise ImportError(f"{url} takes a package that is not installed: pip install 'imgcurate[s3]'") from problem
        raise ImportError(f"{url} takes a package that is not installed ({problem}): pip install it") from problem
    fs.invalidate_cache()
    return fs, path


def check_protocol(url: str) -> None:
    """Raise a ValueError where a URL is one that a row may not have: `open_filesystem` says which.

    A program may add protocols with ``fsspec.register_implementation``, on each worker.
    """
    if is_local(url):
        return
    if "::" in url:
        raise ValueError(
            f"{printable(url)!r} is a chain of several URLs, which is not opened; copy the file and give its own URL"
        )
    protocol = url.partition("://")[0]
    if protocol not in _PROTOCOLS and (protocol not in registry or protocol in known_implementations):
        raise ValueError(
            f"{printable(url)!r} has the protocol {printable(protocol)!r}, which is not opened; those that are: {', '.join(_PROTOCOLS)}"
        )


def is_local(url: str) -> bool:
    """Tell whether a URL of a row is a path on this machine, as `expand` writes them.

    Examples
    --------
    >>> is_local("/a::b://c.jpg"), is_local("a::b.jpg"), is_local("s3://bucket/a.jpg"), is_local("zip://a::b.zip")
    (True, True, False, False)
    """
    return url.startswith("/") or "://" not in url


def to_text(path: str) -> str:
    r"""Return a URL that a column of text can hold: of a path of this machine that is not UTF-8, its ``file://`` URL.

    Examples
    --------
    >>> to_text("/a::b%20.jpg"), to_text(os.fsdecode(b"/caf\xe9/a.jpg"))
    ('/a::b%20.jpg', 'file:///caf%E9/a.jpg')
    """
    return path if not is_local(path) or _is_text(path) else "file://" + quote_from_bytes(os.fsencode(path))


def path_of(url: str) -> str:
    r"""Return the path that a ``file://`` URL names, also one of `to_text`; any other URL as it is.

    Examples
    --------
    >>> path_of("file:///caf%E9/a.jpg") == os.fsdecode(b"/caf\xe9/a.jpg"), path_of("file:///a%20b.jpg"), path_of("s3://a/b.jpg")
    (True, '/a%20b.jpg', 's3://a/b.jpg')
    """
    if not url.startswith("file:///"):
        return url
    path = url.removeprefix("file://")
    plain = os.fsdecode(unquote_to_bytes(path))
    # Only what is not UTF-8 is escaped. In others, as fsspec has them, a percent sign is one.
    return path if _is_text(plain) else plain


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def absolute(url: str | os.PathLike[str], storage_options: Options = None) -> str:
    """Return a URL that means the same on every worker: local paths are made absolute."""
    return as_url(*open_filesystem(os.fspath(url), storage_options))


def as_url(fs: Any, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def uploads(fs: Any) -> bool:
    """Tell whether files of a filesystem come to be by an upload: stores, which fsspec talks to asynchronously, and which rename by copying."""
    return isinstance(fs, AsyncFileSystem)


def etag(url: str, storage_options: Options = None) -> str:
    """Return what tells a file's content now from its content at another time.

    Parameters
    ----------
    url : str
    storage_options : mapping, optional
        For the fsspec filesystem.

    Returns
    -------
    str
        The ETag that the store gives it. Where it gives none, as for local files, size and time of the last change.

    Raises
    ------
    OSError
        Where the file cannot be asked about, such as FileNotFoundError.

    Examples
    --------
    >>> fsspec.filesystem("memory").pipe("/a.bin", b"1")
    >>> before = etag("memory://a.bin")
    >>> fsspec.filesystem("memory").pipe("/a.bin", b"2")
    >>> etag("memory://a.bin") == before
    False
    """
    found = stat(url, storage_options)
    return str(found.size) if found.etag is None else found.etag


def stat(url: str, storage_options: Options = None) -> Entry:
    """Return a file's size and `etag` as they are now: one request."""
    if is_local(path := path_of(url)):
        return _local_entry(path)
    fs, path = open_filesystem(url, storage_options)
    return entry_of(fs, path, retrying()(fs.info, path))


def size_of(url: str, storage_options: Options = None) -> int:
    """Return a file's size in bytes."""
    return stat(url, storage_options).size or 0


def retrying() -> tenacity.Retrying:
    """Return what calls a function again where a store fails in a way that passes: four times at most, within ten seconds.

    Examples
    --------
    >>> answers = iter([TimeoutError(), "content"])
    >>> def ask():
    ...     answer = next(answers)
    ...     if isinstance(answer, Exception):
    ...         raise answer
    ...     return answer
    >>> retrying()(ask)
    'content'
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(passes),
        stop=tenacity.stop_after_attempt(4) | tenacity.stop_after_delay(10),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=4),
        reraise=True,
    )


def passes(problem: BaseException) -> bool:
    """Tell whether an error of reading or writing may be gone at the next attempt.

    Examples
    --------
    >>> passes(ConnectionResetError()), passes(FileNotFoundError()), passes(KeyError())
    (True, False, False)
    """
    if isinstance(problem, _client_errors(_NETWORK)):
        status = getattr(problem, "status", None)  # of an answer over HTTP; a 403 is 403 however often one asks
        return not isinstance(status, int) or status >= 500 or status in (408, 429)
    if isinstance(problem, (*_STAYING, *_client_errors(_EXPIRED))):
        return False
    return isinstance(problem, OSError) and problem.errno not in _STAYING_CODES


def _client_errors(names: tuple[tuple[str, str], ...]) -> tuple[type[BaseException], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


def entry_of(fs: Any, path: str, info: Mapping[str, Any]) -> Entry:
    if isinstance(fs, LocalFileSystem):
        return _local_entry(path, follow=os.path.exists(path))  # of a link to nothing, the link; reading it will fail
    etag = next((str(info[name]) for name in _ETAGS if info.get(name)), None)
    if etag is not None:
        return Entry(info.get("size"), etag.strip('"'))  # quoted in some answers and not in others
    changed = next((info[name] for name in _TIMES if info.get(name)), None)
    if changed is None:
        return Entry(info.get("size"), None)
    return Entry(
        info.get("size"), f"{info.get('size')}-{changed.timestamp() if isinstance(changed, datetime) else changed}"
    )


def _local_entry(path: str, follow: bool = True) -> Entry:
    # Asked of the system: fsspec tells the time in floats, which are coarser than the clock.
    found = os.stat(path, follow_symlinks=follow)
    return Entry(found.st_size, f"{found.st_size}-{found.st_mtime_ns}")
