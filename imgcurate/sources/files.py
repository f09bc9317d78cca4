"""Folders of image files as rows: one row an image, its caption and metadata from the files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import dask.dataframe as dd
import pandas as pd

from imgcurate import schema, storage, vectors
from imgcurate.cluster import backend
from imgcurate.sources import texts
from imgcurate.sources.partitions import rows_at_once

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif")

_BESIDE = tuple(f".{extension}" for extension in texts.COLUMNS)
# Of a store, each answer is waited for.
_THREADS = 16


class File(NamedTuple):
    """An image as it was found: its URL and image_id, what the listing told, and the extensions that files beside it may have."""

    url: str
    image_id: str
    entry: storage.Entry
    texts: tuple[str, ...]


def read_files(
    urls: storage.Paths, *, rows_per_partition: int | None = None, storage_options: storage.Options = None
) -> dd.DataFrame:
    """Read image files as a Dask dataframe with one row an image.

    Parameters
    ----------
    urls : str, path, or list of these
        An image, a folder (read to the bottom), a glob, or braces: any fsspec URL.
    rows_per_partition : int, optional
        Default: a sixteenth of the images, at least 32 (1,024 on a GPU) and at most 2,048.
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    dask.dataframe.DataFrame
        The columns of `read_webdataset`. ``image_id`` is the file's path relative to the folder read (of several: to their
        common folder), with its extension; ``caption`` and ``metadata`` are the .txt, without the newline that ends it, and the .json of the same
        name beside it. An empty or unreadable file is a row with an ``error``, at the latest when it is decoded.

    Raises
    ------
    FileNotFoundError
        Where a pattern names nothing, or a folder holds no image.
    ValueError
        Where a file is named twice.

    Examples
    --------
    >>> frame = read_files("photos/")  # doctest: +SKIP
    """
    found = storage.expand(urls, _EXTENSIONS, storage_options, beside=_BESIDE)
    images = {url: entry for url, entry in found.items() if url.lower().endswith(_EXTENSIONS)}
    if not images:
        raise FileNotFoundError(f"{urls!r} names no image; images end in {', '.join(_EXTENSIONS)}")
    root = storage.root_of(urls, storage_options)
    files = [File(url, storage.relative(url, root), entry, _texts_beside(url, found)) for url, entry in images.items()]
    n_rows = rows_at_once(len(files), rows_per_partition, backend())
    groups = [files[i : i + n_rows] for i in range(0, len(files), n_rows)]
    frame = dd.from_map(
        list_files,
        groups,
        storage_options=storage_options,
        meta=schema.empty(schema.SOURCE_COLUMNS),
        label="read-files",
    )
    return vectors.to_backend(frame, backend())


def list_files(files: Sequence[File], storage_options: storage.Options = None) -> pd.DataFrame:
    """List files as one partition of rows: what `read_files` runs on the workers."""
    list_file = partial(_row, storage_options=storage_options)
    if all(storage.is_local(file.url) for file in files):
        rows = [list_file(file) for file in files]
    else:
        with ThreadPoolExecutor(_THREADS) as threads:
            rows = list(threads.map(list_file, files))
    return schema.table({column: [row.get(column) for row in rows] for column in schema.SOURCE_COLUMNS})


def _row(file: File, storage_options: storage.Options) -> dict[str, Any]:
    entry, error = file.entry, None
    if entry.size is None or entry.etag is None:
        try:
            entry = storage.stat(file.url, storage_options)
        except OSError as problem:
            error = f"read: {type(problem).__name__}"
    row: dict[str, Any] = {"image_id": file.image_id, "url": file.url, "offset": 0, "bytes": entry.size or 0}
    row |= {"etag": entry.etag, "error": error}
    for extension in file.texts:
        content = storage.read_if_there(storage.replace_extension(file.url, f".{extension}"), storage_options)
        row[texts.COLUMNS[extension]] = texts.decode(content, extension)
    return row


def _texts_beside(url: str, found: Mapping[str, storage.Entry]) -> tuple[str, ...]:
    """Return the extensions of those files beside an image that are there, or of all where that is not known."""
    if not found[url].amid:
        return tuple(texts.COLUMNS)
    return tuple(extension for extension in texts.COLUMNS if storage.replace_extension(url, f".{extension}") in found)
