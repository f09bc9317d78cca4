"""embed(): a frame's images as vectors, decoded in threads ahead of the model, never more of them than two batches."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import distributed
import numpy as np
import pyarrow as pa

from imgcurate import images, measures, pixels, schema, vectors
from imgcurate.encoders import Model, check_dtype, fingerprint_of, load_encoder, resolve
from imgcurate.rowwise import map_rows

if TYPE_CHECKING:
    import dask.dataframe as dd

_ADDED = ["embedding", "width", "height", "error", "digest"]

_waiting = threading.Lock()


def embed(
    frame: Any,
    model: Model = "openai/clip-vit-large-patch14",
    *,
    batch_size: int | None = None,
    dtype: str = "auto",
    model_dir: str | os.PathLike[str] | None = None,
    image_size: int = 224,
    draft: bool = True,
    truncated: bool = False,
    max_pixels: int = pixels.MAX_PIXELS,
    max_bytes: int = pixels.MAX_BYTES,
    formats: Sequence[str] = (),
    timeout: float | None = None,
    measure: bool | Sequence[str] = False,
    storage_options: Mapping[str, Any] | None = None,
) -> dd.DataFrame:
    """Add the vector of each image, its size, and the reason where there is none.

    Parameters
    ----------
    frame : Dask DataFrame
        With columns ``url``, ``offset`` and ``bytes``. Rows that have an ``error`` already are not read. ``etag`` and ``digest``, where it has
        them, are compared with what is read.
    model : str, path or callable, default "openai/clip-vit-large-patch14"
        A checkpoint of CLIP, SigLIP, SigLIP 2, DINOv2 or another vision model of transformers (a hub id or a directory);
        ``"efficientnet-lite0"``; or a function that takes RGB bytes of shape (b, image_size, image_size, 3) and returns b vectors.
        The model runs where the frame is: on the GPU for cuDF partitions, on the CPU for pandas partitions.
    batch_size : int, optional
        Images the model is given at once. It changes the vectors by rounding alone: in bfloat16 their cosine stays above .9999, and batches
        of one size give the same bits. Default: 256 on a GPU; on a CPU 32, or fewer where a tensor of the model would exceed 32 MiB.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        What the model computes in. "auto" is bfloat16 or float16 where the hardware is made for it, else float32.
    model_dir : path, optional
        A directory that holds the checkpoint as ``model_dir/<model>``, for use without a network.
    image_size : int, default 224
        The side of the pictures that a function is given (shorter side resized, bicubic, centre cropped). Checkpoints bring their own.
    draft : bool, default True
        Decode JPEGs that are at least eight times as large as what they are resized to at a half, a quarter or an eighth of their size. The
        vectors' cosine to those of full decoding stays above .999.
    truncated : bool, default False
        Take what there is of a file whose end is missing; else it is an error.
    max_pixels : int, default 89_478_485
        Larger images are errors, and are not decoded. Images that are decoded at the same time in one process have no more than that
        together, or than half of a worker's memory holds at 20 bytes a pixel, where that is more.
    max_bytes : int, default 268_435_455
        Larger files are errors, and are not read.
    formats : sequence of str, optional
        Formats that are taken beside the usual ones: some of ``"PSD"``, ``"ICO"``, ``"TGA"``, ``"PPM"`` (all PNM), ``"PCX"`` and ``"QOI"``.
    timeout : float, optional
        Seconds that the decoding of an image may take. What takes longer, or more than half of a worker's memory (1.7 GiB in any case are
        allowed), and what kills its decoder, is an error: images are decoded in processes of their own then, one a thread, whose pixels come
        back through a pipe. Default: no limit but that of what a file may ask for.
    measure : bool or sequence of str, default False
        Add the columns of `imgcurate.measure`, or some of them, from the same decoding, which is in full then.
    storage_options : mapping, optional
        Passed to fsspec, where the images lie in a remote store.

    Returns
    -------
    Dask DataFrame
        Lazy, with the columns ``embedding`` (list of float32, unit length; null where the image cannot be used),
        ``width`` and ``height`` (int32, after EXIF orientation), ``error`` (string; "read: ..." or "decode: ..."
        where that failed) and ``digest`` (string: xxh3_128 of the image's bytes in hexadecimal; null where they could not be read).

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError, FileNotFoundError, ImportError
        Where the model cannot be had or is not one that can be used, an option is wrong, or the frame has an
        ``embedding`` already.
    imgcurate.tar.ShardChanged
        When rows are computed, where a file is not what was listed, or an image not what its ``digest`` says.

    Notes
    -----
    The type of the column ``embedding`` carries the model's name and fingerprint through pandas, Dask and Parquet, so that vectors of two
    models are never compared.

    Examples
    --------
    >>> frame = embed(frame, "google/siglip-so400m-patch14-384")  # doctest: +SKIP
    >>> frame = embed(frame, lambda batch: batch.reshape(len(batch), -1)[:, ::588])  # doctest: +SKIP
    """
    schema.require(frame, ["url", "offset", "bytes"], "embed")
    if "embedding" in frame.columns:
        raise ValueError("the frame already has a column 'embedding'; drop it first: frame.drop(columns='embedding')")
    for name, value in (("batch_size", batch_size), ("image_size", image_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: it must be at least 1")
    pixels.check_limits(max_pixels, max_bytes, formats, timeout)
    check_dtype(dtype)
    measured = measures.chosen(measure)
    taken = [name for name in measured if name in frame.columns and name not in _ADDED]
    if taken:
        raise ValueError(
            f"the frame already has a column {taken[0]!r}; drop it first: frame.drop(columns={taken[0]!r})"
        )
    added_names = columns_of(measured)
    meta = vectors.empty_like(frame._meta, added_names)
    needed = [name for name in images.READ_COLUMNS if name in frame.columns]
    added = map_rows(
        frame[needed],
        embed_part,
        resolve(model, model_dir),
        batch_size,
        dtype,
        image_size=image_size,
        draft=draft,
        truncated=truncated,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        formats=tuple(formats),
        timeout=timeout,
        measured=measured,
        storage_options=dict(storage_options or {}),
        fingerprint=fingerprint_of(model, model_dir, image_size),
        meta=meta,
    )
    return frame.assign(**{name: added[name] for name in added_names})


def columns_of(measured: Sequence[str]) -> list[str]:
    """Return the columns that `embed` adds, with those of `measure` that are asked for.

    Examples
    --------
    >>> columns_of(["width", "phash"])
    ['embedding', 'width', 'height', 'error', 'digest', 'phash']
    """
    return [*_ADDED, *(name for name in measured if name not in _ADDED)]


def embed_part(
    part: Any,
    model: Model,
    batch_size: int | None = None,
    dtype: str = "auto",
    *,
    image_size: int = 224,
    draft: bool = True,
    truncated: bool = False,
    max_pixels: int = pixels.MAX_PIXELS,
    max_bytes: int = pixels.MAX_BYTES,
    formats: Sequence[str] = (),
    timeout: float | None = None,
    measured: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    fingerprint: str | None = None,
    threads: int | None = None,
) -> Any:
    """Embed the images of one partition.

    Parameters
    ----------
    part : pandas or cuDF DataFrame of n rows
        With columns ``url``, ``offset``, ``bytes`` and perhaps ``error``, ``etag`` and ``digest``.
    model : str or callable
        As `imgcurate.encoders.resolve` returned it.
    batch_size, dtype, image_size, draft, truncated, max_pixels, max_bytes, formats, timeout, storage_options
        As for `embed`.
    measured : sequence of str
        Columns of `imgcurate.measure` to add.
    fingerprint : str, optional
        Of the model, as the client has it.
    threads : int, optional
        That decode; see `images.work`. It does not change the vectors.

    Returns
    -------
    pandas or cuDF DataFrame of n rows
        Columns ``embedding``, ``width``, ``height``, ``error``, ``digest`` and those measured.

    Raises
    ------
    ValueError
        Where the model is another one here than `fingerprint` says.
    """
    names = columns_of(measured)
    if not len(part):
        return vectors.empty_like(part, names)
    import torch

    from imgcurate.encoders.base import to_device

    gpu = vectors.on_gpu(part)
    encoder = load_encoder(model, dtype=dtype, device=vectors.device(part), image_size=image_size)
    if fingerprint is not None and encoder.fingerprint != fingerprint:
        raise ValueError(
            f"the files of the model {encoder.name!r} on this worker ({encoder.fingerprint[:12]}) are not those of the client "
            f"({fingerprint[:12]}); give all machines the same files"
        )
    batch_size = batch_size or encoder.batch_size

    def prepare(image: bytes) -> _Prepared:
        # What is measured is the picture itself, not a smaller one.
        enough = encoder.preparation.enough if draft and not measured else None
        picture = pixels.within(
            timeout, pixels.decode_picture, image, enough, max_pixels=max_pixels, truncated=truncated, formats=formats
        )
        found = {"width": picture.width, "height": picture.height, **measures.of_picture(picture, len(image), measured)}
        return _Prepared(found, encoder.preprocess(picture))

    beside = ExitStack()
    # From when a core has nothing left to decode here, it may decode the next partition, also while the GPU computes the last batches.
    idle = (lambda: beside.enter_context(beside_the_next_task())) if gpu else None
    errors, digests, results = images.work(part, prepare, storage_options, 2 * batch_size, threads, max_bytes, idle)
    values: dict[str, list[Any]] = {name: [None] * len(part) for name in names[1:]}
    values |= {"error": errors, "digest": digests}
    # One tensor for the whole partition: vectors of the batches are written into it where they are computed.
    matrix = torch.zeros((len(part), encoder.dimension), device=encoder.device)
    valid = np.zeros(len(part), dtype=bool)

    def usable() -> Iterator[tuple[int, np.ndarray]]:
        for row, image in results:
            for name, value in image.found.items():
                values[name][row] = value
            yield row, image.pixels

    with beside:
        for numbers, batch in _batches(usable(), batch_size):
            matrix[to_device(np.array(numbers), encoder.device)] = encoder.encode(batch)
            valid[numbers] = True
        finite = torch.isfinite(matrix).all(dim=1).cpu().numpy()
    for row in np.flatnonzero(valid & ~finite):
        errors[row] = "embed: the model's vector is not finite"
    valid &= finite
    host = {name: pa.array(column, type=schema.TYPES[name]) for name, column in values.items()}
    added = images.columns_like(part, host)
    added["embedding"] = vectors.to_column(matrix, like=part, valid=valid, encoder=encoder.identity)
    return added[names]


@contextmanager
def beside_the_next_task() -> Iterator[None]:
    """Let this Dask worker begin its next task while this one does not use all that the worker has.

    One task of a process does so at a time; another that comes here keeps its place in the worker until it may, or tasks that decode
    faster than the GPU computes would pile up before it.
    """
    with _waiting:
        with suppress(ValueError):  # no worker runs this
            distributed.secede()
        yield


class _Prepared(NamedTuple):
    found: dict[str, Any]
    pixels: np.ndarray


def _batches(
    prepared: Iterable[tuple[int, np.ndarray]], batch_size: int
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Gather (row, pixels) into (rows, batch) of at most `batch_size`."""
    rows: list[int] = []
    batch: list[np.ndarray] = []
    for row, image in prepared:
        rows.append(row)
        batch.append(image)
        if len(rows) == batch_size:
            yield rows, batch
            rows, batch = [], []
    if rows:
        yield rows, batch
