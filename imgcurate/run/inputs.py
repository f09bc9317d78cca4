"""What a run reads: tar shards or image files, in units that are listed, and known by a version, as a whole."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import xxhash

from imgcurate import fingerprint, storage
from imgcurate.printable import plural, printable, quoted
from imgcurate.sources import files, webdataset
from imgcurate.sources.files import File
from imgcurate.sources.sidecars import AS_USUAL, Sidecars
from imgcurate.sources.webdataset import Shard

# Image files are cut into units of about so many, and at most so many. Where a unit ends is told by the name of its last file, so that a
# file which is added or taken away changes one unit, and not all that come after it.
_ABOUT_FILES, _MOST_FILES = 512, 2048
# Of inputs, in a message.
_NAMED = 3


@dataclass(frozen=True)
class Unit:
    """A shard, or image files that follow one another.

    Attributes
    ----------
    url : str
        Of the shard, or of the first file.
    source : str
        What the account of a run names: the shard, or the folder that holds the files.
    etags : dict of str to str
        The version of each file that is read (see `imgcurate.storage.etag`), texts beside images included.
    content : Shard or tuple of File
    """

    url: str
    source: str
    etags: Mapping[str, str]
    content: Shard | tuple[File, ...]

    @property
    def readable(self) -> Iterator[str]:
        """The URLs of the shard, or of the files in which the listing found no problem."""
        if isinstance(self.content, Shard):
            yield self.url
        else:
            yield from (file.url for file in self.content if file.entry.problem is None)

    def version(self, doubts: Mapping[str, int]) -> str:
        """Return what the unit's bytes are known by; of `doubts`, how often a file had other bytes than its etag said."""
        known = {url: f"{etag}+{doubts[url]}" if url in doubts else etag for url, etag in self.etags.items()}
        return known[self.url] if len(known) == 1 else fingerprint.of(known)

    def key(self, version: str) -> tuple[str, ...]:
        """Return what the unit's rows depend on."""
        names = [self.content.name] if isinstance(self.content, Shard) else [file.image_id for file in self.content]
        return self.url, *names, version

    def list(self, storage_options: storage.Options, sidecars: Sidecars = AS_USUAL) -> pd.DataFrame:
        """List the unit as rows."""
        if isinstance(self.content, Shard):
            return webdataset.list_shards([self.content], storage_options, sidecars)
        return files.list_files(self.content, storage_options, sidecars.most)


def find(urls: storage.Paths, storage_options: storage.Options = None) -> list[Unit]:
    """Find what a run is to read, in order.

    Parameters
    ----------
    urls : str, path, or list of these
        Shards, image files, folders of one or the other, globs, braces.
    storage_options : dict, optional

    Raises
    ------
    FileNotFoundError
        Where a pattern finds nothing.
    ValueError
        Where shards and images are named together, or lie in one folder; or as `read_webdataset` and `read_files`.
    """
    extensions, beside = (*webdataset.EXTENSIONS, *files.EXTENSIONS), tuple(files.TEXTS)
    expand = partial(
        storage.expand,
        extensions=extensions,
        storage_options=storage_options,
        beside=beside,
        contained=files.CONTAINED,
        called="tar shard and no image",
    )
    found = expand(urls)
    images, tars = _images_and_tars(found)
    if images and tars:
        if not isinstance(urls, str | os.PathLike) and len(urls) > 1:
            raise ValueError(_of_several(urls, expand, images, tars, storage_options))
        given = printable(storage.root_of(urls, storage_options))
        raise ValueError(
            f"{given} holds tar shards ({tars:,}) and images ({images:,}), and a run reads one or the other: name the shards as "
            f"{given}/**/*.tar to read them, or move them to a folder elsewhere to read the images"
        )
    if images:
        return list(_units_of(files.files_of(found, urls, storage_options), found, storage_options))
    # What is named is a shard, whatever its name is; when it is listed it is told whether it can be one.
    shards = {url: entry for url, entry in found.items() if not url.lower().endswith(tuple(files.TEXTS))}
    if not shards:
        raise FileNotFoundError(f"{printable(repr(urls))} names neither a tar shard nor an image")
    return [
        Unit(shard.url, shard.url, {shard.url: str(shard.etag)}, shard)
        for shard in webdataset.shards_of(shards, storage_options)
    ]


def _images_and_tars(found: Iterable[str]) -> tuple[int, int]:
    names = [url.lower() for url in found]
    return sum(name.endswith(files.EXTENSIONS) for name in names), sum(name.endswith(".tar") for name in names)


def _of_several(
    urls: Sequence[str | os.PathLike[str]],
    expand: Callable[[str | os.PathLike[str]], Mapping[str, storage.Entry]],
    images: int,
    tars: int,
    storage_options: storage.Options,
) -> str:
    """Say which of several inputs hold shards and which images."""
    holders: tuple[list[str], list[str]] = [], []
    for url in urls:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were shown already
            counts = _images_and_tars(expand(url))
        for holding, n in zip(holders, counts, strict=True):
            if n:
                holding.append(os.fspath(url))

    both = next((name for name in holders[0] if name in holders[1]), None)
    its = (
        ""
        if both is None
        else f" ({printable(both)} holds both, the shards are {printable(storage.root_of(both, storage_options))}/**/*.tar)"
    )
    return (
        f"a run reads tar shards or images and not both, and of what was named tar shards ({tars:,}) are in {quoted(holders[1], _NAMED)}, "
        f"images ({images:,}) in {quoted(holders[0], _NAMED)}: name the one or the other{its}"
    )


def check_sidecars(sidecars: Sidecars, units: Sequence[Unit]) -> None:
    """Raise a ValueError where it is asked of image files what only members of shards can be."""
    if not isinstance(units[0].content, Shard) and sidecars._replace(most=AS_USUAL.most) != AS_USUAL:
        name = "image" if sidecars.image is not None else "caption_from"
        raise ValueError(
            f"{name}= says how samples of tar shards are read, and the inputs are image files, whose captions are the .txt beside them; leave it out"
        )


def describe(units: Sequence[Unit]) -> str:
    """Say what inputs were taken for.

    Examples
    --------
    >>> describe([Unit("a.tar", "a.tar", {"a.tar": "1"}, Shard("a.tar", "a"))])
    '1 tar shard'
    """
    if isinstance(units[0].content, Shard):
        return plural(len(units), "tar shard")
    images = sum(len(unit.content) for unit in units)
    return plural(images, "image file")


def _units_of(
    found: Sequence[File], entries: Mapping[str, storage.Entry], storage_options: storage.Options
) -> Iterator[Unit]:
    for some in _cut(found):
        beside = [storage.replace_extension(file.url, extension) for file in some for extension in file.texts]
        etags = {file.url: file.entry.etag or storage.etag(file.url, storage_options) for file in some}
        etags |= {text: str(entries[text].etag) for text in beside if text in entries}
        source = storage.common_folder([storage.path_of(file.url).rpartition("/")[0] for file in some])
        yield Unit(some[0].url, storage.to_text(source), etags, some)


def _cut(found: Sequence[File]) -> Iterator[tuple[File, ...]]:
    some: list[File] = []
    for file in found:
        some.append(file)
        if len(some) == _MOST_FILES or xxhash.xxh3_64_intdigest(file.url.encode()) % _ABOUT_FILES == 0:
            yield tuple(some)
            some = []
    if some:
        yield tuple(some)
