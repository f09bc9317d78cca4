"""A checkpoint's vision tower as an `Encoder`: no code and no pickle from it is run, and nothing in it is left to chance."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from imgcurate import weights
from imgcurate.encoders.base import Encoder
from imgcurate.encoders.checkpoint import Checkpoint
from imgcurate.encoders.preprocess import Prepare

# What of a two-tower checkpoint is loaded for images; of others all.
_TOWERS = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
}


def load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Encoder:
    """Load the vision tower of a checkpoint.

    Raises
    ------
    ValueError
        Where the weights are not those of the configuration (a part is missing, has another shape, or cannot be read), or the model gives
        no vector, or not always the same one, for a picture.
    """
    import transformers

    files = checkpoint.files()
    name = f"the model {checkpoint.name!r}"
    config = read_config(checkpoint)
    tower = _TOWERS.get(checkpoint.kind)
    if tower is not None:
        whole, config = config, getattr(config, "vision_config", config)
        if "WithProjection" in tower and whole is not config:
            # A full checkpoint states the projection's size beside the two towers; what stands in vision_config may be another.
            config.projection_dim = whole.projection_dim
        if getattr(config, "vision_use_head", True) is False:
            raise ValueError(f"{name} has no pooling head, so it gives no vector of an image; use a whole checkpoint")
    model, absent = load_weights(checkpoint, getattr(transformers, tower or "AutoModel"), config, dtype)
    if "visual_projection.weight" in absent:
        raise ValueError(
            f"{name} has no visual_projection.weight of {config.projection_dim} dimensions, so "
            "what it gives is not CLIP's image embedding; use a CLIPModel or CLIPVisionModelWithProjection checkpoint"
        )
    # A pooler that was not trained is left out, as by those who publish checkpoints without one.
    pooled = not absent or not all(key.startswith("pooler.") for key in absent)
    if absent and pooled:
        refuse_absent(name, absent)
    model = model.eval().to(device)
    if sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) > 8:
        model = model.to(memory_format=torch.channels_last)
    seen = getattr(model, "get_image_features", model)
    has_class_token = any("cls_token" in key for key, _ in model.named_parameters())

    def network(**inputs: Any) -> torch.Tensor:
        cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        return _vectors(seen(**cast), pooled, has_class_token)

    preparation = checkpoint.preparation()
    dimension = _try(network, preparation, device, name)
    return Encoder(
        checkpoint.name,
        checkpoint.kind,
        dimension,
        device,
        dtype,
        preparation,
        network,
        lambda: weights.fingerprint(files),
    )


def read_config(checkpoint: Checkpoint) -> Any:
    """Return a checkpoint's configuration as transformers has it."""
    from transformers import AutoConfig

    checkpoint.config()  # which is checked
    try:
        with quiet():
            return AutoConfig.from_pretrained(checkpoint.directory, local_files_only=True, trust_remote_code=False)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as problem:
        text = " ".join(str(problem).split())[:300]
        raise ValueError(
            f"config.json of the model {checkpoint.name!r} cannot be used ({text}); download it again"
        ) from problem


def load_weights(checkpoint: Checkpoint, model: Any, config: Any, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Return a model of transformers, and the names of the parameters that the checkpoint does not have."""
    from safetensors import SafetensorError

    try:
        with quiet():
            loaded, report = model.from_pretrained(
                checkpoint.directory,
                config=config,
                dtype=dtype,
                local_files_only=True,
                weights_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, SafetensorError, ValueError, pickle.UnpicklingError) as problem:
        text = " ".join(str(problem).split())
        raise ValueError(
            f"the weights of the model {checkpoint.name!r} cannot be read ({text}); download them again"
        ) from problem
    return loaded, sorted(report["missing_keys"]) + sorted(str(entry[0]) for entry in report["mismatched_keys"])


def refuse_absent(name: str, absent: list[str]) -> None:
    """Raise a ValueError: what is missing would be random numbers."""
    raise ValueError(
        f"the weights of {name} lack {len(absent)} parameters that config.json asks for, such as {absent[0]}; "
        "download the checkpoint again"
    )


def _vectors(output: Any, pooled: bool, has_class_token: bool) -> torch.Tensor:
    """Return the vectors in what a model gives: its projected or pooled ones, or its class token, or the mean of its tokens."""
    if isinstance(output, torch.Tensor):
        return output
    vectors = getattr(output, "image_embeds", None)
    if vectors is None and pooled:
        vectors = getattr(output, "pooler_output", None)
    if vectors is None:
        tokens = output.last_hidden_state
        vectors = tokens.mean((2, 3)) if tokens.ndim == 4 else tokens[:, 0] if has_class_token else tokens.mean(1)
    return vectors.flatten(1)


def _try(network: Any, preparation: Prepare, device: torch.device, name: str) -> int:
    """Return the length of the vectors, after a picture that is given twice has got one vector."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    array = preparation(Image.fromarray(noise))
    try:
        with torch.no_grad():
            first, second = (network(**preparation.inputs([array], device)) for _ in range(2))
    except (AttributeError, RuntimeError, TypeError, ValueError) as problem:
        text = " ".join(str(problem).split())
        raise ValueError(
            f"{name} cannot use the pictures that its preprocessor_config.json makes ({text[:300]})"
        ) from problem
    if first.ndim != 2 or not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise ValueError(f"{name} gives another vector each time it sees a picture; use an encoder that does not draw")
    return int(first.shape[1])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers, which reports the tower it was not asked for as unexpected, line by line."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
