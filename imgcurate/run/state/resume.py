"""Going on: what a run's folder holds, how it differs from what is asked for, and what of it is no longer needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from imgcurate import parts, storage
from imgcurate.parts import Part
from imgcurate.printable import plural, printable
from imgcurate.run.inputs import Unit
from imgcurate.run.job import Job
from imgcurate.run.options import Options, as_json
from imgcurate.run.output.columns import listing_key
from imgcurate.run.output.files import are_whole
from imgcurate.run.state.folder import REPORT, WORK, is_output

_DEFAULTS = {field.name: as_json(field.default) for field in fields(Options) if field.default is not MISSING}


def compare(job: Job, overwrite: bool, retry_errors: bool) -> dict[str, Any] | None:
    """Compare a run with the one that its folder holds, and say what is found.

    Returns
    -------
    dict or None
        The manifest, where the run has finished already.

    Raises
    ------
    FileExistsError
        Where it is another run and `overwrite` is false; names what differs.
    """
    before, now, manifest = job.place.record(), job.record(), job.place.manifest()
    if before is not None:
        differs, sources = differences(before, now), changed_sources(before, now)
        if sources:
            job.steps.say(f"{job.place.url}: since its run was started, {say_sources(sources, job.noun)}")
        if manifest is not None and not differs and not sources and not (retry_errors and _unread(job)):
            if before["format"] != now["format"]:
                job.steps.say(f"{job.place.url} was finished by an earlier version: its outputs are made again")
            elif _is_whole(job):
                job.steps.say(f"{job.place.url} is finished: there is nothing to do")
                return manifest
            else:
                job.steps.say(f"{job.place.url} was finished, but not all of its files are there: they are made again")
        if manifest is not None and sources:
            differs.append(say_sources(sources, job.noun))
        if differs and not overwrite:
            raise FileExistsError(
                f"{job.place.url} holds another run ({'; '.join(differs)}): name another folder, or replace its outputs with overwrite=True, "
                "which computes again only what depends on the difference"
            )
    elif manifest is not None and not overwrite:
        raise FileExistsError(
            f"{job.place.url} is not empty; name another folder, or replace the run that is there with overwrite=True"
        )
    return None


def begin(job: Job, retry_errors: bool) -> None:
    """Take note of a run in its folder."""
    # Of a finished run the images that could not be read stay errors, unless that is what it is called for.
    job.retry = job.place.manifest() is None or retry_errors
    # First, so that a stop right here does not leave the outputs of the one under the record of the other.
    job.place.remove("manifest.json")
    if job.place.has_report:
        job.place.remove(REPORT)
    job.place.write_json(f"{WORK}/run.json", job.record())


def distrust(job: Job, url: str) -> None:
    """Of a file that changed under the same size and time, or that rows of Parquet name, take note that what is known of it is not to be trusted."""
    for unit in _that_name(url, job):
        job.place.distrust(unit.url)
    try:
        now = storage.etag(url, job.storage_options)
    except OSError:
        return
    if any(unit.etags.get(url) == now for unit in job.units):
        job.place.distrust(url)


def _that_name(url: str, job: Job) -> Iterator[Unit]:
    """Yield the units of Parquet that have a row of a file."""
    if job.noun != "Parquet file":
        return
    table = job.place.table("listed")
    there = parts.there(table, job.storage_options)
    for unit in job.units:
        part = there.get(listing_key(unit, job.versions[unit.url], job.options.sidecars))
        if part is not None:
            urls = parts.read_part(f"{table}/{part.name}", None, ["url"], job.storage_options)["url"]
            if (urls == url).any():
                yield unit


def sweep(job: Job, used: Mapping[str, Sequence[Part]]) -> None:
    """Remove what a run did not use: parts of shards that were taken away, of other options and models, and what was left half-written."""
    for table, made in used.items():
        parts.remove_others(job.place.table(table), {part.name for part in made}, job.storage_options)
    job.place.remove_unfinished()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in which options and models two records differ: from what to what.

    Examples
    --------
    >>> differences({"options": {"eps": 0.1}, "models": {}}, {"options": {"eps": 0.2}, "models": {}})
    ['eps=0.1 there, eps=0.2 now']
    """
    found = [
        f"{name}={_short(_known(before['options'], name, value))} there, {name}={_short(value)} now"
        for name, value in now["options"].items()
        if _known(before["options"], name, value) != value
    ]
    for name, new in now["models"].items():
        old = before["models"].get(name)
        # Whether a head is wanted is said by its limit.
        if old is not None and old["fingerprint"] != new["fingerprint"]:
            what = "model" if name == "encoder" else f"{name} head"
            there, here = (f"{known['name']} ({known['fingerprint'][:12]})" for known in (old, new))
            found.append(f"the {what} {there} there, {here} now")
    return found


