"""Kept images as files, with what stands beside them; and the account of these, which says part by part what need not be written again."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from imgcurate import fingerprint, images, parts, storage
from imgcurate.run.output import write
from imgcurate.run.output.write import Cut
from imgcurate.sinks.copies import Copied, copy_images, name_of, short
from imgcurate.sinks.copying import SIDECARS, Sources, rows_of
from imgcurate.sources.files import EXTENSIONS

#: The folder of the files, and that of their account.
FOLDER, ACCOUNT = "files", "files.parquet"
#: Where an image lies whose id cannot be the name of a file, or not of that one alone.
RENAMED = "renamed"

_KEY, _COUNTS = b"imgcurate.key", b"imgcurate.counts"
_ALL = 1 << 62
_THREADS = 16
# A file system takes 255 bytes a name, a store 1,024 a path.
_MOST_NAME, _MOST_PATH = 255, 700
# What a file ends in, no folder shall: a file system cannot hold both under one name.
_OF_FILES = (*EXTENSIONS, *SIDECARS)


class Written(NamedTuple):
    """The files of a part of the table of images, and the part of their account.

    Attributes
    ----------
    part : str
        The name of the account's part.
    samples, files, bytes : int
        Images, files (with what stands beside images), and their bytes in all.
    renamed : int
        Images that lie under another name than their id.
    digest : str
        xxh3_128 of the account's part.
    """

    part: str
    samples: int
    files: int
    bytes: int
    renamed: int
    digest: str


def names_of(rows: pd.DataFrame, ids: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the file of each image in its folder, without its extension, and the extension: no two images of a run are given one name.

    Parameters
    ----------
    rows : pandas.DataFrame
        Columns image_id, url, member.
    ids : sequence of str
        Of all images of the same shard; needed where `is_plain` says of one that it is not.

    Examples
    --------
    >>> rows = {"image_id": ["0/cat", "0/./cat", "0/./dog"], "url": "0.tar", "member": ["cat.jpg", "./cat.jpg", "./dog.jpg"]}
    >>> names_of(pd.DataFrame(rows), rows["image_id"])
    [('0/cat', '.jpg'), ('renamed/cat-93fec12200f01d2bf6b848c925cdd454', '.jpg'), ('0/dog', '.jpg')]
    """
    taken = Counter(_plain(image_id) for image_id in ids)
    columns = images.host_columns(rows, ["image_id", "url", "member"])
    found = []
    for image_id, url, member in zip(columns["image_id"], columns["url"], columns["member"], strict=True):
        base, extension = name_of(image_id, url, member)
        plain = _plain(image_id)
        is_taken = (plain != image_id and taken[plain] > 1) or any(stem in taken for stem in _stems(plain))
        if is_taken or not _fits(base, extension):
            last = base.rpartition("/")[2].replace("\0", "").encode()[:80].decode("utf-8", "ignore")
            base = f"{RENAMED}/{last}-{fingerprint.of(image_id)}"
        found.append((base, extension))
    return found


def is_plain(image_id: str) -> bool:
    """Tell whether an id is the path of a file whatever other ids there are: with no empty part, no dots for one, and no folder with a dot in it."""
    return _plain(image_id) == image_id and not any(_stems(image_id))


