"""A row's bytes -> RGB: range reads, decoding, limits, and the resize that CLIP's processor does.

What is wrong with one image is a value here (a `PixelError`, whose text goes into the row's ``error``), never the end
of a run.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from operator import itemgetter
from typing import Any

import numpy as np
from PIL import Image

from imgcurate import storage

#: The most pixels an image may have: what Pillow itself warns at, a quarter of a gigabyte as RGB.
MAX_PIXELS = 89_478_485

# Pillow opens many more, some by running other programs (EPS), some with pictures inside that escape the size limit
# (ICO). These are what sources list, and JPEG 2000, which is found under their extensions.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000")

# An image is a strip where this many times as many pixels would be made as the crop keeps. For others, resizing all of
# it is worth its few milliseconds: Pillow rounds to bytes between its two passes and chooses their order by the sizes,
# so that resizing a part of a drawing changes some of its edges by 20 grey levels, and its vector's cosine to .9997.
_STRIP = 4

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


class PixelError(Exception):
    """Why an image cannot be used, as one line for the row's ``error``."""

    def __init__(self, step: str, problem: object):
        text = " ".join(str(problem).split()) or type(problem).__name__
        super().__init__(f"{step}: {text[:300]}")


def read_images(
    rows: Iterable[tuple[str, int | None, int | None]], storage_options: Mapping[str, Any] | None = None
) -> Iterator[bytes | PixelError]:
    """Read the bytes of each row, in order, opening a file once for every run of rows that lie in it.

    Parameters
    ----------
    rows : iterable of (url, offset, size)
        As in the columns of a frame.
    storage_options : mapping, optional
        Passed to fsspec.

    Yields
    ------
    bytes or PixelError
        An error, such as ``"read: No such file or directory"``, where the bytes cannot be had in full.

    Examples
    --------
    >>> import fsspec
    >>> fs = fsspec.filesystem("memory")
    >>> fs.pipe("/a.bin", b"0123456789")
    >>> list(read_images([("memory://a.bin", 2, 3), ("memory://a.bin", 8, 4)]))
    [b'234', PixelError('read: 2 bytes where there should be 4; the file is shorter than when it was listed')]
    """
    for url, run in itertools.groupby(rows, key=itemgetter(0)):
        with ExitStack() as stack:
            try:
                file = stack.enter_context(storage.open_input(url, storage_options))
            except Exception as problem:
                # The whole run shares the verdict: asking a dead server once a row would take hours.
                yield from (_read_error(problem) for _ in run)
                continue
            for _, offset, size in run:
                yield _read_range(file, offset, size)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to upright RGB.

    EXIF orientation is applied, an animation gives its first frame, transparency is laid over white, and 16-bit and
    floating-point greys are scaled to 8 bits.

    Parameters
    ----------
    data : bytes
        A JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF or JPEG 2000 file, whatever its name says.
    max_pixels : int, default 89_478_485
        Larger images are refused before their pixels are decoded.

    Returns
    -------
    PIL.Image.Image
        Of mode RGB; its size is the image's width and height.

    Raises
    ------
    PixelError
        Such as ``"decode: truncated JPEG"``, ``"decode: empty file"``, ``"decode: not an image"``.

    Examples
    --------
    >>> decode(b"")
    Traceback (most recent call last):
    imgcurate.pixels.PixelError: decode: empty file
    """
    if not data:
        raise PixelError("decode", "empty file")
    image = _open(data)
    _check_size(image, max_pixels)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except Exception as problem:
        # On bad input Pillow's plugins raise SyntaxError, struct.error, ValueError, OSError, EOFError, MemoryError, ...
        raise _decode_error(image.format, problem) from problem


def resize_and_crop(
    image: Image.Image,
    size: int | tuple[int, int] | None,
    crop: tuple[int, int] | None,
    resample: int = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Resize an image and cut out its centre, as the PIL backend of transformers' CLIPImageProcessor does.

    A long strip is resized only where the crop keeps it, so that 1 x 20,000 pixels never become 224 x 4,480,000.

    Parameters
    ----------
    image : PIL.Image.Image
        Of mode RGB.
    size : int, (height, width) or None
        The length of the shorter side, or both sides (squashed), or no resize.
    crop : (height, width) or None
        What is cut out; where it is larger than the resized image the rest is black. None: nothing is cut.
    resample : int, default bicubic
        One of ``PIL.Image.Resampling``.

    Returns
    -------
    numpy.ndarray of shape (height, width, 3), uint8
        Bit for bit that processor's, except of strips (see `_STRIP`), where rounding differs here and there.

    Examples
    --------
    >>> resize_and_crop(Image.new("RGB", (640, 480), "red"), 224, (224, 224)).shape
    (224, 224, 3)
    """
    height, width = _resized(image, size)
    crop_height, crop_width = crop or (height, width)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    x0, x1 = max(left, 0), min(left + crop_width, width)
    y0, y1 = max(top, 0), min(top + crop_height, height)
    if width * height <= _STRIP * (x1 - x0) * (y1 - y0):
        kept = np.asarray(image.resize((width, height), Image.Resampling(resample)))[y0:y1, x0:x1]
    else:
        scale_x, scale_y = image.width / width, image.height / height
        box = (x0 * scale_x, y0 * scale_y, min(x1 * scale_x, image.width), min(y1 * scale_y, image.height))
        kept = np.asarray(image.resize((x1 - x0, y1 - y0), Image.Resampling(resample), box=box))
    if kept.shape[:2] == (crop_height, crop_width):
        return kept
    canvas = np.zeros((crop_height, crop_width, 3), dtype=np.uint8)
    canvas[y0 - top : y1 - top, x0 - left : x1 - left] = kept
    return canvas


