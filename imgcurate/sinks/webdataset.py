"""Rows as WebDataset tar shards: runs of bytes copied from the sources, so that what is kept is what it was."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import dask
import dask.dataframe as dd
import pandas as pd
import xxhash

from imgcurate import images, schema, storage, tar, vectors

_COLUMNS = ["image_id", "url", "member", "offset", "size", "sample_offset", "sample_size"]
# What is compared while it is copied, where the frame has it.
_COMPARED = ["etag", "digest"]
# Small enough to stay in a core's cache from its reading to its second digest.
_BLOCK = 1 << 20


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
        One row a shard: url, samples, bytes, renamed (samples whose key was taken in this shard and that got another), digest (xxh3_128 of
        the shard's bytes in hexadecimal).

    Raises
    ------
    FileExistsError
        Where shards are there and `overwrite` is false.
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
    with storage.staged_folder(path, ".tar", overwrite=overwrite, storage_options=storage_options) as folder:
        tasks, _rows = write_shards(frame, folder, samples_per_shard, storage_options)
        shards = list(dask.compute(*tasks))
    table = pd.DataFrame(shards, columns=["url", *Written._fields])
    table["url"] = [f"{storage.absolute(path, storage_options)}/{url.rpartition('/')[2]}" for url in table["url"]]
    return dd.from_pandas(table, npartitions=1)


def check_samples_per_shard(samples_per_shard: int) -> None:
    """Raise a ValueError where a shard would hold nothing."""
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard}: must be at least 1")


def write_shards(
    frame: Any, folder: str, samples_per_shard: int, storage_options: storage.Options = None
) -> tuple[list[Any], Any]:
    """Return one delayed task a shard, which writes it into `folder` and gives (url, samples, bytes, renamed, digest).

    Computes `frame` as far as its rows go: how many there are decides what goes into which shard. The second value is those rows
    in the workers' memory; the tasks read them, and Dask drops them when nobody holds the value any more.
    """
    schema.require(frame, _COLUMNS, "write_webdataset")
    columns = [*_COLUMNS, *(name for name in ("error", *_COMPARED) if name in frame.columns)]
    pick = dask.delayed(_pick_rows, nout=3)
    # Rows are small without their vectors: kept in memory, so that what made them (a model, perhaps) runs once.
    picked = dask.persist(*[output for part in frame[columns].to_delayed() for output in pick(part)])
    parts = picked[0::3]
    counts, bad = dask.compute(list(picked[1::3]), list(picked[2::3]))
    if sum(bad):
        warnings.warn(f"{sum(bad):,} rows have an error and are not written", stacklevel=3)
    write = dask.delayed(_write_cuts)
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
        Columns image_id, url, member, offset, size, sample_offset, sample_size, and perhaps etag and digest, to be compared with what is
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
    with storage.open_atomic(url, storage_options) as file, _Sources(storage_options) as sources:
        out = _Writer(file, sources)
        try:
            for row, (key, new_key) in zip(_rows(rows), keys, strict=True):
                if row.member is None:
                    out.add_file(row, new_key or key)
                elif row.sample_offset is None:
                    out.add_scattered(row, key, new_key)
                elif new_key is None:
                    out.add_run(row)
                else:
                    out.add_renamed(row, key, new_key)
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


def _pick_rows(part: Any) -> tuple[pd.DataFrame, int, int]:
    """Return the rows of a partition that can be written, their number, and the number of the others."""
    rows = vectors.to_pandas(part)
    usable = rows[rows["error"].isna()] if "error" in rows else rows
    columns = [*_COLUMNS, *(name for name in _COMPARED if name in rows)]
    return usable[columns], len(usable), len(rows) - len(usable)


def _write_cuts(
    cuts: Sequence[tuple[pd.DataFrame, int, int]], url: str, storage_options: storage.Options
) -> tuple[str, int, int, int, str]:
    rows = pd.concat([part.iloc[start:stop] for part, start, stop in cuts], ignore_index=True)
    return url, *write_shard(rows, url, storage_options)


class _Row(NamedTuple):
    """What is copied of a row; null is None."""

    url: str
    member: str | None
    offset: int
    size: int
    sample_offset: int | None
    sample_size: int | None
    etag: str | None
    digest: str | None

    def changed(self, what: str) -> tar.ShardChanged:
        return tar.ShardChanged(self.url, what)


def _rows(rows: pd.DataFrame) -> list[_Row]:
    columns = images.host_columns(rows, list(_Row._fields)) | {"digest": images.digests_of(rows)}
    for name in ("offset", "size", "sample_offset", "sample_size"):
        # Other tools store integers that may be null as floats.
        columns[name] = [None if number is None else int(number) for number in columns[name]]
    nothing: list[Any] = [None] * len(rows)
    return [_Row(*values) for values in zip(*(columns.get(name, nothing) for name in _Row._fields), strict=True)]


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
        raise ValueError(f"{image_id}: member {member!r} is not a sample's")
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
        self.etags: dict[str, set[str]] = {}
        self.listings: dict[str, dict[str, tar.Sample]] = {}

    def __enter__(self) -> _Sources:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stack.close()

    def open(self, row: _Row) -> BinaryIO:
        """Open the source of a row, and compare its etag with the row's the first time."""
        with _gone_is_changed(row.url):
            if row.url != self.url:
                self.stack.close()
                self.file = self.stack.enter_context(storage.open_sequential(row.url, self.storage_options))
                self.url = row.url
            # Of an image file all that is copied has the digest.
            if row.etag is not None and (row.member is not None or row.digest is None):
                known = self.etags.setdefault(row.url, set())
                if row.etag not in known:
                    tar.refuse_changed(row.url, [row.etag], self.storage_options)
                    known.add(row.etag)
        return self.file

    def refuse_changed(self) -> None:
        """Compare the etags again of all sources that were opened."""
        for url, etags in self.etags.items():
            with _gone_is_changed(url):
                tar.refuse_changed(url, etags, self.storage_options)

    def members(self, row: _Row, key: str) -> list[tar.Member]:
        """Return the members of a sample, found by listing the shard again."""
        if row.url not in self.listings:
            self.open(row)
            with storage.open_sequential(row.url, self.storage_options) as file:
                samples = tar.scan(file, file.seek(0, os.SEEK_END), row.url)
            self.listings = {row.url: {sample.key: sample for sample in samples}}
        sample = self.listings[row.url].get(key)
        if sample is None or not any(_holds(member, row) for member in sample.members):
            raise row.changed(f"the sample {key} is not where it was")
        return sample.members


