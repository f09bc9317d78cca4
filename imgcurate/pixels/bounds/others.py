"""PNG, GIF, BMP, JPEG XL, and the formats that are taken only by name: what Pillow walks through in Python, byte by byte."""

from __future__ import annotations

import re
import struct

from imgcurate.pixels.bounds import boxes

_MOST_CHUNKS, _MOST_STEPS, _MOST_RESOURCES, _MOST_HEADER = 100_000, 200_000, 10_000, 1 << 16
# Pixels and bytes that are decoded in Python, at up to a microsecond each.
_MOST_IN_PYTHON = 1 << 23

_COMMENT = re.compile(rb"#[^\r\n]*")
_PNG, _JXL = b"\x89PNG\r\n\x1a\n", b"\xff\x0a"


def excess_of_png(data: bytes, max_pixels: int) -> str | None:
    """Say whether a PNG has more chunks than Pillow is given.

    Examples
    --------
    >>> excess_of_png(_PNG + (bytes(4) + b"tEXt" + bytes(4)) * 200_000, 1 << 20)
    'broken PNG: more than 100,000 chunks'
    """
    at, chunks = len(_PNG), 0
    while at + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"IEND":
            break
        at += 12 + size
        chunks += 1
        if chunks > _MOST_CHUNKS:
            return f"broken PNG: more than {_MOST_CHUNKS:,} chunks"
    return None


def excess_of_gif(data: bytes, max_pixels: int) -> str | None:
    """Say whether a GIF has more before its first picture than Pillow is given.

    Examples
    --------
    >>> excess_of_gif(b"GIF89a" + bytes(7) + b"!\\xfe\\x01a\\x00" * 150_000 + b",", 1 << 20)
    'broken GIF: more than 200,000 blocks before its first picture'
    """
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    steps = 0
    while steps <= _MOST_STEPS:
        kind = data[at : at + 1]
        at, steps = at + 1, steps + 1
        if kind in (b"", b",", b";"):
            return None
        if kind == b"!":
            at += 1
            while steps <= _MOST_STEPS and (size := data[at]):
                at, steps = at + 1 + size, steps + 1
            at += 1
    return f"broken GIF: more than {_MOST_STEPS:,} blocks before its first picture"


def excess_of_bmp(data: bytes, max_pixels: int) -> str | None:
    """Say whether a BMP in run lengths, which Pillow decodes in Python, is too large for that."""
    return _excess_of_dib(data, 14, "BMP")


def excess_of_ppm(data: bytes, max_pixels: int) -> str | None:
    """Say whether a PNM's header is too long, or its samples, being digits or neither bytes nor words, too many to be decoded in Python.

    Examples
    --------
    >>> excess_of_ppm(b"P6 " + b" " * 100_000 + b"1 1 255 abc", 1 << 20)
    'broken PPM: a header of more than 64 KiB'
    """
    words = _COMMENT.sub(b" ", data[:_MOST_HEADER]).split()
    if len(words) < 4 and len(data) > _MOST_HEADER:
        return f"broken PPM: a header of more than {_MOST_HEADER >> 10} KiB"
    plain = data[1:2] in b"123"
    odd = len(words) > 3 and data[1:2] in b"56" and words[3] not in (b"255", b"65535")
    if (plain or odd) and len(data) > _MOST_IN_PYTHON:
        return f"a PNM of this kind may have {_MOST_IN_PYTHON >> 20} MiB"
    return None


def excess_of_psd(data: bytes, max_pixels: int) -> str | None:
    """Say whether a PSD has more resources, such as thumbnails and paths, than Pillow is given."""
    at = 26
    at += 4 + struct.unpack_from(">I", data, at)[0]
    end = at + 4 + struct.unpack_from(">I", data, at)[0]
    at += 4
    for _ in range(_MOST_RESOURCES):
        if at >= min(end, len(data)):
            return None
        at += 6
        at += 1 + data[at] + (data[at] + 1) % 2  # a name, padded to an even length
        (size,) = struct.unpack_from(">I", data, at)
        at += 4 + size + size % 2
    return f"broken PSD: more than {_MOST_RESOURCES:,} resources"


def excess_of_qoi(data: bytes, max_pixels: int) -> str | None:
    """Say whether a QOI is too large to be decoded in Python."""
    return _excess_in_python("QOI", *struct.unpack_from(">II", data, 4))


def excess_of_ico(data: bytes, max_pixels: int) -> str | None:
    """Say whether a picture in an ICO, which has a size of its own, is too large, or has too much of anything."""
    (count,) = struct.unpack_from("<H", data, 4)
    for number in range(count):
        (at,) = struct.unpack_from("<I", data, 6 + 16 * number + 12)
        picture = data[at : at + 64]
        if picture.startswith(_PNG):
            width, height = struct.unpack_from(">II", picture, 16)
            said = excess_of_png(data[at:], max_pixels)
        elif len(picture) > 40:
            width, height = struct.unpack_from("<ii", picture, 4)
            said = _excess_of_dib(data, at, "ICO")
        else:
            continue
        if said or abs(width * height) > 2 * max_pixels:  # a mask lies below the picture, as if it were twice as high
            return said or f"{abs(width)} x {abs(height)} pixels in an ICO is more than the limit"
    return None


def excess_of_jxl(data: bytes, max_pixels: int) -> str | None:
    """Say whether a JPEG XL is larger than allowed: its decoder decodes before it says."""
    if not data.startswith(_JXL):
        parts = [
            data[start + 4 * (kind == b"jxlp") : min(stop, start + 64)]  # a part has its number before it
            for kind, start, stop in boxes.walk(data)
            if kind in (b"jxlc", b"jxlp")
        ]
        data = b"".join(parts)
    try:
        if not data.startswith(_JXL):
            return "broken JPEG XL: no picture"
        width, height = _size_of_jxl(boxes.Bits(data[2:64], lowest_first=True))
    except IndexError:
        return "truncated JPEG XL"
    if width * height > max_pixels:
        return f"{width} x {height} pixels is more than the limit of {max_pixels / 1e6:.0f} megapixels"
    return None


def _size_of_jxl(bits: boxes.Bits) -> tuple[int, int]:
    def side(by_eights: int) -> int:
        return 8 * (bits.take(5) + 1) if by_eights else bits.take((9, 13, 18, 30)[bits.take(2)]) + 1

    by_eights = bits.take(1)
    height = side(by_eights)
    ratio = bits.take(3)
    if not ratio:
        return side(by_eights), height
    above, below = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * above // below, height


def _excess_of_dib(data: bytes, at: int, name: str) -> str | None:
    size, width, height, _, _, compression = struct.unpack_from("<IiiHHI", data, at)
    return _excess_in_python(name, abs(width), abs(height), len(data)) if size >= 40 and compression in (1, 2) else None


def _excess_in_python(name: str, width: int, height: int, n_bytes: int = 0) -> str | None:
    if max(width * height, n_bytes) <= _MOST_IN_PYTHON:
        return None
    return f"{width} x {height} pixels is more than {name} is taken with in this kind of compression"
