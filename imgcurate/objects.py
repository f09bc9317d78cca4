"""Columns of lists, or of few different texts, that any reader opens again: Arrow's own, but for the name of their type.

Into a Parquet file pandas writes what the type of each column is called, and it cannot parse such names (pandas issue 57411, of lists): what
``frame.to_parquet`` wrote would open in no other process. Under the name that pandas gives to lists, ``object``, it opens everywhere.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
from dask.dataframe.extensions import make_array_nonempty


def needs_name(kind: pa.DataType) -> bool:
    """Tell whether pandas gives a type a name that it cannot parse."""
    return pa.types.is_nested(kind) or pa.types.is_dictionary(kind)


class ObjectDtype(pd.ArrowDtype):  # type: ignore[misc]
    """The pandas type of a column of lists, structures or dictionary-encoded values; equal to the `pandas.ArrowDtype` of the same.

    Examples
    --------
    >>> kind = ObjectDtype(pa.list_(pa.float32()))
    >>> str(kind), kind == pd.ArrowDtype(pa.list_(pa.float32()))
    ('object', True)
    """

    def __str__(self) -> str:
        return "object" if needs_name(self.pyarrow_dtype) else self.name

    def __eq__(self, other: object) -> bool:
        if isinstance(other, pd.ArrowDtype):
            return bool(self.pyarrow_dtype == other.pyarrow_dtype)
        return bool(super().__eq__(other))

    def __hash__(self) -> int:
        return hash(self.name)

    def construct_array_type(self) -> type[ObjectArray]:
        """Return the class of arrays of this type."""
        return ObjectArray


class ObjectArray(pd.arrays.ArrowExtensionArray):  # type: ignore[misc]
    """What a column of that type holds."""

    @property
    def dtype(self) -> Any:
        """The type, with the name that readers understand."""
        return ObjectDtype(self.__arrow_array__().type)


# The rows that Dask tries an operation on, to know the types of what comes of it.
make_array_nonempty.register(ObjectDtype, lambda dtype: dtype.empty(2))
