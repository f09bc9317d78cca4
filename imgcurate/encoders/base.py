"""What every encoder is: a preparation of one picture, a network, and unit vectors.

This module imports torch; `imgcurate.encoders` imports it only where a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imgcurate import pixels
from imgcurate.encoders.preprocess import Prepare
from imgcurate.identity import Identity

_GPU_BATCH = 256
# On a CPU a larger batch spreads the cost of reading the weights: a ViT-B/32's image takes 16.1 ms at 8, 14.3 at 16, 14.5 at 32. But a
# tensor above 32 MiB is mapped and zeroed anew each time (`freed.keep_freed_memory`): a ViT-L/14's takes 238 ms at 8 and 292 at 16.
_CPU_BATCH, _CPU_TENSOR_BYTES = 32, 32 << 20
# Of a user's function it is not known what it does.
_FUNCTION_BATCH = 8


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

    @cached_property
    def batch_size(self) -> int:
        """How many images it is given at once where nobody says; found out on a CPU by one forward pass when it is first asked for."""
        if self.device.type != "cpu":
            return _GPU_BATCH
        if self.kind == "callable":
            return _FUNCTION_BATCH
        array = self.preprocess(Image.new("RGB", (64, 48)))
        with torch.no_grad(), _LargestTensor() as largest:
            self.network(**self.preparation.inputs([array], self.device))
        most = min(_CPU_BATCH, max(1, _CPU_TENSOR_BYTES // largest.bytes))
        return 1 << (most.bit_length() - 1)

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


class _LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that this thread makes; views of others, as a weight's transpose is, do not count."""

    bytes = 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            sizes = [leaf.nbytes for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
            self.bytes = max(self.bytes, *sizes, 0)
        return made


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
