"""What every encoder is: a preparation of one picture, a network, and unit vectors.

This module imports torch; `imgcurate.encoders` imports it only where a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imgcurate import weights
from imgcurate.encoders.preprocess import Preprocess


@dataclass(frozen=True)
class Encoder:
    """A loaded image encoder.

    Attributes
    ----------
    name : str
        As the user wrote it.
    dimension : int
        Length of its vectors.
    device : torch.device
        Where it computes, and where its vectors are.
    """

    name: str
    dimension: int
    device: torch.device
    dtype: torch.dtype
    preparation: Preprocess
    network: Callable[[torch.Tensor], torch.Tensor] = field(repr=False)
    files: Sequence[Path] = field(repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the files it was loaded from; read when first asked for."""
        return weights.fingerprint(self.files)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an RGB image to what the network takes: (height, width, 3), uint8."""
        return self.preparation(image)

    def encode(self, batch: np.ndarray) -> torch.Tensor:
        """Return the vectors of prepared images.

        Parameters
        ----------
        batch : numpy.ndarray of shape (b, height, width, 3), uint8

        Returns
        -------
        torch.Tensor of shape (b, dimension), float32
            Of unit length, on `device`.
        """
        with torch.no_grad():
            # Bytes are a quarter of what floats would be on the way to the device.
            pixels = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).to(torch.float32)
            scale, shift = (self._channels(values) for values in self.preparation.scale_and_shift())
            features = self.network(pixels.mul_(scale).add_(shift).to(self.dtype)).to(torch.float32)
            length = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=torch.float64)
            return (features / length.clamp_min(1e-30)).to(torch.float32)

    def _channels(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device).view(1, 3, 1, 1)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch type for one of ``encoders.DTYPES``; "auto" is the narrowest that `device` is made for."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16 if major >= 7 else torch.float32
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return torch.bfloat16 if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else torch.float32
