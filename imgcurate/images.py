"""The images of a partition: read in one pass over each file, worked on in threads, and given to who asks in order."""

from __future__ import annotations

import re
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import xxhash

from imgcurate import pixels, schema, tar, vectors
from imgcurate.cluster.freed import keep_freed_memory

_PLACE = ("url", "offset", "bytes")
#: Of a frame's columns, those that reading its images takes.
READ_COLUMNS = (*_PLACE, "error", "etag", "digest")

_DIGEST = re.compile("[0-9a-f]{32}")

T = TypeVar("T")
R = TypeVar("R")


class Worked(NamedTuple):
    """What came of a partition's images.

    Attributes
    ----------
    errors : list of str or None
        Of all rows: their own, and those of images that could not be used, as far as `results` has been asked for.
    digests : list of str or None
        Of all rows: the xxh3_128 of the bytes of each image that was read, which may have an error, as far as `results` has been asked for;
        of the others what the partition said.
    results : iterator of (int, R)
        The row and the result of each other image.
    """

    errors: list[str | None]
    digests: list[str | None]
    results: Iterator[tuple[int, Any]]


def work(
    part: Any,
    function: Callable[[bytes], Any],
    storage_options: Mapping[str, Any] | None = None,
    window: int | None = None,
    threads: int | None = None,
    max_bytes: int = pixels.MAX_BYTES,
    idle: Callable[[], Any] | None = None,
) -> Worked:
    """Read the images of a partition and work on them in threads, each holding one image at a time.

    Parameters
    ----------
    part : pandas or cuDF DataFrame
        With columns ``url``, ``offset``, ``bytes`` and perhaps ``error``, ``etag`` and ``digest``. Rows that have an error are not read, the
        others in the order of their places in the files.
    function : callable
        Takes an image's bytes; what it raises, such as a `pixels.PixelError`, is the row's error.
    storage_options : mapping, optional
        Passed to fsspec.
    window : int, optional
        How many results there may be that were not asked for. Default: four a thread.
    threads : int, optional
        Default: the worker's share of the cores. With one, an image is worked on when its result is asked for, and none ahead.
    max_bytes : int
        A larger image is an error, and is not read.
    idle : callable, optional
        Called once while results are drawn: when a thread is the first for which there is no image left.

    Raises
    ------
    imgcurate.tar.ShardChanged
        While results are drawn, where a file is no longer what ``etag`` says, or an image not what ``digest`` says.
    ValueError
        Where ``digest`` holds something else than digests.

    Examples
    --------
    >>> import fsspec, pandas as pd
    >>> fsspec.filesystem("memory").pipe("/work.bin", b"0123456789")
    >>> places = {"url": ["memory://work.bin"] * 3, "offset": [9, 0, 2], "bytes": [1, 1, 3], "error": [None, "broken", None]}
    >>> worked = work(pd.DataFrame(places), bytes.decode)
    >>> list(worked.results), worked.digests[1], worked.digests[2]
    ([(2, '234'), (0, '9')], None, '90182524f9a83f06834673893aa18f80')
    """
    keep_freed_memory()
    columns = host_columns(part, list(READ_COLUMNS))
    digests = digests_of(part)
    nothing: list[Any] = [None] * len(part)
    errors, etags = columns.get("error", nothing.copy()), columns.get("etag", nothing)
    urls, offsets, sizes = (columns[name] for name in _PLACE)
    first = {url: number for number, url in reversed(list(enumerate(urls)))}
    rows = [row for row, error in enumerate(errors) if error is None]
    rows.sort(key=lambda row: (first[urls[row]], -1 if offsets[row] is None else offsets[row]))
    listed: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if etags[row] is not None:
            listed[urls[row]].add(etags[row])
    places = ((urls[row], offsets[row], sizes[row]) for row in rows)
    data = pixels.read_images(places, storage_options, listed, max_bytes)

    def on_one(image: bytes | pixels.PixelError) -> tuple[str | None, Any]:
        if isinstance(image, pixels.PixelError):
            return None, image
        digest = xxhash.xxh3_128_hexdigest(image)
        try:
            return digest, function(image)
        except pixels.PixelError as problem:
            return digest, problem
        except Exception as problem:  # what one image does to a decoder, or takes of memory, is no reason to stop
            return digest, pixels.PixelError("decode", f"{type(problem).__name__}: {problem}")

    def results() -> Iterator[tuple[int, Any]]:
        at_once = threads or pixels.worker_threads(vectors.on_gpu(part))
        most = 1 if threads == 1 else window or 4 * at_once
        for row, (digest, made) in zip(rows, ahead(data, on_one, at_once, most, idle), strict=True):
            if digest is not None:
                if digests[row] not in (None, digest):
                    raise tar.ShardChanged(
                        urls[row], f"the image at byte {offsets[row]} is not the one looked at before"
                    )
                digests[row] = digest
            if isinstance(made, pixels.PixelError):
                errors[row] = str(made)
            else:
                yield row, made

    return Worked(errors, digests, results())


