"""WebDataset tar shards as rows: one row a sample, found from headers; only sidecars are read."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import dask.dataframe as dd
import pandas as pd

from imgcurate import schema, storage, tar, vectors
from imgcurate.cluster import backend
from imgcurate.sources import texts
from imgcurate.sources.partitions import rows_at_once

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp", "avif", "heic", "heif")

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
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
    shards_per_partition : int, default 1
        How many shards are listed together. Raise it for many small shards.
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    dask.dataframe.DataFrame
        Columns image_id, url, member, offset, bytes, sample_offset, sample_size, etag, caption, metadata, error; see
        `imgcurate.schema`. ``image_id`` is the shard's path relative to the common folder of all shards, without its
        extension, "/", and the sample's key; ``caption`` the text of the .txt without the newline that ends the file. A sample that cannot be used (no image, several images, a member stored twice, an
        unsafe name, a link, a shard that is cut off inside it) is a row with an ``error``.

    Raises
    ------
    FileNotFoundError
        Where a pattern names nothing.
    ValueError
        Where a shard is compressed, is named twice, or two shards give the same image_id.
    imgcurate.tar.ShardError
        When rows are computed, where nothing can be read from a shard.

    Notes
    -----
    Listing reads headers and the .txt and .json sidecars, never images. As in WebDataset, a key is a member's path up to the
    first dot of the file name, and directories, hidden files, files without an extension and ``__names__`` are no samples. Members of
    one key belong together wherever they stand in the shard. An image is a member whose extension is one of
    jpg, jpeg, png, webp, gif, tif, tiff, bmp, avif in any case; where there is none, one that ends in such an extension.

    Examples
    --------
    >>> frame = read_webdataset("shards/{00000..00041}.tar")  # doctest: +SKIP
    >>> frame[["image_id", "caption"]].head()  # doctest: +SKIP
    """
    if shards_per_partition < 1:
        raise ValueError(f"shards_per_partition={shards_per_partition}: must be at least 1")
    shards = find_shards(urls, storage_options)
    groups = [shards[i : i + shards_per_partition] for i in range(0, len(shards), shards_per_partition)]
    n_rows = _count_samples(shards[0], storage_options) * len(groups[0])
    pieces = -(-n_rows // rows_at_once(n_rows, rows_per_partition, backend()))
    frame = dd.from_map(
        list_shards,
        groups,
        storage_options=storage_options,
        meta=schema.empty(schema.SOURCE_COLUMNS),
        label="read-webdataset",
    )
    # Each partition is cut into as many: a task lists a shard, and one for each piece takes its rows.
    frame = frame.repartition(npartitions=pieces * frame.npartitions)
    return vectors.to_backend(frame, backend())


def find_shards(urls: storage.Paths, storage_options: storage.Options = None) -> list[Shard]:
    """Find the shards that `read_webdataset` would read, in order; it says what is raised."""
    found = storage.expand(urls, (".tar",), storage_options)
    for url in found:
        if url.lower().endswith(_COMPRESSED):
            raise ValueError(
                f"{url} is compressed: a sample's bytes cannot be found in it without reading all before; decompress it to .tar"
            )
    names = _name_shards(list(found))
    shards = [Shard(url, names[url], entry.etag or storage.etag(url, storage_options)) for url, entry in found.items()]
    _check_nested(shards, storage_options)
    return shards


def list_shards(shards: Sequence[tuple[Any, ...]], storage_options: storage.Options = None) -> pd.DataFrame:
    """List shards as one partition of rows: what `read_webdataset` runs on the workers.

    Parameters
    ----------
    shards : sequence of Shard
        Of one without an etag, that is asked for first.
    storage_options : dict, optional

    Raises
    ------
    imgcurate.tar.ShardError
        Where nothing can be read from a shard; `imgcurate.tar.ShardChanged` where it is not what it was when it was found.
    """
    rows: list[dict[str, Any]] = []
    for known in shards:
        shard = Shard(*known)
        if shard.etag is None:
            shard = shard._replace(etag=storage.etag(shard.url, storage_options))
        try:
            with storage.open_sequential(shard.url, storage_options) as file:
                size = file.seek(0, os.SEEK_END)
                rows += [_row(sample, shard) for sample in tar.scan(file, size, shard.url, texts.COLUMNS)]
        finally:  # where it failed as well, for that may be why
            tar.refuse_changed(shard.url, [str(shard.etag)], storage_options)
    return schema.table({column: [row[column] for row in rows] for column in schema.SOURCE_COLUMNS})


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


def _row(sample: tar.Sample, shard: Shard) -> dict[str, Any]:
    images = images_of(sample)
    problem = _problem(sample, images)
    image = images[0] if images else None
    run = sample.run
    return {
        "image_id": f"{shard.name}/{sample.key}",
        "url": shard.url,
        "etag": shard.etag,
        "member": image.name if image else None,
        "offset": image.offset if image else 0,
        "bytes": image.size if image else 0,
        "sample_offset": run[0] if run else None,
        "sample_size": run[1] if run else None,
        "caption": None if problem else _text(sample, "txt"),
        "metadata": None if problem else _text(sample, "json"),
        "error": problem,
    }


def images_of(sample: tar.Sample) -> list[tar.Member]:
    """Return the members of a sample that are images: one, of a sample that can be used."""
    images = [member for member in sample.members if member.extension in IMAGE_EXTENSIONS]
    return images or [member for member in sample.members if member.extension.rpartition(".")[2] in IMAGE_EXTENSIONS]


def _problem(sample: tar.Sample, images: list[tar.Member]) -> str | None:
    """Say why a sample cannot be used, or None."""
    names = Counter(member.name for member in sample.members)
    twice = [name for name, count in names.items() if count > 1]
    if sample.problem:
        return sample.problem
    for member in sample.members:
        if member.problem:
            return member.problem
    if twice:
        return f"member {twice[0]!r} is stored {names[twice[0]]} times"
    if not images:
        return "no image: the sample has " + ", ".join(member.name for member in sample.members)
    if len(images) > 1:
        return f"{len(images)} images in one sample: " + ", ".join(member.name for member in images)
    return None


def _text(sample: tar.Sample, extension: str) -> str | None:
    contents = (member.content for member in sample.members if member.extension == extension)
    return texts.decode(next(contents, None), extension)


def _name_shards(urls: Sequence[str]) -> dict[str, str]:
    """Return the part of image_id that names each shard."""
    root = storage.common_folder([url.rpartition("/")[0] for url in urls])
    first: dict[str, str] = {}
    for url in urls:
        relative = storage.relative(url, root)
        name = relative[:-4] if relative.lower().endswith(".tar") else relative
        if name in first:
            raise ValueError(f"{first[name]} and {url} would give their images the same ids ({name}/...); rename one")
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
            f"{len(collisions)} image ids stand for two images: {', '.join(collisions[:5])}; rename the shards or read them apart"
        )


def _ancestors(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]
