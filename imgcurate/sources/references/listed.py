"""Rows of Parquet as rows of a run: each keeps what it says, and what it lacks is looked up as the readers of shards and files do."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pandas as pd

from imgcurate import schema, storage, tar
from imgcurate.printable import printable, quoted
from imgcurate.sources import files, sidecars, webdataset
from imgcurate.sources.parquet import outside
from imgcurate.sources.references.table import References, ids_of, is_relative, read
from imgcurate.sources.webdataset import Shard

_THREADS = 16
# Of an earlier run; whoever reads the image now finds out again.
_TRIED_AGAIN = ("read:", "decode:")


def list_references(
    references: References, storage_options: storage.Options = None, max_sidecar: int = sidecars.MAX_SIDECAR
) -> pd.DataFrame:
    """List rows as one partition, of the columns that `read_webdataset` and `read_files` give.

    Parameters
    ----------
    references : References
        Where they have `roots`, a row that names a file elsewhere has an error.
    storage_options : dict, optional
        For the fsspec filesystems of the Parquet file and of the images.
    max_sidecar : int
        Bytes that a caption or a JSON may have where it is read from beside an image.

    Returns
    -------
    pandas.DataFrame
        A row keeps image_id, url, member, offset, bytes, sample_offset, sample_size, caption, metadata and text_encoding, and an error unless
        it begins with ``"read:"`` or ``"decode:"``; any other column is left out. ``etag`` is that of the file as it is now. A row that says
        another is an error, for what it says of that file may be wrong. What a row lacks is looked up: of an image file its size, and the texts
        beside it where the Parquet has no such column; of a member of a tar that has no etag, or no place, all that the tar says of its sample. An
        image_id that the Parquet has no column for is the path of the file, or of the tar without ``.tar`` and the sample's key.

    Raises
    ------
    imgcurate.tar.ShardChanged
        Where the Parquet file is not what it was when it was found.
    """
    table = read(references, schema.SOURCE_COLUMNS, storage_options)
    tar.refuse_changed(references.url, [references.etag], storage_options)
    there = set(table.column_names)
    ids = ids_of(table).to_pylist()
    nothing: list[Any] = [None] * len(table)
    said = [table[name].to_pylist() if name in there else nothing for name in schema.SOURCE_COLUMNS]
    rows = [dict(zip(schema.SOURCE_COLUMNS, values, strict=True)) for values in zip(*said, strict=True)]
    by_file: dict[str | None, list[dict[str, Any]]] = {}
    for row, image_id in zip(rows, ids, strict=True):
        row["image_id"] = image_id
        if row["error"] is None or row["error"].startswith(_TRIED_AGAIN):
            row["error"] = None
            by_file.setdefault(row["url"], []).append(row)
    entries = _entries(by_file, references.roots, storage_options)
    alone = []
    for url, its in by_file.items():
        entry = entries[url]
        for row in its:
            row["error"] = _problem(row, entry)
        usable = [row for row in its if row["error"] is None]
        lacking = [row for row in usable if row["member"] is not None and _lacks(row, there)]
        if lacking:
            _look_up_members(lacking, Shard(str(url), "", entry.etag), there, storage_options, max_sidecar)
        alone += [(row, entry) for row in usable if row["member"] is None]
        for row in usable:
            row["etag"] = entry.etag
    _look_up_files(alone, there, storage_options, max_sidecar)
    for row in rows:
        row["offset"], row["bytes"] = row["offset"] or 0, row["bytes"] or 0
        row["url"] = row["url"] or ""
    return schema.table({name: [row[name] for row in rows] for name in schema.SOURCE_COLUMNS})


def _entries(
    urls: Mapping[str | None, Any], roots: tuple[str, ...] | None, storage_options: storage.Options
) -> dict[str | None, storage.Entry]:
    """Return size and etag of each file as they are now, or what is wrong with it."""
    ask = partial(_entry, roots=roots, storage_options=storage_options)
    if all(url is None or storage.is_local(storage.path_of(url)) for url in urls):
        return {url: ask(url) for url in urls}
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(urls, threads.map(ask, urls), strict=True))


def _entry(
    url: str | None, roots: tuple[str, ...] | None = None, storage_options: storage.Options = None
) -> storage.Entry:
    """Return size and etag of a file.

    Examples
    --------
    >>> [_entry(url).problem for url in (None, "../../a.jpg", "/nowhere/a.jpg")]
    ['the row has no url', "'../../a.jpg' is neither an absolute path nor a URL", 'No such file or directory']
    """
    problem = None
    if url is None:
        problem = "the row has no url"
    elif is_relative(url):
        problem = f"{quoted([url])} is neither an absolute path nor a URL"
    elif roots is not None:
        problem = outside(url, roots)
    if url is None or problem is not None:
        return storage.Entry(None, None, problem=problem)
    try:
        entry = storage.stat(url, storage_options)
    except FileNotFoundError:
        return storage.Entry(None, None, problem=os.strerror(errno.ENOENT))
    except Exception as failed:  # a row may name anything, and clients of stores have errors of their own
        said = getattr(failed, "strerror", None) or str(failed) or type(failed).__name__
        return storage.Entry(None, None, problem=printable(said))
    if entry.size is None:
        return entry._replace(problem="the server does not say how large it is")
    return entry._replace(etag=entry.etag or str(entry.size))


def _problem(row: Mapping[str, Any], entry: storage.Entry) -> str | None:
    """Say why a row cannot be used, whatever it lacks."""
    if entry.problem is not None:
        return f"read: {entry.problem}"
    said = None if row["etag"] is None else row["etag"].strip('"')
    if said not in (None, entry.etag):
        return (
            f"read: the file has changed since the row was written ({printable(tar.difference(said, str(entry.etag)))})"
        )
    member = row["member"]
    if member is not None and (tar.split_name(member) is None or tar.is_unsafe(member)):
        return f"read: the member {tar.shown(member)} is no sample's"
    if member is None and row["offset"] not in (None, 0) and row["bytes"] is None:
        return "read: the row has an offset and no bytes"
    # Of a file that holds several images the name is another.
    whole = member is None and row["offset"] == 0 and row["url"].lower().endswith(files.EXTENSIONS)
    if whole and row["bytes"] not in (None, entry.size):
        return f"read: the file has {entry.size:,} bytes and the row says {row['bytes']:,}"
    return None


def _lacks(row: Mapping[str, Any], there: set[str]) -> bool:
    """Tell whether a tar must say where a row's sample lies, or whether that is true."""
    return None in (row["etag"], row["offset"], row["bytes"]) or "sample_offset" not in there


