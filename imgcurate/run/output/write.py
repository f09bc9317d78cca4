"""Curated shards, each with the record of what it holds, so that one that is there need not be written again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

from imgcurate import fingerprint, parts, storage
from imgcurate.sinks.webdataset import cut_into_shards, write_shard

#: What a shard is written from; the rows that an earlier version listed lack the later ones.
_COLUMNS = ["image_id", "url", "member", "offset", "bytes", "sample_offset", "sample_size", "etag", "digest", "kept"]


class Cut(NamedTuple):
    """Some of the kept rows of a part of the table of images."""

    url: str
    start: int
    stop: int


class Written(NamedTuple):
    """A curated shard that is there.

    Attributes
    ----------
    shard : str
        The file's name.
    samples, bytes : int
    digest : str
        xxh3_128 of the file.
    renamed : int
        Samples whose key was taken in this shard and that got another.
    """

    shard: str
    samples: int
    bytes: int
    digest: str
    renamed: int


def plan(parts: Sequence[str], kept: Sequence[int], samples_per_shard: int) -> Iterator[list[Cut]]:
    """Yield, for each curated shard, which kept rows of which parts of the table of images go into it.

    Examples
    --------
    >>> list(plan(["a", "b"], [3, 4], 5))
    [[Cut(url='a', start=0, stop=3), Cut(url='b', start=0, stop=2)], [Cut(url='b', start=2, stop=4)]]
    """
    for cuts in cut_into_shards(kept, samples_per_shard):
        yield [Cut(parts[number], start, stop) for number, start, stop in cuts]


def rows_of(cuts: Sequence[Cut], storage_options: storage.Options = None) -> pd.DataFrame:
    """Return the rows of a curated shard, in order."""
    found = []
    for cut in cuts:
        part = parts.read_part(cut.url, None, _COLUMNS, storage_options)
        kept = part[part["kept"].to_numpy(dtype=bool)].drop(columns="kept")
        found.append(kept.iloc[cut.start : cut.stop])
    return pd.concat(found, ignore_index=True)


def write(cuts: Sequence[Cut], url: str, records: str, key: str, storage_options: storage.Options = None) -> Written:
    """Write a curated shard, unless it is there as its record says.

    Parameters
    ----------
    cuts : sequence of Cut
    url : str
        Of the shard.
    records : str
        The folder of the records.
    key : str
        Of all the run's curated shards.
    storage_options : dict, optional
    """
    name = url.rpartition("/")[2]
    record = f"{records}/{fingerprint.of(key, name)}.json"
    known = storage.read_if_there(record, storage_options)
    if known is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a record that cannot be read is none
            content = json.loads(known)
            if content.pop("etag") == _etag(url, storage_options):
                return Written(**content)
    samples, size, renamed, digest = write_shard(rows_of(cuts, storage_options), url, storage_options)
    written = Written(name, samples, size, digest, renamed)
    with storage.open_atomic(record, storage_options) as file:
        file.write(json.dumps({**written._asdict(), "etag": _etag(url, storage_options)}).encode())
    return written


def table_of(written: Sequence[Written]) -> pd.DataFrame:
    """Return the table of shards."""
    columns: dict[str, Any] = {name: [shard[at] for shard in written] for at, name in enumerate(Written._fields)}
    return pd.DataFrame(columns).astype({name: "str" if name in ("shard", "digest") else "int64" for name in columns})


def _etag(url: str, storage_options: storage.Options) -> str | None:
    try:
        return storage.etag(url, storage_options)
    except FileNotFoundError:
        return None
