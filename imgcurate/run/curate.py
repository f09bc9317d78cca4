"""The whole job: read, embed, score, filter, find duplicates, remove them, write; and an account of every image.

Each step reads the tables of those before it and writes one of its own, part by part (see `imgcurate.parts`), into the folder of the run: a
job that was stopped goes on, and one that was changed makes again what depends on the change.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import distributed

from imgcurate import cluster, encoders, storage, tar
from imgcurate.dedup.graph.rank import Keep
from imgcurate.printable import printable
from imgcurate.run.inputs import Unit, check_sidecars, describe, find
from imgcurate.run.job import Job
from imgcurate.run.options import Options, dropped, measured, stages_of
from imgcurate.run.output import account, compute, tables
from imgcurate.run.state import folder, resume
from imgcurate.run.tasks.steps import Steps
from imgcurate.sources.parquet import absolute_roots
from imgcurate.sources.sidecars import MAX_SIDECAR


def curate(
    inputs: storage.Paths,
    out: str | os.PathLike[str],
    *,
    model: encoders.Model = "openai/clip-vit-large-patch14",
    model_dir: str | os.PathLike[str] | None = None,
    min_aesthetic: float | None = None,
    max_nsfw: float | None = None,
    drop: str | Sequence[str] = (),
    dedup: bool | str | Sequence[str] = ("semantic",),
    max_distance: int = 4,
    eps: float | None = None,
    n_clusters: int | None = None,
    probes: int = 2,
    exact: bool = False,
    keep: Keep = "largest",
    rule: str = "cover",
    write: str = "shards",
    samples_per_shard: int = 10_000,
    caption_from: str = "txt",
    image: str | None = None,
    max_sidecar: int = MAX_SIDECAR,
    roots: storage.Paths | None = None,
    batch_size: int | None = None,
    dtype: str = "auto",
    draft: bool = True,
    truncated: bool = False,
    formats: Sequence[str] = (),
    timeout: float | None = None,
    measure: bool | Sequence[str] = False,
    max_read_errors: float | None = None,
    retry_errors: bool = False,
    overwrite: bool = False,
    storage_options: storage.Options = None,
    report: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Curate tar shards, folders of images, or images that Parquet names, and say of every image what became of it and why.

    A run that was stopped goes on where it was when it is called again: finished parts are read, not redone, and the result is byte for byte that
    of an undisturbed run.

    Parameters
    ----------
    inputs : str, path, or list of these
        Tar shards, as for `read_webdataset`, or image files, as for `read_files`, or Parquet whose rows name images, as the ``images.parquet`` of a run,
        what `write_parquet` wrote, or a list of your own; what they are is told by their names. Of a row of Parquet ``url`` must be there, and
        is an absolute path or a URL. What else it has of image_id, member, offset, bytes, sample_offset, sample_size, etag, caption, metadata
        and text_encoding is kept, what it lacks of these is looked up in the file, and other columns are not taken: what an earlier run computed
        is computed anew, and images that it could not read or decode are tried again.
    out : str or path
        A folder that is empty, not there yet, or that of an earlier run. Gets ``shards/*.tar``, ``images.parquet/``, ``shards.parquet`` (samples,
        bytes and xxh3_128 digest of each shard that was written) and, last, ``manifest.json``; ``report.html``, a page with pictures about the
        run; and ``.run/``, which holds what was computed, to go on from, and may be removed.
    write : {"shards", "files"}, default "shards"
        What kept images become. As files each lies in ``files/`` under its ``image_id``, to which the extension of its source is added where it has
        none, with all that stands beside it under the same name; ``files.parquet/`` has image_id, file, image (or what stands beside it), bytes and
        digest of each. An image whose id cannot be a file's name, or not of it alone, lies in ``files/renamed/``.
    model, model_dir, batch_size, dtype, draft, truncated, formats, timeout, measure
        As for `embed`. `model_dir` also holds the weights of the scores.
    min_aesthetic : float, optional
        Keep images whose aesthetic score (0 to 1) is at least this. Default: not scored, not filtered.
    max_nsfw : float, optional
        Keep images whose NSFW score (0 to 1) is below this. Default: not scored, not filtered.
    drop : sequence of {"dark", "light", "blurry", "low_information", "greyscale", "odd_aspect", "odd_size"}, or a string of these with commas
        Drop images that `flag` would flag so, by its default thresholds; ``odd_size`` beside the median of the images without an error, which the
        manifest has. What they are made of is measured where `measure` does not give it, in a decoding of its own, so that vectors and what was
        embedded stay as they are. Default: none.
    dedup : sequence of {"exact", "perceptual", "semantic"}, or a string of these with commas, or bool
        Which duplicates to remove among what the filters keep, one kind after the other: equal bytes, pictures that look alike, embeddings
        that point the same way. True is semantic ones, False none.
    max_distance : int, default 4
        As for `perceptual_duplicates`.
    eps, n_clusters, probes, exact, keep, rule
        As for `semantic_duplicates`; the manifest has the eps that was taken. Among equal bytes and look-alikes, which have no centroid,
        ``keep="hard"`` and ``"easy"`` keep the lowest id.
    samples_per_shard : int, default 10_000
    caption_from, image : str
        As for `read_webdataset`; of tar shards only.
    max_sidecar : int, default 1 MiB
        As for `read_webdataset` and `read_files`.
    roots : path or list of these, optional
        As for `read_parquet`; of Parquet only.
    max_read_errors : float, optional
        The share of images whose bytes may be impossible to read. Where there are more, the store is taken to be at fault and the run stops.
        Default: a hundredth, and ten images of few.
    retry_errors : bool, default False
        Read images again that a finished run could not read. A run that was stopped always does.
    overwrite : bool, default False
        Where `out` holds a run of other options, models or shards, replace its outputs; what does not depend on the difference is not computed
        again. Also replaces the outputs of an earlier version, and writes into a folder that holds other things.
    storage_options : dict, optional
        For the fsspec filesystem of shards and output.
    report : bool, default True
        Write ``report.html``, of at most 5 MB and 400 small pictures however many images there are. Where that fails the run has not: what
        happened is said in a sentence, and ``imgcurate report`` makes the page from what the run wrote.
    progress : bool, default False
        Show on stderr how far the work is, and what an earlier run has left to go on from.

    Returns
    -------
    dict
        The manifest: ``options``, ``versions``, ``models`` with fingerprints, ``counts`` (read, errors, flagged, below_aesthetic,
        above_nsfw, duplicates, kept, and shards or files), ``reasons`` (how many images are not kept for each kind of reason: error, each flag of `drop`,
        aesthetic, nsfw, exact, perceptual, semantic; an image counts for the first that it has), ``flags`` (their thresholds), ``median_side``,
        ``n_clusters`` and ``recall`` (of semantic duplicates, as `Duplicates.recall` has it; None where all images were compared), ``sources`` (the counts for each shard or folder that was read), ``seconds`` a step.

    Raises
    ------
    FileExistsError
        Where `out` is not empty and not a run's, or is that of another run, and `overwrite` is false; names what differs.
    BlockingIOError
        Where another run is on in `out`.
    FileNotFoundError, KeyError, ValueError
        Where an input cannot be used; before any image is read, as far as it can be known.
    imgcurate.tar.ShardChanged
        Where a source changes while the run is on. Called again, the run lists that shard anew.
    OSError
        Where more images cannot be read than `max_read_errors` allows.

    Notes
    -----
    The column ``url`` of ``images.parquet`` and the manifest name sources of this machine by absolute paths, wherever the run is started from. A
    finished folder may be moved or copied: it verifies and can be read where it lies, and a run with the same sources goes on in it. Sources that
    were moved are other sources: the run names them as added and taken away, and with `overwrite` works on them anew.

    Examples
    --------
    >>> curate("shards/*.tar", "curated", min_aesthetic=0.5, eps=0.05)  # doctest: +SKIP
    """
    options = Options(
        model=model, model_dir=model_dir, min_aesthetic=min_aesthetic, max_nsfw=max_nsfw, dedup=stages_of(dedup),
        max_distance=max_distance, eps=eps, n_clusters=n_clusters, probes=probes, exact=exact, keep=keep, rule=rule,
        samples_per_shard=samples_per_shard, batch_size=batch_size, dtype=dtype, draft=draft, truncated=truncated,
        formats=tuple(formats), timeout=timeout, measure=measured(measure), max_read_errors=max_read_errors,
        write=write, caption_from=caption_from, image=image, max_sidecar=max_sidecar, drop=dropped(drop),
        roots=None if roots is None else absolute_roots(roots, storage_options),
    )  # fmt: skip
    return carry_out(
        inputs, out, options, retry_errors=retry_errors, overwrite=overwrite, storage_options=storage_options, report=report,
        progress=progress,
    )  # fmt: skip


