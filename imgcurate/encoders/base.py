"""What every encoder is: a preparation of one picture, a network, and unit vectors.

This module imports torch; `imgcurate.encoders` imports it only where a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from imgcurate import pixels
from imgcurate.encoders.preprocess import Prepare
from imgcurate.identity import Identity


@dataclass(frozen=True)
class Encoder:
    """A loaded image encoder.

    Attributes
    ----------
    name : str
        As the user wrote it.
    kind : str
        transformers' ``model_type``, such as ``"clip"``; ``"efficientnet-lite0"``; or ``"callable"``.
    dimension : int
        Length of its vectors.
    device : torch.device
        Where it computes, and where its vectors are.
    """

    name: str
    kind: str
    dimension: int
    device: torch.device
    dtype: torch.dtype
    preparation: Prepare
    network: Callable[..., torch.Tensor] = field(repr=False)
    hash: Callable[[], str] = field(repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the files it was loaded from; they are read when it is first asked for."""
        return self.hash()

    @property
    def identity(self) -> Identity:
        """What its vectors are marked with."""
        return Identity(self.name, self.kind, self.dimension, self.fingerprint)

    def preprocess(self, image: Image.Image | pixels.Picture) -> np.ndarray:
        """Make an RGB image what `encode` takes: most often (height, width, 3) bytes."""
        return self.preparation(image)

    def encode(self, batch: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the vectors of prepared images.

        Parameters
        ----------
        batch : b arrays that `preprocess` returned

        Returns
        -------
        torch.Tensor of shape (b, dimension), float32
            Of unit length, on `device`.
        """
        with torch.no_grad():
            return unit(self.network(**self.preparation.inputs(batch, self.device)))


def unit(features: torch.Tensor) -> torch.Tensor:
    """Return rows scaled to unit length, float32; zeros stay zeros."""
    features = features.to(torch.float32)
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=torch.float64)
    return (features / length.clamp_min(1e-30)).to(torch.float32)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch type for one of ``encoders.DTYPES``; "auto" is the narrowest that `device` is made for."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16 if major >= 7 else torch.float32
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return torch.bfloat16 if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else torch.float32


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array on `device`; nobody waits here for the copy to a GPU.

    The copy is made on the stream that computes. On one of its own its memory could be given to the next copy before it is read, because
    RMM as torch's allocator does not know `record_stream`; and a batch is copied in about a hundredth of the time of its forward pass.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
