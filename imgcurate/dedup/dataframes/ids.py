"""What ids may be, and their types: in Arrow, where they are compared, and in the frames of a user."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from imgcurate import schema, vectors


def plain_ids(column: pa.ChunkedArray, name: str) -> pa.Array:
    """Return ids as large strings or 64-bit integers; raises where one is null or of another type."""
    ids = column.combine_chunks()
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if ids.null_count:
        raise ValueError(
            f"{ids.null_count} of {len(ids)} rows of a partition have no {name!r}; give every image an id first"
        )
    if not len(ids) and pa.types.is_null(ids.type):
        return ids.cast(pa.large_string())
    check_id_type(ids.type, name)
    if pa.types.is_integer(ids.type):
        return ids if pa.types.is_uint64(ids.type) else ids.cast(pa.int64())
    return ids.cast(pa.large_string())


def check_id_type(kind: pa.DataType, name: str) -> None:
    """Raise a TypeError where ids of type `kind` can be neither hashed nor named."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not is_text and not pa.types.is_integer(kind):
        raise TypeError(f"column {name!r} holds {kind}; ids are strings or whole numbers")


def id_dtype(column: Any) -> Any:
    """Return the type that ids have in the results: that of the frame's column on the host, plain where it is categorical."""
    dtype = vectors.to_pandas(column).dtype
    if isinstance(dtype, pd.ArrowDtype) and pa.types.is_dictionary(dtype.pyarrow_dtype):
        return schema.dtype(dtype.pyarrow_dtype.value_type)
    if not isinstance(dtype, pd.CategoricalDtype):
        return dtype
    return dtype.categories.dtype if pd.api.types.is_integer_dtype(dtype.categories.dtype) else schema.TEXT


def arrow_type(dtype: Any) -> pa.DataType:
    """Return what ids of a pandas type are in Arrow."""
    if isinstance(dtype, pd.ArrowDtype):
        return dtype.pyarrow_dtype
    if not pd.api.types.is_integer_dtype(dtype):
        return pa.string()
    # As `plain_ids` has them: hashes of 64 bits are ids too.
    return pa.uint64() if pd.api.types.is_unsigned_integer_dtype(dtype) and dtype.itemsize == 8 else pa.int64()


def arrow_id_dtype(kind: pa.DataType) -> Any:
    """Return the type that ids of an Arrow type have in pandas."""
    return np.dtype(kind.to_pandas_dtype()) if pa.types.is_integer(kind) else schema.dtype(kind)
