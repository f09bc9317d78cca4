"""Rows as image files in a folder: the bytes of the sources, copied and compared on the way, or linked."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd

from imgcurate import images, schema, storage, tar, vectors
from imgcurate.cluster import interruptible
from imgcurate.printable import printable, quoted
from imgcurate.sinks.copies import copy_images, name_of, short
from imgcurate.sinks.copying import SIDECARS, Row, Sources, content_of, rows_of

_COLUMNS = ["image_id", "url", "member", "offset", "bytes", "sample_offset", "sample_size"]
# What is compared while it is copied, where the frame has it.
_COMPARED = ["etag", "digest"]


@interruptible
def write_files(
    frame: Any,
    path: str | os.PathLike[str],
    *,
    link: bool = False,
    overwrite: bool = False,
    storage_options: storage.Options = None,
) -> Any:
    """Write the images of a frame's rows as files into a folder: what `read_files` reads.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
        With the columns that `read_files` or `read_webdataset` gave it. Rows with an ``error`` are not written; a warning counts them.
    path : str or path
        The folder. An image lies in it under its ``image_id``, to which the extension of its source is added where it has none; what stands beside
        it (.txt and .json, all members of a tar's sample) under the same name.
    link : bool, default False
        Make hard links to the image files instead of copies: nothing is copied and no room is taken, and who changes the one changes the other.
    overwrite : bool, default False
        Replace files that are there under these names.
    storage_options : dict, optional
        For the fsspec filesystem, of sources and output.

    Returns
    -------
    dask.dataframe.DataFrame
        One row a file that was written, in the order of `frame`: ``image_id``, ``url`` (where it lies), ``bytes``, and ``digest`` (xxh3_128 of its
        bytes; of a link that of the row).

    Raises
    ------
    FileExistsError
        Where a file of one of these names is there and `overwrite` is false, or it is the source itself, or two images would be one file.
    ValueError
        Where `link` is true, and images lie in tars or on another disk.
    KeyError
        Where the frame lacks a column.
    imgcurate.tar.ShardChanged
        Where a source has another ``etag`` than when it was listed, or an image another ``digest`` than when it was embedded or measured.

    Notes
    -----
    Eager. Each file is there under its name when it is whole. What is wrong with names is raised before anything is written; a call that fails
    later leaves the files that it has written.

    Examples
    --------
    >>> write_files(remove(frame, duplicates), "curated", link=True).compute()  # doctest: +SKIP
    """
    schema.require(frame, _COLUMNS, "write_files")
    fs, place = storage.open_filesystem(os.fspath(path), storage_options)
    if fs.isfile(place):
        raise FileExistsError(f"{os.fspath(path)} is a file; name a folder for the images")
    folder = storage.absolute(path, storage_options).rstrip("/")
    if link and not storage.is_local(folder):
        raise ValueError(f"link=True needs a folder on a disk, and {folder} is none; leave it out to copy the images")
    columns = [*_COLUMNS, *(name for name in ("error", *_COMPARED) if name in frame.columns)]
    # A store is asked about each name, which takes long and is in vain where there is nothing.
    occupied = fs.exists(place) and bool(fs.ls(place, detail=False))
    plan = dask.delayed(_plan, nout=2)
    # Rows are small without their vectors: kept in memory, so that what made them (a model, perhaps) runs once.
    planned = dask.persist(
        *[output for part in frame[columns].to_delayed() for output in plan(part, folder, occupied, storage_options)]
    )
    parts, plans = planned[0::2], dask.compute(*planned[1::2])
    _refuse(plans, parts, folder, link, overwrite)
    bad = sum(one.bad for one in plans)
    if bad:
        warnings.warn(f"{bad:,} rows have an error and are not written", stacklevel=3)
    write = dask.delayed(_write_part, pure=False)
    written = dask.persist(*[write(part, folder, link, overwrite, storage_options) for part in parts])
    dask.compute(*[dask.delayed(len)(part) for part in written])
    meta = _written([], [], [], [])
    return dd.from_delayed(list(written) or [dask.delayed(meta)], meta=meta, verify_meta=False)


class _Plan(NamedTuple):
    """What the client has to know of a partition before anything is written: hashes of the names, and what is in their way."""

    hashes: np.ndarray
    there: list[str]
    own: list[str]
    in_tars: int
    bad: int


def _plan(part: Any, folder: str, occupied: bool, storage_options: storage.Options) -> tuple[pd.DataFrame, _Plan]:
    rows = vectors.to_pandas(part)
    usable = rows[rows["error"].isna()] if "error" in rows else rows
    kept = usable[[*_COLUMNS, *(name for name in _COMPARED if name in rows)]].reset_index(drop=True)
    known = images.host_columns(kept, ["image_id", "url", "member"])
    parted = [name_of(*place) for place in zip(known["image_id"], known["url"], known["member"], strict=True)]
    names = [f"{base}{short(extension)}" for base, extension in parted]
    targets = [f"{folder}/{name}" for name in names]
    fs, _ = storage.open_filesystem(folder, storage_options)
    there = [target for target in targets if occupied and fs.exists(target)]
    # Under another name, or by way of a link.
    paths = (storage.path_of(url) for url in known["url"])
    sources = {os.path.realpath(path) for path in paths if storage.is_local(path)}
    own = [target for target in there if storage.is_local(folder) and os.path.realpath(target) in sources]
    in_tars = sum(member is not None for member in known["member"])
    kept = kept.assign(name=names, extension=[extension for _, extension in parted])
    return kept, _Plan(_hashes(names), there, own, in_tars, len(rows) - len(usable))


def _refuse(plans: Sequence[_Plan], parts: Sequence[Any], folder: str, link: bool, overwrite: bool) -> None:
    """Raise where an image would take the place of another, of what is there, or of its own source."""
    in_tars = sum(plan.in_tars for plan in plans)
    if link and in_tars:
        raise ValueError(
            f"link=True makes links to image files, and {in_tars:,} images lie in tars; leave it out to copy them"
        )
    own = [target for plan in plans for target in plan.own]
    if own:
        raise FileExistsError(
            f"{printable(own[0])} is itself an image of the frame, and sources are never replaced; name another folder"
        )
    there = [target for plan in plans for target in plan.there]
    if there and not overwrite:
        more = f" and {len(there) - 1:,} more" if len(there) > 1 else ""
        raise FileExistsError(
            f"{printable(there[0])}{more} would be replaced; name another folder, or pass overwrite=True"
        )
    hashes = np.sort(np.concatenate([np.zeros(0, np.uint64), *(plan.hashes for plan in plans)]))
    suspects = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if len(suspects):
        # Two names may share a hash by chance, so the names themselves are looked at.
        taken = pd.concat(dask.compute(*[dask.delayed(_names_of)(part, suspects) for part in parts]))
        if taken["name"].duplicated().any():
            first = taken[taken["name"].duplicated(keep=False)].sort_values("name").iloc[:2]
            one, other = first["image_id"]
            raise FileExistsError(
                f"{quoted([one])} and {quoted([other])} would both be {printable(folder)}/{printable(first['name'].iloc[0])}; give them other ids"
            )


def _names_of(part: pd.DataFrame, suspects: np.ndarray) -> pd.DataFrame:
    return part.loc[np.isin(_hashes(part["name"]), suspects), ["image_id", "name"]]


def _hashes(names: Iterable[str]) -> np.ndarray:
    return pd.util.hash_array(np.array(list(names), dtype=object), categorize=False)


def _write_part(
    part: pd.DataFrame, folder: str, link: bool, overwrite: bool, storage_options: storage.Options
) -> pd.DataFrame:
    """Write the images of a partition."""
    known = images.host_columns(part, ["image_id", "name", "extension"])
    targets = [f"{folder}/{name}" for name in known["name"]]
    rows = list(zip(rows_of(part), targets, known["extension"], strict=True))
    with Sources(storage_options) as sources:
        try:
            put = _link_images if link else _copy_images
            found = put(rows, sources, overwrite)
        finally:  # where it failed as well, for that may be why
            sources.refuse_changed()
    return _written(known["image_id"], targets, *zip(*found, strict=True)) if found else _written([], [], [], [])


def _written(
    image_ids: Sequence[Any], urls: Sequence[str], sizes: Sequence[int], digests: Sequence[Any]
) -> pd.DataFrame:
    made = schema.table({"image_id": image_ids, "url": [storage.to_text(url) for url in urls], "digest": digests})
    made.insert(2, "bytes", pd.array(sizes, dtype="int64[pyarrow]"))
    return made


def _copy_images(
    rows: Sequence[tuple[Row, str, str]], sources: Sources, overwrite: bool
) -> list[tuple[int, str | None]]:
    """Write images and what stands beside them; return the size and digest of each image."""
    bases = [(row, target.removesuffix(short(extension)), extension) for row, target, extension in rows]
    found: dict[int, tuple[int, str | None]] = {}
    for file in copy_images(bases, sources, overwrite):
        if file.is_image:
            found[file.number] = file.bytes, file.digest
    return [found[number] for number in range(len(rows))]


def _link_images(
    rows: Sequence[tuple[Row, str, str]], sources: Sources, overwrite: bool
) -> list[tuple[int, str | None]]:
    """Link images and the files beside them; return the size of each image and the digest of its row."""
    for row, target, extension in rows:
        if row.etag is not None:
            tar.refuse_changed(row.url, [row.etag], sources.storage_options)
        elif row.digest is not None:
            for _ in content_of(row, row.offset, row.bytes, sources, compared=True):
                pass
        base, source = target.removesuffix(short(extension)), storage.path_of(row.url)
        beside = {base + suffix: storage.replace_extension(source, suffix) for suffix in SIDECARS}
        _link(source, target, overwrite)
        for name, text in beside.items():
            if os.path.exists(text) and not (os.path.exists(name) and os.path.samefile(text, name)):
                _link(text, name, overwrite)
    return [(row.bytes, row.digest) for row, _, _ in rows]


def _link(source: str, target: str, overwrite: bool) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    name = f"{target}.unfinished-{uuid.uuid4().hex[:12]}" if overwrite else target
    try:
        os.link(source, name)
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise
        raise ValueError(
            f"link=True: {printable(source)} lies on another disk than {printable(target)}, and a hard link cannot lead there; leave it out to copy"
        ) from None
    if overwrite:
        os.replace(name, target)
        with contextlib.suppress(FileNotFoundError):  # of two links to one file, replacing the one leaves the other
            os.unlink(name)