def write_files(
    part: str, siblings: Sequence[str], out: str, records: str, key: str, storage_options: storage.Options = None
) -> Written:
    """Write the kept images of a part of the table of images, unless they are there as their account says.

    Parameters
    ----------
    part : str
        Its URL.
    siblings : sequence of str
        The URLs of all parts that have images of the same shard or folder.
    out : str
        The folder of the run.
    records : str
        The folder in which it is noted what has been begun.
    key : str
        Of all the run's files.
    storage_options : dict, optional
    """
    name = part.rpartition("/")[2]
    account, mark = f"{out}/{ACCOUNT}/{name}", f"{records}/{name}.begun"
    there = _known(account, key, f"{out}/{FOLDER}", storage_options)
    if there is not None:
        return there
    rows = write.rows_of([Cut(part, 0, _ALL)], storage_options)
    ids: list[str] = []
    if not all(map(is_plain, rows["image_id"])):
        for url in siblings:
            ids += list(parts.read_part(url, None, ["image_id"], storage_options)["image_id"])
    names = names_of(rows, ids)
    # For who has to remove them, where this is stopped before there is an account.
    with storage.open_atomic(mark, storage_options) as file:
        file.write(json.dumps([base for base, _ in names]).encode())
    wanted = [
        (row, f"{out}/{FOLDER}/{base}", extension) for row, (base, extension) in zip(rows_of(rows), names, strict=True)
    ]
    with Sources(storage_options) as sources:
        try:
            copied = list(copy_images(wanted, sources, overwrite=True))
        finally:  # where it failed as well, for that may be why
            sources.refuse_changed()
    counts: dict[str, Any] = {
        "samples": len(rows),
        "files": len(copied),
        "bytes": sum(file.bytes for file in copied),
        "renamed": sum(base.startswith(f"{RENAMED}/") for base, _ in names),
    }
    table = _table_of(copied, rows["image_id"], f"{out}/{FOLDER}/")
    known = {_KEY: key.encode(), _COUNTS: json.dumps(counts).encode()}
    with storage.open_atomic(account, storage_options) as file:
        parts.write_table(table.replace_schema_metadata(known), file)
    storage.remove(mark, storage_options)
    return Written(name, **counts, digest=storage.digest_of(account, storage_options))


def read_account(url: str, storage_options: storage.Options = None) -> pd.DataFrame:
    """Return a part of the account of files: ``image_id``, ``file`` (where it lies in the folder), ``image`` (whether it is the image), ``bytes``, ``digest``."""
    return parts.read_part(url, None, None, storage_options)


def accounts_in(out: str, storage_options: storage.Options = None) -> list[str]:
    """Return the URLs of the parts of an account, in order."""
    names = sorted(storage.sizes_in(f"{out}/{ACCOUNT}", storage_options))
    return [f"{out}/{ACCOUNT}/{name}" for name in names if name.startswith("part.") and name.endswith(".parquet")]


def names_below(folder: str, storage_options: storage.Options = None) -> Iterator[list[str]]:
    """Yield the files of each folder in a folder, and of itself, by their path in it; of folders that hold none, nothing."""
    fs, path = storage.open_filesystem(folder, storage_options)
    for place, _, names in fs.walk(path):
        if names:
            below = place.removeprefix(path.rstrip("/")).strip("/")
            yield [f"{below}/{name}".lstrip("/") for name in names if name]


def are_whole(out: str, digests: Mapping[str, str], storage_options: storage.Options = None) -> bool:
    """Tell whether all parts of an account are there, and the files that they name, as large as they say."""
    accounts = accounts_in(out, storage_options)
    if {url.rpartition("/")[2] for url in accounts} != set(digests):
        return False
    return all(_are_there(read_account(url, storage_options), f"{out}/{FOLDER}", storage_options) for url in accounts)


def remove(out: str, records: str, storage_options: storage.Options = None) -> None:
    """Remove the files that a run wrote, by its account and by what it had begun, and nothing that somebody else put beside them."""
    folder = f"{out}/{FOLDER}"
    fs, _ = storage.open_filesystem(folder, storage_options)
    above: set[str] = set()
    for name in _names_written(out, records, storage_options):
        # An account may be a stranger's.
        if storage.lies_below(f"{folder}/{name}", [folder]):
            storage.remove(f"{folder}/{name}", storage_options)
            above |= {folder, *(f"{folder}/{name[:at]}" for at, sign in enumerate(name) if sign == "/")}
    for place in sorted(above, key=len, reverse=True):
        with contextlib.suppress(OSError):  # it holds something else, or is none, as in a store
            fs.rmdir(storage.open_filesystem(place, storage_options)[1])
    begun = (f"{records}/{name}" for name in storage.sizes_in(records, storage_options) if name.endswith(".begun"))
    for url in (*begun, *accounts_in(out, storage_options)):
        storage.remove(url, storage_options)
    with contextlib.suppress(OSError):
        fs.rmdir(storage.open_filesystem(f"{out}/{ACCOUNT}", storage_options)[1])


