"""The account of a run: what became of the images of each source, checked at the end of each step, and the manifest."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from imgcurate import encoders, flags, weights
from imgcurate.cluster import backend
from imgcurate.dedup.result.thresholds import eps_of
from imgcurate.identity import Identity
from imgcurate.printable import printable
from imgcurate.run.job import Job
from imgcurate.run.options import Limits, Options
from imgcurate.run.output import files, write
from imgcurate.run.output.columns import HEADS, Rows
from imgcurate.run.output.decide import KINDS, Decided
from imgcurate.scores.head import check_dimension, check_encoder

_PACKAGES = ("imgcurate", "dask", "pandas", "pyarrow", "torch", "transformers", "scikit-learn", "pillow")
_GPU_PACKAGES = ("cudf-cu13", "cuml-cu13", "dask-cuda", "cupy-cuda13x")
#: What becomes of images, as a manifest counts it: of each outcome the counts that add up to it.
OUTCOMES = {
    "errors": ("error",),
    "flagged": tuple(flags.MEASURES),
    "below_aesthetic": ("aesthetic",),
    "above_nsfw": ("nsfw",),
    "duplicates": ("exact", "perceptual", "semantic"),
    "kept": ("kept",),
}


def models_of(options: Options) -> dict[str, Any]:
    """Say which weights will be used; raises where one is missing or does not fit, before any image is read."""
    used: dict[str, Any] = {"encoder": encoders.describe(options.model, options.model_dir)}
    for name in options.heads:
        module = HEADS[name]
        check_dimension(module.HEAD, used["encoder"]["dimension"])
        known = ("name", "kind", "dimension", "fingerprint")
        check_encoder(module.HEAD, Identity(**{key: used["encoder"][key] for key in known}))
        path = module.weights_path(options.model_dir)
        used[name] = {"path": str(path), "fingerprint": weights.fingerprint(path)}
    return used


def with_eps(options: Options, encoder: Mapping[str, Any]) -> tuple[Options, str]:
    """Return options with the threshold that is known of an encoder where none is asked for, and why it is that."""
    if options.eps is not None:
        return options, ""
    eps, why = eps_of(Identity(**{key: encoder[key] for key in ("name", "kind", "dimension", "fingerprint")}))
    return replace(options, eps=eps), why


def check_rows(step: str, rows: Sequence[Rows], given: Sequence[int]) -> None:
    """Raise where a step gave other rows of a unit than were listed; no input can cause that, a defect could."""
    for row, count in zip(rows, given, strict=True):
        if count != row.stop - row.start:
            raise RuntimeError(
                f"{printable(row.url)}: {row.stop - row.start} images were listed from {row.start} on, and {step} gave {count}"
            )


def by_source(rows: Sequence[Rows], decided: Sequence[Decided]) -> dict[str, dict[str, int]]:
    """Add up what became of the images of each source, checking that nothing is unaccounted for."""
    check_rows("deciding", rows, [part.counts["read"] for part in decided])
    sources: dict[str, dict[str, int]] = {}
    for row, part in zip(rows, decided, strict=True):
        known = sources.setdefault(row.source, dict.fromkeys(("read", *OUTCOMES), 0))
        for name, count in {"read": part.counts["read"], **_outcomes(part.counts)}.items():
            known[name] += count
    for url, known in sources.items():
        if known["read"] != sum(known[name] for name in OUTCOMES):
            raise RuntimeError(f"{printable(url)}: the account of its images does not add up: {known}")
    return sources


def _outcomes(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: sum(counts[kind] for kind in kinds) for name, kinds in OUTCOMES.items()}


def manifest_of(
    job: Job,
    given: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, int]],
    decided: Sequence[Decided],
    limits: Limits,
    semantic: Mapping[str, Any],
    written: Sequence[write.Written] | Sequence[files.Written],
) -> dict[str, Any]:
    """Return the manifest; raises where not as many images were written as are kept.

    Parameters
    ----------
    job : Job
    given : dict
        Where the run was told to read and write.
    sources : dict
        As `by_source` gives it.
    decided : sequence of Decided
        The parts of the table of images.
    limits : Limits
        What images had to pass.
    semantic : dict
        ``n_clusters``, in how many clusters semantic duplicates were looked for, and ``recall``, which share of the pairs was found; None where
        that was not asked for or is all.
    written : sequence of write.Written or files.Written
        What kept images have become.
    """
    totals = {name: sum(known[name] for known in sources.values()) for name in ("read", *OUTCOMES)}
    samples = sum(part.samples for part in written)
    of_files = [part for part in written if isinstance(part, files.Written)]
    n_written = (
        {"files": sum(part.files for part in of_files)} if job.options.write == "files" else {"shards": len(written)}
    )
    if samples != totals["kept"]:
        raise RuntimeError(f"{totals['kept']} images are kept and {samples} were written")
    return {
        "options": {**given, **job.options.as_json()},
        "versions": versions(),
        "backend": job.backend,
        "models": dict(job.models),
        **semantic,
        "flags": dict(limits.drop),
        # JSON has no NaN, which it is where no image has a size.
        "median_side": None if limits.median_side is None or math.isnan(limits.median_side) else limits.median_side,
        "counts": {**totals, **n_written},
        "reasons": {kind: sum(part.counts[kind] for part in decided) for kind in _kinds(limits)},
        "sources": {source: {"etag": etag, **sources[source]} for source, etag in job.sources.items()},
        "parts": {part.name: part.digest for part in decided},
        **({"files": {part.part: part.digest for part in of_files}} if job.options.write == "files" else {}),
        "seconds": dict(job.steps.seconds),
    }


def _kinds(limits: Limits) -> list[str]:
    """Return the kinds of reasons that a run tells apart: of the flags those that were asked for."""
    return [kind for kind in KINDS if kind not in flags.MEASURES or kind in dict(limits.drop)]


def versions() -> dict[str, str]:
    """Return the versions of what a run depends on."""
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *(_GPU_PACKAGES if backend() == "cudf" else ())):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
