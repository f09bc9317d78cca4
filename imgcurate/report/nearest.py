"""What `Neighbours` shows: images, each with those nearest to it."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import pandas as pd

from imgcurate.arguments import check_seed
from imgcurate.printable import plural, printable
from imgcurate.report import rows
from imgcurate.report.gallery import check_options
from imgcurate.report.page import Page, render
from imgcurate.report.pairs import Options, images_of, said_likeness, with_frame

if TYPE_CHECKING:
    from imgcurate.nearest.result import Neighbours

_TITLE = "Nearest images"
_LISTS = ["neighbours", "similarities"]


def nearest(found: Neighbours, n: int, ids: Any, most: int, seed: int, options: Options) -> Page:
    """Return images, those named or some drawn at random, each with the `most` nearest to it."""
    check_options("show", options.size, n=n, most=most)
    check_seed(seed, "show: seed")
    options = with_frame(found, "show", options)
    chosen = rows.sample(found.frame, n, seed, _LISTS, id_field=found.id_field) if ids is None else _named(found, ids)
    near = [list(zip(*(list(part)[:most] for part in lists), strict=True)) for lists in chosen[_LISTS].to_numpy()]
    firsts = chosen[found.id_field].tolist()
    images = images_of(found, [*firsts, *(other for others in near for other, _ in others)], options)
    shown = [
        (images[first], [(images[other], said_likeness("semantic", value)) for other, value in others])
        for first, others in zip(firsts, near, strict=True)
    ]
    drawn = ", drawn at random," if ids is None and len(firsts) < found.n_compared else ""
    how = (
        f"{plural(len(firsts), 'image')}{drawn} and the {min(most, found.k)} nearest to each" if firsts else "No images"
    )
    body = render("nearest.html", title=_TITLE, said=f"{how}, with their similarity.", images=shown, size=options.size)
    return Page(_TITLE, body, f"Page({how}; see .save(path))")


def _named(found: Neighbours, ids: Any) -> pd.DataFrame:
    """Return the rows of images that ids name."""
    names = [ids] if isinstance(ids, str | Integral) else list(ids)
    chosen = rows.by_ids(found.frame, names, _LISTS, id_field=found.id_field)
    missing = [name for name in names if name not in set(chosen[found.id_field])]
    if missing:
        raise KeyError(
            f"show: ids names {printable(str(missing[0]))!r}, which was not compared: it is not in the frame, has an error or no vector"
        )
    return chosen
