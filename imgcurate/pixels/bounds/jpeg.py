"""JPEG: how many segments and scans a file has, and whether it can hold the blocks of its picture."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Pillow walks through the segments before the first scan in Python, joins those of EXIF pairwise, and skips what is no segment byte by byte.
_MOST_SEGMENTS, _MOST_BYTES, _MOST_OF_EXIF, _MOST_JUNK = 1000, 32 << 20, 32, 1 << 18
# Each scan of a progressive picture passes over all its blocks; encoders write ten or so.
_MOST_SCANS = 100

_SOS, _EOI = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BASELINE, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
# Markers that no length follows.
_BARE = {0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


def excess(data: bytes, max_pixels: int) -> str | None:
    """Say what a JPEG has too much of.

    Examples
    --------
    >>> excess(b"\\xff\\xd8" + b"\\xff\\xe1\\x00\\x08Exif\\0\\0" * 10_000 + b"\\xff\\xda", 1 << 20)
    'broken JPEG: more than 32 EXIF segments'
    """
    segments = of_exif = junk = before = 0
    frame = b""
    for code, start, stop in _markers(data):
        junk += start - before if before else 0
        before = stop
        if code < 0xC0 or code in _BARE or code == 0xFF:
            junk += stop - start
        else:
            segments += 1
            of_exif += code == 0xE1 and data.startswith(b"Exif\0\0", start + 4)
        if segments > _MOST_SEGMENTS or junk > _MOST_JUNK or stop > _MOST_BYTES:
            return "broken JPEG: more segments, or more between them, than a picture has before its first scan"
        if of_exif > _MOST_OF_EXIF:
            return f"broken JPEG: more than {_MOST_OF_EXIF} EXIF segments"
        if code in _FRAMES:
            frame = data[start + 1 : stop]
        if code == _SOS:
            all_in_one_scan = len(frame) > 8 and frame[0] in _BASELINE and data[start + 4] == frame[8]
            return None if all_in_one_scan else _excess_of_scans(data, start)
    return None


def cannot_hold_its_blocks(data: bytes, width: int, height: int) -> bool:
    """Tell whether a JPEG is shorter than any of its size: each block of 8 x 8 takes a code of a bit, and of two where it is not progressive.

    That is not so of arithmetic coding, which is never taken for short.

    Examples
    --------
    >>> header = bytes.fromhex("ffd8ffc0000b0824b824b80101110000ffda0008010100003f00")
    >>> cannot_hold_its_blocks(header, 9400, 9400), cannot_hold_its_blocks(header, 64, 8)
    (True, False)
    """
    blocks = -(-width // 8) * -(-height // 8)
    if len(data) * 8 >= 2 * blocks:
        return False
    frame = next((code for code, _, _ in _markers(data) if code in _FRAMES), None)
    return frame in _BASELINE or (frame == _PROGRESSIVE and len(data) * 8 < blocks)


def _markers(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield each marker up to that of the first scan, and where it, with its segment, starts and stops, as Pillow walks through them."""
    at = 2
    while True:
        start = data.find(b"\xff", at)
        if start < 0 or start + 1 >= len(data):
            return
        code = data[start + 1]
        if 0 < code < 0xC0:
            return  # no marker, as its decoder will say
        at = start + (1 if code == 0xFF else 2)
        if code >= 0xC0 and code not in _BARE and code != 0xFF:
            at += max(int.from_bytes(data[at : at + 2], "big"), 2)
        yield code, start, at
        if code == _SOS:
            return


def _excess_of_scans(data: bytes, at: int) -> str | None:
    """Count scans where there may be too many: the bytes of their marker stand in thumbnails too."""
    if data.count(b"\xff\xda", at) <= _MOST_SCANS:
        return None
    scans = 0
    while marker := _MARKER.search(data, at):
        code = marker[1][0]
        at = marker.end()
        if code == _EOI:
            return None
        if code == _SOS:
            scans += 1
            if scans > _MOST_SCANS:
                return f"broken JPEG: more than {_MOST_SCANS} scans"
        if code >= 0xC0 and code not in _BARE:
            at += max(int.from_bytes(data[at : at + 2], "big"), 2)
    return None
