"""Checkpoints in transformers' format: found on disk or on the hub, and checked by their JSON files."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcurate import weights
from imgcurate.encoders import efficientnet
from imgcurate.encoders.limits import check_config
from imgcurate.encoders.preprocess import Prepare, from_config, of_transformers, patches_from_config

_KNOWN = (
    efficientnet.NAME,
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-base-patch16",
    "google/siglip-so400m-patch14-384",
    "google/siglip2-base-patch16-naflex",
    "facebook/dinov2-base",
)
# transformers looks into the nested settings of the second before it takes the first.
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "vocab.txt",
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration lies in `directory` and has been checked; its weights may not be here yet.

    Attributes
    ----------
    name : str
        As the user wrote it.
    directory : pathlib.Path
    hub_id : str or None
        None for a directory of the user's.
    kind : str
        transformers' ``model_type``: ``"clip"``, ``"siglip"``, ``"dinov2"`` and so on.
    """

    name: str
    directory: Path
    hub_id: str | None
    kind: str

    @property
    def source(self) -> str:
        """What finds it from any process: its hub id, or its absolute directory."""
        return self.hub_id or str(self.directory)

    def weight_files(self) -> list[Path]:
        """Return the weight files, downloading those that are on the hub.

        Raises
        ------
        FileNotFoundError
            Where there are none.
        """
        first = self._first(_WEIGHTS)
        if first is None:
            text = f"the model {self.name!r} has no weights; put model.safetensors into {self.directory}"
            raise FileNotFoundError(text)
        if not first.name.endswith(".index.json"):
            return [first]
        named = _read_json(first).get("weight_map")
        if not isinstance(named, dict) or not all(
            isinstance(name, str) and name == Path(name).name for name in named.values()
        ):
            raise ValueError(f"{str(first)!r} has no weight_map of files beside it; download it again")
        shards = sorted(set(named.values()))
        found = {shard: self._first([shard]) for shard in shards}
        missing = [shard for shard, file in found.items() if file is None]
        if missing:
            raise FileNotFoundError(f"the model {self.name!r} lacks {', '.join(missing)}; put it into {self.directory}")
        return [first, *(file for file in found.values() if file is not None)]

    def files(self) -> list[Path]:
        """Return every file that its vectors depend on."""
        configuration = [self.directory / name for name in ("config.json", *_PREPROCESSORS)]
        return [*(file for file in configuration if file.exists()), *self.weight_files()]

    def tokenizer_files(self) -> list[Path]:
        """Return the files of the tokenizer, downloading those that are on the hub.

        Raises
        ------
        FileNotFoundError
            Where there are none.
        """
        found = [file for name in _TOKENIZERS if (file := self._first([name])) is not None]
        if not found:
            raise FileNotFoundError(
                f"the model {self.name!r} has no tokenizer, so it reads no text; put tokenizer.json into {self.directory}"
            )
        return found

    def config(self) -> dict[str, Any]:
        """Return the content of config.json; a ValueError where that asks for what no model needs."""
        file = self.directory / "config.json"
        content = _read_json(file)
        check_config(content, repr(str(file)))
        return content

    def dimension(self) -> int | None:
        """Return the length of the vectors, where the configuration alone says it."""
        if self.kind in ("clip", "clip_vision_model"):
            return int(self.config().get("projection_dim", 512))
        vision = self.config().get("vision_config", self.config())
        return vision.get("hidden_size") if self.kind in _COMMON else None

    def preparation(self) -> Prepare:
        """Return how pictures are made what the network takes, from the checkpoint's own settings.

        Raises
        ------
        ValueError
            Where the settings cannot be used, or make what the network does not take.
        """
        self._first(_PREPROCESSORS)  # downloads it where it is on the hub
        settings: dict[str, Any] = {}
        for file in (self.directory / name for name in reversed(_PREPROCESSORS)):
            if file.is_file():
                content = _read_json(file)
                nested = content.get("image_processor")
                if nested or file.name == _PREPROCESSORS[0]:
                    settings = nested or content
                    break
        source, vision = f"the model {self.name!r}", self.config()
        vision = vision.get("vision_config", vision)
        try:
            if self.kind in ("siglip2", "siglip2_vision_model"):
                return patches_from_config(settings, vision, source)
            made = from_config(settings, vision.get("image_size"), source, self.kind)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as problem:
            if str(problem).startswith(source):
                raise
            raise ValueError(
                f"{source}: its preprocessor_config.json cannot be used ({problem}); download it again"
            ) from problem
        return of_transformers(self.directory, source) if made is None else made

    def _first(self, names: Sequence[str]) -> Path | None:
        return _first_file(self.directory, self.hub_id, names)


