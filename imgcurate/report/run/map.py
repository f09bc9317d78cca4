"""A map of a sample of the embeddings: images that lie close to one another on it are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from imgcurate import parts, storage, vectors
from imgcurate.report.run.facts import COLUMNS, at_random

#: Of at most so many parts so many images are drawn: reading embeddings costs more than all else.
PARTS, IMAGES = 128, 512
_WIDE = 16 / 9
_COMPONENTS, _NEIGHBOURS, _FEWEST = 50, 30, 5


def some_of(urls: Sequence[str]) -> list[str]:
    """Return the parts from which a sample is drawn, evenly from all.

    Examples
    --------
    >>> urls = [str(number) for number in range(1000)]
    >>> len(some_of(urls)), some_of(urls)[:3], some_of(["a", "b"])
    (128, ['0', '7', '15'], ['a', 'b'])
    """
    n = min(len(urls), PARTS)
    return [urls[number * len(urls) // n] for number in range(n)]


def sample(url: str, n: int, storage_options: storage.Options) -> tuple[pd.DataFrame, np.ndarray]:
    """Draw at most n embedded images of a part; returns rows with columns of `COLUMNS`, and their embeddings."""
    part = parts.read_part(url, None, [*COLUMNS, "embedding"], storage_options)
    part = part[(part["embedding"].notna() & part["error"].isna()).to_numpy()].reset_index(drop=True)
    drawn = part.loc[sorted(at_random(part["image_id"]).nsmallest(n).index)]
    matrix = vectors.to_matrix(drawn[["embedding"]])
    rows = drawn.drop(columns="embedding").assign(
        caption=drawn["caption"].str.slice(0, 400), reason_kind=drawn["reason_kind"].astype(object)
    )
    return rows.reset_index(drop=True), np.asarray(matrix)


def place(drawn: Sequence[tuple[pd.DataFrame, np.ndarray]]) -> pd.DataFrame | None:
    """Place images on a plane by their embeddings.

    Returns
    -------
    pandas.DataFrame or None
        The rows, with ``x`` and ``y`` from 0 to 1; None where there are too few to make a picture, or all are one.
    """
    of_images = [(rows, matrix) for rows, matrix in drawn if len(rows)]
    if sum(len(rows) for rows, _ in of_images) < _FEWEST:
        return None
    rows = pd.concat([rows for rows, _ in of_images], ignore_index=True)
    matrix = np.concatenate([matrix for _, matrix in of_images])
    points = _on_a_plane(matrix)
    if points is None:
        return None
    low, high = points.min(axis=0), points.max(axis=0)
    points = ((points - low) / np.where(high > low, high - low, 1)).astype("float64")
    return rows.assign(x=points[:, 0].round(4), y=points[:, 1].round(4))


def apart(points: np.ndarray, spacing: float) -> np.ndarray:
    """Move points that lie closer together than `spacing`, each to the nearest place that is free, if there is one.

    Parameters
    ----------
    points : numpy.ndarray of shape (n, 2)
        From 0 to 1, on a map that is as many times wider than high as `_WIDE` says.
    spacing : float
        A share of the map's width.

    Examples
    --------
    >>> moved = apart(np.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]]), 0.1)
    >>> moved[[0, 2]].tolist(), bool(np.abs(moved[1] - moved[0]).max() >= 0.1)
    ([[0.5, 0.5], [0.9, 0.1]], True)
    """
    high = 1 / _WIDE
    x, y = np.meshgrid(np.linspace(0, 1, 49), np.linspace(0, high, 28))
    places = np.column_stack([x.ravel(), y.ravel()])
    taken = np.empty((0, 2))
    for point in points * (1, high):
        candidates = np.vstack([point, places[np.argsort(((places - point) ** 2).sum(axis=1), kind="stable")]])
        free = (np.abs(candidates[:, None] - taken).max(axis=2) >= spacing).all(axis=1)
        taken = np.vstack([taken, candidates[free.argmax()]])
    return (taken / (1, high)).round(4)


def _on_a_plane(matrix: np.ndarray) -> Any:
    """Return a point for each vector: by PCA, then by t-SNE in the order that is the same each time."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    n = len(matrix)
    # Sums of several threads come in any order, and t-SNE makes a difference in the last bit another picture.
    with threadpool_limits(1):
        few = PCA(min(_COMPONENTS, *matrix.shape), svd_solver="full").fit_transform(matrix.astype("float64"))
        if few[:, 0].std() < 1e-6:
            return None
        perplexity = min(_NEIGHBOURS, (n - 1) / 3)
        return TSNE(2, perplexity=perplexity, init="pca", random_state=0, max_iter=750).fit_transform(few)
