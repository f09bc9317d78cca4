"""embed(): a frame's images as vectors, decoded in threads ahead of the model, never more of them than two batches."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from imgcurate import pixels, schema, vectors
from imgcurate.encoders import check_dtype, load_encoder, resolve

if TYPE_CHECKING:
    from imgcurate.encoders.base import Encoder

_ADDED = ["embedding", "width", "height", "error"]
# On a CPU the activations of a small batch stay in the cache.
_CPU_BATCH, _GPU_BATCH = 8, 256

T = TypeVar("T")
R = TypeVar("R")


def embed(
    frame: Any,
    model: str = "openai/clip-vit-large-patch14",
    *,
    batch_size: int | None = None,
    dtype: str = "auto",
    model_dir: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Add the vector of each image, its size, and the reason where there is none.

    Parameters
    ----------
    frame : Dask DataFrame
        With columns ``url``, ``offset`` and ``size``. Rows that have an ``error`` already are not read.
    model : str, default "openai/clip-vit-large-patch14"
        A CLIP checkpoint (a hub id or a directory), or ``"efficientnet-lite0"``. The model runs where the frame is: on
        the GPU for cuDF partitions, on the CPU for pandas partitions.
    batch_size : int, optional
        Images the model is given at once; it does not change the vectors. Default: 8 on a CPU, 256 on a GPU.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        What the model computes in. "auto" is bfloat16 or float16 where the hardware is made for it, else float32.
    model_dir : path, optional
        A directory that holds the checkpoint as ``model_dir/<model>``, for use without a network.
    storage_options : mapping, optional
        Passed to fsspec, where the images lie in a remote store.

    Returns
    -------
    Dask DataFrame
        Lazy, with the columns ``embedding`` (list of float32, unit length; null where the image cannot be used),
        ``width`` and ``height`` (int32, after EXIF orientation) and ``error`` (string; "read: ..." or "decode: ..."
        where that failed).

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError, FileNotFoundError, ImportError
        Where the model cannot be had or is not one that can be used, an option is wrong, or the frame has an
        ``embedding`` already.
    """
    schema.require(frame, ["url", "offset", "size"], "embed")
    if "embedding" in frame.columns:
        raise ValueError("the frame already has a column 'embedding'; drop it first: frame.drop(columns='embedding')")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: a batch needs at least 1 image")
    check_dtype(dtype)
    meta = vectors.empty_like(frame._meta, _ADDED)
    needed = [name for name in ("url", "offset", "size", "error") if name in frame.columns]
    added = frame[needed].map_partitions(
        embed_part, resolve(model, model_dir), batch_size, dtype, dict(storage_options or {}), meta=meta
    )
    return frame.assign(**{name: added[name] for name in _ADDED})


def embed_part(
    part: Any,
    model: str,
    batch_size: int | None = None,
    dtype: str = "auto",
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Embed the images of one partition.

    Parameters
    ----------
    part : pandas or cuDF DataFrame of n rows
        With columns ``url``, ``offset``, ``size`` and perhaps ``error``.
    model : str
        As `imgcurate.encoders.resolve` returned it.
    batch_size, dtype, storage_options
        As for `embed`.

    Returns
    -------
    pandas or cuDF DataFrame of n rows
        Columns ``embedding``, ``width``, ``height`` and ``error``.
    """
    if not len(part):
        return vectors.empty_like(part, _ADDED)
    import torch

    gpu = vectors.on_gpu(part)
    encoder = load_encoder(model, dtype=dtype, device="cuda" if gpu else "cpu")
    batch_size = batch_size or (_GPU_BATCH if gpu else _CPU_BATCH)
    columns = {name: _to_list(column) for name, column in vectors.to_pandas(part).items()}
    errors = columns.get("error") or [None] * len(part)
    widths: list[int | None] = [None] * len(part)
    heights: list[int | None] = [None] * len(part)
    # One tensor for the whole partition: vectors of the batches are written into it where they are computed.
    matrix = torch.zeros((len(part), encoder.dimension), device=encoder.device)
    valid = np.zeros(len(part), dtype=bool)

    def usable() -> Iterator[tuple[int, np.ndarray]]:
        unread = [row for row in range(len(part)) if errors[row] is None]
        refs = ((columns["url"][row], columns["offset"][row], columns["size"][row]) for row in unread)
        data = pixels.read_images(refs, storage_options)
        prepared = _ahead(data, lambda image: _prepare(image, encoder), pixels.worker_threads(gpu), 2 * batch_size)
        for row, image in zip(unread, prepared, strict=True):
            if isinstance(image, pixels.PixelError):
                errors[row] = str(image)
            else:
                widths[row], heights[row] = image.width, image.height
                yield row, image.pixels

    for rows, batch in _batches(usable(), batch_size):
        matrix[torch.tensor(rows, device=encoder.device)] = encoder.encode(batch)
        valid[rows] = True
    finite = torch.isfinite(matrix).all(dim=1).cpu().numpy()
    for row in np.flatnonzero(valid & ~finite):
        errors[row] = "embed: the model's vector is not finite"
    valid &= finite
    added = {
        "embedding": vectors.to_column(matrix, like=part, valid=valid),
        "width": vectors.to_series(widths, "width", like=part),
        "height": vectors.to_series(heights, "height", like=part),
        "error": vectors.to_series(errors, "error", like=part),
    }
    return part.assign(**added)[_ADDED]


class _Prepared(NamedTuple):
    width: int
    height: int
    pixels: np.ndarray


def _prepare(data: bytes | pixels.PixelError, encoder: Encoder) -> _Prepared | pixels.PixelError:
    if isinstance(data, pixels.PixelError):
        return data
    try:
        image = pixels.decode(data)
    except pixels.PixelError as problem:
        return problem
    return _Prepared(image.width, image.height, encoder.preprocess(image))


def _ahead(items: Iterable[T], function: Callable[[T], R], threads: int, window: int) -> Iterator[R]:
    """Map `function` over `items` in threads, in order, never more than `window` results ahead of who asks for them.

    The threads draw the items themselves, one at a time, so that no more items (bytes of images) exist than threads.
    """
    source, drawing = iter(items), threading.Lock()
    results: deque[Future[R]] = deque()
    empty: deque[Future[R]] = deque()

    def fill_one() -> None:
        with drawing:
            slot = empty.popleft()
            try:
                item = next(source)
            except BaseException as problem:
                # A future does not carry a StopIteration.
                slot.set_exception(EOFError() if isinstance(problem, StopIteration) else problem)
                return
        try:
            slot.set_result(function(item))
        except BaseException as problem:
            slot.set_exception(problem)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        while True:
            while len(results) < window:
                slot: Future[R] = Future()
                results.append(slot)
                empty.append(slot)
                pool.submit(fill_one)
            try:
                yield results.popleft().result()
            except EOFError:
                return
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(images: Iterable[tuple[int, np.ndarray]], batch_size: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Gather (row, pixels) into (rows, batch) of at most `batch_size`."""
    rows: list[int] = []
    batch: list[np.ndarray] = []
    for row, image in images:
        rows.append(row)
        batch.append(image)
        if len(rows) == batch_size:
            yield rows, np.stack(batch)
            rows, batch = [], []
    if rows:
        yield rows, np.stack(batch)


def _to_list(column: pd.Series) -> list[Any]:
    return [None if value is pd.NA or value != value else value for value in column.tolist()]
