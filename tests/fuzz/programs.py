"""Any bytes as a shard: what is trusted in it is what GNU tar and bsdtar read there, as far as they are installed."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tarfile

import tars

from fuzz import archives
from fuzz.driver import Harness
from imgcurate import tar

_PROGRAMS = {
    name: [path, *options]
    for name, options in {"tar": ["--quoting-style=literal"], "bsdtar": []}.items()
    if (path := shutil.which(name)) is not None
}


def one(data: bytes) -> None:
    """List a shard; raise where a program does not find what is trusted, or other bytes in it, in the shard and in runs that were copied."""
    try:
        found = tar.scan(io.BytesIO(data), len(data), "shard.tar")
    except tar.ShardError:
        return
    whole = [sample for sample in found if sample.problem is None]
    end = _end_of_first_archive(data[: max((member.stop for s in whole for member in s.members), default=0)] + tars.END)
    samples = [s for s in whole if all(member.problem is None and member.stop <= end for member in s.members)]
    members = sorted((member for sample in samples for member in sample.members), key=lambda member: member.start)
    if not members:
        return
    runs = b"".join(data[member.start : member.stop] for member in members)
    names = [member.name.encode() for member in members if member.name.isascii()]
    contents = b"".join(data[member.offset : member.offset + member.size] for member in members)
    for program in _PROGRAMS.values():
        copied = _run([*program, "-tf", "-"], runs + tars.END).splitlines()
        assert [name for name in copied if name.isascii() and b"\\" not in name] == [
            n for n in names if b"\\" not in n
        ], program
        assert _run([*program, "-xOf", "-"], runs + tars.END) == contents, program
        # What is in no sample, or has a problem, they may take as they like.
        listing = subprocess.run(
            [*program, "-tf", "-"], input=data[: members[-1].stop] + tars.END, capture_output=True, check=False
        )
        there = iter(listing.stdout.splitlines())
        assert listing.returncode or all(name in there for name in names if b"\\" not in name), program


def _end_of_first_archive(data: bytes) -> int:
    """Return where tarfile stops, as programs do: archives joined to the first are another matter."""
    end = 0
    with (
        contextlib.suppress(tarfile.TarError, ValueError, IndexError),
        tarfile.open(fileobj=io.BytesIO(data)) as archive,
    ):
        for _ in archive:
            end = archive.offset
    return end


def _run(command: list[str], data: bytes) -> bytes:
    return subprocess.run(command, input=data, capture_output=True, check=False).stdout


HARNESS = Harness("programs", one, archives.HARNESS.seeds, archives.HARNESS.watched, archives.change)
