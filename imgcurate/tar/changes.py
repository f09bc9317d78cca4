"""A shard that cannot be read, or that is no longer what it was."""

from __future__ import annotations

import re
from collections.abc import Collection

from imgcurate import storage
from imgcurate.printable import printable

_SIZE_AND_TIME = re.compile(r"(\d+)-(\d+)")


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
    imgcurate.tar.changes.ShardChanged: a.tar has changed since it was listed (it is gone): nothing of it was written; run again to list it anew
    """

    def __init__(self, url: str, what: str) -> None:
        super().__init__(url, what)
        self.url, self.what = url, what

    def __str__(self) -> str:
        return f"{printable(self.url)} has changed since it was listed ({printable(self.what)}): nothing of it was written; run again to list it anew"


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
            raise ShardChanged(url, difference(before, now))


def difference(before: str, now: str) -> str:
    """Say how two etags differ.

    Examples
    --------
    >>> difference("10-5", "900-6"), difference("10-5", "10-6"), difference("0a", "0b")
    ('10 bytes then, 900 now', 'written again since, with as many bytes', 'etag 0a then, 0b now')
    """
    sizes = [_SIZE_AND_TIME.fullmatch(etag) for etag in (before, now)]
    if not all(sizes):
        return f"etag {before} then, {now} now"
    size_before, size_now = (int(match[1]) for match in sizes if match)
    if size_before == size_now:
        return "written again since, with as many bytes"
    return f"{size_before:,} bytes then, {size_now:,} now"
