"""plot_scores(): how a column of numbers is spread, what a threshold keeps, and the images on either side of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any, Literal, NamedTuple

import pandas as pd

from imgcurate import storage
from imgcurate.cluster import interruptible
from imgcurate.printable import plural
from imgcurate.report import charts, histogram, rows
from imgcurate.report.gallery import cards, check_options
from imgcurate.report.histogram import Histogram
from imgcurate.report.page import Page, render, said, share

#: Of these a low value is good.
_LOW_IS_GOOD = ("nsfw_score",)


class Spread(NamedTuple):
    """What one pass finds of a column.

    Attributes
    ----------
    histogram : Histogram
    below, above : pandas.DataFrame
        Rows just below a threshold, and just above or at it, nearest first; or, without one, the lowest and the highest, from the end on.
    """

    histogram: Histogram
    below: pd.DataFrame
    above: pd.DataFrame


@interruptible
def plot_scores(
    frame: Any,
    column: str,
    threshold: float | None = None,
    *,
    n: int = 6,
    keep: Literal[">=", "<"] | None = None,
    columns: str | Sequence[str] | None = None,
    size: int = 120,
    id_field: str = "image_id",
    storage_options: storage.Options = None,
) -> Page:
    """Draw the histogram of a column, with a threshold, the share it keeps, and the images just below and just above it.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame
        With `column`, and `id_field`, ``url``, ``offset`` and ``bytes`` for the images; without these, there are none.
    column : str
        Of numbers.
    threshold : float, optional
        Default: none, and the images with the lowest and the highest values.
    n : int, default 6
        How many images on each side.
    keep : {">=", "<"}, optional
        Which side of the threshold stays. Default: ``">="``, and ``"<"`` of ``nsfw_score``.
    columns : str or list of str, optional
        What stands below each image beside its id and `column`.
    size, id_field, storage_options
        As for `show`.

    Returns
    -------
    Page

    Raises
    ------
    KeyError
        Where a column is missing.
    TypeError
        Where `column` does not hold numbers.
    ValueError
        Where an option is out of range.

    Notes
    -----
    Eager: `column` is computed once, and is brought together nowhere. Each partition returns at most 128 counts and 2 n rows. Shares are of the
    rows that have a value.

    Examples
    --------
    >>> scores = pd.DataFrame({"image_id": list("abcd"), "sharpness": [3.0, 80.0, 250.0, None]})
    >>> plot_scores(scores, "sharpness", 50)
    Page(sharpness >= 50 keeps 2 of 3 images, 66.7 %; 1 image has no value; without images, because the frame has no url, offset, bytes; see .save(path))
    """
    check_options("plot_scores", size, n=n)
    if threshold is not None and (not isinstance(threshold, Real) or math.isnan(float(threshold))):
        raise ValueError(f"plot_scores: threshold={threshold!r} is no number")
    if keep not in (None, ">=", "<"):
        raise ValueError(
            f"plot_scores: keep={keep!r} is unknown: give '>=' or '<', the side of the threshold that stays"
        )
    keep = keep or ("<" if column in _LOW_IS_GOOD else ">=")
    asked = rows.names_of(columns, "plot_scores")
    rows.require(frame, [column, *asked], "plot_scores", of_images=False)
    absent = [name for name in (id_field, *rows.PLACE) if name not in frame.columns]
    limit = None if threshold is None else float(threshold)
    found = spread(frame, column, limit, 0 if absent else n, asked, id_field=id_field)
    sides = []
    if not absent:
        labels = ("Just below", "At or just above") if threshold is not None else ("Lowest", "Highest")
        tags = ("goes", "stays") if keep == ">=" else ("stays", "goes")
        for label, tag, chosen in zip(labels, tags, found[1:], strict=True):
            shown = cards(chosen, [column, *asked], size, id_field, storage_options)
            sides.append({"label": label, "tag": tag if threshold is not None else "", "images": shown})
    sentence = _sentence(found.histogram, column, limit, keep)
    why = f"without images, because the frame has no {', '.join(absent)}" if absent else ""
    chart = charts.histogram(found.histogram, threshold=limit, keep=keep, title=column)
    body = render("scores.html", column=column, said=sentence, why=why, chart=chart, sides=sides, size=size)
    return Page(column, body, f"Page({'; '.join(part for part in (sentence, why, 'see .save(path)') if part)})")


def spread(
    frame: Any,
    column: str,
    threshold: float | None,
    n: int,
    columns: Sequence[str] = (),
    *,
    id_field: str = "image_id",
) -> Spread:
    """Return the histogram of a column and the rows around a threshold, of one pass. Eager."""
    taken = rows.taking(frame, [column, *columns] if n else [column], id_field)
    found = rows.reduce(
        taken if n else taken[[column]],
        partial(_of_part, column=column, threshold=threshold, n=n),
        partial(_merged, column=column, threshold=threshold, n=n),
    )
    return found


def _of_part(part: Any, column: str, threshold: float | None, n: int) -> Spread:
    below, above = rows.around(part, column, threshold, n)
    return Spread(histogram.of_column(part[column], threshold), below, above)


def _merged(parts: list[Spread], column: str, threshold: float | None, n: int) -> Spread:
    below, above = rows.merge_around([part[1:] for part in parts], column, threshold, n)
    return Spread(histogram.merge([part.histogram for part in parts]), below, above)


def _sentence(found: Histogram, column: str, threshold: float | None, keep: str) -> str:
    if threshold is None:
        ends = f", from {said(found.low)} to {said(found.high)}" if len(found.counts) else ""
        sentence = f"{column} of {plural(found.n, 'image')}{ends}"
    else:
        kept = found.at_least if keep == ">=" else found.n - found.at_least
        sentence = (
            f"{column} {keep} {said(threshold)} keeps {kept:,} of {plural(found.n, 'image')}, {share(kept, found.n)}"
        )
    if found.missing:
        sentence += f"; {plural(found.missing, 'image')} {'has' if found.missing == 1 else 'have'} no value"
    return sentence
