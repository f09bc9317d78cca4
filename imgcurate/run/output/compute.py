"""The first steps of a run: the images are listed, and columns computed of ranges of them, in parts of which those are made that are not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import dask

from imgcurate import encoders, parts
from imgcurate.parts import Part
from imgcurate.printable import printable
from imgcurate.run.inputs import Unit
from imgcurate.run.job import Job
from imgcurate.run.output import account, attempt, columns
from imgcurate.run.output.columns import Columns, Hashes, Make, Measures, Rows, Scores, Sources
from imgcurate.sources.references import References

_THREADS = 16


def list_inputs(job: Job) -> list[Part]:
    """List each unit of the inputs."""
    table = job.place.table("listed")
    there = parts.there(table, job.storage_options)
    sidecars = job.options.sidecars
    keys = [columns.listing_key(unit, job.versions[unit.url], sidecars) for unit in job.units]
    # Files that rows name and that could not be asked about may be there now; of those in folders no more is known than was before.
    again = job.retry and job.noun == "Parquet file"
    missing = [
        (unit, key)
        for unit, key in zip(job.units, keys, strict=True)
        if key not in there or (again and there[key].unread)
    ]
    _say_there(job, len(keys) - len(missing), len(keys), f"{job.unit_noun}s are listed")
    task = dask.delayed(columns.list_unit, pure=False)
    made = job.steps.run(
        (
            task(unit, sidecars, table, key, there[key].name if key in there else None, job.storage_options)
            for unit, key in missing
        ),
        len(missing),
        unit=job.unit_noun,
    )
    there |= {part.key: part for part in made}
    return [there[key] for key in keys]


def ranges_of(job: Job, listed: Sequence[Part]) -> list[Rows]:
    """Cut all units into ranges of rows, in order."""
    table = job.place.table("listed")

    def cut(unit: Unit, part: Part) -> list[Rows]:
        url, places = f"{table}/{part.name}", None
        if isinstance(unit.content, References):
            places = parts.read_part(url, None, columns.PLACES, job.storage_options)
        return columns.ranges(
            unit, job.versions[unit.url], url, part.rows, job.backend, job.options.sidecars.image, places
        )

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(chain.from_iterable(threads.map(cut, job.units, listed)))


def embed(job: Job, rows: Sequence[Rows]) -> list[Part]:
    """Make the columns of the model and the measures."""
    return _make(job, "columns", encoder_columns(job), rows, "embedded")


def encoder_columns(job: Job) -> Columns:
    """Return what makes the columns of the model and the measures."""
    return Columns(
        encoders.resolve(job.options.model, job.options.model_dir),
        job.models["encoder"]["fingerprint"],
        job.options.of_columns(),
        job.storage_options,
    )


def hash_images(job: Job, rows: Sequence[Rows]) -> list[Part]:
    """Make the perceptual hashes."""
    return _make(job, "hashes", Hashes(job.options.formats, job.options.timeout, job.storage_options), rows, "hashed")


def measure(job: Job, rows: Sequence[Rows]) -> list[Part]:
    """Make the measures that flags are made of."""
    options = job.options
    make = Measures(options.flagged_by, options.truncated, options.formats, options.timeout, job.storage_options)
    return _make(job, "measures", make, rows, "measured")


def score(job: Job, embedded: Sequence[Part]) -> list[Part]:
    """Make the scores that limits ask for."""
    known = {name: (job.models[name]["path"], job.models[name]["fingerprint"]) for name in job.options.heads}
    scores, table, read = Scores(known), job.place.table("scores"), job.place.table("columns")
    there = parts.there(table, job.storage_options)
    keys = [scores.key(part) for part in embedded]
    missing = [(part, key) for part, key in zip(embedded, keys, strict=True) if key not in there]
    task = dask.delayed(columns.score, pure=False)
    made = job.steps.run(
        (task(scores, f"{read}/{part.name}", table, key, job.like, job.storage_options) for part, key in missing),
        len(missing),
    )
    there |= {part.key: part for part in made}
    return [there[key] for key in keys]


def sources_of(job: Job, rows: Sequence[Rows], tables: Mapping[str, Sequence[Part]]) -> list[Sources]:
    """Return where all that is known of each range of rows lies."""
    computed = {
        job.place.table(name): tables[name] for name in ("columns", "scores", "hashes", "measures") if name in tables
    }
    urls = [[f"{table}/{part.name}" for part in made] for table, made in computed.items()]
    return [Sources(row, tuple(known)) for row, *known in zip(rows, *urls, strict=True)]


def _make(job: Job, table: str, make: Make, rows: Sequence[Rows], done: str) -> list[Part]:
    """Make a part of a table of each range of rows of which it is not there, or could not be read in full."""
    folder = job.place.table(table)
    there = parts.there(folder, job.storage_options)
    keys = [make.key(row) for row in rows]
    wanted = [
        (row, key) for row, key in zip(rows, keys, strict=True) if key not in there or (job.retry and there[key].unread)
    ]
    total = sum(row.stop - row.start for row in rows)
    left = sum(row.stop - row.start for row, _ in wanted)
    _say_there(job, total - left, total, f"images are {done}")
    of_wanted = {key for _, key in wanted}
    unread = sum(there[key].unread for key in keys if key not in of_wanted)
    most = job.options.most_unread(total)
    named = "files that the Parquet names" if job.noun == "Parquet file" else "shards"

    def check_unread(part: Part) -> None:
        nonlocal unread
        unread += part.unread
        if unread > most:
            raise OSError(
                f"{unread:,} of {total:,} images could not be read, and {most:,.0f} may: see whether the {named} are in reach and run the same "
                "command again, which reads them again, or allow a larger share (--max-read-errors)"
            )

    # Once on a worker: a user's function may hold a whole network.
    shared = dask.delayed(make, pure=False).persist() if wanted else None
    task = dask.delayed(attempt.make_part, pure=False)

    def tasks() -> Iterator[Any]:
        for row, key in wanted:
            replaced = there[key].name if key in there else None
            yield task(shared, row, folder, key, replaced, job.like, job.storage_options)

    made = job.steps.run(
        tasks(),
        left,
        unit="image",
        size=lambda part: part.rows,
        check=check_unread,
        name=lambda number: (
            f"images {wanted[number][0].start} to {wanted[number][0].stop - 1} of {printable(wanted[number][0].url)}"
        ),
    )
    there |= {part.key: part for part in made}
    found = [there[key] for key in keys]
    account.check_rows(job.steps.label, rows, [part.rows for part in found])
    return found


def _say_there(job: Job, there: int, total: int, what: str) -> None:
    if there:
        job.steps.say(f"{there:,} of {total:,} {what} already")
