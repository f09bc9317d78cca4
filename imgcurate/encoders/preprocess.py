"""How a picture becomes what a network takes, as data: CLIP's preprocessor_config.json without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from imgcurate import pixels

_BICUBIC = int(Image.Resampling.BICUBIC)

#: What OpenAI published with CLIP.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, and the numbers that scale a channel's bytes: ``(byte * factor - mean) / std``."""

    size: int | tuple[int, int] | None
    crop: tuple[int, int]
    resample: int = _BICUBIC
    factor: float = 1 / 255
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return an RGB image as (height, width, 3) bytes."""
        return pixels.resize_and_crop(image, self.size, self.crop, self.resample)

    def scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the same as ``byte * scale + shift``: two float32 arrays of shape (3,)."""
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        return (self.factor / std).astype(np.float32), (-mean / std).astype(np.float32)


def from_config(config: Mapping[str, Any] | None, image_size: int, source: str) -> Preprocess:
    """Read a checkpoint's preprocessing.

    Parameters
    ----------
    config : mapping or None
        The content of preprocessor_config.json, of today's transformers or of earlier ones. What is not there, or null,
        is as OpenAI published CLIP: shorter side to the model's size, bicubic, centre crop, its mean and deviation.
    image_size : int
        The side of the picture that the model takes.
    source : str
        The checkpoint, for messages.

    Returns
    -------
    Preprocess

    Raises
    ------
    ValueError
        Where the result would not be a picture of the model's size.

    Examples
    --------
    >>> from_config({"size": 336, "crop_size": 336}, 336, "my-clip").crop
    (336, 336)
    """
    config = {key: value for key, value in (config or {}).items() if value is not None}
    size = _size(config.get("size", image_size), source) if config.get("do_resize", True) else None
    crop = _sides(config.get("crop_size", image_size)) if config.get("do_center_crop", True) else None
    made = crop or size
    if made != (image_size, image_size):
        shape = " x ".join(map(str, made)) if isinstance(made, tuple) else "any shape"
        raise ValueError(
            f"{source}: preprocessor_config.json makes pictures of {shape}, but the model takes "
            f"{image_size} x {image_size}; correct size and crop_size there"
        )
    normalise = config.get("do_normalize", True)
    return Preprocess(
        size=size,
        crop=(image_size, image_size),
        resample=int(config.get("resample", _BICUBIC)),
        factor=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
        mean=tuple(config.get("image_mean", CLIP_MEAN)) if normalise else (0.0, 0.0, 0.0),
        std=tuple(config.get("image_std", CLIP_STD)) if normalise else (1.0, 1.0, 1.0),
    )


def _size(value: Any, source: str) -> int | tuple[int, int]:
    if isinstance(value, int):
        return value
    if set(value) == {"shortest_edge"}:
        return int(value["shortest_edge"])
    if set(value) == {"height", "width"}:
        return _sides(value)
    raise ValueError(
        f"{source}: preprocessor_config.json has size {value!r}; imgcurate knows a number, "
        '{"shortest_edge": n} and {"height": h, "width": w}'
    )


def _sides(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value["height"]), int(value["width"])
