"""The headers of a tar, walked one after another, with bounds on every number in them.

Readers of tar disagree on headers that no writer should make. What is trusted here is what Python's tarfile, GNU tar and bsdtar read alike; a
member of which they make different things has a `problem`, and where they find different members after it the archive is damaged.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple
from zlib import adler32

from imgcurate.tar.names import is_unsafe, printable, shown, split_name

BLOCK = tarfile.BLOCKSIZE
#: An extended header holds a name and some numbers; longer ones, and more of them for one member, are there to harm.
MOST_EXTENDED_BYTES, MOST_EXTENDED = 1 << 20, 16

_ZEROS = bytes(BLOCK)
_CHUNK = 128 * BLOCK
_OCTAL = re.compile(rb" *([0-7]+) *(?:\0.*)?", re.DOTALL)
_LENGTH = re.compile(rb"([0-9]{1,7}) ")
_DECIMAL = re.compile(rb"[0-9]{1,99}")
# The kinds of headers, by their type: files, what has no content whatever its size says, and extended headers.
_FILES, _WITHOUT_CONTENT = b"07\0", b"123456"
_SPARSE, _DIRECTORY = ord("S"), ord("5")
_GLOBAL, _LONG_NAME = ord("g"), ord("L")
_PAX, _LONG, _OF_GNU, _EXTENDED = b"xX", b"LK", b"LKS", b"xXLKg"
# Records with which GNU tar, star and Solaris' tar say that a file is sparse, in some of several ways.
_OF_SPARSE = (b"GNU.sparse.", b"SCHILY.realsize", b"SUN.holesdata")

Records = dict[bytes, bytes]
#: The type, the name and the size in a header, and what not all readers take alike in it.
_Header = tuple[int, str, int, str | None]


class DamagedTar(ValueError):
    """An archive that is cut off or damaged.

    Parameters
    ----------
    why : str
    place : int
        The byte from which on it cannot be read.
    """

    def __init__(self, why: str, place: int) -> None:
        super().__init__(why, place)
        self.why, self.place = why, place

    def __str__(self) -> str:
        return f"{self.why} at byte {self.place}; what came after cannot be read"


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
    own = _Extended(start)
    at, ended = start, not whole
    while True:
        file.seek(at)
        block = file.read(min(BLOCK, stop - at))
        if not own.kinds:
            if block == _ZEROS and whole:
                at, ended = _after_zeros(file, at, stop), True
                continue
            if not block and ended:
                return
        header = _parse(block, at) if len(block) == BLOCK else None
        if header is None:
            if ended and whole and not own.kinds:  # what follows the end of an archive, and is none
                return
            raise _no_header(block, at)
        ended = not whole
        kind, name, size, problem = header
        offset = at + BLOCK
        if kind in _EXTENDED:
            own.take(kind, _content_of_extended(file, at, size, stop), at, shared)
            at = offset + _padded(size)
            continue
        if own.kinds or shared:
            name, size, problem = own.describe(header, shared, at)
        if kind in _WITHOUT_CONTENT and size:
            raise DamagedTar(
                "damaged shard: a directory or a link has a size, which readers of tar take differently,", at
            )
        if kind == _SPARSE:
            offset = _after_sparse_map(file, block, offset)
        begin = own.begin if own.kinds else at
        at = offset + _padded(size)
        if kind != _DIRECTORY:
            problem = _problem(kind, name) or problem
            name = printable(name)
            key, extension = split_name(name) or ("", "")
            yield Member(name, key, extension, begin, min(at, stop), offset, min(size, stop - offset), problem)
        if at > stop:
            raise DamagedTar("truncated shard: the file ends inside a member", begin)
        if own.deep:
            own = _Extended(at)


def records_of(header: bytes) -> Records:
    """Return the PAX records in the headers of a member."""
    return _records(header[BLOCK : BLOCK + _size(header[124:136], 0)], 0) if header[156] in _PAX else {}


class _Extended:
    """The extended headers before a member: `kinds` of its own, which begin at byte `begin`, and `deep` in all."""

    def __init__(self, begin: int) -> None:
        self.begin, self.kinds, self.deep = begin, b"", 0
        self.name: str | None = None
        self.records: Records = {}

    def take(self, kind: int, content: bytes, at: int, shared: Records) -> None:
        """Take the next of them; records of a global one go to those that members share."""
        self.deep += 1
        if self.deep > MOST_EXTENDED:
            raise DamagedTar(f"damaged shard: more than {MOST_EXTENDED} extended headers in a row", at)
        # Writers make one PAX header, or GNU's for a long name and a long link; of others each reader takes what it likes.
        if self.kinds and (kind in self.kinds or kind not in _LONG or self.kinds not in (b"L", b"K")):
            raise DamagedTar(
                "damaged shard: a member has several extended headers, which readers of tar take differently,", at
            )
        if kind == _GLOBAL:
            shared |= _records(content, at)
            return
        if not self.kinds:
            self.begin = at
        self.kinds += bytes([kind])
        if kind in _PAX:
            self.records = _records(content, at)
        elif kind == _LONG_NAME:
            self.name = _text(content)

    def describe(self, header: _Header, shared: Records, at: int) -> tuple[str, int, str | None]:
        """Return the name and the size of the member whose own header this is, and what readers of tar take differently in it."""
        kind, name, size, problem = header
        if self.name is not None:
            name, problem = self.name, None
        path = self.records.get(b"path", shared.get(b"path"))
        if path is not None:
            name = path.decode("utf-8", "surrogateescape")
            problem = f"member {shown(name)} has a name that ends in a slash" if name.endswith("/") else None
            name = name.rstrip("/")
            if b"path" not in self.records:
                problem = (
                    f"member {shown(name)} has its name from a global PAX header, which not all readers of tar take"
                )
        sparse = any(record.startswith(_OF_SPARSE) for record in (*shared, *self.records))
        if sparse:
            problem = f"member {shown(name)} is a sparse file"
        length = self.records.get(b"size", shared.get(b"size"))
        if length is not None:
            if b"size" not in self.records or sparse or kind == _SPARSE:
                raise DamagedTar("damaged shard: a PAX header gives a size that readers of tar take differently,", at)
            if not _DECIMAL.fullmatch(length):
                raise DamagedTar("damaged shard: a member's size is no number", at)
            size = int(length)
        return name, size, problem


def _parse(block: bytes, at: int) -> _Header | None:
    """Parse a header; None where it is none, to tarfile either."""
    if not (
        _is_sum(block)
        and _are_numbers(block[100:124])
        and _are_numbers(block[136:148])
        and _are_numbers(block[329:345])
    ):
        return None
    kind, name, problem = block[156], _text(block[:100]), None
    if kind == 0 and name.endswith("/"):
        kind = _DIRECTORY
    if block[345] and kind not in _OF_GNU:
        name = f"{_text(block[345:500])}/{name}"
        if block[257:263] != b"ustar\0":
            problem = f"member {shown(name)} has a prefix to its name that not all readers of tar take"
    return kind, name, _size(block[124:136], at), problem


def _is_sum(block: bytes) -> bool:
    """Tell whether a header's checksum is the sum of its bytes, or of its bytes as signed numbers, as old tars have it."""
    # Of fewer than 256 bytes the sum is less than the modulus of Adler-32, which finds it ten times as fast as Python does.
    first, second, third = block[:148], block[156:334], block[334:]
    total = (adler32(first) & 0xFFFF) + (adler32(second) & 0xFFFF) + (adler32(third) & 0xFFFF) - 3 + 8 * ord(" ")
    field = block[148:156]
    if field == b"%06o\0 " % total:  # as nearly all write it
        return True
    return _octal(field) in (total, total - 256 * sum(byte > 127 for part in (first, second, third) for byte in part))


