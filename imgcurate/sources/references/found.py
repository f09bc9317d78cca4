"""What of Parquet a run reads: its rows, in pieces of some row groups, each image under an id of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from imgcurate import storage, tar
from imgcurate.printable import plural, printable, quoted
from imgcurate.sources.references.table import References, check_columns, ids_of, is_relative, read, unreadable

# Row groups are put together to about so many rows, and cut at so many.
_ABOUT_ROWS, _MOST_ROWS = 1 << 14, 1 << 17
_THREADS = 16
_PLACE = ("image_id", "url", "member")


def find_references(
    found: Mapping[str, storage.Entry],
    storage_options: storage.Options = None,
    roots: tuple[str, ...] | None = None,
) -> list[References]:
    """Return the rows of Parquet files that `storage.expand` has found, in order, in pieces of some row groups.

    Parameters
    ----------
    found : mapping of str to Entry
    storage_options : dict, optional
        For the fsspec filesystem.
    roots : tuple of str, optional
        As for `list_references`.

    Raises
    ------
    ValueError
        Where a file cannot be read, has no column ``url``, or one of another type than a reader's; where an image has no id, or one id names
        several; names the file.
    """
    for url, entry in found.items():
        if entry.problem is not None:
            raise ValueError(f"{printable(tar.printable(storage.path_of(url)))}: {entry.problem}")
    with ThreadPoolExecutor(_THREADS) as threads:
        looked = threads.map(partial(_look, storage_options=storage_options), found, found.values())
        pieces = [piece for of_file in looked for piece in of_file]
    _refuse_repeated(pieces, storage_options)
    return [piece.references._replace(roots=roots) for piece in pieces]


class _Piece(NamedTuple):
    """Rows that were looked at, with the hashes of their ids."""

    references: References
    hashes: np.ndarray


def _look(url: str, entry: storage.Entry, storage_options: storage.Options) -> list[_Piece]:
    """Return the pieces of a Parquet file, having seen that its rows have a place and an id."""
    etag = entry.etag or storage.etag(url, storage_options)
    try:
        with storage.open_input(url, storage_options) as file:
            content = pq.ParquetFile(file)
            check_columns(url, content.schema_arrow)
            sizes = [content.metadata.row_group(number).num_rows for number in range(content.num_row_groups)]
    except (pa.ArrowException, OSError) as problem:
        raise unreadable(url, problem) from None
    pieces, first = [], 0
    for groups, skipped, n_rows in _cut(sizes):
        references = References(url, etag, first, n_rows, groups, skipped)
        table = read(references, _PLACE, storage_options)
        ids = ids_of(table)
        if ids.null_count:
            what = "neither an image_id nor a url" if "image_id" not in table.column_names else "no image_id"
            raise ValueError(
                f"{printable(url)}: {plural(ids.null_count, 'row')} from row {first} on "
                f"{'has' if ids.null_count == 1 else 'have'} {what}; give every image an id of its own"
            )
        pieces.append(_Piece(references._replace(places=_places(table["url"])), _hashes(ids)))
        first += n_rows
    return pieces


def _cut(sizes: Sequence[int]) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Cut row groups into pieces, by nothing but their sizes: which groups, how many rows to skip in them, and how many to take.

    Examples
    --------
    >>> list(_cut([10_000, 10_000, 200_000, 5]))
    [((0, 2), 0, 20000), ((2, 3), 0, 131072), ((2, 3), 131072, 68928), ((3, 4), 0, 5)]
    >>> list(_cut([]))
    [((0, 0), 0, 0)]
    """
    start = gathered = 0
    for number, size in enumerate(sizes):
        gathered += size
        if gathered < _ABOUT_ROWS and number < len(sizes) - 1:
            continue
        for skipped in range(0, max(gathered, 1), _MOST_ROWS):
            yield (start, number + 1), skipped, min(_MOST_ROWS, gathered - skipped)
        start, gathered = number + 1, 0
    if not sizes:
        yield (0, 0), 0, 0


def _places(urls: pa.ChunkedArray) -> tuple[str, ...]:
    """Return some of the files that rows name: each tar, and of others one of each folder."""
    places: dict[str, str] = {}
    for url in urls.unique().to_pylist():
        if url is not None and not is_relative(url) and "\0" not in url:
            places.setdefault(url if url.lower().endswith(".tar") else url.rpartition("/")[0], url)
    return tuple(places.values())


def _hashes(ids: pa.ChunkedArray) -> np.ndarray:
    return pd.util.hash_array(np.array(ids.to_pylist(), dtype=object), categorize=False)


def _refuse_repeated(pieces: Sequence[_Piece], storage_options: storage.Options) -> None:
    """Raise where an id names more than one row."""
    every = np.sort(np.concatenate([np.zeros(0, np.uint64), *(piece.hashes for piece in pieces)]))
    suspects = np.unique(every[1:][every[1:] == every[:-1]])
    if not len(suspects):
        return
    # Two ids may share a hash by chance, so the ids themselves are looked at.
    holders: dict[str, list[str]] = {}
    for piece in pieces:
        suspected = np.isin(piece.hashes, suspects)
        if suspected.any():
            ids = ids_of(read(piece.references, _PLACE, storage_options)).filter(pa.array(suspected))
            for image_id in ids.to_pylist():
                holders.setdefault(image_id, []).append(piece.references.url)
    repeated = {image_id: urls for image_id, urls in sorted(holders.items()) if len(urls) > 1}
    if repeated:
        image_id, (one, other, *_) = next(iter(repeated.items()))
        where = f"twice in {printable(one)}" if one == other else f"in {printable(one)} and in {printable(other)}"
        raise ValueError(
            f"{plural(len(repeated), 'image_id')} of the Parquet {'names' if len(repeated) == 1 else 'name'} more than one row: "
            f"{quoted([image_id])} stands {where}; give every image an id of its own"
        )
