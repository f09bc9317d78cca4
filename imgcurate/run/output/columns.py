"""What is computed of the rows of shards and files, part by part: listing, columns from the pixels, hashes, measures, scores.

A task reads the part that it depends on and writes its own, and gives back no more than that part's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from imgcurate import fingerprint, measures, parts, phash, schema, storage, vectors
from imgcurate.encoders import load_encoder
from imgcurate.encoders.embed import embed_part
from imgcurate.parts import Part
from imgcurate.run.inputs import Unit
from imgcurate.scores import aesthetic, nsfw
from imgcurate.sources.sidecars import AS_USUAL, Sidecars

#: Raise it where what is computed of the same input changes, so that parts of an earlier version are not taken for this one's.
_VERSION = 2
# The same for listings, of which the rest depends by what is in them.
_LISTED = 2
HEADS = {"aesthetic": aesthetic, "nsfw": nsfw}
#: Of a listing, what `ranges` is given of rows of Parquet.
PLACES = ["url", "offset", "bytes", "etag", "error"]
# A unit becomes at most so many parts, so that what a run asks of a store does not grow with the images of a shard, of at least so many
# rows: fewer than a GPU's batches would leave it idle, fewer than a few dozen cost more than they save when a run is stopped.
_PARTS_OF_A_SHARD, _MOST_ROWS = 8, 2048
_FEWEST_ROWS = {"pandas": 32, "cudf": 1024}


class Rows(NamedTuple):
    """A range of a unit's rows, which is worked on as one part.

    Attributes
    ----------
    url : str
        Of the unit.
    source : str
        What the account of a run names it by.
    version : str
        What its bytes are known by.
    listed : str
        The URL of the part of the table "listed" that has them.
    start, stop : int
    image : str or None
        The extension of the images, of samples that have several.
    """

    url: str
    source: str
    version: str
    listed: str
    start: int
    stop: int
    image: str | None = None

    def key(self, *what: Any) -> str:
        """Return the key of what is made of these rows' bytes by `what`: of the images, not of the texts beside them."""
        image = () if self.image is None else (self.image,)
        return fingerprint.of(_VERSION, self.url, self.version, self.start, self.stop, *image, *what)


