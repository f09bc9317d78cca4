"""Which images are kept, and why the others are not."""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from imgcurate import flags, parts, storage, vectors
from imgcurate.dedup import lookup
from imgcurate.run.options import Limits
from imgcurate.run.output.columns import Sources, read_rows

_TEXT = pd.ArrowDtype(pa.string())
_KEY, _COUNTS = b"imgcurate.key", b"imgcurate.counts"
#: The columns that deciding adds.
DECISIONS = ["duplicate_of", "similarity", "kept", "reason", "reason_kind"]
#: Why an image is not kept: the first of these that there is.
KINDS = ("error", *flags.MEASURES, "aesthetic", "nsfw", "exact", "perceptual", "semantic")
_NO_LIMITS = Limits()


class Decided(NamedTuple):
    """A part of the table of images that is there.

    Attributes
    ----------
    name : str
    counts : dict of str to int
        Of the images ``"read"`` and ``"kept"``, and of each of `KINDS`.
    digest : str
        xxh3_128 of the file.
    """

    name: str
    counts: dict[str, int]
    digest: str


def passing(frame: Any, limits: Limits) -> Any:
    """Return the rows that have no error and that the limits let through."""
    passed = frame["error"].isnull()
    for name, threshold in limits.drop:
        passed &= ~flags.verdict(frame, name, threshold, limits.median_side)
    if limits.min_aesthetic is not None:
        passed &= frame["aesthetic_score"] >= limits.min_aesthetic
    if limits.max_nsfw is not None:
        passed &= frame["nsfw_score"] < limits.max_nsfw
    return frame[passed]


class Twins(NamedTuple):
    """All duplicates of a run, in the memory of each worker process once: a partition looks its images up.

    Attributes
    ----------
    images : Lookup
        Their ids.
    table : pyarrow.Table
        A row for each: ``duplicate_of``, ``similarity``, ``stage``, and ``last``, the row of that image which names the one that is kept in the
        end: what an image duplicates may be removed by a later kind, as a duplicate of another.
    """

    images: lookup.Lookup
    table: pa.Table


def gather_twins(pairs: Sequence[tuple[str, str]], storage_options: storage.Options = None) -> Twins:
    """Return all duplicates, of the kinds in the order given.

    Parameters
    ----------
    pairs : sequence of (str, str)
        The kind and the URL of its part.
    """
    columns = ["image_id", "duplicate_of", "similarity"]
    tables = [vectors.to_arrow(parts.read_part(url, None, columns, storage_options)) for _, url in pairs]
    return link_twins([stage for stage, _ in pairs], tables)


def link_twins(stages: Sequence[str], tables: Sequence[pa.Table]) -> Twins:
    """Return the duplicates of some kinds, in that order; an image is one of one kind at most."""
    images = lookup.build([lookup.hashed(table["image_id"]) for table in tables])
    named = [lookup.plain(table["duplicate_of"]) for table in tables]
    similarity = [table["similarity"].cast(pa.float32()).combine_chunks() for table in tables]
    twin_of = pa.concat_arrays([pa.nulls(0, pa.large_string()), *named])
    if len(twin_of) != len(images.ids):
        raise ValueError(
            f"{len(twin_of) - len(images.ids):,} images are named twice as duplicates; remove .run/duplicates from the output and run again"
        )
    last = images.find(twin_of)
    last = np.where(last < 0, np.arange(len(last)), last)
    # Each round doubles how far along its chain an image looks.
    while not np.array_equal(further := last[last], last):
        last = further
    number = np.repeat(np.arange(len(tables), dtype=np.int8), [len(table) for table in tables])
    return Twins(
        images,
        pa.table(
            {
                "duplicate_of": twin_of,
                "similarity": pa.concat_arrays([pa.nulls(0, pa.float32()), *similarity]),
                "stage": pa.DictionaryArray.from_arrays(number, pa.array(stages, type=pa.string())),
                "last": last,
            }
        ),
    )


def write_decided(
    sources: Sources,
    twins: Twins,
    limits: Limits,
    url: str,
    key: str,
    like: Any,
    storage_options: storage.Options = None,
) -> Decided:
    """Decide on the rows of a part and write it into the table of images, unless it is there under this key."""
    name = url.rpartition("/")[2]
    there = _counts_of(url, key, storage_options)
    if there is not None:
        return Decided(name, there, storage.digest_of(url, storage_options))
    part = decide_part(read_rows(sources, like, None, storage_options), twins, limits)
    table = parts.to_table(part)
    counts = _count(part)
    known = {_KEY: key.encode(), _COUNTS: json.dumps(counts).encode()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **known})
    sink = pa.BufferOutputStream()
    parts.write_table(table, sink)
    content = memoryview(sink.getvalue())
    with storage.open_atomic(url, storage_options) as file:
        file.write(content)
    return Decided(name, counts, xxhash.xxh3_128_hexdigest(content))


def _counts_of(url: str, key: str, storage_options: storage.Options) -> dict[str, int] | None:
    try:
        with storage.open_input(url, storage_options) as file:
            metadata = pq.read_schema(file).metadata or {}
    except (OSError, ValueError):  # there is none, or its end is missing
        return None
    return json.loads(metadata[_COUNTS]) if metadata.get(_KEY) == key.encode() else None


