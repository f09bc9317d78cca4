"""verify(): what a run wrote, read again and compared with what it says of itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import dask
import distributed
import numpy as np
import pandas as pd
import xxhash

from imgcurate import parts, storage, tar
from imgcurate.cluster import connect
from imgcurate.printable import plural, printable
from imgcurate.run.output import files, write
from imgcurate.run.output.write import Cut
from imgcurate.run.state.folder import Folder, is_output
from imgcurate.run.tasks.steps import Steps
from imgcurate.sinks.webdataset import keys_of
from imgcurate.sources.sidecars import MAX_SIDECAR, chosen, images_of

_THREADS = 16


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes
    ----------
    shards, samples : int
        How many were read; of a run that wrote files, `samples` images and no shards.
    problems : tuple of str
        A sentence for each thing that is not as it was written; none where all is.
    files : int or None
        How many were read, where the run wrote files.
    """

    shards: int
    samples: int
    problems: tuple[str, ...]
    files: int | None = None

    def __str__(self) -> str:
        what = f"{plural(self.shards, 'shard')} with {plural(self.samples, 'sample')}"
        if self.files is not None:
            what = f"{plural(self.files, 'file')} of {plural(self.samples, 'image')}"
        return f"{what}: {plural(len(self.problems), 'problem') if self.problems else 'all as they were written'}"


def verify(
    out: str | os.PathLike[str],
    *,
    storage_options: storage.Options = None,
    progress: bool = False,
    connect: Callable[[], distributed.Client] = connect,
) -> Verified:
    """Check the outputs of a run: shards or files against their digests and the table of images, every kept image in one of them.

    Parameters
    ----------
    out : str or path
        The folder of a run that has finished.
    storage_options : dict, optional
        For the fsspec filesystem.
    progress : bool, default False
        Show on stderr how far it is.
    connect : callable
        Gives the client of the cluster that reads. Default: `imgcurate.connect`.

    Returns
    -------
    Verified

    Raises
    ------
    FileNotFoundError
        Where there is no finished run.

    Examples
    --------
    >>> print(verify("curated"))  # doctest: +SKIP
    3 shards with 2,999 samples: all as they were written
    """
    url = storage.absolute(out, storage_options).rstrip("/")
    manifest = Folder(url, storage_options).finished(out)
    steps = Steps(connect, progress)
    images = sorted(storage.sizes_in(f"{url}/images.parquet", storage_options))
    images = [f"{url}/images.parquet/{name}" for name in images if is_output("images.parquet", name)]
    with steps("checking images"):
        count = dask.delayed(_count, pure=False)
        known = manifest["parts"]
        tasks_of_images = (count(part, known.get(part.rpartition("/")[2]), storage_options) for part in images)
        counts = steps.run(tasks_of_images, len(images))
    problems = [found for _, _, found in counts if found]
    rows, kept = (sum(values) for values in ([n for n, _, _ in counts], [k for _, k, _ in counts]))
    for what, found, said in (("images", rows, "read"), ("kept images", kept, "kept")):
        if found != manifest["counts"][said]:
            problems.append(f"images.parquet holds {found:,} {what} and the manifest says {manifest['counts'][said]:,}")
    if manifest["options"].get("write") == "files":
        return _verify_files(url, images, manifest, steps, problems, storage_options)
    table = parts.read_part(f"{url}/shards.parquet", None, None, storage_options)
    names = [name for name in storage.sizes_in(f"{url}/shards", storage_options) if name.endswith(".tar")]
    if any(found for _, _, found in counts):
        # What shards hold is told from all images; of those that can be read it would be told wrongly.
        return Verified(len(table), int(table["samples"].sum()), tuple(problems))
    problems += [f"shards/{printable(name)} was written by no run" for name in sorted(set(names) - set(table["shard"]))]
    plan = list(write.plan(images, [k for _, k, _ in counts], manifest["options"]["samples_per_shard"]))
    if len(plan) != len(table):
        problems.append(f"shards.parquet names {plural(len(table), 'shard')} and the kept images make {len(plan):,}")
    # Of samples that have several images, which one it is that was looked at.
    image = chosen("txt", manifest["options"].get("image"), MAX_SIDECAR).image
    with steps("checking shards"):
        check = dask.delayed(_check, pure=False)
        rows_of_table = table.itertuples(index=False)
        tasks = (
            check(cuts, f"{url}/shards/{row.shard}", row.samples, row.bytes, row.digest, image, storage_options)
            for cuts, row in zip(plan, rows_of_table, strict=False)
        )
        found = steps.run(tasks, min(len(plan), len(table)), unit="shard")
    problems += [problem for part in found for problem in part]
    return Verified(len(table), int(table["samples"].sum()), tuple(problems))


def _verify_files(
    url: str,
    images: Sequence[str],
    manifest: Mapping[str, Any],
    steps: Steps,
    problems: list[str],
    storage_options: storage.Options,
) -> Verified:
    known = manifest["files"]
    missing = sorted(known.keys() - {image.rpartition("/")[2] for image in images})
    problems += [f"images.parquet/{name} is missing, of which files.parquet/{name} is the account" for name in missing]
    with steps("checking files"):
        check = dask.delayed(_check_files, pure=False)
        names = (image.rpartition("/")[2] for image in images)
        tasks = (check(image, url, known.get(name), storage_options) for image, name in zip(images, names, strict=True))
        found = steps.run(tasks, len(images))
    problems += [problem for part in found for problem in part.problems]
    if not any(part.names is None for part in found):
        # What is in no account is told from all of them.
        named = np.unique(np.concatenate([np.zeros(0, np.uint64), *(part.names for part in found)]))
        for there in files.names_below(f"{url}/{files.FOLDER}", storage_options):
            hashes = _hashes(there)
            known = np.searchsorted(named, hashes, side="right") > np.searchsorted(named, hashes)
            others = sorted(np.array(there, dtype=object)[~known])
            problems += [f"{files.FOLDER}/{printable(name)} was written by no run" for name in others]
    n_files = sum(len(part.names) for part in found if part.names is not None)
    return Verified(0, manifest["counts"]["kept"], tuple(problems), n_files)


