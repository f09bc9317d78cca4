"""Files that are there, under their names, when they are whole, and never otherwise."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from imgcurate.storage.stores import Options, as_url, open_filesystem, retrying, uploads

# What a file is uploaded in: S3 takes 10,000 parts, so that a file may have 156 GiB.
_PART_BYTES = 16 << 20


@contextlib.contextmanager
def open_atomic(url: str, storage_options: Options = None, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing bytes that is there, under its name and whole, when the block ends, and never if it raises.

    Parameters
    ----------
    url : str
        Its folder is made where it is missing. A file that is there is replaced.
    storage_options : mapping, optional
        For the fsspec filesystem.
    durable : bool, default True
        Whether a file on a disk of this machine is to outlive a loss of power: what a process makes for itself need not wait for the disk.

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
    >>> import fsspec
    >>> with open_atomic("memory://folder/a.txt") as file:
    ...     _ = file.write(b"content")
    >>> fsspec.filesystem("memory").cat("/folder/a.txt")
    b'content'
    """
    fs, path = open_filesystem(url, storage_options)
    if isinstance(fs, LocalFileSystem):
        writing = _replacing_local(path, durable)
    elif uploads(fs):
        writing = _uploading(fs, path)
    else:
        writing = _replacing(fs, path)
    with writing as file:
        yield file


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
        Replace files of that extension that are there already. They go when the new ones are whole.
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
    fs, path = open_filesystem(os.fspath(url), storage_options)
    path = path.rstrip("/")
    if fs.isfile(path):
        raise FileExistsError(f"{url} is a file; name a folder for the output")
    if not uploads(fs):  # whose folders are parts of names
        fs.makedirs(path, exist_ok=True)
    earlier = _names(fs, path, extension)
    if earlier and not overwrite:
        raise FileExistsError(
            f"{url} already holds {len(earlier)} {extension} file{'s' * (len(earlier) > 1)}; name another folder, or pass overwrite=True"
        )
    at_once = uploads(fs) and not earlier
    folder = path if at_once else f"{path}/{_unfinished()}"
    if not uploads(fs):
        fs.makedirs(folder)
    try:
        yield as_url(fs, folder)
        if not at_once:
            written = _names(fs, folder, extension)
            for name in written:
                fs.mv(name, f"{path}/{name.rpartition('/')[2]}")
            replaced = {name.rpartition("/")[2] for name in written}
            for name in earlier:
                if name.rpartition("/")[2] not in replaced:
                    fs.rm_file(name)
            if isinstance(fs, LocalFileSystem):
                _sync_folder(path)
    except BaseException:
        if at_once:
            for name in _names(fs, path, extension):
                fs.rm_file(name)
        raise
    finally:
        if not at_once:
            with contextlib.suppress(FileNotFoundError):
                fs.rm(folder, recursive=True)


def remove(url: str, storage_options: Options = None) -> None:
    """Remove a file, where it is there."""
    fs, path = open_filesystem(url, storage_options)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def _names(fs: Any, folder: str, extension: str) -> list[str]:
    """Return the files of an extension in a folder, in order; none where it does not exist."""
    fs.invalidate_cache()
    try:
        return sorted(name for name in fs.ls(folder, detail=False) if name.endswith(extension))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _replacing_local(path: str, durable: bool = True) -> Iterator[BinaryIO]:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    unfinished = f"{folder}/{_unfinished()}"
    try:
        with open(unfinished, "xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as problem:
        if isinstance(problem, OSError) and problem.errno is not None and problem.filename in (None, unfinished):
            # A full disk does not say which file it had no room for, and nobody knows the unfinished one's name.
            problem.filename = path
            if problem.filename2 is not None:
                del problem.filename2
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise
    if durable:
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


def _unfinished() -> str:
    return f".unfinished-{uuid.uuid4().hex[:12]}"
