"""Rows -> the bytes of their images: one pass over each file, in pieces, each row's or the reason why not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

from imgcurate import storage, tar
from imgcurate.pixels.errors import PixelError
from imgcurate.pixels.formats import MAX_BYTES

T = TypeVar("T")

# Images that follow each other in a file are read in one piece of at most so many bytes, with what lies between them where that is
# little: a store answers a question in tens of milliseconds, in which it would have sent a megabyte.
_LOCAL_PIECE, _LOCAL_GAP = 4 << 20, 128 << 10
_REMOTE_PIECE, _REMOTE_GAP = 32 << 20, 1 << 20


def read_images(
    rows: Iterable[tuple[str, int | None, int | None]],
    storage_options: Mapping[str, Any] | None = None,
    etags: Mapping[str, Collection[str]] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Iterator[bytes | PixelError]:
    """Read the bytes of each row, in order: one pass over each file, in pieces of a few megabytes.

    Parameters
    ----------
    rows : iterable of (url, offset, size)
        As in the columns of a frame. A file is opened once for every run of rows that lie in it, and read from front to back
        where they are in order.
    storage_options : mapping, optional
        Passed to fsspec.
    etags : mapping of str to collection of str, optional
        What the files' `storage.etag` was when they were listed, by url. It is asked before and after a run of rows is read.
    max_bytes : int, default 268_435_455
        Of a larger image nothing is read.

    Yields
    ------
    bytes or PixelError
        An error, such as ``"read: No such file or directory"``, where the bytes cannot be had in full, after several attempts where
        that may help.

    Raises
    ------
    imgcurate.tar.ShardChanged
        Where a file's etag is no longer what it was.

    Examples
    --------
    >>> import fsspec
    >>> fs = fsspec.filesystem("memory")
    >>> fs.pipe("/a.bin", b"0123456789")
    >>> list(read_images([("memory://a.bin", 2, 3), ("memory://a.bin", 8, 4)]))
    [b'234', PixelError('read: 2 bytes where there should be 4; the file is shorter than when it was listed')]
    """
    opening, reading = _Again(), _Again()
    for url, run in itertools.groupby(rows, key=itemgetter(0)):
        listed = (etags or {}).get(url, ())
        with ExitStack() as stack:
            try:
                file = stack.enter_context(opening(partial(storage.open_ranges, url, storage_options)))
                tar.refuse_changed(url, listed, storage_options)
            except tar.ShardChanged:
                raise
            except Exception as problem:
                # The whole run shares the verdict: asking a dead server once a row would take hours.
                yield from (_read_error(problem) for _ in run)
                continue
            places = (_place(offset, size, max_bytes) for _, offset, size in run)
            for piece in _pieces(places, storage.is_local(storage.path_of(url))):
                yield from _read_piece(file, url, piece, storage_options, reading)
        try:
            tar.refuse_changed(url, listed, storage_options)
        except tar.ShardChanged:
            raise
        except Exception:
            # It was read all the same, and what is copied from it will be compared with its digest.
            continue


Place = tuple[int, int]


def _place(offset: int | None, size: int | None, max_bytes: int) -> Place | PixelError:
    if offset is None or size is None or not (offset >= 0 and size >= 0):
        return PixelError("read", "the row has no offset and size")
    if size > max_bytes:
        return PixelError("read", f"{size:,} bytes are more than the limit of {max_bytes:,}; max_bytes= sets it")
    # Other tools store integers that may be null as floats.
    return int(offset), int(size)


def _pieces(places: Iterable[Place | PixelError], local: bool) -> Iterator[list[Place] | PixelError]:
    """Gather places that follow each other closely, up to some megabytes; what is no place stands by itself."""
    largest, gap = (_LOCAL_PIECE, _LOCAL_GAP) if local else (_REMOTE_PIECE, _REMOTE_GAP)
    piece: list[Place] = []
    for place in places:
        if piece and not isinstance(place, PixelError):
            (start, _), end, (offset, size) = piece[0], sum(piece[-1]), place
            if end <= offset <= end + gap and offset + size - start <= largest:
                piece.append(place)
                continue
        if piece:
            yield piece
        piece = []
        if isinstance(place, PixelError):
            yield place
        else:
            piece = [place]
    if piece:
        yield piece


def _read_piece(
    file: Any, url: str, places: list[Place] | PixelError, storage_options: Mapping[str, Any] | None, reading: _Again
) -> Iterator[bytes | PixelError]:
    if isinstance(places, PixelError):
        yield places
        return
    start, end = places[0][0], sum(places[-1])

    def read() -> bytes:
        file.seek(start)
        data: bytes = file.read(end - start)
        if len(data) < end - start and not storage.is_local(url) and storage.size_of(url, storage_options) >= end:
            raise OSError(f"{len(data)} of {end - start} bytes came, and then the connection ended")
        return data

    try:
        data = reading(read)
    except Exception as problem:
        yield from (_read_error(problem) for _ in places)
        return
    for offset, size in places:
        image = data if len(places) == 1 else data[offset - start : offset - start + size]
        if len(image) != size:
            text = f"{len(image)} bytes where there should be {size}; the file is shorter than when it was listed"
            yield PixelError("read", text)
        else:
            yield image


class _Again:
    """Tries again what failed; after something has failed for good, all once only, until something succeeds.

    Where a store has gone away, waiting for it at every file would take days.
    """

    def __init__(self) -> None:
        self.worn = False

    def __call__(self, function: Callable[[], T]) -> T:
        retrying = storage.retrying()
        try:
            result = function() if self.worn else retrying(function)
        except Exception:
            self.worn = self.worn or retrying.statistics["attempt_number"] > 1
            raise
        self.worn = False
        return result


def _read_error(problem: Exception) -> PixelError:
    return PixelError("read", getattr(problem, "strerror", None) or str(problem) or type(problem).__name__)
