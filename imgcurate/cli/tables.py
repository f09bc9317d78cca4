"""What became of the images of a run, as a table for a terminal."""

from __future__ import annotations

from typing import Any


def table(manifest: dict[str, Any]) -> str:
    """Say in a table what became of the images.

    Parameters
    ----------
    manifest : dict
        What `curate` returns.

    Returns
    -------
    str
        A line a step; its counts add up to the images read.
    """
    counts, options = manifest["counts"], manifest["options"]
    lines = [
        ("read", "read", ""),
        ("errors", "errors", ""),
        ("below aesthetic", "below_aesthetic", _limit("aesthetic_score <", options["min_aesthetic"])),
        ("above NSFW", "above_nsfw", _limit("nsfw_score >=", options["max_nsfw"])),
        ("duplicates", "duplicates", _kinds(options)),
        ("kept", "kept", f"in {counts['shards']} shard{'s' * (counts['shards'] != 1)}"),
    ]
    read = max(1, counts["read"])
    return "\n".join(
        f"{title:<16}{counts[name]:>12,}{counts[name] / read:>8.1%}  {note}".rstrip() for title, name, note in lines
    )


def _kinds(options: dict[str, Any]) -> str:
    """Say which images count as duplicates."""
    said = {
        "exact": "same bytes",
        "perceptual": f"at most {options['max_distance']} of 64 bits differ",
        "semantic": f"cosine >= 1 - {options['eps']:g}",
    }
    return ", or ".join(said[kind] for kind in options["dedup"]) or "not asked for"


def _limit(text: str, limit: float | None) -> str:
    return "not asked for" if limit is None else f"{text} {limit:g}"
