"""The options of a run, checked once, and on which of them each step depends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from imgcurate import encoders, flags, measures, pixels
from imgcurate.dedup.graph.rank import Keep
from imgcurate.encoders import check_dtype
from imgcurate.encoders.function import name_of
from imgcurate.sinks.webdataset import check_samples_per_shard
from imgcurate.sources.sidecars import MAX_SIDECAR, Sidecars, chosen

STAGES = ("exact", "perceptual", "semantic")

#: What kept images are written as.
WRITTEN = ("shards", "files")

_OF_NO_EFFECT = ("model", "model_dir", "max_read_errors")
# What every run has of an image without measuring it.
_KNOWN = ("width", "height", "aspect")
# One decoding gives them all, and so another flag of these measures no image again; colour takes longer than all of them.
_OF_GREYS = ("sharpness", "brightness", "contrast", "entropy")


class Limits(NamedTuple):
    """What images must pass to be kept.

    Attributes
    ----------
    min_aesthetic, max_nsfw : float or None
    drop : tuple of (str, float)
        Each flag that an image must not have, and its threshold.
    median_side : float or None
        What the flag odd_size compares with.
    """

    min_aesthetic: float | None = None
    max_nsfw: float | None = None
    drop: tuple[tuple[str, float], ...] = ()
    median_side: float | None = None


@dataclass(frozen=True)
class Options:
    """The options of `curate`, under their names there; raises a ValueError where one is out of range."""

    model: encoders.Model
    model_dir: str | os.PathLike[str] | None
    min_aesthetic: float | None
    max_nsfw: float | None
    dedup: tuple[str, ...]
    max_distance: int
    eps: float | None
    n_clusters: int | None
    probes: int
    exact: bool
    keep: Keep
    rule: str
    samples_per_shard: int
    batch_size: int | None
    dtype: str
    draft: bool
    truncated: bool
    formats: tuple[str, ...]
    timeout: float | None
    measure: tuple[str, ...]
    max_read_errors: float | None
    write: str = "shards"
    caption_from: str = "txt"
    image: str | None = None
    max_sidecar: int = MAX_SIDECAR
    drop: tuple[str, ...] = ()
    roots: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_samples_per_shard(self.samples_per_shard)
        if self.write not in WRITTEN:
            raise ValueError(f"write={self.write!r}: give one of {', '.join(WRITTEN)}")
        chosen(self.caption_from, self.image, self.max_sidecar)
        check_dtype(self.dtype)
        pixels.check_formats(self.formats)
        pixels.check_timeout(self.timeout)
        for name in ("min_aesthetic", "max_nsfw", "max_read_errors"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                what = "a share of the images, 0 to 1" if name == "max_read_errors" else "scores go from 0 to 1"
                raise ValueError(f"{name}={value}: {what}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: it must be at least 1")

    @property
    def heads(self) -> tuple[str, ...]:
        """Which scores are wanted."""
        limits = {"aesthetic": self.min_aesthetic, "nsfw": self.max_nsfw}
        return tuple(name for name, limit in limits.items() if limit is not None)

    def most_unread(self, images: int) -> float:
        """Return how many of so many images may be impossible to read: by default a hundredth, and ten of few."""
        return max(images / 100, 10) if self.max_read_errors is None else images * self.max_read_errors

    def of_columns(self) -> dict[str, Any]:
        """Return what an image's columns depend on, beside the model."""
        names = ("batch_size", "dtype", "draft", "truncated", "formats", "timeout", "measure")
        return {name: getattr(self, name) for name in names}

    def of_stage(self, stage: str) -> dict[str, Any]:
        """Return the arguments of the verb that looks for one kind of duplicates."""
        by_id: Keep = "id" if self.keep in ("hard", "easy") else self.keep
        if stage == "exact":
            return {"keep": by_id}
        if stage == "perceptual":
            return {"keep": by_id, "rule": self.rule, "max_distance": self.max_distance}
        names = ("eps", "n_clusters", "keep", "rule", "probes", "exact")
        return {name: getattr(self, name) for name in names}

    @property
    def sidecars(self) -> Sidecars:
        """How samples are read."""
        return chosen(self.caption_from, self.image, self.max_sidecar)

    def of_limits(self) -> dict[str, Any]:
        """Return what `Limits` are made of that the options say."""
        limits: dict[str, Any] = {"min_aesthetic": self.min_aesthetic, "max_nsfw": self.max_nsfw}
        # Left out where there are none, so that what an earlier version found is still known by it.
        return limits | ({"drop": tuple((name, flags.DEFAULTS[name]) for name in self.drop)} if self.drop else {})

    @property
    def hashed(self) -> bool:
        """Whether perceptual hashes are wanted that no measure gives."""
        return "perceptual" in self.dedup and "phash" not in self.measure

    @property
    def flagged_by(self) -> tuple[str, ...]:
        """The measures that flags are made of and that no other step gives."""
        given = {*_KNOWN, *self.measure}
        needed = {measure for name in self.drop for measure in flags.MEASURES[name]} - given
        if needed & set(_OF_GREYS):
            needed |= set(_OF_GREYS) - given
        return tuple(name for name in measures.COLUMNS if name in needed)

    def effective(self) -> dict[str, Any]:
        """Return the options that a result depends on, as JSON has them: of models their files count, not their names and places."""
        left_out = (*_OF_NO_EFFECT, *(["samples_per_shard"] if self.write == "files" else []))
        return {name: value for name, value in self.as_json().items() if name not in left_out}

    def as_json(self) -> dict[str, Any]:
        """Return all of them as JSON has them; a function by its name."""
        return {field.name: as_json(getattr(self, field.name)) for field in fields(self)}


def measured(columns: bool | Sequence[str]) -> tuple[str, ...]:
    """Return which columns of `measure` are asked for."""
    return tuple(measures.chosen(columns))


def stages_of(dedup: bool | str | Sequence[str]) -> tuple[str, ...]:
    """Return which kinds of duplicates are looked for, in order.

    Examples
    --------
    >>> stages_of("semantic, exact"), stages_of(True), stages_of(False), stages_of("")
    (('exact', 'semantic'), ('semantic',), (), ())
    """
    if isinstance(dedup, bool):
        return ("semantic",) if dedup else ()
    asked = [name.strip() for name in dedup.split(",") if name.strip()] if isinstance(dedup, str) else list(dedup)
    unknown = [name for name in asked if name not in STAGES]
    if unknown:
        raise ValueError(f"dedup={dedup!r}: {unknown[0]!r} is unknown; give some of {', '.join(STAGES)}")
    return tuple(name for name in STAGES if name in asked)


def dropped(drop: str | Sequence[str]) -> tuple[str, ...]:
    """Return which flags images are dropped for, in order.

    Examples
    --------
    >>> dropped("blurry, dark"), dropped(()), dropped("")
    (('dark', 'blurry'), (), ())
    """
    asked = [name.strip() for name in drop.split(",") if name.strip()] if isinstance(drop, str) else list(drop)
    unknown = [name for name in asked if name not in flags.MEASURES]
    if unknown:
        raise ValueError(f"drop={drop!r}: {unknown[0]!r} is no flag; give some of {', '.join(flags.MEASURES)}")
    return tuple(name for name in flags.MEASURES if name in asked)


def as_json(value: Any) -> Any:
    """Return a value as JSON has it: paths as text, functions as their names."""
    if callable(value):
        return name_of(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value
