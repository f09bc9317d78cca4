"""AVIF: the size of the frames that are decoded, which is not the one that the container tells, and of EXIF."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from imgcurate.pixels.bounds import boxes

# EXIF with thumbnails and makers' notes is less.
_MOST_OF_EXIF = 4 << 20
# A picture, its transparency, its thumbnail and a second rendition are frames, or grids of frames.
_FRAMES_OF_A_PICTURE = 4
# Open bitstream units of one frame.
_MOST_UNITS = 1000

_SEQUENCE, _FRAME_HEADER, _FRAME = 1, 3, 6
_CHOSEN_LATER = 2


def excess(data: bytes, max_pixels: int) -> str | None:
    """Say whether an AVIF holds larger frames than are allowed, or more of them."""
    total = 0
    try:
        for item in boxes.items(data):
            if item.kind == b"av01":
                width, height = _largest_frame(item.data)
                total += width * height
                if width * height > max_pixels:
                    return f"{width} x {height} pixels is more than the limit of {max_pixels / 1e6:.0f} megapixels"
    except (IndexError, struct.error):
        return "broken AVIF: its frame's headers cannot be followed"
    if not total:
        return "broken AVIF: no frame within it"
    if total > _FRAMES_OF_A_PICTURE * max_pixels:
        return f"its frames hold {total / 1e6:.0f} megapixels, more than the limit of {max_pixels / 1e6:.0f} for a picture allows"
    return excess_of_exif(data, max_pixels)


def excess_of_exif(data: bytes, max_pixels: int) -> str | None:
    """Say whether a media file has more EXIF than Pillow is given."""
    if any(item.kind == b"Exif" and len(item.data) > _MOST_OF_EXIF for item in boxes.items(data)):
        return f"its EXIF is larger than {_MOST_OF_EXIF >> 20} MiB"
    return None


def _largest_frame(data: bytes) -> tuple[int, int]:
    """Return the largest width and height that a coded picture may be decoded to."""
    largest, header = (0, 0), None
    for kind, unit in _units(data):
        if kind == _SEQUENCE:
            header = _Sequence(unit)
            largest = max(largest, header.size, key=lambda size: size[0] * size[1])
        elif kind in (_FRAME_HEADER, _FRAME) and header is not None and header.has_own_size(unit):
            largest = max(largest, header.largest, key=lambda size: size[0] * size[1])
    return largest


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    for _ in range(_MOST_UNITS):
        if at >= len(data):
            return
        head = data[at]
        at += 2 if head & 4 else 1
        size = len(data) - at
        if head & 2:
            size = 0
            for k in range(8):
                size |= (data[at] & 127) << 7 * k
                at += 1
                if not data[at - 1] & 128:
                    break
        yield head >> 3 & 15, data[at : min(at + size, at + 512)]
        at += size
    raise IndexError


class _Sequence:
    """What the header of a sequence of AV1 says of the size of its frames (AV1 specification, 5.5)."""

    def __init__(self, data: bytes) -> None:
        bits = boxes.Bits(data)
        bits.take(3)  # profile
        bits.take(1)  # still picture
        self.reduced = bool(bits.take(1))
        self._time_bits = self._removal_bits = 0
        self._even = True
        if self.reduced:
            bits.take(5)
        else:
            self._operating_points(bits)
        width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
        self.size = bits.take(width_bits) + 1, bits.take(height_bits) + 1
        self.largest = 1 << width_bits, 1 << height_bits
        self._id_bits, self._screen, self._integer_motion = 0, _CHOSEN_LATER, _CHOSEN_LATER
        if self.reduced:
            return
        if bits.take(1):
            self._id_bits = bits.take(4) + 2
            self._id_bits += bits.take(3) + 1
        bits.take(3)  # large superblocks, filters within pictures
        bits.take(4)  # compound, warped, dual filter
        if bits.take(1):
            bits.take(2)
        if not bits.take(1):
            self._screen = bits.take(1)
        if self._screen and not bits.take(1):
            self._integer_motion = bits.take(1)

    def _operating_points(self, bits: boxes.Bits) -> None:
        delay_bits = 0
        if bits.take(1):  # timing
            bits.take(64)
            self._even = bool(bits.take(1))
            if self._even:
                zeros = 0
                while not bits.take(1):
                    zeros += 1
                bits.take(zeros)
            if bits.take(1):
                delay_bits = bits.take(5) + 1
                bits.take(32)
                self._removal_bits, self._time_bits = bits.take(5) + 1, bits.take(5) + 1
        delayed = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if delay_bits and bits.take(1):
                bits.take(2 * delay_bits + 1)
            if delayed and bits.take(1):
                bits.take(4)

    def has_own_size(self, data: bytes) -> bool:
        """Tell whether the header of a frame gives it a size of its own, which may be larger (5.9.2)."""
        if self.reduced:
            return False
        bits = boxes.Bits(data)
        if bits.take(1):  # shows a frame that was decoded before
            return False
        kind, shown = bits.take(2), bits.take(1)
        if shown and self._time_bits and not self._even:
            bits.take(self._time_bits)
        if not shown:
            bits.take(1)
        if kind == 3:
            return True
        if not (kind == 0 and shown):
            bits.take(1)  # resilient to errors
        bits.take(1)
        screen = bits.take(1) if self._screen == _CHOSEN_LATER else self._screen
        if screen and self._integer_motion == _CHOSEN_LATER:
            bits.take(1)
        bits.take(self._id_bits)
        return bool(bits.take(1))
