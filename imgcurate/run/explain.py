"""explain(): what became of one image of a run, and of those that are like it."""

from __future__ import annotations

import difflib
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imgcurate import parts, storage, vectors
from imgcurate.run.output import files
from imgcurate.run.state.folder import Folder

_THREADS = 16
# Of an image these are no answer to what became of it.
_LEFT_OUT = ("embedding", "etag", "text_encoding")
_DUPLICATES, _NEAR = 20, 3
# So many ids that stand next to one that is unknown are compared with it, letter by letter.
_NEIGHBOURS, _CONTAINING = 50, 200


def explain(out: str | os.PathLike[str], image_id: str, *, storage_options: storage.Options = None) -> dict[str, Any]:
    """Say what became of an image of a run.

    Parameters
    ----------
    out : str or path
        The folder of a run that has finished.
    image_id : str
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    dict
        The image's row of ``images.parquet`` without its embedding; ``written``, the shard or file that it became, if it is kept; ``twin``, the row of
        the image that is kept in its stead, if it is a duplicate; ``duplicates``, ids of images that it is kept for, with how many in all as
        ``n_duplicates``.

    Raises
    ------
    FileNotFoundError
        Where there is no finished run, or a part of its table of images is missing.
    KeyError
        Where no image has this id; names those that are nearest to it.

    Examples
    --------
    >>> explain("curated", "00012/000451")["reason"]  # doctest: +SKIP
    'duplicate of 00003/000017 (0.994)'
    """
    url = storage.absolute(out, storage_options).rstrip("/")
    place = Folder(url, storage_options)
    manifest = place.finished(out)
    urls = place.images(manifest)

    def read(part: str) -> pa.Table:
        return vectors.to_arrow(parts.read_part(part, None, ["image_id", "kept", "duplicate_of"], storage_options))

    with ThreadPoolExecutor(_THREADS) as threads:
        known = list(threads.map(read, urls))
    at = _find(known, image_id)
    if at is None:
        near = near_ids((table["image_id"] for table in known), image_id)
        instead = f"; there {'is' if len(near) == 1 else 'are'} {', '.join(near)}" if near else ""
        raise KeyError(f"{os.fspath(out)} has no image {image_id!r}{instead}")
    part, row = at
    found = _row(urls[part], row, storage_options)
    if found["kept"]:
        before = [*(table["kept"] for table in known[:part]), known[part]["kept"][:row]]
        n_before = sum(pc.sum(column).as_py() or 0 for column in before)
        if manifest["options"].get("write") == "files":
            found["written"] = _file(url, urls[part].rpartition("/")[2], image_id, storage_options)
        else:
            found["written"] = _shard(url, n_before, storage_options)
    twin = _find(known, found["duplicate_of"]) if found["duplicate_of"] is not None else None
    found["twin"] = None if twin is None else _row(urls[twin[0]], twin[1], storage_options)
    its = [table["image_id"].filter(pc.equal(table["duplicate_of"], image_id)) for table in known]
    found["n_duplicates"] = sum(map(len, its))
    found["duplicates"] = [name for ids in its for name in ids[:_DUPLICATES].to_pylist()][:_DUPLICATES]
    return found


def near_ids(columns: Iterable[Any], image_id: str, n: int = _NEAR) -> list[str]:
    """Return ids that are nearest to one that is unknown, the nearest first.

    Parameters
    ----------
    columns : iterable of pyarrow.ChunkedArray of str
    image_id : str
    n : int

    Returns
    -------
    list of str
        Of the ids that contain it or its last part, and those next to it in order, the ones that are written most alike.

    Examples
    --------
    >>> near_ids([pa.chunked_array([["00000/cat", "00000/dog", "00001/cat"]])], "0000/cat", n=2)
    ['00001/cat', '00000/cat']
    """
    key = image_id.rpartition("/")[2]
    candidates: set[str] = set()
    for ids in columns:
        ordered = sorted(ids.to_pylist())
        middle = bisect_left(ordered, image_id)
        candidates.update(ordered[max(middle - _NEIGHBOURS, 0) : middle + _NEIGHBOURS])
        if key:
            containing = pc.match_substring(ids, key, ignore_case=True)
            candidates.update(ids.filter(containing)[:_CONTAINING].to_pylist())
    return difflib.get_close_matches(image_id, sorted(candidates), n=n, cutoff=0.3)


def _find(known: Sequence[pa.Table], image_id: str) -> tuple[int, int] | None:
    """Return part and row of an image."""
    for number, table in enumerate(known):
        row = pc.index(table["image_id"], image_id).as_py()
        if row >= 0:
            return number, row
    return None


def _row(url: str, row: int, storage_options: storage.Options) -> dict[str, Any]:
    table = vectors.to_arrow(parts.read_part(url, None, None, storage_options))
    wanted = [name for name in table.column_names if name not in _LEFT_OUT]
    return dict(table.select(wanted).slice(row, 1).to_pylist()[0])


def _file(url: str, part: str, image_id: str, storage_options: storage.Options) -> str:
    """Return the file of a kept image of a part, of a run that wrote files."""
    account = files.read_account(f"{url}/{files.ACCOUNT}/{part}", storage_options)
    mine = account["image"].to_numpy(dtype=bool) & (account["image_id"] == image_id).to_numpy(dtype=bool)
    return f"{url}/{files.FOLDER}/{account['file'][mine].iloc[0]}"


def _shard(url: str, before: int, storage_options: storage.Options) -> str:
    """Return the curated shard of a kept image, of which so many stand before it."""
    table = parts.read_part(f"{url}/shards.parquet", None, ["shard", "samples"], storage_options)
    return f"{url}/shards/{table['shard'][int((table['samples'].cumsum() <= before).sum())]}"
