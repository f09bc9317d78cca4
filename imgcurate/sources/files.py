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
from imgcurate.printable import printable
from imgcurate.sources import sidecars
from imgcurate.sources.partitions import rows_at_once

#: What the name of an image ends in.
EXTENSIONS = tuple(f".{extension}" for extension in sidecars.IMAGE_EXTENSIONS)
# Of formats that are taken by name: many folders hold some that are no photos.
_NAMED_EXTENSIONS = (".psd", ".ico", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".pcx", ".qoi")

#: Files beside an image, and the columns that they become.
TEXTS = {".txt": "caption", ".json": "metadata"}
#: Files that are read where they lie in the folder that was named, and not where a link in it leads.
CONTAINED = (*EXTENSIONS, *_NAMED_EXTENSIONS, *TEXTS)
# Of a store, each answer is waited for.
_THREADS = 16


class File(NamedTuple):
    """An image as it was found: its URL and image_id, what the listing told, and the files beside it.

    Attributes
    ----------
    texts : tuple of str
        The extensions that files beside it may have.
    problem : str or None
        Why one of those beside it cannot be read.
    """

    url: str
    image_id: str
    entry: storage.Entry
    texts: tuple[str, ...]
    problem: str | None = None


def read_files(
    urls: storage.Paths,
    *,
    rows_per_partition: int | None = None,
    max_sidecar: int = sidecars.MAX_SIDECAR,
    storage_options: storage.Options = None,
) -> dd.DataFrame:
    """Read image files as a Dask dataframe with one row an image.

    Parameters
    ----------
    urls : str, path, or list of these
        An image, a folder (read to the bottom), a glob, or braces: any fsspec URL. Of a folder PSD, ICO, TGA, PNM, PCX and QOI are left out,
        which `embed` takes where they are asked for; a glob such as ``"photos/*.psd"`` finds them.
    rows_per_partition : int, optional
        Default: a sixteenth of the images, at least 32 (1,024 on a GPU) and at most 2,048.
    max_sidecar : int, default 1 MiB
        Bytes that a caption or a JSON may have; an image beside which a larger one lies is a row with an error.
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    dask.dataframe.DataFrame
        The columns of `read_webdataset`. ``image_id`` is the file's path relative to the folder read (of several: to their
        common folder), with its extension; ``caption`` and ``metadata`` are the .txt, without the newline that ends it, and the .json of the same
        name beside it. An empty or unreadable file is a row with an ``error``, at the latest when it is decoded; so is what is no regular
        file, a link that leads out of the folder, an image beside which such a text lies, and one whose name is not UTF-8. Links to folders
        are not followed.

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
    if max_sidecar < 1:
        raise ValueError(f"max_sidecar={max_sidecar}: it must be at least 1 byte")
    found = storage.expand(urls, EXTENSIONS, storage_options, beside=tuple(TEXTS), contained=CONTAINED, called="image")
    files = files_of(found, urls, storage_options)
    n_rows = rows_at_once(len(files), rows_per_partition, backend())
    groups = [files[i : i + n_rows] for i in range(0, len(files), n_rows)]
    frame = dd.from_map(
        list_files,
        groups,
        max_sidecar=max_sidecar,
        storage_options=storage_options,
        meta=schema.empty(schema.SOURCE_COLUMNS),
        label="read-files",
    )
    return vectors.to_backend(frame, backend())


def files_of(
    found: Mapping[str, storage.Entry], urls: storage.Paths, storage_options: storage.Options = None
) -> list[File]:
    """Return those of the files that `storage.expand` has found, with texts beside them, that are images; raises where none is."""
    images = {
        url: entry
        for url, entry in found.items()
        if url.lower().endswith(EXTENSIONS if entry.amid else EXTENSIONS + _NAMED_EXTENSIONS)
    }
    if not images:
        raise FileNotFoundError(
            f"{printable(repr(urls))} names no image: nothing ends in .jpg, .png, .webp or another extension of images"
        )
    root = storage.root_of(urls, storage_options)
    return [File(url, storage.relative(url, root), entry, *texts_beside(url, found)) for url, entry in images.items()]


def list_files(
    files: Sequence[File], storage_options: storage.Options = None, max_sidecar: int = sidecars.MAX_SIDECAR
) -> pd.DataFrame:
    """List files as one partition of rows: what `read_files` runs on the workers."""
    list_file = partial(_row, storage_options=storage_options, max_sidecar=max_sidecar)
    if all(storage.is_local(storage.path_of(file.url)) for file in files):
        rows = [list_file(file) for file in files]
    else:
        with ThreadPoolExecutor(_THREADS) as threads:
            rows = list(threads.map(list_file, files))
    return schema.table({column: [row.get(column) for row in rows] for column in schema.SOURCE_COLUMNS})


def _row(file: File, storage_options: storage.Options, max_sidecar: int) -> dict[str, Any]:
    entry, problem = file.entry, file.entry.problem or file.problem
    if problem is None and (entry.size is None or entry.etag is None):
        try:
            entry = storage.stat(file.url, storage_options)
        except OSError as failed:
            problem = type(failed).__name__
    row: dict[str, Any] = {"image_id": file.image_id, "url": file.url, "offset": 0, "bytes": entry.size or 0}
    row |= {"etag": entry.etag, "error": None if problem is None else f"read: {problem}"}
    for extension in file.texts if problem is None else ():
        beside = storage.replace_extension(file.url, extension)
        content = storage.read_if_there(beside, storage_options, max_sidecar + 1)
        if content is not None and len(content) > max_sidecar:
            row["error"] = f"sidecar: {printable(beside)} has more than {max_sidecar:,} bytes (max_sidecar)"
        elif content is not None:
            text, encoding = sidecars.decode(content)
            row[TEXTS[extension]] = sidecars.as_caption(text) if extension == ".txt" else text
            row["text_encoding"] = row.get("text_encoding") or encoding
    return row


def texts_beside(url: str, found: Mapping[str, storage.Entry]) -> tuple[tuple[str, ...], str | None]:
    """Return the extensions of those files beside an image that are there, or of all where that is not known, and what is wrong with one."""
    beside = {extension: storage.replace_extension(url, extension) for extension in TEXTS}
    if found[url].amid:
        there = tuple(extension for extension in TEXTS if beside[extension] in found)
        problems = {extension: found[beside[extension]].problem for extension in there}
    else:
        there = tuple(TEXTS)
        paths = {extension: storage.path_of(text) for extension, text in beside.items()}
        problems = {
            extension: storage.problem_of(path, path.rpartition("/")[0]) if storage.is_local(path) else None
            for extension, path in paths.items()
        }
    problem = next((f"the {extension} beside it: {said}" for extension, said in problems.items() if said), None)
    return there, problem
