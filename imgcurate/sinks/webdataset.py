"""Rows as WebDataset tar shards: runs of bytes copied from the sources, so that what is kept is what it was."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import dask
import dask.dataframe as dd
import pandas as pd

from imgcurate import schema, storage, tar, vectors

_COLUMNS = ["image_id", "url", "member", "offset", "size", "sample_offset", "sample_size"]
_CHUNK = 8 << 20


def write_webdataset(
    frame: Any,
    path: str | os.PathLike[str],
    *,
    samples_per_shard: int = 10_000,
    overwrite: bool = False,
    storage_options: storage.Options = None,
) -> Any:
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
        One row a shard: url, samples, bytes, renamed (samples whose key was taken in this shard and that got another).

    Raises
    ------
    FileExistsError
        Where shards are there and `overwrite` is false.
    KeyError
        Where the frame lacks a column.
    imgcurate.tar.ShardError
        Where a source has changed since it was listed.

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
    with storage.staged_folder(path, ".tar", overwrite=overwrite, storage_options=storage_options) as folder:
        tasks, _rows = write_shards(frame, folder, samples_per_shard, storage_options)
        shards = list(dask.compute(*tasks))
    table = pd.DataFrame(shards, columns=["url", "samples", "bytes", "renamed"])
    table["url"] = [f"{storage.absolute(path, storage_options)}/{url.rpartition('/')[2]}" for url in table["url"]]
    return dd.from_pandas(table, npartitions=1)


def check_samples_per_shard(samples_per_shard: int) -> None:
    """Raise a ValueError where a shard would hold nothing."""
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard}: must be at least 1")


def write_shards(
    frame: Any, folder: str, samples_per_shard: int, storage_options: storage.Options = None
) -> tuple[list[Any], Any]:
    """Return one delayed task a shard, which writes it into `folder` and gives (url, samples, bytes, renamed).

    Computes `frame` as far as its rows go: how many there are decides what goes into which shard. The second value is those rows
    in the workers' memory; the tasks read them, and Dask drops them when nobody holds the value any more.
    """
    schema.require(frame, _COLUMNS, "write_webdataset")
    columns = _COLUMNS + ["error"] * ("error" in frame.columns)
    pick = dask.delayed(_pick_rows, nout=3)
    # Rows are small without their vectors: kept in memory, so that what made them (a model, perhaps) runs once.
    picked = dask.persist(*[output for part in frame[columns].to_delayed() for output in pick(part)])
    parts = picked[0::3]
    counts, bad = dask.compute(list(picked[1::3]), list(picked[2::3]))
    if sum(bad):
        warnings.warn(f"{sum(bad):,} rows have an error and are not written", stacklevel=3)
    write = dask.delayed(_write_shard)
    tasks = []
    for number, cuts in enumerate(cut_into_shards(counts, samples_per_shard)):
        rows_of_shard = [(parts[partition], start, stop) for partition, start, stop in cuts]
        tasks.append(write(rows_of_shard, f"{folder}/{number:05d}.tar", storage_options))
    return tasks, parts


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


def _pick_rows(part: Any) -> tuple[pd.DataFrame, int, int]:
    """Return the rows of a partition that can be written, their number, and the number of the others."""
    rows = vectors.to_pandas(part)
    usable = rows[rows["error"].isna()] if "error" in rows else rows
    return usable[_COLUMNS], len(usable), len(rows) - len(usable)


def _write_shard(
    cuts: Sequence[tuple[pd.DataFrame, int, int]], url: str, storage_options: storage.Options
) -> tuple[str, int, int, int]:
    rows = pd.concat([part.iloc[start:stop] for part, start, stop in cuts], ignore_index=True)
    keys = _keys(rows)
    renamed = sum(new is not None for _, new in keys)
    with storage.open_output(url, storage_options) as file, _Sources(storage_options) as sources:
        out = _Writer(file, sources)
        for row, (key, new_key) in zip(rows.itertuples(index=False), keys, strict=True):
            if row.member is pd.NA:
                out.add_file(row.url, row.size, new_key or key)
            elif row.sample_offset is pd.NA:
                out.add_scattered(row.url, key, new_key)
            elif new_key is None:
                out.add_run(row.url, row.sample_offset, row.sample_size)
            else:
                out.add_renamed(row.url, row.sample_offset, row.sample_size, key, new_key)
        size = out.finish()
    return url, len(rows), size, renamed


def _keys(rows: pd.DataFrame) -> list[tuple[str, str | None]]:
    """Return each row's key, and the one it takes instead where an earlier row of the shard has the same."""
    keys = [_key(row) for row in rows[["image_id", "member"]].itertuples(index=False)]
    taken: set[str] = set()
    natural = set(keys)
    result: list[tuple[str, str | None]] = []
    for key, image_id in zip(keys, rows["image_id"], strict=True):
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


