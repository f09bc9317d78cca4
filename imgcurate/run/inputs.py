"""What a run reads: tar shards, image files or Parquet that names images, in units that are listed, and known by a version, as a whole."""

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
from imgcurate.sources import files, references, webdataset
from imgcurate.sources.files import File
from imgcurate.sources.references import References
from imgcurate.sources.sidecars import AS_USUAL, Sidecars
from imgcurate.sources.webdataset import Shard

# Image files are cut into units of about so many, and at most so many. Where a unit ends is told by the name of its last file, so that a
# file which is added or taken away changes one unit, and not all that come after it.
_ABOUT_FILES, _MOST_FILES = 512, 2048
# Of inputs, in a message.
_NAMED = 3


@dataclass(frozen=True)
class Unit:
    """A shard, or image files or rows of a Parquet file that follow one another.

    Attributes
    ----------
    url : str
        Of the shard, or of the first file; of rows, that of their file with the number of the first one.
    source : str
        What the account of a run names: the shard, the folder that holds the files, or the Parquet file.
    etags : dict of str to str
        The version of each file that is read (see `imgcurate.storage.etag`), texts beside images included. Of rows that of their file alone, under
        the unit's URL: the files that they name are asked about when they are listed.
    content : Shard, tuple of File, or References
    """

    url: str
    source: str
    etags: Mapping[str, str]
    content: Shard | tuple[File, ...] | References

    @property
    def readable(self) -> Iterator[str]:
        """The URLs of the shard, or of the files in which the listing found no problem, or of files that rows name in different folders."""
        if isinstance(self.content, Shard):
            yield self.url
        elif isinstance(self.content, References):
            yield from (self.content.url, *self.content.places)
        else:
            yield from (file.url for file in self.content if file.entry.problem is None)

    def version(self, doubts: Mapping[str, int]) -> str:
        """Return what the unit's bytes are known by; of `doubts`, how often a file had other bytes than its etag said."""
        known = {url: f"{etag}+{doubts[url]}" if url in doubts else etag for url, etag in self.etags.items()}
        return known[self.url] if len(known) == 1 else fingerprint.of(known)

    def key(self, version: str) -> tuple[str, ...]:
        """Return what the unit's rows depend on."""
        if isinstance(self.content, Shard):
            names = [self.content.name]
        elif isinstance(self.content, References):
            names = [str(self.content.rows), *(self.content.roots or ())]
        else:
            names = [file.image_id for file in self.content]
        return self.url, *names, version

    def list(self, storage_options: storage.Options, sidecars: Sidecars = AS_USUAL) -> pd.DataFrame:
        """List the unit as rows."""
        if isinstance(self.content, Shard):
            return webdataset.list_shards([self.content], storage_options, sidecars)
        if isinstance(self.content, References):
            return references.list_references(self.content, storage_options, sidecars.most)
        return files.list_files(self.content, storage_options, sidecars.most)


def find(
    urls: storage.Paths, storage_options: storage.Options = None, roots: tuple[str, ...] | None = None
) -> list[Unit]:
    """Find what a run is to read, in order.

    Parameters
    ----------
    urls : str, path, or list of these
        Shards, image files, Parquet files, folders of these, globs, braces. Parquet in a folder that holds shards or images is left out.
    storage_options : dict, optional
    roots : tuple of str, optional
        Folders in which the images of Parquet's rows must lie.

    Raises
    ------
    FileNotFoundError
        Where a pattern finds nothing.
    ValueError
        Where shards, images and Parquet are named together, or shards and images lie in one folder; or as `read_webdataset`, `read_files` and
        `imgcurate.sources.references.find_references`.
    """
    extensions = (*webdataset.EXTENSIONS, *files.EXTENSIONS, *references.EXTENSIONS)
    beside = tuple(files.TEXTS)
    expand = partial(
        storage.expand,
        extensions=extensions,
        storage_options=storage_options,
        beside=beside,
        contained=files.CONTAINED,
        called="tar shard, no image and no Parquet that names images",
    )
    found = expand(urls)
    images, tars = _images_and_tars(found)
    tables = {url: entry for url, entry in found.items() if _is_table(url)}
    if tables and not any(map(_is_other, found)):
        return [
            Unit(f"{rows.url}#{rows.first}", rows.url, {f"{rows.url}#{rows.first}": rows.etag}, rows)
            for rows in references.find_references(tables, storage_options, roots)
        ]
    if tables:
        _refuse_lists(urls, expand, found)
    if roots is not None:
        raise ValueError(
            "roots= says where the images of Parquet's rows may lie, and the inputs are no Parquet; leave it out"
        )
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
    shards = {url: entry for url, entry in found.items() if _is_other(url)}
    if not shards:
        raise FileNotFoundError(f"{printable(repr(urls))} names neither a tar shard nor an image")
    return [
        Unit(shard.url, shard.url, {shard.url: str(shard.etag)}, shard)
        for shard in webdataset.shards_of(shards, storage_options)
    ]


