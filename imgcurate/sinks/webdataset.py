"""Rows as WebDataset tar shards: runs of bytes copied from the sources, so that what is kept is what it was."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd
import pandas as pd

from imgcurate import images, schema, storage, tar, vectors
from imgcurate.cluster import interruptible
from imgcurate.sinks.copying import Sources, Writer, rows_of

_COLUMNS = ["image_id", "url", "member", "offset", "bytes", "sample_offset", "sample_size"]
# What is compared while it is copied, where the frame has it.
_COMPARED = ["etag", "digest"]
# A file in the folder of the shards, for tasks that have not begun to see that one has failed.
_STOPPED = ".stopped"
# What makes a name unsafe, as `imgcurate.tar.is_unsafe` has it, and the beginning of ``__names__``.
_NOT_IN_KEYS = re.compile(r"[\0-\x1f\x7f-\x9f\\]|(?<=^[A-Za-z]):|^__+")


@interruptible
def write_webdataset(
    frame: Any,
    path: str | os.PathLike[str],
    *,
    samples_per_shard: int = 10_000,
    overwrite: bool = False,
    storage_options: storage.Options = None,
) -> dd.DataFrame:
    """Write the samples of a frame's rows as tar shards ``00000.tar``, ``00001.tar``, ...

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
        With the columns that `read_webdataset` or `read_files` gave it. Rows with an ``error`` are not written; a warning
        counts them.
    path : str or path
        The folder. Shards appear in it when all are whole.
    samples_per_shard : int, default 10_000
    overwrite : bool, default False
        Replace the shards that are there.
    storage_options : dict, optional
        For the fsspec filesystem, of sources and output.

    Returns
    -------
    dask.dataframe.DataFrame
        One row a shard: url, samples, bytes, renamed (samples whose key was taken in this shard and that got another), digest (xxh3_128 of
        the shard's bytes in hexadecimal).

    Raises
    ------
    FileExistsError
        Where shards are there and `overwrite` is false, or they are shards of the frame: sources are never replaced.
    KeyError
        Where the frame lacks a column.
    imgcurate.tar.ShardChanged
        Where a source has another ``etag`` than when it was listed, or an image that is copied another ``digest`` than when it was embedded
        or measured. Then no shard appears.

    Notes
    -----
    Samples keep the order of the rows. A sample is copied as the run of bytes it is in its source: names, headers, image and
    sidecars. Members that are not adjacent there are copied one by one and are adjacent here. Two samples of one key would become
    one sample for a reader: the second takes its image_id as key. Rows of `read_files` become an image with its .txt and .json.

    Examples
    --------
    >>> write_webdataset(frame, "curated/shards", samples_per_shard=1000).compute()  # doctest: +SKIP
    """
    check_samples_per_shard(samples_per_shard)
    place = storage.absolute(path, storage_options)
    with storage.staged_folder(path, ".tar", overwrite=overwrite, storage_options=storage_options) as folder:
        shards = _write_shards(frame, folder, samples_per_shard, place if overwrite else None, storage_options)
    named = [(storage.to_text(f"{place}/{url.rpartition('/')[2]}"), *written) for url, *written in shards]
    table = pd.DataFrame(named, columns=["url", *Written._fields])
    return dd.from_pandas(table, npartitions=1)


def check_samples_per_shard(samples_per_shard: int) -> None:
    """Raise a ValueError where a shard would hold nothing."""
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard}: must be at least 1")


def _write_shards(
    frame: Any, folder: str, samples_per_shard: int, replaced: str | None, storage_options: storage.Options
) -> list[tuple[str, int, int, int, str]]:
    """Write a frame into `folder`, where shards of the folder `replaced` are to go, and return (url, samples, bytes, renamed, digest) of each shard.

    Computes `frame` as far as its rows go first: how many there are decides what goes into which shard. What is wrong with a source or
    the disk is raised when no other shard is being written any more, so that nothing appears after what was written has been removed.
    """
    schema.require(frame, _COLUMNS, "write_webdataset")
    columns = [*_COLUMNS, *(name for name in ("error", *_COMPARED) if name in frame.columns)]
    pick = dask.delayed(_pick_rows, nout=4)
    # Rows are small without their vectors: kept in memory, so that what made them (a model, perhaps) runs once.
    picked = dask.persist(*[output for part in frame[columns].to_delayed() for output in pick(part, replaced)])
    parts = picked[0::4]
    counts, bad, own = dask.compute(list(picked[1::4]), list(picked[2::4]), list(picked[3::4]))
    if any(own):
        raise FileExistsError(
            f"{replaced} holds shards of the frame, and sources are never replaced; name another folder"
        )
    if sum(bad):
        warnings.warn(f"{sum(bad):,} rows have an error and are not written", stacklevel=4)
    write = dask.delayed(_write_cuts)
    tasks = []
    for number, cuts in enumerate(cut_into_shards(counts, samples_per_shard)):
        rows_of_shard = [(parts[partition], start, stop) for partition, start, stop in cuts]
        tasks.append(write(rows_of_shard, folder, f"{number:05d}.tar", storage_options))
    outcomes = dask.compute(*tasks)
    for problem in outcomes:
        if isinstance(problem, Exception):
            storage.remove(f"{folder}/{_STOPPED}", storage_options)
            raise problem
    return list(outcomes)


def cut_into_shards(counts: Sequence[int], samples_per_shard: int) -> Iterator[list[tuple[int, int, int]]]:
    """Cut partitions of `counts` rows into shards of equal length.

    Yields
    ------
    list of (partition, start, stop)
        The rows of one shard.

    Examples
    --------
    >>> list(cut_into_shards([3, 0, 4], 5))
    [[(0, 0, 3), (2, 0, 2)], [(2, 2, 4)]]
    """
    shard: list[tuple[int, int, int]] = []
    room = samples_per_shard
    for partition, count in enumerate(counts):
        start = 0
        while start < count:
            taken = min(room, count - start)
            shard.append((partition, start, start + taken))
            start, room = start + taken, room - taken
            if room == 0:
                yield shard
                shard, room = [], samples_per_shard
    if shard:
        yield shard


class Written(NamedTuple):
    """A shard that was written.

    Attributes
    ----------
    samples, bytes : int
    renamed : int
        Samples that got another key, because theirs was taken.
    digest : str
        xxh3_128 of the whole file.
    """

    samples: int
    bytes: int
    renamed: int
    digest: str


def write_shard(rows: pd.DataFrame, url: str, storage_options: storage.Options = None) -> Written:
    """Write rows as one shard, which is there under its name when it is whole and never otherwise.

    Parameters
    ----------
    rows : pandas.DataFrame
        Columns image_id, url, member, offset, bytes, sample_offset, sample_size, and perhaps etag and digest, to be compared with what is
        copied.
    url : str
    storage_options : dict, optional
        For the fsspec filesystem, of sources and output.

    Raises
    ------
    imgcurate.tar.ShardChanged
        Where a source is not what was listed, or an image not what its digest says.
    """
    keys = _keys(rows)
    with storage.open_atomic(url, storage_options) as file, Sources(storage_options) as sources:
        out = Writer(file, sources)
        try:
            for row, (key, new_key) in zip(rows_of(rows), keys, strict=True):
                if row.member is None:
                    out.add_file(row, new_key or key)
                else:
                    out.add_sample(row, key, new_key)
            out.finish()
        finally:  # where it failed as well, for that may be why
            sources.refuse_changed()
    renamed = sum(new is not None for _, new in keys)
    return Written(len(rows), out.written, renamed, out.digest.hexdigest())


def keys_of(rows: pd.DataFrame) -> list[str]:
    """Return the key that each row has in the shard that `write_shard` makes of them.

    Examples
    --------
    >>> keys_of(pd.DataFrame({"image_id": ["0/a", "1/a"], "member": ["a.jpg", "a.jpg"]}))
    ['a', '1/a']
    """
    return [key if new_key is None else new_key for key, new_key in _keys(rows)]


def _pick_rows(part: Any, replaced: str | None) -> tuple[pd.DataFrame, int, int, bool]:
    """Return the rows of a partition that can be written, their number, that of the others, and whether any lies in a shard that is to go."""
    rows = vectors.to_pandas(part)
    usable = rows[rows["error"].isna()] if "error" in rows else rows
    columns = [*_COLUMNS, *(name for name in _COMPARED if name in rows)]
    return usable[columns], len(usable), len(rows) - len(usable), _holds(replaced, rows["url"])


def _holds(folder: str | None, urls: pd.Series) -> bool:
    """Tell whether a folder itself holds one of some shards.

    Examples
    --------
    >>> _holds("/data", pd.Series(["/data/in/0.tar"])), _holds("/data/in", pd.Series(["/data/out/../in/0.tar"]))
    (False, True)
    """
    if folder is None:
        return False
    real = os.path.realpath if storage.is_local(folder) else str
    shards = (storage.path_of(url) for url in urls.dropna().unique() if url.lower().endswith(".tar"))
    return any(real(shard.rpartition("/")[0]) == real(folder) for shard in shards)


def _write_cuts(
    cuts: Sequence[tuple[pd.DataFrame, int, int]], folder: str, name: str, storage_options: storage.Options
) -> tuple[str, int, int, int, str] | Exception | None:
    """Write rows as a shard. A problem is returned, for Dask would not wait for the other tasks; after one they do nothing."""
    if storage.read_if_there(f"{folder}/{_STOPPED}", storage_options) is not None:
        return None
    rows = pd.concat([part.iloc[start:stop] for part, start, stop in cuts], ignore_index=True)
    try:
        return f"{folder}/{name}", *write_shard(rows, f"{folder}/{name}", storage_options)
    except (ValueError, OSError) as problem:
        # On a disk that is full even this may fail; then the other tasks will find so as well.
        with contextlib.suppress(OSError), storage.open_atomic(f"{folder}/{_STOPPED}", storage_options) as mark:
            mark.write(b"")
        return problem


def _keys(rows: pd.DataFrame) -> list[tuple[str, str | None]]:
    """Return each row's key, and the one it takes instead where an earlier row of the shard has the same."""
    columns = images.host_columns(rows, ["image_id", "member"])
    keys = [_key(*row) for row in zip(columns["image_id"], columns["member"], strict=True)]
    taken: set[str] = set()
    natural = set(keys)
    result: list[tuple[str, str | None]] = []
    for key, image_id in zip(keys, columns["image_id"], strict=True):
        if key not in taken:
            taken.add(key)
            result.append((key, None))
            continue
        wanted = new = _safe_key(image_id)
        number = 2
        while new in taken or new in natural:
            new, number = f"{wanted}-{number}", number + 1
        taken.add(new)
        result.append((key, new))
    return result


def _key(image_id: Any, member: str | None) -> str:
    if member is None:
        return _safe_key(os.path.splitext(image_id)[0])
    named = tar.split_name(member)
    if named is None:
        raise ValueError(f"{tar.shown(str(image_id))}: member {tar.shown(member)} is not a sample's")
    return named[0]


def _safe_key(image_id: str) -> str:
    """Return a key that a reader finds again: in its folder, without a dot, and no ``__name__`` that is no sample's.

    Examples
    --------
    >>> _safe_key("../__x__/cat.v1"), _safe_key("C:cat"), _safe_key("File:cat")
    ('_x__/cat_v1', 'C_cat', 'File:cat')
    """
    text = str(image_id).encode("utf-8", "backslashreplace").decode()
    *folders, base = [part for part in text.split("/") if part not in ("", ".", "..")] or ["sample"]
    return _NOT_IN_KEYS.sub("_", "/".join([*folders, base.replace(".", "_")]))