def carry_out(
    paths: storage.Paths,
    out: str | os.PathLike[str],
    options: Options,
    *,
    retry_errors: bool = False,
    overwrite: bool = False,
    storage_options: storage.Options = None,
    report: bool = True,
    progress: bool = False,
    connect: Callable[[], distributed.Client] = cluster.connect,
) -> dict[str, Any]:
    """Do what `curate` does; `connect` is called when all that can be known without a cluster is known to be right."""
    units, models, options, why_eps = check(paths, out, options, storage_options)
    steps = Steps(connect, progress)
    with folder.open_folder(out, units, overwrite, storage_options) as place:
        if options.write == "files":
            place.refuse_others_files()
        job = Job(options, units, models, place, steps)
        steps.say(f"reading {describe(units)}")
        if why_eps and "semantic" in options.dedup:
            steps.say(f"eps={options.eps:g}, {why_eps}")
        finished = resume.compare(job, overwrite, retry_errors)
        if finished is not None:
            if report and not place.has_report:
                _report(job)
            return finished
        cluster.check_paths(steps.client, (url for unit in units for url in unit.readable), place.url)
        resume.begin(job, retry_errors)
        try:
            manifest = _go_on(job, {"inputs": _plain(paths), "out": os.fspath(out)})
        except tar.ShardChanged as problem:
            resume.distrust(job, problem.url)
            raise
        if report:
            _report(job)
        return manifest


