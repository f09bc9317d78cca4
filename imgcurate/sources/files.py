"""Folders of image files as rows: one row an image, its caption and metadata from the files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.dataframe as dd
import pandas as pd

from imgcurate import schema, storage, vectors
from imgcurate.cluster import backend

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif")

File = tuple[str, str, storage.Entry]  # url, image_id, and what the listing told


def read_files(urls: storage.Paths, *, files_per_partition: int = 1000, storage_options: storage.Options = None) -> Any:
    """Read image files as a Dask dataframe with one row an image.

    Parameters
    ----------
    urls : str, path, or list of these
        An image, a folder (read to the bottom), a glob, or braces: any fsspec URL.
    files_per_partition : int, default 1000
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    dask.dataframe.DataFrame
        The columns of `read_webdataset`. ``image_id`` is the file's path relative to the folder read (of several: to their
        common folder), with its extension; ``caption`` and ``metadata`` are the .txt and .json files of the same name beside it. An empty or
        unreadable file is a row with an ``error``, at the latest when it is decoded.

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
    if files_per_partition < 1:
        raise ValueError(f"files_per_partition={files_per_partition}: must be at least 1")
    found = storage.expand(urls, _EXTENSIONS, storage_options)
    found = {url: entry for url, entry in found.items() if url.lower().endswith(_EXTENSIONS)}
    if not found:
        raise FileNotFoundError(f"{urls!r} names no image; images end in {', '.join(_EXTENSIONS)}")
    root = storage.root_of(urls, storage_options)
    files = [(url, storage.relative(url, root), entry) for url, entry in found.items()]
    groups = [files[i : i + files_per_partition] for i in range(0, len(files), files_per_partition)]
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
    rows: dict[str, list[Any]] = {name: [] for name in schema.SOURCE_COLUMNS}
    for url, image_id, entry in files:
        error = None
        if entry.size is None:
            try:
                entry = storage.stat(url, storage_options)
            except OSError as problem:
                error = f"read: {type(problem).__name__}"
        rows["image_id"].append(image_id)
        rows["url"].append(url)
        rows["offset"].append(0)
        rows["size"].append(entry.size or 0)
        rows["etag"].append(entry.etag)
        rows["caption"].append(_beside(url, ".txt", storage_options))
        rows["metadata"].append(_beside(url, ".json", storage_options))
        rows["error"].append(error)
        for absent in ("member", "sample_offset", "sample_size"):
            rows[absent].append(None)
    return schema.table(rows)


def _beside(url: str, extension: str, storage_options: storage.Options) -> str | None:
    content = storage.read_if_there(storage.replace_extension(url, extension), storage_options)
    return None if content is None else content.decode("utf-8", "replace")
