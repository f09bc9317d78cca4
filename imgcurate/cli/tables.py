"""What commands answer: a table for a terminal, or one JSON object for a machine."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from imgcurate.printable import plural, printable


def answer(given: argparse.Namespace, found: Mapping[str, Any], text: str) -> None:
    """Print what a command found: as `text`, or where ``--json`` is given as one JSON object."""
    print(json.dumps(plain(found), indent=2, allow_nan=False) if given.json else text)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers that are none as null, NumPy's as Python's, paths as text.

    Examples
    --------
    >>> import numpy as np
    >>> plain({"a": np.float32("nan"), "b": (np.int64(3), None)})
    {'a': None, 'b': [3, None]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def lines(rows: Sequence[tuple[str, str]]) -> str:
    """Lay out names and what is said of each, safe for a terminal; of what is empty there is no line, and without a name it goes on.

    Examples
    --------
    >>> print(lines([("images", "49"), ("note", ""), ("bytes", "12"), ("", "in all")]))
    images  49
    bytes   12
            in all
    """
    width = max((len(name) for name, said in rows if said), default=0)
    return "\n".join(f"{name:<{width}}  {printable(said, 1000)}" for name, said in rows if said)


def table(manifest: dict[str, Any]) -> str:
    """Say in a table what became of the images.

    Parameters
    ----------
    manifest : dict
        What `curate` returns.

    Returns
    -------
    str
        A line a step; its counts add up to the images read. Several flags, and duplicates of several kinds, are counted by kind, too.
    """
    counts, options = manifest["counts"], manifest["options"]
    kinds = options["dedup"] if len(options["dedup"]) > 1 else []
    # A run of an earlier version has none.
    flags = manifest.get("flags", {})
    flagged = [("flagged", "flagged", _flags(manifest))] if flags else []
    flagged += [(f"  {flag}", flag, "") for flag in flags if len(flags) > 1]
    counts = counts | {kind: manifest["reasons"][kind] for kind in (*kinds, *flags)}
    lines = [
        ("read", "read", ""),
        ("errors", "errors", ""),
        *flagged,
        ("below aesthetic", "below_aesthetic", _limit("aesthetic_score <", options["min_aesthetic"])),
        ("above NSFW", "above_nsfw", _limit("nsfw_score >=", options["max_nsfw"])),
        ("duplicates", "duplicates", _kinds(options) + _recall(manifest)),
        *((f"  {kind}", kind, "") for kind in kinds),
        ("kept", "kept", _written(counts)),
    ]
    width, read = max(16, *(len(title) + 1 for title, _, _ in lines)), max(1, counts["read"])
    return "\n".join(
        f"{title:<{width}}{counts[name]:>12,}{counts[name] / read:>8.1%}  {note}".rstrip()
        for title, name, note in lines
    )


def nothing_kept(counts: dict[str, int], out: str) -> str:
    """Say in a sentence why a run has kept no image, and where more is told.

    Examples
    --------
    >>> nothing_kept({"read": 3, "errors": 3, "below_aesthetic": 0, "above_nsfw": 0, "duplicates": 0}, "out")
    'no image is kept: of 3 images 3 have an error; the column reason of out/images.parquet says why of each'
    >>> nothing_kept({"read": 1, "errors": 1}, "out")
    'no image is kept: of 1 image 1 has an error; the column reason of out/images.parquet says why of each'
    """
    said = {
        "errors": ("has an error", "have an error"),
        "flagged": ("has a flag of --drop", "have a flag of --drop"),
        "below_aesthetic": ("is below --min-aesthetic", "are below --min-aesthetic"),
        "above_nsfw": ("reaches --max-nsfw", "reach --max-nsfw"),
    }
    numbers = {name: counts.get(name, 0) for name in said}
    why = " and ".join(f"{n:,} {said[name][n != 1]}" for name, n in numbers.items() if n)
    if not counts["read"]:
        return "no image is kept, for the input holds none"
    return f"no image is kept: of {plural(counts['read'], 'image')} {why}; the column reason of {out}/images.parquet says why of each"


def _written(counts: dict[str, int]) -> str:
    """Say what kept images have become."""
    what = "file" if "files" in counts else "shard"
    return f"in {plural(counts[f'{what}s'], what)}"


def _flags(manifest: dict[str, Any]) -> str:
    """Say what images were dropped for."""
    said = list(manifest["flags"])
    if manifest["median_side"] is not None:
        said[said.index("odd_size")] += f" beside a median of {manifest['median_side']:g} px"
    return ", ".join(said)


def _kinds(options: dict[str, Any]) -> str:
    """Say which images count as duplicates."""
    said = {
        "exact": "same bytes",
        "perceptual": f"at most {options['max_distance']} of 64 bits differ",
        "semantic": f"cosine >= 1 - {options['eps']:g}",
    }
    return ", or ".join(said[kind] for kind in options["dedup"]) or "not asked for"


def _recall(manifest: Mapping[str, Any]) -> str:
    """Say which share of the pairs was found, where that is an estimate.

    Examples
    --------
    >>> _recall({"recall": {"recall": 0.97, "low": 0.95, "high": 0.99}}), _recall({"recall": None}), _recall({"recall": {"recall": None}})
    ('; about 97.0% of the pairs found (95.0% to 99.0%)', '', '')
    """
    known = manifest.get("recall") or {"recall": None}
    if known["recall"] is None:
        return ""
    return f"; about {known['recall']:.1%} of the pairs found ({known['low']:.1%} to {known['high']:.1%})"


def _limit(text: str, limit: float | None) -> str:
    return "not asked for" if limit is None else f"{text} {limit:g}"
