"""The images that others are duplicates of, and the duplicates of a few of them: found by id in a second pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd

from imgcurate import parts, storage
from imgcurate.report.run.facts import COLUMNS

#: How many duplicates of a kept image are shown beside it.
MEMBERS = 6


@dataclass
class Relatives:
    """What was found.

    Attributes
    ----------
    images : pandas.DataFrame
        Those that were asked for, with columns of `COLUMNS`.
    members : dict of str to pandas.DataFrame
        Of each kept image of which they were asked for, the duplicates least similar to it, at most `MEMBERS`.
    sizes : collections.Counter
        And how many there are.
    """

    images: pd.DataFrame
    members: dict[str, pd.DataFrame]
    sizes: Counter[str]


def find(
    urls: Sequence[str], image_ids: Collection[str], groups: Collection[str], storage_options: storage.Options
) -> Relatives:
    """Look through some parts of a run's table of images.

    Parameters
    ----------
    urls : sequence of str
    image_ids : collection of str
        The images that are wanted.
    groups : collection of str
        The kept images of which duplicates are wanted.
    """
    found = []
    for url in urls:
        ids = parts.read_part(url, None, ["image_id", "duplicate_of"], storage_options)
        wanted = ids["image_id"].isin(image_ids) | ids["duplicate_of"].isin(groups)
        if wanted.any():
            part = parts.read_part(url, None, COLUMNS, storage_options)[wanted.to_numpy()]
            found.append(part.assign(caption=part["caption"].str.slice(0, 400)))
    images = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)
    of_groups = images[images["duplicate_of"].isin(groups)]
    return Relatives(
        images[images["image_id"].isin(image_ids)],
        {kept: _least_similar(members) for kept, members in of_groups.groupby("duplicate_of")},
        Counter(of_groups["duplicate_of"]),
    )


def merge(some: Sequence[Relatives]) -> Relatives:
    """Return what was found in all parts of which some was found in each."""
    images = pd.concat([found.images for found in some], ignore_index=True)
    members = {}
    for kept in sorted({kept for found in some for kept in found.members}):
        of_kept = [found.members[kept] for found in some if kept in found.members]
        members[kept] = _least_similar(pd.concat(of_kept, ignore_index=True))
    return Relatives(images, members, sum((found.sizes for found in some), Counter()))


def _least_similar(members: pd.DataFrame) -> pd.DataFrame:
    return members.sort_values(["similarity", "image_id"]).head(MEMBERS)
