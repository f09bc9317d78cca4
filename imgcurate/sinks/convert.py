"""Compressed shards as plain ones, in which the bytes of a sample can be found."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, cast

import dask
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa

from imgcurate import storage, tar
from imgcurate.cluster import interruptible
from imgcurate.printable import printable

_BLOCK = 1 << 20
# Pictures hardly shrink, and headers and captions to a tenth or a fiftieth; a gzip of zeros is a thousandth of them. Of a small file this
# much is written in any case.
_MAX_RATIO, _ALWAYS = 100, 64 << 20


def _of_arrow(codec: str) -> Callable[[BinaryIO], BinaryIO]:
    return lambda file: cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec))


# By what such a file begins with, whatever its name says.
_OPEN: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _of_arrow("zstd"),
    b"\x04\x22\x4d\x18": _of_arrow("lz4"),
}


class Converted(NamedTuple):
    """A shard that was made, or why it was not.

    Attributes
    ----------
    source, url : str
    bytes : int
        Of the plain shard; 0 where there is none.
    error : str or None
    """

    source: str
    url: str
    bytes: int
    error: str | None = None


@interruptible
def convert_shards(
    urls: storage.Paths,
    path: str | os.PathLike[str],
    *,
    max_ratio: float = _MAX_RATIO,
    overwrite: bool = False,
    storage_options: storage.Options = None,
) -> Any:
    """Make plain shards of compressed ones (gzip, bzip2, xz, zstd, lz4), each in one pass from front to back.

    Parameters
    ----------
    urls : str, path, or list of these
        As for `read_webdataset`: of a folder all ``.tar.gz``, ``.tgz``, ``.tar.zst`` and so on.
    path : str or path
        The folder for the plain shards, which have the names of the compressed ones, with ``.tar`` at the end.
    max_ratio : float, default 100
        How many times as large as its file a shard may become (64 MiB it may in any case): what grows more is not written.
    overwrite : bool, default False
        Make shards anew that are there. Else they are left as they are: one that is there is whole, so that a call which was stopped goes on.
    storage_options : dict, optional
        For the fsspec filesystem, of sources and output.

    Returns
    -------
    dask.dataframe.DataFrame
        One row a shard: source, url, bytes, and error, which says why a shard was not made: it is not compressed, cut off, damaged, or grows
        without end. No file is there then.

    Raises
    ------
    FileNotFoundError
        Where a pattern names nothing.
    ValueError
        Where two shards would get one name.

    Examples
    --------
    >>> convert_shards("downloads/*.tar.gz", "shards").compute()  # doctest: +SKIP
    """
    if not max_ratio >= 1:
        raise ValueError(f"max_ratio={max_ratio}: it must be at least 1")
    sources = list(storage.expand(urls, tar.COMPRESSED, storage_options, called="compressed tar shard"))
    folder = storage.absolute(path, storage_options).rstrip("/")
    targets = {source: f"{folder}/{name}" for source, name in _names(sources).items()}
    convert = dask.delayed(convert_shard)
    made = dask.compute(
        *(convert(source, target, max_ratio, overwrite, storage_options) for source, target in targets.items())
    )
    kinds = {
        "source": "string[pyarrow]",
        "url": "string[pyarrow]",
        "bytes": "int64[pyarrow]",
        "error": "string[pyarrow]",
    }
    return dd.from_pandas(pd.DataFrame(made, columns=list(Converted._fields)).astype(kinds), npartitions=1)


def convert_shard(
    source: str, target: str, max_ratio: float, overwrite: bool = False, storage_options: storage.Options = None
) -> Converted:
    """Make one plain shard: what `convert_shards` runs on the workers."""
    if not overwrite and (there := _bytes_there(target, storage_options)) is not None:
        return Converted(source, storage.to_text(target), there)
    try:
        with storage.open_sequential(source, storage_options) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            start = file.read(8)
            file.seek(0)
            opened = next((function for magic, function in _OPEN.items() if start.startswith(magic)), None)
            if opened is None:
                raise ValueError("it is not compressed with gzip, bzip2, xz, zstd or lz4")
            with opened(file) as plain, storage.open_atomic(target, storage_options) as out:
                written = _copy(plain, out, int(max(max_ratio * size, _ALWAYS)))
    except (EOFError, ValueError, OSError, lzma.LZMAError, zlib.error) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise
        return Converted(
            source, storage.to_text(target), 0, f"{printable(source)} cannot be decompressed: {printable(str(problem))}"
        )
    return Converted(source, storage.to_text(target), written)


def _copy(plain: BinaryIO, out: BinaryIO, limit: int) -> int:
    written = 0
    while block := plain.read(_BLOCK):
        written += len(block)
        if written > limit:
            raise ValueError(f"it grows to more than {limit:,} bytes; raise max_ratio if that is right")
        out.write(block)
    return written


def _bytes_there(url: str, storage_options: storage.Options) -> int | None:
    try:
        return storage.size_of(url, storage_options)
    except FileNotFoundError:
        return None


def _names(sources: list[str]) -> dict[str, str]:
    """Return the name of the plain shard of each compressed one, relative to their common folder."""
    root = storage.common_folder([storage.path_of(source).rpartition("/")[0] for source in sources])
    found: dict[str, str] = {}
    for source in sources:
        ending = next(
            (ending for ending in tar.COMPRESSED if source.lower().endswith(ending)), os.path.splitext(source)[1]
        )
        name = (
            storage.relative(source, root).removesuffix(source[len(source) - len(ending) :] if ending else "") + ".tar"
        )
        if name in found:
            raise ValueError(
                f"{printable(found[name])} and {printable(source)} would both become {printable(name)}; convert them into two folders"
            )
        found[name] = source
    return {source: name for name, source in found.items()}
