"""A row's bytes -> RGB: range reads, decoding (at a fraction of the size where that is enough), limits, resize and crop.

What is wrong with one image is a value here (a `PixelError`, whose text goes into the row's ``error``), never the end
of a run.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from imgcurate import storage, tar

T = TypeVar("T")

#: The most pixels an image may have: what Pillow itself warns at, a quarter of a gigabyte as RGB.
MAX_PIXELS = 89_478_485

# Pillow opens many more, some by running other programs (EPS), some with pictures inside that escape the size limit
# (ICO). These are what sources list, and JPEG 2000, which is found under their extensions.
# HEIF is there where pillow-heif is installed.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "HEIF")

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")

# Images that follow each other in a file are read in one piece of at most so many bytes, with what lies between them where that is
# little: a store answers a question in tens of milliseconds, in which it would have sent a megabyte.
_LOCAL_PIECE, _LOCAL_GAP = 4 << 20, 128 << 10
_REMOTE_PIECE, _REMOTE_GAP = 32 << 20, 1 << 20

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
    rows: Iterable[tuple[str, int | None, int | None]],
    storage_options: Mapping[str, Any] | None = None,
    etags: Mapping[str, Collection[str]] | None = None,
) -> Iterator[bytes | PixelError]:
    """Read the bytes of each row, in order: one pass over each file, in pieces of a few megabytes.

    Parameters
    ----------
    rows : iterable of (url, offset, size)
        As in the columns of a frame. A file is opened once for every run of rows that lie in it, and read from front to back
        where they are in order.
    storage_options : mapping, optional
        Passed to fsspec.
    etags : mapping of str to collection of str, optional
        What the files' `storage.etag` was when they were listed, by url. It is asked before and after a run of rows is read.

    Yields
    ------
    bytes or PixelError
        An error, such as ``"read: No such file or directory"``, where the bytes cannot be had in full, after several attempts where
        that may help.

    Raises
    ------
    imgcurate.tar.ShardChanged
        Where a file's etag is no longer what it was.

    Examples
    --------
    >>> import fsspec
    >>> fs = fsspec.filesystem("memory")
    >>> fs.pipe("/a.bin", b"0123456789")
    >>> list(read_images([("memory://a.bin", 2, 3), ("memory://a.bin", 8, 4)]))
    [b'234', PixelError('read: 2 bytes where there should be 4; the file is shorter than when it was listed')]
    """
    opening, reading = _Again(), _Again()
    for url, run in itertools.groupby(rows, key=itemgetter(0)):
        listed = (etags or {}).get(url, ())
        with ExitStack() as stack:
            try:
                file = stack.enter_context(opening(partial(storage.open_ranges, url, storage_options)))
                tar.refuse_changed(url, listed, storage_options)
            except tar.ShardChanged:
                raise
            except Exception as problem:
                # The whole run shares the verdict: asking a dead server once a row would take hours.
                yield from (_read_error(problem) for _ in run)
                continue
            for piece in _pieces((_place(offset, size) for _, offset, size in run), storage.is_local(url)):
                yield from _read_piece(file, url, piece, storage_options, reading)
        try:
            tar.refuse_changed(url, listed, storage_options)
        except tar.ShardChanged:
            raise
        except Exception:
            # It was read all the same, and what is copied from it will be compared with its digest.
            continue


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


def decode(data: bytes, max_pixels: int = MAX_PIXELS, *, truncated: bool = False) -> Image.Image:
    """Decode an image file to upright RGB.

    EXIF orientation is applied, an animation gives its first frame, transparency is laid over white, and 16-bit and
    floating-point greys are scaled to 8 bits. Colour profiles are ignored.

    Parameters
    ----------
    data : bytes
        A JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, JPEG 2000 or (with pillow-heif) HEIC file, whatever its name says.
    max_pixels : int, default 89_478_485
        Larger images are refused before their pixels are decoded.
    truncated : bool, default False
        Take what there is of a file whose end is missing.

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
    return decode_picture(data, max_pixels=max_pixels, truncated=truncated).image


