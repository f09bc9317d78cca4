"""Pixels -> vectors, and text -> vectors: checkpoints of transformers, EfficientNet-Lite0 and users' callables, loaded once a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcurate import weights
from imgcurate.encoders import checkpoint, efficientnet, function
from imgcurate.identity import Identity

if TYPE_CHECKING:
    import torch

    from imgcurate.encoders.base import Encoder
    from imgcurate.encoders.language import TextEncoder

#: A hub id, a directory, "efficientnet-lite0", or a function from RGB bytes of shape (b, height, width, 3) to b vectors.
Model = str | os.PathLike[str] | Callable[..., Any]

#: What a model can compute in. "auto": bfloat16 or float16 where the hardware is made for it, else float32.
DTYPES = ("auto", "float32", "bfloat16", "float16")

# An lru_cache alone lets two threads that ask at once load twice.
_LOADING = threading.Lock()


def load_encoder(
    model: Model,
    *,
    dtype: str = "auto",
    model_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    image_size: int = 224,
) -> Encoder:
    """Load an image encoder, or return the one that this process has already loaded.

    Parameters
    ----------
    model : str, path or callable
        ``"efficientnet-lite0"``; a checkpoint (a directory, or a hub id such as ``"openai/clip-vit-large-patch14"``) of CLIP,
        SigLIP, SigLIP 2, DINOv2 or another model that transformers' ``AutoModel`` loads and that sees images; or a function
        that takes RGB bytes of shape (b, image_size, image_size, 3) and returns b vectors.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        Of checkpoints and ``"efficientnet-lite0"``.
    model_dir : path, optional
        A directory in which ``model_dir/<model>`` is looked for before anything else.
    device : str or torch.device, optional
        Default: the GPU where torch sees one, else the CPU.
    image_size : int, default 224
        The side of the pictures that a function is given; a checkpoint brings its own.

    Returns
    -------
    Encoder
        With ``name``, ``kind``, ``dimension``, ``fingerprint``, ``preprocess(image)`` and ``encode(batch)``.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError, ImportError
        Where there is no such model, or it is not one that can be used.
    """
    kind, place = _where(dtype, device)
    with _LOADING:
        if callable(model):
            from imgcurate.encoders import custom

            return custom.load(function.wrap(model), image_size, place)
        if model == efficientnet.NAME:
            return _load_efficientnet(efficientnet.weight_file(), kind, place)
        found = checkpoint.find(model, model_dir)
        return _load_vision(found, _stamps(found.weight_files()), kind, place)


def load_text_encoder(
    model: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    model_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
) -> TextEncoder:
    """Load the text tower of a checkpoint, or return the one that this process has already loaded.

    Parameters
    ----------
    model, dtype, model_dir, device
        As for `load_encoder`; the checkpoint must have a text tower and a tokenizer.

    Returns
    -------
    TextEncoder

    Raises
    ------
    FileNotFoundError, ValueError
        Where there is no such model, or it reads no text.
    """
    kind, place = _where(dtype, device)
    found = find_text(model, model_dir)
    with _LOADING:
        return _load_text(found, _stamps(found.weight_files()), kind, place)


def find_text(model: Any, model_dir: str | os.PathLike[str] | None = None) -> checkpoint.Checkpoint:
    """Find a checkpoint that reads text too, and its tokenizer.

    Raises
    ------
    FileNotFoundError, ValueError
        Where there is no such model, or it reads no text.
    """
    if callable(model) or model == efficientnet.NAME:
        name = function.name_of(model) if callable(model) else model
        raise ValueError(f"the model {name!r} reads no text; use a CLIP or SigLIP checkpoint")
    found = checkpoint.find(model, model_dir)
    if "text_config" not in found.config():
        raise ValueError(
            f"the model {found.name!r} ({found.kind}) has no text tower; use a whole CLIP or SigLIP checkpoint"
        )
    found.tokenizer_files()
    return found


def resolve(model: Model, model_dir: str | os.PathLike[str] | None = None) -> Any:
    """Check that a model can be had and is of a kind that can be used, without loading its weights.

    Parameters
    ----------
    model, model_dir
        As for `load_encoder`.

    Returns
    -------
    str or Function
        What to load on a worker, without `model_dir`: an absolute directory, the name, or the callable with its fingerprint.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        As `load_encoder`.
    """
    if callable(model):
        return function.wrap(model)
    if model == efficientnet.NAME:
        efficientnet.weight_file()
        return model
    return checkpoint.find(model, model_dir).source


def describe(model: Model, model_dir: str | os.PathLike[str] | None = None, image_size: int = 224) -> dict[str, Any]:
    """Return what tells a model from others: its ``name``, ``kind``, ``dimension``, ``fingerprint`` (hex sha256) and ``path``.

    Reads the whole of the weights, and downloads them where they are not here.
    """
    path: str | None = None
    if model == efficientnet.NAME:
        path = str(efficientnet.weight_file())
    elif not callable(model):
        found = checkpoint.find(model, model_dir)
        dimension, path = found.dimension(), str(found.directory)
        if dimension is not None:
            known = Identity(found.name, found.kind, dimension, weights.fingerprint(found.files()))
            return {**asdict(known), "path": path}
    encoder = load_encoder(model, model_dir=model_dir, device="cpu", image_size=image_size)
    return {**asdict(encoder.identity), "path": path}


def fingerprint_of(model: Model, model_dir: str | os.PathLike[str] | None = None, image_size: int = 224) -> str | None:
    """Return a model's fingerprint where its files are on this machine, or it is a function; else None, and nothing is downloaded."""
    if callable(model):
        return f"{function.wrap(model).fingerprint}-{image_size}"
    if model == efficientnet.NAME:
        return weights.fingerprint((efficientnet.weight_file(),))
    found = checkpoint.find(model, model_dir)
    return weights.fingerprint(found.files()) if os.path.isdir(found.source) else None


def check_dtype(dtype: str) -> None:
    """Raise a ValueError where `dtype` is not one of `DTYPES`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not known; use one of {', '.join(map(repr, DTYPES))}")


@lru_cache(maxsize=2)
def _load_efficientnet(file: Path, dtype: torch.dtype, device: torch.device) -> Encoder:
    return efficientnet.load(file, dtype, device)


# The modification times are part of the key, so that a checkpoint saved again is loaded again.
Stamps = tuple[tuple[Path, int], ...]


@lru_cache(maxsize=2)
def _load_vision(found: checkpoint.Checkpoint, stamps: Stamps, dtype: torch.dtype, device: torch.device) -> Encoder:
    from imgcurate.encoders import vision

    return vision.load(found, dtype, device)


@lru_cache(maxsize=2)
def _load_text(found: checkpoint.Checkpoint, stamps: Stamps, dtype: torch.dtype, device: torch.device) -> TextEncoder:
    from imgcurate.encoders import language

    return language.load(found, dtype, device)


def _stamps(files: list[Path]) -> Stamps:
    return tuple((file, file.stat().st_mtime_ns) for file in files)


def _where(dtype: str, device: str | torch.device | None) -> tuple[torch.dtype, torch.device]:
    """Return what a model computes in, and where."""
    import torch

    from imgcurate.encoders.base import choose_dtype

    check_dtype(dtype)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return choose_dtype(dtype, place), place
