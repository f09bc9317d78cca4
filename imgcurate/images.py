"""The images of a partition: read in one pass over each file, worked on in threads, and given to who asks in order."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple, TypeVar

import pandas as pd
import pyarrow as pa

from imgcurate import pixels, vectors

# glibc's names for what mallopt sets, and the largest that it takes for the second.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _MAPPED_BYTES = 256 << 20, 32 << 20

T = TypeVar("T")
R = TypeVar("R")


class Worked(NamedTuple):
    """What came of a partition's images.

    Attributes
    ----------
    errors : list of str or None
        Of all rows: their own, and those of images that could not be used, as far as `results` has been asked for.
    results : iterator of (int, R)
        The row and the result of each other image.
    """

    errors: list[str | None]
    results: Iterator[tuple[int, Any]]


def work(
    part: Any,
    function: Callable[[bytes], Any],
    storage_options: Mapping[str, Any] | None = None,
    window: int | None = None,
) -> Worked:
    """Read the images of a partition and work on them in threads, each holding one image at a time.

    Parameters
    ----------
    part : pandas or cuDF DataFrame
        With columns ``url``, ``offset``, ``size`` and perhaps ``error``. Rows that have an error are not read, the others in the order of
        their places in the files.
    function : callable
        Takes an image's bytes; a `pixels.PixelError` that it raises is the row's error.
    storage_options : mapping, optional
        Passed to fsspec.
    window : int, optional
        How many results there may be that were not asked for. Default: four a thread.

    Examples
    --------
    >>> import fsspec
    >>> fsspec.filesystem("memory").pipe("/work.bin", b"0123456789")
    >>> places = {"url": ["memory://work.bin"] * 3, "offset": [9, 0, 2], "size": [1, 1, 3], "error": [None, "broken", None]}
    >>> list(work(pd.DataFrame(places), bytes.decode).results)
    [(2, '234'), (0, '9')]
    """
    keep_freed_memory()
    columns = host_columns(part, ["url", "offset", "size", "error"])
    errors = columns.get("error", [None] * len(part))
    urls, offsets, sizes = (columns[name] for name in ("url", "offset", "size"))
    first = {url: number for number, url in reversed(list(enumerate(urls)))}
    rows = [row for row, error in enumerate(errors) if error is None]
    rows.sort(key=lambda row: (first[urls[row]], -1 if offsets[row] is None else offsets[row]))
    data = pixels.read_images(((urls[row], offsets[row], sizes[row]) for row in rows), storage_options)

    def on_one(image: bytes | pixels.PixelError) -> Any:
        try:
            return image if isinstance(image, pixels.PixelError) else function(image)
        except pixels.PixelError as problem:
            return problem

    def results() -> Iterator[tuple[int, Any]]:
        threads = pixels.worker_threads(vectors.on_gpu(part))
        for row, made in zip(rows, ahead(data, on_one, threads, window or 4 * threads), strict=True):
            if isinstance(made, pixels.PixelError):
                errors[row] = str(made)
            else:
                yield row, made

    return Worked(errors, results())


def map_images(
    part: Any,
    function: Callable[[bytes], tuple[Any, ...]],
    types: Mapping[str, pa.DataType],
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Compute columns from the stored bytes of each image of a partition, in threads, each holding one image at a time.

    Parameters
    ----------
    part : pandas or cuDF DataFrame of n rows
        With columns ``url``, ``offset``, ``size`` and perhaps ``error``. Rows that have an error are not read.
    function : callable
        Takes an image's bytes and gives one value a column; a `pixels.PixelError` that it raises is the row's error.
    types : mapping of str to pyarrow.DataType
        The columns.
    storage_options : mapping, optional
        Passed to fsspec.

    Returns
    -------
    pandas or cuDF DataFrame of n rows
        Those columns, null where there is an error, and ``error``; with the index of `part`.
    """
    errors, results = work(part, function, storage_options)
    values: list[tuple[Any, ...]] = [(None,) * len(types)] * len(errors)
    for row, made in results:
        values[row] = made
    columns = {name: pa.array([row[k] for row in values], type=kind) for k, (name, kind) in enumerate(types.items())}
    return columns_like(part, {**columns, "error": pa.array(errors, type=pa.string())})


@cache
def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB that it has freed.

    Dask's nanny makes workers give back every freed block above 64 KiB at once: pixels and a network's activations then come as fresh pages,
    zeroed, again and again, which costs an image of 5 megapixels a third of its decoding and a ViT-B/32 a tenth to a third of its speed. Where
    the C library is not glibc nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def columns_like(part: Any, columns: Mapping[str, pa.Array]) -> Any:
    """Return columns as a partition on the backend of `part`, with its index."""
    host = pd.DataFrame({name: pd.arrays.ArrowExtensionArray(array) for name, array in columns.items()})
    result = vectors.from_pandas(host, part)
    result.index = part.index
    return result


def host_columns(part: Any, names: list[str]) -> dict[str, list[Any]]:
    """Return those of a partition's columns `names` that it has, as lists on the host; None is null.

    Examples
    --------
    >>> host_columns(pd.DataFrame({"size": [3, None]}), ["size", "error"])
    {'size': [3.0, None]}
    """
    host = vectors.to_pandas(part[[name for name in names if name in part.columns]])
    return {name: pa.array(column, from_pandas=True).to_pylist() for name, column in host.items()}


def ahead(items: Iterable[T], function: Callable[[T], R], threads: int, window: int) -> Iterator[R]:
    """Map `function` over `items` in threads, in order, never more than `window` results ahead of who asks for them.

    The threads draw the items themselves, one at a time, so that no more items (bytes of images) exist than threads.

    Examples
    --------
    >>> list(ahead([1, -2, 3], abs, threads=2, window=4))
    [1, 2, 3]
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