def _octal(field: bytes) -> int | None:
    digits = _OCTAL.fullmatch(field)
    return int(digits[1], 8) if digits else None


def _size(field: bytes, at: int) -> int:
    """Return a header's size: in octal, or in base 256 after a byte of 128."""
    size = int.from_bytes(field[1:]) if field[0] == 128 else _octal(field)
    if size is None:
        raise DamagedTar("damaged shard: a member's size is no number", at)
    return size


@lru_cache(maxsize=4096)
def _are_numbers(fields: bytes) -> bool:
    """Tell whether tarfile reads numbers in fields of 8 bytes, or in one of 12: it takes what has others there for no header."""
    width = 12 if len(fields) == 12 else 8
    for at in range(0, len(fields), width):
        field = fields[at : at + width]
        try:
            if field[0] not in (128, 255):
                int(field.partition(b"\0")[0].decode("ascii").strip() or "0", 8)
        except ValueError:
            return False
    return True


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _problem(kind: int, name: str) -> str | None:
    if is_unsafe(name):
        return f"unsafe member name {shown(name)}"
    if kind == _SPARSE:
        return f"member {shown(name)} is a sparse file"
    if kind not in _FILES:
        return f"member {shown(name)} is a link or a device, not a file"
    return None


def _records(content: bytes, at: int) -> Records:
    """Parse the records of a PAX header: the length of each, a blank, keyword, "=", value, and a line feed."""
    found: Records = {}
    place = 0
    while place < len(content):
        length = _LENGTH.match(content, place)
        stop = place + int(length[1]) if length else 0
        keyword, equals, value = content[length.end() : stop - 1].partition(b"=") if length else (b"", b"", b"")
        if stop > len(content) or not keyword or not equals or content[stop - 1] != ord("\n"):
            raise DamagedTar("damaged shard: a PAX header that cannot be read", at)
        found[keyword] = value
        place = stop
    return found


def _content_of_extended(file: BinaryIO, at: int, size: int, stop: int) -> bytes:
    """Read what the extended header at byte `at`, which has just been read, says."""
    if size > MOST_EXTENDED_BYTES:
        raise DamagedTar(f"damaged shard: an extended header of more than {MOST_EXTENDED_BYTES:,} bytes", at)
    content = file.read(min(_padded(size), stop - at - BLOCK))
    if len(content) < _padded(size):
        raise DamagedTar("truncated shard: the file ends inside a header", at)
    if content[size:].strip(b"\0"):  # where some readers go on
        raise DamagedTar("damaged shard: an extended header longer than it says", at)
    return content[:size]


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
