"""The columns of a row: their names, their Arrow types, and empty frames that carry them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

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
    "aesthetic_score": pa.float32(),
    "nsfw_score": pa.float32(),
    "clip_score": pa.float32(),
    "text_cut": pa.bool_(),
    "cluster": pa.int32(),
    "centroid_distance": pa.float32(),
    "duplicate_of": pa.string(),
    "similarity": pa.float32(),
    "kept": pa.bool_(),
    "reason": pa.string(),
    "reason_kind": pa.dictionary(pa.int8(), pa.string()),
}

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


def table(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Build a pandas partition with the Arrow types of `TYPES`.

    Parameters
    ----------
    columns : mapping of str to sequence
        Column name to values; None is null.

    Returns
    -------
    pandas.DataFrame
        One Arrow-typed column a name.

    Examples
    --------
    >>> table({"image_id": ["a"], "bytes": [3]}).dtypes["bytes"]
    int64[pyarrow]
    """
    return pd.DataFrame({name: pd.array(values, dtype=pd.ArrowDtype(TYPES[name])) for name, values in columns.items()})


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