def _names_written(out: str, records: str, storage_options: storage.Options) -> Iterator[str]:
    for url in accounts_in(out, storage_options):
        with contextlib.suppress(parts.DamagedPart, KeyError):
            yield from read_account(url, storage_options)["file"]
    listings: dict[str, list[str]] = {}
    for name in storage.sizes_in(records, storage_options):
        if not name.endswith(".begun"):
            continue
        with contextlib.suppress(ValueError):
            for base in json.loads(storage.read_if_there(f"{records}/{name}", storage_options) or b"[]"):
                place, _, stem = base.rpartition("/")
                if place not in listings:
                    listings[place] = list(storage.sizes_in(f"{out}/{FOLDER}/{place}", storage_options))
                yield from (f"{place}/{file}".lstrip("/") for file in listings[place] if file.startswith(f"{stem}."))


def _plain(image_id: str) -> str:
    return "/".join(part for part in image_id.split("/") if part not in ("", ".", ".."))


def _stems(path: str) -> Iterator[str]:
    """Yield of each folder with a dot in its name the path before the dot: what stands beside an image of that key may have the folder's name.

    Examples
    --------
    >>> list(_stems("0/x.v1/deep.er/y")), list(_stems("0/x"))
    (['0/x', '0/x.v1/deep'], [])
    """
    folders = path.split("/")[:-1]
    for number, folder in enumerate(folders):
        if "." in folder:
            yield "/".join([*folders[:number], folder.partition(".")[0]])


def _fits(base: str, extension: str) -> bool:
    """Tell whether a path can be that of a file, and of this image alone."""
    *folders, last = base.split("/")
    return (
        base.partition("/")[0] != RENAMED
        and "\0" not in base
        and len((last + short(extension)).encode()) <= _MOST_NAME
        and len(base.encode()) <= _MOST_PATH
        and all(len(folder.encode()) <= _MOST_NAME and not folder.lower().endswith(_OF_FILES) for folder in folders)
    )


def _table_of(copied: Sequence[Copied], image_ids: pd.Series, folder: str) -> pa.Table:
    ids = list(image_ids)
    columns = {
        "image_id": pa.array([ids[file.number] for file in copied], pa.string()),
        "file": pa.array([file.target.removeprefix(folder) for file in copied], pa.string()),
        "image": pa.array([file.is_image for file in copied], pa.bool_()),
        "bytes": pa.array([file.bytes for file in copied], pa.int64()),
        "digest": pa.array([file.digest for file in copied], pa.string()),
    }
    return pa.table(columns)


def _known(account: str, key: str, folder: str, storage_options: storage.Options) -> Written | None:
    """Return what an account's part says, where it is of this key and its files are there."""
    try:
        known = parts.read_metadata(account, storage_options)
        if known.get(_KEY.decode()) != key:
            return None
        table = read_account(account, storage_options)
    except (FileNotFoundError, parts.DamagedPart):
        return None
    if not _are_there(table, folder, storage_options):
        return None
    counts: dict[str, Any] = json.loads(known[_COUNTS.decode()])
    return Written(account.rpartition("/")[2], **counts, digest=storage.digest_of(account, storage_options))


def _are_there(account: pd.DataFrame, folder: str, storage_options: storage.Options) -> bool:
    urls = [f"{folder}/{name}" for name in account["file"]]
    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = threads.map(lambda url: _size_of(url, storage_options), urls)
        return all(size == said for size, said in zip(sizes, account["bytes"], strict=True))


def _size_of(url: str, storage_options: storage.Options) -> int | None:
    try:
        return storage.size_of(url, storage_options)
    except FileNotFoundError:
        return None
