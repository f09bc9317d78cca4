"""verify(): what a run wrote, read again and compared with what it says of itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import distributed
import pandas as pd
import xxhash

from imgcurate import parts, storage, tar
from imgcurate.cluster import connect
from imgcurate.run import write
from imgcurate.run.decide import digest_of
from imgcurate.run.folder import Folder, is_output
from imgcurate.run.steps import Steps
from imgcurate.run.write import Cut
from imgcurate.sinks.webdataset import keys_of
from imgcurate.sources.sidecars import images_of


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes
    ----------
    shards, samples : int
        How many were read.
    problems : tuple of str
        A sentence for each thing that is not as it was written; none where all is.
    """

    shards: int
    samples: int
    problems: tuple[str, ...]

    def __str__(self) -> str:
        what = f"{self.shards:,} shards with {self.samples:,} samples"
        return f"{what}: {len(self.problems):,} problems" if self.problems else f"{what}: all as they were written"


def verify(
    out: str | os.PathLike[str],
    *,
    storage_options: storage.Options = None,
    progress: bool = False,
    connect: Callable[[], distributed.Client] = connect,
) -> Verified:
    """Check the outputs of a run: shards against their digests, samples against the table of images, every kept image in one shard.

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
    manifest = Folder(url, storage_options).manifest()
    if manifest is None:
        raise FileNotFoundError(
            f"{out} holds no finished run: there is no manifest.json; run the same command again to finish it"
        )
    steps = Steps(connect, progress)
    table = parts.read_part(f"{url}/shards.parquet", None, None, storage_options)
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
    names = [name for name in storage.sizes_in(f"{url}/shards", storage_options) if name.endswith(".tar")]
    if any(found for _, _, found in counts):
        # What shards hold is told from all images; of those that can be read it would be told wrongly.
        return Verified(len(table), int(table["samples"].sum()), tuple(problems))
    problems += [f"shards/{name} was written by no run" for name in sorted(set(names) - set(table["shard"]))]
    plan = list(write.plan(images, [k for _, k, _ in counts], manifest["options"]["samples_per_shard"]))
    if len(plan) != len(table):
        problems.append(f"shards.parquet names {len(table):,} shards and the kept images make {len(plan):,}")
    with steps("checking shards"):
        check = dask.delayed(_check, pure=False)
        rows_of_table = table.itertuples(index=False)
        tasks = (
            check(cuts, f"{url}/shards/{row.shard}", row.samples, row.bytes, row.digest, storage_options)
            for cuts, row in zip(plan, rows_of_table, strict=False)
        )
        found = steps.run(tasks, min(len(plan), len(table)), unit="shard")
    problems += [problem for part in found for problem in part]
    return Verified(len(table), int(table["samples"].sum()), tuple(problems))


def _count(url: str, digest: str | None, storage_options: storage.Options) -> tuple[int, int, str | None]:
    name = "/".join(url.rsplit("/", 2)[-2:])
    try:
        part = parts.read_part(url, None, ["kept"], storage_options)
    except parts.DamagedPart as problem:
        return 0, 0, f"{name} is damaged ({problem.problem})"
    if "kept" not in part:
        return 0, 0, f"{name} is not what was written: it has no column 'kept'"
    found = digest_of(url, storage_options)
    changed = f"{name} is not what was written: its digest is {found} and was {digest}" if found != digest else None
    return len(part), int(part["kept"].sum()), changed


def _check(
    cuts: Sequence[Cut], url: str, samples: int, size: int, digest: str, storage_options: storage.Options
) -> list[str]:
    """Compare a shard with its digest and with the rows that it was written from."""
    name = f"shards/{url.rpartition('/')[2]}"
    try:
        rows = write.rows_of(cuts, storage_options)
        length, found = storage.size_of(url, storage_options), digest_of(url, storage_options)
        if length != size:
            return [f"{name} has {length:,} bytes and was written with {size:,}"]
        if found != digest:
            return [f"{name} is not what was written: its digest is {found} and was {digest}"]
        if len(rows) != samples:
            return [f"{name} holds {samples:,} samples and images.parquet has {len(rows):,} for it"]
        return _check_samples(rows, url, name, size, storage_options)
    except (OSError, ValueError) as problem:
        return [f"{name} cannot be read: {problem}"]


def _check_samples(rows: pd.DataFrame, url: str, name: str, size: int, storage_options: storage.Options) -> list[str]:
    problems = []
    with storage.open_sequential(url, storage_options) as file:
        found = tar.scan(file, size, url)
        expected = keys_of(rows)
        if [sample.key for sample in found] != expected:
            return [f"{name} holds other samples than images.parquet says"]
        digests: list[Any] = list(rows["digest"]) if "digest" in rows else [None] * len(rows)
        for sample, image_id, length, digest in zip(found, rows["image_id"], rows["bytes"], digests, strict=True):
            (image, *_) = images_of(sample)
            file.seek(image.offset)
            content = file.read(image.size)
            if len(content) != length or (not pd.isna(digest) and xxhash.xxh3_128_hexdigest(content) != digest):
                problems.append(f"{name}: the image of {image_id} is not the one that was looked at")
    return problems
