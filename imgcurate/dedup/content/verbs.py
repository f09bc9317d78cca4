"""exact_duplicates() and perceptual_duplicates(): images whose stored bytes are equal, and images that look alike, without a model.

Each image is read once, for a digest of its bytes or the perceptual hash of its pixels; fingerprints, not images, come together in a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from numbers import Integral
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from imgcurate import phash, schema, storage, vectors
from imgcurate.cluster import interruptible
from imgcurate.dedup.content import digest, hamming
from imgcurate.dedup.graph import build, rank, rules
from imgcurate.dedup.graph.found import Found, copies_found
from imgcurate.dedup.result import Duplicates, id_dtype
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic import normalise

_PLACE = ["url", "offset", "size"]
# What else reading an image takes, where a frame has it.
_READ = ["error", "etag", "digest"]
_VERIFIED_AT_ONCE = 2000
_BITS = 64


@interruptible
def exact_duplicates(
    frame: Any,
    *,
    keep: rank.Keep = "id",
    seed: int = 42,
    id_field: str = "image_id",
    storage_options: storage.Options = None,
) -> Duplicates:
    """Find images whose stored bytes are equal.

    Parameters
    ----------
    frame : Dask DataFrame
        With `id_field`, ``url``, ``offset`` and ``size``. Rows with an ``error``, and those whose bytes cannot be read, are never compared and
        never removed. Images that have a ``digest`` already, of `embed` or `measure`, are not read to make one.
    keep : {"id", "random"} or list of (column, "min" | "max")
        Which of equal images stays: the one with the lowest id, one drawn by `seed`, or the best by columns.
    seed : int
    id_field : str
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    Duplicates
        All similarities are 1.

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError
        Where an option is out of range, ids are null or repeat, or ``digest`` holds something else than digests.
    imgcurate.tar.ShardChanged
        Where a file that is read to make digests is not what was listed.

    Notes
    -----
    Eager. Bytes are hashed by XXH3-128, and every image that shares a hash is read again and compared byte by byte with the one that it
    would be a copy of.

    Examples
    --------
    >>> found = exact_duplicates(read_webdataset("shards/*.tar"))  # doctest: +SKIP
    """
    check_stored(frame, "exact", keep=keep)
    tables, summaries, meta = _prints(frame, "exact_duplicates", keep, seed, id_field, storage_options, _PLACE)
    groups = dask.delayed(_equal)(tables)
    rows = groups.compute()
    verify = dask.delayed(_verified)
    found = [verify(tables, part, storage_options) for part in _chunks(rows)]
    return _duplicates(tables, summaries, found, meta, id_field, keep, "cover", 1e-6)


@interruptible
def perceptual_duplicates(
    frame: Any,
    *,
    max_distance: int = 4,
    keep: rank.Keep = "id",
    rule: rules.Rule = "cover",
    seed: int = 42,
    id_field: str = "image_id",
    storage_options: storage.Options = None,
) -> Duplicates:
    """Find images that look alike: whose 64-bit perceptual hashes differ in at most `max_distance` bits.

    Parameters
    ----------
    frame : Dask DataFrame
        With `id_field`, and ``phash`` (unsigned 64-bit integers), or ``url``, ``offset`` and ``size`` to decode images and hash them. Rows with
        an ``error``, and those that cannot be decoded, are never compared and never removed.
    max_distance : int
        0 to 63. Copies in another size or quality mostly differ in 0 to 4 bits; from about 10 on different images do, too.
    keep : {"id", "random"} or list of (column, "min" | "max")
        Which image of a group stays: the one with the lowest id, one drawn by `seed`, or the best by columns.
    rule : {"cover", "pointwise", "component"}
        As for `semantic_duplicates`.
    seed : int
    id_field : str
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    Duplicates
        A similarity is ``1 - distance / 64``, and an eps a distance divided by 64.

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError
        Where an option is out of range, or ids are null or repeat.
    imgcurate.tar.ShardChanged
        Where a file that is read is not what was listed, or an image not what its ``digest`` says.

    Notes
    -----
    Eager. No pair is missed: hashes are compared where they agree in a part, by the pigeonhole principle (see `hamming.pairs_within`). The hash
    is that of the package `imagehash`, after the EXIF orientation was applied and alpha put over white. Pictures of one colour share one hash
    whatever the colour, black apart.

    Examples
    --------
    >>> found = perceptual_duplicates(read_files("photos/"), max_distance=6)  # doctest: +SKIP
    """
    check_stored(frame, "perceptual", keep=keep, rule=rule, max_distance=max_distance)
    needed = ["phash"] if "phash" in getattr(frame, "columns", ()) else _PLACE
    tables, summaries, meta = _prints(frame, "perceptual_duplicates", keep, seed, id_field, storage_options, needed)
    found = [dask.delayed(_alike)(tables, int(max_distance))]
    return _duplicates(tables, summaries, found, meta, id_field, keep, rule, max(max_distance / _BITS, 1e-6))


def check_stored(frame: Any, stage: str, *, keep: rank.Keep, rule: rules.Rule = "cover", max_distance: int = 0) -> None:
    """Raise what ``exact_duplicates`` or ``perceptual_duplicates`` would raise of these arguments, before anything is read."""
    if not isinstance(max_distance, Integral) or isinstance(max_distance, bool) or not 0 <= max_distance < _BITS:
        raise ValueError(f"max_distance={max_distance!r} must be a whole number of bits, 0 to 63")
    if rule not in rules.RULES:
        raise ValueError(f"rule={rule!r} is unknown: give 'cover', 'pointwise' or 'component'")
    if keep in ("hard", "easy"):
        raise ValueError(
            f"keep={keep!r} ranks by distance from a centroid, and {stage}_duplicates has none: give 'id', 'random' or columns"
        )
    schema.require(frame, rank.keep_columns(keep), f"{stage}_duplicates")


def _prints(
    frame: Any,
    verb: str,
    keep: rank.Keep,
    seed: int,
    id_field: str,
    storage_options: storage.Options,
    needed: list[str],
) -> tuple[list[Any], list[normalise.Summary], Any]:
    """Read and fingerprint the frame, once: the tables stay on the cluster, the summaries come to the client."""
    keys = rank.keep_columns(keep)
    schema.require(frame, [id_field, *needed, *keys], verb)
    useful = _READ if "url" in needed else ["error"]
    columns = [id_field, *needed, *keys, *(name for name in useful if name in frame.columns)]
    task = dask.delayed(_print_part, nout=4)
    parts = frame[list(dict.fromkeys(columns))].to_delayed()
    outputs = dask.persist(
        *[output for part in parts for output in task(part, verb, id_field, keys, seed, storage_options)]
    )
    summaries = list(dask.compute(*outputs[1::4]))
    n_rows = sum(summary.n_rows for summary in summaries)
    frames.refuse_repeated_ids(outputs[2::4], outputs[3::4], n_rows, id_field)
    starts = accumulate((summary.n_compared for summary in summaries[:-1]), initial=0)
    number = dask.delayed(_numbered)
    return [number(table, start) for table, start in zip(outputs[0::4], starts, strict=True)], summaries, frame._meta


def _print_part(
    part: Any, verb: str, id_field: str, keys: Sequence[str], seed: int, storage_options: storage.Options
) -> tuple[pa.Table, normalise.Summary, np.ndarray, tuple[pa.Array, np.ndarray]]:
    place = [name for name in _PLACE if name in part.columns]
    host = vectors.to_arrow(part[list(dict.fromkeys([id_field, *keys, *place]))])
    ids = normalise.plain_ids(host[id_field], id_field)
    hashes = rank.hash_ids(ids, seed)
    if verb == "exact_duplicates":
        read = vectors.to_arrow(digest.digest_part(part, storage_options))
        known = read["digest"]
        prints = dict(zip(("digest_high", "digest_low"), digest.halves(known), strict=True))
    else:
        read = vectors.to_arrow(_hashed(part, storage_options))
        known = read["phash"]
        prints = {"phash": known}
    usable = pc.is_valid(known).to_numpy()
    if "error" in read.column_names:
        usable = usable & pc.is_null(read["error"]).to_numpy()
    table = pa.table(
        {
            "id": ids,
            "hash": hashes,
            **prints,
            **{f"key{number}": host[name] for number, name in enumerate(keys)},
            **{name: host[name] for name in place},
        }
    )
    summary = normalise.Summary(len(ids), int(usable.sum()), 0)
    return table.filter(pa.array(usable)), summary, hashes, (ids, hashes)


def _hashed(part: Any, storage_options: storage.Options) -> Any:
    """Return the perceptual hashes of a partition, and its errors, with those of reading where it has no hashes yet."""
    if "phash" not in part.columns:
        return phash.phash_part(part, storage_options)
    (kind,) = vectors.to_arrow(part[["phash"]]).schema.types
    if not pa.types.is_integer(kind) and len(part):
        raise TypeError(f"column 'phash' holds {kind}; hashes are unsigned 64-bit integers")
    return part[["phash", *(["error"] if "error" in part.columns else [])]]


def _numbered(table: pa.Table, start: int) -> pa.Table:
    """Give rows their numbers; all are in one cluster."""
    n = len(table)
    return (
        table.append_column("row", pa.array(np.arange(start, start + n)))
        .append_column("cluster", pa.array(np.zeros(n, np.int32)))
        .append_column("distance", pa.array(np.zeros(n, np.float32)))
    )


def _equal(tables: Sequence[pa.Table]) -> np.ndarray:
    """Return the numbers of the rows that share a digest with another, group by group: an array of (group, row)."""
    high, low, row = (
        np.concatenate([table[name].to_numpy() for table in tables]) for name in ("digest_high", "digest_low", "row")
    )
    order = np.lexsort((row, low, high))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)
    group = np.cumsum(new) - 1
    shared = np.bincount(group, minlength=1)[group] > 1 if len(group) else np.zeros(0, dtype=bool)
    return np.stack([group[shared], row[order][shared]], axis=1)


def _chunks(groups: np.ndarray) -> list[np.ndarray]:
    """Cut groups into tasks, each group whole."""
    if not len(groups):
        return []
    first = np.flatnonzero(np.diff(groups[:, 0], prepend=-1))
    number = np.repeat(first // _VERIFIED_AT_ONCE, np.diff(first, append=len(groups)))
    return np.split(groups, np.flatnonzero(np.diff(number)) + 1)


def _verified(tables: Sequence[pa.Table], groups: np.ndarray, storage_options: storage.Options) -> Found:
    """Return the copies among rows that share a digest, by comparing their bytes with the first of their group."""
    wanted = np.sort(groups[:, 1])
    places = pa.concat_tables(
        [_rows_of(table, wanted).select(["row", *_PLACE]) for table in tables], promote_options="permissive"
    ).to_pandas(types_mapper=pd.ArrowDtype)
    places = places.set_index("row")
    copies: list[np.ndarray] = []
    originals: list[np.ndarray] = []
    while len(groups):
        first = np.flatnonzero(np.diff(groups[:, 0], prepend=-1))
        original = np.repeat(groups[first, 1], np.diff(first, append=len(groups)))
        rest = groups[:, 1] != original
        groups, original = groups[rest], original[rest]
        same = digest.same_bytes(places.loc[groups[:, 1]], places.loc[original], storage_options)
        copies.append(groups[same, 1])
        originals.append(original[same])
        # What shares a digest by chance or by design may still have copies of its own.
        groups = groups[~same]
    return copies_found(np.concatenate(copies), np.concatenate(originals))


def _rows_of(table: pa.Table, wanted: np.ndarray) -> pa.Table:
    return table.filter(pa.array(np.isin(table["row"].to_numpy(), wanted)))


def _alike(tables: Sequence[pa.Table], max_distance: int) -> Found:
    hashes, row = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("phash", "row"))
    pairs = hamming.pairs_within(hashes.astype(np.uint64), max_distance)
    similarity = (1 - pairs.distance / _BITS).astype(np.float32)
    copies = copies_found(row[pairs.copies], row[pairs.originals])
    return copies._replace(left=row[pairs.left], right=row[pairs.right], similarity=similarity)


def _duplicates(
    tables: list[Any],
    summaries: list[normalise.Summary],
    found: list[Any],
    meta: Any,
    id_field: str,
    keep: rank.Keep,
    rule: rules.Rule,
    eps: float,
) -> Duplicates:
    n_compared = sum(summary.n_compared for summary in summaries)
    return Duplicates(
        build.build(tables, found, keep),
        like=meta,
        id_dtype=id_dtype(meta[id_field]),
        id_field=id_field,
        n_rows=sum(summary.n_rows for summary in summaries),
        n_compared=n_compared,
        n_clusters=min(1, n_compared),
        eps=eps,
        min_similarity=1 - eps,
        rule=rule,
        keep=keep,
    )
