"""A row's bytes -> RGB: range reads, bounds on what a file may ask for, decoding, resize and crop.

What is wrong with one image is a value here (a `PixelError`, whose text goes into the row's ``error``), never the end
of a run.
"""

from __future__ import annotations

from collections.abc import Collection

from imgcurate.pixels.decoding import Picture, decode, decode_picture, open_picture
from imgcurate.pixels.errors import PixelError
from imgcurate.pixels.formats import BY_NAME, MAX_BYTES, MAX_PIXELS, check_formats
from imgcurate.pixels.isolated import check_timeout, within
from imgcurate.pixels.reading import read_images
from imgcurate.pixels.resizing import resize_and_crop, resized, shortened
from imgcurate.pixels.share import worker_threads

__all__ = [
    "BY_NAME", "MAX_BYTES", "MAX_PIXELS", "Picture", "PixelError", "check_formats", "check_limits", "check_timeout", "decode", "decode_picture", "open_picture",
    "read_images", "resize_and_crop", "resized", "shortened", "within", "worker_threads",
]  # fmt: skip


def check_limits(max_pixels: int, max_bytes: int, formats: Collection[str], timeout: float | None) -> None:
    """Raise a ValueError where one of the limits that verbs take is out of range.

    Examples
    --------
    >>> check_limits(1 << 20, 0, (), None)
    Traceback (most recent call last):
    ValueError: max_bytes=0: it must be at least 1
    """
    for name, value in (("max_pixels", max_pixels), ("max_bytes", max_bytes)):
        if value < 1:
            raise ValueError(f"{name}={value}: it must be at least 1")
    check_formats(formats)
    check_timeout(timeout)
