"""Any bytes as a picture: decoded, measured, hashed and resized, or refused in one line."""

from __future__ import annotations

import math
import random
import struct
import warnings
import zlib

import hostile
import numpy as np

from fuzz.driver import Harness
from imgcurate import measures, phash, pixels
from imgcurate.pixels import bounds, decoding, formats, resizing
from imgcurate.pixels.bounds import avif, boxes, jpeg, jpeg2000, others, tiff

# Small, so that an input takes milliseconds; what is larger is refused, which is tried as well.
_MOST_PIXELS = 1 << 18
_SIDE = 24
_NUMBERS = (0, 1, 2, 8, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_MARKERS = (0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xED, 0xEE, 0xFE, 0xD8, 0xD9, 0xD0, 0x01)


def one(data: bytes) -> None:
    """Decode a file in all ways; raise where anything but a picture or one line comes of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = None
        for truncated in (True, False):
            try:
                whole = pixels.decode_picture(
                    data, max_pixels=_MOST_PIXELS, truncated=truncated, formats=pixels.BY_NAME
                )
                _check(whole, len(data))
            except pixels.PixelError as problem:
                whole = None
                _check_text(str(problem))
        try:
            opened = pixels.open_picture(data, max_pixels=_MOST_PIXELS, formats=pixels.BY_NAME)
        except pixels.PixelError as problem:
            _check_text(str(problem))
            assert whole is None, "what is decoded can be opened"
        else:
            if whole is not None and whole.format not in pixels.BY_NAME:
                assert (opened.width, opened.height) == (whole.width, whole.height)
        try:
            draft = pixels.decode_picture(
                data, lambda width, height: (width // 2, height // 2), max_pixels=_MOST_PIXELS
            )
            pixels.resize_and_crop(draft, _SIDE, (_SIDE, _SIDE))
        except pixels.PixelError as problem:
            _check_text(str(problem))


def _check(picture: pixels.Picture, n_bytes: int) -> None:
    assert picture.image.mode == "RGB" and picture.image.size == (picture.width, picture.height)
    assert 0 < picture.width * picture.height <= _MOST_PIXELS
    found = measures.of_picture(picture, n_bytes, measures.COLUMNS)
    numbers = [value for name, value in found.items() if name not in ("format", "phash")]
    assert all(math.isfinite(value) and value >= 0 for value in numbers), found
    assert found["brightness"] <= 255 and found["entropy"] <= 8 + 1e-9
    assert 0 <= found["phash"] < 1 << 64
    made = pixels.resize_and_crop(picture, _SIDE, (_SIDE, _SIDE))
    assert made.shape == (_SIDE, _SIDE, 3) and made.dtype == np.uint8


def _check_text(text: str) -> None:
    assert text.startswith("decode: ") and text.isprintable() and len(text) <= 310, text


def seeds() -> list[bytes]:
    """Return a small picture of each format and kind."""
    image, exif = hostile.noise(19, 13), b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    kinds: list[tuple[str, str, dict[str, object]]] = [
        *(("JPEG", mode, {"exif": exif}) for mode in ("L", "RGB", "CMYK")),
        ("JPEG", "RGB", {"progressive": True}),
        *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("GIF", mode, {"comment": b"a"}) for mode in ("L", "P")),
        *(("WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (False, True)),
        *(("TIFF", mode, {"exif": exif}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "F", "I;16")),
        *(("TIFF", "RGB", {"compression": kind}) for kind in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        ("TIFF", "RGB", {"big_tiff": True}),
        *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *(("AVIF", mode, {"exif": exif}) for mode in ("L", "RGB", "RGBA")),
        *(("JPEG2000", mode, {"no_jp2": plain}) for mode in ("L", "RGBA") for plain in (False, True)),
        *((name, "RGB", {}) for name in ("TGA", "PPM", "PCX", "QOI")),
    ]  # fmt: skip
    made = [
        hostile.encoded(image.convert("L").convert(mode) if mode in ("F", "I;16") else image.convert(mode), name, **options)
        for name, mode, options in kinds
    ]  # fmt: skip
    made += [
        hostile.tiff_of_strips(16, 16, 4, 4),
        hostile.bmp_of_runs(4, 3, b"\4\1\0\0\2\2\0\4abcd\0\2\1\1\0\1"),
        hostile.ico_of(hostile.encoded(image, "PNG")),
        hostile.png_of(3, 2, b"\0abc\0def"),
        hostile.jpeg_header(16, 16),
    ]
    for name in ("HEIF", "JXL"):
        if formats.can_open(name):
            made.append(hostile.encoded(image, name))
    return made


def change(rng: random.Random, data: bytes) -> bytes:
    """Change a picture so that what reads it comes further than to a checksum: a chunk, a segment, a tag, a box."""
    if data.startswith(b"\x89PNG"):
        return _with_other_chunk(rng, data)
    if data.startswith(b"\xff\xd8"):
        return _with_other_segment(rng, data)
    if data[:2] in (b"II", b"MM"):
        return _with_other_tag(rng, data)
    at = rng.randrange(max(len(data) - 4, 1))
    if data[4:8] in (b"ftyp", b"jP  "):
        places = [start - 8 for _, start, _ in boxes.walk(data)]
        at = rng.choice(places) + rng.choice((0, 8, 12, 16)) if places else at
    return data[:at] + struct.pack(rng.choice("<>") + "I", rng.choice(_NUMBERS)) + data[at + 4 :]


def _with_other_chunk(rng: random.Random, data: bytes) -> bytes:
    at, chunks = 8, []
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return data
    which = rng.randrange(len(chunks))
    kind, content = chunks[which]
    match rng.randrange(4):
        case 0:
            chunks.insert(which, chunks[rng.randrange(len(chunks))])
        case 1:
            kind = rng.choice(
                (b"tRNS", b"PLTE", b"IDAT", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT")
            )
            chunks.insert(which, (kind, rng.randbytes(rng.choice((0, 1, 4, 26)))))
        case 2 if kind == b"IDAT":
            chunks[which] = kind, zlib.compress(rng.randbytes(rng.randrange(600)))
        case _:
            place = rng.randrange(len(content) + 1)
            chunks[which] = kind, content[:place] + bytes([rng.choice((0, 1, 3, 16, 255))]) + content[place + 1 :]
    return data[:8] + b"".join(hostile.chunk(kind, content) for kind, content in chunks)


def _with_other_segment(rng: random.Random, data: bytes) -> bytes:
    places = [at for at in range(len(data) - 4) if data[at] == 0xFF and data[at + 1] >= 0xC0]
    at = rng.choice(places or [2])
    (size,) = struct.unpack_from(">H", data.ljust(at + 4, b"\0"), at + 2)
    match rng.randrange(4):
        case 0:
            return data[:at] + data[at : at + 2 + size] * rng.choice((2, 40)) + data[at + 2 + size :]
        case 1:
            return data[: at + 1] + bytes([rng.choice(_MARKERS)]) + data[at + 2 :]
        case 2:
            return (
                data[:at] + hostile.segment(rng.choice(_MARKERS), rng.randbytes(rng.choice((0, 1, 6, 15)))) + data[at:]
            )
        case _:
            place = at + 2 + rng.randrange(max(size, 1))
            return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]


def _with_other_tag(rng: random.Random, data: bytes) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data.ljust(8, b"\0"), 4)
    (count,) = (
        struct.unpack_from(order + "H", data.ljust(start + 2, b"\0")[: start + 2], start) if start < 1 << 16 else (1,)
    )
    at = min(start, 1 << 16) + 2 + 12 * rng.randrange(max(count, 1))
    match rng.randrange(3):
        case 0:
            field, place = (
                struct.pack(order + "H", rng.choice((254, 258, 259, 262, 273, 274, 277, 284, 322, 338, 34665))),
                at,
            )
        case 1:
            field, place = struct.pack(order + "I", rng.choice(_NUMBERS)), at + 4
        case _:
            field, place = struct.pack(order + "I", rng.choice(_NUMBERS)), at + 8
    return data[:place] + field + data[place + len(field) :]


# What is imported when the first picture is resized takes seconds, for which no input is to blame.
pixels.resize_and_crop(hostile.noise(), _SIDE, (_SIDE, _SIDE))

HARNESS = Harness(
    "pictures",
    one,
    seeds,
    (bounds, avif, boxes, jpeg, jpeg2000, others, tiff, decoding, formats, resizing, measures, phash),
    change,
)