def find(model: str | os.PathLike[str], model_dir: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Find a checkpoint and check its configuration, without its weights.

    Parameters
    ----------
    model : str
        Looked for as ``model_dir/<model>``, as a directory, in the hub's cache, and on the hub, in this order.
    model_dir : path, optional
        Default: the one that ``IMGCURATE_MODEL_DIR`` names, if any.

    Returns
    -------
    Checkpoint

    Raises
    ------
    FileNotFoundError
        Where it is nowhere. One sentence, which says what to download and where to put it.
    ValueError
        Where it is of no kind that gives vectors of images, or its configuration cannot be used.
    """
    model = str(model)
    model_dir = weights.chosen_dir(model_dir)
    if model_dir is not None and not Path(model_dir).expanduser().is_dir():
        raise FileNotFoundError(f"model_dir {str(model_dir)!r} is not a directory; give the one that holds {model!r}")
    places = [Path(model_dir).expanduser() / model] if model_dir is not None else []
    local = next((place for place in (*places, Path(model).expanduser()) if model and place.is_dir()), None)
    if local is not None:
        checkpoint = _read(model, local.absolute(), None)
        checkpoint.weight_files()
        return checkpoint
    if not _HUB_ID.fullmatch(model):
        raise FileNotFoundError(_nowhere(model, model_dir))
    try:
        config = _first_file(None, model, ["config.json"])
    except FileNotFoundError as problem:
        raise FileNotFoundError(_nowhere(model, model_dir, problem.__cause__)) from problem
    if config is None:
        raise FileNotFoundError(_nowhere(model, model_dir))
    return _read(model, config.parent, model)


def _read(name: str, directory: Path, hub_id: str | None) -> Checkpoint:
    file = directory / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"the directory {str(directory)!r} has no config.json, so it is not a checkpoint")
    kind = _read_json(file).get("model_type")
    if not isinstance(kind, str) or not (kind in _COMMON or _sees_images(kind)):
        raise ValueError(
            f"the model {name!r} is {kind!r} (model_type in config.json), which gives no vectors of images; use one of CLIP, "
            f"SigLIP, DINOv2 or another vision model of transformers, such as {_KNOWN[1]!r}, or {efficientnet.NAME!r}"
        )
    checkpoint = Checkpoint(name, directory, hub_id, kind)
    checkpoint.preparation()
    return checkpoint


# Known without asking transformers, which takes seconds to import.
_COMMON = (
    "clip",
    "clip_vision_model",
    "siglip",
    "siglip_vision_model",
    "siglip2",
    "siglip2_vision_model",
    "dinov2",
    "vit",
)


def _sees_images(kind: str) -> bool:
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_MAPPING:
        return False
    model = MODEL_MAPPING[CONFIG_MAPPING[kind]]
    return getattr(model, "main_input_name", "") == "pixel_values" or hasattr(model, "get_image_features")


def _first_file(directory: Path | None, hub_id: str | None, names: Sequence[str]) -> Path | None:
    """Return the first of `names` that the directory has, or else the hub's cache, or else the hub."""
    if hub_id is None:
        return next((directory / name for name in names if (directory / name).is_file()), None) if directory else None
    from huggingface_hub import try_to_load_from_cache

    cached = (try_to_load_from_cache(hub_id, name) for name in names)
    here = next((file for file in cached if isinstance(file, str)), None)
    if here is not None:
        return Path(here)
    advice = f"try again, or pass model_dir=DIR with the whole checkpoint in DIR/{hub_id}"
    # Only the hub can say that there is no such file: to guess that would change the vectors.
    on_hub = weights.files_on_hub(hub_id, names[0], advice)
    there = next((name for name in names if name in on_hub), None)
    return weights.from_hub(hub_id, there, advice) if there else None


def _nowhere(model: str, model_dir: str | os.PathLike[str] | None, reason: BaseException | None = None) -> str:
    """Return one sentence: what is wrong, what was perhaps meant, what to download and where to put it."""
    similar = [name for name in difflib.get_close_matches(model, _KNOWN, n=1) if name != model]
    meant = f"did you mean {similar[0]!r}? Else " if similar else ""
    is_id = _HUB_ID.fullmatch(model) is not None
    place = f"{model_dir or 'DIR'}/{model if is_id else _KNOWN[1]}"
    pass_it = "" if model_dir else " and pass model_dir=DIR"
    why = f" ({str(reason).strip().splitlines()[0].rstrip('.')})" if str(reason or "").strip() else ""
    where = f"a directory, not in the hub's cache and cannot be downloaded{why}" if is_id else "a directory or a hub id"
    return (
        f"the model {model!r} is not {where}: {meant}download config.json, preprocessor_config.json and "
        f"model.safetensors of a checkpoint into {place}{pass_it}, or use {efficientnet.NAME!r}"
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{str(file)!r} is not JSON ({problem}); download it again") from problem
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} does not hold a JSON object; download it again")
    return content
