"""The filters that DataComp compares: by rules, by the fit of image and caption, and by likeness to examples."""

from __future__ import annotations

import os
from typing import Any

import dask
import numpy as np

from imgcurate import identity, images, schema, storage, vectors
from imgcurate.cluster import interruptible
from imgcurate.dedup.semantic.corpus import saved_corpus
from imgcurate.recipes.steps import Step, check_share, column, truths
from imgcurate.rowwise import map_rows
from imgcurate.scores.fraction import top_fraction

#: Rows that are compared with all centroids at a time.
_BLOCK = 256


def datacomp_basic() -> list[Step]:
    """Return DataComp's "basic filtering": more than 2 words and 5 characters, sides of at least 200 pixels and at most 3 to 1.

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``caption``, ``width`` and ``height``.

    Notes
    -----
    S. Y. Gadre et al., "DataComp", NeurIPS 2023 (arXiv 2304.14108), as ``baselines/apply_filter.py`` does it, which keeps 200 pixels and 3 to 1
    where the paper says "above" and "below". Not in it: English by fastText, which is a step of your own; see the example.

    Examples
    --------
    >>> from imgcurate import recipes
    >>> steps = [("English", lambda frame: frame.language == "en"), *recipes.datacomp_basic()]
    >>> len(steps)
    5
    """
    return [
        _words(2),
        _characters(5),
        (
            "shorter side of at least 200 pixels",
            lambda frame: (column(frame, "width") >= 200) & (column(frame, "height") >= 200),
        ),
        ("longer side at most 3 times the shorter", _at_most_3_to_1),
    ]


def top_clip_score(fraction: float = 0.3) -> list[Step]:
    """Return DataComp's "CLIP score" filter: the share of the rows whose image and caption go together best.

    Parameters
    ----------
    fraction : float, default 0.3

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``clip_score`` (of `score_text`; DataComp's is of ViT-L/14). It is a share of the rows that the steps before
        left, so that it comes first where it is to be one of the whole pool.

    Raises
    ------
    ValueError
        Where `fraction` is out of range.

    Notes
    -----
    S. Y. Gadre et al., "DataComp", 2023. Of n scores `top_fraction` keeps down to the ``ceil(fraction * n)``-th highest, DataComp's script one more.

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> from imgcurate import recipes
    >>> frame = dd.from_dict({"clip_score": [0.1, 0.3, 0.2, 0.25]}, npartitions=1)
    >>> recipes.apply(frame, recipes.top_clip_score(0.5))[0].compute()["clip_score"].tolist()
    [0.3, 0.25]
    """
    check_share("fraction", fraction)

    def best(frame: Any) -> Any:
        column(frame, "clip_score")
        return top_fraction(frame, "clip_score", fraction)

    return [(f"the highest {100 * fraction:g}% of clip_score", best)]


