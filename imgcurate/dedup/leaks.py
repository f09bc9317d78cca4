"""leaks(): images of one split that are also in another, by equal bytes, equal looks and embeddings at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from dask.delayed import Delayed

from imgcurate import schema, storage, vectors
from imgcurate.cluster import interruptible
from imgcurate.dedup import inputs
from imgcurate.dedup.content.verbs import check_stored, exact_duplicates, perceptual_duplicates
from imgcurate.dedup.frames import Prefix, as_part, id_dtype
from imgcurate.dedup.graph import across
from imgcurate.dedup.result import Duplicates, check_eps
from imgcurate.dedup.semantic.search import semantic_duplicates
from imgcurate.dedup.shown import with_places
from imgcurate.dedup.waves import wait
from imgcurate.printable import plural, quoted

if TYPE_CHECKING:
    from imgcurate.report.page import Page

#: What images are compared by, the strictest first.
KINDS = ("exact", "perceptual", "semantic")
#: More different values are of a column that names no splits.
_MOST_SPLITS = 100
#: What is found by each kind comes together by the ids' hashes, in at most so many ranges.
_MOST_RANGES = 64
_COLUMNS = ["id", "split", "duplicate_of", "other_split", "kind", "similarity"]
# Of what content is compared by, where a frame has it.
_CONTENT = ("url", "offset", "bytes", "digest", "phash", "etag")


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
        The column that says which split an image is in: text, whole numbers, booleans or a category, of up to 100 values.
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
        As the three verbs do; where an option is out of range; or where `split` has one value or more than 100.

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


class Leaks:
    """Images of one split that are in another one, too.

    Attributes
    ----------
    thresholds : dict of str to float
        Of each kind of likeness that was looked for, the eps that was in force; of perceptual hashes, a distance divided by 64.
    sizes : dict
        How many images of each split were compared.
    id_field : str
        The name of the id column.
    """

    def __init__(
        self,
        found: list[Delayed],
        *,
        like: Any,
        id_dtype: Any,
        split_dtype: Any,
        id_field: str,
        thresholds: dict[str, float],
        sizes: dict[Any, int],
        at_once: bool,
        images: Any,
    ) -> None:
        self.thresholds, self.sizes, self.id_field = thresholds, sizes, id_field
        self._found, self._like, self._at_once, self._images = found, like, at_once, images
        self._dtypes = {"id": id_dtype, "split": split_dtype, "duplicate_of": id_dtype, "other_split": split_dtype}

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {size:,}" for name, size in self.sizes.items())
        lazy = "at once" if self._at_once else "lazy"
        return (
            f"Leaks({plural(sum(self.sizes.values()), 'image')} compared: {splits}; by {', '.join(self.thresholds)} likeness; see .pairs ({lazy}), "
            ".counts(), .show() (at once))"
        )

    @property
    def pairs(self) -> Any:
        """One row an image and other split that it is in too, lazily where the frame was not in memory; by split.

        Its id, ``split``, ``duplicate_of`` (the image of the other split that is most like it, of equally like ones the lowest id), ``other_split``,
        ``kind`` (the strictest by which any of that split is like it: exact, perceptual or semantic) and ``similarity`` (1 of equal bytes,
        ``1 - distance / 64`` of hashes, the cosine of embeddings). So both images of a pair have a row, and
        ``remove(frame, pairs[pairs.split == "train"])`` drops those of one split.
        """
        host = pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in self._dtypes.items()})
        host = host.assign(kind=pd.Series([], dtype=schema.TEXT), similarity=pd.Series([], dtype=np.float32))
        host = host.rename(columns={"id": self.id_field})
        meta = vectors.from_pandas(host, self._like)
        parts = [dask.delayed(_as_part)(table, host, meta) for table in self._found]
        frame = dd.from_delayed(parts, meta=meta, verify_meta=False, prefix=Prefix(self, "leaks"))
        return frame.compute().reset_index(drop=True) if self._at_once else frame

    @interruptible
    def counts(self) -> pd.DataFrame:
        """Count the images of each split that are in each other one. Eager.

        Returns
        -------
        pandas.DataFrame
            One row for each two splits, both ways: ``split``, ``other_split``, a column for each kind of likeness, ``images`` (their sum) and ``share``
            (of the images of `split` that were compared).
        """
        of: Counter[tuple[Any, Any, int]] = Counter()
        for counted in dask.compute([dask.delayed(_count)(table) for table in self._found])[0]:
            of += counted
        rows = []
        for name, size in self.sizes.items():
            for other in self.sizes:
                if other != name:
                    by_kind = {kind: of[name, other, KINDS.index(kind)] for kind in self.thresholds}
                    images = sum(by_kind.values())
                    rows.append(
                        {"split": name, "other_split": other, **by_kind, "images": images, "share": images / size}
                    )
        return pd.DataFrame(rows)

    @interruptible
    def show(
        self,
        n: int = 6,
        *,
        images: Any = None,
        columns: str | Sequence[str] | None = None,
        size: int = 160,
        storage_options: storage.Options = None,
    ) -> Page:
        """Show pairs of images of two splits, those least alike first: the ones to doubt. Eager.

        Parameters
        ----------
        n : int, default 6
            How many pairs of each two splits.
        images, columns, size, storage_options
            As for `Duplicates.show`.

        Returns
        -------
        Page

        Raises
        ------
        ValueError, KeyError
            As `Duplicates.show`.
        """
        from imgcurate.report import leaks as page
        from imgcurate.report.pairs import Options

        return page.least_alike(self, n, Options(images, columns, size, storage_options))

    def least_alike(self, n: int) -> pd.DataFrame:
        """Return `n` pairs of each two splits, each pair once, those least alike first. Eager.

        Parameters
        ----------
        n : int

        Returns
        -------
        pandas.DataFrame
            Rows of `pairs`, by split and other split.
        """
        some = dask.compute([dask.delayed(_least_alike)(table, n) for table in self._found])[0]
        found = _least_alike(pa.concat_tables(some, promote_options="permissive"), n)
        return schema.to_pandas(_named(found).rename_columns([self.id_field, *_COLUMNS[1:]]))

    def __getstate__(self) -> dict[str, Any]:
        # What the frame is made of, or holds, is not this result's.
        return self.__dict__ | {"_images": None}


def _kinds(kinds: Any) -> list[str]:
    """Return what is asked for, the strictest first."""
    asked = [kinds] if isinstance(kinds, str) else list(kinds)
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
    at_once = False
    if "semantic" in kinds:
        columns = set(getattr(frame, "columns", ()))
        if columns and embedding_field not in columns:
            raise KeyError(
                f"leaks needs column {embedding_field!r}, which embed adds; kinds=['exact', 'perceptual'] compares without it"
            )
        needed = [split, *(name for name in _CONTENT if name in columns)]
        frame, at_once = inputs.as_frame(frame, "leaks", id_field, embedding_field, needed)
    else:
        schema.require(frame, [id_field, split], "leaks")
    kind = id_dtype(frame._meta[split])
    if not (
        pd.api.types.is_integer_dtype(kind) or pd.api.types.is_bool_dtype(kind) or pd.api.types.is_string_dtype(kind)
    ):
        raise TypeError(
            f"column {split!r} holds {kind}, and a split is named by text, a whole number, a boolean or a category"
        )
    frame = frame[frame[split].notnull()]
    return inputs.Given(frame.assign(**{split: frame[split].astype(kind)}), at_once)


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


def _named(table: pa.Table) -> pa.Table:
    """Return a table whose kinds are named."""
    at = table.schema.get_field_index("kind")
    return table.set_column(at, "kind", pa.array(KINDS).take(table["kind"].combine_chunks())).select(_COLUMNS)


def _as_part(table: pa.Table, like: pd.DataFrame, meta: Any) -> Any:
    return as_part(_named(table), _COLUMNS, like, meta)


def _count(table: pa.Table) -> Counter[tuple[Any, Any, int]]:
    """Return how many images of each split are in each other one, by kind."""
    counted = table.group_by(["split", "other_split", "kind"]).aggregate([([], "count_all")]).to_pylist()
    return Counter({(row["split"], row["other_split"], row["kind"]): row["count_all"] for row in counted})


def _least_alike(table: pa.Table, n: int) -> pa.Table:
    """Return `n` pairs of each two splits, each pair once, by splits, those least alike first."""
    # Most pairs have two rows, one each way: the lower split comes first.
    turn = pc.greater(table["split"], table["other_split"])
    ways = {"id": "duplicate_of", "split": "other_split", "duplicate_of": "id", "other_split": "split"}
    turned = {name: pc.if_else(turn, table[other], table[name]) for name, other in ways.items()}
    pairs = pa.table({**turned, "kind": table["kind"], "similarity": table["similarity"]})
    kinds = [("split", "ascending"), ("other_split", "ascending"), ("kind", "descending"), ("similarity", "ascending")]
    host = pairs.sort_by([*kinds, ("id", "ascending"), ("duplicate_of", "ascending")]).to_pandas()
    host = host[~host.duplicated(["id", "duplicate_of"])].groupby(["split", "other_split"], sort=False).head(n)
    return pa.Table.from_pandas(host, pairs.schema, preserve_index=False)
