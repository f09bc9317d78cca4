"""The pictures of a page: asked for first, made together, and no more of them than a page may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from imgcurate.printable import printable
from imgcurate.report.thumbnails import Thumbnail

#: A page holds so many thumbnails, and so many bytes of them: its text comes to a few hundred kilobytes at most.
MOST, MOST_BYTES = 400, 4_200_000
#: The side of a thumbnail, in pixels.
SIZE = 160
#: An image is veiled from this NSFW score on, or from the limit of the run where that is lower.
UNSAFE = 0.5


@dataclass
class Picture:
    """An image on a page, and what is said of it there.

    Attributes
    ----------
    id : str
    alt : str
    texts : list of (str, str)
        What each is, and the text.
    fields : list of (str, object)
    row : pandas.Series
        With columns of `imgcurate.report.run.facts.COLUMNS`.
    veiled : bool
        Whether it is seen only by who asks for it.
    thumb : Thumbnail
    """

    id: str
    alt: str
    texts: list[tuple[str, str]]
    fields: list[tuple[str, Any]]
    row: Any
    veiled: bool
    thumb: Thumbnail


class Album:
    """Makes the pictures of a page.

    Parameters
    ----------
    max_nsfw : float or None
        The limit of the run.
    """

    def __init__(self, max_nsfw: float | None) -> None:
        self._unsafe = min(UNSAFE, UNSAFE if max_nsfw is None else max_nsfw)
        self._asked: list[Picture] = []

    def add(
        self,
        rows: pd.DataFrame,
        texts: Callable[[Any], Sequence[tuple[str, str]]] = lambda row: (),
        fields: Callable[[Any], Sequence[tuple[str, Any]]] = lambda row: (),
    ) -> list[Picture]:
        """Ask for a picture of each row, which `develop` makes; those that are asked for first are made first."""
        pictures = [self._picture(row, list(texts(row)), list(fields(row))) for _, row in rows.iterrows()]
        self._asked += pictures
        return pictures

    @property
    def left(self) -> int:
        """How many more a page may hold."""
        return max(0, MOST - len(self._asked))

    def develop(self, make: Callable[[pd.DataFrame], Sequence[Thumbnail]]) -> None:
        """Make the thumbnails, each image's once."""
        asked = self._asked[:MOST]
        if not asked:
            return
        first = {picture.id: picture.row for picture in reversed(asked)}
        made: Mapping[str, Thumbnail] = dict(zip(first, make(pd.DataFrame(list(first.values()))), strict=True))
        room = MOST_BYTES
        for picture in asked:
            thumb = made[picture.id]
            room -= len(thumb.uri or "")
            if room < 0:
                return
            picture.thumb = thumb

    def _picture(self, row: Any, texts: list[tuple[str, str]], fields: list[tuple[str, Any]]) -> Picture:
        score = row.get("nsfw_score")
        veiled = score is not None and bool(score >= self._unsafe)
        caption = row["caption"] if isinstance(row["caption"], str) and row["caption"].strip() else ""
        alt = printable(caption) if caption else f"image {printable(row['image_id'])}"
        left_out = Thumbnail(None, 0, 0, f"left out: a page holds at most {MOST} pictures")
        return Picture(row["image_id"], alt, texts, fields, row, veiled, left_out)
