"""What a checkpoint's configuration may ask for: it comes from whoever published it, and is looked at before anything is built by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The largest vision and text towers that are published have a sixth of these layers and a tenth of this width.
_LIMITS = {
    "num_hidden_layers": 512,
    "num_attention_heads": 1024,
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "projection_dim": 1 << 16,
    "num_channels": 16,
    "image_size": 1 << 13,
    "patch_size": 1 << 10,
    "max_position_embeddings": 1 << 20,
    "vocab_size": 1 << 22,
}
_TOWERS = ("vision_config", "text_config")


def check_config(config: Mapping[str, Any], source: str) -> None:
    """Raise a ValueError where a configuration is of no model that is run here.

    Parameters
    ----------
    config : mapping
        The content of config.json.
    source : str
        The file, for messages.

    Examples
    --------
    >>> check_config({"vision_config": {"num_hidden_layers": 10**6}}, "config.json")
    Traceback (most recent call last):
    ValueError: config.json: num_hidden_layers is 1000000, and imgcurate builds models of 1 to 512; download the file again
    """
    for name, value in config.items():
        if name in _TOWERS and value is not None:
            if not isinstance(value, Mapping):
                raise ValueError(f"{source}: {name} is no configuration; download the file again")
            check_config(value, source)
        if "attn_implementation" in name and "/" in str(value):
            raise ValueError(f"{source}: {name} asks for code from the hub, which imgcurate does not run; remove it")
        limit = _LIMITS.get(name)
        sizes = value if isinstance(value, list) else [value]
        if limit and value is not None and not all(type(size) is int and 1 <= size <= limit for size in sizes):
            raise ValueError(
                f"{source}: {name} is {str(value)[:50]}, and imgcurate builds models of 1 to {limit:,}; download the file again"
            )


def check_sides(*sides: int) -> None:
    """Raise a ValueError where pictures would be made larger than any network takes, or of no size."""
    limit = _LIMITS["image_size"]
    if not all(1 <= side <= limit for side in sides):
        raise ValueError(
            f"it makes pictures of {' x '.join(map(str, sides))}, and imgcurate makes them of 1 to {limit:,}"
        )
