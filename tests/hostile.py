"""Pictures that ask more of a decoder than they are worth, made by hand: no encoder writes them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

Tag = tuple[int, int, bytes]


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(rgb).convert(mode)


def longs(*values: int) -> Tag:
    return 4, len(values), struct.pack(f"<{len(values)}I", *values)


def shorts(*values: int) -> Tag:
    return 3, len(values), struct.pack(f"<{len(values)}H", *values)


def tiff(tags: dict[int, Tag], tail: bytes = b"", offsets: int | None = None, big: bool = False) -> bytes:
    """A TIFF of one directory, then the values of its tags, then `tail`, where all `offsets` strips begin."""
    header, entry, inline, place = (16, 20, 8, "Q") if big else (8, 12, 4, "I")

    def build(start: int) -> tuple[bytes, int]:
        all_tags = tags | ({273: longs(*[start] * offsets)} if offsets else {})
        at = header + (8 if big else 2) + entry * len(all_tags) + inline
        body, extra = b"", b""
        for number in sorted(all_tags):
            kind, count, values = all_tags[number]
            body += struct.pack(f"<HH{place}", number, kind, count)
            if len(values) <= inline:
                body += values.ljust(inline, b"\0")
            else:
                body += struct.pack(f"<{place}", at + len(extra))
                extra += values
        begin = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHI", b"II", 42, 8)
        count_of_tags = struct.pack("<Q" if big else "<H", len(all_tags))
        return begin + count_of_tags + body + bytes(inline) + extra + tail, at + len(extra)

    return build(build(0)[1])[0]


def tiff_of_strips(width: int, height: int, rows: int, strips: int, *, big: bool = False) -> bytes:
    """A TIFF of one bit a pixel whose strips are all the same bytes."""
    data = bytes(-(-width // 8) * rows)
    tags = {256: longs(width), 257: longs(height), 258: shorts(1), 259: shorts(1), 262: shorts(1), 277: shorts(1)}
    tags |= {278: longs(rows), 279: longs(*[len(data)] * strips)}
    return tiff(tags, data, strips, big)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(inserted: bytes, image: Image.Image | None = None) -> bytes:
    """A JPEG with something put behind its first marker."""
    data = encoded(image or noise(), "JPEG")
    return data[:2] + inserted + data[2:]


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    data = encoded(noise(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG that ends where its pixels would begin."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    scan = data.index(b"\xff\xda")
    return bytes(data[: scan + 10]) + b"\xff\xd9"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, rows: bytes, before: bytes = b"") -> bytes:
    """A grey PNG of `rows`, each with its filter's byte, with chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + chunk(b"IEND", b"")


def bmp_of_runs(width: int, height: int, runs: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(runs), 0, 0, 54 + 1024) + header + bytes(1024) + runs


def avif_that_lies(width: int, height: int, said: tuple[int, int] = (64, 64)) -> bytes:
    """An AVIF whose container tells a smaller size than its frame has."""

    def box(width: int, height: int) -> bytes:
        return b"ispe\0\0\0\0" + struct.pack(">II", width, height)

    data = encoded(Image.new("RGB", (width, height), (120, 30, 60)), "AVIF", quality=10, speed=10)
    assert box(width, height) in data
    return data.replace(box(width, height), box(*said))


def jpeg2000_of_tiles(width: int, height: int, side: int) -> bytes:
    """A JPEG 2000 that says its tiles are of another size."""
    data = bytearray(encoded(noise(width, height), "JPEG2000", no_jp2=True))
    struct.pack_into(">II", data, 24, side, side)
    return bytes(data)


def ico_of(picture: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(picture), 22) + picture
