"""Which files are taken for pictures, and how they are opened: headers only, within bounds."""

from __future__ import annotations

import importlib
import importlib.util
import io
import struct
from collections.abc import Collection
from functools import cache
from typing import NamedTuple

from PIL import Image

from imgcurate.pixels import bounds
from imgcurate.pixels.errors import PixelError

#: The most pixels an image may have: what Pillow itself warns at, a quarter of a gigabyte as RGB.
MAX_PIXELS = 89_478_485
#: The most bytes that an image's file may have: those of as many pixels as RGB.
MAX_BYTES = 3 * MAX_PIXELS

# Pillow opens many more, some by running other programs (EPS), some with pictures inside that have sizes of their own (ICO). These
# are what sources list, and JPEG 2000, which is found under their extensions.
_TAKEN = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "HEIF", "JXL")
#: Formats that are taken where they are asked for by name.
BY_NAME = ("PSD", "ICO", "TGA", "PPM", "PCX", "QOI")


class _Added(NamedTuple):
    """A format that a package adds to Pillow, by importing a module of it and perhaps by a function there."""

    called: str
    package: str
    extra: str
    module: str
    function: str | None = None


_ADDED = {
    "HEIF": _Added("HEIC", "pillow-heif", "heic", "pillow_heif", "register_heif_opener"),
    "JXL": _Added("JPEG XL", "pillow-jxl-plugin", "jxl", "pillow_jxl.JpegXLImagePlugin"),
}
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_JXL_STARTS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a")


def check_formats(formats: Collection[str]) -> None:
    """Raise a ValueError where a format is not one of `BY_NAME`.

    Examples
    --------
    >>> check_formats(["EPS"])
    Traceback (most recent call last):
    ValueError: formats=['EPS']: 'EPS' is not taken by name; give some of PSD, ICO, TGA, PPM, PCX, QOI
    """
    names = [formats] if isinstance(formats, str) else list(formats)
    for name in names:
        if name not in BY_NAME:
            raise ValueError(f"formats={names!r}: {name!r} is not taken by name; give some of {', '.join(BY_NAME)}")
    if isinstance(formats, str):
        raise ValueError(f"formats={formats!r}: give a list, such as [{formats!r}]")


def open_image(data: bytes, max_pixels: int, formats: Collection[str] = ()) -> Image.Image:
    """Open without decoding pixels.

    ``Image.open`` does the same, but asks less of a file's headers, refuses what is too large without saying how large it is, warns on
    stderr about half of that, and forgets why the one format that recognised the file could not read it.

    Parameters
    ----------
    data : bytes
    max_pixels : int
    formats : collection of str
        Those of `BY_NAME` that are taken too.

    Raises
    ------
    PixelError
        Where it is no picture, of a format that is not taken, or too large.
    """
    if not data:
        raise PixelError("decode", "empty file")
    Image.init()
    needed = _added_format(data)
    if needed is not None and not can_open(needed):
        added = _ADDED[needed]
        raise PixelError("decode", f"{added.called} needs {added.package}: pip install 'imgcurate[{added.extra}]'")
    verdict = PixelError("decode", "not an image")
    for name in (*_TAKEN, *formats):
        accepted = _accepts(name, data)
        if isinstance(accepted, str):
            verdict = PixelError("decode", accepted)
        elif accepted:
            bounds.check(name, data, max_pixels)
            try:
                image: Image.Image = Image.OPEN[name][0](io.BytesIO(data), "")
            except Exception as problem:
                verdict = decode_error(name, problem)
            else:
                check_size(image.size, max_pixels)
                return image
    if str(verdict) == "decode: not an image":
        known = next((name for name in BY_NAME if name not in formats and _accepts(name, data)), None)
        if known is not None:
            raise PixelError("decode", f"format not taken: {known}; formats=[{known!r}] takes it")
    raise verdict


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raise a PixelError where a picture is too large, or none."""
    width, height = size
    if width * height > max_pixels:
        text = f"{width} x {height} pixels is more than the limit of {max_pixels / 1e6:.0f} megapixels"
        raise PixelError("decode", text)
    if width < 1 or height < 1:
        raise PixelError("decode", f"{width} x {height} pixels is no picture")


def decode_error(name: str | None, problem: Exception) -> PixelError:
    """Return what a decoder's exception says of an image; on bad input Pillow's plugins raise nearly any."""
    if isinstance(problem, MemoryError):
        return PixelError("decode", f"{name} that takes more memory than there is for it")
    text = str(problem) or type(problem).__name__
    return PixelError("decode", f"truncated {name}" if "truncated" in text.lower() else f"broken {name}: {text}")


def _accepts(name: str, data: bytes) -> bool | str:
    """Tell whether a file begins as those of a format do; a text says why it cannot be opened all the same."""
    if name not in Image.OPEN:
        return False  # Pillow was built without the library for it
    if name == "TGA":
        return _may_be_tga(data)
    accepts = Image.OPEN[name][1]
    try:
        return accepts is None or accepts(data[:16])
    except Exception:
        return False  # too short to tell


def _may_be_tga(data: bytes) -> bool:
    """Tell whether a file that begins like no other is a TGA: it has no mark at its beginning, and only since 1989 one at its end."""
    if data[-18:] == b"TRUEVISION-XFILE.\0":
        return True
    if len(data) < 18:
        return False
    palette, kind, width, height, depth = *struct.unpack_from("<xBB", data), *struct.unpack_from("<HHB", data, 12)
    return palette < 2 and kind in (1, 2, 3, 9, 10, 11) and width > 0 < height and depth in (8, 16, 24, 32)


def _added_format(data: bytes) -> str | None:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "HEIF"
    return "JXL" if data.startswith(_JXL_STARTS) else None


@cache
def can_open(name: str) -> bool:
    """Tell whether a format that a package adds can be opened, and let Pillow open it."""
    added = _ADDED[name]
    if importlib.util.find_spec(added.module.partition(".")[0]) is None:
        return False
    module = importlib.import_module(added.module)
    if added.function is not None:
        getattr(module, added.function)()
    return True
