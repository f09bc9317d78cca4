"""What `Leaks` shows: pairs of images of two splits, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgcurate.printable import plural
from imgcurate.report.gallery import check_options
from imgcurate.report.page import Page, render
from imgcurate.report.pairs import Options, Pair, images_of, said_likeness, with_frame

if TYPE_CHECKING:
    from imgcurate.dedup.leaked import Leaks

_TITLE = "Images of two splits"


def least_similar(found: Leaks, n: int, options: Options) -> Page:
    """Return pairs of each two splits, those least alike first, and how many images of each are in the other."""
    check_options("show", options.size, n=n)
    options = with_frame(found, "show", options)
    pairs, counts = found.least_similar(n), found.counts()
    images = images_of(found, [*pairs[found.id_field], *pairs["duplicate_of"]], options)
    images_in = {(row.split, row.other_split): row.images for row in counts.itertuples()}
    sides = []
    for (split, other), rows in pairs.groupby(["split", "other_split"], sort=False):
        ways = [(split, other), (other, split)]
        named = zip(rows[found.id_field], rows["duplicate_of"], rows["kind"], rows["similarity"], strict=True)
        sides.append(
            {
                "label": "; ".join(f"{a} in {b}: {plural(images_in[a, b], 'image')}" for a, b in ways),
                "tags": (str(split), str(other)),
                "pairs": [Pair(images[a], images[b], said_likeness(kind, value), kind) for a, b, kind, value in named],
                "none": "",
            }
        )
    how = f"{plural(len(pairs), 'pair')} of images of two splits, those least alike first"
    said = f"By {', '.join(found.thresholds)} likeness: {how if sides else 'no image of one split is in another'}."
    body = render("pairs.html", title=_TITLE, said=said, sides=sides, size=options.size)
    return Page(_TITLE, body, f"Page({how}; see .save(path))")
