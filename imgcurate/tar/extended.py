"""Extended headers of a tar: PAX records, and GNU's long names, which say more of the member that comes after them."""

from __future__ import annotations

import re
from typing import BinaryIO

from imgcurate.tar.fields import BLOCK, SPARSE, DamagedTar, Header, padded, size_of, text_of
from imgcurate.tar.names import shown, split_name

#: Their types.
EXTENDED = b"xXLKg"
#: They hold a name and some numbers; longer ones, and more of them in a row, are there to harm.
MOST_BYTES, MOST_IN_A_ROW = 1 << 20, 16

_GLOBAL, _LONG_NAME = ord("g"), ord("L")
_PAX, _LONG = b"xX", b"LK"
_LENGTH = re.compile(rb"([0-9]{1,7}) ")
_DECIMAL = re.compile(rb"[0-9]{1,99}")
# Records with which GNU tar, star and Solaris' tar say that a file is sparse, in some of several ways.
_OF_SPARSE = (b"GNU.sparse.", b"SCHILY.realsize", b"SUN.holesdata")

Records = dict[bytes, bytes]


class Extended:
    """The extended headers before a member: `kinds` of its own, which begin at byte `begin`, and `deep` in all."""

    def __init__(self, begin: int) -> None:
        self.begin, self.kinds, self.deep = begin, b"", 0
        self.name: str | None = None
        self.records: Records = {}

    def take(self, kind: int, content: bytes, at: int, shared: Records) -> None:
        """Take the next of them; records of a global one go to those that members share."""
        self.deep += 1
        if self.deep > MOST_IN_A_ROW:
            raise DamagedTar(f"damaged shard: more than {MOST_IN_A_ROW} extended headers in a row", at)
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
            self.name = text_of(content)

    def describe(self, header: Header, shared: Records, at: int) -> tuple[str, int, str | None]:
        """Return the name and the size of the member whose own header this is, and what readers of tar take differently in it."""
        kind, name, size, problem = header
        if self.name is not None:
            name, problem = self.name, None
        path = _name_in(self.records)
        if path is None and self.name is None:
            path = _name_in(shared)
        if path is not None:
            name = path
            problem = None
        if b"path" in shared and b"path" not in self.records:
            problem = f"member {shown(name)} has its name from a global PAX header, which not all readers of tar take"
        sparse = any(record.startswith(_OF_SPARSE) for record in (*shared, *self.records))
        if sparse:
            problem = f"member {shown(name)} is a sparse file"
        if _takes_other_members_in({**shared, **self.records}, size):
            raise DamagedTar("damaged shard: a PAX header gives a size that readers of tar take differently,", at)
        length = self.records.get(b"size", shared.get(b"size"))
        if length is not None:
            if b"size" not in self.records or sparse or kind == SPARSE:
                raise DamagedTar("damaged shard: a PAX header gives a size that readers of tar take differently,", at)
            if not _DECIMAL.fullmatch(length):
                raise DamagedTar("damaged shard: a member's size is no number of bytes", at)
            size = int(length)
        return name, size, problem


def content_of(file: BinaryIO, at: int, size: int, stop: int) -> bytes:
    """Read what the extended header at byte `at`, which has just been read, says."""
    if size > MOST_BYTES:
        raise DamagedTar(f"damaged shard: an extended header of more than {MOST_BYTES:,} bytes", at)
    content = file.read(min(padded(size), stop - at - BLOCK))
    if len(content) < padded(size):
        raise DamagedTar("truncated shard: the file ends inside a header", at)
    if content[size:].strip(b"\0"):  # where some readers go on
        raise DamagedTar("damaged shard: an extended header longer than it says", at)
    return content[:size]


def records_of(header: bytes) -> Records:
    """Return the PAX records in the headers of a member."""
    return _records(header[BLOCK : BLOCK + size_of(header[124:136], 0)], 0) if header[156] in _PAX else {}


def _name_in(records: Records) -> str | None:
    """Return the name that records give a member, if they do.

    A sparse file may have two, of which readers of tar take either. It is never copied; where one of them is part of a sample, that has a problem.
    """
    names = [records[key].decode("utf-8", "surrogateescape") for key in (b"GNU.sparse.name", b"path") if key in records]
    return next((name for name in names if split_name(name)), names[0] if names else None)


def _takes_other_members_in(records: Records, size: int) -> bool:
    """Tell whether GNU tar takes the size that a sparse file has with its holes for that which it has in the tar, and goes on elsewhere.

    It does where it finds no map of the holes, which stands before the content in version 1 of the format. Versions before that have it in the
    records in several ways, of which some are none to it; it has not written them unasked since 2006.
    """
    sizes = {records.get(name) for name in (b"GNU.sparse.realsize", b"GNU.sparse.size")} - {None, b"%d" % size}
    return bool(sizes) and records.get(b"GNU.sparse.major") != b"1"


def _records(content: bytes, at: int) -> Records:
    """Parse the records of a PAX header: the length of each, a blank, keyword, "=", value, and a line feed."""
    found: Records = {}
    place = 0
    while place < len(content):
        length = _LENGTH.match(content, place)
        stop = place + int(length[1]) if length else 0
        keyword, equals, value = content[length.end() : stop - 1].partition(b"=") if length else (b"", b"", b"")
        # Of no length it would be read again and again.
        if not place < stop <= len(content) or not keyword or not equals or content[stop - 1] != ord("\n"):
            raise DamagedTar("damaged shard: a PAX header that cannot be read", at)
        found[keyword] = value
        place = stop
    return found
