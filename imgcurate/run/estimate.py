"""A run that is only thought of: what it would read and with which model, and how long at the rate of a hundred of its images. Nothing is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import dask
import distributed
import numpy as np
import pandas as pd
from dask.utils import format_bytes

from imgcurate import cluster, parts, storage, vectors
from imgcurate.printable import plural
from imgcurate.run.curate import check
from imgcurate.run.inputs import Unit, describe
from imgcurate.run.job import Job
from imgcurate.run.options import Options
from imgcurate.run.output import compute
from imgcurate.run.output.columns import PLACES, Columns, ranges
from imgcurate.run.state import folder, resume
from imgcurate.run.tasks.progress import duration
from imgcurate.run.tasks.steps import Steps
from imgcurate.sources.references import References
from imgcurate.sources.sidecars import Sidecars
from imgcurate.sources.webdataset import Shard

#: So many images are embedded to learn how long one takes.
MEASURED = 100
# Where there are more shards, how many images they hold is told from so many of them.
_MOST_LISTED = 16
_THREADS = 16


@dataclass(frozen=True)
class Estimate:
    """What a run would do.

    Attributes
    ----------
    inputs : str
        What the inputs were taken for.
    bytes : int or None
        Of all inputs; None where they are Parquet and the run is finished, for the files that it names are not looked at again.
    images : int
        In all inputs.
    counted : bool
        Whether every image was counted; else there are about so many.
    unusable : int
        Of those that were counted, how many are errors before an image is opened.
    embedded : int
        How many images an earlier start has embedded already, as far as they were counted.
    model : dict
        ``name``, ``kind``, ``dimension``, ``fingerprint`` and ``path``.
    options : dict
    finished : bool
        Whether the run is finished, so that there is nothing to do.
    out : str
    measured, workers : int
        How many images were embedded here to be timed, on how many workers; none where there is nothing to do.
    rate : float or None
        Images a second.
    seconds : float or None
        That embedding the others takes at this rate.
    """

    inputs: str
    bytes: int | None
    images: int
    counted: bool
    unusable: int
    embedded: int
    model: dict[str, Any]
    options: dict[str, Any]
    finished: bool
    out: str
    measured: int = 0
    workers: int = 0
    rate: float | None = None
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return asdict(self)

    def as_rows(self) -> Iterator[tuple[str, str]]:
        """Yield what a person is told: a name, and what is said of it."""
        about = "" if self.counted else "about "
        broken = f", {self.unusable:,} of them with an error" if self.unusable else ""
        size = "" if self.bytes is None else f", {format_bytes(self.bytes)}"
        yield "would read", f"{self.inputs}{size}: {about}{self.images:,} images{broken}"
        yield "model", f"{self.model['name']}: {self.model['dimension']:,} dimensions, {self.model['fingerprint'][:12]}"
        dedup, eps = self.options["dedup"], self.options["eps"]
        semantic = f", cosine >= 1 - {eps:g}" if "semantic" in dedup else ""
        yield "filters", ", ".join(self._limits()) or "none"
        yield "duplicates", f"{', '.join(dedup)}{semantic}" if dedup else "kept"
        if self.finished:
            yield "would write", f"nothing: {self.out} is finished"
            return
        vectors = 2 * 4 * self.model["dimension"] * self.images
        yield (
            "would write",
            f"{self.out}: at most {format_bytes(self.bytes or 0)} of samples, {format_bytes(vectors)} of embeddings",
        )
        if self.embedded:
            yield "there already", f"{about}{self.embedded:,} embeddings"
        if self.rate and self.seconds is not None:
            workers = plural(self.workers, "worker")
            measures = "measures, " if self.options["drop"] else ""
            yield "rate", f"{self.rate:,.3g} images a second ({self.measured} measured, {workers})"
            yield (
                "time",
                f"about {duration(self.seconds)} for embedding; {measures}scores, duplicates and writing come on top",
            )

    def _limits(self) -> Iterator[str]:
        for name, sign in (("min_aesthetic", "aesthetic_score >="), ("max_nsfw", "nsfw_score <")):
            if self.options[name] is not None:
                yield f"{sign} {self.options[name]:g}"
        if self.options["drop"]:
            yield f"not {' or '.join(self.options['drop'])}"


class _Looked(NamedTuple):
    """What the listing of a unit says, with some of its usable rows."""

    rows: int
    unusable: int
    bytes: int
    some: pd.DataFrame
    places: pd.DataFrame | None


def estimate(
    paths: storage.Paths,
    out: str | os.PathLike[str],
    options: Options,
    *,
    overwrite: bool = False,
    storage_options: storage.Options = None,
    progress: bool = False,
    connect: Callable[[], distributed.Client] = cluster.connect,
) -> Estimate:
    """Say what `imgcurate.run.curate.carry_out` would do, with the same arguments; raises what it would raise before it reads an image.

    Returns
    -------
    Estimate
    """
    units, models, options, _ = check(paths, out, options, storage_options)
    place = folder.Folder(folder.check_folder(out, units, overwrite, storage_options), storage_options)
    steps = Steps(connect, progress)
    job = Job(options, units, models, place, steps)
    sizes = _sizes(units, storage_options)
    known = Estimate(
        inputs=describe(units),
        bytes=None if job.noun == "Parquet file" else sum(sizes.values()),
        images=0,
        counted=True,
        unusable=0,
        embedded=0,
        model=models["encoder"],
        options=options.as_json(),
        finished=False,
        out=os.fspath(out),
    )
    manifest = resume.compare(job, overwrite, retry_errors=False)
    if manifest is not None:
        images = manifest["counts"]["read"]
        return replace(known, finished=True, images=images, embedded=images)
    known, some = _count(job, known, sizes)
    left = known.images - known.embedded
    if left <= 0 or some.empty:
        return known
    workers, seconds = _measure(job, some)
    rate = len(some) / seconds
    return replace(known, measured=len(some), workers=workers, rate=rate, seconds=left / rate)


def _count(job: Job, known: Estimate, sizes: Mapping[str, int]) -> tuple[Estimate, pd.DataFrame]:
    """Count the images of all units, or of some to tell those of all from; gives some of the usable ones too."""
    listed = _some(job.units)
    with job.steps("listing"):
        look, n = dask.delayed(_look, pure=False), -(-MEASURED // len(listed))
        tasks = (look(unit, job.options.sidecars, n, job.storage_options) for unit in listed)
        looked = job.steps.run(tasks, len(listed), unit=job.unit_noun)
    share = sum(sizes[unit.url] for unit in listed) / max(sum(sizes.values()), 1)
    images = round(sum(found.rows for found in looked) / max(share, 1e-9))
    counted = len(listed) == len(job.units)
    if job.noun == "folder":
        images, counted = sum(len(unit.content) for unit in job.units), True
    elif job.noun == "Parquet file":
        size = round(sum(found.bytes for found in looked) / max(share, 1e-9))
        known, images, counted = replace(known, bytes=size), sum(sizes.values()), True
    some = pd.concat([found.some for found in looked], ignore_index=True).iloc[:MEASURED]
    unusable = sum(found.unusable for found in looked)
    embedded = round(_embedded(job, listed, looked) / max(share, 1e-9))
    return replace(known, images=images, counted=counted, unusable=unusable, embedded=embedded), some


def _sizes(units: Sequence[Unit], storage_options: storage.Options) -> dict[str, int]:
    """Return the bytes of each unit, by its URL; of rows of Parquet, whose bytes lie elsewhere, how many there are."""

    def size(unit: Unit) -> int:
        if isinstance(unit.content, Shard):
            return storage.size_of(unit.url, storage_options)
        if isinstance(unit.content, References):
            return unit.content.rows
        return sum(file.entry.size or 0 for file in unit.content)

    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip((unit.url for unit in units), threads.map(size, units), strict=True))


def _some(units: Sequence[Unit]) -> list[Unit]:
    """Return some units, of all over the inputs: the first may be unlike the others."""
    at = np.unique(np.linspace(0, len(units) - 1, _MOST_LISTED).astype(int))
    return [units[number] for number in at]


def _look(unit: Unit, sidecars: Sidecars, n: int, storage_options: storage.Options) -> _Looked:
    rows = unit.list(storage_options, sidecars)
    usable = rows[rows["error"].isna()]
    at = np.unique(np.linspace(0, max(len(usable) - 1, 0), n).astype(int))
    size = int(usable["sample_size"].fillna(usable["bytes"]).sum())
    places = rows[PLACES] if isinstance(unit.content, References) else None
    return _Looked(len(rows), len(rows) - len(usable), size, usable.iloc[at[: len(usable)]], places)


def _embedded(job: Job, listed: Sequence[Unit], looked: Sequence[_Looked]) -> int:
    """Return how many of the images that were listed an earlier start has embedded."""
    make = compute.encoder_columns(job)
    there = parts.there(f"{job.place.url}/{folder.WORK}/columns", job.storage_options)
    return sum(
        there[key].rows
        for unit, found in zip(listed, looked, strict=True)
        for rows in ranges(
            unit, job.versions[unit.url], "", found.rows, job.backend, job.options.sidecars.image, found.places
        )
        if (key := make.key(rows)) in there
    )


def _measure(job: Job, some: pd.DataFrame) -> tuple[int, float]:
    """Embed some images on all workers at once; returns how many there are, and the seconds that it took with the model loaded."""
    client, steps, make = job.steps.client, job.steps, compute.encoder_columns(job)
    threads = client.nthreads()
    slots = [worker for worker, n in threads.items() for _ in range(n)]
    pieces = [piece for piece in np.array_split(np.arange(len(some)), len(slots)) if len(piece)]

    def embed(of_each: Callable[[np.ndarray], pd.DataFrame]) -> None:
        futures = [
            client.submit(_embed, make, of_each(piece), job.like, workers=[worker], pure=False)
            for worker, piece in zip(slots, pieces, strict=False)
        ]
        client.gather(futures)

    with steps("loading the model"):
        steps.watch(lambda: embed(lambda piece: some.iloc[piece[:1]]))
    with steps(f"embedding {len(some)} images"):
        started = time.perf_counter()
        steps.watch(lambda: embed(lambda piece: some.iloc[piece]))
        seconds = time.perf_counter() - started
    return len(set(slots[: len(pieces)])), seconds


def _embed(make: Columns, rows: pd.DataFrame, like: Any) -> int:
    return len(make(vectors.from_pandas(rows.reset_index(drop=True), like)))
