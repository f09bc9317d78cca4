"""inspect(): what tar shards and image files hold, told from their headers, and what of it is broken."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import Any

import dask
import distributed
import pandas as pd

from imgcurate import measures, pixels, storage
from imgcurate.cluster import connect
from imgcurate.printable import MOST_OF_AN_ERROR, kind_of, printable
from imgcurate.report.rows import sample
from imgcurate.run.inputs import Unit, check_sidecars, describe, find, noun
from imgcurate.run.tasks.steps import Steps
from imgcurate.sources.parquet import absolute_roots
from imgcurate.sources.sidecars import AS_USUAL, Sidecars

# What of an image is read first; of nearly all formats its header lies in it.
_HEAD = 64 << 10
#: Limits between which the shorter sides of images are counted.
SIDES = (64, 224, 336, 512, 1024, 2048)
_EXAMPLES = 3
#: How many images are drawn to be looked at.
SAMPLE = 24
# More kinds of errors than anybody reads; those beyond are counted together.
_MOST_KINDS = 100
_OTHERS = "others"


@dataclass
class Spread:
    """How many numbers there are, and how they spread."""

    n: int = 0
    total: float = 0
    least: float = math.inf
    most: float = -math.inf

    @classmethod
    def of(cls, values: pd.Series) -> Spread:
        """Return that of the values that are not null."""
        values = values.dropna()
        if values.empty:
            return cls()
        return cls(len(values), float(values.sum()), float(values.min()), float(values.max()))

    def __add__(self, other: Spread) -> Spread:
        least, most = min(self.least, other.least), max(self.most, other.most)
        return Spread(self.n + other.n, self.total + other.total, least, most)

    def as_json(self) -> dict[str, float] | None:
        """Return least, mean and most; None where there is no number."""
        return {"least": self.least, "mean": self.total / self.n, "most": self.most} if self.n else None


@dataclass
class Inspected:
    """What was found; two of them add up.

    Attributes
    ----------
    images : int
        Rows: of tar shards samples.
    formats, sides, captions, encodings, errors : Counter
        How many images have a format; a shorter side between two of `SIDES`; a caption (``"present"``, ``"empty"``, ``"missing"``); text that is
        not UTF-8, by what it was read as; and an error of a kind.
    examples : dict of str to list of str
        Ids of a few images with each kind of error.
    texts : dict of str to str
        One error of each kind as it is.
    bytes, width, height, characters : Spread
        Of the images' files, pixels, and captions.
    metadata : int
        Images that have JSON beside them.
    sample : pandas.DataFrame
        Up to `SAMPLE` rows of images that are not broken, drawn at random, as `show` draws them.
    """

    images: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    bytes: Spread = field(default_factory=Spread)
    width: Spread = field(default_factory=Spread)
    height: Spread = field(default_factory=Spread)
    characters: Spread = field(default_factory=Spread)
    metadata: int = 0
    sample: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)

    def __add__(self, other: Inspected) -> Inspected:
        examples = {
            kind: (self.examples.get(kind, []) + other.examples.get(kind, []))[:_EXAMPLES]
            for kind in {**self.examples, **other.examples}
        }
        apart = {
            "examples": examples,
            "texts": {**other.texts, **self.texts},
            "sample": _drawn(pd.concat([self.sample, other.sample])),
        }
        added = {name: value + getattr(other, name) for name, value in vars(self).items() if name not in apart}
        return Inspected(**added, **apart)._short()

    def _short(self) -> Inspected:
        """Keep the most common kinds of errors."""
        if len(self.errors) > _MOST_KINDS:
            common = dict(self.errors.most_common(_MOST_KINDS))
            rest = sum(self.errors.values()) - sum(common.values())
            self.errors = Counter(common) + Counter({_OTHERS: rest})
            self.examples = {kind: ids for kind, ids in self.examples.items() if kind in self.errors}
            self.texts = {kind: text for kind, text in self.texts.items() if kind in self.errors}
        return self

    @property
    def broken(self) -> int:
        """How many images cannot be used."""
        return sum(self.errors.values())

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {
            "images": self.images,
            "broken": self.broken,
            "errors": [
                {
                    "kind": self.texts.get(kind, kind) if n == 1 else kind,
                    "images": n,
                    "examples": self.examples.get(kind, []),
                }
                for kind, n in self.errors.most_common()
            ],
            "formats": dict(self.formats.most_common()),
            "bytes": {"total": int(self.bytes.total), **(self.bytes.as_json() or {})},
            "width": self.width.as_json(),
            "height": self.height.as_json(),
            "shorter_side": {name: self.sides[name] for name in _names_of_sides() if self.sides[name]},
            "captions": {name: self.captions[name] for name in ("present", "empty", "missing")},
            "characters": self.characters.as_json(),
            "metadata": self.metadata,
            "text_encodings": dict(self.encodings),
        }


def inspect(
    inputs: storage.Paths,
    *,
    decode: bool = False,
    sidecars: Sidecars = AS_USUAL,
    roots: storage.Paths | None = None,
    storage_options: storage.Options = None,
    progress: bool = False,
    connect: Callable[[], distributed.Client] = connect,
) -> tuple[str, Inspected]:
    """Look at what a run would read.

    Parameters
    ----------
    inputs : str, path, or list of these
        As for `curate`.
    decode : bool, default False
        Decode every image, which finds those whose end is missing or whose pixels are damaged. Else of an image no more is read than its header
        takes.
    sidecars : Sidecars, optional
        How samples are read.
    roots : path or list of these, optional
        As for `curate`.
    storage_options : dict, optional
        For the fsspec filesystem.
    progress : bool, default False
        Show on stderr how far it is.
    connect : callable
        Gives the client of the cluster that reads. Default: `imgcurate.connect`.

    Returns
    -------
    str
        What the inputs were taken for, such as ``"3 tar shards"``.
    Inspected

    Raises
    ------
    FileNotFoundError, ValueError
        Where an input cannot be used.

    Examples
    --------
    >>> inspect("shards/*.tar")[1].formats  # doctest: +SKIP
    Counter({'JPEG': 9998, 'PNG': 2})
    """
    units = find(inputs, storage_options, None if roots is None else absolute_roots(roots, storage_options))
    check_sidecars(sidecars, units)
    said = describe(units)
    steps = Steps(connect, progress)
    steps.say(f"reading {said}")
    task = dask.delayed(_inspect_unit, pure=False)
    with steps("decoding" if decode else "reading headers"):
        found = steps.run(
            (task(unit, decode, sidecars, storage_options) for unit in units),
            len(units),
            unit={"shard": "shard", "folder": "group of files"}.get(noun(units), "group of rows"),
        )
    return said, reduce(Inspected.__add__, found, Inspected())


def _inspect_unit(unit: Unit, decode: bool, sidecars: Sidecars, storage_options: storage.Options) -> Inspected:
    rows = unit.list(storage_options, sidecars)
    if decode:
        # One that is of the pixels, so that they are decoded.
        names = ["width", "height", "format", "brightness"]
        looked = measures.measure_part(rows, names, storage_options=storage_options)
    else:
        looked = _headers(rows, storage_options)
    return _counted(rows, looked)


def _headers(rows: pd.DataFrame, storage_options: storage.Options) -> pd.DataFrame:
    """Return width, height, format and error of images, of which no more is read than that takes."""
    found: dict[int, tuple[Any, ...]] = {}
    usable = [row for row, error in enumerate(rows["error"].isna()) if error]
    doubtful = [row for row, picture in _open(rows, usable, _HEAD, storage_options) if not _keep(found, row, picture)]
    # A header that is longer, or none: the whole file tells.
    for row, picture in _open(rows, doubtful, None, storage_options):
        _keep(found, row, picture)
        if isinstance(picture, pixels.PixelError):
            found[row] = (None, None, None, str(picture))
    nothing = (None, None, None, None)
    looked = pd.DataFrame(
        [found.get(row, nothing) for row in range(len(rows))], columns=["width", "height", "format", "error"]
    )
    return looked.assign(error=looked["error"].where(looked["error"].notna(), rows["error"].astype(object)))


def _keep(found: dict[int, tuple[Any, ...]], row: int, picture: Any) -> bool:
    if isinstance(picture, pixels.PixelError):
        return False
    found[row] = (picture.width, picture.height, picture.format, None)
    return True


def _open(
    rows: pd.DataFrame, which: list[int], most: int | None, storage_options: storage.Options
) -> Iterator[tuple[int, Any]]:
    """Yield rows and what their images say of themselves, or why they do not, from up to so many of their bytes."""

    def place(row: int) -> tuple[str, int, int]:
        size = int(rows["bytes"][row])
        # Of a file that is too large, reading says so.
        return (
            rows["url"][row],
            int(rows["offset"][row]),
            size if most is None or size > pixels.MAX_BYTES else min(size, most),
        )

    places = (place(row) for row in which)
    for row, data in zip(which, pixels.read_images(places, storage_options), strict=True):
        if isinstance(data, bytes):
            try:
                picture = pixels.open_picture(data)
            except pixels.PixelError as problem:
                yield row, problem
                continue
            picture.image.close()
            yield row, picture
        else:
            yield row, data


def _counted(rows: pd.DataFrame, looked: pd.DataFrame) -> Inspected:
    errors = looked["error"].astype(object)
    found = Inspected(images=len(rows), sample=_drawn(rows[errors.isna().to_numpy()]))
    for image_id, error in zip(rows["image_id"], errors, strict=True):
        if not pd.isna(error):
            kind = kind_of(error)
            found.errors[kind] += 1
            found.texts.setdefault(kind, printable(error, MOST_OF_AN_ERROR))
            examples = found.examples.setdefault(kind, [])
            if len(examples) < _EXAMPLES:
                examples.append(image_id)
    found.formats.update(looked["format"].dropna())
    width, height = (looked[name].astype("float64") for name in ("width", "height"))
    shorter = width.where(width < height, height).dropna()
    found.sides.update(pd.cut(shorter, [0, *SIDES, float("inf")], right=False, labels=_names_of_sides()).astype(str))
    found.width, found.height = Spread.of(width), Spread.of(height)
    found.bytes = Spread.of(rows["bytes"][rows["bytes"] > 0])
    captions = rows["caption"]
    empty = captions.str.strip() == ""
    found.captions.update({"missing": int(captions.isna().sum()), "empty": int(empty.sum())})
    found.captions["present"] = len(rows) - found.captions["missing"] - found.captions["empty"]
    found.characters = Spread.of(captions[captions.notna() & ~empty].str.len().astype("float64"))
    found.metadata = int(rows["metadata"].notna().sum())
    found.encodings.update(rows["text_encoding"].dropna())
    return found._short()


def _drawn(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a sample of rows; that of two samples is that of all that they were drawn from."""
    return sample(rows, SAMPLE) if len(rows) else rows


def _names_of_sides() -> list[str]:
    """Return what is said of the shorter sides between two of `SIDES`.

    Examples
    --------
    >>> _names_of_sides()[:2], _names_of_sides()[-1]
    (['below 64', '64 to 223'], 'from 2048 on')
    """
    between = [f"{low} to {high - 1}" for low, high in pairwise(SIDES)]
    return [f"below {SIDES[0]}", *between, f"from {SIDES[-1]} on"]
