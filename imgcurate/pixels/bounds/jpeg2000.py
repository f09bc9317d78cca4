"""JPEG 2000: how many tiles, precincts, layers and blocks of code a file asks for."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from imgcurate.pixels.bounds import boxes

_MOST_TILES, _MOST_BLOCKS, _MOST_PACKETS = 10_000, 1_500_000, 1 << 22
_MOST_MARKERS, _MOST_HEADER_BOXES = 200_000, 1000

_SIZE, _STYLE, _STYLE_OF_COMPONENT, _TILE_PART, _DATA = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_TOO_MANY = 0


def excess(data: bytes, max_pixels: int) -> str | None:
    """Say what a JPEG 2000 has too much of."""
    start = 0
    if not data.startswith(b"\xff\x4f"):
        outer = {kind: (begin, end) for kind, begin, end in reversed(list(boxes.walk(data)))}
        if b"jp2c" not in outer or b"jp2h" not in outer:
            return "broken JPEG2000: no picture within it"
        if sum(1 for _ in boxes.walk(data, *outer[b"jp2h"])) > _MOST_HEADER_BOXES:
            return f"broken JPEG2000: a header of more than {_MOST_HEADER_BOXES:,} boxes"
        start = outer[b"jp2c"][0]
    picture = _Picture(0, 0, 0, 0)
    for marker, at in _markers(data, start + 2):
        said = None
        if marker == _SIZE:
            right, bottom, left, top, wide, high, from_left, from_top, components = struct.unpack_from(
                ">8IH", data, at + 4
            )
            tiles = _parts(right - from_left, wide) * _parts(bottom - from_top, high)
            picture = _Picture(right - left, bottom - top, components, tiles)
            said = f"{tiles:,} tiles" if tiles > _MOST_TILES else None
        elif marker == _STYLE:
            (layers,) = struct.unpack_from(">H", data, at + 4)
            said = _excess_of_style(picture, layers, data[at + 2], data[at + 7 : at + 45])
        elif marker == _STYLE_OF_COMPONENT:
            place = at + (3 if picture.components < 257 else 4)
            said = _excess_of_style(picture, 1, data[place], data[place + 1 : place + 39])
        elif marker == _TOO_MANY:
            said = f"more than {_MOST_MARKERS:,} markers"
        if said is not None:
            return f"broken JPEG2000: {said}"
    return None


class _Picture(NamedTuple):
    width: int
    height: int
    components: int
    tiles: int


def _markers(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Yield the markers of the main header and of those of all parts of tiles, and the places of their lengths."""
    part = part_size = 0
    for _ in range(_MOST_MARKERS):
        if at + 4 > len(data):
            return
        marker, size = struct.unpack_from(">HH", data, at)
        if marker == _TILE_PART:
            part, (part_size,) = at, struct.unpack_from(">I", data, at + 6)
        elif marker == _DATA:
            if part_size < 14:  # it goes on to the end
                return
            at = part + part_size
            continue
        elif marker < 0xFF00:
            return
        else:
            yield marker, at + 2
        at += 2 + max(size, 2)
    yield _TOO_MANY, at


def _excess_of_style(picture: _Picture, layers: int, flags: int, style: bytes) -> str | None:
    levels = style[0] & 31
    across, down = (style[1] & 15) + 2, (style[2] & 15) + 2
    least = picture.tiles * (3 * levels + 1)
    blocks = picture.components * (_parts(picture.width, 1 << across) * _parts(picture.height, 1 << down) + least)
    if blocks > _MOST_BLOCKS:
        return f"{blocks:,} blocks of code"
    precincts = picture.tiles * (levels + 1)
    if flags & 1:
        for level, sides in enumerate(style[5 : 6 + levels]):
            shrunk = levels - level
            width, height = _parts(picture.width, 1 << shrunk), _parts(picture.height, 1 << shrunk)
            precincts += _parts(width, 1 << (sides & 15)) * _parts(height, 1 << (sides >> 4))
    packets = picture.components * precincts * layers
    return f"{packets:,} packets" if packets > _MOST_PACKETS else None


def _parts(whole: int, part: int) -> int:
    return -(-max(whole, 0) // max(part, 1))
