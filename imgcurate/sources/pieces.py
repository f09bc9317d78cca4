"""Where embeddings of others lie: which files hold vectors, which hold their ids, and what of them becomes a partition."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from imgcurate import storage, vectors
from imgcurate.printable import printable
from imgcurate.sources import arrays

#: A file that is larger is read in several partitions of about this size.
_PARTITION_BYTES = 128 << 20
_EXTENSIONS = (".npy", ".parquet", ".pq", ".arrow")
#: Of a file with an id in each line.
TEXT = ".txt"


class Piece(NamedTuple):
    """What becomes a partition.

    Attributes
    ----------
    url : str
        Of the vectors.
    start, stop : int, int or None
        Rows of a ``.npy`` file, row groups of Parquet; to the end where `stop` is None.
    ids : str, numpy.ndarray or None
        The file of ids beside it, or the ids themselves; None where they stand in the same file.
    versions : tuple of str or None
        The etags of the files, so that what is made of them is known by them.
    """

    url: str
    start: int
    stop: int | None
    ids: str | np.ndarray | None
    versions: tuple[str | None, ...]


def find_vectors(path: Any, storage_options: storage.Options) -> dict[str, storage.Entry]:
    """Return the files of vectors that a path names; see `read_embeddings`."""
    if isinstance(path, str | os.PathLike) and _is_folder(os.fspath(path), storage_options):
        folder = os.fspath(path).rstrip("/")
        names = storage.sizes_in(folder, storage_options)
        if "dataset_dict.json" in names:
            splits = _read_json(f"{folder}/dataset_dict.json", storage_options)["splits"]
            raise ValueError(
                f"{printable(folder)} holds several splits: name one, such as {printable(folder)}/{printable(str(splits[0]))}"
            )
        if "state.json" in names:
            # Beside them may lie what the library remembers of earlier work.
            data = _read_json(f"{folder}/state.json", storage_options)["_data_files"]
            return storage.expand([f"{folder}/{file['filename']}" for file in data], (), storage_options)
        if _is_folder(f"{folder}/img_emb", storage_options):
            path = f"{folder}/img_emb"
    files = storage.expand(path, _EXTENSIONS, storage_options)
    unknown = [url for url in files if not url.lower().endswith(_EXTENSIONS)]
    if unknown:
        raise ValueError(f"{printable(unknown[0])} is of no kind that is read: {', '.join(_EXTENSIONS)}")
    if any(is_array(url) for url in files):
        return {url: entry for url, entry in files.items() if is_array(url)}
    return files


def _is_folder(path: str, storage_options: storage.Options) -> bool:
    if "::" in path and not storage.is_local(path):
        return False
    fs, place = storage.open_filesystem(path, storage_options)
    return bool(fs.isdir(place))


def _read_json(url: str, storage_options: storage.Options) -> Any:
    with storage.open_input(url, storage_options) as file:
        return json.load(file)


def is_array(url: str) -> bool:
    """Tell whether a file holds vectors, and not ids beside them."""
    name = url.rpartition("/")[2].lower()
    return name.endswith(".npy") and not name.removesuffix(".npy").endswith(("_ids", ".ids")) and name != "ids.npy"


def pieces_of_arrays(
    urls: Sequence[str], files: dict[str, storage.Entry], ids: Any, storage_options: storage.Options
) -> Iterator[Piece]:
    """Cut ``.npy`` files into partitions, each with its ids."""
    given = None
    if isinstance(ids, str | os.PathLike):
        beside: dict[str, str] = {urls[0]: storage.absolute(ids, storage_options)}
        if len(urls) > 1:
            raise ValueError(
                f"ids={os.fspath(ids)!r} is one file and there are {len(urls)} arrays: give the ids themselves"
            )
    elif ids is not None:
        given, beside = pd.Index(vectors.to_pandas(ids)).to_numpy(), {}
    else:
        beside = _beside(urls, storage_options)
    entries = storage.expand(list(dict.fromkeys(beside.values())), (), storage_options) if beside else {}
    taken = 0
    for url in urls:
        size, etag = files[url].size, files[url].etag
        # How many rows there are is read only where it must be known: of a store each file is asked.
        small = given is None and size is not None and size <= _PARTITION_BYTES
        ranges = [(0, None)] if small else _ranges(arrays.read_header(url, storage_options).shape)
        versions = (etag, entries[beside[url]].etag if beside else None)
        for start, stop in ranges:
            mine = beside[url] if given is None else given[taken + start : taken + (stop or 0)]
            yield Piece(url, start, stop, mine, versions)
        taken += ranges[-1][1] or 0
    if given is not None and taken != len(given):
        raise ValueError(f"{len(given):,} ids were given and the arrays hold {taken:,} vectors")


def _ranges(shape: Sequence[int]) -> list[tuple[int, int | None]]:
    """Cut the rows of an array into partitions.

    Examples
    --------
    >>> _ranges((100_000, 768))
    [(0, 43690), (43690, 87380), (87380, 100000)]
    """
    step = max(1, _PARTITION_BYTES // (4 * max(int(np.prod(shape[1:])), 1)))
    return [(start, min(start + step, shape[0])) for start in range(0, max(shape[0], 1), step)]


def _beside(urls: Sequence[str], storage_options: storage.Options) -> dict[str, str]:
    """Return the file of ids of each array."""
    folders = {url.rpartition("/")[0] for url in urls}
    folders |= {f"{folder.rpartition('/')[0]}/metadata" for folder in folders if folder.endswith("/img_emb")}
    there = {f"{folder}/{name}" for folder in folders for name in storage.sizes_in(folder, storage_options)}
    found = {}
    for url in urls:
        folder, _, name = url.rpartition("/")
        stem = os.path.splitext(name)[0]
        candidates = [f"{folder}/{stem}{end}" for end in (".parquet", "_ids.npy", ".ids.npy", TEXT)]
        if len(urls) == 1:
            candidates += [f"{folder}/ids{end}" for end in (".npy", TEXT, ".parquet")]
        if folder.endswith("/img_emb"):
            number = stem.removeprefix("img_emb_")
            candidates.insert(0, f"{folder.rpartition('/')[0]}/metadata/metadata_{number}.parquet")
        known = next((candidate for candidate in candidates if candidate in there), None)
        if known is None:
            raise FileNotFoundError(
                f"no ids lie beside {url} ({', '.join(candidate.rpartition('/')[2] for candidate in candidates)}): pass them as ids="
            )
        found[url] = known
    return found


def pieces_of_table(url: str, entry: storage.Entry, storage_options: storage.Options) -> Iterator[Piece]:
    """Cut a Parquet file into partitions of whole row groups; one of Arrow's own format is one partition."""
    versions = (entry.etag,)
    if not arrays.is_parquet(url) or (entry.size is not None and entry.size <= _PARTITION_BYTES):
        yield Piece(url, 0, None, None, versions)
        return
    start = size = 0
    groups = arrays.row_groups(url, storage_options)
    if not groups:
        yield Piece(url, 0, None, None, versions)
    for number, of_group in enumerate(groups):
        size += of_group
        if size >= _PARTITION_BYTES or number == len(groups) - 1:
            yield Piece(url, start, number + 1, None, versions)
            start, size = number + 1, 0