def _read_range(file: Any, offset: int | None, size: int | None) -> bytes | PixelError:
    if offset is None or size is None or offset < 0 or size < 0:
        return PixelError("read", "the row has no offset and size")
    # Other tools store integers that may be null as floats.
    offset, size = int(offset), int(size)
    try:
        file.seek(offset)
        data: bytes = file.read(size)
    except Exception as problem:
        return _read_error(problem)
    if len(data) != size:
        text = f"{len(data)} bytes where there should be {size}; the file is shorter than when it was listed"
        return PixelError("read", text)
    return data


def _read_error(problem: Exception) -> PixelError:
    return PixelError("read", getattr(problem, "strerror", None) or str(problem) or type(problem).__name__)


def _open(data: bytes) -> Image.Image:
    """Open without decoding pixels.

    ``Image.open`` does the same, but refuses what is too large without saying how large it is, warns on stderr about
    half of that, and forgets why the one format that recognised the file could not read it.
    """
    Image.init()
    verdict = PixelError("decode", "not an image")
    for name in _FORMATS:
        if name not in Image.OPEN:
            continue  # Pillow was built without the library for it
        factory, accepts = Image.OPEN[name]
        try:
            accepted = accepts is None or accepts(data[:16])
        except Exception:
            continue  # too short to tell
        if isinstance(accepted, str):
            verdict = PixelError("decode", accepted)
        elif accepted:
            try:
                return factory(io.BytesIO(data), "")
            except Exception as problem:
                verdict = _decode_error(name, problem)
    raise verdict


def _decode_error(name: str | None, problem: Exception) -> PixelError:
    text = str(problem) or type(problem).__name__
    return PixelError("decode", f"truncated {name}" if "truncated" in text.lower() else f"broken {name}: {text}")


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        text = f"{width} x {height} pixels is more than the limit of {max_pixels / 1e6:.0f} megapixels"
        raise PixelError("decode", text)
    if width < 1 or height < 1:
        raise PixelError("decode", f"{width} x {height} pixels is no picture")


def _upright(image: Image.Image) -> Image.Image:
    orientation = 1
    # Broken EXIF says nothing about the pixels, which are fine.
    with suppress(Exception):
        orientation = image.getexif().get(_ORIENTATION, 1)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bits(np.asarray(image), sixteen=image.mode != "F"))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGB", layer.size, "white")
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def _to_8_bits(grey: np.ndarray, sixteen: bool) -> np.ndarray:
    """Scale greys to 0..255: from the 16-bit range, floats from 0..1 or 0..255, all else from lowest..highest."""
    values = np.nan_to_num(grey.astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    if sixteen and low >= 0 and high <= 65535:
        low, high = 0, 65535
    elif low >= 0 and high <= 1:
        low, high = 0, 1
    elif low >= 0 and high <= 255:
        low, high = 0, 255
    return np.rint((values - low) * (255 / max(high - low, 1e-30))).astype(np.uint8)


def _resized(image: Image.Image, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return (height, width) after the resize; the longer side is rounded down, as transformers does."""
    if size is None:
        return image.height, image.width
    if isinstance(size, tuple):
        return size
    if image.width <= image.height:
        return int(size * image.height / image.width), size
    return size, int(size * image.width / image.height)


def worker_threads(gpu: bool) -> int:
    """Return how many cores are this worker's: what torch was given, or, beside a GPU, its share of the machine's."""
    import torch

    if not gpu:
        return max(1, torch.get_num_threads())
    from dask.system import CPU_COUNT

    return max(1, CPU_COUNT // torch.cuda.device_count())