class Checked(NamedTuple):
    """What is known of a run before there is a cluster: what it reads, its models, its options, and where their eps was taken from."""

    units: list[Unit]
    models: dict[str, Any]
    options: Options
    why_eps: str


def check(
    paths: storage.Paths, out: str | os.PathLike[str], options: Options, storage_options: storage.Options
) -> Checked:
    """Find what a run is to read and with which models; raises where any of it cannot be."""
    tables.check_stages(options)
    folder.refuse_inside(out, paths)
    units = find(paths, storage_options, options.roots)
    check_sidecars(options.sidecars, units)
    models = account.models_of(options)
    return Checked(units, models, *account.with_eps(options, models["encoder"]))


def _go_on(job: Job, given: dict[str, Any]) -> dict[str, Any]:
    """Do what is left to do, step by step; returns the manifest."""
    options, steps = job.options, job.steps
    with steps("reading"):
        listed = compute.list_inputs(job)
    rows = compute.ranges_of(job, listed)
    known: dict[str, list[Any]] = {"listed": listed}
    with steps("embedding"):
        known["columns"] = compute.embed(job, rows)
    if options.heads:
        with steps("scoring"):
            known["scores"] = compute.score(job, known["columns"])
    if options.hashed:
        with steps("hashing"):
            known["hashes"] = compute.hash_images(job, rows)
    if options.flagged_by:
        with steps("measuring"):
            known["measures"] = compute.measure(job, rows)
    sources = compute.sources_of(job, rows, known)
    limits = tables.limits_of(job, sources)
    pairs: list[tables.Pairs] = []
    for stage in options.dedup:
        with steps(f"{stage} duplicates"):
            pairs.append(tables.find_duplicates(job, stage, sources, pairs, limits))
    with steps("deciding"):
        decided = tables.decide(job, sources, pairs, limits)
        counts = account.by_source(rows, decided)
    with steps(f"writing {options.write}"):
        write = tables.write_files if options.write == "files" else tables.write_shards
        written = write(job, sources, pairs, decided)
    semantic = next((found for found in pairs if found.stage == "semantic"), None)
    search = {name: getattr(semantic, name, None) for name in ("n_clusters", "recall")}
    manifest = account.manifest_of(job, given, counts, decided, limits, search, written)
    known["duplicates"] = [part for found in pairs for part in found.parts]
    resume.sweep(job, known)
    job.place.remove_graphs([found.key for found in pairs])
    job.place.write_json("manifest.json", manifest)
    return manifest


def _report(job: Job) -> None:
    """Write the page about a run that has finished; where that fails, say so and no more."""
    from imgcurate.report.run import write_report

    try:
        with job.steps("writing the report"):
            graphs = job.place.graphs().values()
            write_report(job.place.url, job.place.report, graphs, job.steps.watch, job.storage_options)
    except Exception as problem:
        what = printable(f"{type(problem).__name__}: {problem}", 500)
        warnings.warn(
            f"the run has finished, but not its report ({what}): imgcurate report {job.place.url} makes it from what the run wrote",
            stacklevel=2,
        )
    else:
        job.steps.say(f"{job.place.report} written in {job.steps.seconds['writing the report']:.1f} s")


def _plain(paths: storage.Paths) -> str | list[str]:
    if isinstance(paths, str | os.PathLike):
        return os.fspath(paths)
    return [os.fspath(path) for path in paths]