def ranges(
    unit: Unit,
    version: str,
    listed: str,
    n_rows: int,
    backend: str,
    image: str | None = None,
    places: pd.DataFrame | None = None,
) -> list[Rows]:
    """Cut a unit into ranges of rows, by nothing but their number: a run that goes on cuts as the one that was stopped.

    What is computed of rows of Parquet does not depend on its `version`, for that says nothing of the files that they name, but on `places`: the columns
    `PLACES` of their listing.

    Examples
    --------
    >>> unit = Unit("a.tar", "a.tar", {"a.tar": "1"}, ())
    >>> [(rows.start, rows.stop) for rows in ranges(unit, "1", "", 100, "pandas")]
    [(0, 32), (32, 64), (64, 96), (96, 100)]
    """
    size = min(max(-(-n_rows // _PARTS_OF_A_SHARD), _FEWEST_ROWS[backend]), _MOST_ROWS)
    starts = range(0, max(n_rows, 1), size)
    stops = [min(start + size, n_rows) for start in starts]
    versions = [version] * len(stops)
    if places is not None:
        hashes = pd.util.hash_pandas_object(places, index=False).to_numpy()
        versions = [fingerprint.of(hashes[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    return [
        Rows(unit.url, unit.source, known, listed, start, stop, image)
        for start, stop, known in zip(starts, stops, versions, strict=True)
    ]


def listing_key(unit: Unit, version: str, sidecars: Sidecars = AS_USUAL) -> str:
    """Return the key of a unit's listing, which depends on how samples are read."""
    how = () if sidecars == AS_USUAL else tuple(sidecars)
    return fingerprint.of(_VERSION, _LISTED, "listed", *unit.key(version), *how)


def list_unit(
    unit: Unit, sidecars: Sidecars, folder: str, key: str, replaced: str | None, storage_options: storage.Options
) -> Part:
    """List a unit into a part, in place of the one `replaced`."""
    made = parts.write_part(unit.list(storage_options, sidecars), folder, key, storage_options)
    if replaced is not None and replaced != made.name:
        storage.remove(f"{folder}/{replaced}", storage_options)
    return made


@dataclass(frozen=True)
class Columns:
    """What `embed` adds to rows; the same as a function of a partition."""

    model: Any
    fingerprint: str
    options: Mapping[str, Any]
    storage_options: storage.Options = field(compare=False)

    def key(self, rows: Rows) -> str:
        """Return the key of the part that it makes of rows."""
        return rows.key("columns", self.fingerprint, dict(self.options))

    def load(self, device: str) -> None:
        """Load the model into this process."""
        load_encoder(self.model, dtype=self.options["dtype"], device=device)

    def __call__(self, part: Any, threads: int | None = None) -> Any:
        """Return the columns."""
        return embed_part(
            part,
            self.model,
            self.options["batch_size"],
            self.options["dtype"],
            draft=self.options["draft"],
            truncated=self.options["truncated"],
            formats=self.options["formats"],
            timeout=self.options["timeout"],
            measured=self.options["measure"],
            storage_options=self.storage_options,
            fingerprint=self.fingerprint,
            threads=threads,
        )


@dataclass(frozen=True)
class Hashes:
    """The perceptual hash of each image, for runs that have it from no measure."""

    formats: tuple[str, ...]
    timeout: float | None
    storage_options: storage.Options = field(compare=False)

    def key(self, rows: Rows) -> str:
        """Return the key of the part that it makes of rows."""
        return rows.key("phash", list(self.formats), self.timeout)

    def load(self, device: str) -> None:
        """Do nothing: there is no model."""

    def __call__(self, part: Any, threads: int | None = None) -> Any:
        """Return the column, without what went wrong, which the columns say too."""
        return phash.phash_part(part, self.storage_options, threads, self.formats, self.timeout)[["phash"]]


@dataclass(frozen=True)
class Measures:
    """Measures of each image in full, for runs that drop by flags: apart from the vectors, which do not depend on them."""

    names: tuple[str, ...]
    truncated: bool
    formats: tuple[str, ...]
    timeout: float | None
    storage_options: storage.Options = field(compare=False)

    def key(self, rows: Rows) -> str:
        """Return the key of the part that it makes of rows."""
        return rows.key("measures", list(self.names), self.truncated, list(self.formats), self.timeout)

    def load(self, device: str) -> None:
        """Do nothing: there is no model."""

    def __call__(self, part: Any, threads: int | None = None) -> Any:
        """Return the columns, with what went wrong: an image that cannot be measured must not pass for one without a flag."""
        made = measures.measure_part(
            part,
            self.names,
            truncated=self.truncated,
            formats=self.formats,
            timeout=self.timeout,
            storage_options=self.storage_options,
            threads=threads,
        )
        return made[[*self.names, "error"]]


Make = Columns | Hashes | Measures


@dataclass(frozen=True)
class Scores:
    """The scores of the heads that are wanted: each by the path and fingerprint of its weights."""

    heads: Mapping[str, tuple[str, str]]

    def key(self, columns: Part) -> str:
        """Return the key of the part that it makes of another's embeddings."""
        return fingerprint.of(
            _VERSION, "scores", columns.key, columns.content, {name: known for name, (_, known) in self.heads.items()}
        )


def score(scores: Scores, columns: str, folder: str, key: str, like: Any, storage_options: storage.Options) -> Part:
    """Make the scores of a part's embeddings."""
    part = parts.read_part(columns, like, ["embedding"], storage_options)
    made = {
        HEADS[name].HEAD.column: HEADS[name].score_part(part, HEADS[name].HEAD, path, known)
        for name, (path, known) in scores.heads.items()
    }
    return parts.write_part(part[[]].assign(**made), folder, key, storage_options)


class Sources(NamedTuple):
    """Where the columns of some rows lie: with the listing first, the URLs of parts."""

    rows: Rows
    computed: tuple[str, ...]

    @property
    def urls(self) -> tuple[str, ...]:
        """All of them."""
        return (self.rows.listed, *self.computed)


def read_listed(rows: Rows, storage_options: storage.Options, columns: list[str] | None = None) -> pd.DataFrame:
    """Return what is listed of rows, or some columns of it."""
    part = parts.read_part(rows.listed, None, columns, storage_options)
    return part.iloc[rows.start : rows.stop].reset_index(drop=True)


def read_rows(
    sources: Sources, like: Any, columns: list[str] | None = None, storage_options: storage.Options = None
) -> Any:
    """Return rows with all that is known of them, or some columns, on the backend of `like`."""
    listed = read_listed(sources.rows, storage_options, columns if columns is None else _listed(columns))
    computed = [parts.read_part(url, None, columns, storage_options) for url in sources.computed]
    error = listed.get("error")
    for part in computed:
        if error is not None and "error" in part:
            error = error.where(error.notna(), part["error"])
    for part in computed:
        if error is not None and len(part.columns):
            # A row with an error has no vector and no score, though the error is one that others found.
            wrong = error.notna() & (part["error"].isna() if "error" in part else True)
            if wrong.any():
                part = part.reindex(np.where(wrong, -1, np.arange(len(part))))
        listed = listed.assign(**{name: part[name].array for name in part.columns})
    if error is not None:
        listed["error"] = error
    made = listed if columns is None else listed[columns]
    return vectors.from_pandas(made, like)


def _listed(columns: list[str]) -> list[str]:
    return [name for name in schema.SOURCE_COLUMNS if name in columns] or ["image_id"]
