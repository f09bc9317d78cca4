"""The headers of a tar, walked one after another, with bounds on every number in them.

Readers of tar disagree on headers that no writer should make. What is trusted here is what Python's tarfile, GNU tar and bsdtar read alike; a
member of which they make different things has a `problem`, and where they find different members after it the archive is damaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from imgcurate.tar.extended import EXTENDED, Extended, Records, content_of
from imgcurate.tar.fields import BLOCK, DIRECTORY, SPARSE, DamagedTar, padded, parse
from imgcurate.tar.names import is_unsafe, printable, shown, split_name

_ZEROS = bytes(BLOCK)
_CHUNK = 128 * BLOCK
# The types of files, and of what has no content whatever its size says: links, directories, devices.
_FILES, _WITHOUT_CONTENT = b"07\0", b"123456"


class Member(NamedTuple):
    """A file in a tar.

    Attributes
    ----------
    name : str
        As stored; bytes that are not UTF-8 are shown as backslash escapes.
    key, extension : str
        As `split_name` gives them; empty where the file is part of no sample.
    start, stop : int
        The member as a run of bytes: its headers, with extended ones, its content, and the padding after it.
    offset, size : int
        Its content, as far as it is there.
    problem : str or None
        Why the content is not simply those bytes (a link, a sparse file), or the name not safe, or not the same to all readers.
    content : bytes or None
        Where it was asked for.
    """

    name: str
    key: str
    extension: str
    start: int
    stop: int
    offset: int
    size: int
    problem: str | None = None
    content: bytes | None = None


def walk(file: BinaryIO, start: int, stop: int, *, whole: bool = True) -> Iterator[Member]:
    """Yield the members of a tar but for directories, in order, from their headers.

    Parameters
    ----------
    file : binary file object that can seek
        It is read from front to back. Between two members its position may be changed.
    start, stop : int
        Which bytes of the file are walked.
    whole : bool, default True
        Whether those bytes are an archive, which ends with a block of zeros, and after which others may follow, as ``cat`` joins them. Else
        they are a run of members.

    Raises
    ------
    DamagedTar
        When all members before that place have been yielded.

    Examples
    --------
    >>> import io
    >>> from imgcurate.tar.writing import header, padding
    >>> run = header("a.jpg", 5) + b"image" + padding(5)
    >>> [(member.name, member.offset, member.size) for member in walk(io.BytesIO(run), 0, len(run), whole=False)]
    [('a.jpg', 512, 5)]
    """
    shared: Records = {}
    own = Extended(start)
    at, ended = start, not whole
    while True:
        file.seek(at)
        block = file.read(BLOCK if at + BLOCK <= stop else stop - at)
        if not own.kinds:
            if block == _ZEROS and whole:
                at, ended = _after_zeros(file, at, stop), True
                continue
            if not block and ended:
                return
        header = parse(block, at) if len(block) == BLOCK else None
        if header is None:
            if ended and whole and not own.kinds:  # what follows the end of an archive, and is none
                return
            raise _no_header(block, at)
        ended = not whole
        kind, name, size, problem = header
        offset = at + BLOCK
        if kind in EXTENDED:
            own.take(kind, content_of(file, at, size, stop), at, shared)
            at = offset + padded(size)
            continue
        if own.kinds or shared:
            name, size, problem = own.describe(header, shared, at)
        if kind in _FILES and name.endswith("/"):
            kind = DIRECTORY
        if kind in _WITHOUT_CONTENT and size:
            raise DamagedTar(
                "damaged shard: a directory or a link has a size, which readers of tar take differently,", at
            )
        if kind == SPARSE:
            offset = _after_sparse_map(file, block, offset)
        begin = own.begin if own.kinds else at
        at = offset + padded(size)
        if kind != DIRECTORY:
            problem = _problem(kind, name) or problem
            name = printable(name)
            key, extension = split_name(name) or ("", "")
            there = size if at <= stop else min(size, stop - offset)
            yield Member(name, key, extension, begin, min(at, stop), offset, there, problem)
        if at > stop:
            raise DamagedTar("truncated shard: the file ends inside a member", begin)
        if own.deep:
            own = Extended(at)


def _problem(kind: int, name: str) -> str | None:
    if is_unsafe(name):
        return f"unsafe member name {shown(name)}"
    if kind == SPARSE:
        return f"member {shown(name)} is a sparse file"
    if kind not in _FILES:
        return f"member {shown(name)} is a link or a device, not a file"
    return None


def _after_sparse_map(file: BinaryIO, block: bytes, offset: int) -> int:
    """Return where the content of an old sparse file begins: after the blocks that go on with its map."""
    goes_on = block[482]
    while goes_on:
        more = file.read(BLOCK)
        if len(more) < BLOCK:
            raise DamagedTar("truncated shard: the file ends inside a header", offset)
        offset += BLOCK
        goes_on = more[504]
    return offset


def _after_zeros(file: BinaryIO, at: int, stop: int) -> int:
    """Return where the zeros end that begin at byte `at`, in whole blocks."""
    length = BLOCK
    while at < stop:
        file.seek(at)
        chunk = file.read(min(length, stop - at))
        rest = chunk.lstrip(b"\0")
        if rest or not chunk:
            return at + (len(chunk) - len(rest)) // BLOCK * BLOCK
        at += len(chunk)
        length = min(2 * length, _CHUNK)  # small at first, for archives that are joined end to end
    return at


def _no_header(block: bytes, at: int) -> DamagedTar:
    if len(block) == BLOCK:
        return DamagedTar("damaged shard: no header", at)
    return DamagedTar(
        f"truncated shard: the file ends {'inside a header' if block else 'without an end-of-archive mark'}", at
    )
