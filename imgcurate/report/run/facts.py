"""What a page says of the images of a run, from one pass over its table: counts, histograms, and a few rows of each kind.

Facts of parts are merged into facts of all. They hold no more for a billion images than for a thousand.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from imgcurate import flags, parts, storage
from imgcurate.printable import kind_of
from imgcurate.report import histogram
from imgcurate.report.histogram import Histogram
from imgcurate.report.run.counts import Counts

#: Numbers of an image of which a page has a histogram, in its order; the first two have limits.
SCORES = ("aesthetic_score", "nsfw_score")
MEASURES = (
    *SCORES,
    "sharpness",
    "brightness",
    "contrast",
    "colourfulness",
    "entropy",
    "aspect",
    "bytes_per_pixel",
)
_NUMBERS = (*MEASURES, *flags.MEASURES)
#: The columns that are read: neither embeddings nor JSON.
COLUMNS = (
    *("image_id", "url", "member", "offset", "bytes", "etag", "digest", "caption", "width", "height", "format"),
    *MEASURES,
    *("error", "duplicate_of", "similarity", "kept", "reason", "reason_kind"),
)
#: How many rows of each kind are chosen.
KEPT, NEAR, AT_ENDS, PAIRS, OF_EACH_ERROR = 14, 6, 4, 12, 4
_MOST_ERRORS, _MOST_FORMATS, _MOST_GROUPS = 48, 64, 1 << 15
_MOST_TEXT = 400


@dataclass
class Facts:
    """Of some images of a run.

    Attributes
    ----------
    read, kept : int
    histograms : dict of str to Histogram
        Of each number of `MEASURES` that was computed, of what each flag compares, and of the similarity of each kind of duplicates, by its name.
    tallies : dict of str to Counts
        ``"error"``: what went wrong, by `kind_of`; ``"format"``; ``"group"``: the kept images by how many
        duplicates of each were removed; ``"caption"``, ``"side"`` and ``"bytes"``: lengths of captions, longer sides and sizes of files, by
        the power of two that they reach.
    rows : dict of (str, str) to pandas.DataFrame
        Images that were chosen, as columns of `COLUMNS` and ``order``, by which they were: a sample of the ``("kept", "")``, those just
        ``("below", score)`` and ``("above", score)`` a limit, with the ``("lowest", measure)`` and the ``("highest", measure)``, a sample of
        those with an ``("error", kind)``, and the duplicates of each kind that are ``("least", kind)`` similar to what is kept.
    """

    read: int
    kept: int
    histograms: dict[str, Histogram]
    tallies: dict[str, Counts]
    rows: dict[tuple[str, str], pd.DataFrame]


def read(
    urls: Sequence[str], limits: Mapping[str, float], median_side: float | None, storage_options: storage.Options
) -> Facts:
    """Return the facts of some parts of a run's table of images."""
    read = [parts.read_part(url, None, COLUMNS, storage_options) for url in urls]
    images = pd.concat(read, ignore_index=True)
    median_side = math.nan if median_side is None else median_side
    values = {name: flags.value(images, name, median_side) for name in flags.MEASURES if name in limits}
    return of_images(
        images.assign(**{name: value.where(images["error"].isna()) for name, value in values.items()}), limits
    )


def of_images(images: pd.DataFrame, limits: Mapping[str, float]) -> Facts:
    """Return the facts of images.

    Parameters
    ----------
    images : pandas.DataFrame
        With columns of `COLUMNS`, and what the flags compare of those that images were dropped for.
    limits : mapping of str to float
        Scores, and flags, to the limit that they were filtered by.
    """
    kinds = images["reason_kind"].astype(object)
    duplicates = images[images["duplicate_of"].notna() & kinds.isin(["exact", "perceptual", "semantic"])]
    histograms = {name: histogram.of_column(images[name], limits.get(name)) for name in _NUMBERS if name in images}
    for kind, of_kind in duplicates.groupby(kinds[duplicates.index]):
        histograms[kind] = histogram.of_column(of_kind["similarity"])
    what = images["error"].map({error: kind_of(error) for error in images["error"].dropna().unique()})
    tallies = {
        "error": Counts(_MOST_ERRORS).add(what.dropna()),
        "format": Counts(_MOST_FORMATS).add(_formats(images)),
        "group": Counts(_MOST_GROUPS).add(duplicates["duplicate_of"]),
        "caption": Counts(64).add(_caption_lengths(images["caption"])),
        "side": Counts(64).add(_powers(images[["width", "height"]].max(axis="columns"))),
        "bytes": Counts(64).add(_powers(images["bytes"])),
    }
    errors = {kind for kind, _ in tallies["error"].largest(_MOST_ERRORS)}
    rows = {
        which: _first(images, order, _MOST[which[0]])
        for which, order in _orders(images, kinds, what.where(what.isin(errors)), limits)
    }
    return Facts(len(images), int(images["kept"].sum()), histograms, tallies, rows)


