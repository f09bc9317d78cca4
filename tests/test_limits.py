"""Checkpoints that ask for what no model needs are refused in a sentence, before anything is built by them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from imgcurate.encoders import checkpoint
from imgcurate.scores import nsfw

CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "projection_dim": 16,
    "vision_config": {"hidden_size": 32, "image_size": 32},
}
SETTINGS: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": 32}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"vision_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers is 1000000"),
        ({"vision_config": {"hidden_size": 10**12}}, "hidden_size is"),
        ({"vision_config": {"hidden_size": -1}}, "hidden_size is"),
        ({"text_config": {"vocab_size": "many"}}, "vocab_size is many"),
        ({"vision_config": {"image_size": [32, 10**6]}}, "image_size is"),
        ({"projection_dim": "16"}, "projection_dim is 16"),
        ({"projection_dim": True}, "projection_dim is True"),
        ({"vision_config": [1]}, "vision_config is no configuration"),
        ({"_attn_implementation": "kernels-community/flash-attn"}, "asks for code from the hub"),
        ({"vision_config": {"attn_implementation_internal": "a/b"}}, "asks for code from the hub"),
    ],
)
def test_configurations_that_no_model_needs_are_refused(folder: Path, config: dict[str, Any], said: str) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    with pytest.raises(ValueError, match=rf"config\.json.*{said}"):
        checkpoint.find(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_size": 60_000, "size": 60_000},
        {"size": 0},
        {"size": -5},
        {"size": {"height": "a", "width": 32}},
        {"size": 1.5},
        {"size": [32]},
        {"crop_size": {"longest": 32}},
        {"image_mean": 5},
        {"image_std": "abc"},
        {"size": {"shortest_edge": [32]}},
        {"size": {"shortest_edge": 10**400}},
    ],
)
def test_preprocessing_that_cannot_be_is_refused(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS | settings))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        checkpoint.find(folder)


@pytest.mark.parametrize(
    "index",
    ["{}", "[" * 100_000, '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../outside.safetensors"}}', '{"weight_map": {"a": "/etc/passwd"}}'],
)  # fmt: skip
def test_indices_of_weights_name_files_beside_them(folder: Path, index: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        checkpoint.find(folder)


def test_a_checkpoint_like_any_other_is_found(folder: Path) -> None:
    assert checkpoint.find(folder).dimension() == 16


def test_a_zip_file_that_grows_a_thousandfold_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "clip_autokeras_binary_nsfw.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("clip_autokeras_binary_nsfw.pth", "w") as file,
    ):
        for _ in range(65):
            file.write(bytes(1 << 20))
    with pytest.raises(ValueError, match=r"clip_autokeras_binary_nsfw\.zip.*more than"):
        nsfw._read(path)
