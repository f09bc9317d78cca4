"""The columns of a row: their names, their types in Arrow and in pandas, and empty frames that carry them.

Files, cuDF and Arrow have the types of `TYPES`. In pandas a column has the type that pandas itself gives to such values, so that what users know
works: text is ``str``, and a number that may be missing is a float, NaN where it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from imgcurate.objects import ObjectDtype, needs_name

#: The type of text in pandas: its own, ``str``.
TEXT = pd.StringDtype("pyarrow", na_value=np.nan)

#: Every column imgcurate writes, with its Arrow type. Sources make those of `SOURCE_COLUMNS`, verbs add the rest.
TYPES: dict[str, pa.DataType] = {
    "image_id": pa.string(),
    "url": pa.string(),
    "member": pa.string(),
    "offset": pa.int64(),
    "bytes": pa.int64(),
    "sample_offset": pa.int64(),
    "sample_size": pa.int64(),
    "etag": pa.string(),
    "caption": pa.string(),
    "metadata": pa.string(),
    "text_encoding": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "error": pa.string(),
    "digest": pa.string(),
    "embedding": pa.list_(pa.float32()),
    "aspect": pa.float32(),
    "bytes_per_pixel": pa.float32(),
    "format": pa.string(),
    "sharpness": pa.float32(),
    "brightness": pa.float32(),
    "contrast": pa.float32(),
    "colourfulness": pa.float32(),
    "entropy": pa.float32(),
    "phash": pa.uint64(),
    "dark": pa.bool_(),
    "light": pa.bool_(),
    "blurry": pa.bool_(),
    "low_information": pa.bool_(),
    "greyscale": pa.bool_(),
    "odd_aspect": pa.bool_(),
    "odd_size": pa.bool_(),
    "aesthetic_score": pa.float32(),
    "nsfw_score": pa.float32(),
    "clip_score": pa.float32(),
    "text_cut": pa.bool_(),
    "cluster": pa.int32(),
    "centroid_distance": pa.float32(),
    "duplicate_of": pa.string(),
    "similarity": pa.float32(),
    "outlier_score": pa.float32(),
    "x": pa.float32(),
    "y": pa.float32(),
    "thumbnail": pa.string(),
    "kept": pa.bool_(),
    "reason": pa.string(),
    "reason_kind": pa.dictionary(pa.int8(), pa.string()),
}

# The whole numbers and truths that every row has. Of others pandas makes floats, but for hashes, which need all of their bits.
_COMPLETE = (
    "offset", "bytes", "dark", "light", "blurry", "low_information", "greyscale", "odd_aspect", "odd_size", "text_cut", "cluster", "kept",
)  # fmt: skip

#: What a source gives each row.
SOURCE_COLUMNS = (
    "image_id",
    "url",
    "member",
    "offset",
    "bytes",
    "sample_offset",
    "sample_size",
    "etag",
    "caption",
    "metadata",
    "text_encoding",
    "error",
)


def today(names: Iterable[str]) -> dict[str, str]:
    """Return what columns are called today that an earlier version wrote; its ``size`` is ``bytes``.

    Parameters
    ----------
    names : iterable of str
        All columns of a file or frame. Only beside ``url`` and ``offset`` is ``size`` the length of an image.

    Examples
    --------
    >>> today(["image_id", "url", "offset", "size"]), today(["name", "size"])
    ({'size': 'bytes'}, {})
    """
    there = set(names)
    return {"size": "bytes"} if there >= {"url", "offset", "size"} and "bytes" not in there else {}


def dtype(kind: pa.DataType, name: str = "") -> Any:
    """Return the pandas type of a column.

    Parameters
    ----------
    kind : pyarrow.DataType
        What it is in Arrow.
    name : str, optional
        The column: of those of `TYPES` it is known whether a number may be missing. Whole numbers and truths of other columns keep Arrow's
        type, which holds nulls without a change of any number.

    Examples
    --------
    >>> [str(dtype(TYPES[name], name)) for name in ("caption", "bytes", "width", "aesthetic_score", "phash", "embedding")]
    ['str', 'int64', 'float64', 'float32', 'uint64[pyarrow]', 'object']
    """
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return TEXT
    number = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if pa.types.is_floating(kind) or (number and name in _COMPLETE):
        return np.dtype(kind.to_pandas_dtype())
    # Ids, and other columns of text, may hold whole numbers in files of others.
    if number and not pa.types.is_string(TYPES.get(name, pa.string())) and not pa.types.is_uint64(kind):
        return np.dtype("float64")
    return ObjectDtype(kind) if needs_name(kind) else pd.ArrowDtype(kind)


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Return an Arrow table as a pandas partition.

    Examples
    --------
    >>> to_pandas(pa.table({"image_id": ["a", None], "width": pa.array([640, None], pa.int32())})).dtypes.astype(str).to_dict()
    {'image_id': 'str', 'width': 'float64'}
    """
    return typed(table.to_pandas(types_mapper=by_kind, ignore_metadata=True))