def _look_up_members(
    rows: Sequence[dict[str, Any]],
    shard: Shard,
    there: set[str],
    storage_options: storage.Options,
    max_sidecar: int,
) -> None:
    """Take from a tar what rows of it lack, or why they cannot be used."""
    try:
        listed = webdataset.list_shards([shard], storage_options, sidecars.AS_USUAL._replace(most=max_sidecar))
    except OSError as failed:
        for row in rows:
            row["error"] = f"read: {printable(failed.strerror or str(failed))}"
        return
    found = schema.to_arrow(listed).to_pylist()
    by_member = {sample["member"]: sample for sample in found if sample["member"] is not None}
    of_shard = next((sample["error"] for sample in found if sample["image_id"] == "/"), None)
    for row in rows:
        sample = by_member.get(row["member"])
        if sample is None:
            none = f"the tar has no image {tar.shown(row['member'])}"
            row["error"] = f"read: {of_shard or none}"
        elif any(row[name] not in (None, sample[name]) for name in ("offset", "bytes")):
            row["error"] = f"read: the image {tar.shown(row['member'])} does not lie in the tar where the row says"
        else:
            texts = [name for name in (*files.TEXTS.values(), "text_encoding") if name not in there]
            row |= {name: sample[name] for name in ("offset", "bytes", "sample_offset", "sample_size", "error", *texts)}


def _look_up_files(
    rows: Sequence[tuple[dict[str, Any], storage.Entry]],
    there: set[str],
    storage_options: storage.Options,
    max_sidecar: int,
) -> None:
    """Take what rows of image files lack, and what is wrong with the texts beside them."""
    found = []
    for row, entry in rows:
        texts, problem = files.texts_beside(row["url"], {row["url"]: entry})
        absent = tuple(extension for extension in texts if files.TEXTS[extension] not in there)
        found.append(files.File(row["url"], row["image_id"], entry, absent, problem))
    listed = schema.to_arrow(files.list_files(found, storage_options, max_sidecar)).to_pylist() if found else []
    for (row, _), file in zip(rows, listed, strict=True):
        if row["bytes"] is None:
            row["offset"], row["bytes"] = 0, file["bytes"]
        elif row["offset"] is None and row["bytes"] == file["bytes"]:
            row["offset"] = 0
        elif row["offset"] is None:
            row["error"] = "read: the row has bytes and no offset"
        row["error"] = file["error"] or row["error"]
        row |= {name: file[name] for name in files.TEXTS.values() if name not in there}
        if "text_encoding" not in there:
            row["text_encoding"] = file["text_encoding"]
