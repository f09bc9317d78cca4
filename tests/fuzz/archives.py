"""Any bytes as a shard: listed, copied, and compared with what tarfile makes of them."""

from __future__ import annotations

import io
import os
import random
import tarfile
import tempfile
from collections.abc import Iterator

import tars

from fuzz.driver import Harness
from imgcurate import tar
from imgcurate.sinks import copying
from imgcurate.sources import sidecars, webdataset
from imgcurate.tar import extended, fields, headers, names, samples, writing

_FOLDER = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
_SHARD = webdataset.Shard(f"{_FOLDER.name}/shard.tar", "shard", "etag")
_KINDS = b"0\x007123456SLKxXgVDMA"
_SIZES = (0, 1, 511, 512, 513, 1024, 2**20, 2**33, 2**63, 2**64, -1, -512)
_RECORDS = (
    "path",
    "size",
    "linkpath",
    "mtime",
    "uid",
    "uname",
    "GNU.sparse.major",
    "GNU.sparse.realsize",
    "GNU.sparse.name",
    "hdrcharset",
)
_VALUES = (
    "a.jpg",
    "../x.jpg",
    "/x",
    "a.jpg/",
    "0",
    "5",
    "512",
    "1536",
    "-512",
    "inf",
    "1e999",
    "BINARY",
    "",
    "9" * 30,
    "é.txt",
)


def one(data: bytes) -> None:
    """List and copy a shard; raise where what is listed, or what is written, is not what a reader of tar finds."""
    try:
        found = tar.scan(io.BytesIO(data), len(data), _SHARD.url, sidecars.AS_USUAL.texts)
    except tar.ShardError:
        return
    members = sorted((member for sample in found for member in sample.members), key=lambda member: member.start)
    _check_places(members, len(data))
    _check_with_tarfile(
        members, [member for sample in found if sample.problem is None for member in sample.members], data
    )
    rows = [webdataset._row(sample, _SHARD, sidecars.AS_USUAL) for sample in found]
    usable = [(row, sample) for row, sample in zip(rows, found, strict=True) if row["error"] is None]
    if usable:
        with open(_SHARD.url, "wb") as file:
            file.write(data)
        for renamed in (False, True):
            expected, written = _copied(usable, data, renamed)
            _check_written(expected, written)


def _check_places(members: list[tar.Member], size: int) -> None:
    stop = 0
    for member in members:
        assert stop <= member.start < member.offset <= member.offset + member.size <= member.stop <= size, member
        stop = member.stop


def _check_with_tarfile(members: list[tar.Member], trusted: list[tar.Member], data: bytes) -> None:
    """What is trusted is what tarfile finds there, and it finds no other files."""
    theirs, end = {}, 0
    stop = max((member.stop for member in trusted), default=0)
    try:
        with tarfile.open(fileobj=io.BytesIO(data[:stop] + tars.END)) as archive:
            for info in archive:
                # A name that ends in a slash is a directory's, and tarfile takes the slash away.
                slash = info.pax_headers.get("path", "").endswith("/")
                if info.isreg() and not info.issparse() and not slash and tar.split_name(info.name):
                    theirs[info.offset_data] = (names.printable(info.name), info.size)
                end = archive.offset
    except (tarfile.TarError, ValueError, IndexError):
        pass  # at a member with a problem
    ours = {
        member.offset: (member.name, member.size) for member in trusted if member.problem is None and member.stop <= end
    }
    assert ours.items() <= theirs.items(), (ours, theirs)
    assert theirs.keys() <= {member.offset for member in members}, (members, theirs)


def _copied(usable: list, data: bytes, renamed: bool) -> tuple[list[tuple[str, bytes]], bytes]:
    written, expected = io.BytesIO(), []
    with copying.Sources(None) as sources:
        writer = copying.Writer(written, sources)
        for number, (row, sample) in enumerate(usable):
            key = f"new/{number}" if renamed else sample.key
            fields = {name: row.get(name) for name in copying.Row._fields} | {"etag": None}
            writer.add_sample(copying.Row(**fields), sample.key, key if renamed else None)
            expected += [
                (key + member.name[len(sample.key) :], data[member.offset : member.offset + member.size])
                for member in sample.members
            ]
        writer.finish()
    return expected, written.getvalue()


def _check_written(expected: list[tuple[str, bytes]], written: bytes) -> None:
    again = tar.scan(io.BytesIO(written), len(written), "written.tar")
    assert all(sample.problem is None and sample.run is not None for sample in again), again
    assert [(m.name, written[m.offset : m.offset + m.size]) for sample in again for m in sample.members] == expected
    assert list(_by_tarfile(written)) == expected


def _by_tarfile(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            tarfile.data_filter(info, "/somewhere")
            yield names.printable(info.name), archive.extractfile(info).read()  # type: ignore[union-attr]


def change(rng: random.Random, data: bytes) -> bytes:
    """Change a block, mostly to a header whose checksum fits, or put a header in."""
    at = rng.randrange(len(data) // 512 + 1) * 512
    block = bytearray(data[at : at + 512].ljust(512, b"\0"))
    match rng.randrange(9):
        case 0:
            size = rng.choice(_SIZES)
            block[124:136] = tars.head("x", size)[124:136]
        case 1:
            block[156] = rng.choice(_KINDS)
        case 2:
            name = rng.choice(_VALUES).encode() + b"\0" * rng.randrange(3)
            block[: len(name)] = name
        case 3:
            start = rng.choice((100, 108, 116, 124, 136, 148, 156, 257, 329, 337, 345, 482))
            block[start + rng.randrange(8)] = rng.choice(b"\0\x80\xff 07a\\-+_")
        case 4:
            return data[:at] + data[at + 512 :]
        case 5:
            return data[:at] + bytes(512 * rng.choice((1, 2, 20))) + data[at:]
        case 6:
            records = [tars.record(rng.choice(_RECORDS), rng.choice(_VALUES)) for _ in range(rng.randrange(4))]
            return data[:at] + tars.pax(*records, kind=rng.choice((b"x", b"X", b"g"))) + data[at:]
        case 7:
            name = rng.choice(_VALUES).encode() * rng.choice((1, 30))
            return data[:at] + tars.long_name(name, rng.choice((b"L", b"K"))) + data[at:]
        case _:
            return (
                data[:at]
                + tars.member(
                    rng.choice("abcd") + rng.choice((".jpg", ".txt", ".json", "/")),
                    b"x" * rng.choice((0, 5, 600)),
                    bytes([rng.choice(_KINDS)]),
                )
                + data[at:]
            )
    changed = bytes(block) if rng.random() < 0.1 else tars.summed(block)
    return data[:at] + changed + data[at + 512 :]


HARNESS = Harness(
    "archives",
    one,
    lambda: list(tars.dialects().values()),
    (extended, fields, headers, names, samples, writing, copying),
    change,
)
