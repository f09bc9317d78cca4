"""decontaminate(): the training images that are too close to an evaluation image. Every pair is compared.

The evaluation images are put into blocks of bounded size, which lie on the cluster; each is compared with each training partition in a task of
its own, and what is nearest of all blocks is found after.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import identity, schema, vectors
from imgcurate.cluster import interruptible
from imgcurate.dedup.dataframes import inputs
from imgcurate.dedup.dataframes.ids import id_dtype
from imgcurate.dedup.result import check_eps
from imgcurate.dedup.semantic import join, normalise

#: Of a block of evaluation images at most.
_ROWS, _BYTES = 32_768, 256 * 2**20
#: Comparisons of training partitions with a block, at most; training partitions are taken together where there would be more.
_COMPARISONS = 50_000


@interruptible
def decontaminate(
    train: Any,
    evaluation: Any,
    *,
    eps: float = 0.05,
    id_field: str = "image_id",
    embedding_field: str = "embedding",
) -> dd.DataFrame:
    """Name the training images that are too close to an evaluation image. Every pair is compared.

    Parameters
    ----------
    train : Dask, pandas or cuDF DataFrame, or pair of ids and a matrix of shape (n, d)
        With `id_field` and `embedding_field`.
    evaluation : as `train`
        It is computed at once, and its vectors stay in the cluster's memory while the result is there; it need not fit a worker's.
    eps : float
        Too close is a cosine of at least ``1 - eps``.
    id_field, embedding_field : str

    Returns
    -------
    Dask DataFrame, or pandas or cuDF DataFrame where `train` lies in memory
        Lazy with a Dask DataFrame: nothing of `train` is computed. One row a training image that is too close: its id, ``duplicate_of`` (the
        nearest evaluation image, of equally near ones the first) and ``similarity``. `remove` takes it.

    Raises
    ------
    KeyError, TypeError, ValueError
        As `semantic_duplicates` does.

    Notes
    -----
    A task holds a training partition and a block of at most 32,768 evaluation images or 256 MiB. There are as many comparisons as training
    partitions times blocks, but for more than 50,000, where each takes several training partitions.

    Examples
    --------
    >>> train = (["a", "b"], np.array([[1, 0], [0.6, 0.8]], dtype=np.float32))
    >>> decontaminate(train, (["e"], np.array([[0.6, 0.79]], dtype=np.float32)))[["image_id", "duplicate_of"]]
      image_id duplicate_of
    0        b            e
    """
    check_eps(eps)
    train, at_once = inputs.as_frame(train, "decontaminate", id_field, embedding_field)
    evaluation, _ = inputs.as_frame(evaluation, "decontaminate", id_field, embedding_field, where=" (evaluation)")
    whole = _evaluation(evaluation, id_field, embedding_field)
    meta = pd.DataFrame(
        {
            id_field: pd.Series([], dtype=id_dtype(train._meta[id_field])),
            "duplicate_of": pd.Series([], dtype=id_dtype(evaluation._meta[id_field])),
            "similarity": schema.empty(["similarity"])["similarity"],
        }
    )
    prepare, compare, choose = dask.delayed(_training), dask.delayed(_nearest_in), dask.delayed(_nearest)
    parts = _columns(train, id_field, embedding_field).to_delayed()
    together = -(-len(parts) * len(whole.blocks) // _COMPARISONS)
    like = vectors.from_pandas(meta, train._meta)
    chosen = []
    for start in range(0, len(parts), together):
        rows = [
            prepare(part, id_field, embedding_field, whole.dimension, whole.encoders)
            for part in parts[start : start + together]
        ]
        # Not in lists: of what lies in one, Dask forgets that it is on the cluster, and the blocks would go with this function.
        chosen.append(choose(meta, like, *[compare(block, 1 - eps, *rows) for block in whole.blocks]))
    found = dd.from_delayed(chosen, meta=like, verify_meta=False)
    return found.compute().reset_index(drop=True) if at_once else found


class _Evaluation(NamedTuple):
    """Evaluation images on the cluster: their blocks, in order, the dimension of their vectors and what made these."""

    blocks: list[Delayed]
    dimension: int
    encoders: frozenset[identity.Identity]


def _evaluation(frame: Any, id_field: str, embedding_field: str) -> _Evaluation:
    # Keys that depend on the frame alone, so that a checkpoint of the result knows it again.
    prepare, cut = dask.delayed(_prepare, nout=3, pure=True), dask.delayed(_cut, pure=True)
    parts = _columns(frame, id_field, embedding_field).to_delayed()
    prepared = dask.persist(*[output for part in parts for output in prepare(part, id_field, embedding_field)])
    sizes, summaries = dask.compute(prepared[1::3], prepared[2::3])
    summaries = [summary for size, summary in zip(sizes, summaries, strict=True) if size]
    dimension = normalise.one_dimension(summaries, embedding_field)
    encoder = identity.one((e for summary in summaries for e in summary.encoders), "the evaluation frame")
    return _Evaluation(
        list(
            dask.persist(*[cut(runs, *[prepared[3 * part] for part, *_ in runs]) for runs in _plan(sizes, dimension)])
        ),
        dimension,
        frozenset([encoder] if encoder else []),
    )


def _plan(sizes: Sequence[int], dimension: int) -> list[list[tuple[int, int, int]]]:
    """Cut partitions of these sizes into blocks of about equal size: of each the partitions, and their first and last rows.

    Examples
    --------
    >>> _plan([20_000, 0, 30_000, 15_000], 512)
    [[(0, 0, 20000), (2, 0, 12500)], [(2, 12500, 30000), (3, 0, 15000)]]
    """
    most = max(1, min(_ROWS, _BYTES // (4 * max(dimension, 1))))
    starts = np.cumsum([0, *sizes])
    n_blocks = max(1, -(-int(starts[-1]) // most))
    ends = [int(starts[-1]) * number // n_blocks for number in range(n_blocks + 1)]
    plan = []
    for first, last in pairwise(ends):
        touched = np.flatnonzero(np.maximum(starts[:-1], first) < np.minimum(starts[1:], last)).tolist()
        plan.append(
            [
                (part, max(first - int(starts[part]), 0), min(last, int(starts[part + 1])) - int(starts[part]))
                for part in touched
            ]
        )
    return plan


def _columns(frame: Any, id_field: str, embedding_field: str) -> Any:
    return frame[[id_field, embedding_field, *(["error"] if "error" in frame.columns else [])]]


def _prepare(part: Any, id_field: str, embedding_field: str) -> tuple[normalise.Rows, int, normalise.Summary]:
    """Return the rows of a partition that are compared, how many they are, and their summary without what is as long as they are."""
    rows, summary, _, _ = normalise.prepare(part, id_field, embedding_field, [], 0)
    return rows, summary.n_compared, summary


def _cut(runs: Sequence[tuple[int, int, int]], *prepared: normalise.Rows) -> normalise.Rows:
    return normalise.stack(
        [
            normalise.Rows(rows.table.slice(first, last - first), rows.vectors[first:last])
            for rows, (_, first, last) in zip(prepared, runs, strict=True)
        ]
    )


def _training(
    part: Any, id_field: str, embedding_field: str, dimension: int, encoders: frozenset[identity.Identity]
) -> normalise.Rows:
    rows, _, summary = _prepare(part, id_field, embedding_field)
    identity.one(summary.encoders | encoders, "the comparison of training and evaluation images")
    if len(rows.vectors) and dimension not in (0, rows.vectors.shape[1]):
        raise ValueError(
            f"evaluation images have vectors of dimension {dimension}, training images of {rows.vectors.shape[1]}; "
            "embed both with one encoder"
        )
    return rows


def _nearest_in(block: normalise.Rows, least: float, *parts: normalise.Rows) -> list[pa.Table]:
    """Return for each partition the rows that are near an image of a block, with the nearest."""
    found = []
    for number, rows in enumerate(parts):
        if not len(rows.vectors) or not len(block.vectors):
            continue
        pairs = join.pairs_between(rows.vectors, block.vectors, least)
        order = np.lexsort((pairs.right, -pairs.similarity, pairs.left))
        first = order[np.flatnonzero(np.diff(pairs.left[order], prepend=-1))]
        left = pairs.left[first]
        found.append(
            pa.table(
                {
                    "part": np.full(len(first), number),
                    "row": left,
                    "id": rows.table["id"].take(pa.array(left)),
                    "duplicate_of": block.table["id"].take(pa.array(pairs.right[first])),
                    "similarity": pairs.similarity[first],
                }
            )
        )
    return found


def _nearest(meta: pd.DataFrame, like: Any, *found: list[pa.Table]) -> Any:
    """Return the nearest of all blocks, which come in order: of equally near images, the first."""
    tables = [table for block in found for table in block]
    if not tables:
        return like
    table = pa.concat_tables(tables)
    part, row, similarity = (table[name].to_numpy() for name in ("part", "row", "similarity"))
    order = np.lexsort((-similarity, row, part))
    part, row = part[order], row[order]
    first = order[(np.diff(part, prepend=-1) != 0) | (np.diff(row, prepend=-1) != 0)]
    named = table.select(["id", "duplicate_of", "similarity"]).take(pa.array(first)).rename_columns(list(meta.columns))
    return vectors.from_pandas(schema.to_pandas(named).astype(dict(meta.dtypes)), like)