def map_images(
    part: Any,
    function: Callable[[bytes], tuple[Any, ...]],
    types: Mapping[str, pa.DataType],
    storage_options: Mapping[str, Any] | None = None,
    threads: int | None = None,
    max_bytes: int = pixels.MAX_BYTES,
) -> Any:
    """Compute columns from the stored bytes of each image of a partition, in threads, each holding one image at a time.

    Parameters
    ----------
    part : pandas or cuDF DataFrame of n rows
        With columns ``url``, ``offset``, ``bytes`` and perhaps ``error``, ``etag`` and ``digest``. Rows that have an error are not read.
    function : callable
        Takes an image's bytes and gives one value a column; what it raises is the row's error.
    types : mapping of str to pyarrow.DataType
        The columns.
    storage_options : mapping, optional
        Passed to fsspec.
    threads, max_bytes : int, optional
        As for `work`.

    Returns
    -------
    pandas or cuDF DataFrame of n rows
        Those columns, null where there is an error, ``error`` and ``digest``; with the index of `part`.

    Raises
    ------
    imgcurate.tar.ShardChanged
        As `work`.
    """
    errors, digests, results = work(part, function, storage_options, threads=threads, max_bytes=max_bytes)
    values: list[tuple[Any, ...]] = [(None,) * len(types)] * len(errors)
    for row, made in results:
        values[row] = made
    columns = {name: pa.array([row[k] for row in values], type=kind) for k, (name, kind) in enumerate(types.items())}
    for name, column in (("error", errors), ("digest", digests)):
        columns[name] = pa.array(column, type=schema.TYPES[name])
    return columns_like(part, columns)


def digests_of(part: Any) -> list[str | None]:
    """Return what the column ``digest`` of a partition says, if it has one; None is null.

    Raises
    ------
    ValueError
        Where the column holds something else.

    Examples
    --------
    >>> import pandas as pd
    >>> digests_of(pd.DataFrame({"digest": ["sha256:0a", None]}))
    Traceback (most recent call last):
    ValueError: column 'digest' holds 'sha256:0a', and a digest is 32 hexadecimal digits of XXH3-128; rename the column
    """
    digests = host_columns(part, ["digest"]).get("digest", [None] * len(part))
    for digest in digests:
        if digest is not None and not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
            raise ValueError(
                f"column 'digest' holds {digest!r}, and a digest is 32 hexadecimal digits of XXH3-128; rename the column"
            )
    return digests


def columns_like(part: Any, columns: Mapping[str, pa.Array]) -> Any:
    """Return columns as a partition on the backend of `part`, with its index."""
    result = vectors.from_arrow(pa.table(dict(columns)), part)
    result.index = part.index
    return result


def host_columns(part: Any, names: list[str]) -> dict[str, list[Any]]:
    """Return those of a partition's columns `names` that it has, as lists on the host; None is null.

    Examples
    --------
    >>> import pandas as pd
    >>> host_columns(pd.DataFrame({"bytes": [3, None]}), ["bytes", "error"])
    {'bytes': [3.0, None]}
    """
    host = vectors.to_pandas(part[[name for name in names if name in part.columns]])
    return {name: pa.array(column, from_pandas=True).to_pylist() for name, column in host.items()}


def ahead(
    items: Iterable[T],
    function: Callable[[T], R],
    threads: int,
    window: int,
    idle: Callable[[], Any] | None = None,
) -> Iterator[R]:
    """Map `function` over `items` in threads, in order, never more than `window` results ahead of who asks for them.

    The threads draw the items themselves, one at a time, so that no more items (bytes of images) exist than threads. When the first of them finds
    none left, `idle` is called once, in the thread that asks for results.

    Examples
    --------
    >>> list(ahead([1, -2, 3], abs, threads=2, window=4))
    [1, 2, 3]
    """
    source, drawing = iter(items), threading.Lock()
    results: deque[Future[R]] = deque()
    empty: deque[Future[R]] = deque()
    over: Future[None] = Future()

    def fill_one() -> None:
        with drawing:
            slot = empty.popleft()
            try:
                item = next(source)
            except BaseException as problem:
                # A future does not carry a StopIteration.
                slot.set_exception(EOFError() if isinstance(problem, StopIteration) else problem)
                if not over.done():
                    over.set_result(None)
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
            if idle is not None:
                either: list[Future[Any]] = [results[0], over]
                wait(either, return_when=FIRST_COMPLETED)
                if over.done():
                    idle()
                    idle = None
            try:
                yield results.popleft().result()
            except EOFError:
                return
    finally:
        pool.shutdown(cancel_futures=True)
