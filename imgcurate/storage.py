"""Files wherever fsspec finds them: patterns to lists of URLs, and output that appears under its name only when it is whole."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO, NamedTuple, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import tenacity
from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from imgcurate import ranges

Options = Mapping[str, Any] | None
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

# What a file is uploaded in: S3 takes 10,000 parts, so that a file may have 156 GiB.
_PART_BYTES = 16 << 20


class Entry(NamedTuple):
    """A file's size in bytes and its `etag`; None where a listing does not tell.

    Attributes
    ----------
    size : int or None
    etag : str or None
    amid : bool
        Whether all files of its folder that were asked for were listed with it.
    """

    size: int | None
    etag: str | None
    amid: bool = False


def expand(
    urls: Paths, extensions: tuple[str, ...], storage_options: Options = None, *, beside: tuple[str, ...] = ()
) -> dict[str, Entry]:
    """Find the files that paths, globs, braces and folders name.

    Parameters
    ----------
    urls : str, path, or sequence of these
        Each a file, a folder (searched to the bottom), a glob, or a pattern such as ``"s3://bucket/{00000..00041}.tar"``.
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
    """
    patterns = _patterns(urls)
    if not patterns:
        raise ValueError("no path was given: name a file, a folder, a glob or a pattern with braces")
    names: list[str] = []
    for pattern in patterns:
        try:
            names += braceexpand(pattern)
        except UnbalancedBracesError:
            raise ValueError(f"{pattern!r}: the braces are not balanced") from None
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


def root_of(urls: Paths, storage_options: Options = None) -> str:
    """Return the deepest folder that holds all that `urls` name: a folder's own path, a glob's part before its first wildcard."""
    folders = []
    for pattern in _patterns(urls):
        fixed = pattern.partition("*")[0].partition("?")[0].partition("[")[0].partition("{")[0]
        fs, path = _filesystem(fixed, storage_options) if "::" not in fixed else (None, fixed)
        url = _as_url(fs, path) if fs is not None else path
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


def open_input(url: str, storage_options: Options = None, **kwargs: Any) -> contextlib.AbstractContextManager[BinaryIO]:
    """Open a file for reading bytes; `kwargs` are those of a filesystem's ``open``, for files that are not local."""
    if is_local(url):
        return open(url, "rb")  # fsspec's own wrapper costs a fifth of the time of listing a shard
    fs, path = _filesystem(url, storage_options)
    opened: contextlib.AbstractContextManager[BinaryIO] = fs.open(path, "rb", **kwargs)
    return opened


def open_ranges(url: str, storage_options: Options = None) -> contextlib.AbstractContextManager[BinaryIO]:
    """Open a file of which pieces are read that are as large as they should be: nothing is read ahead."""
    # In a chain the file may be one of this machine, which takes no such option.
    return open_input(url, storage_options, **({} if "::" in url else {"cache_type": "none"}))


@contextlib.contextmanager
def open_sequential(url: str, storage_options: Options = None) -> Iterator[BinaryIO]:
    """Open a file that is read from front to back, in part or as a whole: `imgcurate.ranges` decides what is asked of a store at once.

    Raises
    ------
    OSError
        Where a store does not answer, after some attempts, or gives fewer bytes than there should be.
    """
    if is_local(url) or "::" in url:
        with open_input(url, storage_options) as file:
            yield file
        return
    with retrying()(open_ranges, url, storage_options) as file:
        size = getattr(file, "size", None)
        if size is None:
            raise OSError(f"{url}: the server does not say how large it is, or cannot send a part; copy the file first")

        def fetch(start: int, stop: int) -> bytes:
            file.seek(start)
            content = file.read(stop - start)
            if len(content) < stop - start:
                raise OSError(f"{url}: {len(content)} bytes where {stop - start} were asked for")
            return content

        with ranges.Forward(partial(retrying(), fetch), size, url) as forward:
            yield cast(BinaryIO, forward)


def is_local(url: str) -> bool:
    """Tell whether a URL of a row is a path on this machine, as `expand` writes them."""
    return "://" not in url and "::" not in url


def size_of(url: str, storage_options: Options = None) -> int:
    """Return a file's size in bytes."""
    return stat(url, storage_options).size or 0


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
    if is_local(url):
        return _local_entry(url)
    fs, path = _filesystem(url, storage_options)
    return _entry(fs, path, retrying()(fs.info, path))


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


def read_if_there(url: str, storage_options: Options = None) -> bytes | None:
    """Return a file's content, or None where there is no such file."""

    def read() -> bytes:
        with open_input(url, storage_options) as file:
            return file.read()

    try:
        return retrying()(read)
    except FileNotFoundError:
        return None


