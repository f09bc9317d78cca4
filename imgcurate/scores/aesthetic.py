"""LAION's aesthetic predictor: how much people would like an image, from its CLIP ViT-L/14 embedding."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imgcurate import schema, vectors, weights
from imgcurate.scores.head import DIMENSION, Head, add_score, score_part

if TYPE_CHECKING:
    import dask.dataframe as dd

REPO = "ttj/sac-logos-ava1-l14-linearMSE"
_FOLDER = REPO.partition("/")[2]
_MODEL = "LAION's aesthetic head for CLIP ViT-L/14"

# Linear layers at these places of the published network, dropout between them.
_LAYERS = {0: (1024, DIMENSION), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
_SHAPES = {
    **{f"layers.{place}.weight": shape for place, shape in _LAYERS.items()},
    **{f"layers.{place}.bias": shape[:1] for place, shape in _LAYERS.items()},
}
_NAMES = (
    f"{REPO}/model.safetensors",
    f"{_FOLDER}/model.safetensors",
    "sac+logos+ava1-l14-linearMSE.pth",
    "model.safetensors",
)


def score_aesthetic(frame: Any, *, model_dir: str | os.PathLike[str] | None = None) -> dd.DataFrame:
    """Add ``aesthetic_score``: LAION's prediction of how much people like an image.

    Parameters
    ----------
    frame : Dask DataFrame
        With column ``embedding``: unit-length image features of ``openai/clip-vit-large-patch14``, 768-d.
    model_dir : path, optional
        Where the weights lie: the file, or a directory that holds ``sac+logos+ava1-l14-linearMSE.pth`` or
        ``ttj/sac-logos-ava1-l14-linearMSE/model.safetensors`` (or that file in itself). Where it does not, they come
        from the Hugging Face hub's cache, else from the hub.

    Returns
    -------
    Dask DataFrame
        `frame` with ``aesthetic_score``, float32: the prediction (about 1 to 10) divided by 10 and clipped to 0..1;
        null where the embedding is null or not finite. Lazy.

    Raises
    ------
    KeyError
        Where the frame has no column ``embedding``.
    FileNotFoundError
        Where the weights are nowhere to be had.
    ValueError
        Where a file does not hold this head's weights. When the frame is computed: where its embeddings are of another
        dimension.

    Examples
    --------
    >>> frame = score_aesthetic(embed(frame))  # doctest: +SKIP
    >>> frame = frame[frame.aesthetic_score >= 0.5]  # doctest: +SKIP
    """
    schema.require(frame, ["embedding"], "score_aesthetic")
    return add_score(frame, HEAD, _score_part, weights_path(model_dir))


def weights_path(model_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the file that `score_aesthetic` reads with this `model_dir`, downloading it where it must.

    Raises
    ------
    FileNotFoundError
        Where `model_dir` does not exist, or the weights are nowhere to be had.
    """
    model_dir = weights.chosen_dir(model_dir)
    found = None if model_dir is None else weights.find(model_dir, _NAMES, fits=_may_be_head)
    return found or weights.from_hub(
        REPO,
        "model.safetensors",
        advice=f"download it where there is a network from https://huggingface.co/{REPO} and put it into "
        f"DIR/{REPO}/model.safetensors with model_dir=DIR",
    )


def _may_be_head(path: Path) -> bool:
    # Every model's file is called model.safetensors, the encoder's too: the directory or the layout tells them apart.
    return path.name != "model.safetensors" or path.parent.name == _FOLDER or weights.read_shapes(path) == _SHAPES


@functools.lru_cache(maxsize=2)
def _load(path: str, fingerprint: str) -> tuple[np.ndarray, float]:
    """Return the head as one affine map: weight of shape (768,) and bias, float64."""
    weights.verify(path, fingerprint)
    arrays = weights.read_arrays(path)
    weights.check_arrays(arrays, _SHAPES, repr(path), _MODEL)
    weight, bias = np.eye(DIMENSION), np.zeros(DIMENSION)
    for place in _LAYERS:
        layer = arrays[f"layers.{place}.weight"]
        weight, bias = layer @ weight, layer @ bias + arrays[f"layers.{place}.bias"]
    return weight[0], float(bias[0])


def _predict(block: Any, parameters: tuple[np.ndarray, float]) -> Any:
    weight, bias = parameters
    xp = vectors.namespace(block)
    return xp.clip((block @ xp.asarray(weight) + bias) / 10, 0, 1)


HEAD = Head("aesthetic_score", "aesthetic head", _load, _predict)


def _score_part(part: Any, path: str, fingerprint: str) -> Any:
    return score_part(part, HEAD, path, fingerprint)
