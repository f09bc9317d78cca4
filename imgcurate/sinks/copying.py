"""Bytes copied from the sources into a shard, and compared while they pass with what was listed and looked at."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import pandas as pd
import xxhash

from imgcurate import images, storage, tar

# Small enough to stay in a core's cache while it is read, digested twice and written.
_BLOCK = 1 << 20


class Row(NamedTuple):
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


def rows_of(rows: pd.DataFrame) -> list[Row]:
    """Return what is copied of each row of a partition on the host."""
    columns = images.host_columns(rows, list(Row._fields)) | {"digest": images.digests_of(rows)}
    for name in ("offset", "size", "sample_offset", "sample_size"):
        # Other tools store integers that may be null as floats.
        columns[name] = [None if number is None else int(number) for number in columns[name]]
    nothing: list[Any] = [None] * len(rows)
    return [Row(*values) for values in zip(*(columns.get(name, nothing) for name in Row._fields), strict=True)]


class Sources:
    """The source that is being read; rows of one shard follow one another, so one open file is enough."""

    def __init__(self, storage_options: storage.Options) -> None:
        self.storage_options = storage_options
        self.url: str | None = None
        self.stack = contextlib.ExitStack()
        self.etags: dict[str, set[str]] = {}
        self.listings: dict[str, dict[str, tar.Sample]] = {}

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stack.close()

    def open(self, row: Row) -> BinaryIO:
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

    def members(self, row: Row, key: str) -> list[tar.Member]:
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


def _holds(member: tar.Member, row: Row) -> bool:
    return (member.offset, member.size) == (row.offset, row.size)


class _Comparison:
    """Compares images with their digests while the bytes of their file pass, block by block."""

    def __init__(self, rows: Sequence[Row]) -> None:
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


def copy(rows: Sequence[Row], start: int, stop: int, sources: Sources, write: Callable[[bytes], Any]) -> None:
    """Copy bytes of the source of `rows`, and compare the images of `rows`, which lie in them."""
    for row in {row.etag: row for row in rows}.values():
        file = sources.open(row)
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


class Writer:
    """Appends samples to a shard, joining runs that follow one another in their source into one copy."""

    def __init__(self, file: BinaryIO, sources: Sources) -> None:
        self.file, self.sources = file, sources
        self.pending: list[Row] = []
        self.start = self.stop = 0
        self.written = 0
        self.digest = xxhash.xxh3_128()

    def add_run(self, row: Row) -> None:
        """Write a sample as it is."""
        assert row.sample_offset is not None and row.sample_size is not None
        self._add(row, row.sample_offset, row.sample_offset + row.sample_size)

    def add_renamed(self, row: Row, key: str, new_key: str) -> None:
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
        if [(sample.key, sample.problem) for sample in samples] != [(key, None)]:
            raise row.changed(
                f"bytes {row.sample_offset} to {row.sample_offset + row.sample_size} are no longer the sample {key}"
            )
        for member in samples[0].members:
            self._add_member(row, run, member, key, new_key)

    def add_scattered(self, row: Row, key: str, new_key: str | None) -> None:
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

    def add_file(self, row: Row, key: str) -> None:
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

    def _add(self, row: Row, start: int, stop: int) -> None:
        if not self.pending or (self.pending[-1].url, self.stop) != (row.url, start):
            self._flush()
            self.start = start
        self.pending.append(row)
        self.stop = stop

    def _flush(self) -> None:
        if self.pending:
            self._copy(self.pending, self.start, self.stop, self._write)
            self.pending = []

    def _copy(self, rows: Sequence[Row], start: int, stop: int, write: Callable[[bytes], Any]) -> None:
        copy(rows, start, stop, self.sources, write)

    def _add_member(self, row: Row, run: BinaryIO, member: tar.Member, key: str, new_key: str) -> None:
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
