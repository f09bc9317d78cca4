"""The samples of a tar shard: which members they have and which bytes those are, read from headers only.

Sources list shards with this room and sinks copy the byte runs it finds. Follows the conventions of WebDataset
(https://github.com/webdataset/webdataset): a sample's key is a member's path up to the first dot of its file name.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from imgcurate import storage

BLOCK = tarfile.BLOCKSIZE
#: What ends an archive.
END = bytes(2 * BLOCK)

_SIZE_AND_TIME = re.compile(r"(\d+)-(\d+)")
_META = re.compile(r"__[^/]*__($|/)")
_GZIP, _BZ2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"


class ShardError(ValueError):
    """A shard from which nothing can be read."""


class ShardChanged(ShardError):
    """A shard, or an image file, that is no longer what was listed or looked at.

    Parameters
    ----------
    url : str
    what : str
        What shows it.

    Examples
    --------
    >>> raise ShardChanged("a.tar", "it is gone")
    Traceback (most recent call last):
    imgcurate.tar.ShardChanged: a.tar has changed since it was listed (it is gone): nothing of it was written; run again to list it anew
    """

    def __init__(self, url: str, what: str) -> None:
        super().__init__(url, what)
        self.url, self.what = url, what

    def __str__(self) -> str:
        return f"{self.url} has changed since it was listed ({self.what}): nothing of it was written; run again to list it anew"


def refuse_changed(url: str, listed: Collection[str], storage_options: storage.Options = None) -> None:
    """Raise `ShardChanged` where the etag of the file at `url` is not what it was when it was listed; of none, nothing is asked.

    Examples
    --------
    >>> import fsspec
    >>> fsspec.filesystem("memory").pipe("/changed.tar", b"0123456789")
    >>> before = storage.etag("memory://changed.tar")
    >>> refuse_changed("memory://changed.tar", [before])
    """
    if not listed:
        return
    now = storage.etag(url, storage_options)
    for before in listed:
        if before != now:
            raise ShardChanged(url, _difference(before, now))


def _difference(before: str, now: str) -> str:
    """Say how two etags differ.

    Examples
    --------
    >>> _difference("10-5", "900-6"), _difference("10-5", "10-6"), _difference("0a", "0b")
    ('10 bytes then, 900 now', 'written again since, with as many bytes', 'etag 0a then, 0b now')
    """
    sizes = [_SIZE_AND_TIME.fullmatch(etag) for etag in (before, now)]
    if not all(sizes):
        return f"etag {before} then, {now} now"
    size_before, size_now = (int(match[1]) for match in sizes if match)
    if size_before == size_now:
        return "written again since, with as many bytes"
    return f"{size_before:,} bytes then, {size_now:,} now"


class Member(NamedTuple):
    """A file in a tar.

    Attributes
    ----------
    name : str
        As stored; bytes that are not UTF-8 are shown as backslash escapes.
    key, extension : str
        As `split_name` gives them; empty where the file is part of no sample.
    start, stop : int
        The member as a run of bytes: its headers, with extended ones, its content, and the padding after it.
    offset, size : int
        Its content.
    problem : str or None
        Why the content is not simply those bytes (a link, a sparse file), or the name not safe.
    content : bytes or None
        Where it was asked for.
    """

    name: str
    key: str
    extension: str
    start: int
    stop: int
    offset: int
    size: int
    problem: str | None = None
    content: bytes | None = None


@dataclass(slots=True)
class Sample:
    """The members of one key, in the order of the tar.

    Attributes
    ----------
    key : str
    members : list of Member
    problem : str or None
        Why the sample cannot be trusted to be whole, where that is so.
    """

    key: str
    members: list[Member] = field(default_factory=list)
    problem: str | None = None

    @property
    def run(self) -> tuple[int, int] | None:
        """Offset and size of the whole sample as one run of bytes; None where something stands between its members."""
        for left, right in zip(self.members, self.members[1:], strict=False):
            if left.stop != right.start:
                return None
        return self.members[0].start, self.members[-1].stop - self.members[0].start


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into a sample's key and an extension.

    Parameters
    ----------
    name : str

    Returns
    -------
    (str, str) or None
        Key and lower-case extension; None for what WebDataset takes for no part of a sample: hidden files, names without an
        extension, and ``__names__`` like this.

    Examples
    --------
    >>> split_name("v1.0/cat.left.JPG")
    ('v1.0/cat', 'left.jpg')
    >>> split_name("README") is None
    True
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or _META.match(name):
        return None
    return folder + slash + stem, extension.lower()


def scan(file: BinaryIO, size: int, url: str, texts: Collection[str] = ()) -> list[Sample]:
    """List the samples of an open tar, in order of their first members.

    Parameters
    ----------
    file : binary file object that can seek
    size : int
        The file's size in bytes.
    url : str
        For messages.
    texts : collection of str, optional
        Extensions of members whose content is wanted: it is read on the way, so that a file is read from front to back.

    Returns
    -------
    list of Sample
        Where the tar is cut off or damaged, the last sample before that place has a `problem`.

    Raises
    ------
    ShardError
        Where nothing can be read: no tar, a compressed tar, an empty file.
    """
    samples: dict[str, Sample] = {}
    last: Sample | None = None
    place: int | None = 0
    damage: str | None = None
    while damage is None and place is not None:
        archive = _Archive(file, place, size, url)
        for member in archive.members():
            if member.key:
                if member.extension in texts:
                    file.seek(member.offset)
                    member = member._replace(content=file.read(member.size))
                last = samples.setdefault(member.key, Sample(member.key))
                last.members.append(member)
        damage = archive.damage
        # tars joined with cat hold archives after the first one's end; tar itself would stop there without a word
        place = None if damage else archive.next_archive()
    if damage is not None:
        if last is None:
            raise ShardError(f"{url}: no sample can be read: {damage}")
        last.problem = damage
    return list(samples.values())


def parse_header(file: BinaryIO, start: int, offset: int, url: str) -> tarfile.TarInfo:
    """Parse the header, extended ones included, that stands in bytes `start` to `offset` of a tar; `url` is for messages."""
    file.seek(start)
    header = file.read(offset - start)
    try:
        with tarfile.open(fileobj=io.BytesIO(header + END), mode="r:") as tar:
            info = tar.next()
    except tarfile.TarError:
        info = None
    if info is None:
        raise ShardChanged(url, f"bytes {start} to {offset} are no longer a header")
    return info


def header(name: str, size: int, like: tarfile.TarInfo | None = None) -> bytes:
    """Make the header of a member.

    Parameters
    ----------
    name : str
        A long one gets a PAX extended header.
    size : int
    like : tarfile.TarInfo, optional
        Whose mode, times and owner it takes.

    Returns
    -------
    bytes
        A multiple of 512.
    """
    info = tarfile.TarInfo(name)
    info.size = size
    if like is not None:
        info.mode, info.mtime, info.uid, info.gid = like.mode, like.mtime, like.uid, like.gid
        info.uname, info.gname = like.uname, like.gname
    return info.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of `size` bytes of content."""
    return bytes(-size % BLOCK)


