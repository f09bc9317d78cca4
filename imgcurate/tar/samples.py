"""The members of a tar put together by their keys."""

from __future__ import annotations

import gc
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import BinaryIO

from imgcurate.printable import printable
from imgcurate.tar.changes import ShardError
from imgcurate.tar.fields import DamagedTar
from imgcurate.tar.headers import Member, walk

_COMPRESSED = (
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
    b"\x04\x22\x4d\x18",
)  # gzip, bzip2, xz, zstd, lz4


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


def scan(file: BinaryIO, size: int, url: str, texts: Collection[str] = (), most: int = 1 << 20) -> list[Sample]:
    """List the samples of an open tar, in order of their first members.

    Parameters
    ----------
    file : binary file object that can seek
    size : int
        The file's size in bytes.
    url : str
        For messages.
    texts : collection of str, optional
        The last parts of extensions of members whose content is wanted: it is read on the way, so that a file is read from front to back.
    most : int, default 1 MiB
        The content of a larger member is not read.

    Returns
    -------
    list of Sample
        Where the tar is cut off or damaged, the last sample before that place has a `problem`.

    Raises
    ------
    ShardError
        Where nothing can be read: no tar, a compressed tar, an empty file.
    """
    file.seek(0)
    start = file.read(6)
    if not start:
        raise ShardError(f"{printable(url)} is empty: not even an empty tar")
    if start.startswith(_COMPRESSED):
        raise ShardError(compressed(url))
    samples: dict[str, Sample] = {}
    last: Sample | None = None
    collects = gc.isenabled()
    gc.disable()  # which looks for garbage among all members again and again, and takes as long as the rest
    try:
        for member in walk(file, 0, size):
            if not member.key:
                continue
            if texts and member.size <= most and member.extension.rpartition(".")[2] in texts:
                file.seek(member.offset)
                member = member._replace(content=file.read(member.size))
            last = samples.get(member.key)
            if last is None:
                last = samples[member.key] = Sample(member.key, [member])
            else:
                last.members.append(member)
    except DamagedTar as damage:
        if last is None:
            what = "is not a tar" if damage.place == 0 else "has no sample that can be read"
            raise ShardError(f"{printable(url)} {what}: {damage}") from None
        last.problem = str(damage)
    finally:
        if collects:
            gc.enable()
    return list(samples.values())


def compressed(url: str) -> str:
    """Return the sentence that refuses a compressed shard."""
    return (
        f"{printable(url)} is compressed: a sample's bytes cannot be found in it without reading all before them; "
        "imgcurate convert (convert_shards) makes plain shards of it"
    )
