"""Texts get the vectors that transformers gives, and the scores are those of their definitions."""

from __future__ import annotations

import json
import string
import warnings
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from test_embed import frame_of, jpegs, matrix_of, pack
from test_families import TOWER, lively, pil, save, vit

import imgcurate as ic
from imgcurate import schema, vectors
from imgcurate.encoders import load_encoder
from imgcurate.encoders.embed import embed

CONTEXT = 12
TEXTS = ["a red dog", "two cats", "a photo of a very long story that goes on and on", "", "ÄÖ?"]


def tokenizer(of: type) -> Any:
    """A real tokenizer of CLIP's kind that knows letters."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    return of(vocab={word: number for number, word in enumerate(words)}, merges=[])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clip-with-text")
    torch.manual_seed(0)
    known = tokenizer(transformers.CLIPTokenizer)
    text = {**TOWER, "vocab_size": len(known), "max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    lively(transformers.CLIPModel(config)).save_pretrained(folder)
    pil("CLIP")(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    known.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("siglip-with-text")
    torch.manual_seed(0)
    known = tokenizer(transformers.CLIPTokenizer)
    text = {**TOWER, "vocab_size": len(known), "max_position_embeddings": CONTEXT}
    config = transformers.SiglipConfig(text_config=text, vision_config={**TOWER, "image_size": 32, "patch_size": 8})
    model = lively(transformers.SiglipModel(config))
    model.logit_scale.data.fill_(1.0)
    model.logit_bias.data.fill_(-2.0)
    model.save_pretrained(folder)
    pil("Siglip")(size={"height": 32, "width": 32}).save_pretrained(folder)
    known.save_pretrained(folder)
    return str(folder)


def reference(folder: str, texts: list[str], padding: Any) -> tuple[Any, np.ndarray]:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    known = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = known(texts, padding=padding, truncation=True, max_length=CONTEXT, return_tensors="pt")
    with torch.no_grad():
        features = model.get_text_features(**inputs).pooler_output
    return model, torch.nn.functional.normalize(features, dim=1).numpy()


@pytest.mark.filterwarnings("ignore:.*texts are longer")
def test_vectors_of_texts_are_those_of_transformers(clip: str, siglip: str) -> None:
    for folder, padding in ((clip, True), (siglip, "max_length")):
        _, expected = reference(folder, TEXTS, padding)
        made = ic.encode_text(TEXTS, folder, dtype="float32")
        assert made.dtype == np.float32 and made.shape == expected.shape
        assert (expected @ expected.T).min() < 0.97
        assert (made * expected).sum(axis=1).min() >= 0.9999
        one_by_one = ic.encode_text(TEXTS, folder, dtype="float32", batch_size=1)
        assert (made * one_by_one).sum(axis=1).min() >= 0.9999


def test_texts_that_are_too_long_are_cut_and_counted(clip: str) -> None:
    with pytest.warns(UserWarning, match=f"1 of 5 texts are longer than the {CONTEXT} tokens"):
        ic.encode_text(TEXTS, clip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ic.encode_text(TEXTS[:2], clip)
        assert ic.encode_text([], clip).shape == (0, 16)


def test_what_is_no_list_of_texts_is_refused(clip: str) -> None:
    with pytest.raises(TypeError, match="list of strings, not str"):
        ic.encode_text("a dog", clip)
    with pytest.raises(TypeError, match="None is none"):
        ic.encode_text(["a dog", None], clip)


def test_models_that_read_no_text_are_refused_by_name(tmp_path: Path, clip: str) -> None:
    save(tmp_path / "vit", vit)
    with pytest.raises(ValueError, match=r"\(vit\) has no text tower"):
        ic.encode_text(["a"], tmp_path / "vit")
    with pytest.raises(ValueError, match="'efficientnet-lite0' reads no text"):
        ic.encode_text(["a"], "efficientnet-lite0")
    whole = tmp_path / "without-tokenizer"
    whole.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (whole / name).write_bytes((Path(clip) / name).read_bytes())
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        ic.encode_text(["a"], whole)


def captioned(tmp_path: Path, captions: list[str | None]) -> pd.DataFrame:
    part = pack(tmp_path / "a.bin", [*jpegs(len(captions) - 1), b"no image"])
    return part.assign(caption=schema.table({"caption": captions})["caption"])


def test_the_clip_score_is_the_cosine_of_image_and_caption(client: Client, tmp_path: Path, clip: str) -> None:
    captions = [*TEXTS[:3], None, "two cats", "of an image that cannot be read"]
    frame = embed(frame_of(captioned(tmp_path, captions), 2), clip, dtype="float32")
    frame = ic.score_text(frame, model=clip, dtype="float32")
    done = frame.compute()
    assert done.dtypes.to_dict() == frame._meta.dtypes.to_dict()
    known = [text or "" for text in captions]
    _, texts = reference(clip, known, True)
    expected = (matrix_of(done) * texts).sum(axis=1)
    scores = done["clip_score"].to_numpy(dtype=np.float32, na_value=np.nan)
    assert np.isnan(scores).tolist() == [False, False, False, True, False, True]
    assert np.abs(scores - expected)[[0, 1, 2, 4]].max() < 1e-5
    assert done["text_cut"].tolist()[:4] == [False, False, True, False]
    assert int(frame["text_cut"].sum().compute()) == 2


def test_scores_of_other_models_images_are_refused_by_name(tmp_path: Path, clip: str, siglip: str) -> None:
    part = captioned(tmp_path, ["a dog", "a cat", None])
    frame = embed(frame_of(part), siglip)
    with pytest.raises(
        ValueError, match=r"images were embedded by .*siglip-with-text.* and the texts by .*clip-with-text"
    ):
        ic.score_text(frame, model=clip).compute(scheduler="sync")
    plain = frame_of(part.assign(embedding=vectors.to_column(np.ones((3, 5), dtype=np.float32), like=part)))
    with pytest.raises(ValueError, match="dimension 5 and those of texts"):
        ic.score_text(plain, model=clip).compute(scheduler="sync")


def test_prompts_give_the_zero_shot_probabilities_of_transformers(client: Client, tmp_path: Path, clip: str) -> None:
    frame = embed(frame_of(captioned(tmp_path, ["x"] * 4), 2), clip, dtype="float32")
    frame = ic.score_prompts(frame, {"dog": "a red dog", "cats": ["two cats"]}, model=clip, dtype="float32")
    done = frame.compute()
    model, texts = reference(clip, ["a red dog", "two cats"], True)
    logits = torch.from_numpy(matrix_of(done) @ texts.T) * model.logit_scale.exp().item()
    expected = logits.softmax(dim=1).numpy()
    made = done[["dog", "cats"]].to_numpy(dtype=np.float32, na_value=np.nan)
    assert np.isnan(made[3]).all() and np.abs(made - expected)[:3].max() < 1e-4
    assert np.abs(made[:3].sum(axis=1) - 1).max() < 1e-6
    assert done.dtypes.to_dict() == frame._meta.dtypes.to_dict()


def test_siglips_probabilities_stand_for_themselves(tmp_path: Path, siglip: str) -> None:
    frame = embed(frame_of(captioned(tmp_path, ["x"] * 3)), siglip, dtype="float32")
    done = ic.score_prompts(frame, {"dog": ["a red dog", "two cats"]}, model=siglip, dtype="float32").compute()
    _, texts = reference(siglip, ["a red dog", "two cats"], "max_length")
    mean = texts.mean(axis=0) / np.linalg.norm(texts.mean(axis=0))
    expected = 1 / (1 + np.exp(-(matrix_of(done) @ mean * np.e - 2)))
    assert np.abs(done["dog"].to_numpy(dtype=float, na_value=np.nan) - expected)[:2].max() < 1e-4


def test_prompts_that_cannot_be_used_are_refused(tmp_path: Path, clip: str) -> None:
    frame = embed(frame_of(captioned(tmp_path, ["x"] * 2)), clip)
    for prompts, error, said in (
        ({"dog": "a dog"}, ValueError, "has one class"),
        ({"dog": [], "cat": "a cat"}, ValueError, "'dog' has none"),
        ({"bytes": "many", "other": "few"}, ValueError, "already has a column 'bytes'"),
        ({}, TypeError, "prompts must be a dict"),
        ({"dog": [1], "cat": "a cat"}, TypeError, "prompts of 'dog' must be a list of strings"),
    ):
        with pytest.raises(error, match=said):
            ic.score_prompts(frame, prompts, model=clip)


@settings(max_examples=40)
@given(
    values=st.lists(st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, None]), min_size=1, max_size=60),
    fraction=st.floats(0.001, 1),
    npartitions=st.integers(1, 4),
)
def test_top_fraction_keeps_exactly_the_highest(values: list[float | None], fraction: float, npartitions: int) -> None:
    import dask

    part = schema.table({"clip_score": values})
    numbers = np.array([np.nan if value is None else value for value in values])
    present = np.sort(numbers[~np.isnan(numbers)])[::-1]
    with dask.config.set(scheduler="sync"):
        frame = dd.from_pandas(part, npartitions=npartitions, sort=False)
        if not len(present):
            with pytest.raises(ValueError, match="has no value"):
                ic.top_fraction(frame, "clip_score", fraction)
            return
        kept = ic.top_fraction(frame, "clip_score", fraction)["clip_score"].compute().to_numpy(dtype=float)
    threshold = present[max(1, int(np.ceil(fraction * len(present) - 1e-9 * len(present)))) - 1]
    assert sorted(kept) == sorted(present[present >= threshold])


def test_top_fraction_reads_the_frame_once_for_its_threshold(client: Client, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def scored(part: pd.DataFrame, log: str) -> pd.DataFrame:
        with open(log, "a") as file:
            file.write("x")
        return part.assign(score=part["n"] * 0.5)

    meta = pd.DataFrame({"n": pd.Series([], dtype="int64"), "score": pd.Series([], dtype="float64")})
    source = dd.from_pandas(pd.DataFrame({"n": range(1000)}), npartitions=5)
    frame = source.map_partitions(scored, str(log), meta=meta)
    kept = ic.top_fraction(frame, "score", 0.3)
    assert log.read_text() == "x" * 5
    assert sorted(kept["n"].compute()) == list(range(700, 1000))


def test_top_fraction_refuses_what_it_cannot_rank() -> None:
    frame = dd.from_pandas(pd.DataFrame({"name": ["a", "b"], "x": [1, 2]}), npartitions=1)
    with pytest.raises(TypeError, match="'name' does not hold numbers"):
        ic.top_fraction(frame, "name", 0.5)
    for wrong in (0, 1.1, True, "0.3", None):
        with pytest.raises(ValueError, match=r"fraction=.* must be a share above 0 and at most 1"):
            ic.top_fraction(frame, "x", wrong)
    with pytest.raises(KeyError, match="needs column 'y'"):
        ic.top_fraction(frame, "y", 0.5)


def test_the_text_tower_names_the_encoder_of_its_images(clip: str) -> None:
    from imgcurate.encoders import load_text_encoder

    assert load_text_encoder(clip).identity.fingerprint == load_encoder(clip).fingerprint
    content = json.loads((Path(clip) / "config.json").read_text())
    assert load_text_encoder(clip).context == content["text_config"]["max_position_embeddings"] == CONTEXT
