"""JPEG: how many segments and scans a file has, and whether it can hold the blocks of its picture."""

from __future__ import annotations

import re

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
    at = start = 2
    segments = of_exif = junk = 0
    frame = b""
    code = 0
    while True:
        found = data.find(b"\xff", at)
        if found < 0 or found + 1 >= len(data):
            return None
        junk += found - at
        code = data[found + 1]
        if code in (0x00, 0xFF):
            junk += 1
            at = found + (2 if code == 0 else 1)
        elif code < 0xC0:
            return None  # no marker, as its decoder will say
        elif code in _BARE:
            junk += 2
            at = found + 2
        else:
            segments += 1
            size = int.from_bytes(data[found + 2 : found + 4], "big")
            of_exif += code == 0xE1 and data.startswith(b"Exif\0\0", found + 4)
            if code in _FRAMES:
                frame = data[found + 1 : found + 2 + size]
            at = found + 2 + max(size, 2)
        if segments > _MOST_SEGMENTS or junk > _MOST_JUNK or at - start > _MOST_BYTES:
            return "broken JPEG: more segments, or more between them, than a picture has before its first scan"
        if of_exif > _MOST_OF_EXIF:
            return f"broken JPEG: more than {_MOST_OF_EXIF} EXIF segments"
        if code == _SOS:
            break
    in_first_scan = data[found + 4]
    if len(frame) > 8 and frame[0] in _BASELINE and in_first_scan == frame[8]:
        return None
    return _excess_of_scans(data, found)


def cannot_hold_its_blocks(data: bytes, width: int, height: int, progressive: bool) -> bool:
    """Tell whether a JPEG is shorter than any of its size: each block of 8 x 8 takes a code of a bit, and of two where it is not progressive.

    Examples
    --------
    >>> cannot_hold_its_blocks(bytes(335), 9400, 9400, False), cannot_hold_its_blocks(bytes(335), 64, 64, False)
    (True, False)
    """
    blocks = -(-width // 8) * -(-height // 8)
    return len(data) * 8 < blocks * (1 if progressive else 2)


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