def merge(some: Sequence[Facts]) -> Facts:
    """Return the facts of all the images that some facts are of."""
    read, kept = sum(facts.read for facts in some), sum(facts.kept for facts in some)
    names = dict.fromkeys(name for facts in some for name in facts.histograms)
    histograms = {
        name: histogram.merge([facts.histograms[name] for facts in some if name in facts.histograms]) for name in names
    }
    tallies = {
        name: functools.reduce(Counts.merge, (facts.tallies[name] for facts in some)) for name in some[0].tallies
    }
    rows: dict[tuple[str, str], pd.DataFrame] = {}
    for which in dict.fromkeys(which for facts in some for which in facts.rows):
        if which[0] == "error" and which[1] not in tallies["error"].held:
            continue
        found = pd.concat([facts.rows[which] for facts in some if which in facts.rows], ignore_index=True)
        rows[which] = _first(found, found["order"], _MOST[which[0]])
    return Facts(read, kept, histograms, tallies, rows)


def at_random(image_ids: pd.Series) -> pd.Series:
    """Return an order that has nothing to do with what images are, and is the same for the same ids."""
    return pd.Series(pd.util.hash_array(image_ids.to_numpy(object), categorize=False), image_ids.index).astype(float)


_MOST = {
    "kept": KEPT,
    "below": NEAR,
    "above": NEAR,
    "lowest": AT_ENDS,
    "highest": AT_ENDS,
    "error": OF_EACH_ERROR,
    "least": PAIRS,
}


def _orders(
    images: pd.DataFrame, kinds: pd.Series, what: pd.Series, limits: Mapping[str, float]
) -> Iterator[tuple[tuple[str, str], pd.Series]]:
    """Yield of each choice of rows by what they are ordered: NaN for those that are not of the kind."""
    random = at_random(images["image_id"])
    yield ("kept", ""), random.where(images["kept"])
    for kind in what.dropna().unique():
        yield ("error", kind), random.where(what == kind)
    for kind in kinds[images["duplicate_of"].notna()].dropna().unique():
        yield ("least", kind), images["similarity"].where(kinds == kind)
    usable = images["error"].isna()
    for name in _NUMBERS:
        if name not in images:
            continue
        value = images[name].astype("float64").where(usable)
        if name in limits:
            above = pd.Series(histogram.at_or_above(images[name], limits[name]), images.index)
            yield ("below", name), -value.where(~above)
            yield ("above", name), value.where(above)
        elif name not in SCORES:
            yield ("lowest", name), value
            yield ("highest", name), -value


def _first(images: pd.DataFrame, order: pd.Series, n: int) -> pd.DataFrame:
    """Return the first n images of an order, of equal ones by id, without what is NaN in it."""
    order = order.astype("float64").dropna().nsmallest(n, keep="all")
    found = images.loc[order.index].assign(order=order).sort_values(["order", "image_id"]).head(n)
    texts = {name: found[name].str.slice(0, _MOST_TEXT) for name in ("caption", "error")}
    return found.assign(**texts, reason_kind=found["reason_kind"].astype(object)).reset_index(drop=True)


def _formats(images: pd.DataFrame) -> pd.Series:
    """Return formats, as they were measured, else as the names of the files say."""
    if "format" in images:
        return images["format"].dropna()
    names = images["member"].fillna(images["url"]).dropna()
    return names.map(lambda name: os.path.splitext(name)[1][1:].lower()[:8] or "none")


def _powers(values: pd.Series) -> Iterator[str]:
    """Yield of each positive number the largest power of two that it reaches."""
    numbers = values.dropna().to_numpy("float64")
    _, exponents = np.frexp(numbers[numbers >= 1])
    return (str(1 << (int(exponent) - 1)) for exponent in exponents)


def _caption_lengths(captions: pd.Series) -> Iterator[str]:
    yield from ["none"] * int(captions.isna().sum())
    there = captions.dropna().str.strip().str.len()
    yield from ["empty"] * int((there == 0).sum())
    yield from _powers(there)


def limits_of(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores and flags that a run filtered by, and the limits: what is at one lies above it."""
    options = manifest["options"]
    limits = {"aesthetic_score": options.get("min_aesthetic"), "nsfw_score": options.get("max_nsfw")}
    for name, limit in manifest.get("flags", {}).items():
        # What lies above it goes, and what is at it stays.
        limits[name] = math.nextafter(limit, math.inf) if name in flags.ABOVE else limit
    return {name: limit for name, limit in limits.items() if limit is not None}