def to_arrow(part: pd.DataFrame) -> pa.Table:
    """Return a pandas partition as an Arrow table, without its index and without pandas' metadata.

    Examples
    --------
    >>> to_arrow(pd.DataFrame({"image_id": ["a", None], "width": [640.0, None]})).schema
    image_id: string
    width: int32
    """
    return stored(pa.Table.from_pandas(part, preserve_index=False))


def stored(table: pa.Table) -> pa.Table:
    """Return a table with the types that files have: of text ``string``, of whole numbers those of `TYPES`; without metadata."""
    fields = list(table.schema)
    for at, field in enumerate(fields):
        kind = field.type
        if pa.types.is_large_string(kind):
            kind = pa.string()
        elif pa.types.is_floating(kind) and pa.types.is_integer(TYPES.get(field.name, kind)):
            kind = TYPES[field.name]
        if kind != field.type:
            with contextlib.suppress(pa.ArrowInvalid):  # fractions, in a column of a user's own that has that name
                table = table.set_column(at, field.with_type(kind), table.column(at).cast(kind))
    return table.replace_schema_metadata(None)


def by_kind(kind: pa.DataType) -> Any:
    """Return the pandas type of a column of which only the Arrow type is known; None for what pandas makes of it by itself."""
    found = dtype(kind)
    return None if isinstance(found, np.dtype) else found


def typed(part: pd.DataFrame) -> pd.DataFrame:
    """Return a pandas partition whose columns of Arrow's types have those that `dtype` gives their names."""
    kinds = {
        name: dtype(kind.pyarrow_dtype, name) for name, kind in part.dtypes.items() if isinstance(kind, pd.ArrowDtype)
    }
    for name in _COMPLETE:
        if name in kinds and part[name].isna().any():  # not so in every file that others wrote
            kinds[name] = np.dtype("float64")
    part = part.astype({name: kind for name, kind in kinds.items() if kind != part.dtypes[name]})
    # NumPy's columns may be views of Arrow's memory, in which a user cannot set a value. Those of Arrow's types are not copied.
    return part.copy()


def table(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Build a pandas partition of columns of `TYPES`.

    Parameters
    ----------
    columns : mapping of str to sequence
        Column name to values; None is null.

    Returns
    -------
    pandas.DataFrame

    Examples
    --------
    >>> table({"image_id": ["a"], "bytes": [3]}).dtypes["bytes"]
    dtype('int64')
    """
    return to_pandas(
        pa.table({name: pa.array(values, type=TYPES[name], from_pandas=True) for name, values in columns.items()})
    )


def empty(names: Iterable[str]) -> pd.DataFrame:
    """Return a partition of no rows with the named columns: the ``meta`` of a Dask dataframe."""
    return table({name: [] for name in names})


def require(frame: Any, columns: Iterable[str], verb: str) -> None:
    """Raise where `frame` is not a Dask dataframe with the columns that `verb` needs.

    Parameters
    ----------
    frame : Dask DataFrame
    columns : iterable of str
    verb : str
        The function that asks, for the message.

    Raises
    ------
    TypeError
        Where `frame` is something else.
    KeyError
        Where columns are missing; names them, and those that are there.
    """
    if not hasattr(frame, "to_delayed") or not hasattr(frame, "columns"):
        raise TypeError(
            f"{verb} takes a Dask dataframe, not {type(frame).__name__}; "
            "dask.dataframe.from_pandas(frame, npartitions=1) makes one, where columns hold arrays under "
            "dask.config.set({'dataframe.convert-string': False}), for Dask turns them into text"
        )
    require_columns(frame, columns, verb)


def require_columns(frame: Any, columns: Iterable[str], verb: str) -> None:
    """Raise a KeyError where `frame`, of any kind, lacks some of `columns`."""
    missing = [name for name in columns if name not in frame.columns]
    earlier = today(frame.columns)
    if set(missing) & set(earlier.values()):
        raise KeyError(f"{verb} needs column 'bytes', which was called 'size': frame.rename(columns={earlier})")
    if missing:
        raise KeyError(
            f"{verb} needs column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}; "
            f"the frame has {', '.join(map(repr, frame.columns))}"
        )
