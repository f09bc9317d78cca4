"""exact_duplicates() and perceptual_duplicates(): images whose stored bytes are equal, and images that look alike, without a model.

Each image is read once, for a digest of its bytes or the perceptual hash of its pixels. Fingerprints, not images, come together, by ranges: no
task holds those of all images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from dask.delayed import Delayed

from imgcurate import pixels, schema, storage
from imgcurate.cluster import interruptible
from imgcurate.dedup.content import exact, perceptual
from imgcurate.dedup.content.blocks import Fingerprint
from imgcurate.dedup.content.prints import Prints, prepare
from imgcurate.dedup.dataframes.ids import id_dtype
from imgcurate.dedup.dataframes.inputs import refuse_name
from imgcurate.dedup.graph import rank, rules
from imgcurate.dedup.result import Duplicates
from imgcurate.dedup.result.thresholds import BITS, Kind
from imgcurate.dedup.work.mapped import work_folder
from imgcurate.measures import measure

# What else than their place reading images takes, where a frame has it.
_READ = ["error", "etag", "digest"]


@interruptible
def exact_duplicates(
    frame: Any,
    *,
    keep: rank.Keep = "largest",
    seed: int = 42,
    id_field: str = "image_id",
    max_bytes: int = pixels.MAX_BYTES,
    storage_options: storage.Options = None,
    work: str | os.PathLike[str] | None = None,
) -> Duplicates:
    """Find images whose stored bytes are equal.

    Parameters
    ----------
    frame : Dask DataFrame
        With `id_field`, ``url``, ``offset`` and ``bytes``. Rows with an ``error``, and those whose bytes cannot be read, are never compared and
        never removed. Images that have a ``digest`` already, of `embed` or `measure`, are not read to make one.
    keep : {"largest", "id", "random"} or list of (column, "min" | "max")
        Which of equal images stays: the one with the lowest id (equal bytes are equally large), one drawn by `seed`, or the best by columns.
    seed : int
    id_field : str
    max_bytes : int, default 268_435_455
        Larger files are not read to make a digest, and so are never compared.
    storage_options : dict, optional
        For the fsspec filesystem.
    work : str or path, optional
        A folder on a disk that every worker sees, for the fingerprints of a frame that is large against the workers' memory: some 100 to 200 bytes an
        image; a call that was stopped goes on from it. As for `semantic_duplicates` otherwise.

    Returns
    -------
    Duplicates
        All similarities are 1.

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError
        Where an option is out of range, ids are null or repeat, or ``digest`` holds something else than digests.
    imgcurate.tar.ShardChanged
        Where a file that is read to make digests is not what was listed.

    Notes
    -----
    Eager. Bytes are hashed by XXH3-128, and every image that shares a hash is read again and compared byte by byte with the one that it
    would be a copy of. Whether fingerprints stay in the workers' memory or go through files is decided as in `semantic_duplicates`, and both ways
    find the same.

    Examples
    --------
    >>> found = exact_duplicates(read_webdataset("shards/*.tar"))  # doctest: +SKIP
    """
    keep = "id" if keep == "largest" else keep
    check_stored(frame, "exact", keep=keep)
    pixels.check_limits(pixels.MAX_PIXELS, max_bytes, (), None)
    prints = _prints(frame, exact.digests(max_bytes), exact.PLACE, keep, seed, id_field, storage_options, work)
    found = exact.find(prints, storage_options)
    return _duplicates(prints, found, frame, id_field, keep, "cover", 1e-6, "exact")


@interruptible
def perceptual_duplicates(
    frame: Any,
    *,
    max_distance: int = 4,
    keep: rank.Keep = "largest",
    rule: rules.Rule = "cover",
    seed: int = 42,
    id_field: str = "image_id",
    max_bytes: int = pixels.MAX_BYTES,
    formats: Sequence[str] = (),
    timeout: float | None = None,
    storage_options: storage.Options = None,
    work: str | os.PathLike[str] | None = None,
) -> Duplicates:
    """Find images that look alike: whose 64-bit perceptual hashes differ in at most `max_distance` bits.

    Parameters
    ----------
    frame : Dask DataFrame
        With `id_field`, and ``phash`` (unsigned 64-bit integers), or ``url``, ``offset`` and ``bytes`` to decode images and hash them. Rows with
        an ``error``, and those that cannot be decoded, are never compared and never removed.
    max_distance : int
        0 to 63. Copies in another size or quality mostly differ in 0 to 4 bits; from about 10 on different images do, too.
    keep : {"largest", "id", "random"} or list of (column, "min" | "max")
        Which image of a group stays: the one with the most pixels, of as many that with the most bytes, of as many that with the lowest id (images
        that are decoded are measured too; with a ``phash`` but no ``width``, ``height`` and ``size``, the lowest id, and the result says so); the one
        with the lowest id; one drawn by `seed`; or the best by columns.
    rule : {"cover", "pointwise", "component"}
        As for `semantic_duplicates`.
    seed : int
    id_field : str
    max_bytes, formats, timeout
        As for `embed`, of images that are decoded.
    storage_options : dict, optional
        For the fsspec filesystem.
    work : str or path, optional
        A folder on a disk that every worker sees, for the fingerprints of a frame that is large against the workers' memory: some 100 to 200 bytes an
        image; a call that was stopped goes on from it. As for `semantic_duplicates` otherwise.

    Returns
    -------
    Duplicates
        A similarity is ``1 - distance / 64``, and an eps a distance divided by 64.

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError
        Where an option is out of range, or ids are null or repeat.
    imgcurate.tar.ShardChanged
        Where a file that is read is not what was listed, or an image not what its ``digest`` says.

    Notes
    -----
    Eager. No pair is missed: hashes are compared where they agree in a part, by the pigeonhole principle (see `hamming.pairs_within`), two ranges of
    four million in a task; in memory or through files, as in `exact_duplicates`. The hash
    is that of the package `imagehash`, after the EXIF orientation was applied and alpha put over white. Pictures of one colour share one hash
    whatever the colour, black apart.

    Examples
    --------
    >>> found = perceptual_duplicates(read_files("photos/"), max_distance=6)  # doctest: +SKIP
    """
    limits: dict[str, Any] = {"max_bytes": max_bytes, "formats": tuple(formats), "timeout": timeout}
    pixels.check_limits(pixels.MAX_PIXELS, max_bytes, formats, timeout)
    columns = set(getattr(frame, "columns", ()))
    if keep == "largest" and columns.issuperset(exact.PLACE) and not columns & {"phash", "width", "height"}:
        frame = measure(frame, ["width", "height", "phash"], storage_options=storage_options, **limits)
    keep, why = rank.in_force(keep, getattr(frame, "columns", ()), "id")
    check_stored(frame, "perceptual", keep=keep, rule=rule, max_distance=max_distance)
    needed = ["phash"] if "phash" in getattr(frame, "columns", ()) else exact.PLACE
    prints = _prints(frame, perceptual.hashes(**limits), needed, keep, seed, id_field, storage_options, work)
    found = perceptual.find(prints, int(max_distance))
    eps = max(max_distance / BITS, 1e-6)
    return _duplicates(prints, found, frame, id_field, keep, rule, eps, "perceptual", why)


def check_stored(frame: Any, stage: str, *, keep: rank.Keep, rule: rules.Rule = "cover", max_distance: int = 0) -> None:
    """Raise what ``exact_duplicates`` or ``perceptual_duplicates`` would raise of these arguments, before anything is read."""
    if not isinstance(max_distance, Integral) or isinstance(max_distance, bool) or not 0 <= max_distance < BITS:
        raise ValueError(f"max_distance={max_distance!r} must be a whole number of bits, 0 to 63")
    if rule not in rules.RULES:
        raise ValueError(f"rule={rule!r} is unknown: give 'cover', 'pointwise' or 'component'")
    if keep in ("hard", "easy"):
        raise ValueError(
            f"keep={keep!r} ranks by distance from a centroid, and {stage}_duplicates has none: give 'largest', 'id', 'random' or columns"
        )
    schema.require(frame, rank.keep_columns(keep), f"{stage}_duplicates")


def _prints(
    frame: Any,
    kind: Fingerprint,
    needed: Sequence[str],
    keep: rank.Keep,
    seed: int,
    id_field: str,
    storage_options: storage.Options,
    work: str | os.PathLike[str] | None,
) -> Prints:
    keys = rank.keep_columns(keep)
    refuse_name(id_field, kind.verb, ("duplicate_of", "similarity", "cluster"))
    schema.require(frame, [id_field, *needed, *keys], kind.verb)
    columns = [*needed, *(name for name in (_READ if "url" in needed else _READ[:1]) if name in frame.columns)]
    folder = None if work is None else work_folder(work)
    return prepare(frame, kind, columns, id_field, keys, seed, storage_options, folder)


def _duplicates(
    prints: Prints,
    found: list[Delayed],
    frame: Any,
    id_field: str,
    keep: rank.Keep,
    rule: rules.Rule,
    eps: float,
    kind: Kind,
    why_keep: str = "",
) -> Duplicates:
    return Duplicates(
        prints.graph(found, keep),
        like=frame._meta,
        id_dtype=id_dtype(frame._meta[id_field]),
        id_field=id_field,
        n_rows=prints.n_rows,
        n_compared=prints.n_compared,
        n_clusters=min(1, prints.n_compared),
        eps=eps,
        min_similarity=1 - eps,
        rule=rule,
        keep=keep,
        folder=prints.folder,
        kind=kind,
        chosen={"keep": why_keep},
        images=frame,
    )
