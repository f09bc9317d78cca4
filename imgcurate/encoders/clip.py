"""CLIP checkpoints: found on disk or on the hub, checked by their JSON files, loaded as vision tower and projection."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcurate import weights
from imgcurate.encoders import efficientnet
from imgcurate.encoders.preprocess import Preprocess, from_config

if TYPE_CHECKING:
    import torch

    from imgcurate.encoders.base import Encoder

_KNOWN = (
    efficientnet.NAME,
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-base-patch16",
)
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP checkpoint whose configuration lies in `directory` and has been checked; its weights may not be here yet.

    Attributes
    ----------
    name : str
        As the user wrote it.
    directory : pathlib.Path
    hub_id : str or None
        None for a directory of the user's.
    dimension : int
    preparation : Preprocess
    """

    name: str
    directory: Path
    hub_id: str | None
    dimension: int
    preparation: Preprocess

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
        shards = sorted(set(_read_json(first)["weight_map"].values()))
        found = {shard: self._first([shard]) for shard in shards}
        missing = [shard for shard, file in found.items() if file is None]
        if missing:
            raise FileNotFoundError(f"the model {self.name!r} lacks {', '.join(missing)}; put it into {self.directory}")
        return [first, *(file for file in found.values() if file is not None)]

    def files(self) -> list[Path]:
        """Return every file that its vectors depend on."""
        configuration = [self.directory / name for name in ("config.json", *_PREPROCESSORS)]
        return [*(file for file in configuration if file.exists()), *self.weight_files()]

    def _first(self, names: Sequence[str]) -> Path | None:
        return _first_file(self.directory, self.hub_id, names)


def find(model: str, model_dir: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Find a CLIP checkpoint and check its configuration, without its weights.

    Parameters
    ----------
    model : str
        Looked for as ``model_dir/<model>``, as a directory, in the hub's cache, and on the hub, in this order.
    model_dir : path, optional

    Returns
    -------
    Checkpoint

    Raises
    ------
    FileNotFoundError
        Where it is nowhere. One sentence, which says what to download and where to put it.
    ValueError
        Where it is not CLIP, or its configuration cannot be used.
    """
    model = str(model)
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


def load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Encoder:
    """Load the vision tower and projection of a checkpoint; no code and no pickle from it is run.

    Raises
    ------
    ValueError
        Where the weights are not those of the configuration: a part is missing, has another shape, or cannot be read.
    """
    from safetensors import SafetensorError
    from transformers import CLIPConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

    from imgcurate.encoders.base import Encoder

    content = _read_json(checkpoint.directory / "config.json")
    # A full checkpoint states the projection's size beside the two towers; what stands in vision_config may be another.
    whole = content["model_type"] == "clip"
    files = checkpoint.files()
    try:
        with _quiet():
            config: Any = CLIPConfig.from_dict(content).vision_config if whole else CLIPVisionConfig.from_dict(content)
            config.projection_dim = checkpoint.dimension
            loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
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
    model, report = loaded
    # What is missing would be random numbers.
    absent = sorted(report["missing_keys"]) + sorted(str(entry[0]) for entry in report["mismatched_keys"])
    if "visual_projection.weight" in absent:
        raise ValueError(
            f"the model {checkpoint.name!r} has no visual_projection.weight of {checkpoint.dimension} dimensions, so "
            "what it gives is not CLIP's image embedding; use a CLIPModel or CLIPVisionModelWithProjection checkpoint"
        )
    if absent:
        raise ValueError(
            f"the weights of the model {checkpoint.name!r} lack {len(absent)} parameters that config.json asks for, "
            f"such as {absent[0]}; download the checkpoint again"
        )
    model = model.eval().to(device)

    def network(batch: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=batch).image_embeds

    return Encoder(checkpoint.name, checkpoint.dimension, device, dtype, checkpoint.preparation, network, files)


def _read(name: str, directory: Path, hub_id: str | None) -> Checkpoint:
    file = directory / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"the directory {str(directory)!r} has no config.json, so it is not a CLIP checkpoint")
    config = _read_json(file)
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"the model {name!r} is {kind!r}, not CLIP (model_type 'clip' or 'clip_vision_model'); "
            f"use a CLIP checkpoint such as {_KNOWN[1]!r}, or {efficientnet.NAME!r}"
        )
    vision = config.get("vision_config", {}) if kind == "clip" else config
    preprocessor = _first_file(directory, hub_id, _PREPROCESSORS)
    settings = _read_json(preprocessor) if preprocessor is not None else {}
    settings = settings.get("image_processor", settings)
    preparation = from_config(settings, vision.get("image_size", 224), f"the model {name!r}")
    return Checkpoint(name, directory, hub_id, config.get("projection_dim", 512), preparation)


def _first_file(directory: Path | None, hub_id: str | None, names: Sequence[str]) -> Path | None:
    """Return the first of `names` that the directory has, or else the hub's cache, or else the hub."""
    if hub_id is None:
        return next((directory / name for name in names if (directory / name).is_file()), None) if directory else None
    from huggingface_hub import model_info, try_to_load_from_cache

    cached = (try_to_load_from_cache(hub_id, name) for name in names)
    here = next((file for file in cached if isinstance(file, str)), None)
    if here is not None:
        return Path(here)
    advice = f"try again, or pass model_dir=DIR with the whole checkpoint in DIR/{hub_id}"
    try:
        # One question that fails at once without a network, where asking for the file is tried again for half a minute;
        # and only the hub can say that there is no such file: to guess that would change the vectors.
        siblings = {sibling.rfilename for sibling in model_info(hub_id).siblings or ()}
    except Exception as problem:
        # The hub's client raises OSError, ValueError and those of the HTTP library of its version.
        text = (str(problem).strip() or type(problem).__name__).splitlines()[0].rstrip(".")
        raise FileNotFoundError(f"{names[0]} of {hub_id} cannot be downloaded ({text}); {advice}") from problem
    there = next((name for name in names if name in siblings), None)
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
        f"model.safetensors of a CLIP checkpoint into {place}{pass_it}, or use {efficientnet.NAME!r}"
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{str(file)!r} is not JSON ({problem}); download it again") from problem
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} does not hold a JSON object; download it again")
    return content


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers, which reports the text tower it was not asked for as unexpected, line by line."""
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
