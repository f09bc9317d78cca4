"""WebDataset tar shards as rows: one row a sample, found from headers; only sidecars are read."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import dask.dataframe as dd
import pandas as pd

from imgcurate import schema, storage, tar, vectors
from imgcurate.cluster import backend
from imgcurate.printable import printable
from imgcurate.sources.partitions import rows_at_once
from imgcurate.sources.sidecars import AS_USUAL, MAX_SIDECAR, BadSidecar, Sidecars, Texts, chosen, images_of, texts_of

logger = logging.getLogger("imgcurate")

#: What the name of a shard ends in; the compressed ones are refused with what to do.
EXTENSIONS = (".tar", *tar.COMPRESSED)
# How many of the names of a sample's members a message has.
_NAMED = 5
# What a store sends at once at little cost, of which is told how many samples a shard has.
_BEGINNING = 1 << 20


class Shard(NamedTuple):
    """A shard as it was found: its URL, the part of image_id that names it, and its version (see `imgcurate.storage.etag`)."""

    url: str
    name: str
    etag: str | None = None


def read_webdataset(
    urls: storage.Paths,
    *,
    rows_per_partition: int | None = None,
    caption_from: str = "txt",
    image: str | None = None,
    max_sidecar: int = MAX_SIDECAR,
    shards_per_partition: int = 1,
    storage_options: storage.Options = None,
) -> dd.DataFrame:
    """Read WebDataset tar shards as a Dask dataframe with one row a sample.

    Parameters
    ----------
    urls : str, path, or list of these
        A shard, a folder of shards, a glob, or braces such as ``"s3://bucket/{00000..00041}.tar"``: any fsspec URL.
    rows_per_partition : int, optional
        About how many rows a partition has at most: the rows of a shard are cut into equal parts, as many for each shard as the first one needs.
        Default: a sixteenth of a shard, at least 32 (1,024 on a GPU) and at most 2,048.
    caption_from : str, default "txt"
        What the caption is: the member with this extension, such as ``"caption"`` or ``"text"``, or with ``"json:caption"`` what stands in
        the JSON under this key.
    image : str, optional
        The extension of the member that is the image, such as ``"jpg"`` or ``"left.jpg"``, for samples that have several.
    max_sidecar : int, default 1 MiB
        Bytes that a caption or a JSON may have; a sample with a larger one is a row with an error.
    shards_per_partition : int, default 1
        How many shards are listed together. Raise it for many small shards.
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    dask.dataframe.DataFrame
        Columns image_id, url, member, offset, bytes, sample_offset, sample_size, etag, caption, metadata, text_encoding, error; see
        `imgcurate.schema`. ``image_id`` is the shard's path relative to the common folder of all shards, without its
        extension, "/", and the sample's key; ``caption`` is without the newline that ends its file. A sample that cannot be used (no image, several
        images, a member stored twice, an unsafe name, a link, a shard that is cut off inside it) is a row with an ``error``, and so is a
        shard in which nothing can be read: its ``image_id`` ends after the "/".

    Raises
    ------
    FileNotFoundError
        Where a pattern names nothing.
    ValueError
        Where a shard is compressed, is named twice, two shards give the same image_id, or an option is not one.
    imgcurate.tar.ShardChanged
        When rows are computed, where a shard is not what it was when it was found.

    Notes
    -----
    Listing reads headers and the captions and .json sidecars, never images. As in WebDataset, a key is a member's path up to the
    first dot of the file name, and directories, hidden files, files without an extension and ``__names__`` are no samples. Members of
    one key belong together wherever they stand in the shard. An image is a member whose extension is one of
    jpg, jpeg, jpe, jfif, png, webp, gif, tif, tiff, bmp, avif, heic, heif, jxl, jp2, j2k in any case; where there is none, one that ends in such an extension, as
    ``a.v1.jpg``, to which ``a.v1.txt`` belongs rather than ``a.txt``. Text that is not UTF-8 is read as its byte order mark says, else as cp1252 or
    Latin-1, which is a guess: of other alphabets than the Latin it makes other letters. ``text_encoding`` says so (``"utf-16"``, or ``"cp1252?"`` for
    the guess), and a warning in the log counts it. What is written is the bytes as they were.

    Examples
    --------
    >>> frame = read_webdataset("shards/{00000..00041}.tar")  # doctest: +SKIP
    >>> frame[["image_id", "caption"]].head()  # doctest: +SKIP
    """
    if shards_per_partition < 1:
        raise ValueError(f"shards_per_partition={shards_per_partition}: must be at least 1")
    sidecars = chosen(caption_from, image, max_sidecar)
    shards = find_shards(urls, storage_options)
    groups = [shards[i : i + shards_per_partition] for i in range(0, len(shards), shards_per_partition)]
    n_rows = _count_samples(shards[0], storage_options) * len(groups[0])
    pieces = -(-n_rows // rows_at_once(n_rows, rows_per_partition, backend()))
    frame = dd.from_map(
        list_shards,
        groups,
        storage_options=storage_options,
        sidecars=sidecars,
        meta=schema.empty(schema.SOURCE_COLUMNS),
        label="read-webdataset",
    )
    # Each partition is cut into as many: a task lists a shard, and one for each piece takes its rows.
    frame = frame.repartition(npartitions=pieces * frame.npartitions)
    return vectors.to_backend(frame, backend())


def find_shards(urls: storage.Paths, storage_options: storage.Options = None) -> list[Shard]:
    """Find the shards that `read_webdataset` would read, in order; it says what is raised."""
    return shards_of(storage.expand(urls, EXTENSIONS, storage_options, called="tar shard"), storage_options)


def shards_of(found: Mapping[str, storage.Entry], storage_options: storage.Options = None) -> list[Shard]:
    """Return files that `storage.expand` has found as shards."""
    for url, entry in found.items():
        if entry.problem is not None:
            raise ValueError(f"{printable(tar.printable(storage.path_of(url)))}: {entry.problem}")
        if url.lower().endswith(tar.COMPRESSED):
            raise ValueError(tar.compressed(url))
    names = _name_shards(list(found))
    shards = [Shard(url, names[url], entry.etag or storage.etag(url, storage_options)) for url, entry in found.items()]
    _check_nested(shards, storage_options)
    return shards


def list_shards(
    shards: Sequence[tuple[Any, ...]], storage_options: storage.Options = None, sidecars: Sidecars = AS_USUAL
) -> pd.DataFrame:
    """List shards as one partition of rows: what `read_webdataset` runs on the workers.

    Parameters
    ----------
    shards : sequence of Shard
        Of one without an etag, that is asked for first.
    storage_options : dict, optional
    sidecars : Sidecars, optional

    Raises
    ------
    imgcurate.tar.ShardChanged
        Where a shard is not what it was when it was found.
    """
    columns: dict[str, list[Any]] = {name: [] for name in schema.SOURCE_COLUMNS}
    for known in shards:
        shard = Shard(*known)
        if shard.etag is None:
            shard = shard._replace(etag=storage.etag(shard.url, storage_options))
        start = len(columns["error"])
        try:
            with storage.open_sequential(shard.url, storage_options) as file:
                size = file.seek(0, os.SEEK_END)
                samples = tar.scan(file, size, shard.url, sidecars.texts, sidecars.most)
            rows: Iterable[dict[str, Any]] = (_row(sample, shard, sidecars) for sample in samples)
        except tar.ShardError as problem:
            rows = [_empty_row(shard, "", f"shard: {problem}")]
        finally:  # where it failed as well, for that may be why
            tar.refuse_changed(shard.url, [str(shard.etag)], storage_options)
        for row in rows:
            for name, values in columns.items():
                values.append(row[name])
        _tell_encodings(columns["text_encoding"][start:], shard.url)
    return schema.table(columns)


def _count_samples(shard: Shard, storage_options: storage.Options) -> int:
    """Return about how many samples a shard has, by how many begin in its first bytes; what is wrong with it is said when it is listed."""
    with contextlib.suppress(tar.ShardError, OSError):
        with storage.open_sequential(shard.url, storage_options) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            beginning = file.read(_BEGINNING)
        samples = tar.scan(io.BytesIO(beginning), len(beginning), shard.url)
        return -(-size * len(samples) // len(beginning))
    return 1


def _row(sample: tar.Sample, shard: Shard, sidecars: Sidecars) -> dict[str, Any]:
    images = images_of(sample, sidecars.image)
    problem = _problem(sample, images)
    row = _empty_row(shard, sample.key, problem)
    if not images:
        return row
    image, run, texts = images[0], sample.run, Texts(None, None, None)
    if problem is None:
        try:
            texts = texts_of(sample, image, sidecars)
        except BadSidecar as bad:
            row["error"] = f"sidecar: {bad}"
    row["member"], row["offset"], row["bytes"] = image.name, image.offset, image.size
    if run is not None:
        row["sample_offset"], row["sample_size"] = run
    row["caption"], row["metadata"], row["text_encoding"] = texts
    return row


def _empty_row(shard: Shard, key: str, error: str | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(schema.SOURCE_COLUMNS)
    row["image_id"], row["url"], row["etag"], row["error"] = f"{shard.name}/{key}", shard.url, shard.etag, error
    row["offset"] = row["bytes"] = 0
    return row


def _problem(sample: tar.Sample, images: list[tar.Member]) -> str | None:
    """Say why a sample cannot be used, or None."""
    if sample.problem:
        return sample.problem
    for member in sample.members:
        if member.problem:
            return member.problem
    names = Counter(member.name for member in sample.members) if len(sample.members) > 1 else {}
    if len(names) < len(sample.members) and names:
        name, count = max(names.items(), key=lambda item: item[1])
        return f"member {tar.shown(name)} is stored {count} times"
    if not images:
        return f"no image: the sample has {_list(sample.members)}"
    if len(images) > 1:
        return f"{len(images)} images in one sample: {_list(images)}; image= chooses one by its extension"
    return None


def _list(members: Sequence[tar.Member]) -> str:
    named = ", ".join(tar.shown(member.name)[1:-1] for member in members[:_NAMED])
    return named if len(members) <= _NAMED else f"{named} and {len(members) - _NAMED:,} more"


def _tell_encodings(encodings: Sequence[str | None], url: str) -> None:
    found = Counter(encoding for encoding in encodings if encoding is not None)
    if found:
        counts = ", ".join(f"{encoding}: {count:,}" for encoding, count in found.most_common())
        logger.warning("%s: text that is not UTF-8 was read in another encoding (%s)", url, counts)


def _name_shards(urls: Sequence[str]) -> dict[str, str]:
    """Return the part of image_id that names each shard."""
    root = storage.common_folder([storage.path_of(url).rpartition("/")[0] for url in urls])
    first: dict[str, str] = {}
    for url in urls:
        relative = storage.relative(url, root)
        name = relative[:-4] if relative.lower().endswith(".tar") else relative
        if name in first:
            raise ValueError(
                f"{printable(first[name])} and {printable(url)} would give their images the same ids ({printable(name)}/...); rename one"
            )
        first[name] = url
    return {url: name for name, url in first.items()}


def _check_nested(shards: Sequence[Shard], storage_options: storage.Options) -> None:
    """See that ``a.tar`` with a key ``b/c`` does not meet ``a/b.tar`` with a key ``c``: both would be image ``a/b/c``.

    Only where one shard's name is a folder of another's can two shards give one id, so only such shards are listed here.
    """
    names = {shard.name for shard in shards}
    inner = {name: [part for part in _ancestors(name) if part in names] for name in names}
    involved = {name for name, outer in inner.items() if outer} | {part for outer in inner.values() for part in outer}
    if not involved:
        return
    ids = list_shards([shard for shard in shards if shard.name in involved], storage_options)["image_id"]
    collisions = ids[ids.duplicated()].unique()
    if len(collisions):
        raise ValueError(
            f"{len(collisions)} image ids stand for two images: {', '.join(map(tar.shown, collisions[:5]))}; rename the shards or read them apart"
        )


def _ancestors(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]