class _Checked(NamedTuple):
    """What was found of a part of the account of files: hashes of the names, none where it cannot be read."""

    names: np.ndarray | None
    problems: list[str]


def _check_files(image: str, out: str, digest: str | None, storage_options: storage.Options) -> _Checked:
    """Compare a part of the account of files with its digest, with the images, and with the files."""
    name = f"{files.ACCOUNT}/{image.rpartition('/')[2]}"
    try:
        found = storage.digest_of(f"{out}/{name}", storage_options)
        if found != digest:
            return _Checked(None, [f"{name} is not what was written: its digest is {found} and was {digest}"])
        table = files.read_account(f"{out}/{name}", storage_options)
        rows = write.rows_of([Cut(image, 0, len(table))], storage_options)
    except (OSError, ValueError) as problem:
        return _Checked(None, [f"{name} cannot be read: {problem}"])
    names = _hashes(list(table["file"]))
    kept = table[table["image"]]
    if list(kept["image_id"]) != list(rows["image_id"]):
        return _Checked(names, [f"{name} names other images than images.parquet keeps"])
    problems = [
        f"{name}: the file of {printable(image_id)} is not the image that was looked at"
        for image_id, written, looked_at in zip(kept["image_id"], kept["digest"], rows["digest"], strict=True)
        if not pd.isna(looked_at) and written != looked_at
    ]
    folder = f"{out}/{files.FOLDER}"
    compare = partial(_compare_file, folder=folder, storage_options=storage_options)
    with ThreadPoolExecutor(_THREADS) as threads:
        said = threads.map(compare, table["file"], table["digest"])
        return _Checked(names, problems + [problem for problem in said if problem is not None])


def _compare_file(name: str, digest: str, folder: str, storage_options: storage.Options) -> str | None:
    shown = f"{files.FOLDER}/{printable(name)}"
    if not storage.lies_below(f"{folder}/{name}", [folder]):
        return f"{shown} leads out of the folder"
    try:
        found = storage.digest_of(f"{folder}/{name}", storage_options)
    except OSError as problem:
        return f"{shown} cannot be read: {problem.strerror or problem}"
    return None if found == digest else f"{shown} is not what was written: its digest is {found} and was {digest}"


def _hashes(names: list[str]) -> np.ndarray:
    return pd.util.hash_array(np.array(names, dtype=object), categorize=False)


def _count(url: str, digest: str | None, storage_options: storage.Options) -> tuple[int, int, str | None]:
    name = "/".join(url.rsplit("/", 2)[-2:])
    try:
        part = parts.read_part(url, None, ["kept"], storage_options)
    except parts.DamagedPart as problem:
        return 0, 0, f"{name} is damaged ({problem.problem})"
    if "kept" not in part:
        return 0, 0, f"{name} is not what was written: it has no column 'kept'"
    found = storage.digest_of(url, storage_options)
    changed = f"{name} is not what was written: its digest is {found} and was {digest}" if found != digest else None
    return len(part), int(part["kept"].sum()), changed


def _check(
    cuts: Sequence[Cut],
    url: str,
    samples: int,
    size: int,
    digest: str,
    image: str | None,
    storage_options: storage.Options,
) -> list[str]:
    """Compare a shard with its digest and with the rows that it was written from."""
    name = f"shards/{url.rpartition('/')[2]}"
    try:
        rows = write.rows_of(cuts, storage_options)
        length, found = storage.size_of(url, storage_options), storage.digest_of(url, storage_options)
        if length != size:
            return [f"{name} has {length:,} bytes and was written with {size:,}"]
        if found != digest:
            return [f"{name} is not what was written: its digest is {found} and was {digest}"]
        if len(rows) != samples:
            return [f"{name} holds {samples:,} samples and images.parquet has {len(rows):,} for it"]
        return _check_samples(rows, url, name, size, image, storage_options)
    except (OSError, ValueError) as problem:
        return [f"{name} cannot be read: {problem}"]


def _check_samples(
    rows: pd.DataFrame, url: str, name: str, size: int, extension: str | None, storage_options: storage.Options
) -> list[str]:
    problems = []
    with storage.open_sequential(url, storage_options) as file:
        found = tar.scan(file, size, url)
        expected = keys_of(rows)
        if [sample.key for sample in found] != expected:
            return [f"{name} holds other samples than images.parquet says"]
        digests: list[Any] = list(rows["digest"]) if "digest" in rows else [None] * len(rows)
        for sample, image_id, length, digest in zip(found, rows["image_id"], rows["bytes"], digests, strict=True):
            (image, *_) = images_of(sample, extension)
            file.seek(image.offset)
            content = file.read(image.size)
            if len(content) != length or (not pd.isna(digest) and xxhash.xxh3_128_hexdigest(content) != digest):
                problems.append(f"{name}: the image of {printable(image_id)} is not the one that was looked at")
    return problems
