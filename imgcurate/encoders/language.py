"""A checkpoint's text tower: text -> vectors in the space of the images' embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from imgcurate import weights
from imgcurate.encoders.base import unit
from imgcurate.encoders.checkpoint import Checkpoint
from imgcurate.encoders.vision import load_weights, quiet, read_config, refuse_absent
from imgcurate.identity import Identity

_BATCH = 64


class Encoded(NamedTuple):
    """Vectors of texts, of shape (n, d), float32, of unit length; and which texts were longer than the model reads."""

    vectors: torch.Tensor
    cut: np.ndarray


# Compared as an object, so that what is made with it can be kept for it.
@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A loaded text tower.

    Attributes
    ----------
    name, kind : str
        As of `Encoder`.
    dimension : int
    context : int
        The most tokens it reads, those at the start and the end of a text included.
    scale, bias : float
        What cosines are multiplied by, and what is added, before they are made probabilities.
    """

    name: str
    kind: str
    dimension: int
    context: int
    scale: float
    bias: float | None
    device: torch.device
    tokenizer: Any = field(repr=False)
    network: Callable[..., torch.Tensor] = field(repr=False)
    hash: Callable[[], str] = field(repr=False)

    @cached_property
    def identity(self) -> Identity:
        """The encoder of the images that its vectors may be compared with."""
        return Identity(self.name, self.kind, self.dimension, self.hash())

    def encode(self, texts: Sequence[str], batch_size: int = _BATCH) -> Encoded:
        """Return the vectors of texts, in order."""
        parts, cut = [torch.zeros((0, self.dimension), device=self.device)], []
        for start in range(0, len(texts), batch_size):
            some = list(texts[start : start + batch_size])
            lengths = [len(tokens) for tokens in self.tokenizer(some, verbose=False)["input_ids"]]
            cut += [length > self.context for length in lengths]
            tokens = self.tokenizer(
                some,
                # SigLIP was trained on texts that were filled up to the whole context.
                padding=True if self.bias is None else "max_length",
                truncation=True,
                max_length=self.context,
                return_tensors="pt",
            )
            inputs = {key: tokens[key].to(self.device) for key in ("input_ids", "attention_mask") if key in tokens}
            with torch.no_grad():
                parts.append(unit(self.network(**inputs)))
        return Encoded(torch.cat(parts), np.array(cut, dtype=bool))


def load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> TextEncoder:
    """Load the text tower and tokenizer of a checkpoint.

    Raises
    ------
    ValueError
        Where they cannot be read, or the model gives no vectors of texts.
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer_files = checkpoint.tokenizer_files()
    name = f"the model {checkpoint.name!r}"
    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                tokenizer_files[0].parent, local_files_only=True, trust_remote_code=False
            )
    except (ImportError, KeyError, OSError, TypeError, ValueError) as problem:
        raise ValueError(f"the tokenizer of {name} cannot be read ({' '.join(str(problem).split())})") from problem
    files = checkpoint.files()
    model, absent = load_weights(checkpoint, AutoModel, read_config(checkpoint), dtype)
    if absent:
        refuse_absent(name, absent)
    if not hasattr(model, "get_text_features"):
        raise ValueError(f"{name} gives no vectors of texts; use a CLIP or SigLIP checkpoint")
    scale = float(model.logit_scale.detach().float().exp()) if hasattr(model, "logit_scale") else 100.0
    bias = float(model.logit_bias.detach().float()) if hasattr(model, "logit_bias") else None
    if hasattr(model, "vision_model"):
        del model.vision_model  # the images are embedded elsewhere
    model = model.eval().to(device)

    def network(**inputs: torch.Tensor) -> torch.Tensor:
        output = model.get_text_features(**inputs)
        return output if isinstance(output, torch.Tensor) else output.pooler_output

    context = int(model.config.text_config.max_position_embeddings)
    with torch.no_grad():
        dimension = network(input_ids=torch.zeros((1, min(2, context)), dtype=torch.long, device=device)).shape[1]
    return TextEncoder(
        checkpoint.name,
        checkpoint.kind,
        int(dimension),
        context,
        scale,
        bias,
        device,
        tokenizer,
        network,
        lambda: weights.fingerprint(files),
    )
