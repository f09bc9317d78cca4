"""Who stays of a group of duplicates: the order of the images, best first.

Host-side Arrow tables only. The order is total (ids are unique), so it does not depend on how a frame is partitioned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Keep = Literal["largest", "hard", "easy", "random", "id"] | Sequence[tuple[str, str]]

#: What "largest" ranks by: the pixels that width and height make, then the bytes of the file.
LARGEST = ("width", "height", "bytes")
_NAMED: dict[str, tuple[tuple[str, str], ...]] = {
    "largest": (("pixels", "descending"), ("key2", "descending"), ("id", "ascending")),
    "hard": (("distance", "descending"), ("id", "descending")),
    "easy": (("distance", "ascending"), ("id", "ascending")),
    "random": (("hash", "ascending"), ("id", "ascending")),
    "id": (("id", "ascending"),),
}
_DIRECTIONS = {"min": "ascending", "max": "descending"}


def keep_columns(keep: Keep) -> list[str]:
    """Return the frame's columns that `keep` ranks by, after checking that it can be understood.

    Parameters
    ----------
    keep : {"largest", "hard", "easy", "random", "id"} or sequence of (column, "min" | "max")

    Raises
    ------
    ValueError
        Where `keep` is neither.

    Examples
    --------
    >>> keep_columns([("aesthetic_score", "max"), ("width", "max")])
    ['aesthetic_score', 'width']
    """
    if isinstance(keep, str):
        if keep not in _NAMED:
            raise ValueError(_refusal(keep))
        return list(LARGEST) if keep == "largest" else []
    try:
        pairs = [(column, direction) for column, direction in keep]
    except (TypeError, ValueError):
        raise ValueError(_refusal(keep)) from None
    if not pairs or any(direction not in _DIRECTIONS or not isinstance(column, str) for column, direction in pairs):
        raise ValueError(_refusal(keep))
    return [column for column, _ in pairs]


def in_force(keep: Keep, columns: Iterable[str], otherwise: Keep) -> tuple[Keep, str]:
    """Return the order that a frame is ranked by, and why it is another than the one asked for.

    Parameters
    ----------
    keep : as for `keep_columns`
    columns : iterable of str
        Those of the frame.
    otherwise : as for `keep_columns`
        What takes the place of ``"largest"`` where a column that this ranks by is missing.

    Examples
    --------
    >>> in_force("largest", ["image_id", "width", "height"], "hard")
    ('hard', 'the frame has no bytes')
    """
    missing = sorted(set(keep_columns(keep)) - set(columns), key=LARGEST.index) if keep == "largest" else []
    if not missing:
        return keep, ""
    return otherwise, f"the frame has no {', '.join(missing[:-1])}{' and ' * (len(missing) > 1)}{missing[-1]}"


def order(table: pa.Table, keep: Keep, by_cluster: bool = False) -> np.ndarray:
    """Return the positions of `table`'s rows, best-ranked first.

    Parameters
    ----------
    table : pyarrow.Table of n rows
        Columns ``cluster``, ``distance`` (from the centroid), ``hash`` and ``id``, and ``key0``, ``key1``... with the values of
        `keep_columns` in their order.
    keep : {"largest", "hard", "easy", "random", "id"} or sequence of (column, "min" | "max")
        ``largest`` most pixels first, then most bytes, null last, id ascending on ties; ``hard`` farthest from the centroid first, id descending on ties; ``easy`` nearest first, id ascending; ``random`` by
        hash; ``id`` by id; columns: null and NaN last whatever the direction, id ascending on ties.
    by_cluster : bool
        Cluster by cluster, best-ranked first inside each.

    Returns
    -------
    numpy.ndarray of shape (n,), int64
    """
    keys = list(_NAMED[keep]) if isinstance(keep, str) else []
    if keep == "largest":
        width, height, size = (_nan_to_null(table[f"key{number}"]) for number in range(len(LARGEST)))
        pixels = pc.multiply(width.cast(pa.float64()), height.cast(pa.float64()))
        at = table.schema.get_field_index("key2")
        table = table.set_column(at, "key2", size).append_column("pixels", pixels)
    elif not isinstance(keep, str):
        for number, (_, direction) in enumerate(keep):
            name = f"key{number}"
            table = table.set_column(table.schema.get_field_index(name), name, _nan_to_null(table[name]))
            keys.append((name, _DIRECTIONS[direction]))
        keys.append(("id", "ascending"))
    if by_cluster:
        keys.insert(0, ("cluster", "ascending"))
    return pc.sort_indices(table, sort_keys=keys).to_numpy().astype(np.int64)


def hash_ids(ids: pa.Array, seed: int) -> np.ndarray:
    """Hash ids to 64 bits: a random order of images that is theirs wherever they lie.

    Parameters
    ----------
    ids : pyarrow.Array of n strings or integers
    seed : int

    Returns
    -------
    numpy.ndarray of shape (n,), uint64
    """
    text = ids.cast(pa.large_string()).to_numpy(zero_copy_only=False)
    return pd.util.hash_array(text, hash_key=f"{seed % 2**64:016x}", categorize=False)


def _nan_to_null(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)


def _refusal(keep: object) -> str:
    return (
        f"keep={keep!r} is not an order: give 'largest', 'hard', 'easy', 'random' or 'id', "
        "or a list of (column, 'min' or 'max') such as [('aesthetic_score', 'max'), ('width', 'max')]"
    )
