"""What a file may ask of its decoder, read from its headers before the decoder sees it: no more than its bytes and its pixels are worth.

Decoders do what a file says. A few bytes may say so often that the same strip is to be decoded, or that a large frame lies within a
small picture, that it takes hours or all memory. What honest files say is far from these bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from imgcurate.pixels.bounds import avif, jpeg, jpeg2000, others, tiff
from imgcurate.pixels.errors import PixelError

_CHECKS: dict[str, Callable[[bytes, int], str | None]] = {
    "JPEG": jpeg.excess,
    "TIFF": tiff.excess,
    "AVIF": avif.excess,
    "HEIF": avif.excess_of_exif,
    "JPEG2000": jpeg2000.excess,
    "JXL": others.excess_of_jxl,
    "PNG": others.excess_of_png,
    "GIF": others.excess_of_gif,
    "BMP": others.excess_of_bmp,
    "PPM": others.excess_of_ppm,
    "PSD": others.excess_of_psd,
    "QOI": others.excess_of_qoi,
    "ICO": others.excess_of_ico,
}


def check(name: str, data: bytes, max_pixels: int) -> None:
    """Raise a PixelError where a file of the format `name` asks for more than it may.

    Parameters
    ----------
    name : str
        As Pillow names it.
    data : bytes
    max_pixels : int
        For frames that the header does not own up to.
    """
    try:
        said = _CHECKS[name](data, max_pixels) if name in _CHECKS else None
    except (struct.error, IndexError):
        return  # cut off inside its headers, which its decoder will say
    if said is not None:
        raise PixelError("decode", said)