def changed_sources(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the sources that were ``"changed"``, ``"added"`` and ``"taken away"`` between two records.

    Examples
    --------
    >>> changed_sources({"sources": {"a": "1", "b": "1"}}, {"sources": {"a": "2", "c": "1"}})
    {'changed': ['a'], 'added': ['c'], 'taken away': ['b']}
    """
    old, new = before["sources"], now["sources"]
    found = {
        "changed": [url for url in new if url in old and new[url] != old[url]],
        "added": [url for url in new if url not in old],
        "taken away": [url for url in old if url not in new],
    }
    # The order of the sources is that of the images, and decides which of two equal ones stays.
    kept, now_kept = [url for url in old if url in new], [url for url in new if url in old]
    found["put into another place"] = [url for url, other in zip(now_kept, kept, strict=True) if url != other]
    return {what: urls for what, urls in found.items() if urls}


def say_sources(changes: Mapping[str, Sequence[str]], noun: str, named: int = 5) -> str:
    """Name the sources that changed.

    Examples
    --------
    >>> say_sources({"changed": ["a.tar"], "added": ["b.tar", "c.tar"]}, "shard")
    '1 shard changed (a.tar), 2 shards added (b.tar, c.tar)'
    """
    return ", ".join(
        f"{plural(len(urls), noun)} {what} ({', '.join(map(printable, urls[:named]))}{', ...' * (len(urls) > named)})"
        for what, urls in changes.items()
    )


def _unread(job: Job) -> bool:
    tables = (job.place.table(name) for name in ("columns", "hashes", "measures"))
    return any(part.unread for table in tables for part in parts.there(table, job.storage_options).values())


def _is_whole(job: Job) -> bool:
    """Tell whether the files of a finished run are there, by the sizes of what it wrote and the number of its other files."""
    place, manifest = job.place, job.place.manifest() or {}
    try:
        images = storage.sizes_in(f"{place.url}/images.parquet", job.storage_options)
        if {name for name in images if is_output("images.parquet", name)} != set(manifest.get("parts", ())):
            return False
        if job.options.write == "files":
            return are_whole(place.url, manifest.get("files", {}), job.storage_options)
        table = parts.read_part(f"{place.url}/shards.parquet", None, None, job.storage_options)
        shards = storage.sizes_in(f"{place.url}/shards", job.storage_options)
    except (OSError, ValueError):
        return False
    return all(shards.get(name) == size for name, size in zip(table["shard"], table["bytes"], strict=True))


def _known(options: Mapping[str, Any], name: str, value: Any) -> Any:
    """Return an option of a record; that of an earlier version, which lacks it, had the default."""
    return options.get(name, _DEFAULTS.get(name, value))


def _short(value: Any) -> str:
    """Return a value of an option as the command line has it.

    Examples
    --------
    >>> _short(["exact", "semantic"]), _short([["width", "max"], ["bytes", "min"]]), _short([]), _short(0.1)
    ('exact,semantic', 'width:max,bytes:min', "''", '0.1')
    """
    if isinstance(value, list | tuple):
        return (
            ",".join(":".join(map(str, item)) if isinstance(item, list | tuple) else str(item) for item in value)
            or "''"
        )
    return json.dumps(value) if isinstance(value, dict) else str(value)
