"""How a picture becomes what a network takes: a checkpoint's own image processor, as data where it is a usual one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from imgcurate import pixels
from imgcurate.encoders.limits import check_sides

if TYPE_CHECKING:
    import torch

_BILINEAR, _BICUBIC = int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC)

#: What OpenAI published with CLIP.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# How many times as large as what it is resized to a JPEG must be decoded at least. Of EfficientNet-Lite0's vectors, the most sensitive
# at hand, the lowest cosine to those of full decoding was .9994 at 4 and .9983 at 2, of 100 photos of 1 to 12 megapixels; a picture of
# 5 megapixels takes half the time.
_ENOUGH = 4

_STRIP = 64
_MOST_PATCHES = 1 << 14


class Prepare(Protocol):
    """What is done with a picture before the network."""

    def __call__(self, image: Image.Image | pixels.Picture) -> np.ndarray:
        """Return an RGB image as the array that `inputs` takes."""

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """Return how wide and high an image of this size must be decoded at least."""

    def inputs(self, arrays: Sequence[np.ndarray], device: torch.device) -> dict[str, Any]:
        """Return what the network takes, float32 on `device`, for a batch of arrays."""


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, and the numbers that scale a channel's bytes: ``(byte * factor - mean) / std``."""

    size: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int = _BICUBIC
    factor: float = 1 / 255
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __call__(self, image: Image.Image | pixels.Picture) -> np.ndarray:
        """Return an RGB image as (height, width, 3) bytes."""
        return pixels.resize_and_crop(image, self.size, self.crop, self.resample)

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """Return how wide and high an image of this size must be decoded at least."""
        wide, high = pixels.resized(width, height, self.size)
        return _ENOUGH * wide, _ENOUGH * high

    def inputs(self, arrays: Sequence[np.ndarray], device: torch.device) -> dict[str, Any]:
        """Return the pixels of a batch; bytes are a quarter of what floats would be on the way to the device."""
        import torch

        from imgcurate.encoders.base import to_device

        batch = to_device(np.stack(arrays), device).permute(0, 3, 1, 2).to(torch.float32)
        return {"pixel_values": _scale(batch, self, (1, 3, 1, 1))}

    def scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the same as ``byte * scale + shift``: two float32 arrays of shape (3,)."""
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        return (self.factor / std).astype(np.float32), (-mean / std).astype(np.float32)


@dataclass(frozen=True)
class Patches:
    """SigLIP 2's NaFlex: resize to as many whole patches as are allowed, the shape kept, and cut into these."""

    patch: int
    most: int
    scaling: Preprocess

    def __call__(self, image: Image.Image | pixels.Picture) -> np.ndarray:
        """Return an RGB image as (height, width, 3) bytes, both sides multiples of the patch."""
        return pixels.resize_and_crop(image, self._size(image.width, image.height), None, self.scaling.resample)

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """Return how wide and high an image of this size must be decoded at least."""
        high, wide = self._size(width, height)
        return _ENOUGH * wide, _ENOUGH * high

    def inputs(self, arrays: Sequence[np.ndarray], device: torch.device) -> dict[str, Any]:
        """Return the patches of a batch, filled up to `most`, and which of them are there."""
        import torch

        from imgcurate.encoders.base import to_device

        side = self.patch
        shapes = np.array([(array.shape[0] // side, array.shape[1] // side) for array in arrays])
        patches = np.zeros((len(arrays), self.most, side * side * 3), dtype=np.uint8)
        for filled, array, (rows, columns) in zip(patches, arrays, shapes, strict=True):
            grid = array.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
            filled[: rows * columns] = grid.reshape(rows * columns, -1)
        there = np.arange(self.most) < shapes.prod(axis=1)[:, None]
        batch = to_device(patches, device).to(torch.float32).view(len(arrays), self.most, side * side, 3)
        return {
            "pixel_values": _scale(batch, self.scaling, (1, 1, 1, 3)).view(len(arrays), self.most, -1),
            "pixel_attention_mask": to_device(there.astype(np.int64), device),
            "spatial_shapes": to_device(shapes, device),
        }

    def _size(self, width: int, height: int) -> tuple[int, int]:
        return _most_patches(height, width, self.patch, self.most)


@dataclass(frozen=True)
class OfTransformers:
    """An image processor of transformers that does more than the usual, run as it is."""

    processor: Any

    def __call__(self, image: Image.Image | pixels.Picture) -> np.ndarray:
        """Return an RGB image as (3, height, width) floats."""
        picture = _centre_of_strip(image if isinstance(image, Image.Image) else image.image)
        made = self.processor(picture, return_tensors="np")["pixel_values"][0]
        return np.asarray(made, dtype=np.float32)

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """Return the size itself: what the processor does with it is its own affair."""
        return width, height

    def inputs(self, arrays: Sequence[np.ndarray], device: torch.device) -> dict[str, Any]:
        """Return the pixels of a batch."""
        from imgcurate.encoders.base import to_device

        return {"pixel_values": to_device(np.stack(arrays), device)}


def _centre_of_strip(image: Image.Image) -> Image.Image:
    """Return the middle of a picture that is more than `_STRIP` times as long as it is wide: resized whole, 1 x 20,000 pixels fill the memory."""
    width, height = image.size
    longest = _STRIP * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(width - longest, 0) // 2, max(height - longest, 0) // 2
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


class _Usual(NamedTuple):
    """What an image processor of transformers does where its settings do not say."""

    square: bool
    crop: bool
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_USUAL = {
    "CLIP": _Usual(False, True, _BICUBIC, CLIP_MEAN, CLIP_STD),
    "ChineseCLIP": _Usual(False, True, _BICUBIC, CLIP_MEAN, CLIP_STD),
    "Bit": _Usual(False, True, _BICUBIC, CLIP_MEAN, CLIP_STD),
    "Blip": _Usual(True, False, _BICUBIC, CLIP_MEAN, CLIP_STD),
    "Siglip": _Usual(True, False, _BICUBIC, _HALF, _HALF),
    "ViT": _Usual(True, False, _BILINEAR, _HALF, _HALF),
    "DeiT": _Usual(True, True, _BICUBIC, _HALF, _HALF),
    "DINOv3ViT": _Usual(True, False, _BILINEAR, _IMAGENET_MEAN, _IMAGENET_STD),
}
_OF_KIND = {
    "clip": "CLIP",
    "clip_vision_model": "CLIP",
    "siglip": "Siglip",
    "siglip_vision_model": "Siglip",
    "vit": "ViT",
    "dinov2": "Bit",
}
# These refuse pictures of another size than the one in their configuration; others adapt.
_ONE_SIZE = ("clip", "clip_vision_model", "siglip", "siglip_vision_model", "vit")


def from_config(
    config: Mapping[str, Any] | None, image_size: Any, source: str, kind: str = "clip"
) -> Preprocess | None:
    """Read a checkpoint's preprocessing.

    Parameters
    ----------
    config : mapping or None
        The content of preprocessor_config.json, of today's transformers or of earlier ones. What is not there, or null,
        is as in transformers: of CLIP shorter side to the model's size, bicubic, centre crop, OpenAI's mean and deviation.
    image_size : int or None
        The side of the picture that the model takes, where its configuration says.
    source : str
        The checkpoint, for messages.
    kind : str
        The model's type.

    Returns
    -------
    Preprocess or None
        None where the processor does something that is not usual.

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
    named = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        named = named.removesuffix(ending)
    if not named and not config and kind not in _OF_KIND:
        raise ValueError(
            f"{source} has no preprocessor_config.json, so it is not known what pictures it takes; put it beside config.json"
        )
    usual = _USUAL.get(named or _OF_KIND.get(kind, ""))
    if usual is None:
        return None
    side = image_size if isinstance(image_size, int) else 224
    size = _size(config.get("size", side), usual.square, source) if config.get("do_resize", True) else None
    crop = _sides(config.get("crop_size", side)) if config.get("do_center_crop", usual.crop) else None
    try:
        for sides in (size, crop):
            check_sides(*(sides if isinstance(sides, tuple) else [sides] if sides is not None else []))
    except ValueError as problem:
        raise ValueError(f"{source}: preprocessor_config.json cannot be used: {problem}; download it again") from None
    made = crop or size
    if not isinstance(made, tuple) or (kind in _ONE_SIZE and made != (side, side)):
        shape = " x ".join(map(str, made)) if isinstance(made, tuple) else "any shape"
        takes = f"{side} x {side}" if kind in _ONE_SIZE else "pictures of one size"
        raise ValueError(
            f"{source}: preprocessor_config.json makes pictures of {shape}, but the model takes {takes}; "
            "correct size and crop_size there"
        )
    return Preprocess(size, crop, **_scaling(config, usual.resample, usual.mean, usual.std))


def patches_from_config(config: Mapping[str, Any], vision: Mapping[str, Any], source: str) -> Patches:
    """Read the preprocessing of a SigLIP 2 checkpoint with pictures of any shape; `vision` is the tower's configuration.

    Raises
    ------
    ValueError
        Where the patches are not those of the model.
    """
    config = {key: value for key, value in config.items() if value is not None}
    side, of_model = config.get("patch_size", 16), vision.get("patch_size", 16)
    if side != of_model:
        raise ValueError(
            f"{source}: preprocessor_config.json cuts patches of {side} pixels, but the model takes {of_model}; correct patch_size"
        )
    scaling = Preprocess(None, None, **_scaling(config, _BILINEAR, _HALF, _HALF))
    most = config.get("max_num_patches", 256)
    if not 1 <= most <= _MOST_PATCHES:
        raise ValueError(
            f"{source}: preprocessor_config.json makes {most} patches, and imgcurate makes up to {_MOST_PATCHES:,}; download it again"
        )
    return Patches(side, most, scaling)


def of_transformers(directory: Path, source: str) -> OfTransformers:
    """Return the image processor that transformers makes of a checkpoint's settings.

    Raises
    ------
    ValueError
        Where it makes none.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except (ImportError, KeyError, OSError, TypeError, ValueError) as problem:
        text = " ".join(str(problem).split())
        raise ValueError(f"{source}: its image processor cannot be made ({text})") from problem
    return OfTransformers(processor)


def _scaling(
    config: Mapping[str, Any], resample: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    normalise = config.get("do_normalize", True)
    return {
        "resample": int(config.get("resample", resample)),
        "factor": config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
        "mean": tuple(map(float, config.get("image_mean", mean))) if normalise else (0.0, 0.0, 0.0),
        "std": tuple(map(float, config.get("image_std", std))) if normalise else (1.0, 1.0, 1.0),
    }


def _scale(batch: torch.Tensor, by: Preprocess, shape: tuple[int, ...]) -> torch.Tensor:
    from imgcurate.encoders.base import to_device

    scale, shift = (to_device(values, batch.device).view(shape) for values in by.scale_and_shift())
    return batch.mul_(scale).add_(shift)


@lru_cache(maxsize=4096)
def _most_patches(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    return get_image_size_for_max_num_patches(height, width, patch, most)


def _size(value: Any, square: bool, source: str) -> int | tuple[int, int]:
    if isinstance(value, int):
        return (value, value) if square else value
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
    if "shortest_edge" in value:
        return int(value["shortest_edge"]), int(value["shortest_edge"])
    return int(value["height"]), int(value["width"])
