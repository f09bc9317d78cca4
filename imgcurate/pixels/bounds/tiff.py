"""TIFF: how many tags, values and strips a file has, against its picture and its bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Pillow reads the values of tags, and the places of strips, one by one in Python.
_MOST_TAGS, _MOST_VALUES = 4096, 100_000
# What files have beyond what they need: strips behind the last row, and a tile that is larger than a small picture.
_SPARE, _SPARE_STRIPS, _LEAST_TILE = 4, 4, 1 << 24

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8, 129: 1}
_BYTES = (1, 2, 7, 129)  # the types whose values Pillow leaves together
_WHOLE = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}

_WIDTH, _HEIGHT, _SAMPLES, _PLANAR = 256, 257, 277, 284
_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_HEIGHT = 278, 322, 323
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 273, 279, 324, 325
# Those that lead to further tags, which Pillow reads with the picture.
_DIRECTORIES = (34665, 34853, 40965)


class _Tag(NamedTuple):
    number: int
    kind: int
    n_values: int
    at: int  # where its values lie


def excess(data: bytes, max_pixels: int) -> str | None:
    """Say what a TIFF has too much of.

    Examples
    --------
    >>> tag = struct.pack("<HHII", 273, 4, 200_000, 26)
    >>> excess(b"II*\\0" + struct.pack("<IH", 8, 1) + tag + bytes(4 + 800_000), 1 << 20)
    'broken TIFF: tag 273 has 200,000 values'
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2] == 43
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    places = [first]
    tags: dict[int, _Tag] = {}
    for place in places:
        found = list(_tags(data, place, order, big))
        if len(found) > _MOST_TAGS:
            return f"broken TIFF: more than {_MOST_TAGS:,} tags"
        for tag in found:
            if tag.kind not in _BYTES and tag.n_values > _MOST_VALUES:
                return f"broken TIFF: tag {tag.number} has {tag.n_values:,} values"
        if sum(tag.n_values for tag in found if tag.kind not in _BYTES) > _SPARE * _MOST_VALUES:
            return f"broken TIFF: its tags have more than {_SPARE * _MOST_VALUES:,} values"
        if place == first:
            tags = {tag.number: tag for tag in reversed(found)}
        if len(places) < 8:
            places += [_first(data, tag, order) for tag in found if tag.number in _DIRECTORIES and tag.n_values]
    return _excess_of_strips(data, tags, order)


def _tags(data: bytes, place: int, order: str, big: bool) -> Iterator[_Tag]:
    """Read the tags of a directory whose values lie within the file; Pillow does not take the others."""
    layout, inline = (order + "HHQ8x", 8) if big else (order + "HHI4x", 4)
    size, length = (20, "Q") if big else (12, "H")
    if place + struct.calcsize(length) > len(data):
        return
    (count,) = struct.unpack_from(order + length, data, place)
    start = place + struct.calcsize(length)
    for at in range(start, min(start + size * min(count, _MOST_TAGS + 1), len(data) - size + 1), size):
        number, kind, values = struct.unpack_from(layout, data, at)
        held = at + size - inline
        if kind not in _SIZES:
            continue
        if values * _SIZES[kind] > inline:
            (held,) = struct.unpack_from(order + ("Q" if big else "I"), data, held)
        if held + values * _SIZES[kind] <= len(data):
            yield _Tag(number, kind, values, held)


def _excess_of_strips(data: bytes, tags: dict[int, _Tag], order: str) -> str | None:
    def value(number: int, default: int) -> int:
        tag = tags.get(number)
        return _first(data, tag, order) if tag is not None and tag.n_values else default

    width, height = value(_WIDTH, 0), value(_HEIGHT, 0)
    layers = value(_SAMPLES, 1) if value(_PLANAR, 1) == 2 else 1
    rows = min(value(_ROWS_PER_STRIP, height), height) or 1
    across, down = value(_TILE_WIDTH, width) or 1, value(_TILE_HEIGHT, height) or 1
    if (_TILE_WIDTH in tags or _TILE_HEIGHT in tags) and across * down > max(_SPARE * width * height, _LEAST_TILE):
        return f"broken TIFF: tiles of {across} x {down} pixels in a picture of {width} x {height}"
    wanted = {
        _STRIPS: -(-height // rows) * layers,
        _TILES: -(-width // across) * -(-height // down) * layers,
    }
    for number, sizes in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES)):
        if number not in tags:
            continue
        strips = tags[number]
        if strips.n_values > _SPARE * wanted[number] + _SPARE_STRIPS:
            return (
                f"broken TIFF: {strips.n_values:,} strips where its {width} x {height} pixels need {wanted[number]:,}"
            )
        if sizes in tags and strips.n_values > 1:
            starts, lengths = _values(data, strips, order), _values(data, tags[sizes], order)
            count = min(len(starts), len(lengths))
            left = np.maximum(len(data) - starts[:count], 0)
            if np.minimum(lengths[:count], left).sum() > _SPARE * len(data):
                return "broken TIFF: its strips lie over one another"
    return None


def _first(data: bytes, tag: _Tag, order: str) -> int:
    values = _values(data, tag._replace(n_values=1), order)
    return int(values[0]) if len(values) else 0


def _values(data: bytes, tag: _Tag, order: str) -> np.ndarray:
    """Return whole numbers, as floats: sums of 64-bit ones would overflow."""
    if tag.kind not in _WHOLE:
        return np.zeros(0)
    return np.frombuffer(data, order + _WHOLE[tag.kind], tag.n_values, tag.at).astype(np.float64)
