"""What the verbs that work on ids and vectors take: Dask dataframes, frames in memory, and ids beside a matrix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd

from imgcurate import identity, schema, vectors

#: Vectors of a frame in memory are given to the workers in partitions of about so many bytes.
_PARTITION_BYTES = 32 << 20


class Given(NamedTuple):
    """What a verb was given.

    Attributes
    ----------
    frame : Dask DataFrame
    at_once : bool
        Whether it was in memory, so that answers are expected there too.
    """

    frame: Any
    at_once: bool


def as_frame(
    given: Any, verb: str, id_field: str, embedding_field: str, needed: Sequence[str] = (), where: str = ""
) -> Given:
    """Return what a verb was given as a Dask dataframe.

    Parameters
    ----------
    given : Dask, pandas or cuDF DataFrame, or pair of ids and a matrix of shape (n, d)
        Of a frame in memory the ids may be its index.
    verb : str
        For messages.
    id_field, embedding_field : str
    needed : sequence of str
        What other columns the verb looks at, beside ``error``, where a frame has that.
    where : str
        Which of several frames it is, for messages.

    Raises
    ------
    TypeError
        Where it is something else, or the column of vectors does not hold vectors.
    KeyError
        Where a column is missing.
    ValueError
        Where there are not as many ids as vectors, or these are of several lengths or encoders.
    """
    if hasattr(given, "to_delayed") and hasattr(given, "columns"):
        schema.require_columns(given, [id_field, embedding_field, *needed], f"{verb}{where}")
        return Given(given, False)
    if isinstance(given, tuple) and len(given) == 2:
        return Given(_spread(*rows_of_pair(*given, verb, id_field), embedding_field, None), True)
    if not in_memory(given):
        raise TypeError(refusal(given, f"{verb}{where}"))
    part = with_ids(given, id_field)
    schema.require_columns(part, [id_field, embedding_field, *needed], f"{verb}{where}")
    column = part[embedding_field]
    encoder = identity.one(identity.of_column(column), "the frame")
    rows = part[list(dict.fromkeys([id_field, *needed, *(["error"] if "error" in part.columns else [])]))]
    return Given(_spread(rows.reset_index(drop=True), vectors.to_matrix(column), embedding_field, encoder), True)


def refuse_name(id_field: str, verb: str, found: Sequence[str]) -> None:
    """Raise a ValueError where the ids have the name of a column that a verb's answer puts beside them."""
    if id_field in found:
        raise ValueError(
            f"{verb}: id_field={id_field!r} is what a column of the answer is called; rename the frame's: frame.rename(columns={{{id_field!r}: 'image_id'}})"
        )


def in_memory(given: Any) -> bool:
    """Tell whether something is a pandas or cuDF DataFrame."""
    return isinstance(given, pd.DataFrame) or (vectors.on_gpu(given) and hasattr(given, "columns"))


def with_ids(part: Any, id_field: str) -> Any:
    """Return a frame in memory whose index of that name is a column."""
    return part.reset_index() if id_field not in part.columns and part.index.name == id_field else part


def refusal(given: Any, verb: str) -> str:
    """Say that something is of no kind that a verb takes."""
    instead = "; its to_pandas() makes one" if hasattr(given, "to_pandas") else ""
    if isinstance(given, str | os.PathLike):
        instead = "; imgcurate.read_parquet and imgcurate.read_embeddings read files"
    return (
        f"{verb} takes a Dask, pandas or cuDF dataframe, or a pair (ids, matrix), not {type(given).__name__}{instead}"
    )


def rows_of_pair(ids: Any, matrix: Any, verb: str, id_field: str) -> tuple[Any, Any]:
    """Return ids as a frame of one column and vectors as a matrix, both where the matrix is; raises where the two do not belong together."""
    matrix = matrix if vectors.on_gpu(matrix) else np.asarray(matrix)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise TypeError(
            f"{verb}: of a pair (ids, matrix) the second holds {matrix.dtype} of shape {tuple(matrix.shape)}, not numbers of shape (images, dimension)"
        )
    column = vectors.to_pandas(ids)
    column = pd.Series(column if isinstance(column, pd.Series | pd.Index | np.ndarray) else list(column), name=id_field)
    if len(column) != len(matrix):
        raise ValueError(
            f"{verb}: {len(column):,} ids and {len(matrix):,} vectors; a pair (ids, matrix) has one id a row"
        )
    return vectors.from_pandas(column.reset_index(drop=True).to_frame(), matrix), matrix


def _spread(rows: Any, matrix: Any, embedding_field: str, encoder: identity.Identity | None) -> Any:
    """Cut rows and their vectors into partitions, and give them to the workers where there are some."""
    step = max(1, _PARTITION_BYTES // (4 * max(matrix.shape[1], 1)))
    parts = [
        _with_vectors(rows.iloc[start : start + step], matrix[start : start + step], embedding_field, encoder)
        for start in range(0, max(len(rows), 1), step)
    ]
    meta = parts[0].iloc[:0]
    client = getattr(dask.base.get_scheduler(), "__self__", None)
    # In the graph of every later task they would be sent again and again.
    held = client.scatter(parts) if isinstance(client, distributed.Client) else None
    return dd.from_delayed(
        held or [dask.delayed(part, pure=True, traverse=False) for part in parts], meta=meta, verify_meta=False
    )


def _with_vectors(rows: Any, matrix: Any, embedding_field: str, encoder: identity.Identity | None) -> Any:
    column = vectors.to_column(matrix.astype(np.float32, copy=False), like=rows, encoder=encoder)
    return rows.assign(**{embedding_field: column})
