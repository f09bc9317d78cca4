"""flag(): verdicts of an image's quality that have a name, as boolean columns, from what `measure` says."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import dask
import numpy as np

from imgcurate import schema, vectors
from imgcurate.cluster import interruptible

if TYPE_CHECKING:
    import dask.dataframe as dd

#: Of each flag the measures that it is made of.
MEASURES = {
    "dark": ("brightness", "contrast"),
    "light": ("brightness", "contrast"),
    "blurry": ("sharpness", "contrast"),
    "low_information": ("entropy",),
    "greyscale": ("colourfulness",),
    "odd_aspect": ("aspect",),
    "odd_size": ("width", "height"),
}
#: The threshold of each, where none is given.
DEFAULTS = {
    "dark": 64.0,
    "light": 192.0,
    "blurry": 0.02,
    "low_information": 2.0,
    "greyscale": 1.0,
    "odd_aspect": 3.0,
    "odd_size": 4.0,
}
#: What is compared with it, as a person is told.
COMPARED = {
    "dark": "brightness + 2 * contrast",
    "light": "brightness - 2 * contrast",
    "blurry": "sharpness / contrast ** 2",
    "low_information": "entropy",
    "greyscale": "colourfulness",
    "odd_aspect": "longer / shorter side",
    "odd_size": "ratio to the median side",
}
#: The flags of what lies above their threshold; the others are of what lies below.
ABOVE = ("light", "odd_aspect", "odd_size")
_MERGED = 16


@interruptible
def flag(
    frame: Any,
    *,
    dark: float | None = DEFAULTS["dark"],
    light: float | None = DEFAULTS["light"],
    blurry: float | None = DEFAULTS["blurry"],
    low_information: float | None = DEFAULTS["low_information"],
    greyscale: float | None = DEFAULTS["greyscale"],
    odd_aspect: float | None = DEFAULTS["odd_aspect"],
    odd_size: float | None = DEFAULTS["odd_size"],
    median_side: float | None = None,
) -> dd.DataFrame:
    """Add what is wrong with each image as columns of true and false, by thresholds on what `measure` found.

    Parameters
    ----------
    frame : Dask DataFrame
        With the columns of `measure` that the flags are made of.
    dark, light, blurry, low_information, greyscale, odd_aspect, odd_size : float, optional
        The threshold of each flag, as in the table below; None leaves the column out.
    median_side : float, optional
        What ``odd_size`` compares with, in pixels. Default: the median of the frame, which is computed at once.

    Returns
    -------
    Dask DataFrame
        Lazy, with a column of bool for each flag; false where what it is made of is missing, as of images with an ``error``:

        =============== ===================================================== ======= ==============================================
        column          true where                                            default what that is
        =============== ===================================================== ======= ==============================================
        dark            brightness + 2 * contrast < threshold                 64      nothing of it is bright, of greys 0 to 255
        light           brightness - 2 * contrast > threshold                 192     nothing of it is dark
        blurry          sharpness < threshold * contrast ** 2                 0.02    no detail at the size of a pixel
        low_information entropy < threshold                                   2       a few greys are nearly all of it, of 8 bits
        greyscale       colourfulness < threshold                             1       no colour, however the file stores it
        odd_aspect      the longer side > threshold * the shorter             3       banners and strips; DataComp filters at 3 too
        odd_size        sqrt(width * height) is more than threshold times     4       thumbnails among photos, or the other way round
                        the median, or less than that part of it
        =============== ===================================================== ======= ==============================================

    Raises
    ------
    KeyError
        Where a measure is missing.
    ValueError
        Where a threshold is no number or out of range, or the frame has a column of a flag's name.

    Notes
    -----
    The median is one pass over ``width`` and ``height``: of a frame that is persisted, or read from Parquet, about two seconds of a core for a hundred
    million images, and what reading takes; of one that is measured only when it is computed, a second decoding of all. ``checkpoint`` or ``persist()`` it
    first, or give `median_side`. It is that of sides in whole pixels, the lower one of two, and does not depend on partitioning.

    Why these and not plain thresholds: a small bright object before black has a low mean and is no dark picture, so the mean and twice the spread
    stand for the brightest parts; and a dark or pale picture has little sharpness however crisp it is, so that is taken against the spread.
    Blur is that of the picture's own pixels: what was enlarged is blurry, too.

    Defaults were chosen on 86 photos (museum objects, and those that scikit-image and scikit-learn carry), as JPEGs of them that were spoilt on
    purpose. Of the photos as they were, none is dark, light or of low information, and 3 are blurry: a cell under a microscope, a
    retina, and a marble bust before a plain wall. Of those at 15 % of their brightness all are dark, at 30 % 69 %; of those whose distance from white is 15 % of
    what it was all are light; of those under a Gaussian blur of 0.5 % of their longer side 95 % are blurry, of 1 % all. Grey photos have a
    colourfulness of 0, the least colourful colour photo 1.4. benchmarks/flags.py measures that again, and beside cleanvision.

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> frame = dd.from_dict({"entropy": [7.1, 0.3], "aspect": [1.5, 1.0]}, npartitions=1)
    >>> left_out = dict.fromkeys(["dark", "light", "blurry", "greyscale", "odd_size"])
    >>> flag(frame, **left_out)[["low_information", "odd_aspect"]].compute().to_numpy().tolist()
    [[False, False], [True, False]]

    >>> frame = flag(measure(frame).persist())  # doctest: +SKIP
    >>> frame = frame[~(frame.dark | frame.blurry)]  # doctest: +SKIP
    """
    thresholds = {
        "dark": dark,
        "light": light,
        "blurry": blurry,
        "low_information": low_information,
        "greyscale": greyscale,
        "odd_aspect": odd_aspect,
        "odd_size": odd_size,
    }
    _check(thresholds, median_side)
    wanted = {name: float(threshold) for name, threshold in thresholds.items() if threshold is not None}
    schema.require(frame, [], "flag")
    _check_columns(frame, wanted)
    if "odd_size" in wanted and median_side is None:
        median_side = median_of_sides(frame)
    return frame.assign(**{name: verdict(frame, name, threshold, median_side) for name, threshold in wanted.items()})


def value(frame: Any, name: str, median_side: float | None = None) -> Any:
    """Return what a flag compares with its threshold, as a column of float64: NaN where what it is made of is missing.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame
        With the flag's `MEASURES`; of odd_aspect ``width`` and ``height`` are enough.
    name : str
    median_side : float, optional
        Of odd_size.
    """
    if name == "odd_aspect" and "aspect" not in frame.columns:
        # As float32, which the measure is, so that both say the same.
        measures = [(_wide(frame["width"]) / _wide(frame["height"])).astype("float32").astype("float64")]
    else:
        measures = [_wide(frame[measure]) for measure in MEASURES[name]]
    if name == "dark":
        return measures[0] + 2 * measures[1]
    if name == "light":
        return measures[0] - 2 * measures[1]
    if name == "blurry":
        return measures[0] / measures[1] ** 2
    if name == "odd_aspect":
        return measures[0].where(measures[0] >= 1, 1 / measures[0])
    if name == "odd_size":
        assert median_side is not None
        side = (measures[0] * measures[1]) ** 0.5
        return (side / median_side).where(side >= median_side, median_side / side)
    return measures[0]


def verdict(frame: Any, name: str, threshold: float, median_side: float | None = None) -> Any:
    """Return a flag as a column of bool; the arguments are those of `value`."""
    found = value(frame, name, median_side)
    return (found > threshold if name in ABOVE else found < threshold).fillna(False).astype(bool)


def _wide(measure: Any) -> Any:
    # Whole numbers of pixels multiply beyond 32 bits, and some backends have a null of their own.
    return measure.astype("float64")


def _check(thresholds: dict[str, float | None], median_side: float | None) -> None:
    for name, value in {**thresholds, "median_side": median_side}.items():
        if value is None:
            continue
        if not isinstance(value, Real) or isinstance(value, bool) or not np.isfinite(float(value)):
            instead = "to take the frame's" if name == "median_side" else "to leave the column out"
            raise ValueError(f"{name}={value!r} must be a number, or None {instead}")
        if name.startswith("odd") and value <= 1:
            raise ValueError(f"{name}={value!r} must be above 1: how many times as long is odd")
        if name == "median_side" and value <= 0:
            raise ValueError(f"median_side={value!r} must be above 0: a length in pixels")


def _check_columns(frame: Any, wanted: dict[str, float]) -> None:
    there = [name for name in wanted if name in frame.columns]
    if there:
        raise ValueError(f"the frame already has a column {there[0]!r}; drop or rename it, or give {there[0]}=None")
    missing = [(measure, name) for name in wanted for measure in MEASURES[name] if measure not in frame.columns]
    if missing:
        measures = dict.fromkeys(measure for measure, _ in missing)
        names = ", ".join(map(repr, measures))
        left_out = ", ".join(f"{name}=None" for name in dict.fromkeys(name for _, name in missing))
        raise KeyError(
            f"flag needs column{'s' * (len(measures) > 1)} {names}: measure(frame) adds them, or leave out what is made of them with {left_out}"
        )


def median_of_sides(frame: Any) -> float:
    """Return the median side of the images of a frame; NaN where none has a size."""
    parts = [dask.delayed(_sides)(part) for part in frame[["width", "height"]].to_delayed()]
    while len(parts) > 1:
        parts = [dask.delayed(_together)(parts[at : at + _MERGED]) for at in range(0, len(parts), _MERGED)]
    sides, counts = parts[0].compute()
    if not len(sides):
        return float("nan")
    below = np.cumsum(counts)
    return float(sides[np.searchsorted(below, (below[-1] + 1) // 2)])


def _sides(part: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return which sides in whole pixels occur in a partition, and how often: some thousands, however many images there are."""
    width, height = (
        vectors.to_pandas(part[[name]])[name].to_numpy(dtype=np.float64, na_value=np.nan)
        for name in ("width", "height")
    )
    sides = np.rint(np.sqrt(width * height))
    return np.unique(sides[~np.isnan(sides)], return_counts=True)


def _together(counted: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    every, counts = (np.concatenate(column) for column in zip(*counted, strict=True))
    sides, where = np.unique(every, return_inverse=True)
    return sides, np.bincount(where, weights=counts, minlength=len(sides)).astype(np.int64)
