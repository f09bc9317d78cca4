"""LAION's NSFW detector: the probability that an image is not safe for work, from its CLIP ViT-L/14 embedding."""

from __future__ import annotations

import functools
import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imgcurate import schema, vectors, weights
from imgcurate.scores.head import DIMENSION, Head, add_score, score_part

if TYPE_CHECKING:
    import dask.dataframe as dd

URL = "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/raw/main/clip_autokeras_binary_nsfw.zip"
SHA256 = "905520bb0336accc73ee282c605d926aef90cf14248889d44b9cee50eef71f8a"

_STATE_DICT = "clip_autokeras_binary_nsfw.pth"
_VARIABLES = "variables/variables.data-00000-of-00001"
_NAMES = (
    "clip_autokeras_binary_nsfw.zip",
    _STATE_DICT,
    f"clip_autokeras_binary_nsfw/{_VARIABLES}",
    f"laion/clip-autokeras-binary-nsfw/{_STATE_DICT}",
    _VARIABLES,
)
_MODEL = "LAION's NSFW head for CLIP ViT-L/14"
_SHAPES = {
    "norm.mean": (DIMENSION,),
    "norm.variance": (DIMENSION,),
    "linear_1.weight": (64, DIMENSION),
    "linear_1.bias": (64,),
    "linear_2.weight": (512, 64),
    "linear_2.bias": (512,),
    "linear_3.weight": (256, 512),
    "linear_3.bias": (256,),
    "linear_4.weight": (1, 256),
    "linear_4.bias": (1,),
}
# Where the one published SavedModel keeps them: little-endian float32, kernels stored as (in, out).
_OFFSETS = {
    "norm.mean": 0,
    "norm.variance": 3072,
    "linear_1.weight": 6152,
    "linear_1.bias": 202760,
    "linear_2.weight": 203016,
    "linear_2.bias": 334088,
    "linear_3.weight": 336136,
    "linear_3.bias": 860424,
    "linear_4.weight": 861448,
    "linear_4.bias": 862472,
}
_VARIABLES_BYTES = 872095
# Of either form: a zip file may say that a member is a thousand times as large as the file.
_MOST_BYTES = 64 << 20

Layers = list[tuple[np.ndarray, np.ndarray]]


def score_nsfw(frame: Any, *, model_dir: str | os.PathLike[str] | None = None) -> dd.DataFrame:
    """Add ``nsfw_score``: the probability that an image is not safe for work, by LAION's detector.

    Parameters
    ----------
    frame : Dask DataFrame
        With column ``embedding``: unit-length image features of ``openai/clip-vit-large-patch14``, 768-d.
    model_dir : path, optional
        Where the weights lie: the file, or a directory that holds ``clip_autokeras_binary_nsfw.zip`` in either
        published form (a PyTorch state dict or a TensorFlow SavedModel), unpacked or not. Where it does not, they come
        from imgcurate's cache directory, else from LAION's repository.

    Returns
    -------
    Dask DataFrame
        `frame` with ``nsfw_score``, float32, 0 to 1; null where the embedding is null or not finite. Lazy.

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
    >>> frame = score_nsfw(embed(frame))  # doctest: +SKIP
    >>> frame = frame[frame.nsfw_score < 0.5]  # doctest: +SKIP
    """
    schema.require(frame, ["embedding"], "score_nsfw")
    return add_score(frame, HEAD, _score_part, weights_path(model_dir))


def weights_path(model_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the file that `score_nsfw` reads with this `model_dir`, downloading it where it must.

    Raises
    ------
    FileNotFoundError
        Where `model_dir` does not exist, or the weights are nowhere to be had.
    ValueError
        Where what is downloaded is not the published file.
    """
    model_dir = weights.chosen_dir(model_dir)
    found = None if model_dir is None else weights.find(model_dir, _NAMES)
    cache = weights.cache_dir()
    if found is None and cache.is_dir():
        found = weights.find(cache, _NAMES)
    return found or weights.download(
        URL,
        SHA256,
        cache / _NAMES[0],
        advice=f"download it where there is a network and put it into DIR/{_NAMES[0]} with model_dir=DIR, or into {cache / _NAMES[0]}",
    )


@functools.lru_cache(maxsize=2)
def _load(path: str, fingerprint: str) -> Layers:
    """Return (weight of shape (out, in), bias) of each layer, float64, the normalisation folded into the first."""
    weights.verify(path, fingerprint)
    arrays = _read(Path(path))
    weights.check_arrays(arrays, _SHAPES, repr(path), _MODEL)
    if not (arrays["norm.variance"] > 0).all():
        raise ValueError(f"{path!r} does not hold {_MODEL}: 'norm.variance' has values that are not positive")
    layers = [(arrays[f"linear_{i}.weight"], arrays[f"linear_{i}.bias"]) for i in (1, 2, 3, 4)]
    weight, bias = layers[0]
    weight = weight / np.sqrt(arrays["norm.variance"])
    layers[0] = (weight, bias - weight @ arrays["norm.mean"])
    return layers


def _predict(block: Any, layers: Layers) -> Any:
    xp = vectors.namespace(block)
    for number, (weight, bias) in enumerate(layers):
        if number:
            xp.maximum(block, 0, out=block)
        block = block @ xp.asarray(weight).T
        block += xp.asarray(bias)
    # The sigmoid, in a form that cannot overflow.
    return (1 + xp.tanh(block[:, 0] / 2)) / 2


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.name == Path(_VARIABLES).name:
        return _from_variables(path.read_bytes(), repr(str(path)))
    if not zipfile.is_zipfile(path):
        return weights.read_arrays(path)
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((name for name in archive.namelist() if name.endswith((_STATE_DICT, _VARIABLES))), None)
            if member and archive.getinfo(member).file_size > _MOST_BYTES:
                raise ValueError(f"{str(path)!r} does not hold {_MODEL}: {member} has more than {_MOST_BYTES:,} bytes")
            content = archive.read(member) if member else b""
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as problem:
        raise ValueError(f"{str(path)!r} is a damaged zip file ({problem})") from problem
    if member is None:  # PyTorch's own files are zips too.
        return weights.read_arrays(path)
    source = f"{str(path)!r} ({member})"
    if member.endswith(_VARIABLES):
        return _from_variables(content, source)
    return weights.read_arrays(io.BytesIO(content), source)


def _from_variables(content: bytes, source: str) -> dict[str, np.ndarray]:
    if len(content) != _VARIABLES_BYTES:
        raise ValueError(
            f"{source} does not hold {_MODEL}: it has {len(content):,} bytes and the published one {_VARIABLES_BYTES:,}"
        )
    arrays = {}
    for name, offset in _OFFSETS.items():
        shape = _SHAPES[name]
        stored = np.frombuffer(content, "<f4", count=int(np.prod(shape)), offset=offset).astype(np.float64)
        arrays[name] = stored.reshape(shape[::-1]).T
    return arrays


HEAD = Head("nsfw_score", "NSFW head", _load, _predict)


def _score_part(part: Any, path: str, fingerprint: str) -> Any:
    return score_part(part, HEAD, path, fingerprint)
