"""Pixels -> vectors: CLIP checkpoints and EfficientNet-Lite0, loaded once a process."""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcurate import weights
from imgcurate.encoders import clip, efficientnet

if TYPE_CHECKING:
    import torch

    from imgcurate.encoders.base import Encoder

#: What a model can compute in. "auto": bfloat16 or float16 where the hardware is made for it, else float32.
DTYPES = ("auto", "float32", "bfloat16", "float16")

# An lru_cache alone lets two threads that ask at once load twice.
_LOADING = threading.Lock()


def load_encoder(
    model: str,
    *,
    dtype: str = "auto",
    model_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
) -> Encoder:
    """Load an image encoder, or return the one that this process has already loaded.

    Parameters
    ----------
    model : str
        ``"efficientnet-lite0"``, or a CLIP checkpoint: a directory, or a hub id such as
        ``"openai/clip-vit-large-patch14"``.
    dtype : {"auto", "float32", "bfloat16", "float16"}
    model_dir : path, optional
        A directory in which ``model_dir/<model>`` is looked for before anything else.
    device : str or torch.device, optional
        Default: the GPU where torch sees one, else the CPU.

    Returns
    -------
    Encoder
        With ``name``, ``dimension``, ``fingerprint``, ``preprocess(image)`` and ``encode(batch)``.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        Where there is no such model, or it is not one that can be used.
    """
    import torch

    from imgcurate.encoders.base import choose_dtype

    check_dtype(dtype)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = choose_dtype(dtype, place)
    with _LOADING:
        if model == efficientnet.NAME:
            return _load_efficientnet(efficientnet.weight_file(), kind, place)
        checkpoint = clip.find(model, model_dir)
        files = tuple((file, file.stat().st_mtime_ns) for file in checkpoint.weight_files())
        return _load_clip(checkpoint, files, kind, place)


def resolve(model: str, model_dir: str | os.PathLike[str] | None = None) -> str:
    """Check that a model can be had and is of a kind that can be used, without loading its weights.

    Parameters
    ----------
    model, model_dir
        As for `load_encoder`.

    Returns
    -------
    str
        What to load on a worker, without `model_dir`: an absolute directory, or the name.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        As `load_encoder`.
    """
    if model == efficientnet.NAME:
        efficientnet.weight_file()
        return model
    return clip.find(model, model_dir).source


def describe(model: str, model_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return what tells a model from others: its ``name``, ``dimension``, ``fingerprint`` (hex sha256) and ``path``.

    Reads the whole of the weights, and downloads them where they are not here.
    """
    if model == efficientnet.NAME:
        path = efficientnet.weight_file()
        dimension, files = efficientnet.DIMENSION, [path]
    else:
        checkpoint = clip.find(model, model_dir)
        dimension, files, path = checkpoint.dimension, checkpoint.files(), checkpoint.directory
    return {"name": model, "dimension": dimension, "fingerprint": weights.fingerprint(files), "path": str(path)}


def check_dtype(dtype: str) -> None:
    """Raise a ValueError where `dtype` is not one of `DTYPES`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not known; use one of {', '.join(map(repr, DTYPES))}")


@lru_cache(maxsize=2)
def _load_efficientnet(file: Path, dtype: torch.dtype, device: torch.device) -> Encoder:
    return efficientnet.load(file, dtype, device)


# The modification times are part of the key, so that a checkpoint saved again is loaded again.
@lru_cache(maxsize=2)
def _load_clip(
    checkpoint: clip.Checkpoint, stamps: tuple[tuple[Path, int], ...], dtype: torch.dtype, device: torch.device
) -> Encoder:
    return clip.load(checkpoint, dtype, device)