def decode_picture(
    data: bytes,
    enough: Callable[[int, int], tuple[int, int]] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    truncated: bool = False,
) -> Picture:
    """Decode an image file as `decode` does, and a JPEG at a half, a quarter or an eighth of its size where that is enough.

    Parameters
    ----------
    data : bytes
    enough : callable, optional
        Takes the upright width and height, and returns how wide and high the decoded image must be at least. Default: in full.
    max_pixels, truncated
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
    image = _open(data, max_pixels)
    format = image.format or ""
    try:
        width, height = image.size
        if isinstance(image, JpegImageFile):
            # In one piece: of what it is given in pieces of 64 KiB, Pillow's decoder reads the seams more slowly, and joins them.
            image.decodermaxblock = max(image.decodermaxblock, len(data))
        if enough is not None and isinstance(image, JpegImageFile):
            turned = _orientation(image) >= 5
            least = enough(*((height, width) if turned else (width, height)))
            image.draft(None, least[::-1] if turned else least)
        shrunk = round(width / image.width)
        _load(image, truncated)
        # Asked only now: of a TIFF Pillow has applied and removed it.
        orientation = _orientation(image)
        if shrunk == 1:
            width, height = image.size
        box = (0.0, 0.0, width / shrunk, height / shrunk)
        if orientation in _UPRIGHT:
            box = _turned(box, image.size, orientation)
            image = image.transpose(_UPRIGHT[orientation])
            width, height = (height, width) if orientation >= 5 else (width, height)
        return Picture(_to_rgb(image), width, height, box, format)
    except Exception as problem:
        # On bad input Pillow's plugins raise SyntaxError, struct.error, ValueError, OSError, EOFError, MemoryError, ...
        raise _decode_error(format, problem) from problem


def open_picture(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Return an image whose header was read and whose pixels were not decoded.

    Raises
    ------
    PixelError
        As `decode` does of headers.
    """
    image = _open(data, max_pixels)
    width, height = image.size
    # Pillow has turned the size of a TIFF already.
    if image.format != "TIFF" and _orientation(image) >= 5:
        width, height = height, width
    return Picture(image, width, height, (0.0, 0.0, width, height), image.format or "")


def resize_and_crop(
    image: Image.Image | Picture,
    size: int | tuple[int, int] | None,
    crop: tuple[int, int] | None,
    resample: int = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Resize an image and cut out its centre, as transformers' image processors do.

    A long strip is resized only where the crop keeps it, so that 1 x 20,000 pixels never become 224 x 4,480,000.

    Parameters
    ----------
    image : PIL.Image.Image of mode RGB, or Picture
    size : int, (height, width) or None
        The length of the shorter side, or both sides (squashed), or no resize.
    crop : (height, width) or None
        What is cut out; where it is larger than the resized image the rest is black. None: nothing is cut.
    resample : int, default bicubic
        One of ``PIL.Image.Resampling``.

    Returns
    -------
    numpy.ndarray of shape (height, width, 3), uint8
        Of an image decoded in full within two levels of what their PIL backend gives: torch, which resizes here and in their other
        backend, is five times as fast and rounds some values the other way.

    Examples
    --------
    >>> resize_and_crop(Image.new("RGB", (640, 480), "red"), 224, (224, 224)).shape
    (224, 224, 3)
    """
    if isinstance(image, Image.Image):
        image = Picture(image, image.width, image.height, (0.0, 0.0, image.width, image.height))
    width, height = resized(image.width, image.height, size)
    crop_height, crop_width = crop or (height, width)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    x0, x1 = max(left, 0), min(left + crop_width, width)
    y0, y1 = max(top, 0), min(top + crop_height, height)
    resample = Image.Resampling(resample)
    if width * height <= _STRIP * (x1 - x0) * (y1 - y0):
        kept = _resize(image, width, height, resample)[y0:y1, x0:x1]
    else:
        at_x, at_y, right, bottom = image.box
        scale_x, scale_y = (right - at_x) / width, (bottom - at_y) / height
        box = (
            at_x + x0 * scale_x,
            at_y + y0 * scale_y,
            min(at_x + x1 * scale_x, right),
            min(at_y + y1 * scale_y, bottom),
        )
        kept = np.asarray(image.image.resize((x1 - x0, y1 - y0), resample, box=box))
    if kept.shape[:2] == (crop_height, crop_width):
        return _packed(kept)
    canvas = np.zeros((crop_height, crop_width, 3), dtype=np.uint8)
    canvas[y0 - top : y1 - top, x0 - left : x1 - left] = kept[:, :, :3]
    return canvas


def resized(width: int, height: int, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return width and height after the resize to `size` (see `resize_and_crop`); the longer side is rounded down.

    Examples
    --------
    >>> resized(640, 480, 224)
    (298, 224)
    """
    if size is None:
        return width, height
    if isinstance(size, tuple):
        return size[1], size[0]
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def _resize(picture: Picture, width: int, height: int, resample: Image.Resampling) -> np.ndarray:
    """Return the resized picture, of three or four bytes a pixel; the fourth says nothing."""
    image, (left, top, right, bottom) = picture.image, picture.box
    mode = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}.get(resample)
    if mode is None or left or top:
        return np.asarray(image.resize((width, height), resample, box=picture.box))
    if image.size == (width, height):
        return np.asarray(image)
    import torch

    pixels = torch.from_dlpack(_shared(image)).permute(2, 0, 1)[None]
    # By factors, because the picture may end within a pixel; a little more, because the size that they make is rounded down.
    factors = (height / bottom * (1 + 1e-9), width / right * (1 + 1e-9))
    made = torch.nn.functional.interpolate(pixels, scale_factor=factors, mode=mode, antialias=True)
    return made[0].permute(1, 2, 0).numpy()


