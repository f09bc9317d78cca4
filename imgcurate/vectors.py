"""The embedding column and the matrix it holds, on pandas/NumPy and on cuDF/CuPy, without copies where there are no nulls.

Everything outside the four GPU-aware rooms works on what this one gives: arrays with the NumPy API, and columns that fit
the partition they were asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from imgcurate import identity, schema
from imgcurate.objects import ObjectArray
from imgcurate.rowwise import map_rows

_MAX_CHILD_ELEMENTS = 2**31 - 1
_NORM_BLOCK = 1 << 14


def on_gpu(part: Any) -> bool:
    """Tell whether a partition, column or array lives on a GPU (cuDF or CuPy)."""
    return type(part).__module__.partition(".")[0] in ("cudf", "cupy")


def device(part: Any) -> str:
    """Return what torch calls the device of a partition, column or array: ``"cuda"`` or ``"cpu"``."""
    return "cuda" if on_gpu(part) else "cpu"


def namespace(array: Any) -> Any:
    """Return the module (NumPy or CuPy) whose functions work on `array`."""
    if on_gpu(array):
        import cupy

        return cupy
    return np


def to_numpy(array: Any) -> np.ndarray:
    """Return `array` on the host."""
    return array.get() if on_gpu(array) else np.asarray(array)


def take(matrix: Any, positions: np.ndarray) -> Any:
    """Return rows of a matrix by their positions, or by a mask, that lie on the host."""
    return matrix[namespace(matrix).asarray(positions)]


def to_matrix(rows: Any, dimension: int | None = None) -> Any:
    """Return the vectors of a partition, or of an embedding column, as one matrix.

    Parameters
    ----------
    rows : pandas or cuDF DataFrame of n rows, or Series of shape (n,)
        A partition with a column ``embedding``, as a function has it that is given to ``map_partitions``; or a column of lists of numbers: Arrow
        ``list``, ``large_list`` or ``fixed_size_list``, or an object column of arrays or lists, as plain Parquet readers return.
    dimension : int, optional
        How long the vectors are, for partitions in which no row has one, such as empty ones and those that Dask makes to know the result's type.

    Returns
    -------
    numpy.ndarray or cupy.ndarray of shape (n, d), float32
        A null row is a row of NaN. With no null rows the matrix is a view of the column. Where no row has a vector, ``d`` is `dimension`, else
        that of the encoder which the column's type names, else 0.

    Raises
    ------
    KeyError
        Where a partition has no column ``embedding``.
    ValueError
        Where the vectors are not of one length, or not of `dimension`.
    TypeError
        Where the column does not hold lists of numbers.

    Examples
    --------
    >>> to_matrix(pd.Series([[1.0, 2.0], None]))
    array([[ 1.,  2.],
           [nan, nan]], dtype=float32)

    A column made of the vectors:

    >>> import dask.dataframe as dd
    >>> frame = dd.from_dict({"embedding": [[3.0, 4.0], [0.0, 2.0]]}, npartitions=1)
    >>> def norms(part):
    ...     return pd.Series(np.linalg.norm(to_matrix(part), axis=1), index=part.index)
    >>> frame.map_partitions(norms, meta=(None, "float32")).compute().tolist()
    [5.0, 2.0]
    """
    if rows.ndim == 2:
        schema.require_columns(rows, ["embedding"], "to_matrix")
    column = rows["embedding"] if rows.ndim == 2 else rows
    if on_gpu(column):
        return _to_cupy(column, dimension)
    lists = _as_arrow_lists(column)
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    encoder = identity.of_type(lists.type)
    lengths = pc.list_value_length(lists.drop_null()).unique().to_pylist()
    dimension = _one_length(lengths, column.name, dimension, encoder.dimension if encoder else 0)
    flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return _with_null_rows(flat.reshape(int(valid.sum()), dimension), valid)


def to_column(matrix: Any, like: Any, valid: np.ndarray | None = None, encoder: identity.Identity | None = None) -> Any:
    """Return `matrix` as an embedding column that fits the partition `like`.

    Parameters
    ----------
    matrix : array of shape (n, d), float32
        NumPy, CuPy, or anything with DLPack (a torch tensor), on the device of `like`.
    like : pandas or cuDF DataFrame or Series of n rows
        Whose backend and index the column takes.
    valid : numpy.ndarray of shape (n,), bool, optional
        False where the row has no vector and becomes null. Default: every row has one.
    encoder : Identity, optional
        What made the vectors; pandas columns carry it in their type.

    Returns
    -------
    pandas or cuDF Series of shape (n,)
        ``list<float32>``. With no null rows it is a view of `matrix` (NumPy, CuPy or torch memory).

    Raises
    ------
    ValueError
        Where the partition is larger than one list column can hold.
    """
    rows, dimension = matrix.shape
    if rows * dimension > _MAX_CHILD_ELEMENTS:
        raise ValueError(
            f"a partition of {rows:,} vectors of dimension {dimension} is larger than one list column holds "
            f"({_MAX_CHILD_ELEMENTS:,} numbers); use more, smaller partitions (frame.repartition)"
        )
    if valid is None:
        valid = np.ones(rows, dtype=bool)
    if on_gpu(like):
        return _to_cudf_lists(matrix, valid, like.index)
    matrix = np.ascontiguousarray(np.from_dlpack(matrix) if not isinstance(matrix, np.ndarray) else matrix)
    if not valid.all():
        matrix = matrix[valid]
    offsets = np.concatenate([[0], np.cumsum(valid * dimension)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(
        pa.array(offsets),
        pa.array(matrix.reshape(-1)),
        type=identity.list_type(encoder),
        mask=None if valid.all() else pa.array(~valid),
    )
    return pd.Series(ObjectArray(lists), index=like.index, name="embedding")


def to_series(values: Any, name: str, like: Any) -> Any:
    """Return `values` as column `name` (typed by `schema.TYPES`) that fits the partition `like`.

    Parameters
    ----------
    values : sequence, numpy.ndarray or cupy.ndarray of length n
        None, or NaN in an array of floats, is null.
    name : str
    like : pandas or cuDF DataFrame or Series of n rows

    Returns
    -------
    pandas or cuDF Series of shape (n,)
    """
    if on_gpu(like):
        import cudf

        if on_gpu(values):
            kind = schema.TYPES[name].to_pandas_dtype()
            return cudf.Series(values, index=like.index, dtype=kind, name=name, nan_as_null=True)
        series = cudf.Series.from_arrow(pa.array(values, type=schema.TYPES[name], from_pandas=True))
        series.index, series.name = like.index, name
        return series
    return schema.table({name: values}).set_axis(like.index)[name]


def empty_like(meta: Any, names: list[str]) -> Any:
    """Return a partition of no rows with columns `names`, on the backend of `meta`."""
    return from_pandas(schema.empty(names), meta)


def to_arrow(part: Any) -> pa.Table:
    """Return a partition as an Arrow table of the types that files have, without its index and without metadata."""
    if not on_gpu(part):
        return schema.to_arrow(part)
    table = part.to_arrow(preserve_index=False)
    for at, field in enumerate(table.schema):
        if pa.types.is_null(field.type):
            # What cuDF makes of a column of lists in which no row has one.
            kind = part[field.name].dtype.to_arrow()
            table = table.set_column(at, field.with_type(kind), pa.nulls(len(table), kind))
    return schema.stored(table)


def to_pandas(part: Any) -> Any:
    """Return a partition or column on the host, with the types of `schema.dtype`; one of pandas is returned as it is."""
    if not on_gpu(part):
        return part
    if part.ndim == 1:
        return to_pandas(part.to_frame(name="column"))["column"].rename(part.name)
    host = schema.to_pandas(to_arrow(part))
    host.index = part.index.to_pandas()
    return host


def from_pandas(part: pd.DataFrame, meta: Any) -> Any:
    """Return a pandas partition on the backend of `meta`."""
    return from_arrow(to_arrow(part), meta) if on_gpu(meta) else part


def from_arrow(table: pa.Table, meta: Any) -> Any:
    """Return an Arrow table as a partition on the backend of `meta`."""
    if not on_gpu(meta):
        return schema.to_pandas(table)
    import cudf

    return cudf.DataFrame.from_arrow(table)


def empty_on(backend: str) -> Any:
    """Return a partition of nothing on ``"pandas"`` or ``"cudf"``, to put others beside it."""
    if backend == "pandas":
        return pd.DataFrame()
    import cudf

    return cudf.DataFrame()


def to_backend(frame: Any, backend: str) -> Any:
    """Return a Dask dataframe of pandas partitions on `backend`, with the types that Arrow's have there; one that is there is returned as it is.

    Dask's ``to_backend`` alone keeps pandas' ArrowDtype in cuDF, where such columns do not concatenate with cuDF's own, and cuDF makes no empty
    column of lists of it.
    """
    if backend == "pandas" or on_gpu(frame._meta):
        return frame
    return map_rows(frame, _to_cudf, meta=_to_cudf(frame._meta), required_columns=[])


def _to_cudf(part: pd.DataFrame) -> Any:
    import cudf

    moved = cudf.DataFrame.from_arrow(to_arrow(part))
    moved.index = cudf.from_pandas(part.index)
    return moved


def unit_rows(matrix: Any) -> tuple[Any, np.ndarray]:
    """Scale each row to unit length.

    Parameters
    ----------
    matrix : numpy.ndarray or cupy.ndarray of shape (n, d)

    Returns
    -------
    unit : array of shape (n, d), float32
        Rows that cannot be scaled (NaN, infinite, all zero) are zeros.
    valid : numpy.ndarray of shape (n,), bool
        False for those rows.

    Notes
    -----
    Norms are computed row by row in float64, so that a vector's unit form does not depend on the rows beside it.

    Examples
    --------
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    (array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32), array([ True, False]))
    """
    xp = namespace(matrix)
    squares = xp.empty(len(matrix), dtype=xp.float64)
    for start in range(0, len(matrix), _NORM_BLOCK):
        # In blocks, because CuPy's einsum makes float64 copies of its operands.
        block = matrix[start : start + _NORM_BLOCK]
        squares[start : start + _NORM_BLOCK] = xp.einsum("ij,ij->i", block, block, dtype=xp.float64)
    valid = xp.isfinite(squares) & (squares > 0)
    scale = xp.where(valid, 1 / xp.sqrt(xp.where(valid, squares, 1)), 0)
    unit = xp.zeros(matrix.shape, dtype=xp.float32)
    with np.errstate(invalid="ignore"):
        xp.multiply(matrix, scale[:, None], out=unit, casting="same_kind")
    unit[~valid] = 0
    return unit, to_numpy(valid)


def _one_length(lengths: list[int], name: Any, asked: int | None, otherwise: int = 0) -> int:
    if len(lengths) > 1:
        raise ValueError(
            f"column {name!r} holds vectors of several lengths: {sorted(lengths)[:5]}; one frame holds one encoder"
        )
    if asked is not None and lengths not in ([], [asked]):
        raise ValueError(
            f"column {name!r} holds vectors of dimension {lengths[0]}, and dimension={asked} was asked for"
        )
    return lengths[0] if lengths else asked or otherwise


def _with_null_rows(present: np.ndarray, valid: np.ndarray) -> np.ndarray:
    if valid.all():
        return present
    matrix = np.full((len(valid), present.shape[1]), np.nan, dtype=np.float32)
    matrix[valid] = present
    return matrix


def _as_arrow_lists(column: pd.Series) -> pa.Array:
    try:
        array = pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as problem:
        raise TypeError(f"column {column.name!r} does not hold vectors: {problem}") from None
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    kind = array.type
    if pa.types.is_null(kind):
        return pa.nulls(len(array), pa.list_(pa.float32()))
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise TypeError(f"column {column.name!r} holds {kind}, not vectors (lists of numbers)")
    return array


def _to_cupy(column: Any, asked: int | None) -> Any:
    import cupy

    # dropna copies even where there is nothing to drop.
    present = column.dropna() if column.has_nulls else column
    if not len(present):
        return cupy.full((len(column), asked or 0), cupy.nan, dtype=cupy.float32)
    try:
        lengths, numbers = present.list.len(), present.list.leaves.values
    except (AttributeError, TypeError):
        raise TypeError(f"column {column.name!r} holds {column.dtype}, not vectors (lists of numbers)") from None
    dimension = _one_length(lengths.unique().to_arrow().to_pylist(), column.name, asked)
    rows = numbers.astype(cupy.float32, copy=False).reshape(len(present), dimension)
    if len(present) == len(column):
        return rows
    matrix = cupy.full((len(column), dimension), cupy.nan, dtype=cupy.float32)
    matrix[column.notnull().values] = rows
    return matrix


def _to_cudf_lists(matrix: Any, valid: np.ndarray, index: Any) -> Any:
    import cudf
    import cupy
    import pylibcudf

    # asarray shares the memory of CuPy's arrays and of torch's on the device, and copies those of the host to it.
    lists = pylibcudf.Column.from_array(cupy.ascontiguousarray(cupy.asarray(matrix, dtype=cupy.float32)))
    if not valid.all():
        # A row gathered from outside the column is null.
        rows = np.where(valid, np.arange(len(valid)), len(valid)).astype(np.int32)
        nullify = pylibcudf.copying.OutOfBoundsPolicy.NULLIFY
        gathered = pylibcudf.copying.gather(pylibcudf.Table([lists]), pylibcudf.Column.from_array(rows), nullify)
        (lists,) = gathered.columns()
    return cudf.Series.from_pylibcudf(lists, metadata={"name": "embedding", "index": index})
