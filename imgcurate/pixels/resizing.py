"""A picture -> the pixels that a model looks at: resized, and its centre cut out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from PIL import Image

from imgcurate.pixels.decoding import Picture

# An image is a strip where this many times as many pixels would be made as the crop keeps. For others, resizing all of
# it is worth its few milliseconds: Pillow rounds to bytes between its two passes and chooses their order by the sizes,
# so that resizing a part of a drawing changes some of its edges by 20 grey levels, and its vector's cosine to .9997.
_STRIP = 4

_LONGEST = 1 << 20


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


def shortened(image: Image.Image) -> Image.Image:
    """Return an image of which no side is longer than two million pixels, averaged down where one was: for what resizes it to few.

    The weights of a resize take tens of bytes a pixel of the longer side, gigabytes where all pixels lie in one row.

    Examples
    --------
    >>> shortened(Image.new("L", (5_000_000, 1))).size
    (1250000, 1)
    """
    factors = (max(1, image.width // _LONGEST), max(1, image.height // _LONGEST))
    return image.reduce(factors) if max(factors) > 1 else image


def _resize(picture: Picture, width: int, height: int, resample: Image.Resampling) -> np.ndarray:
    """Return the resized picture, of three or four bytes a pixel; the fourth says nothing."""
    image, (left, top, right, bottom) = picture.image, picture.box
    if max(image.size) > 2 * _LONGEST:
        return np.asarray(shortened(image).resize((width, height), resample))
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
