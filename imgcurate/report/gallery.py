"""show(): a grid of a frame's images, of which only those are read that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, NamedTuple

import pandas as pd
import pyarrow as pa

from imgcurate import storage, vectors
from imgcurate.arguments import check_seed
from imgcurate.cluster import interruptible
from imgcurate.printable import plural
from imgcurate.report import rows
from imgcurate.report.page import Page, render
from imgcurate.report.thumbnails import Thumbnail, thumbnails

#: More on one page make a browser slow.
MOST_IMAGES = 1000
_LARGEST = 1024
# Text up to so many characters stands beside its column's name, longer text below.
_SHORT = 24

Order = str | tuple[str, Literal["min", "max"]]


class Card(NamedTuple):
    """What is said of an image.

    Attributes
    ----------
    id, alt : str
    thumb : Thumbnail
    texts, fields : list of (column, value)
        What is long, and what is short.
    """

    id: str
    alt: str
    thumb: Thumbnail
    texts: list[tuple[str, Any]]
    fields: list[tuple[str, Any]]


@interruptible
def show(
    frame: Any,
    n: int = 24,
    *,
    columns: str | Sequence[str] | None = None,
    sort: Order | None = None,
    size: int = 160,
    seed: int = 0,
    id_field: str = "image_id",
    storage_options: storage.Options = None,
) -> Page:
    """Show images of a frame as a grid.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame
        With `id_field`, ``url``, ``offset`` and ``bytes``.
    n : int, default 24
        How many images, at most 1,000.
    columns : str or list of str, optional
        What stands below each image, such as ``["caption", "aesthetic_score"]``. Default: its id.
    sort : str or (str, "min" | "max"), optional
        A column whose lowest (``"sharpness"``, ``("sharpness", "min")``) or highest (``("sharpness", "max")``) values are shown, in order, nulls last.
        Default: images drawn at random, in the frame's order.
    size : int, default 160
        Of a thumbnail's longer side, in pixels.
    seed : int
        Of the draw. Another shows other images; how the frame is partitioned changes nothing.
    id_field : str
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    Page
        Shown by notebooks; its ``save("page.html")`` writes a file that opens anywhere. An image that cannot be shown says why.

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError
        Where `n`, `size`, `seed` or `sort` is out of range.
    TypeError
        Where `frame` is no frame, `columns` are no names, or a column has no order.

    Notes
    -----
    Eager. The n images are read and decoded on the workers, upright, and no others; n rows and their thumbnails, of at most 9 KB at the default
    size, come to the client. Of a lazy frame, images drawn at random are drawn before they are embedded or scored: only a filter or `sort`
    computes the column that it asks for, of all rows.

    Examples
    --------
    >>> show(frame, sort=("aesthetic_score", "min"), columns="aesthetic_score")  # doctest: +SKIP
    >>> show(frame[frame.error.notnull()]).save("broken.html")  # doctest: +SKIP
    """
    check_options("show", size, n=n)
    check_seed(seed, "show: seed")
    asked = rows.names_of(columns, "show")
    column, largest = _order(sort)
    rows.require(frame, [id_field, *asked, *([column] if column else [])], "show")
    if column is None:
        chosen = rows.sample(frame, n, seed, asked, id_field=id_field)
    else:
        _refuse_unordered(frame, column)
        chosen = rows.top(frame, column, n, largest, asked, id_field=id_field)
    return grid(chosen, asked, _how(len(chosen), n, column, largest), size, id_field, storage_options)


def grid(
    chosen: pd.DataFrame,
    columns: Sequence[str],
    said: str,
    size: int,
    id_field: str,
    storage_options: storage.Options,
    asked: Card | None = None,
) -> Page:
    """Return rows as a page of their images, in order, that says what they are; the image that was asked about stands before them."""
    shown = cards(chosen, columns, size, id_field, storage_options)
    body = render("grid.html", said=said, asked=asked, images=shown, size=size)
    return Page(said, body, f"Page({said}; see .save(path))")


def cards(
    chosen: pd.DataFrame,
    columns: Sequence[str],
    size: int,
    id_field: str,
    storage_options: storage.Options,
) -> list[Card]:
    """Return rows as what is shown of them: thumbnails, ids and columns."""
    thumbs = thumbnails(chosen, size, storage_options)
    columns = [name for name in columns if name != id_field]
    long = {name for name in columns if _is_long(chosen[name])}
    shown = []
    for thumb, (_, row) in zip(thumbs, chosen.iterrows(), strict=True):
        caption = row.get("caption")
        alt = caption if isinstance(caption, str) and caption.strip() else str(row[id_field])
        values = [(name, row[name]) for name in columns]
        texts = [(name, value) for name, value in values if name in long]
        fields = [(name, value) for name, value in values if name not in long]
        shown.append(Card(str(row[id_field]), alt, thumb, texts, fields))
    return shown


def check_options(verb: str, size: int, **counts: int) -> None:
    """Raise where a page would hold no images, or too many, or these would be too large."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or isinstance(count, bool) or not 1 <= count <= MOST_IMAGES:
            raise ValueError(
                f"{verb}: {name}={count!r} must be a whole number, 1 to {MOST_IMAGES:,}, of what fits on a page"
            )
    if not isinstance(size, Integral) or isinstance(size, bool) or not 16 <= size <= _LARGEST:
        raise ValueError(f"{verb}: size={size!r} must be a whole number of pixels, 16 to {_LARGEST:,}")


def _order(sort: Any) -> tuple[str | None, bool]:
    """Return the column to sort by, and whether its highest come first.

    Examples
    --------
    >>> _order("width"), _order(("width", "max")), _order(None)
    (('width', False), ('width', True), (None, False))
    """
    if sort is None or isinstance(sort, str):
        return sort, False
    if isinstance(sort, tuple | list) and len(sort) == 2 and sort[1] in ("min", "max"):
        return str(sort[0]), sort[1] == "max"
    raise ValueError(
        f"sort={sort!r} is no order: give a column, such as 'sharpness', or a column and an end, such as ('sharpness', 'max')"
    )


def _refuse_unordered(frame: Any, column: str) -> None:
    kind = vectors.to_arrow((frame._meta if hasattr(frame, "to_delayed") else frame.iloc[:0])[[column]]).schema.field(0)
    if pa.types.is_nested(kind.type):
        raise TypeError(f"sort: column {column!r} holds {kind.type}, which has no order")


def _how(n: int, asked: int, column: str | None, largest: bool) -> str:
    if n < asked and column is None:
        return f"All {plural(n, 'image')}" if n else "No images"
    if column is None:
        return f"{plural(n, 'image')}, drawn at random"
    return f"{plural(n, 'image')}, {'highest' if largest else 'lowest'} {column} first"


def _is_long(column: pd.Series) -> bool:
    if not pd.api.types.is_string_dtype(column.dtype):
        return False
    return any(isinstance(value, str) and len(value) > _SHORT for value in column)
