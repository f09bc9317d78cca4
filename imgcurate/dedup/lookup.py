"""Finding ids in a long list, at a cost that does not grow with it: a sorted array of 64-bit hashes beside the ids themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

#: Ids that are Python objects at a time while they are hashed.
_OBJECTS = 1 << 16


class Hashed(NamedTuple):
    """A part of a list: its ids without nulls, in their order, and a hash of each."""

    ids: pa.Array
    hashes: np.ndarray


class Lookup(NamedTuple):
    """A list of distinct ids in which others are looked up.

    Takes 13 to 14 bytes an id and the Arrow memory of the ids (8 bytes, and those of the text).

    Attributes
    ----------
    ids : pyarrow.Array of n ids
        In the order of the list, as `plain` gives them.
    hashes : numpy.ndarray of shape (n,), uint64
        Ascending.
    rows : numpy.ndarray of shape (n,), int32 or int64
        Where in `ids` the id of each hash is.
    starts : numpy.ndarray of shape (2 ** b + 1,), int32 or int64
        Where in `hashes` those begin whose highest b bits are 0, 1 and so on: two to four have the same.
    """

    ids: pa.Array
    hashes: np.ndarray
    rows: np.ndarray
    starts: np.ndarray

    def find(self, ids: pa.Array) -> np.ndarray:
        """Return where in the list each of some ids is; -1 where it is not there, or is null.

        Parameters
        ----------
        ids : pyarrow.Array of m ids
            As `plain` gives them.

        Returns
        -------
        numpy.ndarray of shape (m,), int64

        Notes
        -----
        Hashes are spread evenly, so that the first bits of one tell where in the list it is, but for a few places: two reads of memory, where a
        binary search makes one a doubling of the list. Ids are compared where hashes are equal.

        Examples
        --------
        >>> build([hashed(pd.Series(["b", "a", "b"]))]).find(plain(pd.Series(["a", None, "c", "b"])))
        array([ 1, -1, -1,  0])
        """
        ids = _fit(ids, self.ids.type)
        found = np.full(len(ids), -1, dtype=np.int64)
        hashes = hash_ids(ids)
        left = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
        at = self._search(hashes[left])
        while len(left):
            alike = at < len(self.hashes)
            alike[alike] = self.hashes[at[alike]] == hashes[left[alike]]
            left, at = left[alike], at[alike]
            rows = self.rows[at]
            same = pc.equal(ids.take(pa.array(left)), self.ids.take(pa.array(rows))).to_numpy(zero_copy_only=False)
            found[left[same]] = rows[same]
            # Another id has that hash: the next in the list may be the one.
            left, at = left[~same], at[~same] + 1
        return found

    def _search(self, hashes: np.ndarray) -> np.ndarray:
        """Return where in the list the first hash is that is not below each of these, as numpy.searchsorted does."""
        first = (hashes >> np.uint64(64 - _bits(len(self.hashes)))).astype(np.int64)
        at, end = self.starts[first], self.starts[first + 1]
        below = at < end
        while below.any():
            below[below] = self.hashes[at[below]] < hashes[below]
            at += below
            below &= at < end
        return at


def hashed(column: Any) -> Hashed:
    """Hash a part of a list. Null ids count for nothing."""
    ids = plain(column).drop_null()
    return Hashed(ids, hash_ids(ids))


def build(pieces: Sequence[Hashed]) -> Lookup:
    """Put the parts of a list together. Of an id that is there more than once, the first counts.

    Raises
    ------
    TypeError
        Where some parts hold text and others numbers.
    """
    ids, hashes = _together([piece for piece in pieces if len(piece.ids)])
    order = np.argsort(hashes)
    again = np.diff(hashes[order]) == 0
    if again.any():
        # Only ids that share a hash can be equal.
        suspects = np.sort(order[np.append(again, False) | np.insert(again, 0, False)])
        codes = ids.take(pa.array(suspects)).dictionary_encode().indices.to_numpy()
        distinct = np.ones(len(ids), dtype=bool)
        distinct[suspects] = False
        distinct[suspects[np.unique(codes, return_index=True)[1]]] = True
        if not distinct.all():
            ids, hashes = ids.filter(pa.array(distinct)), hashes[distinct]
            order = np.argsort(hashes)
    hashes, bits = hashes[order], _bits(len(order))
    starts = np.searchsorted(hashes, np.arange(2**bits, dtype=np.uint64) << np.uint64(64 - bits))
    kind = np.int32 if len(order) <= np.iinfo(np.int32).max else np.int64
    return Lookup(ids, hashes, order.astype(kind), np.append(starts, len(order)).astype(kind))


def plain(column: Any) -> pa.Array:
    """Return ids in one of few types, so that those which are equal are so whatever column they come from.

    Parameters
    ----------
    column : pandas Series or pyarrow.ChunkedArray

    Returns
    -------
    pyarrow.Array
        large_string, large_binary, int64, uint64 or float64; what is none of these (dates, say) as its text. Nulls stay.

    Raises
    ------
    TypeError
        Where the column holds values of several kinds, or nothing that could be an id.

    Examples
    --------
    >>> plain(pd.Series(["a", None], dtype="category")).type, plain(pd.Series([1, 2], dtype="int8")).type
    (DataType(large_string), DataType(int64))
    """
    name = getattr(column, "name", None)
    try:
        array = column if isinstance(column, pa.ChunkedArray) else pa.array(column, from_pandas=True)
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        array = array.cast(_plain_type(array.type))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as problem:
        raise TypeError(f"column {name!r} does not hold ids, which are text or numbers: {problem}") from None
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    # Dates of another resolution are the same dates.
    return array.cast(pa.large_string()) if pa.types.is_timestamp(array.type) else array


def hash_ids(ids: pa.Array) -> np.ndarray:
    """Hash ids to 64 bits, the same in every process.

    Parameters
    ----------
    ids : pyarrow.Array of n ids
        As `plain` gives them.

    Returns
    -------
    numpy.ndarray of shape (n,), uint64
        Of nulls anything.
    """
    if not pa.types.is_large_string(ids.type) and not pa.types.is_large_binary(ids.type):
        values = pc.fill_null(ids, pa.scalar(0).cast(ids.type)).to_numpy(zero_copy_only=False)
        # 0.0 is -0.0, but has other bits.
        return pd.util.hash_array(values + values.dtype.type(0))
    # As bytes they take half of the time that text does.
    ids = ids.cast(pa.large_binary())
    pieces = [ids.slice(start, _OBJECTS) for start in range(0, len(ids), _OBJECTS)]
    hashes = [pd.util.hash_array(piece.to_numpy(zero_copy_only=False), categorize=False) for piece in pieces]
    return np.concatenate([np.zeros(0, dtype=np.uint64), *hashes])


def _bits(n: int) -> int:
    return max(1, n.bit_length() - 2)


def _together(pieces: Sequence[Hashed]) -> Hashed:
    if not pieces:
        return Hashed(pa.nulls(0, pa.large_string()), np.zeros(0, dtype=np.uint64))
    kinds = list(dict.fromkeys(piece.ids.type for piece in pieces))
    for kind in kinds:
        fitted = [_fit(piece.ids, kind) for piece in pieces]
        if not any(ids.null_count for ids in fitted):
            ids = pa.concat_arrays(fitted)
            return Hashed(ids, np.concatenate([piece.hashes for piece in pieces]) if len(kinds) == 1 else hash_ids(ids))
    raise TypeError(
        f"the ids are of several types, {' and '.join(map(str, kinds))}, in which they cannot be compared; "
        "convert them to one"
    )


def _fit(ids: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return ids in the type of those that they are compared with; what cannot be equal to any of that type is null."""
    if ids.type == kind:
        return ids
    if not all(pa.types.is_integer(one) or pa.types.is_floating(one) for one in (ids.type, kind)):
        return pa.nulls(len(ids), kind)
    there = ids.cast(kind, safe=False)
    # A number beyond the other type's range may come back as it was, by way of one with the other sign.
    negative, was = (pc.less(values, pa.scalar(0).cast(values.type)) for values in (there, ids))
    same = pc.and_(pc.equal(there.cast(ids.type, safe=False), ids), pc.equal(negative, was))
    return pc.if_else(same, there, pa.scalar(None, kind))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_floating(kind):
        return pa.float64()
    if types.is_integer(kind) or types.is_boolean(kind):
        return kind if types.is_uint64(kind) else pa.int64()
    if any(
        of(kind) for of in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    ):
        return pa.large_binary()
    if types.is_timestamp(kind):
        return pa.timestamp("ns", kind.tz)
    return pa.large_string()
