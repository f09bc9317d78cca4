"""Bytes copied from the sources into a shard. While they pass, headers are parsed again and must say what was listed, and images are compared
with what was looked at."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

import pandas as pd
import xxhash

from imgcurate import images, storage, tar

# Small enough to stay in a core's cache while it is read, digested twice and written.
_BLOCK = 1 << 20
#: What the names of the texts beside an image file end in.
SIDECARS = (".txt", ".json")


class Row(NamedTuple):
    """What is copied of a row; null is None."""

    url: str
    member: str | None
    offset: int
    bytes: int
    sample_offset: int | None
    sample_size: int | None
    etag: str | None
    digest: str | None

    def changed(self, what: str) -> tar.ShardChanged:
        return tar.ShardChanged(self.url, what)


def rows_of(rows: pd.DataFrame) -> list[Row]:
    """Return what is copied of each row of a partition on the host."""
    columns = images.host_columns(rows, list(Row._fields)) | {"digest": images.digests_of(rows)}
    for name in ("offset", "bytes", "sample_offset", "sample_size"):
        # Other tools store integers that may be null as floats.
        columns[name] = [None if number is None else int(number) for number in columns[name]]
    nothing: list[Any] = [None] * len(rows)
    return [Row(*values) for values in zip(*(columns.get(name, nothing) for name in Row._fields), strict=True)]


class Piece(NamedTuple):
    """Members of one sample that follow one another in its shard.

    Attributes
    ----------
    row : Row
    key : str
        The sample's.
    start, stop : int
        The members as a run of bytes.
    image : bool
        Whether the row's image is one of them.
    """

    row: Row
    key: str
    start: int
    stop: int
    image: bool

    def changed(self) -> tar.ShardChanged:
        return self.row.changed(f"bytes {self.start} to {self.stop} are not the sample {tar.shown(self.key)}")


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
        if sample is None or not any(is_image(member, row) for member in sample.members):
            raise row.changed(f"the sample {tar.shown(key)} is not where it was")
        return sample.members


def pieces_of(row: Row, key: str, sources: Sources) -> list[Piece]:
    """Return where the members of a row's sample lie."""
    if row.sample_offset is not None and row.sample_size is not None:
        pieces = [Piece(row, key, row.sample_offset, row.sample_offset + row.sample_size, True)]
    else:
        members = sources.members(row, key)
        pieces = [Piece(row, key, member.start, member.stop, is_image(member, row)) for member in members]
    for piece in pieces:
        if not 0 <= piece.start < piece.stop:
            raise piece.changed()
    return pieces


