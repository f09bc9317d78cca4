"""Thumbnails: a row's image, read and decoded on the workers, as a few kilobytes that stand in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import pandas as pd
from PIL import Image

from imgcurate import images, pixels, schema, storage, tar, vectors
from imgcurate.arguments import check_whole_number
from imgcurate.printable import printable
from imgcurate.rowwise import map_rows

if TYPE_CHECKING:
    import dask.dataframe as dd

#: The file of a thumbnail of so many pixels is at most so large, so that a page of them stays one that can be sent to somebody.
_SIDE, MOST_BYTES = 160, 9_000
_QUALITIES = (82, 70, 55, 40, 25)
#: Rows of a task.
_AT_ONCE = 8
#: A JPEG is decoded at a half, a quarter or an eighth of its size, but not at less than so many times the thumbnail's.
_ENOUGH = 2


class Thumbnail(NamedTuple):
    """What is shown of an image.

    Attributes
    ----------
    uri : str or None
        ``data:image/webp;base64,...``; None where the image cannot be shown.
    width, height : int
        Of the thumbnail, in pixels; 0 where there is none.
    error : str or None
        Why there is none.
    of_width, of_height : int
        Of the image itself, upright.
    """

    uri: str | None
    width: int
    height: int
    error: str | None
    of_width: int = 0
    of_height: int = 0


def thumbnails(rows: pd.DataFrame, size: int, storage_options: storage.Options = None) -> list[Thumbnail]:
    """Return a thumbnail of each row.

    Parameters
    ----------
    rows : pandas.DataFrame of n rows
        With columns ``url``, ``offset``, ``bytes`` and perhaps ``error``, ``etag`` and ``digest``.
    size : int
        The side of the square that a thumbnail fits into, in pixels. Smaller images stay as they are.
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    list of n Thumbnails
        Upright, and each of at most `MOST_BYTES`, or of a larger `size` as many times as many as it has pixels. An image that has an error, that
        cannot be read or decoded, or that is no longer what was listed, is one whose ``error`` says so.

    Notes
    -----
    Eager: a few rows a task, on the cluster where there is one; only thumbnails come back.
    """
    _check_size(size)
    needed = rows[[name for name in images.READ_COLUMNS if name in rows.columns]].reset_index(drop=True)
    make = dask.delayed(_thumbnails_of, pure=False)
    tasks = [
        make(needed.iloc[start : start + _AT_ONCE], size, dict(storage_options or {}))
        for start in range(0, len(needed), _AT_ONCE)
    ]
    return [made for task in dask.compute(*tasks) for made in task]


def thumbnail(frame: Any, size: int = 96, *, storage_options: Mapping[str, Any] | None = None) -> dd.DataFrame:
    """Add a small picture of each image, for programs that show a table with its images.

    Parameters
    ----------
    frame : Dask DataFrame
        With columns ``url``, ``offset`` and ``bytes``. ``etag`` and ``digest``, where it has them, are compared with what is read.
    size : int, default 96
        The side of the square that it fits into, in pixels. Smaller images stay as they are.
    storage_options : mapping, optional
        Passed to fsspec, where the images lie in a remote store.

    Returns
    -------
    Dask DataFrame
        Lazy, with ``thumbnail``: a WebP of a few kilobytes as text, ``data:image/webp;base64,...``, as browsers and embedding-atlas show it;
        null where the image cannot be shown.

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError
        Where the frame has a ``thumbnail`` already, or `size` is below 1.

    Examples
    --------
    >>> ic.write_parquet(thumbnail(frame)[["image_id", "thumbnail"]], "small")  # doctest: +SKIP
    """
    schema.require(frame, ["url", "offset", "bytes"], "thumbnail")
    if "thumbnail" in frame.columns:
        raise ValueError("the frame already has a column 'thumbnail'; drop or rename it first")
    _check_size(size)
    needed = [name for name in images.READ_COLUMNS if name in frame.columns]
    meta = vectors.empty_like(frame._meta, ["thumbnail"])
    made = map_rows(frame[needed], _column_of, size, dict(storage_options or {}), meta=meta)
    return frame.assign(thumbnail=made["thumbnail"])


def _column_of(part: Any, size: int, storage_options: dict[str, Any]) -> Any:
    uris = [made.uri for made in _thumbnails_of(vectors.to_pandas(part), size, storage_options)]
    return part[[]].assign(thumbnail=vectors.to_series(uris, "thumbnail", like=part))


def _check_size(size: int) -> None:
    check_whole_number("size", size, instead=" pixel")


def _thumbnails_of(rows: pd.DataFrame, size: int, storage_options: dict[str, Any]) -> list[Thumbnail]:
    try:
        return list(_made(rows, size, storage_options))
    except tar.ShardChanged as problem:
        if len(rows) == 1:
            what = f"read: {problem.url} has changed since it was listed ({problem.what})"
            return [Thumbnail(None, 0, 0, printable(what))]
    # One of several: which, is found one by one.
    return [made for at in range(len(rows)) for made in _thumbnails_of(rows.iloc[[at]], size, storage_options)]


def _made(rows: pd.DataFrame, size: int, storage_options: dict[str, Any]) -> Iterator[Thumbnail]:
    # In one thread: the tasks of other rows run beside it.
    errors, _, results = images.work(rows, partial(_thumbnail, size=size), storage_options, threads=1)
    made = dict(results)
    for row, error in enumerate(errors):
        yield made.get(row) or Thumbnail(None, 0, 0, printable(str(error)))


def _thumbnail(data: bytes, size: int) -> Thumbnail:
    enough = partial(_fitted, size=size * _ENOUGH)
    picture = pixels.decode_picture(data, enough)
    width, height = _fitted(picture.width, picture.height, size)
    image, box = picture.image, picture.box
    if max(image.size) > 1 << 20:
        image = pixels.shortened(image)
        box = (0.0, 0.0, float(image.width), float(image.height))
    small = image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    most = round(MOST_BYTES * max(1, size / _SIDE) ** 2)
    uri = f"data:image/webp;base64,{base64.b64encode(_encoded(small, most)).decode()}"
    return Thumbnail(uri, width, height, None, picture.width, picture.height)


def _encoded(image: Image.Image, most: int) -> bytes:
    """Return an image as WebP of at most so many bytes: of less quality where it must be, and then with fewer pixels."""
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=quality, method=4)
            if buffer.tell() <= most:
                return buffer.getvalue()
        image = image.resize((-(-image.width * 3 // 4), -(-image.height * 3 // 4)), Image.Resampling.BICUBIC)


def _fitted(width: int, height: int, size: int) -> tuple[int, int]:
    """Return how large an image is that fits into a square; none is made larger.

    Examples
    --------
    >>> _fitted(640, 480, 160), _fitted(20, 10, 160), _fitted(1, 20_000, 160)
    ((160, 120), (20, 10), (1, 160))
    """
    scale = min(1.0, size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