def remove(url: str, storage_options: Options = None) -> None:
    """Remove a file, where it is there."""
    fs, path = _filesystem(url, storage_options)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def sizes_in(folder: str, storage_options: Options = None) -> dict[str, int]:
    """Return the names of the files in a folder, and their sizes in bytes; of a folder that is not there, none."""
    fs, path = _filesystem(folder, storage_options)
    try:
        listing = retrying()(fs.ls, path, detail=True)
    except FileNotFoundError:
        return {}
    return {info["name"].rpartition("/")[2]: info["size"] for info in listing if info["type"] == "file"}


# Errors that say what is so, not that something went wrong on the way.
_STAYING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_STAYING_CODES = {errno.EINVAL, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOSYS, errno.EBADF}
# Clients of stores have errors of their own for a connection that failed, which are no OSErrors. Looked up among the modules that
# are loaded: one that is not has raised nothing.
_NETWORK = (("botocore.exceptions", "HTTPClientError"), ("aiohttp", "ClientError"), ("urllib3.exceptions", "HTTPError"))
_EXPIRED = (("s3fs.utils", "FileExpired"),)  # the file is another one now, and stays it


def _client_errors(names: tuple[tuple[str, str], ...]) -> tuple[type[BaseException], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


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
    """Give a folder to write files into that are in `url`, under their names, when the block ends, and never if it raises.

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
        The folder to write into with `open_atomic`, as every worker can open it: one beside the files that are there, whose files
        are renamed when all are whole. A store renames by copying, so there files are written under their own names where none
        are to be replaced, and are seen one by one.

    Raises
    ------
    FileExistsError
        Where such files are there and `overwrite` is false, or where `url` is a file.
    """
    fs, path = _filesystem(os.fspath(url), storage_options)
    path = path.rstrip("/")
    if fs.isfile(path):
        raise FileExistsError(f"{url} is a file; name a folder for the output")
    if not _uploads(fs):  # whose folders are parts of names
        fs.makedirs(path, exist_ok=True)
    earlier = _names(fs, path, extension)
    if earlier and not overwrite:
        raise FileExistsError(
            f"{url} already holds {len(earlier)} {extension} file{'s' * (len(earlier) > 1)}; name another folder, or pass overwrite=True"
        )
    at_once = _uploads(fs) and not earlier
    folder = path if at_once else f"{path}/{_unfinished()}"
    if not _uploads(fs):
        fs.makedirs(folder)
    try:
        yield _as_url(fs, folder)
        if not at_once:
            written = _names(fs, folder, extension)
            for name in written:
                fs.mv(name, f"{path}/{name.rpartition('/')[2]}")
            replaced = {name.rpartition("/")[2] for name in written}
            for name in earlier:
                if name.rpartition("/")[2] not in replaced:
                    fs.rm_file(name)
    except BaseException:
        if at_once:
            for name in _names(fs, path, extension):
                fs.rm_file(name)
        raise
    finally:
        if not at_once:
            with contextlib.suppress(FileNotFoundError):
                fs.rm(folder, recursive=True)


def _names(fs: Any, folder: str, extension: str) -> list[str]:
    """Return the files of an extension in a folder, in order; none where it does not exist."""
    fs.invalidate_cache()
    try:
        return sorted(name for name in fs.ls(folder, detail=False) if name.endswith(extension))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def open_atomic(url: str, storage_options: Options = None) -> Iterator[BinaryIO]:
    """Open a file for writing bytes that is there, under its name and whole, when the block ends, and never if it raises.

    Parameters
    ----------
    url : str
        Its folder is made where it is missing. A file that is there is replaced.
    storage_options : mapping, optional
        For the fsspec filesystem.

    Yields
    ------
    binary file object

    Notes
    -----
    On a filesystem that can rename, the file is written as ``.unfinished-<hex>`` in the same folder; on a disk of this machine
    it is brought to the disk before it is renamed, and so is the folder after. On an object store it is one upload, completed at
    the end: one that is not is no file there.

    Examples
    --------
    >>> with open_atomic("memory://folder/a.txt") as file:
    ...     _ = file.write(b"content")
    >>> read_if_there("memory://folder/a.txt")
    b'content'
    """
    fs, path = _filesystem(url, storage_options)
    if isinstance(fs, LocalFileSystem):
        writing = _replacing_local(path)
    elif _uploads(fs):
        writing = _uploading(fs, path)
    else:
        writing = _replacing(fs, path)
    with writing as file:
        yield file


@contextlib.contextmanager
def _replacing_local(path: str) -> Iterator[BinaryIO]:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    unfinished = f"{folder}/{_unfinished()}"
    try:
        with open(unfinished, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Bring the names in a folder to the disk: a rename that is only in memory is lost with the machine's power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        if problem.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some network filesystems know no such thing for folders
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _replacing(fs: Any, path: str) -> Iterator[BinaryIO]:
    folder, _, _name = path.rpartition("/")
    fs.makedirs(folder, exist_ok=True)
    unfinished = f"{folder}/{_unfinished()}"
    try:
        with fs.open(unfinished, "wb") as file:
            yield file
        fs.mv(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(unfinished)
        raise


@contextlib.contextmanager
def _uploading(fs: Any, path: str) -> Iterator[BinaryIO]:
    upload = _Upload(fs, path)
    try:
        yield cast(BinaryIO, upload)
        upload.complete()
    except BaseException:
        upload.abort()
        raise


class _Upload(io.RawIOBase):
    """A file on its way to a store: one request where it is small, which can be made again, or an upload in parts."""

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path
        self._small, self._size = io.BytesIO(), 0
        self._parts: Any = None

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, content: Any) -> int:
        size = memoryview(content).nbytes
        if self._parts is None and self._size + size > _PART_BYTES:
            self._parts = self._fs.open(self._path, "wb", block_size=_PART_BYTES)
            self._parts.write(self._small.getvalue())
            self._small = io.BytesIO()
        (self._small if self._parts is None else self._parts).write(content)
        self._size += size
        return size

    def complete(self) -> None:
        if self._parts is None:
            retrying()(self._fs.pipe_file, self._path, self._small.getvalue())
        else:
            self._parts.close()

    def abort(self) -> None:
        if self._parts is not None:
            with contextlib.suppress(Exception):  # what is wrong with the store is wrong with this too, and says less
                self._parts.discard()
            self._parts.closed = True  # or its finalizer would complete the upload


def _uploads(fs: Any) -> bool:
    """Tell whether files of a filesystem come to be by an upload: stores, which fsspec talks to asynchronously, and which rename by copying."""
    return isinstance(fs, AsyncFileSystem)


def _unfinished() -> str:
    return f".unfinished-{uuid.uuid4().hex[:12]}"


def write_parquet_table(table: pa.Table, url: str, storage_options: Options = None) -> None:
    """Write an Arrow table as one Parquet file."""
    with open_atomic(url, storage_options) as file:
        pq.write_table(table, file, compression="zstd")


def read_parquet_table(url: str, columns: list[str] | None = None, storage_options: Options = None) -> pa.Table:
    """Read one Parquet file, or some of its columns, as an Arrow table."""
    with open_input(url, storage_options) as file:
        return pq.read_table(file, columns=columns)


def _as_url(fs: Any, path: str) -> str:
    return path if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


def _patterns(urls: Paths) -> list[str]:
    return [os.fspath(url) for url in ([urls] if isinstance(urls, str | os.PathLike) else urls)]


def _filesystem(url: str, storage_options: Options) -> tuple[Any, str]:
    """Return the filesystem of a URL and the path in it. What it remembers of listings is forgotten: files may have changed since."""
    fs, path = fsspec.core.url_to_fs(url, **(storage_options or {}))
    fs.invalidate_cache()
    return fs, path


def _find(
    pattern: str, extensions: tuple[str, ...], beside: tuple[str, ...], storage_options: Options
) -> dict[str, Entry]:
    if "::" in pattern:  # a chain such as simplecache::s3://...; fsspec opens it, but cannot list through it in general
        return {pattern: stat(pattern, storage_options)}
    fs, path = _filesystem(pattern, storage_options)
    if any(sign in path for sign in "*?["):
        found = retrying()(fs.glob, path, detail=True)
        listing = {name: info for name, info in found.items() if info["type"] == "file"}
        if not listing:
            raise FileNotFoundError(f"no file matches {pattern!r}")
        return {_as_url(fs, name): _entry(fs, name, info) for name, info in sorted(listing.items())}
    try:
        info = {"type": "directory"} if pattern.endswith("/") else retrying()(fs.info, path)
        if info["type"] != "directory":
            return {_as_url(fs, path): _entry(fs, path, info)}
        found = retrying()(fs.find, path, detail=True)
    except FileNotFoundError:
        found = {}
    if not found and not fs.exists(path):
        raise FileNotFoundError(f"{pattern!r} does not exist")
    listing = {
        name: _entry(fs, name, info)._replace(amid=True)
        for name, info in sorted(found.items())
        if name.lower().endswith(extensions + beside) and not _is_hidden(name)
    }
    if not any(name.lower().endswith(extensions) for name in listing):
        raise FileNotFoundError(f"the folder {pattern!r} holds no {' or '.join(extensions)} file")
    return {_as_url(fs, name): entry for name, entry in listing.items()}


# What filesystems call them.
_ETAGS = ("ETag", "etag", "Content-MD5")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")


def _entry(fs: Any, path: str, info: Mapping[str, Any]) -> Entry:
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


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")