@contextlib.contextmanager
def _gone_is_changed(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise tar.ShardChanged(url, "it is gone") from None


def is_image(member: tar.Member, row: Row) -> bool:
    """Tell whether a member is the image of a row."""
    return (member.name, member.offset, member.size) == (row.member, row.offset, row.bytes)


def checked(pieces: Sequence[Piece], file: BinaryIO) -> Iterator[tar.Member]:
    """Yield the members of pieces that follow one another in a file, and raise where they are not those that were listed."""
    members = tar.walk(file, pieces[0].start, pieces[-1].stop, whole=False)
    piece = pieces[0]
    try:
        for piece in pieces:
            at, names, found = piece.start, set(), not piece.image
            while at < piece.stop:
                member = next(members, None)
                if (
                    member is None
                    or member.start != at
                    or member.key != piece.key
                    or member.problem
                    or member.name in names
                ):
                    raise piece.changed()
                names.add(member.name)
                found = found or is_image(member, piece.row)
                at = member.stop
                yield member
            if at != piece.stop:
                raise piece.changed()
            if not found:
                raise piece.row.changed(f"the image at byte {piece.row.offset} is no member of its sample")
        next(members, None)  # which tells that the last member is cut off
    except tar.DamagedTar:
        raise piece.changed() from None


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
            self.digest.update(view[max(row.offset - place, 0) : max(row.offset + row.bytes - place, 0)])
            if row.offset + row.bytes > stop:
                return
            if self.digest.hexdigest() != row.digest:
                raise row.changed(f"the image at byte {row.offset} is not the one looked at before")
            self.rows.popleft()
            self.digest.reset()


class _Passing:
    """Bytes of a source as a file that is read from front to back, all of which are handed to `take` on the way, in blocks."""

    def __init__(self, file: BinaryIO, row: Row, start: int, stop: int, take: Callable[[int, bytes], None]) -> None:
        self.file, self.row, self.stop, self.take = file, row, stop, take
        self.window, self.begin = b"", start
        self.at = self.end = start
        file.seek(start)

    def seek(self, offset: int) -> None:
        self.at = offset

    def read(self, size: int) -> bytes:
        stop = min(self.at + size, self.stop)
        while self.end < stop:
            self._pass()
        found = self.window[self.at - self.begin : stop - self.begin]
        self.at = stop
        return found

    def finish(self) -> None:
        """Let the rest pass."""
        while self.end < self.stop:
            self._pass()

    def _pass(self) -> None:
        block = _read_block(self.file, self.row, self.end, self.stop)
        self.take(self.end, block)
        wanted = self.window[self.at - self.begin :]
        self.window = wanted + block if wanted else block
        self.begin = self.end - len(wanted)
        self.end += len(block)


def _read_block(file: BinaryIO, row: Row, start: int, stop: int) -> bytes:
    block = file.read(min(_BLOCK, stop - start))
    if not block:
        raise row.changed(f"it is shorter and ends at byte {start}")
    return block


def content_of(row: Row, offset: int, size: int, sources: Sources, *, compared: bool) -> Iterator[bytes]:
    """Yield the bytes of a member or a file, block by block; `compared` where they are the row's image, which then must have its digest."""
    file = sources.open(row)
    comparison = _Comparison([row] if compared else [])
    comparison.take(offset, b"")  # which is all that an empty image has
    file.seek(offset)
    place = offset
    while place < offset + size:
        block = _read_block(file, row, place, offset + size)
        comparison.take(place, block)
        yield block
        place += len(block)


def texts_beside(row: Row, sources: Sources) -> Iterator[tuple[str, bytes]]:
    """Yield the extensions and the contents of the texts that lie beside an image file."""
    for extension in SIDECARS:
        content = storage.read_if_there(storage.replace_extension(row.url, extension), sources.storage_options)
        if content is not None:
            yield extension, content


class Writer:
    """Appends samples to a shard, joining runs that follow one another in their source into one copy."""

    def __init__(self, file: BinaryIO, sources: Sources) -> None:
        self.file, self.sources = file, sources
        self.pending: list[Piece] = []
        self.written = 0
        self.digest = xxhash.xxh3_128()

    def add_sample(self, row: Row, key: str, new_key: str | None = None) -> None:
        """Write a sample of a shard as it is, or under another key: new headers, the same content."""
        for piece in pieces_of(row, key, self.sources):
            if new_key is None:
                self._add(piece)
            else:
                self._flush()
                self._copy_renamed(piece, new_key)

    def add_file(self, row: Row, key: str) -> None:
        """Write an image file, and the sidecars beside it, as a sample."""
        self._flush()
        if row.offset < 0 or row.bytes < 0:
            raise row.changed(f"the image is said to be bytes {row.offset} to {row.offset + row.bytes}")
        self._write(tar.header(key + os.path.splitext(row.url)[1], row.bytes))
        self._copy_content(row, row.offset, row.bytes, compared=True)
        for extension, content in texts_beside(row, self.sources):
            self._write(tar.header(key + extension, len(content)) + content + tar.padding(len(content)))

    def finish(self) -> None:
        """End the archive."""
        self._flush()
        self._write(tar.END)

    def _add(self, piece: Piece) -> None:
        if self.pending and (self.pending[-1].row.url, self.pending[-1].stop) != (piece.row.url, piece.start):
            self._flush()
        self.pending.append(piece)

    def _flush(self) -> None:
        if self.pending:
            self._copy(self.pending)
            self.pending = []

    def _copy(self, pieces: Sequence[Piece]) -> None:
        for row in {piece.row.etag: piece.row for piece in pieces}.values():
            file = self.sources.open(row)
        comparison = _Comparison([piece.row for piece in pieces if piece.image])

        def take(place: int, block: bytes) -> None:
            comparison.take(place, block)
            self._write(block)

        passing = _Passing(file, pieces[0].row, pieces[0].start, pieces[-1].stop, take)
        for _ in checked(pieces, cast(BinaryIO, passing)):
            pass
        passing.finish()

    def _copy_renamed(self, piece: Piece, new_key: str) -> None:
        file = self.sources.open(piece.row)
        for member in checked([piece], file):
            file.seek(member.start)
            like = file.read(member.offset - member.start)
            self._write(tar.header(new_key + member.name[len(piece.key) :], member.size, like))
            self._copy_content(piece.row, member.offset, member.size, compared=is_image(member, piece.row))

    def _copy_content(self, row: Row, offset: int, size: int, *, compared: bool) -> None:
        """Copy the content of a member, and fill its last block."""
        for block in content_of(row, offset, size, self.sources, compared=compared):
            self._write(block)
        self._write(tar.padding(size))

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.digest.update(content)
        self.written += len(content)
