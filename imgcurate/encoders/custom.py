"""A user's own function from pictures to vectors, as an `Encoder`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from imgcurate import pixels
from imgcurate.encoders.base import Encoder
from imgcurate.encoders.function import Function
from imgcurate.encoders.preprocess import Preprocess


@dataclass(frozen=True)
class _Bytes:
    """Resize and centre crop, and nothing else."""

    cut: Preprocess

    def __call__(self, image: Image.Image | pixels.Picture) -> np.ndarray:
        return self.cut(image)

    def enough(self, width: int, height: int) -> tuple[int, int]:
        return self.cut.enough(width, height)

    def inputs(self, arrays: Sequence[np.ndarray], device: torch.device) -> dict[str, Any]:
        return {"batch": np.stack(arrays)}


def load(function: Function, side: int, device: torch.device) -> Encoder:
    """Return an encoder that calls `function` with batches of shape (b, side, side, 3), uint8, RGB.

    Raises
    ------
    TypeError, ValueError
        Where a batch of two pictures does not give two vectors of numbers.
    """
    name = function.name

    def network(batch: np.ndarray) -> torch.Tensor:
        made = function(batch)
        try:
            vectors = made if isinstance(made, torch.Tensor) else torch.as_tensor(made)
            vectors = vectors.to(device=device, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as problem:
            raise TypeError(f"the encoder {name} returned {type(made).__name__}, not an array of vectors") from problem
        if vectors.ndim != 2 or len(vectors) != len(batch):
            raise ValueError(
                f"the encoder {name} returned an array of shape {tuple(vectors.shape)} for {len(batch)} pictures; "
                f"it must be ({len(batch)}, dimension)"
            )
        return vectors

    with torch.no_grad():
        dimension = network(np.zeros((2, side, side, 3), dtype=np.uint8)).shape[1]
    cut = _Bytes(Preprocess(side, (side, side)))
    return Encoder(
        name, "callable", dimension, device, torch.float32, cut, network, lambda: f"{function.fingerprint}-{side}"
    )
