"""The 64-bit DCT perceptual hash of an image, bit for bit that of the ``imagehash`` package, and of a partition's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from imgcurate import images, pixels

_SIDE, _KEPT = 32, 8

#: The first 8 rows of the DCT-II of 32 numbers, as scipy scales it.
_BASIS = 2 * np.cos(np.pi / (2 * _SIDE) * np.outer(np.arange(_KEPT), 2 * np.arange(_SIDE) + 1))

# Coefficients are at most 4 * 32 * 32 * 255 = 1.1e6, and their rounding, here and in scipy, stays below 1e-8. Where the two
# middle ones are further apart than this, any way of computing them gives the same bits.
_TIE = 1e-6


def phash(image: Image.Image | np.ndarray) -> int:
    """Hash what an image looks like, so that copies that were resized, compressed or toned differ in few bits.

    Parameters
    ----------
    image : PIL.Image.Image or numpy.ndarray of shape (h, w, 3), uint8
        An array is RGB.

    Returns
    -------
    int
        0 to 2**64 - 1. The first coefficient is the most significant bit: ``f"{phash(image):016x}"`` is
        ``str(imagehash.phash(image))``.

    Raises
    ------
    TypeError
        Where `image` is an array of another shape or type.

    Notes
    -----
    As published by N. Krawetz, "Looks Like It" (hackerfactor.com, 2011), in the form of the package ``imagehash``: grey,
    32 x 32 pixels by Lanczos, the 8 x 8 lowest coefficients of the DCT-II over columns and then rows, one bit each for those
    above their median. Of a side of more than two million pixels the average of some is taken first.

    So 32 of the 64 bits are set unless coefficients tie, and two such hashes differ in an even number of bits. Ties are of
    images that are flat or symmetric: their coefficients are zeros, and the rounding of the transform decides the bits. There
    scipy's transform is asked, as imagehash asks it. A flat image of any colour but black is 8000000000000000.

    Examples
    --------
    >>> noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    >>> f"{phash(noise):016x}"
    'd76b482e3f83680b'
    """
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    small = np.asarray(pixels.shortened(image.convert("L")).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
    coefficients = _BASIS @ small.astype(np.float64) @ _BASIS.T
    below, above = np.sort(coefficients, axis=None)[_KEPT * _KEPT // 2 - 1 :][:2]
    bits = coefficients > below if above - below > _TIE else _bits_of_ties(small)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def phash_part(
    part: Any,
    storage_options: Mapping[str, Any] | None = None,
    threads: int | None = None,
    formats: Sequence[str] = (),
    timeout: float | None = None,
    max_bytes: int = pixels.MAX_BYTES,
) -> Any:
    """Hash the images of one partition.

    Parameters
    ----------
    part : pandas or cuDF DataFrame of n rows
        With columns ``url``, ``offset``, ``bytes`` and perhaps ``error``, ``etag`` and ``digest``. Rows that have an error are not read.
    storage_options : mapping, optional
        Passed to fsspec.
    threads : int, optional
        As for `images.work`.
    formats, timeout, max_bytes
        As for `imgcurate.embed`.

    Returns
    -------
    pandas or cuDF DataFrame of n rows
        Columns ``phash`` (uint64, null where the image cannot be used; of the upright RGB image that `pixels.decode` gives),
        ``error`` (string: the row's own, else "read: ..." or "decode: ...", else null) and ``digest`` (string: xxh3_128 of the file's
        bytes). Of no rows it is Dask's meta.

    Raises
    ------
    imgcurate.tar.ShardChanged
        As `images.work`.

    Examples
    --------
    >>> import pandas as pd
    >>> phash_part(pd.DataFrame({"url": ["/nowhere.jpg"], "offset": [0], "bytes": [9]}))
       phash                            error digest
    0   <NA>  read: No such file or directory    NaN
    """
    function = partial(_of_file, formats=tuple(formats))
    types = {"phash": pa.uint64()}
    return images.map_images(
        part, partial(pixels.within, timeout, function), types, storage_options, threads, max_bytes=max_bytes
    )


def _of_file(data: bytes, formats: Sequence[str]) -> tuple[int]:
    return (phash(pixels.decode(data, formats=formats)),)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise TypeError(f"phash takes (h, w, 3) uint8, not {array.shape} {array.dtype}; Image.fromarray makes an image")
    return Image.fromarray(array)


def _bits_of_ties(small: np.ndarray) -> np.ndarray:
    from scipy import fftpack

    coefficients = fftpack.dct(fftpack.dct(small, axis=0), axis=1)[:_KEPT, :_KEPT]
    return coefficients > np.median(coefficients)
