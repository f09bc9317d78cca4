"""The boxes of ISO media files, in which AVIF, HEIC, JPEG 2000 and JPEG XL are kept, and numbers of a few bits."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from imgcurate.pixels.errors import PixelError

# Honest files have dozens, and as many again for each tile of a grid.
_MOST_BOXES = 20_000


class Item(NamedTuple):
    """A part of a media file, such as a picture or its EXIF.

    Attributes
    ----------
    kind : bytes
        ``b"av01"``, ``b"Exif"``, ...
    data : bytes
    """

    kind: bytes
    data: bytes


class Bits:
    """Numbers of a few bits, read from bytes from front to back; an IndexError where they end.

    Examples
    --------
    >>> bits = Bits(bytes([0b10110000]))
    >>> bits.take(1), bits.take(3)
    (1, 3)
    """

    def __init__(self, data: bytes, *, lowest_first: bool = False) -> None:
        self._data, self._lowest_first, self._at = data, lowest_first, 0

    def take(self, count: int) -> int:
        value = 0
        for k in range(count):
            byte, place = self._data[self._at >> 3], self._at & 7
            self._at += 1
            if self._lowest_first:
                value |= (byte >> place & 1) << k
            else:
                value = value << 1 | byte >> (7 - place) & 1
        return value


def walk(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, first and last byte of what each box between two places holds; a PixelError where there are too many to look at.

    Examples
    --------
    >>> list(walk(b"\\0\\0\\0\\x0aftypavxx"))
    [(b'ftyp', 8, 10)]
    """
    stop = len(data) if stop is None else stop
    for _ in range(_MOST_BOXES):
        if start + 8 > stop:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            if start + 16 > stop:
                return
            (size,) = struct.unpack_from(">Q", data, start + 8)
            header = 16
        end = stop if size == 0 else min(start + size, stop)
        if end < start + header:
            return
        yield kind, start + header, end
        start = end
    raise _too_much(f"{_MOST_BOXES:,} boxes")


def inside(data: bytes, path: tuple[bytes, ...], start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield the places of boxes by the names of those that they lie in, from the outermost."""
    for kind, begin, end in walk(data, start, stop):
        if kind == path[0]:
            if len(path) == 1:
                yield begin, end
            else:
                yield from inside(data, path[1:], begin, end)


def items(data: bytes) -> Iterator[Item]:
    """Yield the items of a file, and the first sample of each of its tracks, as far as its bytes go."""
    for start, stop in inside(data, (b"meta",)):
        found = {kind: (begin, end) for kind, begin, end in walk(data, start + 4, stop)}
        if b"iinf" in found and b"iloc" in found:
            kinds = dict(_kinds(data, *found[b"iinf"]))
            inner = found.get(b"idat", (0, 0))
            for number, content in _contents(data, found[b"iloc"][0], inner):
                yield Item(kinds.get(number, b""), content)
    total = 0
    for begin, end in inside(data, (b"moov", b"trak", b"mdia", b"minf", b"stbl")):
        table = {kind: place for kind, place, _ in walk(data, begin, end)}
        if b"stsz" in table and (b"stco" in table or b"co64" in table):
            (size,) = struct.unpack_from(">I", data, table[b"stsz"] + 4)
            size = size or struct.unpack_from(">I", data, table[b"stsz"] + 12)[0]
            layout, place = (">I", table[b"stco"]) if b"stco" in table else (">Q", table[b"co64"])
            (at,) = struct.unpack_from(layout, data, place + 8)
            total += max(min(size, len(data) - at), 0)
            if total > 2 * len(data):
                raise _too_much("the bytes of the file in its tracks")
            yield Item(b"av01", data[at : at + size])


def _too_much(what: str) -> PixelError:
    return PixelError("decode", f"broken media file: more than {what}")


def _kinds(data: bytes, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    first = start + (6 if data[start] == 0 else 8)
    for kind, at, _ in walk(data, first, stop):
        if kind == b"infe" and data[at] >= 2:
            number, held = struct.unpack_from(">H2x4s" if data[at] == 2 else ">I2x4s", data, at + 4)
            yield number, held


def _contents(data: bytes, at: int, inner: tuple[int, int]) -> Iterator[tuple[int, bytes]]:
    version = data[at]
    sizes = struct.unpack_from(">H", data, at + 4)[0]
    of_offset, of_length, of_base, of_index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    of_number = 4 if version == 2 else 2

    def number(size: int) -> int:
        nonlocal at
        if at + size > len(data):
            raise IndexError
        at += size
        return int.from_bytes(data[at - size : at], "big")

    at += 6
    count = number(of_number)
    if count > _MOST_BOXES:
        raise _too_much(f"{_MOST_BOXES:,} items")
    total = extents = 0
    for _ in range(count):
        item = number(of_number)
        of_file = version == 0 or number(2) & 15 == 0
        number(2)
        base = number(of_base)
        pieces = []
        extents += (of_item := number(2))
        if extents > _MOST_BOXES:  # which need not take any bytes
            raise _too_much(f"{_MOST_BOXES:,} extents")
        for _ in range(of_item):
            if version:
                number(of_index)
            start, length = base + number(of_offset), number(of_length)
            stop = len(data)
            if not of_file:
                start, stop = start + inner[0], inner[1]
            end = min(start + length, stop) if length else stop
            total += max(end - start, 0)
            if total > 2 * len(data):
                raise _too_much("the bytes of the file in its items")
            pieces.append(data[start:end])
        yield item, b"".join(pieces)