def _count(part: Any) -> dict[str, int]:
    rows = vectors.to_pandas(part[["kept", "reason_kind"]])
    kinds = Counter(rows["reason_kind"].dropna())
    return {"read": len(rows), "kept": int(rows["kept"].sum()), **{kind: kinds[kind] for kind in KINDS}}


def decide_part(part: Any, twins: Twins, limits: Limits = _NO_LIMITS) -> Any:
    """Add to each row of a partition whether it is kept, and if not, why: the columns of `DECISIONS`."""
    measures = {name: None for flag, _ in limits.drop for name in (*flags.MEASURES[flag], "width", "height")}
    inputs = ["image_id", "error", "aesthetic_score", "nsfw_score", *measures]
    rows = vectors.to_pandas(part[[name for name in inputs if name in part.columns]])
    at = twins.images.find(lookup.plain(rows["image_id"]))
    found = twins.table.take(pa.array(at, mask=at < 0))
    kept = twins.table["duplicate_of"].take(found["last"]).to_pylist()
    similarities = found["similarity"].to_numpy()
    duplicates = [
        (None, None) if name is None else (stage, _likeness(twin, name, similarity, stage))
        for twin, name, similarity, stage in zip(
            found["duplicate_of"].to_pylist(), kept, similarities.tolist(), found["stage"].to_pylist(), strict=True
        )
    ]
    reasons = [
        _filtered(row, flagged, limits) or duplicate
        for row, flagged, duplicate in zip(
            rows.itertuples(index=False), _flagged(rows, limits), duplicates, strict=True
        )
    ]
    return part.assign(
        duplicate_of=vectors.to_series(kept, "duplicate_of", part),
        similarity=vectors.to_series(similarities, "similarity", part),
        kept=vectors.to_series([kind is None for kind, _ in reasons], "kept", part),
        reason=vectors.to_series([reason for _, reason in reasons], "reason", part),
        reason_kind=_categories([kind for kind, _ in reasons], part),
    )


def _categories(kinds: list[str | None], part: Any) -> Any:
    """Return kinds as a column of one set of categories in all partitions."""
    of_host = pd.Series(pd.Categorical(kinds, categories=pd.Index(KINDS, dtype=_TEXT)), name="reason_kind")
    column = vectors.from_pandas(of_host.to_frame(), part)["reason_kind"]
    column.index = part.index
    return column


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


def _flagged(rows: pd.DataFrame, limits: Limits) -> list[tuple[str, str] | None]:
    """Return of each image that has flags the first as its kind, and all of them as its reason."""
    found: list[tuple[str, str] | None] = [None] * len(rows)
    for name, threshold in limits.drop:
        values = flags.value(rows, name, limits.median_side)
        for at in np.flatnonzero(flags.verdict(rows, name, threshold, limits.median_side)):
            kind, before = found[at] or (name, "")
            reason = _flag(name, float(values.iloc[at]), threshold, limits.median_side)
            found[at] = kind, f"{before}, {reason}" if before else reason
    return found


def _flag(name: str, value: float, threshold: float, median_side: float | None) -> str:
    """Say why an image has a flag.

    Examples
    --------
    >>> _flag("blurry", 0.001234, 0.02, None), _flag("odd_size", 4.0001, 4.0, 512.0)
    ('blurry (sharpness / contrast ** 2 = 0.00123 < 0.02)', 'odd_size (ratio to the median side of 512 px = 4.0001 > 4)')
    """
    of = f" of {median_side:g} px" if name == "odd_size" else ""
    sign, beyond = (">", operator.gt) if name in flags.ABOVE else ("<", operator.lt)
    return (
        f"{name} ({flags.COMPARED[name]}{of} = {_apart(value, threshold, _significant, beyond)} {sign} {threshold:g})"
    )


def _significant(value: float, digits: int) -> str:
    return np.format_float_positional(value, precision=digits + 1, fractional=False, trim="-")


def _filtered(row: Any, flagged: tuple[str, str] | None, limits: Limits) -> tuple[str, str] | None:
    """Return kind and reason where it is not for another image that this one is not kept."""
    if not pd.isna(row.error):
        return "error", f"error: {row.error}"
    if flagged is not None:
        return flagged
    min_aesthetic, max_nsfw = limits.min_aesthetic, limits.max_nsfw
    if min_aesthetic is not None and row.aesthetic_score < min_aesthetic:
        return "aesthetic", f"aesthetic_score {_apart(row.aesthetic_score, min_aesthetic)} < {min_aesthetic:g}"
    if max_nsfw is not None and row.nsfw_score >= max_nsfw:
        return "nsfw", f"nsfw_score {_apart(row.nsfw_score, max_nsfw)} >= {max_nsfw:g}"
    return None


def _apart(
    score: float,
    limit: float,
    write: Callable[[float, int], str] = lambda score, digits: f"{score:.{digits}f}",
    beyond: Callable[[float, float], bool] = operator.lt,
) -> str:
    """Write a score with two digits, or with as many as show on which side of the limit it is.

    Examples
    --------
    >>> _apart(0.431, 0.5), _apart(0.4999, 0.5)
    ('0.43', '0.4999')
    """
    for digits in range(2, 9):
        text = write(score, digits)
        if beyond(float(text), limit) == beyond(score, limit):
            return text
    return repr(score)
