"""The whole job: read, embed, score, filter, find duplicates, remove them, write; and an account of every image."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import dask
import dask.dataframe as dd
import fsspec
import pandas as pd

from imgcurate import encoders, schema, storage, vectors, weights
from imgcurate.cluster import backend, connect
from imgcurate.dedup.rank import Keep
from imgcurate.dedup.removal import remove
from imgcurate.dedup.semantic import check, semantic_duplicates
from imgcurate.dedup.stored import check_stored, exact_duplicates, perceptual_duplicates
from imgcurate.encoders.embed import embed
from imgcurate.encoders.function import name_of
from imgcurate.identity import Identity
from imgcurate.progress import Steps
from imgcurate.scores import aesthetic, nsfw
from imgcurate.scores.head import check_dimension, check_encoder
from imgcurate.sinks.parquet import write_parts
from imgcurate.sinks.webdataset import check_samples_per_shard, write_shards
from imgcurate.sources.parquet import read_parquet
from imgcurate.sources.webdataset import read_webdataset

_PACKAGES = ("imgcurate", "dask", "pandas", "pyarrow", "torch", "transformers", "scikit-learn", "pillow")
_GPU_PACKAGES = ("cudf-cu13", "cuml-cu13", "dask-cuda", "cupy-cuda13x")
_OUTPUTS = ("shards", "images.parquet", "manifest.json")
_WORK = ".work"
_STAGES = ("exact", "perceptual", "semantic")
_TEXT = schema.empty(["image_id"]).dtypes["image_id"]
_NO_TWINS = schema.empty(["image_id", "duplicate_of", "similarity"]).assign(
    stage=pd.array([], dtype=_TEXT), kept_twin=pd.array([], dtype=_TEXT)
)
_DECISIONS = ["duplicate_of", "similarity", "kept", "reason"]
_FEWEST_ROWS, _MOST_ROWS = 32, 1000  # of a task


def curate(
    shards: storage.Paths,
    out: str | os.PathLike[str],
    *,
    model: encoders.Model = "openai/clip-vit-large-patch14",
    model_dir: str | os.PathLike[str] | None = None,
    min_aesthetic: float | None = None,
    max_nsfw: float | None = None,
    dedup: bool | str | Sequence[str] = ("semantic",),
    max_distance: int = 4,
    eps: float = 0.01,
    n_clusters: int | None = None,
    probes: int = 2,
    exact: bool = False,
    keep: Keep = "hard",
    rule: str = "cover",
    samples_per_shard: int = 10_000,
    batch_size: int | None = None,
    dtype: str = "auto",
    draft: bool = True,
    truncated: bool = False,
    measure: bool | Sequence[str] = False,
    overwrite: bool = False,
    storage_options: storage.Options = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Curate tar shards into new tar shards, and say of every image what became of it and why.

    Parameters
    ----------
    shards : str, path, or list of these
        As for `read_webdataset`.
    out : str or path
        A folder that is empty or not there yet. Gets ``shards/*.tar``, ``images.parquet/`` and ``manifest.json``.
    model, model_dir, batch_size, dtype, draft, truncated, measure
        As for `embed`. `model_dir` also holds the weights of the scores.
    min_aesthetic : float, optional
        Keep images whose aesthetic score (0 to 1) is at least this. Default: not scored, not filtered.
    max_nsfw : float, optional
        Keep images whose NSFW score (0 to 1) is below this. Default: not scored, not filtered.
    dedup : sequence of {"exact", "perceptual", "semantic"}, or a string of these with commas, or bool
        Which duplicates to remove among what the filters keep, one kind after the other: equal bytes, pictures that look alike, embeddings
        that point the same way. True is semantic ones, False none.
    max_distance : int, default 4
        As for `perceptual_duplicates`.
    eps, n_clusters, probes, exact, keep, rule
        As for `semantic_duplicates`. Among equal bytes and look-alikes, which have no centroid, ``keep="hard"`` and ``"easy"`` keep the lowest id.
    samples_per_shard : int, default 10_000
    overwrite : bool, default False
        Replace the outputs of an earlier run in `out`.
    storage_options : dict, optional
        For the fsspec filesystem of shards and output.
    progress : bool, default False
        Show on stderr how far the work is.

    Returns
    -------
    dict
        The manifest: ``options``, ``versions``, ``models`` with fingerprints, ``counts`` (read, errors, below_aesthetic,
        above_nsfw, duplicates, kept, shards), ``seconds`` a step.

    Raises
    ------
    FileExistsError
        Where `out` is not empty and `overwrite` is false.
    FileNotFoundError, KeyError, ValueError
        Where an input cannot be used; before any image is read, as far as it can be known.

    Examples
    --------
    >>> curate("shards/*.tar", "curated", min_aesthetic=0.5, eps=0.05)  # doctest: +SKIP
    """
    options = {name: value for name, value in locals().items() if name not in ("storage_options", "progress")}
    check_samples_per_shard(samples_per_shard)
    for name, value in (("min_aesthetic", min_aesthetic), ("max_nsfw", max_nsfw)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: scores go from 0 to 1")
    stages = stages_of(dedup)
    by_id: Keep = "id" if keep in ("hard", "easy") else keep
    known: dict[str, dict[str, Any]] = {
        "exact": {"keep": by_id},
        "perceptual": {"keep": by_id, "rule": rule, "max_distance": max_distance},
        "semantic": {
            "eps": eps,
            "n_clusters": n_clusters,
            "keep": keep,
            "rule": rule,
            "probes": probes,
            "exact": exact,
        },
    }
    search = {stage: known[stage] for stage in stages}
    options["dedup"] = list(stages)

    def add_columns(rows: Any) -> Any:
        rows = embed(
            rows, model, batch_size=batch_size, dtype=dtype, model_dir=model_dir, draft=draft, truncated=truncated,
            measure=measure, storage_options=storage_options,
        )  # fmt: skip
        if min_aesthetic is not None:
            rows = aesthetic.score_aesthetic(rows, model_dir=model_dir)
        return rows if max_nsfw is None else nsfw.score_nsfw(rows, model_dir=model_dir)

    client = connect()
    steps = Steps(client, progress)
    frame = read_webdataset(shards, storage_options=storage_options)
    models = _models(model, model_dir, min_aesthetic is not None, max_nsfw is not None)
    if "semantic" in search:
        check(add_columns(frame), **search["semantic"])
    for stage in ("exact", "perceptual"):
        if stage in search:
            check_stored(frame, stage, **search[stage])
    out = _claim(out, shards, overwrite, storage_options)
    work = f"{out}/{_WORK}"

    try:
        with steps("reading shards"):
            listed = steps.hold(frame)
            counts = list(listed.map_partitions(len).compute())
        scored = add_columns(_cut(listed, counts, workers=len(client.ncores())))
        with steps("embedding"), storage.staged_folder(work, ".parquet", storage_options=storage_options) as folder:
            steps.run(write_parts(scored, folder, storage_options), images=sum(counts), images_of=itemgetter(1))
        scored = read_parquet(work, storage_options=storage_options)

        with steps("finding duplicates" if search else "deciding"):
            decided, n_clusters_used = decide(
                scored,
                min_aesthetic=min_aesthetic,
                max_nsfw=max_nsfw,
                dedup=search,
                storage_options=storage_options,
            )
            target = f"{out}/images.parquet"
            with storage.staged_folder(target, ".parquet", storage_options=storage_options) as folder:
                steps.run(write_parts(decided, folder, storage_options))
        images = read_parquet(target, storage_options=storage_options)
        totals = count(images)

        with steps("writing shards"):
            target = f"{out}/shards"
            with storage.staged_folder(target, ".tar", storage_options=storage_options) as folder:
                tasks, _rows = write_shards(images[images["kept"]], folder, samples_per_shard, storage_options)
                written = steps.run(tasks, images=totals["kept"], images_of=itemgetter(1))
        totals["shards"] = len(written)
        _check_account(totals, listed=sum(counts), written=sum(samples for _, samples, _, _ in written))
    finally:
        fs, path = fsspec.core.url_to_fs(work, **(storage_options or {}))
        if fs.exists(path):
            fs.rm(path, recursive=True)

    manifest = {
        "options": {name: _as_json(value) for name, value in options.items()},
        "versions": _versions(),
        "backend": backend(),
        "models": models,
        "n_clusters": n_clusters_used,
        "counts": totals,
        "seconds": steps.seconds,
    }
    with storage.open_output(f"{out}/manifest.json", storage_options) as file:
        file.write(json.dumps(manifest, indent=2).encode() + b"\n")
    return manifest


def stages_of(dedup: bool | str | Sequence[str]) -> tuple[str, ...]:
    """Return which kinds of duplicates are looked for, in order.

    Examples
    --------
    >>> stages_of("semantic,exact"), stages_of(True), stages_of(False)
    (('exact', 'semantic'), ('semantic',), ())
    """
    if isinstance(dedup, bool):
        return ("semantic",) if dedup else ()
    asked = [name.strip() for name in dedup.split(",")] if isinstance(dedup, str) else list(dedup)
    unknown = [name for name in asked if name not in _STAGES]
    if unknown:
        raise ValueError(f"dedup={dedup!r}: {unknown[0]!r} is unknown; give some of {', '.join(_STAGES)}")
    return tuple(name for name in _STAGES if name in asked)


def decide(
    frame: Any,
    *,
    min_aesthetic: float | None,
    max_nsfw: float | None,
    dedup: dict[str, dict[str, Any]],
    storage_options: storage.Options = None,
) -> tuple[Any, int | None]:
    """Add to each image whether it is kept, and if not, why: columns duplicate_of, similarity, kept, reason.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
        Embedded and, where a limit is given, scored.
    min_aesthetic, max_nsfw : float or None
    dedup : dict
        For each kind of duplicates, in order, the arguments of its verb; each looks among what passes the limits and those before it.
    storage_options : dict, optional

    Returns
    -------
    frame : dask.dataframe.DataFrame
    n_clusters : int or None
        How many clusters semantic duplicates were looked for in.
    """
    passing = frame["error"].isnull()
    if min_aesthetic is not None:
        passing &= frame["aesthetic_score"] >= min_aesthetic
    if max_nsfw is not None:
        passing &= frame["nsfw_score"] < max_nsfw
    left, found, n_clusters = frame[passing], [], None
    for stage, options in dedup.items():
        if stage == "semantic":
            duplicates = semantic_duplicates(left, **options)
            n_clusters = duplicates.n_clusters
        else:
            verb = exact_duplicates if stage == "exact" else perceptual_duplicates
            duplicates = verb(left, storage_options=storage_options, **options)
        found.append((stage, duplicates))
        left = remove(left, duplicates, missing="ignore")
    twins: Any = _NO_TWINS
    if found:
        pairs = [
            duplicates.pairs[["image_id", "duplicate_of", "similarity"]].map_partitions(
                _with_stage, stage, meta=_NO_TWINS.drop(columns="kept_twin")
            )
            for stage, duplicates in found
        ]
        twins = dd.concat(pairs).repartition(npartitions=1).map_partitions(_name_kept, meta=_NO_TWINS)
    meta = frame._meta.assign(**dict(vectors.empty_like(frame._meta, _DECISIONS)))
    # Dask would align (shuffle) two frames whose partitions it cannot match: the twins go whole to every partition instead.
    decided = frame.map_partitions(_decide_part, twins, min_aesthetic, max_nsfw, meta=meta, align_dataframes=False)
    return decided, n_clusters


def _with_stage(pairs: Any, stage: str) -> pd.DataFrame:
    pairs = vectors.to_pandas(pairs).assign(stage=stage)
    return pairs.astype(
        {**dict.fromkeys(("image_id", "duplicate_of", "stage"), _TEXT), "similarity": "float32[pyarrow]"}
    )


def _name_kept(twins: pd.DataFrame) -> pd.DataFrame:
    """Add which image is kept in the end: what an image duplicates may be removed by a later kind, as a duplicate of another."""
    twin_of = pd.Series(twins["duplicate_of"].to_numpy(), index=twins["image_id"].to_numpy())
    kept = twin_of.copy()
    while len(later := kept[kept.isin(twin_of.index)]):
        kept.loc[later.index] = twin_of.loc[later.to_numpy()].to_numpy()
    return twins.assign(kept_twin=pd.array(kept.to_numpy(), dtype=_TEXT))


def count(images: Any) -> dict[str, int]:
    """Count the images of a decided frame by what became of them."""
    reason = images["reason"]
    totals = {
        "read": images["kept"].count(),
        "errors": reason.str.startswith("error: ").sum(),
        "below_aesthetic": reason.str.startswith("aesthetic_score ").sum(),
        "above_nsfw": reason.str.startswith("nsfw_score ").sum(),
        "duplicates": images["duplicate_of"].notnull().sum(),
        "kept": images["kept"].sum(),
    }
    return {name: int(total) for name, total in dask.compute(totals)[0].items()}


def _decide_part(part: Any, twins: pd.DataFrame, min_aesthetic: float | None, max_nsfw: float | None) -> Any:
    inputs = [name for name in ("image_id", "error", "aesthetic_score", "nsfw_score") if name in part.columns]
    rows = vectors.to_pandas(part[inputs])
    ids = rows["image_id"].astype(str)
    # All twins come to each partition; an index of all of them in each would take longer than anything else here.
    found = twins[twins["image_id"].isin(ids)].set_index("image_id").reindex(ids.to_numpy())
    kept = [None if pd.isna(name) else str(name) for name in found["kept_twin"]]
    similarities = found["similarity"].to_numpy(dtype="float32", na_value=float("nan"))
    likeness = [
        None if name is None else _likeness(twin, name, float(similarity), stage)
        for twin, name, similarity, stage in zip(found["duplicate_of"], kept, similarities, found["stage"], strict=True)
    ]
    reasons = [
        _reason(row, alike, min_aesthetic, max_nsfw)
        for row, alike in zip(rows.itertuples(index=False), likeness, strict=True)
    ]
    return part.assign(
        duplicate_of=vectors.to_series(kept, "duplicate_of", part),
        similarity=vectors.to_series(similarities, "similarity", part),
        kept=vectors.to_series([reason is None for reason in reasons], "kept", part),
        reason=vectors.to_series(reasons, "reason", part),
    )


def _likeness(twin: str, kept: str, similarity: float, stage: str) -> str:
    """Say what an image duplicates.

    Examples
    --------
    >>> _likeness("a", "a", 0.9944, "semantic"), _likeness("a", "b", 1.0, "exact")
    ('duplicate of a (0.994)', 'duplicate of a (same bytes), as which b is kept')
    """
    how = f"{similarity:.3f}" if similarity == similarity else "connected by others"
    if stage == "exact":
        how = "same bytes"
    elif stage == "perceptual" and similarity == similarity:
        how = f"looks alike: {round((1 - similarity) * 64)} of 64 bits differ"
    return f"duplicate of {twin} ({how})" + (f", as which {kept} is kept" if kept != twin else "")


def _reason(row: Any, alike: str | None, min_aesthetic: float | None, max_nsfw: float | None) -> str | None:
    if not pd.isna(row.error):
        return f"error: {row.error}"
    if min_aesthetic is not None and row.aesthetic_score < min_aesthetic:
        return f"aesthetic_score {_apart(row.aesthetic_score, min_aesthetic)} < {min_aesthetic:g}"
    if max_nsfw is not None and row.nsfw_score >= max_nsfw:
        return f"nsfw_score {_apart(row.nsfw_score, max_nsfw)} >= {max_nsfw:g}"
    return alike


def _apart(score: float, limit: float) -> str:
    """Write a score with two digits, or with as many as show on which side of the limit it is.

    Examples
    --------
    >>> _apart(0.431, 0.5), _apart(0.4999, 0.5)
    ('0.43', '0.4999')
    """
    for digits in range(2, 9):
        text = f"{score:.{digits}f}"
        if (float(text) < limit) == (score < limit):
            return text
    return repr(score)


def _cut(rows: Any, counts: list[int], workers: int) -> Any:
    """Cut a held frame of few large shards into parts small enough to keep all workers busy and to show progress.

    Dask's own repartition would shuffle the rows: the frame has no known divisions, and images would lose their order.
    """
    size = min(max(sum(counts) // (8 * workers), _FEWEST_ROWS), _MOST_ROWS)
    take = dask.delayed(_take_rows)
    parts = [
        take(part, start, start + size) if count > size else part
        for part, count in zip(rows.to_delayed(), counts, strict=True)
        for start in range(0, max(count, 1), size)
    ]
    return dd.from_delayed(parts, meta=rows._meta, verify_meta=False)


def _take_rows(part: Any, start: int, stop: int) -> Any:
    return part.iloc[start:stop]


def _check_account(totals: dict[str, int], listed: int, written: int) -> None:
    """Raise where an image is unaccounted for; no input can cause that, a defect could."""
    told = sum(totals[name] for name in ("errors", "below_aesthetic", "above_nsfw", "duplicates", "kept"))
    if not (totals["read"] == told == listed and totals["kept"] == written):
        raise RuntimeError(f"{listed} images were listed and {written} written, but the account is {totals}")


def _claim(out: str | os.PathLike[str], shards: storage.Paths, overwrite: bool, options: storage.Options) -> str:
    """See that the output folder can be used, and remove what an earlier run left in it."""
    fs, path = fsspec.core.url_to_fs(os.fspath(out), **(options or {}))
    if fs.isfile(path):
        raise FileExistsError(f"{out} is a file; name a folder for the output")
    url = storage.absolute(out, options).rstrip("/")
    inside = [shard for shard in storage.expand(shards, (".tar",), options) if shard.startswith(f"{url}/shards/")]
    if inside:
        raise FileExistsError(
            f"{inside[0]} is a source and lies where the output would be written; name another folder"
        )
    there = fs.ls(path, detail=False) if fs.exists(path) else []
    if there and not overwrite:
        raise FileExistsError(
            f"{out} is not empty; name another folder, or overwrite the run that is there (--overwrite)"
        )
    ours = [name for name in (*_OUTPUTS, _WORK) if fs.exists(f"{path}/{name}")]
    if ours == ["shards"]:  # a run writes images.parquet first, and may end before it writes the manifest
        raise FileExistsError(
            f"{out}/shards is not of an earlier run: no images.parquet lies beside it; name another folder"
        )
    for name in ours:
        fs.rm(f"{path}/{name}", recursive=True)
    fs.makedirs(path, exist_ok=True)
    return url


def _models(
    model: encoders.Model, model_dir: str | os.PathLike[str] | None, with_aesthetic: bool, with_nsfw: bool
) -> dict[str, Any]:
    """Say which weights will be used; raises where one is missing or does not fit, before any image is read."""
    used: dict[str, Any] = {"encoder": encoders.describe(model, model_dir)}
    for name, wanted, module in (("aesthetic", with_aesthetic, aesthetic), ("nsfw", with_nsfw, nsfw)):
        if wanted:
            check_dimension(module.HEAD, used["encoder"]["dimension"])
            known = ("name", "kind", "dimension", "fingerprint")
            check_encoder(module.HEAD, Identity(**{key: used["encoder"][key] for key in known}))
            path = module.weights_path(model_dir)
            used[name] = {"path": str(path), "fingerprint": weights.fingerprint(path)}
    return used


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *(_GPU_PACKAGES if backend() == "cudf" else ())):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _as_json(value: Any) -> Any:
    if callable(value):
        return name_of(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value