def _key(row: Any) -> str:
    if row.member is pd.NA:
        return _safe_key(os.path.splitext(row.image_id)[0])
    named = tar.split_name(row.member)
    if named is None:
        raise ValueError(f"{row.image_id}: member {row.member!r} is not a sample's")
    return named[0]


def _safe_key(image_id: str) -> str:
    """Return a key that stays in its folder, and that ends at the first dot because it has none."""
    *folders, base = [part for part in str(image_id).split("/") if part not in ("", ".", "..")] or ["sample"]
    return "/".join([*folders, base.replace(".", "_")])


class _Sources:
    """The source that is being read; rows of one shard follow one another, so one open file is enough."""

    def __init__(self, storage_options: storage.Options) -> None:
        self.storage_options = storage_options
        self.url: str | None = None
        self.stack = contextlib.ExitStack()
        self.listings: dict[str, dict[str, tar.Sample]] = {}

    def __enter__(self) -> _Sources:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stack.close()

    def open(self, url: str) -> BinaryIO:
        if url != self.url:
            self.stack.close()
            self.file = self.stack.enter_context(storage.open_input(url, self.storage_options))
            self.url = url
        return self.file

    def members(self, url: str, key: str) -> list[tar.Member]:
        if url not in self.listings:
            samples = tar.scan(self.open(url), storage.size_of(url, self.storage_options), url)
            self.listings = {url: {sample.key: sample for sample in samples}}
        return self.listings[url][key].members


class _Writer:
    """Appends samples to a shard, joining runs that follow one another in their source into one copy."""

    def __init__(self, file: BinaryIO, sources: _Sources) -> None:
        self.file, self.sources = file, sources
        self.pending: tuple[str, int, int] | None = None
        self.written = 0

    def add_run(self, url: str, start: int, size: int) -> None:
        if self.pending is not None and self.pending[0] == url and self.pending[2] == start:
            self.pending = (url, self.pending[1], start + size)
            return
        self._flush()
        self.pending = (url, start, start + size)

    def add_renamed(self, url: str, start: int, size: int, key: str, new_key: str) -> None:
        """Write the members of a run under another key: new headers, the same content."""
        run = self._read(url, start, size)
        source = io.BytesIO(run + tar.END)
        (sample,) = tar.scan(source, size + len(tar.END), url)
        for member in sample.members:
            self._add_member(source, member, key, new_key)

    def add_scattered(self, url: str, key: str, new_key: str | None) -> None:
        """Write members that are not adjacent in their source."""
        for member in self.sources.members(url, key):
            if new_key is None:
                self.add_run(url, member.start, member.stop - member.start)
            else:
                self._add_member(self.sources.open(url), member, key, new_key)

    def add_file(self, url: str, size: int, key: str) -> None:
        """Write an image file, and the sidecars beside it, as a sample."""
        options = self.sources.storage_options
        self._add_content(key + os.path.splitext(url)[1], self._read(url, 0, size))
        for extension in (".txt", ".json"):
            content = storage.read_if_there(storage.replace_extension(url, extension), options)
            if content is not None:
                self._add_content(key + extension, content)

    def finish(self) -> int:
        """End the archive; return its size in bytes."""
        self._flush()
        self._write(tar.END)
        return self.written

    def _add_member(self, source: BinaryIO, member: tar.Member, key: str, new_key: str) -> None:
        info = tar.parse_header(source, member.start, member.offset)
        source.seek(member.offset)
        self._add_content(new_key + info.name.removeprefix(key), source.read(member.size), info)

    def _add_content(self, name: str, content: bytes, like: tarfile.TarInfo | None = None) -> None:
        self._flush()
        self._write(tar.header(name, len(content), like))
        self._write(content)
        self._write(tar.padding(len(content)))

    def _read(self, url: str, start: int, size: int) -> bytes:
        self._flush()
        file = self.sources.open(url)
        file.seek(start)
        content = file.read(size)
        if len(content) < size:
            raise tar.ShardError(f"{url} is shorter than when it was listed: list it again")
        return content

    def _flush(self) -> None:
        if self.pending is None:
            return
        url, start, stop = self.pending
        self.pending = None
        while start < stop:
            content = self._read(url, start, min(_CHUNK, stop - start))
            self._write(content)
            start += len(content)

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.written += len(content)
