"""A table on disk, part by part: a part is there whole or not at all, and its name says what made it.

A part's name is ``<key>.<rows>.<content>.parquet``: the key stands for all that the part depends on, so that a part that is there need not be
made again, and the content for what came of it, so that what is made from it depends on that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from dask._task_spec import Alias, DataNode, Task, TaskRef, _execute_subgraph, convert_legacy_graph

from imgcurate import fingerprint, identity, schema, storage, vectors
from imgcurate.cluster import interruptible
from imgcurate.printable import printable

_NAME = re.compile(r"([0-9a-f]{32})\.(\d+)\.([0-9a-f]{16})(?:\.(\d+)-unread)?\.parquet")
_PARQUET_END = b"PAR1"


class DamagedPart(ValueError):
    """A part of a table that cannot be read: its disk or a copy of it is damaged."""

    def __init__(self, url: str, problem: object) -> None:
        super().__init__(url, problem)
        self.url, self.problem = url, problem

    def __str__(self) -> str:
        return f"{printable(self.url)} is damaged ({printable(str(self.problem))}); remove it and run again, and it is made anew"


class Part(NamedTuple):
    """A part that is there.

    Attributes
    ----------
    key : str
        Of what made it.
    rows : int
    content : str
        Of what is in it.
    unread : int
        How many of its rows have an error of reading, which may pass.
    """

    key: str
    rows: int
    content: str
    unread: int = 0

    @property
    def name(self) -> str:
        """Its file's name."""
        unread = f".{self.unread}-unread" if self.unread else ""
        return f"{self.key}.{self.rows}.{self.content}{unread}.parquet"


@interruptible
def checkpoint(frame: Any, path: str | os.PathLike[str], *, storage_options: storage.Options = None) -> dd.DataFrame:
    """Compute a frame into a folder, but for the partitions that are there from an earlier time, and return it read from there.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    path : str or path
        A folder that is this frame's own. Afterwards it holds its partitions and nothing else, as Parquet that any reader opens, if in another
        order.
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    dask.dataframe.DataFrame
        The same partitions in the same order, read from the folder. As with `write_parquet`, the index is not kept.

    Raises
    ------
    FileExistsError
        Where the folder holds Parquet files that no checkpoint wrote.

    Notes
    -----
    Eager. A partition is written when it is whole, so that a call that was stopped goes on where it was when it is made again. A partition is
    known by all that it is made of: the shard or file with its size and modification time or ETag, the options of the verbs, the files of
    the model, a function by its source. What was changed or added is computed, and nothing else. Of a frame that was persisted only its key is
    known: make a checkpoint of it before, or instead.

    Examples
    --------
    >>> frame = checkpoint(embed(frame), "work/embedded")  # doctest: +SKIP
    """
    schema.require(frame, [], "checkpoint")
    folder = storage.absolute(path, storage_options).rstrip("/")
    _refuse_others(folder, storage_options)
    keys = keys_of(frame)
    known = there(folder, storage_options)
    write = dask.delayed(write_part)
    wanted = {
        key: write(part, folder, key, storage_options)
        for key, part in zip(keys, frame.to_delayed(), strict=True)
        if key not in known
    }
    made = dask.compute(wanted)[0]
    parts = [made.get(key) or known[key] for key in keys]
    remove_others(folder, {part.name for part in parts}, storage_options)
    urls = [f"{folder}/{part.name}" for part in parts]
    return from_parts(urls, frame._meta, storage_options)


