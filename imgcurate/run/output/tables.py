"""The steps of a run from all that is computed of its images to what becomes of them: duplicates, decisions, shards or files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd

from imgcurate import fingerprint, flags, parts, schema, storage, vectors
from imgcurate.dedup.content.verbs import check_stored, exact_duplicates, perceptual_duplicates
from imgcurate.dedup.removal import remove
from imgcurate.dedup.result import Duplicates
from imgcurate.dedup.semantic.search import check, semantic_duplicates
from imgcurate.encoders.embed import columns_of
from imgcurate.parts import Part
from imgcurate.run.job import Job
from imgcurate.run.options import Limits, Options
from imgcurate.run.output import columns, files, write
from imgcurate.run.output import decide as deciding
from imgcurate.run.output.columns import HEADS, Sources
from imgcurate.run.state.folder import GRAPHS, WORK

_PAIR_COLUMNS = ["image_id", "duplicate_of", "similarity"]


class Pairs(NamedTuple):
    """The duplicates of one kind.

    Attributes
    ----------
    stage : str
    parts : list of Part
    urls : list of str
        Of the parts.
    n_clusters : int
        In how many clusters they were looked for.
    recall : dict or None
        Which share of the pairs was found, as `Duplicates.recall` estimates it; None where every image was compared with every other.
    key : str
        Of the search; the whole graph of semantic duplicates lies in the folder of this name, for other thresholds to be tried.
    """

    stage: str
    parts: list[Part]
    urls: list[str]
    n_clusters: int
    recall: dict[str, Any] | None
    key: str


def limits_of(job: Job, sources: Sequence[Sources]) -> Limits:
    """Return what images must pass: with the median side of those without an error, where that is asked for."""
    median = None
    if "odd_size" in job.options.drop:
        images = _frame(job, sources)
        with job.steps("finding the median side"):
            median = job.steps.watch(lambda: flags.median_of_sides(images[images["error"].isnull()]))
    return Limits(**job.options.of_limits(), median_side=median)


def find_duplicates(job: Job, stage: str, sources: Sequence[Sources], before: Sequence[Pairs], limits: Limits) -> Pairs:
    """Look for one kind of duplicates among what the limits and the kinds before leave."""
    options, table = job.options.of_stage(stage), job.place.table("duplicates")
    key = fingerprint.of(stage, options, _found_so_far(job, sources, before))
    there = parts.there(table, job.storage_options)
    first = there.get(_numbered(key, 0))
    if first is None:
        found = job.steps.watch(lambda: _search(job, stage, sources, before, limits))
        if stage == "semantic":
            job.place.remove_graphs(())
            graph = f"{job.place.url}/{WORK}/{GRAPHS}/{key}"
            job.steps.watch(lambda: found.save(graph, overwrite=True, storage_options=job.storage_options))
        recall = job.steps.watch(lambda: _recall(job, found))
        pairs = found.pairs[_PAIR_COLUMNS].to_delayed()
        task = dask.delayed(parts.write_part, pure=False)
        known = {"n_clusters": str(found.n_clusters), "n_parts": str(len(pairs)), "recall": json.dumps(recall)}
        tasks = [
            task(part, table, _numbered(key, number), job.storage_options, known) for number, part in enumerate(pairs)
        ]
        # The first last: where it is there, all are.
        written = job.steps.run(tasks[1:], len(tasks) - 1, shown=False) + job.steps.run(tasks[:1], 1, shown=False)
        job.steps.say(f"{stage} duplicates: {sum(part.rows for part in written):,} images")
        there |= {part.key: part for part in written}
        first = there[_numbered(key, 0)]
        if (work := _work(job, stage)) is not None:  # of which nothing more is needed
            shutil.rmtree(work, ignore_errors=True)
    else:
        job.steps.say(f"{stage} duplicates are found already")
    known = parts.read_metadata(f"{table}/{first.name}", job.storage_options)
    found_parts = [there[_numbered(key, number)] for number in range(int(known["n_parts"]))]
    urls = [f"{table}/{part.name}" for part in found_parts]
    # An earlier version did not ask.
    return Pairs(stage, found_parts, urls, int(known["n_clusters"]), json.loads(known.get("recall", "null")), key)


def _recall(job: Job, found: Duplicates) -> dict[str, Any] | None:
    """Estimate which share of the pairs was found, while their vectors are at hand."""
    if found.kind != "semantic" or found.n_clusters < 2 or job.options.exact:
        return None
    estimate = found.recall()._asdict()
    # JSON has no NaN, which it is where no image of the sample has a pair.
    return {name: None if value != value else value for name, value in estimate.items()}


def _numbered(key: str, number: int) -> str:
    return fingerprint.of(key, number)


def _work(job: Job, stage: str) -> str | None:
    """Return the folder for vectors or fingerprints that are too many for the workers' memory, where the run's folder is on a disk."""
    return f"{job.place.url}/{WORK}/{stage}" if storage.is_local(job.place.url) else None


def _search(job: Job, stage: str, sources: Sequence[Sources], before: Sequence[Pairs], limits: Limits) -> Duplicates:
    left = deciding.passing(_frame(job, sources), limits)
    for pairs in before:
        removed = parts.from_parts(pairs.urls, schema.empty(_PAIR_COLUMNS), job.storage_options)
        left = remove(left, removed, missing="ignore")
    options = {**job.options.of_stage(stage), "work": _work(job, stage)}
    if stage == "semantic":
        return semantic_duplicates(left, **options)
    verb = exact_duplicates if stage == "exact" else perceptual_duplicates
    return verb(left, storage_options=job.storage_options, **options)


def decide(job: Job, sources: Sequence[Sources], pairs: Sequence[Pairs], limits: Limits) -> list[deciding.Decided]:
    """Write the table of images: all that is known of each, and what becomes of it."""
    key = fingerprint.of("images", deciding.DECISIONS, deciding.KINDS, _found_so_far(job, sources, pairs))
    job.place.make_room("images.parquet", key)
    # In a worker's memory once, not in each task.
    twins = dask.delayed(deciding.gather_twins)(
        [(p.stage, url) for p in pairs for url in p.urls], job.storage_options
    ).persist()
    task = dask.delayed(deciding.write_decided, pure=False)
    table = f"{job.place.url}/images.parquet"

    def tasks() -> Iterator[Any]:
        for number, source in enumerate(sources):
            url = f"{table}/part.{number:05d}.parquet"
            yield task(source, twins, limits, url, key, job.like, job.storage_options)

    return job.steps.run(tasks(), len(sources))


def write_shards(
    job: Job, sources: Sequence[Sources], pairs: Sequence[Pairs], decided: Sequence[deciding.Decided]
) -> list[write.Written]:
    """Write the curated shards, and the table of them."""
    key = fingerprint.of("shards", _found_so_far(job, sources, pairs), job.options.samples_per_shard)
    job.place.make_room("shards", key)
    urls = [f"{job.place.url}/images.parquet/{part.name}" for part in decided]
    kept = [part.counts["kept"] for part in decided]
    records, folder = job.place.table("written"), f"{job.place.url}/shards"
    if storage.is_local(folder):
        os.makedirs(folder, exist_ok=True)
    task = dask.delayed(write.write, pure=False)
    plan = write.plan(urls, kept, job.options.samples_per_shard)
    tasks = (
        task(cuts, f"{folder}/{number:05d}.tar", records, key, job.storage_options) for number, cuts in enumerate(plan)
    )
    written = job.steps.run(tasks, sum(kept), unit="image", size=lambda shard: shard.samples)
    with storage.open_atomic(f"{job.place.url}/shards.parquet", job.storage_options) as file:
        parts.write_table(vectors.to_arrow(write.table_of(written)), file)
    return written


def write_files(
    job: Job, sources: Sequence[Sources], pairs: Sequence[Pairs], decided: Sequence[deciding.Decided]
) -> list[files.Written]:
    """Write the kept images as files, and the account of them."""
    key = fingerprint.of("files", _found_so_far(job, sources, pairs))
    job.place.make_room("files", key)
    urls = [f"{job.place.url}/images.parquet/{part.name}" for part in decided]
    # Ids of two shards or folders are never one file's; those of Parquet are what somebody has given.
    apart = job.noun != "Parquet file"
    siblings: dict[str, list[str]] = {}
    for source, url in zip(sources, urls, strict=True):
        siblings.setdefault(source.rows.url if apart else "", []).append(url)
    records = job.place.table("written")
    task = dask.delayed(files.write_files, pure=False)
    tasks = (
        task(url, siblings[source.rows.url if apart else ""], job.place.url, records, key, job.storage_options)
        for source, url in zip(sources, urls, strict=True)
    )
    kept = sum(part.counts["kept"] for part in decided)
    return job.steps.run(tasks, kept, unit="image", size=lambda part: part.samples)


def check_stages(options: Options) -> None:
    """Raise what the verbs would raise of the options, before anything is read."""
    meta = _meta(options, vectors.empty_on("pandas"))
    frame = dd.from_delayed([dask.delayed(meta)], meta=meta, verify_meta=False)
    for stage in options.dedup:
        if stage == "semantic":
            check(frame, **options.of_stage(stage))
        else:
            check_stored(frame, stage, **options.of_stage(stage))


def _found_so_far(job: Job, sources: Sequence[Sources], pairs: Sequence[Pairs]) -> str:
    """Return what stands for all images, what is known of them, and the duplicates among them: by content, wherever it lies."""
    images = [[source.rows.start, source.rows.stop, *map(parts.content_of, source.urls)] for source in sources]
    return fingerprint.of(
        job.options.of_limits(), images, [(found.stage, [part.content for part in found.parts]) for found in pairs]
    )


def _frame(job: Job, sources: Sequence[Sources]) -> Any:
    """Return all images as a frame, lazily."""
    meta = _meta(job.options, job.like)
    return dd.from_map(
        columns.read_rows,
        list(sources),
        like=job.like,
        storage_options=job.storage_options,
        meta=meta,
        enforce_metadata=False,
    )


def _meta(options: Options, like: Any) -> Any:
    """Return the meta of all that a run knows of an image before it decides."""
    scores = [HEADS[name].HEAD.column for name in options.heads]
    hashes = ["phash"] if options.hashed else []
    names = [*schema.SOURCE_COLUMNS, *columns_of(options.measure), *scores, *hashes, *options.flagged_by]
    return vectors.from_pandas(schema.empty(dict.fromkeys(names)), like)
