"""leaks(): images of one split that are also in another, by equal bytes, equal looks and embeddings at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

import dask
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import schema, storage, vectors
from imgcurate.cluster import interruptible
from imgcurate.dedup.content.exact import PLACE
from imgcurate.dedup.content.verbs import check_stored, exact_duplicates, perceptual_duplicates
from imgcurate.dedup.dataframes import inputs
from imgcurate.dedup.dataframes.ids import id_dtype
from imgcurate.dedup.graph import across
from imgcurate.dedup.leaked import KINDS, Leaks
from imgcurate.dedup.result import Duplicates, check_eps
from imgcurate.dedup.result.shown import with_places
from imgcurate.dedup.semantic.search import semantic_duplicates
from imgcurate.dedup.work.waves import wait
from imgcurate.printable import quoted

# The columns of the answer beside the ids.
_FOUND = ("split", "duplicate_of", "other_split", "kind", "similarity")
#: More different values are of a column that names no splits.
_MOST_SPLITS = 100
#: What is found by each kind comes together by the ids' hashes, in at most so many ranges.
_MOST_RANGES = 64
# Of what content is compared by, where a frame has it.
_CONTENT = (*PLACE, "digest", "phash", "etag")
# What names splits; the rest is made text: Dask takes what `.str[0]` gives for floats until it is computed, and of whole numbers with nulls it is right.
_AS_THEY_ARE = (pd.api.types.is_string_dtype, pd.api.types.is_integer_dtype, pd.api.types.is_bool_dtype)


@interruptible
def leaks(
    frame: Any,
    split: str = "split",
    *,
    kinds: Sequence[str] = KINDS,
    eps: float | None = None,
    max_distance: int = 4,
    exact: bool = False,
    seed: int = 42,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
    storage_options: storage.Options = None,
    work: str | os.PathLike[str] | None = None,
) -> Leaks:
    """Find the images of one split, such as train, that are in another one, such as test, too.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame
        With `id_field`, `split` and what `kinds` compare. Images whose split is null are in none and are not compared.
    split : str
        The column that says which split an image is in, of up to 100 values; what is neither text, whole numbers, booleans nor a category is taken
        as text.
    kinds : sequence of {"exact", "perceptual", "semantic"}
        What is compared: stored bytes and perceptual hashes, as `exact_duplicates` and `perceptual_duplicates` do it (with ``url``, ``offset`` and
        ``bytes``, or a ``digest`` and a ``phash`` that are there already; of a frame in memory only beside embeddings), and embeddings, as
        `semantic_duplicates` does.
    eps : float, optional
        Embeddings are alike where their cosine is at least ``1 - eps``. Default: as for `semantic_duplicates`.
    max_distance : int
        In how many of 64 bits perceptual hashes may differ.
    exact : bool
        Miss no pair of embeddings; else, of more than about 100,000 images, some near the bounds of clusters may be missed.
    seed : int
        Of k-means.
    id_field, embedding_field : str
    storage_options : dict, optional
        For the fsspec filesystem.
    work : str or path, optional
        As for `semantic_duplicates`.

    Returns
    -------
    Leaks
        Its ``pairs`` name the images, its ``counts()`` say how many they are, and its ``show()`` shows them.

    Raises
    ------
    KeyError
        Where a column is missing.
    TypeError, ValueError
        As the three verbs do; where an option is out of range, or `split` has one value or more than 100.

    Notes
    -----
    Eager: the frame is computed once for each of the `kinds`, so persist it, or `checkpoint` it, first. What is found lies on the cluster and holds no
    vectors.

    Examples
    --------
    >>> frame = pd.DataFrame({"image_id": ["a", "b", "c"], "split": ["train", "train", "test"], "embedding": [[1, 0], [0, 1], [0.1, 1]]})
    >>> leaks(frame, kinds=["semantic"]).pairs[["image_id", "split", "duplicate_of", "other_split"]]
      image_id  split duplicate_of other_split
    0        c   test            b       train
    1        b  train            c        test
    """
    asked = _kinds(kinds)
    if eps is not None:
        check_eps(eps)
    inputs.refuse_name(id_field, "leaks", _FOUND)
    found_in = with_places(frame)
    rows, at_once = _rows(frame, split, asked, id_field, embedding_field)
    keep = [(split, "min")]
    if {"exact", "perceptual"} & set(asked):
        check_stored(rows, "perceptual", keep=keep, max_distance=max_distance)
    options: dict[str, Any] = {"keep": keep, "seed": seed, "id_field": id_field}
    content = {**options, "storage_options": storage_options}

    def look(kind: str) -> Duplicates:
        # Each search has a folder of its own, which another would take the place of.
        place = None if work is None else os.path.join(os.fspath(work), kind)
        if kind == "exact":
            return exact_duplicates(rows, **content, work=place)
        if kind == "perceptual":
            return perceptual_duplicates(rows, max_distance=max_distance, **content, work=place)
        least = None if eps is None else 1 - eps
        return semantic_duplicates(
            rows, eps=eps, min_similarity=least, exact=exact, embedding_field=embedding_field, work=place, **options
        )

    found: list[list[Delayed]] = []
    sizes: dict[Any, int] = {}
    said = {}
    for kind in asked:
        duplicates = look(kind)
        counted = _sizes(duplicates, split)
        sizes = {name: max(sizes.get(name, 0), counted.get(name, 0)) for name in sorted({*sizes, *counted})}
        answers = duplicates._graph.across(1 - duplicates.eps, pa.array(sorted(counted)), KINDS.index(kind))
        found.append(answers)
        said[kind] = duplicates.eps
    if len(sizes) == 1:
        raise ValueError(
            f"column {split!r} holds nothing but {next(iter(sizes))!r}: images leak from one split into another, and there is one"
        )
    return Leaks(
        _put_together(found),
        like=rows._meta,
        id_dtype=id_dtype(rows._meta[id_field]),
        split_dtype=id_dtype(rows._meta[split]),
        id_field=id_field,
        thresholds=said,
        sizes=sizes,
        at_once=at_once,
        images=found_in,
    )


def _kinds(kinds: Any) -> list[str]:
    """Return what is asked for, the strictest first."""
    asked = list(kinds) if isinstance(kinds, Collection) and not isinstance(kinds, str) else [kinds]
    unknown = [kind for kind in asked if kind not in KINDS]
    if unknown or not asked:
        raise ValueError(f"kinds={kinds!r}: give some of {', '.join(map(repr, KINDS))}")
    return [kind for kind in KINDS if kind in asked]


def _rows(frame: Any, split: str, kinds: Sequence[str], id_field: str, embedding_field: str) -> inputs.Given:
    """Return the images that are in a split, as a Dask dataframe whose splits have a plain type."""
    if isinstance(frame, tuple):
        raise TypeError(
            f"leaks takes a Dask, pandas or cuDF dataframe, not a {type(frame).__name__}: its column {split!r} says which split an image is in"
        )
    columns = getattr(frame, "columns", ())
    needed = {
        "exact": PLACE,
        "perceptual": ("phash",) if "phash" in columns else PLACE,
        "semantic": (embedding_field,),
    }
    missing = {kind: [name for name in needed[kind] if name not in columns] for kind in kinds}
    there = [kind for kind in kinds if not missing[kind]]
    if there and there != kinds:
        kind = next(kind for kind in kinds if missing[kind])
        raise KeyError(
            f"leaks needs column{'s' * (len(missing[kind]) > 1)} {', '.join(map(repr, missing[kind]))} for {kind} likeness; kinds={there} leaves that out"
        )
    at_once = False
    if "semantic" in kinds:
        known = [split, *(name for name in _CONTENT if name in columns)]
        frame, at_once = inputs.as_frame(frame, "leaks", id_field, embedding_field, known)
    else:
        schema.require(frame, [id_field, split], "leaks")
    frame = frame[frame[split].notnull()]
    dtype = id_dtype(frame._meta[split])
    if not any(is_a(dtype) for is_a in _AS_THEY_ARE):
        dtype = schema.TEXT
    if dtype != vectors.to_pandas(frame._meta[split]).dtype:
        frame = frame.assign(**{split: frame[split].astype(dtype)})
    return inputs.Given(frame, at_once)


def _sizes(found: Duplicates, split: str) -> dict[Any, int]:
    """Return how many of the compared images each split has."""
    tables = found._graph.tables
    counted: dict[Any, int] = {}
    for table in dask.compute([dask.delayed(across.count_splits)(table) for table in tables])[0]:
        for row in table.to_pylist():
            counted[row["split"]] = counted.get(row["split"], 0) + row["images"]
    if len(counted) > _MOST_SPLITS:
        raise ValueError(
            f"column {split!r} has {len(counted):,} values, such as {quoted(sorted(counted), 3)}: name the column that says which of a few splits an image "
            "is in"
        )
    return counted


def _put_together(found: Sequence[Sequence[Delayed]]) -> list[Delayed]:
    """Return what all kinds have found, of each image and other split the strictest."""
    answers = [answer for of_kind in found for answer in of_kind]
    n_ranges = min(max(map(len, found)), _MOST_RANGES)
    ranges: list[list[Any]] = [answers]
    if n_ranges > 1:
        cut = dask.delayed(across.cut, nout=n_ranges)
        ranges = [list(of_range) for of_range in zip(*[cut(answer, n_ranges) for answer in answers], strict=True)]
    put = dask.delayed(across.strictest)
    together = list(dask.persist(*[put(of_range) for of_range in ranges]))
    wait(together)
    return together
