"""Filters that papers published, as steps over the verbs, and the table that says what each step removes.

A recipe is a list of steps, each a name and a function that takes a frame. Recipes are put one after the other with ``+``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import dask
import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype

from imgcurate import identity, images, schema, vectors
from imgcurate.cluster import interruptible
from imgcurate.dedup import inputs, remove, semantic_duplicates
from imgcurate.dedup.corpus import saved_corpus
from imgcurate.dedup.semantic import assign
from imgcurate.dedup.semantic import frame as frames
from imgcurate.rowwise import map_rows
from imgcurate.scores.fraction import top_fraction

#: What a step removes, in words; and a function that takes the rows that earlier steps left, and gives a boolean column of them or those that it keeps.
Step = tuple[str, Callable[[Any], Any]]

_FROM = {
    "bytes": "read_webdataset and read_files give it",
    "caption": "read_webdataset reads it from the .txt beside an image",
    "clip_score": "score_text(frame) adds it",
    "embedding": "embed(frame) adds it",
    "height": "embed(frame) or measure(frame) adds it",
    "width": "embed(frame) or measure(frame) adds it",
}
_DISTANCE = "distance from the nearest centroid"
#: Rows that are compared with all centroids at a time.
_BLOCK = 256


@interruptible
def apply(frame: Any, steps: Iterable[Step]) -> tuple[Any, pd.DataFrame]:
    """Keep the rows that all steps keep, and count what each step removes. Eager in the counts.

    Parameters
    ----------
    frame : Dask DataFrame
    steps : iterable of (str, callable)
        A recipe, or steps of your own: a name, and a function that takes the frame of what the steps before it left, and gives either a
        boolean column of it, true for the rows to keep and null where that cannot be said, or the frame of the rows to keep, as
        `top_fraction` and `remove` do. Before them all, rows with an ``error`` go, where the frame has that column.

    Returns
    -------
    kept : Dask DataFrame
        Lazy: the rows that are left, with the columns of `frame`.
    table : pandas.DataFrame
        One row a step: ``step`` (its name), ``read`` (rows that it got), ``removed``, ``left``, and ``share``: which share of all rows is left.

    Raises
    ------
    TypeError
        Where `frame` is no Dask dataframe, or a step gives something else.
    KeyError
        Where a column is missing that a step needs.

    Notes
    -----
    All is counted in one pass over the frame, of which a number a partition and step comes back; but a step that has to see all rows before it
    can choose, such as a share of the best or duplicates, makes a pass of its own. `kept` is computed again for what comes after: ``persist()``
    or `checkpoint` the frame before, where its columns are dear.

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> rows = {"caption": ["a dog", "a red dog runs", None], "width": [640, 640, 640], "height": [480, 100, 480]}
    >>> frame = dd.from_dict(rows, npartitions=1)
    >>> kept, table = apply(frame, [("some caption", lambda frame: frame.caption.notnull()), *datacomp_basic()])
    >>> print(table.to_string(index=False))
                                       step  read  removed  left    share
                               some caption     3        1     2 0.666667
               caption of more than 2 words     2        1     1 0.333333
          caption of more than 5 characters     1        0     1 0.333333
        shorter side of at least 200 pixels     1        1     0 0.000000
    longer side at most 3 times the shorter     0        0     0 0.000000
    """
    schema.require(frame, [], "recipes.apply")
    chain = list(steps)
    if "error" in frame.columns:
        chain.insert(0, ("no error", lambda rows: rows["error"].isnull()))
    stages = [frame]
    for name, step in chain:
        try:
            stages.append(_left(stages[-1], name, step(stages[-1])))
        except Exception as problem:
            problem.add_note(f"in step {name!r}")
            raise
    counts = np.array(dask.compute(*[stage.shape[0] for stage in stages]), dtype=np.int64)
    table = pd.DataFrame(
        {
            "step": [name for name, _ in chain],
            "read": counts[:-1],
            "removed": counts[:-1] - counts[1:],
            "left": counts[1:],
            "share": counts[1:] / max(int(counts[0]), 1),
        }
    )
    return stages[-1], table


def laion(min_clip_score: float = 0.28) -> list[Step]:
    """Return LAION's filter: a caption of at least 5 characters, a file of at least 5,000 bytes, a cosine of image and caption.

    Parameters
    ----------
    min_clip_score : float, default 0.28
        That of LAION-5B's English part, with CLIP ViT-B/32; its other languages had 0.26 with a multilingual CLIP, LAION-400M 0.3.

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``caption``, ``bytes`` and ``clip_score`` (of `score_text`).

    Notes
    -----
    C. Schuhmann et al., "LAION-400M", 2021 (arXiv 2111.02114), and "LAION-5B", NeurIPS 2022 (arXiv 2210.08402). Not in it: the Bloom filter of
    URLs, languages, and the search for illegal images.

    Examples
    --------
    >>> [name for name, _ in laion(0.3)]
    ['caption of at least 5 characters', 'file of at least 5,000 bytes', 'clip_score of at least 0.3']
    """
    return [
        ("caption of at least 5 characters", lambda frame: _column(frame, "caption").str.len() >= 5),
        ("file of at least 5,000 bytes", lambda frame: _column(frame, "bytes") >= 5000),
        (f"clip_score of at least {min_clip_score:g}", lambda frame: _column(frame, "clip_score") >= min_clip_score),
    ]


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
    >>> steps = [("English", lambda frame: frame.language == "en"), *datacomp_basic()]
    >>> len(steps)
    5
    """
    return [
        _words(2),
        _characters(5),
        (
            "shorter side of at least 200 pixels",
            lambda frame: (_column(frame, "width") >= 200) & (_column(frame, "height") >= 200),
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

    Notes
    -----
    S. Y. Gadre et al., "DataComp", 2023. Of n scores `top_fraction` keeps down to the ``ceil(fraction * n)``-th highest, DataComp's script one more.

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> frame = dd.from_dict({"clip_score": [0.1, 0.3, 0.2, 0.25]}, npartitions=1)
    >>> apply(frame, top_clip_score(0.5))[0].compute()["clip_score"].tolist()
    [0.3, 0.25]
    """

    def best(frame: Any) -> Any:
        _column(frame, "clip_score")
        return top_fraction(frame, "clip_score", fraction)

    return [(f"the highest {fraction:.0%} of clip_score", best)]


@interruptible
def image_based(examples: Any, centroids: Any) -> list[Step]:
    """Return DataComp's "image-based" filter: images of a cluster that is the nearest one of some example too. Eager in the examples.

    Parameters
    ----------
    examples : Dask DataFrame with ``embedding``, or array of shape (m, d)
        What images should be like; DataComp took the training images of ImageNet-1k.
    centroids : array of shape (k, d), or path
        Of clusters of the pool, or of a sample of it, made with the same encoder; or a folder that `save_embeddings` wrote, whose clusters are
        taken. DataComp made 100,000.

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``caption`` and ``embedding``.

    Raises
    ------
    KeyError, FileNotFoundError
        Where the examples have no column ``embedding``, or there is no such folder.
    ValueError
        Where an array is no matrix, both are not of one dimension, or were made by several encoders.

    Notes
    -----
    S. Y. Gadre et al., "DataComp", 2023, as ``baselines/apply_filter.py`` does it: a row belongs to the centroid with which its product is the
    highest, whatever the centroids' lengths, and a caption has more than 1 word and 5 characters. Not in it: English by fastText.

    DataComp-1B is what ``top_clip_score(0.3) + image_based(examples, centroids)`` leaves.

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> rows = {"caption": ["a red dog", "a blue cat"], "embedding": [[1.0, 0.0], [0.0, 1.0]]}
    >>> steps = image_based(examples=np.array([[0.8, 0.6]]), centroids=np.eye(2))
    >>> apply(dd.from_dict(rows, npartitions=1), steps)[0]["caption"].compute().tolist()
    ['a red dog']
    """
    encoders: frozenset[identity.Identity] = frozenset()
    if isinstance(centroids, str | os.PathLike):
        # Workers read them: in a graph they would travel with each computation.
        shared = dask.delayed(_saved_centroids)(centroids)
        saved = saved_corpus(centroids, "image_id", None)
        centroids, encoders = saved.centroids, saved.encoders
    else:
        centroids = _as_matrix(centroids, "centroids")
        shared = dask.delayed(centroids)
    if hasattr(examples, "to_delayed"):
        schema.require(examples, ["embedding"], "image_based")
        parts = examples[["embedding"]].to_delayed()
        found = dask.compute(*[dask.delayed(_clusters_of_part)(part, shared) for part in parts])
        near = np.unique(np.concatenate([labels for labels, _ in found]))
        encoders = encoders.union(*[others for _, others in found])
    else:
        near = np.unique(_clusters(_as_matrix(examples, "examples"), centroids))
    near = near[near >= 0]
    identity.one(encoders, "image_based")

    def like_an_example(frame: Any) -> Any:
        _column(frame, "embedding")
        return map_rows(frame[["embedding"]], _near, shared, near, encoders, meta=_truths(frame))

    return [_words(1), _characters(5), ("cluster of an example", like_an_example)]


def semdedup(eps: float | None = None, *, n_clusters: int | None = None, seed: int = 42) -> list[Step]:
    """Return SemDeDup: within clusters, of images that are nearly equal the one that is farthest from the centroid stays.

    Parameters
    ----------
    eps, n_clusters, seed
        As for `semantic_duplicates`. SemDeDup had 50,000 clusters.

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``image_id`` and ``embedding``.

    Notes
    -----
    A. Abbas et al., "SemDeDup", 2023 (arXiv 2303.09540): `semantic_duplicates` with ``keep="hard"``, ``rule="pointwise"`` and ``probes=1``. Its
    own defaults find pairs that a border of clusters parts, and remove no image without a twin that stays.

    Examples
    --------
    >>> kept, table = apply(frame, laion() + semdedup(0.03))  # doctest: +SKIP
    """

    def deduplicated(frame: Any) -> Any:
        found = _semdedup(frame, seed, eps=eps, n_clusters=n_clusters)
        return remove(frame, found, missing="ignore")

    return [("no semantic duplicate", deduplicated)]


def prototypes(fraction: float, *, n_clusters: int | None = None, seed: int = 42) -> list[Step]:
    """Return pruning by SSL prototypes: the images that are nearest to the centroid of their cluster, the most prototypical, go.

    Parameters
    ----------
    fraction : float
        Which share of the images with an embedding stays: those that are farthest from their centroids.
    n_clusters : int, optional
        Default: about ``sqrt(n / 2)``.
    seed : int
        Of k-means.

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``image_id`` and ``embedding``.

    Notes
    -----
    B. Sorscher et al., "Beyond neural scaling laws", NeurIPS 2022 (arXiv 2206.14486), with spherical k-means as D4 has it. All clusters are pruned by one
    distance, so that dense ones lose more.

    Examples
    --------
    >>> import dask.dataframe as dd
    >>> rows = {"image_id": ["a", "b", "c"], "embedding": [[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]}
    >>> steps = prototypes(0.34, n_clusters=1)
    >>> apply(dd.from_dict(rows, npartitions=1), steps)[0]["image_id"].compute().tolist()
    ['b', 'c']
    """

    def far_from_centroids(frame: Any) -> Any:
        distances = _distances(frame, n_clusters, seed)
        return top_fraction(frame.assign(**{_DISTANCE: distances}), _DISTANCE, fraction)[list(frame.columns)]

    return [(f"the {fraction:.0%} farthest from centroids", far_from_centroids)]


def d4(
    dedup: float = 0.75,
    prototype: float = 0.75,
    *,
    min_similarity: float = 0.9,
    n_clusters: int | None = None,
    seed: int = 42,
) -> list[Step]:
    """Return D4: SemDeDup down to a share, then k-means of what is left and pruning by SSL prototypes down to another.

    Parameters
    ----------
    dedup : float, default 0.75
        Which share of the rows `semdedup` may leave at most.
    prototype : float, default 0.75
        Which share of these `prototypes` leaves.
    min_similarity : float, default 0.9
        Down to which cosine pairs are stored, so that the threshold that leaves `dedup` can be found among them.
    n_clusters, seed
        As for `semantic_duplicates` and `prototypes`.

    Returns
    -------
    list of (str, callable)
        For `apply`, to a frame with ``image_id`` and ``embedding``.

    Notes
    -----
    K. Tirumala et al., "D4", NeurIPS 2023 (arXiv 2308.12284), which measured it on text. It clusters anew after duplicates are gone, because they draw
    centroids to themselves.

    Examples
    --------
    >>> [name for name, _ in d4(0.75, 0.5)]
    ['no semantic duplicate, 75% left', 'the 50% farthest from centroids']
    """

    def deduplicated(frame: Any) -> Any:
        stored = {"eps": 1 - min_similarity, "min_similarity": min_similarity, "n_clusters": n_clusters}
        return remove(frame, _semdedup(frame, seed, **stored).to_fraction(dedup), missing="ignore")

    first = (f"no semantic duplicate, {dedup:.0%} left", deduplicated)
    return [first, *prototypes(prototype, n_clusters=n_clusters, seed=seed)]


def _left(frame: Any, name: str, found: Any) -> Any:
    """Return the rows that a step keeps."""
    lazy = hasattr(found, "to_delayed") and hasattr(found, "ndim")
    if not lazy or (found.ndim == 1 and not (is_bool_dtype(found.dtype) or found.dtype == object)):
        what = f"a column of {found.dtype}" if lazy else type(found).__name__
        raise TypeError(
            f"step {name!r} gave {what}; a step gives a boolean column of the frame that it takes, or some of its rows"
        )
    if found.ndim == 2:
        return found
    # In a function of ours, because Dask's optimizer cannot take a chain of filters whose predicates end in astype.
    return frame[found.map_partitions(_without_nulls, meta=_truths(frame))]


def _without_nulls(column: Any) -> Any:
    return column.fillna(False).astype(bool)


def _truths(frame: Any) -> Any:
    """Return an empty boolean column on the backend of a frame."""
    return vectors.empty_like(frame._meta, ["kept"])["kept"]


def _column(frame: Any, name: str) -> Any:
    if name not in frame.columns:
        raise KeyError(f"the recipe needs column {name!r}: {_FROM[name]}")
    return frame[name]


def _characters(n: int) -> Step:
    return f"caption of more than {n} characters", lambda frame: _column(frame, "caption").str.len() > n


def _words(n: int) -> Step:
    def longer(frame: Any) -> Any:
        _column(frame, "caption")
        return map_rows(frame[["caption"]], _more_words, n, meta=_truths(frame))

    return f"caption of more than {n} word{'s' * (n > 1)}", longer


def _at_most_3_to_1(frame: Any) -> Any:
    # As float64, because whole numbers of pixels multiply beyond 32 bits.
    width, height = (_column(frame, name).astype("float64") for name in ("width", "height"))
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


def _saved_centroids(path: str | os.PathLike[str]) -> np.ndarray:
    return saved_corpus(path, "image_id", None).centroids


def _clusters(matrix: Any, centroids: np.ndarray) -> np.ndarray:
    """Return the centroid with which each row's product is the highest; -1 where the row has no vector."""
    if matrix.shape[1] != centroids.shape[1]:
        raise ValueError(
            f"the centroids have dimension {centroids.shape[1]} and embeddings {matrix.shape[1]}; take those of one encoder"
        )
    xp = vectors.namespace(matrix)
    columns, labels = xp.asarray(centroids).T, np.empty(len(matrix), dtype=np.int64)
    for start in range(0, len(matrix), _BLOCK):
        block = matrix[start : start + _BLOCK]
        nearest = xp.where(xp.isfinite(block).all(axis=1), (block @ columns).argmax(axis=1), -1)
        labels[start : start + _BLOCK] = vectors.to_numpy(nearest)
    return labels


def _clusters_of_part(part: Any, centroids: np.ndarray) -> tuple[np.ndarray, frozenset[identity.Identity]]:
    matrix = vectors.to_matrix(part["embedding"], None if len(part) else centroids.shape[1])
    return _clusters(matrix, centroids), identity.of_column(part["embedding"])


def _near(part: Any, centroids: np.ndarray, near: np.ndarray, encoders: frozenset[identity.Identity]) -> Any:
    labels, own = _clusters_of_part(part, centroids)
    identity.one(own | encoders, "image_based")
    return vectors.to_series(np.isin(labels, near), "kept", part)


def _semdedup(frame: Any, seed: int, **options: Any) -> Any:
    return semantic_duplicates(frame, keep="hard", rule="pointwise", probes=1, seed=seed, **options)


def _distances(frame: Any, n_clusters: int | None, seed: int) -> Any:
    """Return 1 - cosine of each row to the nearest centroid of k-means, as a column; null where a row has no vector."""
    checked = inputs.as_frame(frame, "prototypes", "image_id", "embedding").frame
    rows = frames.prepare(checked, "image_id", "embedding", [], seed)
    if not rows.n_compared:
        raise ValueError("no row that is left has a usable vector: there is nothing to cluster")
    k = min(n_clusters or max(1, round((rows.n_compared / 2) ** 0.5)), rows.n_compared)
    centroids = dask.persist(frames.fit(rows, k, seed, vectors.on_gpu(frame._meta)))[0]
    meta = vectors.empty_like(frame._meta, ["centroid_distance"])["centroid_distance"]
    return map_rows(frame[["embedding"]], _distance, centroids, meta=meta)


def _distance(part: Any, centroids: np.ndarray) -> Any:
    matrix = vectors.to_matrix(part["embedding"], None if len(part) else centroids.shape[1])
    unit, valid = vectors.unit_rows(matrix)
    distances = np.full(len(matrix), np.nan, dtype=np.float32)
    if valid.any():
        distances[valid] = assign.place(vectors.take(unit, valid), centroids).distance
    return vectors.to_series(distances, "centroid_distance", part)
