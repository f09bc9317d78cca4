"""Scores that compare images with text: the CLIP score of captions, and zero-shot probabilities of prompts."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from imgcurate import identity, images, schema, vectors
from imgcurate.encoders import check_dtype, find_text, load_text_encoder
from imgcurate.encoders.text import check_texts
from imgcurate.rowwise import map_rows

if TYPE_CHECKING:
    import dask.dataframe as dd

    from imgcurate.encoders.language import TextEncoder

_DEFAULT = "openai/clip-vit-large-patch14"


def score_text(
    frame: Any,
    column: str = "caption",
    *,
    model: str | os.PathLike[str] = _DEFAULT,
    dtype: str = "auto",
    model_dir: str | os.PathLike[str] | None = None,
) -> dd.DataFrame:
    """Add ``clip_score``: how well each image and its text go together.

    The filter of LAION (cosine >= 0.28 with ViT-B/32) and of DataComp (the highest 30 % with ViT-L/14): see `imgcurate.top_fraction`.

    Parameters
    ----------
    frame : Dask DataFrame
        With column ``embedding``, made by `embed` with the same model, and `column`.
    column : str, default "caption"
    model, dtype, model_dir
        As for `embed`: a CLIP or SigLIP checkpoint with its text tower and tokenizer.

    Returns
    -------
    Dask DataFrame
        Lazy, with ``clip_score`` (float32: the cosine of image and text, -1 to 1; null where either is null) and ``text_cut`` (bool: whether
        the text was longer than the model reads, and was cut). ``frame.text_cut.sum()`` counts these.

    Raises
    ------
    KeyError
        Where a column is missing.
    FileNotFoundError, ValueError
        Where the model cannot be had, or reads no text. When the frame is computed: where its embeddings were made by another model.

    Notes
    -----
    J. Hessel et al., "CLIPScore", EMNLP 2021, without its factor of 2.5.

    Examples
    --------
    >>> frame = score_text(embed(frame))  # doctest: +SKIP
    >>> frame = frame[frame.clip_score >= 0.28]  # doctest: +SKIP
    """
    schema.require(frame, ["embedding", column], "score_text")
    check_dtype(dtype)
    source = find_text(model, model_dir).source
    names = ["clip_score", "text_cut"]
    meta = vectors.empty_like(frame._meta, names)
    scores = map_rows(frame[["embedding", column]], _score_text_part, column, source, dtype, meta=meta)
    return frame.assign(**{name: scores[name] for name in names})


def score_prompts(
    frame: Any,
    prompts: Mapping[str, str | Sequence[str]],
    *,
    model: str | os.PathLike[str] = _DEFAULT,
    dtype: str = "auto",
    model_dir: str | os.PathLike[str] | None = None,
) -> dd.DataFrame:
    """Add a column a class: how probable it is that an image is of it, told from prompts alone (zero-shot).

    Parameters
    ----------
    frame : Dask DataFrame
        With column ``embedding``, made by `embed` with the same model.
    prompts : mapping of str to sequence of str
        Column to the prompts of its class, such as ``{"watermark": ["a photo with a watermark"], "clean": ["a photo"]}``. The vectors of
        several prompts are averaged.
    model, dtype, model_dir
        As for `score_text`.

    Returns
    -------
    Dask DataFrame
        Lazy, with float32 columns of 0 to 1, null where the embedding is. Of CLIP they add up to 1 (a softmax over the classes, with the
        checkpoint's temperature); of SigLIP each stands for itself (a sigmoid, with the checkpoint's temperature and bias).

    Raises
    ------
    KeyError, FileNotFoundError, ValueError
        As `score_text`; a ValueError also where the frame has one of the columns.
    TypeError
        Where `prompts` are none.

    Notes
    -----
    A. Radford et al., "Learning transferable visual models from natural language supervision", 2021.

    Examples
    --------
    >>> frame = score_prompts(frame, {"watermark": ["a photo with a watermark"], "clean": ["a photo"]})  # doctest: +SKIP
    >>> frame = frame[frame.watermark < 0.5]  # doctest: +SKIP
    """
    schema.require(frame, ["embedding"], "score_prompts")
    check_dtype(dtype)
    if not isinstance(prompts, Mapping) or not prompts:
        raise TypeError(
            "prompts must be a dict of column to prompts, such as {'watermark': ['a photo with a watermark']}"
        )
    classes = {
        name: tuple(check_texts([some] if isinstance(some, str) else some, f"the prompts of {name!r}"))
        for name, some in prompts.items()
    }
    for name, some in classes.items():
        if not some:
            raise ValueError(f"prompts: {name!r} has none")
        if name in frame.columns:
            raise ValueError(f"the frame already has a column {name!r}; drop it first: frame.drop(columns={name!r})")
    found = find_text(model, model_dir)
    if len(classes) < 2 and found.kind in ("clip",):
        raise ValueError(
            "prompts has one class, and CLIP tells only which of several is the most probable: add what else an image may be, such as "
            "{'clean': ['a photo']}"
        )
    empty = pa.schema({name: pa.float32() for name in classes}).empty_table()
    scores = map_rows(
        frame[["embedding"]],
        _score_prompts_part,
        tuple(classes.items()),
        found.source,
        dtype,
        meta=vectors.from_arrow(empty, frame._meta),
    )
    return frame.assign(**{name: scores[name] for name in classes})


def _score_text_part(part: Any, column: str, model: str, dtype: str) -> Any:
    texts = images.host_columns(part, [column])[column]
    rows = [row for row, text in enumerate(texts) if text is not None]
    matrix = vectors.to_matrix(part["embedding"])
    scores, cut = np.full(len(texts), np.nan, dtype=np.float32), np.zeros(len(texts), dtype=bool)
    if rows and matrix.shape[1]:
        encoder = _encoder_of(part, matrix.shape[1], model, dtype)
        made, were_cut = encoder.encode([str(texts[row]) for row in rows])
        cut[rows] = were_cut
        xp = vectors.namespace(matrix)
        these = vectors.take(matrix, np.array(rows)).astype(xp.float64)
        text = xp.asarray(made.cpu().numpy() if xp is np else made).astype(xp.float64)
        scores[rows] = vectors.to_numpy(xp.einsum("ij,ij->i", these, text))
    columns = {
        "clip_score": pa.array(scores, from_pandas=True),
        "text_cut": pa.array(cut),
    }
    return images.columns_like(part, columns)


def _score_prompts_part(part: Any, classes: tuple[tuple[str, tuple[str, ...]], ...], model: str, dtype: str) -> Any:
    names = [name for name, _ in classes]
    matrix = vectors.to_matrix(part["embedding"])
    probabilities = np.full((len(matrix), len(names)), np.nan, dtype=np.float64)
    if len(matrix) and matrix.shape[1]:
        encoder = _encoder_of(part, matrix.shape[1], model, dtype)
        directions = _directions(encoder, classes)
        xp = vectors.namespace(matrix)
        logits = encoder.scale * vectors.to_numpy(matrix.astype(xp.float64) @ xp.asarray(directions.T))
        if encoder.bias is not None:
            probabilities = 1 / (1 + np.exp(-(logits + encoder.bias)))
        else:
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities = odds / odds.sum(axis=1, keepdims=True)
    columns = {
        name: pa.array(values.astype(np.float32), from_pandas=True)
        for name, values in zip(names, probabilities.T, strict=True)
    }
    return images.columns_like(part, columns)


def _encoder_of(part: Any, dimension: int, model: str, dtype: str) -> TextEncoder:
    """Return the text tower; raises where the images of `part` were embedded by another model."""
    encoder = load_text_encoder(model, dtype=dtype, device=vectors.device(part))
    known = identity.one(identity.of_column(part["embedding"]), "the frame")
    if known is not None and known.fingerprint != encoder.identity.fingerprint:
        raise ValueError(
            f"the images were embedded by {known} and the texts by {encoder.identity}; give both the same model"
        )
    if dimension != encoder.dimension:
        raise ValueError(
            f"the images' embeddings have dimension {dimension} and those of texts by {encoder.name!r} {encoder.dimension}; give both the same model"
        )
    return encoder


@functools.lru_cache(maxsize=8)
def _directions(encoder: TextEncoder, classes: tuple[tuple[str, tuple[str, ...]], ...]) -> np.ndarray:
    """Return the mean direction of each class's prompts: shape (classes, dimension), float64."""
    means = [encoder.encode(some).vectors.cpu().numpy().astype(np.float64).mean(axis=0) for _, some in classes]
    return np.stack([mean / max(float(np.linalg.norm(mean)), 1e-30) for mean in means])
