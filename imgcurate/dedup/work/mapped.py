"""Tables and matrices in files of a folder that every worker sees, which processes map instead of reading them."""

from __future__ import annotations

import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from imgcurate import storage

#: A key, of 32 hexadecimal digits, begins the name of what was written here; what has none is somebody else's.
_OURS = re.compile(r"[0-9a-f]{32}[.-]|\.unfinished-")


@dataclass(frozen=True)
class Folder:
    """A folder of work.

    Attributes
    ----------
    path : str
    durable : bool
        Whether its files are for another run to go on from.
    kept : object, optional
        What a temporary folder goes with: with the last frame, in the process that made it, that reads its files.
    """

    path: str
    durable: bool
    kept: Any = field(default=None, repr=False, compare=False)

    def for_tasks(self) -> Folder:
        """Return what tasks are given: a scheduler in this process remembers them for longer than the folder is needed."""
        return Folder(self.path, self.durable)

    def file(self, table: str, name: str) -> str:
        """Return the path of a file of a table."""
        return f"{self.path}/{table}/{name}"

    def names(self, table: str) -> set[str]:
        """Return the names of the files of a table, whose folder is there from then on."""
        os.makedirs(f"{self.path}/{table}", exist_ok=True)
        return set(os.listdir(f"{self.path}/{table}"))

    def read_json(self, name: str) -> Any:
        """Return what a JSON file holds, or None where it is not there."""
        content = storage.read_if_there(f"{self.path}/{name}")
        return None if content is None else json.loads(content)

    def write_json(self, name: str, content: Any) -> None:
        with storage.open_atomic(f"{self.path}/{name}", durable=self.durable) as file:
            file.write(json.dumps(content).encode())

    def keep(self, table: str, keys: Iterable[str]) -> None:
        """Remove the files of a table that have other keys than these: they were made from something else, or of other options."""
        wanted = set(keys)
        for name in self.names(table):
            if name.partition(".")[0] not in wanted and _OURS.match(name):
                os.unlink(f"{self.path}/{table}/{name}")


def temporary(parent: str | None = None) -> Folder:
    """Return a folder that goes when nothing in this process refers to it any more."""
    made = tempfile.TemporaryDirectory(prefix="imgcurate-dedup-", dir=parent, ignore_cleanup_errors=True)
    return Folder(made.name, durable=False, kept=made)


def work_folder(work: str | os.PathLike[str]) -> str:
    """Return a folder for vectors, which is there from then on; raises where it cannot be one."""
    if not os.fspath(work) or not storage.is_local(os.fspath(work)):
        raise ValueError(
            f"work={os.fspath(work)!r} must be a folder on a disk that every worker sees, because files in it are mapped"
        )
    path = storage.absolute(work).rstrip("/")
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"work={path!r} is a file; name a folder")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as problem:
        raise ValueError(
            f"work={path!r} cannot be made ({problem.strerror}); name a folder that may be written"
        ) from None
    return path


def write_table(table: pa.Table, path: str, durable: bool) -> None:
    """Write an Arrow table so that it can be mapped."""
    with storage.open_atomic(path, durable=durable) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def map_table(path: str) -> pa.Table:
    """Return a table that `write_table` wrote, mapped: its columns are read when they are looked at.

    What is looked at counts as the process's memory for as long as the table is there, so that nobody keeps one.
    """
    # Not by Arrow's own: to that a path is text, which not every name is.
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()


def map_matrix(path: str, width: int, dtype: str) -> np.ndarray:
    """Return a file of numbers as a matrix of rows of `width`, mapped, as `map_table` does."""
    if not os.path.getsize(path):
        return np.zeros((0, width), dtype=dtype)
    # Copy on write, because what may not be written torch does not take; nobody writes.
    return np.memmap(path, dtype=dtype, mode="c").reshape(-1, width)
