"""Images, and what stands beside them, as files: how they are named, and their bytes, compared on the way with what was looked at."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import xxhash

from imgcurate import fingerprint, images, storage, tar
from imgcurate.printable import printable
from imgcurate.sinks.copying import Row, Sources, checked, content_of, is_image, pieces_of, texts_beside

_THREADS = 16
# What is larger is not held in memory, of which each thread would need as much.
_MOST_HELD = 8 << 20
# A name has 255 bytes at most, and what begins it wants room too.
_MOST_SUFFIX, _MOST_EXTENSION = 100, 20


class Copied(NamedTuple):
    """A file that was written.

    Attributes
    ----------
    number : int
        Of the row that it is written for.
    target : str
        Its URL.
    is_image : bool
        Whether it is that row's image, and not what stands beside it.
    bytes : int
    digest : str
        xxh3_128 of its bytes.
    """

    number: int
    target: str
    is_image: bool
    bytes: int
    digest: str


class _File(NamedTuple):
    """A file to be written: for the row of which number, where, whether it is the image, and its bytes, block by block."""

    number: int
    target: str
    is_image: bool
    blocks: Iterable[bytes]


def name_of(image_id: Any, url: str, member: str | None) -> tuple[str, str]:
    """Return the name of an image's file in its folder, and its extension, apart.

    Examples
    --------
    >>> name_of("00000/cat", "00000.tar", "cat.left.JPG"), name_of("a/b.png", "/photos/a/b.png", None), name_of("../7", "7.png", None)
    (('00000/cat', '.left.JPG'), ('a/b', '.png'), ('7', '.png'))
    """
    key = tar.split_name(member) if member is not None else None
    extension = member[len(key[0]) :] if member is not None and key else os.path.splitext(url)[1]
    parts = [part for part in str(image_id).split("/") if part not in ("", ".", "..")]
    return "/".join(parts).removesuffix(extension) or "image", extension


def short(suffix: str) -> str:
    """Return what a file's name ends in, such that it can be one.

    Examples
    --------
    >>> short(".left.JPG"), len(short("." + "left" * 100 + ".jpg"))
    ('.left.JPG', 37)
    """
    if len(suffix.encode()) <= _MOST_SUFFIX:
        return suffix
    last = os.path.splitext(suffix)[1]
    return f".{fingerprint.of(suffix)}{last if len(last.encode()) <= _MOST_EXTENSION else ''}"


def copy_images(rows: Sequence[tuple[Row, str, str]], sources: Sources, overwrite: bool) -> Iterator[Copied]:
    """Write images and what stands beside them, and yield each file.

    Parameters
    ----------
    rows : sequence of (Row, str, str)
        Of each image also the URL of its file without the extension, and the extension, as `name_of` gives them.
    sources : Sources
    overwrite : bool
        Whether a text that is there and says something else is replaced; an image always is.
    """
    write = partial(_write_file, overwrite=overwrite, storage_options=sources.storage_options)
    # One after the other is read, and some are written at a time, because each waits for the disk or the store.
    return images.ahead(_files_of(rows, sources, write), write, _THREADS, _THREADS)


def _files_of(
    rows: Sequence[tuple[Row, str, str]], sources: Sources, write: Callable[[_File], Copied]
) -> Iterator[_File | Copied]:
    """Yield what is to be written, in memory, or where it is too large for that, written."""
    for number, (row, base, extension) in enumerate(rows):
        is_there = False
        for suffix, size, blocks in _contents(row, extension, sources):
            is_there |= suffix == extension
            file = _File(number, base + short(suffix), suffix == extension, blocks)
            yield write(file) if size > _MOST_HELD else file._replace(blocks=[b"".join(blocks)])
        if not is_there:
            raise row.changed("the image is not among the members of its sample")


def _contents(row: Row, extension: str, sources: Sources) -> Iterator[tuple[str, int, Iterable[bytes]]]:
    """Yield an image and what stands beside it: what each name ends in, its size, and its bytes, to be drawn before the next."""
    if row.member is None:
        yield extension, row.bytes, content_of(row, row.offset, row.bytes, sources, compared=True)
        for suffix, content in texts_beside(row, sources):
            yield suffix, len(content), [content]
        return
    key = row.member.removesuffix(extension)
    for piece in pieces_of(row, key, sources):
        for member in checked([piece], sources.open(row)):
            blocks = content_of(row, member.offset, member.size, sources, compared=is_image(member, row))
            yield member.name.removeprefix(key), member.size, blocks


def _write_file(file: _File | Copied, overwrite: bool, storage_options: storage.Options) -> Copied:
    if isinstance(file, Copied):
        return file
    size, digest = 0, xxhash.xxh3_128()
    is_kept = not file.is_image and not overwrite and storage.is_file(file.target, storage_options)
    opening = contextlib.nullcontext() if is_kept else storage.open_atomic(file.target, storage_options)
    with opening as opened:
        for block in file.blocks:
            size += len(block)
            digest.update(block)
            if opened is not None:
                opened.write(block)
    if is_kept and storage.digest_of(file.target, storage_options) != digest.hexdigest():
        raise FileExistsError(
            f"{printable(file.target)} is there and says something else; name another folder, or pass overwrite=True"
        )
    return Copied(*file[:3], size, digest.hexdigest())