@interruptible
def image_based(examples: Any, centroids: Any) -> list[Step]:
    """Return DataComp's "image-based" filter: images of a cluster that is the nearest one of some example too. Eager in the examples.

    Parameters
    ----------
    examples : Dask DataFrame with ``embedding``, or array of shape (m, d)
        What images should be like; DataComp took the training images of ImageNet-1k.
    centroids : array of shape (k, d), or path
        Of clusters of the pool, or of a sample of it, made with the same encoder; or a folder that `save_embeddings` wrote, whose clusters are
        taken: that of many, because an array travels to the workers with each computation. DataComp made 100,000.

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``caption`` and ``embedding``.

    Raises
    ------
    KeyError, FileNotFoundError
        Where the examples have no column ``embedding``, or there is no such folder.
    ValueError
        Where an array is no matrix, no example has a usable vector, or both are not of one dimension or of one encoder: of the frame that a
        recipe is applied to when that is computed.

    Notes
    -----
    S. Y. Gadre et al., "DataComp", 2023, as ``baselines/apply_filter.py`` does it: a row belongs to the centroid with which its product is the
    highest, whatever the centroids' lengths, and a caption has more than 1 word and 5 characters. Not in it: English by fastText.

    DataComp-1B is what ``top_clip_score(0.3) + image_based(examples, centroids)`` and English leave.

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> from imgcurate import recipes
    >>> rows = {"caption": ["a red dog", "a blue cat"], "embedding": [[1.0, 0.0], [0.0, 1.0]]}
    >>> steps = recipes.image_based(examples=np.array([[0.8, 0.6]]), centroids=np.eye(2))
    >>> recipes.apply(dd.from_dict(rows, npartitions=1), steps)[0]["caption"].compute().tolist()
    ['a red dog']
    """
    encoders: frozenset[identity.Identity] = frozenset()
    if isinstance(centroids, str | os.PathLike):
        # Workers, who may be at work in other folders, read them: in a graph they would travel with each computation.
        path = storage.absolute(centroids)
        saved, shared = saved_corpus(path, "image_id", None), dask.delayed(_saved_centroids)(path)
        centroids, encoders = saved.centroids, saved.encoders
    else:
        centroids = _as_matrix(centroids, "centroids")
        if not np.isfinite(centroids).all():
            raise ValueError("centroids holds numbers that are not finite; leave out their rows")
        shared = dask.delayed(centroids)
    if hasattr(examples, "to_delayed"):
        schema.require(examples, ["embedding"], "image_based")
        task, parts = dask.delayed(_clusters_of_part), examples[["embedding"]].to_delayed()
        near = np.unique(np.concatenate(dask.compute(*[task(part, shared, encoders) for part in parts])))
    else:
        matrix = _as_matrix(examples, "examples")
        if matrix.shape[1] != centroids.shape[1]:
            raise ValueError(
                f"the centroids have dimension {centroids.shape[1]} and the examples {matrix.shape[1]}; take those of one encoder"
            )
        near = np.unique(_clusters(matrix, centroids))
    near = near[near >= 0]
    if not len(near):
        raise ValueError("no example has a usable vector: there is nothing that images could be like")

    def like_an_example(frame: Any) -> Any:
        column(frame, "embedding")
        return map_rows(frame[["embedding"]], _near, shared, near, encoders, meta=truths(frame))

    return [_words(1), _characters(5), ("cluster of an example", like_an_example)]


def _words(n: int) -> Step:
    def longer(frame: Any) -> Any:
        column(frame, "caption")
        return map_rows(frame[["caption"]], _more_words, n, meta=truths(frame))

    return f"caption of more than {n} word{'s' * (n > 1)}", longer


def _characters(n: int) -> Step:
    return f"caption of more than {n} characters", lambda frame: column(frame, "caption").str.len() > n


def _at_most_3_to_1(frame: Any) -> Any:
    # As float64, because whole numbers of pixels multiply beyond 32 bits.
    width, height = (column(frame, name).astype("float64") for name in ("width", "height"))
    return (width <= 3 * height) & (height <= 3 * width)


def _more_words(part: Any, n: int) -> Any:
    captions = images.host_columns(part, ["caption"])["caption"]
    more = np.array([text is not None and len(text.split()) > n for text in captions], dtype=bool)
    return vectors.to_series(more, "kept", part)


def _as_matrix(given: Any, name: str) -> np.ndarray:
    matrix = vectors.to_numpy(given)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or not len(matrix):
        raise ValueError(f"{name} holds {matrix.dtype} of shape {matrix.shape}, not numbers of shape (rows, dimension)")
    return matrix.astype(np.float32)


def _saved_centroids(path: str) -> np.ndarray:
    return saved_corpus(path, "image_id", None).centroids


def _clusters(matrix: Any, centroids: np.ndarray) -> np.ndarray:
    """Return the centroid with which each row's product is the highest; -1 where the row has no vector."""
    xp = vectors.namespace(matrix)
    columns, labels = xp.asarray(centroids).T, np.empty(len(matrix), dtype=np.int64)
    for start in range(0, len(matrix), _BLOCK):
        unit, valid = vectors.unit_rows(matrix[start : start + _BLOCK])
        labels[start : start + _BLOCK] = np.where(valid, vectors.to_numpy((unit @ columns).argmax(axis=1)), -1)
    return labels


def _clusters_of_part(part: Any, centroids: np.ndarray, encoders: frozenset[identity.Identity]) -> np.ndarray:
    identity.one(identity.of_column(part["embedding"]) | encoders, "image_based")
    return _clusters(vectors.to_matrix(part["embedding"], centroids.shape[1]), centroids)


def _near(part: Any, centroids: np.ndarray, near: np.ndarray, encoders: frozenset[identity.Identity]) -> Any:
    return vectors.to_series(np.isin(_clusters_of_part(part, centroids, encoders), near), "kept", part)