class _Archive:
    """One archive within a file: where its members are, and what is wrong with its end."""

    def __init__(self, file: BinaryIO, place: int, size: int, url: str) -> None:
        self.file, self.size, self.url = file, size, url
        self.damage: str | None = None
        file.seek(place)
        start = file.read(BLOCK)
        if place == 0:
            self._refuse_what_is_no_tar(start)
        file.seek(place)
        try:
            self.tar = tarfile.TarFile(fileobj=file, mode="r")
        except tarfile.TarError as problem:
            raise ShardError(f"{url} is not a tar: {problem}") from None

    def _refuse_what_is_no_tar(self, start: bytes) -> None:
        if not start:
            raise ShardError(f"{self.url} is empty: not even an empty tar")
        if start.startswith((_GZIP, _BZ2, _XZ, _ZSTD)):
            raise ShardError(f"{self.url} is compressed: a sample's bytes cannot be found in it; decompress it first")

    def members(self) -> Iterator[Member]:
        while True:
            try:
                info = self.tar.next()
            except (tarfile.TarError, EOFError, ValueError) as problem:
                self._set_damage(f"damaged shard: {problem}")
                return
            if info is None:
                break
            self.tar.members.clear()  # type: ignore[attr-defined]  # which would otherwise grow by one header a member
            if info.isdir():
                continue
            stop = self.tar.offset  # where tarfile looks for the next header
            name = _printable(info.name)
            key, extension = split_name(name) or ("", "")
            yield Member(
                name=name,
                key=key,
                extension=extension,
                start=info.offset,
                stop=stop,
                offset=info.offset_data,
                size=info.size,
                problem=_problem(info, name),
            )
            if stop > self.size:
                self._set_damage("truncated shard: the file ends inside a member")
                return
        self._check_end()

    def _check_end(self) -> None:
        """See why tarfile stopped: it ends in silence at a damaged header, too."""
        self.file.seek(self.tar.offset)
        block = self.file.read(BLOCK)
        if not block:
            self._set_damage("truncated shard: the file ends without an end-of-archive mark")
        elif len(block) < BLOCK:
            self._set_damage("truncated shard: the file ends inside a header")
        elif block.strip(b"\0"):
            self._set_damage("damaged shard: no header")

    def _set_damage(self, why: str) -> None:
        self.damage = f"{why} at byte {self.tar.offset}; what came after cannot be read"

    def next_archive(self) -> int | None:
        """Return where another archive starts after the end of this one."""
        place = self.tar.offset
        self.file.seek(place)
        while chunk := self.file.read(128 * BLOCK):
            if chunk.strip(b"\0"):
                block = next(i for i in range(0, len(chunk), BLOCK) if chunk[i : i + BLOCK].strip(b"\0"))
                try:
                    tarfile.TarInfo.frombuf(chunk[block : block + BLOCK], "utf-8", "surrogateescape")
                except tarfile.HeaderError:
                    return None
                return place + block
            place += len(chunk)
        return None


def _printable(name: str) -> str:
    """Make a name valid Unicode, which Arrow strings must be."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _problem(info: tarfile.TarInfo, name: str) -> str | None:
    if name.startswith("/") or ".." in name.split("/"):
        return f"unsafe member name {name!r}"
    if info.issparse():
        return f"member {name!r} is a sparse file"
    if not info.isreg():
        return f"member {name!r} is a link or a device, not a file"
    return None
