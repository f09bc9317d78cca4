"""What the heads share: a small model over CLIP ViT-L/14 embeddings becomes a lazy column of numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcurate import identity, vectors, weights
from imgcurate.rowwise import map_rows

if TYPE_CHECKING:
    import dask.dataframe as dd

DIMENSION = 768
ENCODER = "openai/clip-vit-large-patch14"

# Bounds what a partition of any size needs beside its embeddings: 25 MB for the rows in float64.
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Head:
    """A model that turns an embedding into a number."""

    column: str
    """The column it makes."""
    title: str
    """What errors call it."""
    load: Callable[[str, str], Any]
    """Path and fingerprint to parameters, once a process."""
    predict: Callable[[Any, Any], Any]
    """Vectors of shape (n, 768), float64 and finite, and parameters, to n scores: in the array API of the vectors."""


def add_score(frame: Any, head: Head, function: Callable[[Any, str, str], Any], path: Path) -> dd.DataFrame:
    """Return `frame` with the head's column; nothing is computed yet.

    Parameters
    ----------
    frame : Dask DataFrame with column ``embedding``
    head : Head
    function : callable
        `score_part` of this head, at the top level of a module: what goes into the graph, with the path of the weights
        and their fingerprint, so that workers read the file themselves and check that it is the same.
    path : pathlib.Path
        Read here too, so that a damaged file fails before any image is embedded.

    Raises
    ------
    ValueError
        Where the file does not hold the head's weights.
    """
    fingerprint = weights.fingerprint(path)
    head.load(str(path), fingerprint)
    meta = vectors.to_series([], head.column, like=frame._meta)
    scores = map_rows(frame[["embedding"]], function, str(path), fingerprint, meta=meta)
    return frame.assign(**{head.column: scores})


def check_encoder(head: Head, known: identity.Identity | None) -> None:
    """Raise a ValueError, which names both, where it is known that vectors are not CLIP's."""
    if known is not None and known.kind not in ("clip", "clip_vision_model", "callable"):
        raise ValueError(
            f"the {head.title} takes embeddings of {ENCODER} and these are of {known}; embed the images with the encoder it "
            f'was trained on, model="{ENCODER}"'
        )


def check_dimension(head: Head, dimension: int) -> None:
    """Raise a ValueError, which names both, where embeddings of `dimension` are not what the head was trained on."""
    if dimension != DIMENSION:
        raise ValueError(
            f"the {head.title} takes embeddings of dimension {DIMENSION} and these have {dimension}; "
            f'embed the images with the encoder it was trained on, model="{ENCODER}"'
        )


def score_part(part: Any, head: Head, path: str, fingerprint: str) -> Any:
    """Return the head's column for one partition.

    Parameters
    ----------
    part : pandas or cuDF DataFrame with column ``embedding``
    head : Head
    path, fingerprint : str
        The weights.

    Returns
    -------
    pandas or cuDF Series of n rows, float32
        Null where the embedding is null or holds a value that is not finite.

    Raises
    ------
    ValueError
        Where the embeddings are not of the head's dimension, or known to be of another kind of encoder.
    """
    matrix = vectors.to_matrix(part["embedding"])
    rows, dimension = matrix.shape
    if dimension == 0:  # No row of this partition has an embedding.
        return vectors.to_series([None] * rows, head.column, like=part)
    check_dimension(head, dimension)
    check_encoder(head, identity.one(identity.of_column(part["embedding"]), "the frame"))
    return vectors.to_series(_score_blocks(matrix, head, head.load(path, fingerprint)), head.column, like=part)


def _score_blocks(matrix: Any, head: Head, parameters: Any) -> Any:
    # In float64, so that rounded to float32 a score does not depend on the rows beside it, the machine or the device.
    xp = vectors.namespace(matrix)
    scores = xp.empty(len(matrix), dtype=xp.float32)
    for start in range(0, len(matrix), _BLOCK_ROWS):
        block = matrix[start : start + _BLOCK_ROWS].astype(xp.float64)
        usable = xp.isfinite(block).all(axis=1)
        block[~usable] = 0
        scores[start : start + _BLOCK_ROWS] = xp.where(usable, head.predict(block, parameters), xp.nan)
    return scores