def _packed(pixels: np.ndarray) -> np.ndarray:
    """Return what is cut out of a picture as three bytes a pixel without gaps."""
    if pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels)
    # Channel by channel: pixel by pixel NumPy copies three bytes a step, at a fifth of the speed.
    packed = np.empty((*pixels.shape[:2], 3), dtype=np.uint8)
    for channel in range(3):
        packed[:, :, channel] = pixels[:, :, channel]
    return packed


def _shared(image: Image.Image) -> np.ndarray:
    """Return an RGB image's own memory, of four bytes a pixel; a copy of three where it lies in several pieces (above 16 MiB)."""
    try:
        flat = pa.array(image).flatten()
    except ValueError:
        return np.array(image)
    return flat.to_numpy().reshape(image.height, image.width, 4)


Place = tuple[int, int]


def _place(offset: int | None, size: int | None) -> Place | None:
    if offset is None or size is None or not (offset >= 0 and size >= 0):
        return None
    # Other tools store integers that may be null as floats.
    return int(offset), int(size)


def _pieces(places: Iterable[Place | None], local: bool) -> Iterator[list[Place] | None]:
    """Gather places that follow each other closely, up to some megabytes; what is no place stands by itself."""
    largest, gap = (_LOCAL_PIECE, _LOCAL_GAP) if local else (_REMOTE_PIECE, _REMOTE_GAP)
    piece: list[Place] = []
    for place in places:
        if piece and place:
            (start, _), end, (offset, size) = piece[0], sum(piece[-1]), place
            if end <= offset <= end + gap and offset + size - start <= largest:
                piece.append(place)
                continue
        if piece:
            yield piece
        piece = [place] if place else []
        if not place:
            yield None
    if piece:
        yield piece


def _read_piece(
    file: Any, url: str, places: list[Place] | None, storage_options: Mapping[str, Any] | None, reading: _Again
) -> Iterator[bytes | PixelError]:
    if places is None:
        yield PixelError("read", "the row has no offset and size")
        return
    start, end = places[0][0], sum(places[-1])

    def read() -> bytes:
        file.seek(start)
        data: bytes = file.read(end - start)
        if len(data) < end - start and not storage.is_local(url) and storage.size_of(url, storage_options) >= end:
            raise OSError(f"{len(data)} of {end - start} bytes came, and then the connection ended")
        return data

    try:
        data = reading(read)
    except Exception as problem:
        yield from (_read_error(problem) for _ in places)
        return
    for offset, size in places:
        image = data if len(places) == 1 else data[offset - start : offset - start + size]
        if len(image) != size:
            text = f"{len(image)} bytes where there should be {size}; the file is shorter than when it was listed"
            yield PixelError("read", text)
        else:
            yield image


class _Again:
    """Tries again what failed; after something has failed for good, all once only, until something succeeds.

    Where a store has gone away, waiting for it at every file would take days.
    """

    def __init__(self) -> None:
        self.worn = False

    def __call__(self, function: Callable[[], T]) -> T:
        retrying = storage.retrying()
        try:
            result = function() if self.worn else retrying(function)
        except Exception:
            self.worn = self.worn or retrying.statistics["attempt_number"] > 1
            raise
        self.worn = False
        return result


def _read_error(problem: Exception) -> PixelError:
    return PixelError("read", getattr(problem, "strerror", None) or str(problem) or type(problem).__name__)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Open without decoding pixels.

    ``Image.open`` does the same, but refuses what is too large without saying how large it is, warns on stderr about
    half of that, and forgets why the one format that recognised the file could not read it.
    """
    if not data:
        raise PixelError("decode", "empty file")
    Image.init()
    heic = data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS
    if heic and not _can_open_heic():
        raise PixelError("decode", "HEIC needs pillow-heif: pip install 'imgcurate[heic]'")
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
                image: Image.Image = factory(io.BytesIO(data), "")
            except Exception as problem:
                verdict = _decode_error(name, problem)
            else:
                _check_size(image, max_pixels)
                return image
    raise verdict


@cache
def _can_open_heic() -> bool:
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True


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


def _orientation(image: Image.Image) -> int:
    # Broken EXIF says nothing about the pixels, which are fine.
    with suppress(Exception):
        return int(image.getexif().get(_ORIENTATION, 1))
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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bits(np.asarray(image), sixteen=image.mode != "F"))
    if not image.has_transparency_data:
        # Converting what is RGB already would copy it.
        return image if image.mode == "RGB" else image.convert("RGB")
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


def worker_threads(gpu: bool) -> int:
    """Return how many cores are this worker's: what torch was given, or, beside a GPU, its share of the machine's."""
    import torch

    if not gpu:
        return max(1, torch.get_num_threads())
    from dask.system import CPU_COUNT

    return max(1, CPU_COUNT // torch.cuda.device_count())
