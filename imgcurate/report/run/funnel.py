"""What became of the images of a run, step by step, in all and by source: counts that add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from imgcurate import flags
from imgcurate.printable import plural

#: Of so many sources the counts stand in a page; those of the others are added up.
MOST_SOURCES = 40
#: What becomes of images, as a manifest counts it by source, and the class of its colour.
OUTCOMES = {
    "kept": "kept",
    "duplicates": "duplicates",
    "above_nsfw": "nsfw",
    "below_aesthetic": "aesthetic",
    "flagged": "flagged",
    "errors": "error",
}
#: What an image is called that was removed for a kind of reason.
KINDS = {
    "error": "could not be used",
    **{flag: flag.replace("_", " ") for flag in flags.MEASURES},
    "aesthetic": "below the aesthetic limit",
    "nsfw": "at or above the NSFW limit",
    "exact": "exact duplicates",
    "perceptual": "perceptual duplicates",
    "semantic": "semantic duplicates",
}


class Step(NamedTuple):
    """A line of the funnel.

    Attributes
    ----------
    name : str
        ``"read"``, a kind of reason, or ``"kept"``.
    label, note : str
    images : int
        How many there are, or how many the step takes away.
    left : int
        How many are left after it.
    """

    name: str
    label: str
    note: str
    images: int
    left: int


def steps_of(manifest: Mapping[str, Any]) -> list[Step]:
    """Return the funnel of a run: what was read, what each step took away, and what is kept.

    Raises
    ------
    ValueError
        Where it does not add up.

    Examples
    --------
    >>> counts = {"read": 5, "kept": 3, "shards": 1}
    >>> manifest = {"counts": counts, "reasons": {"error": 1, "semantic": 1}, "options": {"eps": 0.1, "dedup": ["semantic"]}, "sources": {"a.tar": {}}}
    >>> [(step.name, step.images, step.left) for step in steps_of(manifest)]
    [('read', 5, 5), ('error', 1, 4), ('semantic', 1, 3), ('kept', 3, 3)]
    """
    counts, reasons, options = manifest["counts"], manifest["reasons"], manifest["options"]
    left = counts["read"]
    n = len(manifest["sources"])
    steps = [Step("read", "read", f"from {plural(n, 'source')}", left, left)]
    for kind, label in KINDS.items():
        if not (reasons.get(kind) or _asked_for(kind, options)):
            continue
        left -= reasons.get(kind, 0)
        steps.append(Step(kind, label, _note(kind, manifest), reasons.get(kind, 0), left))
    if left != counts["kept"]:
        raise ValueError(
            f"the manifest's counts do not add up: {counts['read']:,} images were read, {counts['kept']:,} are kept and {reasons} not"
        )
    return [*steps, Step("kept", "kept", written_as(counts), left, left)]


def written_as(counts: Mapping[str, int]) -> str:
    """Say what was written.

    Examples
    --------
    >>> written_as({"shards": 1, "kept": 9}), written_as({"files": 18, "kept": 9})
    ('in 1 shard', 'in 18 files')
    """
    what = "files" if "files" in counts else "shards"
    return f"in {plural(counts[what], what.removesuffix('s'))}"


def _asked_for(kind: str, options: Mapping[str, Any]) -> bool:
    """Tell whether a step was done, of which it is worth saying that it took nothing away."""
    limits = {"error": True, "aesthetic": options.get("min_aesthetic"), "nsfw": options.get("max_nsfw")}
    return (
        limits[kind] not in (None, False) if kind in limits else kind in (*options.get("drop", ()), *options["dedup"])
    )


def _note(kind: str, manifest: Mapping[str, Any]) -> str:
    options = manifest["options"]
    if kind in flags.MEASURES:
        median = manifest["median_side"] if kind == "odd_size" else None
        of = f" of {median:g} px" if median is not None else ""
        sign = ">" if kind in flags.ABOVE else "<"
        return f"{flags.COMPARED[kind]}{of} {sign} {manifest['flags'][kind]:g}"
    if kind == "aesthetic":
        return f"aesthetic_score < {options['min_aesthetic']:g}"
    if kind == "nsfw":
        return f"nsfw_score >= {options['max_nsfw']:g}"
    if kind == "perceptual":
        return f"at most {options['max_distance']} of 64 bits differ"
    if kind == "semantic":
        return f"cosine at least {1 - options['eps']:g} (eps {options['eps']:g})"
    return {"error": "unreadable, broken, too large", "exact": "same bytes"}[kind]


class Source(NamedTuple):
    """What became of a source's images.

    Attributes
    ----------
    name : str
        Without what all sources begin with.
    url : str
        Empty for those that are added up.
    read : int
    counts : dict of str to int
        By the keys of `OUTCOMES`; they add up to `read`.
    """

    name: str
    url: str
    read: int
    counts: dict[str, int]


def by_source(sources: Mapping[str, Mapping[str, int]], common: str = "") -> list[Source]:
    """Return what became of the images of each source; of many, of those that lost most, with the others in one line.

    Parameters
    ----------
    sources : mapping
        As a manifest has them.
    common : str
        The folder that they all lie in.

    Examples
    --------
    >>> by_source({"d/a.tar": {"read": 3, "kept": 2, "duplicates": 1, "above_nsfw": 0, "below_aesthetic": 0, "errors": 0}}, "d")
    [Source(name='a.tar', url='d/a.tar', read=3, counts={'kept': 2, 'duplicates': 1, 'above_nsfw': 0, 'below_aesthetic': 0, 'flagged': 0, 'errors': 0})]
    """
    lines = [
        Source(
            url.removeprefix(common).strip("/") or url,
            url,
            known["read"],
            {name: known.get(name, 0) for name in OUTCOMES},
        )
        for url, known in sources.items()
    ]
    if len(lines) <= MOST_SOURCES:
        return lines
    lines.sort(key=lambda line: (line.counts["kept"] - line.read, line.url))
    return [*lines[:MOST_SOURCES], _together(lines[MOST_SOURCES:])]


def _together(lines: Sequence[Source]) -> Source:
    counts = {name: sum(line.counts[name] for line in lines) for name in OUTCOMES}
    return Source(f"{len(lines):,} others", "", sum(line.read for line in lines), counts)