def _refuse_lists(
    urls: storage.Paths, expand: Callable[[str], Mapping[str, storage.Entry]], found: Mapping[str, storage.Entry]
) -> None:
    """Raise where Parquet is named beside shards or images, and does not just lie among them."""
    names = storage.patterns(urls)
    of_each = [found] if len(names) == 1 else map(_quietly(expand), names)
    lists = [
        name
        for name, its in zip(names, of_each, strict=True)
        if any(_is_table(url) and not (entry.amid and any(map(_is_other, its))) for url, entry in its.items())
    ]
    if lists:
        raise ValueError(
            f"a run reads Parquet that names images, or shards or images themselves, and of what was named there is Parquet in "
            f"{quoted(lists, _NAMED)} and others are shards or images: name the one or the other"
        )


def _is_table(url: str) -> bool:
    return url.lower().endswith(references.EXTENSIONS)


def _is_other(url: str) -> bool:
    """Tell whether a file is a shard or an image, or what is named as one."""
    return not url.lower().endswith((*references.EXTENSIONS, *files.TEXTS))


def _quietly(
    expand: Callable[[str], Mapping[str, storage.Entry]],
) -> Callable[[str], Mapping[str, storage.Entry]]:
    """Return `expand` without its warnings, which were shown already."""

    def quiet(name: str) -> Mapping[str, storage.Entry]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return expand(name)

    return quiet


def _images_and_tars(found: Iterable[str]) -> tuple[int, int]:
    names = [url.lower() for url in found]
    return sum(name.endswith(files.EXTENSIONS) for name in names), sum(name.endswith(".tar") for name in names)


def _of_several(
    urls: Sequence[str | os.PathLike[str]],
    expand: Callable[[str], Mapping[str, storage.Entry]],
    images: int,
    tars: int,
    storage_options: storage.Options,
) -> str:
    """Say which of several inputs hold shards and which images."""
    holders: tuple[list[str], list[str]] = [], []
    for url in urls:
        counts = _images_and_tars(_quietly(expand)(os.fspath(url)))
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
        what = "image files, whose captions are the .txt beside them"
        if isinstance(units[0].content, References):
            what = "Parquet, whose captions are its column 'caption'"
        raise ValueError(f"{name}= says how samples of tar shards are read, and the inputs are {what}; leave it out")


def describe(units: Sequence[Unit]) -> str:
    """Say what inputs were taken for.

    Examples
    --------
    >>> describe([Unit("a.tar", "a.tar", {"a.tar": "1"}, Shard("a.tar", "a"))])
    '1 tar shard'
    """
    if isinstance(units[0].content, Shard):
        return plural(len(units), "tar shard")
    if isinstance(units[0].content, References):
        return plural(len({unit.source for unit in units}), "Parquet file")
    return plural(sum(len(unit.content) for unit in units), "image file")


def noun(units: Sequence[Unit]) -> str:
    """Return what a source of these units is called.

    Examples
    --------
    >>> noun([Unit("a.tar", "a.tar", {"a.tar": "1"}, Shard("a.tar", "a"))])
    'shard'
    """
    if isinstance(units[0].content, Shard):
        return "shard"
    return "Parquet file" if isinstance(units[0].content, References) else "folder"


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
