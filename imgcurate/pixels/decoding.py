"""An image file -> upright RGB, at a fraction of its size where that is enough, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from imgcurate.pixels.bounds import jpeg
from imgcurate.pixels.errors import PixelError
from imgcurate.pixels.formats import MAX_PIXELS, check_size, decode_error, open_image
from imgcurate.pixels.share import Room, pixels_that_fit

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# A row of any format has at most so many bytes a pixel.
_ROW_BYTES = 16
# EXIF with thumbnails and makers' notes is less.
_MOST_EXIF = 4 << 20
_BLOCK = 1 << 20

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_room = Room()


@dataclass(frozen=True)
class Picture:
    """An upright RGB image, perhaps decoded at a fraction of its size.

    Attributes
    ----------
    image : PIL.Image.Image
    width, height : int
        Of the file's picture, upright.
    box : (left, top, right, bottom), floats
        Where in `image` the picture lies: a fraction of an odd number of pixels ends within a pixel.
    format : str
        ``"JPEG"``, ``"PNG"`` and so on, as Pillow names it.
    """

    image: Image.Image
    width: int
    height: int
    box: tuple[float, float, float, float]
    format: str = ""


def decode(
    data: bytes, max_pixels: int = MAX_PIXELS, *, truncated: bool = False, formats: Collection[str] = ()
) -> Image.Image:
    """Decode an image file to upright RGB.

    EXIF orientation is applied, an animation gives its first frame, transparency is laid over white, and 16-bit and
    floating-point greys are scaled to 8 bits. Colour profiles are ignored.

    Parameters
    ----------
    data : bytes
        A JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, JPEG 2000, (with pillow-heif) HEIC or (with pillow-jxl-plugin) JPEG XL file, whatever its
        name says.
    max_pixels : int, default 89_478_485
        Larger images are refused before their pixels are decoded. Images that threads decode at the same time have no more than that
        together, or than half of the worker's memory holds, where that is more; others wait for them.
    truncated : bool, default False
        Take what there is of a file whose end is missing.
    formats : collection of str, optional
        Formats that are taken too: some of ``"PSD"``, ``"ICO"``, ``"TGA"``, ``"PPM"`` (all PNM), ``"PCX"`` and ``"QOI"``.

    Returns
    -------
    PIL.Image.Image
        Of mode RGB; its size is the image's width and height.

    Raises
    ------
    PixelError
        Such as ``"decode: truncated JPEG"``, ``"decode: empty file"``, ``"decode: not an image"``; also where a file asks for more time or
        memory than its bytes and pixels are worth, as one with a million strips, scans or segments does.

    Examples
    --------
    >>> decode(b"")
    Traceback (most recent call last):
    imgcurate.pixels.errors.PixelError: decode: empty file
    """
    return decode_picture(data, max_pixels=max_pixels, truncated=truncated, formats=formats).image


def decode_picture(
    data: bytes,
    enough: Callable[[int, int], tuple[int, int]] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    truncated: bool = False,
    formats: Collection[str] = (),
) -> Picture:
    """Decode an image file as `decode` does, and a JPEG at a half, a quarter or an eighth of its size where that is enough.

    Parameters
    ----------
    data : bytes
    enough : callable, optional
        Takes the upright width and height, and returns how wide and high the decoded image must be at least. Default: in full.
    max_pixels, truncated, formats
        As for `decode`.

    Returns
    -------
    Picture

    Raises
    ------
    PixelError
        As `decode`.
    """
    if truncated and data.startswith(_JPEG_START):
        data += _JPEG_END  # as Pillow does; what is missing becomes grey
    image = open_image(data, max_pixels, formats)
    try:
        return _decoded(image, data, enough, max_pixels, truncated)
    except PixelError:
        raise
    except Exception as problem:
        # On bad input Pillow's plugins raise SyntaxError, struct.error, ValueError, OSError, EOFError, MemoryError, ...
        raise decode_error(image.format, problem) from problem


def open_picture(data: bytes, *, max_pixels: int = MAX_PIXELS, formats: Collection[str] = ()) -> Picture:
    """Return an image whose header was read and whose pixels were not decoded.

    Raises
    ------
    PixelError
        As `decode` does of headers.
    """
    image = open_image(data, max_pixels, formats)
    width, height = image.size
    # Pillow has turned the size of a TIFF already.
    if image.format != "TIFF" and _orientation(image) >= 5:
        width, height = height, width
    return Picture(image, width, height, (0.0, 0.0, width, height), image.format or "")


def _decoded(
    image: Image.Image,
    data: bytes,
    enough: Callable[[int, int], tuple[int, int]] | None,
    max_pixels: int,
    truncated: bool,
) -> Picture:
    format = image.format or ""
    width, height = image.size
    if isinstance(image, JpegImageFile):
        if not truncated and jpeg.cannot_hold_its_blocks(data, width, height):
            raise PixelError("decode", f"truncated {format}")
        # In one piece: of what it is given in pieces of 64 KiB, Pillow's decoder reads the seams more slowly, and joins them.
        image.decodermaxblock = max(image.decodermaxblock, len(data))
        if enough is not None:
            turned = _orientation(image) >= 5
            least = enough(*((height, width) if turned else (width, height)))
            image.draft(None, least[::-1] if turned else least)
    else:
        # Some decoders wait for a whole row, and a row that comes in many pieces is joined as often.
        image.decodermaxblock = max(image.decodermaxblock, _ROW_BYTES * width)  # type: ignore[attr-defined]
    shrunk = round(width / image.width)
    with _room.of(image.width * image.height, max(max_pixels, pixels_that_fit())):
        _load(image, truncated)
        # Asked only now: of a TIFF Pillow has applied and removed it.
        orientation = _orientation(image)
        if shrunk == 1:
            width, height = image.size
            check_size(image.size, max_pixels)  # of some formats it is known only now
        box = (0.0, 0.0, width / shrunk, height / shrunk)
        if orientation in _UPRIGHT:
            box = _turned(box, image.size, orientation)
            image = image.transpose(_UPRIGHT[orientation])
            width, height = (height, width) if orientation >= 5 else (width, height)
        return Picture(_to_rgb(image), width, height, box, format)


def _orientation(image: Image.Image) -> int:
    # Broken EXIF says nothing about the pixels, which are fine, and neither does what is too large for EXIF.
    with suppress(Exception):
        if len(image.info.get("exif") or b"") > _MOST_EXIF:
            return 1
        found = int(image.getexif().get(_ORIENTATION, 1))
        return found if found in _UPRIGHT else 1
    return 1


def _turned(
    box: tuple[float, float, float, float], size: tuple[int, int], orientation: int
) -> tuple[float, float, float, float]:
    """Return where `box`, of an image of `size`, lies after the image was turned upright."""
    (x0, y0, x1, y1), (width, height) = box, size
    if orientation in (2, 3, 7, 8):
        x0, x1 = width - x1, width - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = height - y1, height - y0
    return (y0, x0, y1, x1) if orientation >= 5 else (x0, y0, x1, y1)


def _load(image: Image.Image, truncated: bool) -> None:
    try:
        image.load()
    except OSError as problem:
        # What Pillow does where LOAD_TRUNCATED_IMAGES is set, which would hold for all threads of the process.
        if not truncated or "truncated" not in str(problem) or getattr(image, "_im", None) is None:
            raise
        image.tile = []  # type: ignore[attr-defined]
        if image.im.size != image.size:
            image.load_end()  # type: ignore[attr-defined]  # of a TIFF, which it turns upright


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bits(np.asarray(image), sixteen=image.mode != "F"))
    if not image.has_transparency_data:
        # Converting what is RGB already would copy it.
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    canvas = Image.new("RGB", layer.size, "white")
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def _to_8_bits(grey: np.ndarray, sixteen: bool) -> np.ndarray:
    """Scale greys to 0..255: from the 16-bit range, floats from 0..1 or 0..255, all else from lowest..highest."""
    flat = np.ascontiguousarray(grey).reshape(-1)
    # A block at a time: in floats, all of them and what is made of them would be five times the picture.
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(flat), _BLOCK)]
    extremes = [(values.min(), values.max()) for values in (_finite(flat[block]) for block in blocks)]
    low, high = float(min(extremes)[0]), float(max(most for _, most in extremes))
    if sixteen and low >= 0 and high <= 65535:
        low, high = 0, 65535
    elif low >= 0 and high <= 1:
        low, high = 0, 1
    elif low >= 0 and high <= 255:
        low, high = 0, 255
    scaled = np.empty(len(flat), dtype=np.uint8)
    for block in blocks:
        scaled[block] = np.rint((_finite(flat[block]) - low) * (255 / max(high - low, 1e-30)))
    return scaled.reshape(grey.shape)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
