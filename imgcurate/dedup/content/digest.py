"""Images whose stored bytes are the same: a digest to find them by, and the comparison that proves it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from imgcurate import pixels, storage
from imgcurate.images import columns_like, digests_of, host_columns, map_images

_BLOCK = 1 << 20


def digest_part(part: Any, storage_options: Mapping[str, Any] | None = None, max_bytes: int = pixels.MAX_BYTES) -> Any:
    """Digest the stored bytes of the images of one partition; nothing is decoded.

    Parameters
    ----------
    part : pandas or cuDF DataFrame of n rows
        With columns ``url``, ``offset``, ``bytes`` and perhaps ``error``, ``etag`` and ``digest``. Rows that have an error or a digest are not
        read.
    storage_options : mapping, optional
        Passed to fsspec.
    max_bytes : int
        A larger image is an error, and is not read.

    Returns
    -------
    pandas or cuDF DataFrame of n rows
        Columns ``error`` (string: the row's own, else "read: ..." where its bytes cannot be had, else null) and ``digest`` (string of 32
        hexadecimal digits, null where there was none and the bytes could not be read). Of no rows it is Dask's meta.

    Raises
    ------
    imgcurate.tar.ShardChanged
        Where a file is no longer what ``etag`` says.
    ValueError
        Where ``digest`` holds something else than digests.

    Notes
    -----
    XXH3-128 of the xxHash library (Y. Collet). It hashes faster than disks deliver, and chance will not make two images
    collide, but people can, easily: `same_bytes` must confirm what is to be removed.

    Examples
    --------
    >>> import fsspec, pandas as pd
    >>> fsspec.filesystem("memory").pipe("/twins.bin", b"abcabcxyz")
    >>> digests = digest_part(pd.DataFrame({"url": ["memory://twins.bin"] * 3, "offset": [0, 3, 6], "bytes": [3, 3, 3]}))
    >>> digests["digest"].nunique()
    2
    """
    digests = digests_of(part)
    errors = host_columns(part, ["error"]).get("error", [None] * len(part))
    unread = np.array([row for row, digest in enumerate(digests) if digest is None], dtype=np.int64)
    made = map_images(part.iloc[unread], lambda data: (), {}, storage_options, max_bytes=max_bytes)
    read = host_columns(made, ["error", "digest"])
    for row, error, digest in zip(unread, read["error"], read["digest"], strict=True):
        errors[row], digests[row] = error, digest
    return columns_like(part, {"error": pa.array(errors, pa.string()), "digest": pa.array(digests, pa.string())})


def halves(digests: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the high and the low 64 bits of digests in hexadecimal; of nulls 0.

    Examples
    --------
    >>> high, low = halves(pa.chunked_array([["0000000000000001000000000000000f", None]]))
    >>> high, low
    (array([1, 0], dtype=uint64), array([15,  0], dtype=uint64))
    """
    plain = bytes.fromhex("".join(digests.fill_null("0" * 32).to_pylist()))
    high, low = np.frombuffer(plain, dtype=">u8").reshape(-1, 2).astype(np.uint64).T
    return high, low


def same_bytes(part_a: Any, part_b: Any, storage_options: Mapping[str, Any] | None = None) -> np.ndarray:
    """Compare the stored bytes of each row of one partition with those of the same row of another.

    Parameters
    ----------
    part_a, part_b : pandas or cuDF DataFrame of n rows
        With columns ``url``, ``offset`` and ``bytes``; matched by position, not by index.
    storage_options : mapping, optional
        Passed to fsspec.

    Returns
    -------
    numpy.ndarray of shape (n,), bool
        True where all bytes were read from both places and are equal. What cannot be read is not the same.

    Raises
    ------
    ValueError
        Where the partitions are not of one length.

    Notes
    -----
    Images of different sizes are not read. One mebibyte of each of two images is held at a time, however large they are.

    Examples
    --------
    >>> import fsspec, pandas as pd
    >>> fsspec.filesystem("memory").pipe("/twins.bin", b"abcabcxyz")
    >>> first = pd.DataFrame({"url": ["memory://twins.bin"] * 2, "offset": [0, 0], "bytes": [3, 3]})
    >>> same_bytes(first, first.assign(offset=[3, 6]))
    array([ True, False])
    """
    if len(part_a) != len(part_b):
        raise ValueError(f"same_bytes compares row by row: {len(part_a)} rows cannot be compared with {len(part_b)}")
    pairs = [
        _Pair(row, url_a, url_b, int(offset_a), int(offset_b), int(size_a))
        for row, ((url_a, offset_a, size_a), (url_b, offset_b, size_b)) in enumerate(
            zip(_references(part_a), _references(part_b), strict=True)
        )
        if None not in (url_a, url_b, offset_a, offset_b, size_a) and size_a == size_b
    ]
    pairs.sort(key=lambda pair: (pair.url_a, pair.url_b, pair.offset_a))
    runs = [list(run) for _, run in itertools.groupby(pairs, key=lambda pair: (pair.url_a, pair.url_b))]
    same = np.zeros(len(part_a), dtype=bool)
    for run in runs:
        same[_same_rows(run, storage_options)] = True
    return same


class _Pair(NamedTuple):
    row: int
    url_a: str
    url_b: str
    offset_a: int
    offset_b: int
    size: int


def _references(part: Any) -> Iterator[tuple[Any, Any, Any]]:
    columns = host_columns(part, ["url", "offset", "bytes"])
    return zip(columns["url"], columns["offset"], columns["bytes"], strict=True)


def _same_rows(run: list[_Pair], storage_options: Mapping[str, Any] | None) -> list[int]:
    """Return the rows of those pairs, all of the same two files, whose bytes are equal."""
    rows = []
    # fsspec's stores raise what they like; a file that cannot be opened has no row that is the same.
    with suppress(Exception), ExitStack() as stack:
        a = stack.enter_context(storage.open_input(run[0].url_a, storage_options))
        b = stack.enter_context(storage.open_input(run[0].url_b, storage_options))
        for pair in run:
            with suppress(Exception):
                if _same_ranges(a, b, pair):
                    rows.append(pair.row)
    return rows


def _same_ranges(a: BinaryIO, b: BinaryIO, pair: _Pair) -> bool:
    for start in range(0, pair.size, _BLOCK):
        wanted = min(_BLOCK, pair.size - start)
        block = _read(a, pair.offset_a + start, wanted)
        if len(block) != wanted or block != _read(b, pair.offset_b + start, wanted):
            return False
    return pair.size >= 0


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    # Sought at every block: some of fsspec's stores give all who open a file the same handle.
    file.seek(offset)
    return file.read(size)
