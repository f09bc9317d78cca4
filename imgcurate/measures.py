"""measure(): what can be said of an image's quality without a model, as columns to filter by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from imgcurate import images, pixels, schema, vectors
from imgcurate.phash import phash
from imgcurate.rowwise import map_rows

if TYPE_CHECKING:
    import dask.dataframe as dd

#: The columns that `measure` can make, in their order.
COLUMNS = (
    "width",
    "height",
    "aspect",
    "bytes_per_pixel",
    "format",
    "sharpness",
    "brightness",
    "contrast",
    "colourfulness",
    "entropy",
    "phash",
)
_OF_HEADER = COLUMNS[:5]
# What a perceptual hash resizes to, and how many times as large a draft must be.
_HASH_SIDE, _ENOUGH = 32, 4
_BLOCK_PIXELS = 1 << 18


def measure(
    frame: Any,
    columns: Sequence[str] | None = None,
    *,
    draft: bool = False,
    truncated: bool = False,
    max_pixels: int = pixels.MAX_PIXELS,
    max_bytes: int = pixels.MAX_BYTES,
    formats: Sequence[str] = (),
    timeout: float | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> dd.DataFrame:
    """Add what can be measured of each image without a model, from one decoding.

    Parameters
    ----------
    frame : Dask DataFrame
        With columns ``url``, ``offset`` and ``bytes``. Rows that have an ``error`` already are not read. Columns of those below that it has
        already stay as they are. ``etag`` and ``digest`` are compared with what is read.
    columns : sequence of str, optional
        Which to add. Default: all. Where only ``width``, ``height``, ``aspect``, ``bytes_per_pixel`` and ``format`` are asked for, files are
        opened and not decoded, so that a truncated one is no error.
    draft : bool, default False
        Decode JPEGs at a fraction of their size where only ``phash`` is asked for. That is faster, and a hash may differ from that of full
        decoding in a bit or two.
    truncated, max_pixels, max_bytes, formats, timeout, storage_options
        As for `embed`.

    Returns
    -------
    Dask DataFrame
        Lazy, with ``error`` ("read: ..." or "decode: ..." where that failed, and the measures are null then), ``digest`` (xxh3_128 of the
        file's bytes, null where they could not be read) and, of the picture in full, upright, over white:

        ================= ======= ==============================================================================================
        width, height     int32   pixels
        aspect            float32 width / height
        bytes_per_pixel   float32 size of the file / (width * height)
        format            string  as Pillow names it: JPEG, PNG, WEBP, ...
        sharpness         float32 variance of the Laplacian of the greys 0..255 (kernel 0 1 0, 1 -4 1, 0 1 0; borders mirrored)
        brightness        float32 mean of the greys, 0 to 255
        contrast          float32 standard deviation of the greys
        colourfulness     float32 Hasler and Suesstrunk's M3: 0 is grey, 109 extremely colourful
        entropy           float32 of the histogram of the greys, 0 to 8 bits
        phash             uint64  the perceptual hash of `imgcurate.phash`
        ================= ======= ==============================================================================================

    Raises
    ------
    KeyError
        Where a column of the frame is missing.
    ValueError
        Where a column that is asked for is unknown, or a limit out of range.
    imgcurate.tar.ShardChanged
        When rows are computed, where a file is not what was listed, or an image not what its ``digest`` says.

    Notes
    -----
    Greys are Pillow's mode "L": ITU-R 601-2 luma. Sharpness as in J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy",
    ICPR 2000; colourfulness: D. Hasler and S. Suesstrunk, "Measuring colourfulness in natural images", SPIE 2003.

    Examples
    --------
    >>> frame = measure(frame, ["sharpness", "width"])  # doctest: +SKIP
    >>> frame = frame[(frame.sharpness >= 50) & (frame.width >= 256)]  # doctest: +SKIP
    """
    schema.require(frame, ["url", "offset", "bytes"], "measure")
    names = [name for name in chosen(True if columns is None else columns) if name not in frame.columns]
    pixels.check_limits(max_pixels, max_bytes, formats, timeout)
    added_names = [*names, "error", "digest"]
    needed = [name for name in images.READ_COLUMNS if name in frame.columns]
    added = map_rows(
        frame[needed],
        measure_part,
        names,
        draft=draft,
        truncated=truncated,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        formats=tuple(formats),
        timeout=timeout,
        storage_options=dict(storage_options or {}),
        meta=vectors.empty_like(frame._meta, added_names),
    )
    return frame.assign(**{name: added[name] for name in added_names})


def measure_part(
    part: Any,
    names: Sequence[str],
    *,
    draft: bool = False,
    truncated: bool = False,
    max_pixels: int = pixels.MAX_PIXELS,
    max_bytes: int = pixels.MAX_BYTES,
    formats: Sequence[str] = (),
    timeout: float | None = None,
    storage_options: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> Any:
    """Measure the images of one partition: columns `names`, ``error`` and ``digest``.

    The arguments are those of `measure`; `threads` as for `images.work`.
    """
    function = partial(
        of_file, names=tuple(names), draft=draft, truncated=truncated, max_pixels=max_pixels, formats=tuple(formats)
    )
    types = {name: schema.TYPES[name] for name in names}
    return images.map_images(
        part, partial(pixels.within, timeout, function), types, storage_options, threads, max_bytes=max_bytes
    )


def of_file(
    data: bytes, names: Sequence[str], *, draft: bool, truncated: bool, max_pixels: int, formats: Sequence[str]
) -> tuple[Any, ...]:
    """Return the measures `names` of an image file's bytes; the other arguments are those of `measure`."""
    if set(names) <= set(_OF_HEADER):
        picture = pixels.open_picture(data, max_pixels=max_pixels, formats=formats)
    else:
        enough = _enough_to_hash if draft and set(names) <= {*_OF_HEADER, "phash"} else None
        picture = pixels.decode_picture(data, enough, max_pixels=max_pixels, truncated=truncated, formats=formats)
    found = of_picture(picture, len(data), names)
    return tuple(found[name] for name in names)


def chosen(columns: bool | Sequence[str]) -> list[str]:
    """Return which columns are asked for; True is all.

    Examples
    --------
    >>> chosen(["phash", "width"]), chosen(False)
    (['width', 'phash'], [])
    """
    if isinstance(columns, bool):
        return list(COLUMNS) if columns else []
    asked = [columns] if isinstance(columns, str) else list(columns)
    unknown = [name for name in asked if name not in COLUMNS]
    if unknown:
        raise ValueError(f"the measure {unknown[0]!r} is unknown; give some of {', '.join(COLUMNS)}")
    return [name for name in COLUMNS if name in asked]


def of_picture(picture: pixels.Picture, n_bytes: int, names: Sequence[str]) -> dict[str, Any]:
    """Return the measures `names` of a picture whose file has `n_bytes`.

    Examples
    --------
    >>> from PIL import Image
    >>> grey = pixels.Picture(Image.new("RGB", (8, 4), (9, 9, 9)), 8, 4, (0, 0, 8, 4), "PNG")
    >>> of_picture(grey, 64, ["aspect", "bytes_per_pixel", "brightness", "contrast", "sharpness", "colourfulness"])
    {'aspect': 2.0, 'bytes_per_pixel': 2.0, 'brightness': 9.0, 'contrast': 0.0, 'sharpness': 0.0, 'colourfulness': 0.0}
    """
    wanted = set(names)
    found: dict[str, Any] = {
        "width": picture.width,
        "height": picture.height,
        "aspect": picture.width / picture.height,
        "bytes_per_pixel": n_bytes / (picture.width * picture.height),
        "format": picture.format,
    }
    if wanted & {"sharpness", "brightness", "contrast", "entropy"}:
        greys = picture.image.convert("L")
        found |= _of_histogram(np.array(greys.histogram(), dtype=np.float64))
        if "sharpness" in wanted:
            found["sharpness"] = _variance_of_laplacian(greys)
    if "colourfulness" in wanted:
        found["colourfulness"] = _colourfulness(picture.image)
    if "phash" in wanted:
        found["phash"] = phash(picture.image)
    return {name: found[name] for name in names}


def _enough_to_hash(width: int, height: int) -> tuple[int, int]:
    return _ENOUGH * _HASH_SIDE, _ENOUGH * _HASH_SIDE


def _of_histogram(counts: np.ndarray) -> dict[str, float]:
    share, levels = counts / counts.sum(), np.arange(256)
    mean = float(share @ levels)
    present = share[share > 0]
    return {
        "brightness": mean,
        "contrast": float(np.sqrt(share @ (levels - mean) ** 2)),
        "entropy": float(abs(-(present * np.log2(present)).sum())),
    }


def _variance_of_laplacian(greys: Image.Image) -> float:
    # In whole numbers, which are exact.
    total = squares = 0
    for left, top, right, bottom in _blocks(greys):
        # A block and the pixels around it; beyond the picture's borders, those before them.
        box = (max(left - 1, 0), max(top - 1, 0), min(right + 1, greys.width), min(bottom + 1, greys.height))
        missing = ((box[1] - top + 1, bottom + 1 - box[3]), (box[0] - left + 1, right + 1 - box[2]))
        rows = np.pad(np.asarray(greys.crop(box)), missing, mode="reflect").astype(np.int16)
        around = rows[:-2, 1:-1] + rows[2:, 1:-1] + rows[1:-1, :-2] + rows[1:-1, 2:]
        laplacian = (around - 4 * rows[1:-1, 1:-1]).astype(np.int64)
        total += int(laplacian.sum())
        squares += int(np.vdot(laplacian, laplacian))
    n_pixels = greys.width * greys.height
    return squares / n_pixels - (total / n_pixels) ** 2


def _colourfulness(image: Image.Image) -> float:
    sums = np.zeros((2, 2), dtype=np.int64)
    for box in _blocks(image):
        red, green, blue = np.asarray(image.crop(box)).astype(np.int64).transpose(2, 0, 1)
        for k, difference in enumerate((red - green, red + green - 2 * blue)):
            sums[k] += difference.sum(), np.vdot(difference, difference)
    n_pixels = image.width * image.height
    # The second is twice the difference of yellow and blue.
    mean, square = sums[:, 0] / n_pixels, sums[:, 1] / n_pixels
    variance = (square - mean**2) / [1, 4]
    return float(np.sqrt(variance.sum()) + 0.3 * np.hypot(mean[0], mean[1] / 2))


def _blocks(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Cut an image of any shape into boxes that are small beside it, of whole rows where these are short."""
    width = min(image.width, _BLOCK_PIXELS)
    height = max(1, _BLOCK_PIXELS // width)
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            yield left, top, min(left + width, image.width), min(top + height, image.height)
