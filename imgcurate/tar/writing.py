"""The headers of the members that are written."""

from __future__ import annotations

import math
import tarfile

from imgcurate.tar.extended import records_of
from imgcurate.tar.fields import BLOCK

#: What ends an archive.
END = bytes(2 * BLOCK)

# What every reader of tar takes, in headers and in PAX records: the user of a 32-bit system, and a time until the year 2242.
_OWNERS, _SECONDS = 1 << 32, 8**11


def header(name: str, size: int, like: bytes | None = None) -> bytes:
    """Make the header of a member.

    Parameters
    ----------
    name : str
        A long one gets a PAX extended header.
    size : int
    like : bytes, optional
        The headers of another member, extended ones included, whose mode, time and owner it takes as far as a header can hold them.

    Returns
    -------
    bytes
        A multiple of 512.

    Examples
    --------
    >>> len(header("a.jpg", 5)), len(header("a" * 300, 5))
    (512, 1536)
    """
    info = tarfile.TarInfo(name)
    info.size = size
    if like is not None:
        other = tarfile.TarInfo.frombuf(like[-BLOCK:], "utf-8", "surrogateescape")
        records = records_of(like)
        info.mode, info.uname, info.gname = other.mode & 0o7777, other.uname, other.gname
        info.uid = int(_held(records.get(b"uid"), other.uid, 0, _OWNERS))
        info.gid = int(_held(records.get(b"gid"), other.gid, 0, _OWNERS))
        info.mtime = _held(records.get(b"mtime"), other.mtime, -_SECONDS, _SECONDS)
    return info.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of `size` bytes of content."""
    return bytes(-size % BLOCK)


def _held(record: bytes | None, number: float, least: int, limit: int) -> float:
    """Return the number in a PAX record, or else in the header, where a header can hold it, or else 0."""
    try:
        number = number if record is None else float(record)
    except ValueError:
        number = 0
    return number if math.isfinite(number) and least <= number < limit else 0