@contextlib.contextmanager
def _gone_is_changed(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise tar.ShardChanged(url, "it is gone") from None


def _holds(member: tar.Member, row: _Row) -> bool:
    return (member.offset, member.size) == (row.offset, row.size)


class _Comparison:
    """Compares images with their digests while the bytes of their file pass, block by block."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self.rows = deque(row for row in rows if row.digest is not None)
        self.digest = xxhash.xxh3_128()

    def take(self, place: int, block: bytes) -> None:
        """Take a block that lies at `place` in the file, next to the one before."""
        view, stop = memoryview(block), place + len(block)
        while self.rows:
            row = self.rows[0]
            self.digest.update(view[max(row.offset - place, 0) : max(row.offset + row.size - place, 0)])
            if row.offset + row.size > stop:
                return
            if self.digest.hexdigest() != row.digest:
                raise row.changed(f"the image at byte {row.offset} is not the one looked at before")
            self.rows.popleft()
            self.digest.reset()

    def finish(self) -> None:
        """See that all images have passed."""
        if self.rows:
            raise self.rows[0].changed(f"the image at byte {self.rows[0].offset} lies outside its sample")


class _Writer:
    """Appends samples to a shard, joining runs that follow one another in their source into one copy."""

    def __init__(self, file: BinaryIO, sources: _Sources) -> None:
        self.file, self.sources = file, sources
        self.pending: list[_Row] = []
        self.start = self.stop = 0
        self.written = 0
        self.digest = xxhash.xxh3_128()

    def add_run(self, row: _Row) -> None:
        """Write a sample as it is."""
        assert row.sample_offset is not None and row.sample_size is not None
        self._add(row, row.sample_offset, row.sample_offset + row.sample_size)

    def add_renamed(self, row: _Row, key: str, new_key: str) -> None:
        """Write the members of a run under another key: new headers, the same content."""
        self._flush()
        assert row.sample_offset is not None and row.sample_size is not None
        run = io.BytesIO()
        self._copy([row], row.sample_offset, row.sample_offset + row.sample_size, run.write)
        run.write(tar.END)
        try:
            samples = tar.scan(run, row.sample_size + len(tar.END), row.url)
        except tar.ShardError:
            samples = []
        if [sample.key for sample in samples] != [key]:
            raise row.changed(
                f"bytes {row.sample_offset} to {row.sample_offset + row.sample_size} are no longer the sample {key}"
            )
        for member in samples[0].members:
            self._add_member(row, run, member, key, new_key)

    def add_scattered(self, row: _Row, key: str, new_key: str | None) -> None:
        """Write members that are not adjacent in their source."""
        for member in self.sources.members(row, key):
            of_member = row if _holds(member, row) else row._replace(digest=None)
            if new_key is None:
                self._add(of_member, member.start, member.stop)
            else:
                self._flush()
                run = io.BytesIO()
                self._copy([of_member], member.start, member.stop, run.write)
                moved = member._replace(start=0, offset=member.offset - member.start)
                self._add_member(row, run, moved, key, new_key)

    def add_file(self, row: _Row, key: str) -> None:
        """Write an image file, and the sidecars beside it, as a sample."""
        self._flush()
        self._write(tar.header(key + os.path.splitext(row.url)[1], row.size))
        self._copy([row], row.offset, row.offset + row.size, self._write)
        self._write(tar.padding(row.size))
        for extension in (".txt", ".json"):
            beside = storage.replace_extension(row.url, extension)
            content = storage.read_if_there(beside, self.sources.storage_options)
            if content is not None:
                self._add_content(key + extension, content)

    def finish(self) -> None:
        """End the archive."""
        self._flush()
        self._write(tar.END)

    def _add(self, row: _Row, start: int, stop: int) -> None:
        if not self.pending or (self.pending[-1].url, self.stop) != (row.url, start):
            self._flush()
            self.start = start
        self.pending.append(row)
        self.stop = stop

    def _flush(self) -> None:
        if self.pending:
            self._copy(self.pending, self.start, self.stop, self._write)
            self.pending = []

    def _copy(self, rows: Sequence[_Row], start: int, stop: int, write: Callable[[bytes], Any]) -> None:
        """Copy bytes of the source of `rows`, and compare the images of `rows`, which lie in them."""
        for row in rows:
            file = self.sources.open(row)
        comparison = _Comparison(rows)
        file.seek(start)
        while start < stop:
            block = file.read(min(_BLOCK, stop - start))
            if not block:
                raise rows[0].changed(f"it is shorter and ends at byte {start}")
            comparison.take(start, block)
            write(block)
            start += len(block)
        comparison.finish()

    def _add_member(self, row: _Row, run: BinaryIO, member: tar.Member, key: str, new_key: str) -> None:
        info = tar.parse_header(run, member.start, member.offset, row.url)
        run.seek(member.offset)
        self._add_content(new_key + info.name.removeprefix(key), run.read(member.size), info)

    def _add_content(self, name: str, content: bytes, like: tarfile.TarInfo | None = None) -> None:
        self._flush()
        self._write(tar.header(name, len(content), like))
        self._write(content)
        self._write(tar.padding(len(content)))

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.digest.update(content)
        self.written += len(content)
