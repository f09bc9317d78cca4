"""The command that a run was started with, from its manifest, to be given again with another limit."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

# The options of ``imgcurate run``, by their names in a manifest, and what they are where they are not given.
_DEFAULTS: dict[str, Any] = {
    "model": "openai/clip-vit-large-patch14",
    "model_dir": None,
    "min_aesthetic": None,
    "max_nsfw": None,
    "drop": [],
    "dedup": ["semantic"],
    "max_distance": 4,
    "eps": None,
    "n_clusters": None,
    "probes": 2,
    "exact": False,
    "keep": "largest",
    "rule": "cover",
    "write": "shards",
    "samples_per_shard": 10_000,
    "caption_from": "txt",
    "image": None,
    "max_sidecar": 1 << 20,
    "batch_size": None,
    "measure": [],
    "truncated": False,
    "formats": [],
    "timeout": None,
    "max_read_errors": None,
    "roots": None,
}
# Those that curate() has and the command has not.
_OF_CURATE: dict[str, Any] = {"dtype": "auto", "draft": True}


def command(options: Mapping[str, Any], **changed: Any) -> str:
    """Return the command of a run, quoted for a shell.

    Parameters
    ----------
    options : mapping
        Those of its manifest.
    **changed
        Others in place of some.

    Examples
    --------
    >>> command({"inputs": "my shards/*.tar", "out": "curated", "eps": 0.05, "probes": 2, "measure": ["sharpness"]}, eps=0.02)
    "imgcurate run 'my shards/*.tar' curated --eps 0.02 --measure"
    >>> command({"inputs": "best.parquet", "out": "best", "roots": ["/photos", "s3://more"]})
    'imgcurate run best.parquet best --roots /photos --roots s3://more'
    """
    inputs = options["inputs"]
    places = [*([inputs] if isinstance(inputs, str) else inputs), options["out"]]
    given = {**options, **changed}
    flags = [
        word
        for name, default in _DEFAULTS.items()
        if given.get(name, default) != default
        for word in _words(name, given[name])
    ]
    if any(place.startswith("-") for place in places):
        return shlex.join(["imgcurate", "run", *flags, "--", *places])
    return shlex.join(["imgcurate", "run", *places, *flags])


def only_of_curate(manifest: Mapping[str, Any]) -> list[str]:
    """Return what a run was given that only `curate` takes, and no option of the command line.

    Examples
    --------
    >>> only_of_curate({"options": {"dtype": "float32", "draft": True}, "models": {"encoder": {"kind": "clip"}}})
    ['dtype']
    """
    others = [name for name, default in _OF_CURATE.items() if manifest["options"].get(name, default) != default]
    return [*(["model"] if manifest["models"]["encoder"].get("kind") == "callable" else []), *others]


def _words(name: str, value: Any) -> list[str]:
    """Return an option as the words of a command."""
    flag = f"--{name.replace('_', '-')}"
    if name == "roots":
        return [word for folder in value for word in (flag, folder)]
    if name == "dedup":
        return [flag, ",".join(value)] if value else ["--no-dedup"]
    if name == "measure" or value is True:
        return [flag]
    if name == "keep" and not isinstance(value, str):
        return [flag, ",".join(":".join(column) for column in value)]
    if isinstance(value, list | tuple):
        return [flag, ",".join(value)]
    # A negative number, or a path that begins so, would be taken for an option.
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]