def keys_of(frame: Any) -> list[str]:
    """Return a key for each partition of a frame, of all that the partition is made of and of nothing that others are.

    Examples
    --------
    >>> once, again = (dd.from_map(abs, [1, 2], meta=("x", int)), dd.from_map(abs, [2, 1], meta=("x", int)))
    >>> keys_of(once) == keys_of(again)[::-1]
    True
    """
    unfused = frame.optimize(fuse=False)
    graph = _unfused(convert_legacy_graph(dict(unfused.__dask_graph__())))
    known: dict[Any, str] = {}

    def substitute(value: Any) -> Any:
        if isinstance(value, TaskRef):
            return known[value.key]
        if isinstance(value, Alias):
            return known[value.target]
        if isinstance(value, DataNode):
            return substitute(value.value)
        if isinstance(value, Task):
            return [value.func, substitute(value.args), substitute(dict(value.kwargs))]
        if isinstance(value, Mapping):
            return {name: substitute(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [substitute(item) for item in value]
        return value

    # Not by recursion: a graph may be deeper than Python's stack.
    for target in unfused.__dask_keys__():
        waiting = [target]
        while waiting:
            key = waiting[-1]
            if key not in graph:  # of what was persisted or computed elsewhere nothing but the key is known
                known[key] = fingerprint.of("key", str(key))
            missing = [other for other in graph[key].dependencies if other not in known] if key not in known else []
            if missing:
                waiting += missing
                continue
            if key not in known:
                node = graph[key]
                # Dask's own reader of Parquet has in its tasks where a file lies, and in their name what all its files are.
                files = [key[0]] if isinstance(node, Task) and _is_of_dasks_reader(node.func) else []
                known[key] = fingerprint.of(substitute(node), *files)
            waiting.pop()
    return [known[key] for key in unfused.__dask_keys__()]


def _is_of_dasks_reader(function: Any) -> bool:
    module = getattr(function, "__module__", None) or ""
    return module.startswith("dask.") and ".io.parquet" in module


def _unfused(graph: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a graph with the tasks of which Dask has made one, as ``to_delayed()`` does, by themselves."""
    tasks, waiting = {}, list(graph.items())
    while waiting:
        key, node = waiting.pop()
        if not isinstance(node, Task) or node.func is not _execute_subgraph:
            tasks[key] = node
            continue
        parts, last = node.args[:2]
        waiting += parts.items()
        if key != last:
            tasks[key] = Alias(key, last)
    return tasks


def there(folder: str, storage_options: storage.Options = None) -> dict[str, Part]:
    """Return the whole parts in a folder by key; of two of one key, that with fewer rows unread.

    A file whose end is missing, as a disk that lost its power may leave one, is not there.
    """
    fs, path = storage.open_filesystem(folder, storage_options)
    try:
        names = fs.ls(path, detail=False)
    except FileNotFoundError:
        return {}
    found: dict[str, Part] = {}
    for name in names:
        part = _part_of(name.rpartition("/")[2])
        if part is None or (storage.is_local(folder) and not _is_whole(name)):
            continue
        other = found.get(part.key)
        if other is None or part.unread < other.unread:
            found[part.key] = part
    return found


def write_part(
    part: Any,
    folder: str,
    key: str,
    storage_options: storage.Options = None,
    metadata: Mapping[str, str] | None = None,
) -> Part:
    """Write a partition under the name that says what made it and what it holds; `metadata` goes into the file's."""
    table = to_table(part)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **(metadata or {})})
    error = table["error"].to_pylist() if "error" in table.column_names else []
    unread = sum(text is not None and text.startswith("read: ") for text in error)
    sink = pa.BufferOutputStream()
    write_table(table, sink)
    content = memoryview(sink.getvalue())
    made = Part(key, len(table), xxhash.xxh3_64_hexdigest(content), unread)
    with storage.open_atomic(f"{folder}/{made.name}", storage_options) as file:
        file.write(content)
    return made


def to_table(part: Any) -> pa.Table:
    """Return a partition as it is written: without pandas' metadata, with the encoder of its embeddings in the table's."""
    encoder = identity.one(encoders_of(part), "the frame")
    return vectors.to_arrow(part).replace_schema_metadata(identity.to_metadata(encoder))


def encoders_of(part: Any) -> frozenset[identity.Identity]:
    """Return the encoders of a partition's embeddings."""
    return identity.of_column(part["embedding"]) if "embedding" in part.columns else frozenset()


def write_table(table: pa.Table, file: Any) -> None:
    """Write a table as Parquet with a checksum a page."""
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_part(
    url: str, like: Any = None, columns: Sequence[str] | None = None, storage_options: storage.Options = None
) -> Any:
    """Read a part, or those of `columns` that it has, on the backend of `like`; a `DamagedPart` where it cannot."""
    try:
        with storage.open_input(url, storage_options) as file:
            content = pq.ParquetFile(file, page_checksum_verification=True)
            names = content.schema_arrow.names
            today = schema.today(names)
            wanted = [name for name in names if columns is None or today.get(name, name) in columns]
            table = content.read(wanted).rename_columns([today.get(name, name) for name in wanted])
    except (pa.ArrowException, OSError, ValueError) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise
        raise DamagedPart(url, problem) from None
    named = _part_of(url.rpartition("/")[2])
    if named is not None and named.rows != len(table):
        raise DamagedPart(url, f"it has {len(table):,} rows and its name says {named.rows:,}")
    return schema.to_pandas(table) if like is None else vectors.from_arrow(table, like)


def read_metadata(url: str, storage_options: storage.Options = None) -> dict[str, str]:
    """Return the metadata of a part's file."""
    try:
        with storage.open_input(url, storage_options) as file:
            known = pq.read_schema(file).metadata or {}
        return {name.decode(): text.decode() for name, text in known.items()}
    except (pa.ArrowException, OSError, ValueError) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise
        raise DamagedPart(url, problem) from None


def from_parts(urls: Sequence[str], meta: Any, storage_options: storage.Options = None) -> dd.DataFrame:
    """Return parts as a frame of the types of `meta`."""
    if not urls:
        return dd.from_delayed([dask.delayed(meta)], meta=meta, verify_meta=False)
    return dd.from_map(_read_typed, list(urls), like=meta, storage_options=storage_options, meta=meta)


def remove_others(folder: str, names: set[str], storage_options: storage.Options = None) -> None:
    """Remove the parts of a folder that are not among `names`."""
    fs, path = storage.open_filesystem(folder, storage_options)
    for name in _files(fs, path):
        base = name.rpartition("/")[2]
        if _part_of(base) is not None and base not in names:
            fs.rm_file(name)


def content_of(url: str) -> str:
    """Return what a part's name says of its content.

    Examples
    --------
    >>> content_of(f"work/{'0' * 32}.5.00112233445566aa.parquet")
    '00112233445566aa'
    """
    part = _part_of(url.rpartition("/")[2])
    if part is None:
        raise ValueError(f"{url} is not the name of a part")
    return part.content


def _read_typed(
    url: str, like: Any, columns: Sequence[str] | None = None, storage_options: storage.Options = None
) -> Any:
    part = read_part(url, like, columns, storage_options)
    for name in columns or like.columns:
        if name not in part.columns or _holds_lists(like.dtypes[name]) != _holds_lists(part.dtypes[name]):
            raise DamagedPart(url, f"it lacks the column {name!r}, or that is of another kind")
    other = {
        name: kind
        for name, kind in like.dtypes.items()
        if name in part.columns and part.dtypes[name] != kind and not _holds_lists(part.dtypes[name])
    }
    try:
        return part.astype(other) if other else part
    except (pa.ArrowException, ValueError, TypeError) as problem:
        raise DamagedPart(url, problem) from None


def _holds_lists(kind: Any) -> bool:
    return isinstance(kind, pd.ArrowDtype) and pa.types.is_nested(kind.pyarrow_dtype)


def _part_of(name: str) -> Part | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    key, rows, content, unread = match.groups()
    return Part(key, int(rows), content, int(unread or 0))


def _is_whole(path: str) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - len(_PARQUET_END), 0))
        return file.read() == _PARQUET_END


def _files(fs: Any, path: str) -> Iterator[str]:
    fs.invalidate_cache()
    if fs.exists(path):
        yield from fs.ls(path, detail=False)


def _refuse_others(folder: str, storage_options: storage.Options) -> None:
    fs, path = storage.open_filesystem(folder, storage_options)
    for name in _files(fs, path):
        base = name.rpartition("/")[2]
        if base.endswith(".parquet") and not base.startswith(".") and _part_of(base) is None:
            raise FileExistsError(
                f"{printable(name)} was not written by checkpoint; name a folder that is this frame's own"
            )
