"""encode_text(): texts as vectors in the space of the images' embeddings."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from imgcurate.encoders import load_text_encoder


def encode_text(
    texts: Sequence[str],
    model: str | os.PathLike[str] = "openai/clip-vit-large-patch14",
    *,
    batch_size: int = 64,
    dtype: str = "auto",
    model_dir: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Embed texts in this process.

    Parameters
    ----------
    texts : sequence of str
    model : str or path, default "openai/clip-vit-large-patch14"
        A CLIP or SigLIP checkpoint with its text tower and tokenizer.
    batch_size : int, default 64
    dtype, model_dir
        As for `embed`.

    Returns
    -------
    numpy.ndarray of shape (n, d), float32
        Of unit length: the dot product with an image's embedding by the same model is their cosine.

    Raises
    ------
    TypeError
        Where `texts` is not a sequence of strings.
    FileNotFoundError, ValueError
        Where the model cannot be had, or reads no text.

    Warns
    -----
    UserWarning
        With their number, where texts are longer than the model reads; they are cut.

    Examples
    --------
    >>> encode_text(["a photo of a dog"], model="openai/clip-vit-base-patch32").shape  # doctest: +SKIP
    (1, 512)
    """
    texts = check_texts(texts)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: a batch needs at least 1 text")
    encoder = load_text_encoder(model, dtype=dtype, model_dir=model_dir)
    made, cut = encoder.encode(texts, batch_size)
    if cut.any():
        warnings.warn(
            f"{cut.sum()} of {len(texts)} texts are longer than the {encoder.context} tokens that {encoder.name!r} reads, and were cut",
            stacklevel=2,
        )
    return made.cpu().numpy()


def check_texts(texts: Any, what: str = "texts") -> list[str]:
    """Return texts as a list; raises a TypeError where they are none."""
    if isinstance(texts, str) or not isinstance(texts, Sequence | np.ndarray):
        raise TypeError(f"{what} must be a list of strings, not {type(texts).__name__}")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{what} must be a list of strings, and {text!r} is none")
    return list(texts)
