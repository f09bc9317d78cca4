"""Models run where the partition is, and give on a GPU what they give on a CPU."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import image_bytes
from PIL import Image
from test_curate import model_dir  # noqa: F401
from test_encoders import pictures, save_checkpoint, tiny_clip, transformers_vectors
from test_text import clip as clip_with_text  # noqa: F401

import imgcurate as ic
from gpu.conftest import Backend, embedded, host
from imgcurate import schema, vectors

SCORES: dict[str, Any] = {"aesthetic_score": ic.score_aesthetic, "nsfw_score": ic.score_nsfw}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("clip")))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(path: Path, contents: list[bytes], errors: list[str | None] | None = None) -> pd.DataFrame:
    """Write contents one after another into a file, as a tar has them, and return their rows."""
    path.write_bytes(b"".join(contents))
    sizes = [len(content) for content in contents]
    count = len(contents)
    return schema.table(
        {
            "image_id": [f"{path.stem}/{i}" for i in range(count)],
            "url": [str(path)] * count,
            "offset": [sum(sizes[:i]) for i in range(count)],
            "bytes": sizes,
            "error": errors or [None] * count,
        }
    )


def test_the_model_runs_where_the_partition_is(on: Backend, tmp_path: Path, model: str) -> None:
    frame = ic.embed(on.frame(rows_of(tmp_path / "a.bin", [image_bytes(0)])), model)
    vectors_there = vectors.to_matrix(frame.compute()["embedding"])
    assert type(frame._meta).__module__.startswith(on.name) and vectors.on_gpu(vectors_there) == (on.name == "cudf")


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.9999), ("auto", 0.998)])
def test_vectors_are_those_of_transformers_on_a_cpu_in_float32(
    on: Backend, tmp_path: Path, model: str, dtype: str, least: float
) -> None:
    images = pictures(10)
    frame = on.frame(rows_of(tmp_path / "a.bin", [png(image) for image in images]), cuts=(3, 3, 7))
    done = host(ic.embed(frame, model, dtype=dtype, batch_size=2))
    found, expected = vectors.to_matrix(done["embedding"]), transformers_vectors(tiny_clip(), images)
    assert (found * expected).sum(axis=1).min() >= least
    assert np.abs(np.linalg.norm(found.astype(np.float64), axis=1) - 1).max() < 1e-6
    assert list(zip(done["width"], done["height"], strict=True)) == [image.size for image in images]
    assert done["error"].isna().all()


def test_bad_images_are_errors_of_their_rows(on: Backend, tmp_path: Path, model: str) -> None:
    contents = [image_bytes(1), image_bytes(1)[:300], b"", b"<html>", image_bytes(2), image_bytes(3)]
    part = rows_of(tmp_path / "a.bin", contents, [None] * 5 + ["no image: told before"])
    done = host(ic.embed(on.frame(part, cuts=(1, 4)), model, dtype="float32"))
    assert done["embedding"].isna().tolist() == [False, True, True, True, False, True]
    assert done["error"].fillna("").tolist() == [
        "",
        "decode: truncated JPEG",
        "decode: empty file",
        "decode: not an image",
        "",
        "no image: told before",
    ]
    assert done["width"].isna().tolist() == done["embedding"].isna().tolist()


def test_a_partition_without_one_usable_image_has_null_vectors(on: Backend, tmp_path: Path, model: str) -> None:
    frame = ic.embed(on.frame(rows_of(tmp_path / "a.bin", [b"", b"x", image_bytes(1)]), cuts=(2,)), model)
    assert host(frame)["embedding"].isna().tolist() == [True, True, False]
    assert frame.compute().dtypes.to_dict() == frame._meta.dtypes.to_dict()


@pytest.mark.parametrize("column", list(SCORES))
def test_scores_are_those_of_the_cpu(
    on: Backend,
    on_cpu: Callable[[Callable[[], Any]], Any],
    model_dir: Path,  # noqa: F811
    column: str,
) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((5000, 768)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix[7, 3] = np.nan
    part = embedded(matrix, np.arange(5000) % 9 != 4)
    cpu = Backend("pandas", "cpu")
    expected = on_cpu(lambda: host(SCORES[column](cpu.frame(part), model_dir=model_dir))[column])
    scored = SCORES[column](on.frame(part, cuts=(0, 1, 4200)), model_dir=model_dir)
    found = host(scored)[column].reset_index(drop=True)
    assert found.isna().tolist() == expected.isna().tolist() and found.isna()[7] and found.isna()[4]
    # Both are computed in float64 and rounded once.
    np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=0, atol=2e-7)
    assert len(np.unique(expected.dropna())) > 100, "a head that says one number proves nothing"
    assert scored.compute().dtypes.to_dict() == scored._meta.dtypes.to_dict()


@pytest.mark.parametrize("column", list(SCORES))
def test_a_head_refuses_vectors_of_another_encoder(on: Backend, model_dir: Path, column: str) -> None:  # noqa: F811
    scored = SCORES[column](on.frame(embedded(np.ones((3, 16)))), model_dir=model_dir)
    with pytest.raises(ValueError, match=r"takes embeddings of dimension 768 .* 16"):
        scored.compute()


@pytest.mark.parametrize("column", list(SCORES))
def test_a_partition_without_vectors_has_null_scores(on: Backend, model_dir: Path, column: str) -> None:  # noqa: F811
    part = embedded(np.ones((4, 768)) / 768**0.5, np.array([False, False, True, True]))
    scored = SCORES[column](on.frame(part, cuts=(2, 2)), model_dir=model_dir)
    assert host(scored)[column].isna().tolist() == [True, True, False, False]


def test_a_callable_runs_where_the_partition_is(on: Backend, tmp_path: Path) -> None:
    frame = on.frame(rows_of(tmp_path / "a.bin", [image_bytes(seed) for seed in range(3)]), cuts=(1,))
    found = vectors.to_matrix(host(ic.embed(frame, mean_colour, image_size=8))["embedding"])
    assert found.shape == (3, 3) and np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.mean(axis=(1, 2))


def test_measures_are_those_of_the_cpu(on: Backend, tmp_path: Path) -> None:
    part = rows_of(tmp_path / "a.bin", [image_bytes(1), b"x", image_bytes(2)])
    frame = ic.measure(on.frame(part, cuts=(0, 2)))
    expected = ic.measure(Backend("pandas", "cpu").frame(part)).compute(scheduler="sync")
    found = host(frame)
    for name in ("width", "format", "sharpness", "colourfulness", "phash", "error"):
        assert found[name].astype(object).where(found[name].notna(), None).tolist() == (
            expected[name].astype(object).where(expected[name].notna(), None).tolist()
        ), name
    assert frame.compute().dtypes.to_dict() == frame._meta.dtypes.to_dict()


def test_text_scores_are_those_of_the_cpu(on: Backend, tmp_path: Path, clip_with_text: str) -> None:  # noqa: F811
    part = rows_of(tmp_path / "a.bin", [image_bytes(seed) for seed in range(4)])
    part = part.assign(caption=schema.table({"caption": ["a dog", None, "two cats", "a red dog"]})["caption"])

    def scored(frame: Any) -> Any:
        frame = ic.score_text(ic.embed(frame, clip_with_text, dtype="float32"), model=clip_with_text, dtype="float32")
        return ic.score_prompts(frame, {"dog": "a dog", "cat": "a cat"}, model=clip_with_text, dtype="float32")

    expected = scored(Backend("pandas", "cpu").frame(part)).compute(scheduler="sync")
    frame = scored(on.frame(part, cuts=(1, 1)))
    found = host(frame)
    for name in ("clip_score", "dog", "cat"):
        np.testing.assert_allclose(
            found[name].to_numpy(dtype=float, na_value=np.nan),
            expected[name].to_numpy(dtype=float, na_value=np.nan),
            atol=1e-3,
        )
    assert found["clip_score"].isna().tolist() == [False, True, False, False]
    assert frame.compute().dtypes.to_dict() == frame._meta.dtypes.to_dict()


def test_the_top_fraction_is_exact(on: Backend) -> None:
    scores = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    part = schema.table({"clip_score": [None if k % 10 == 0 else float(score) for k, score in enumerate(scores)]})
    kept = host(ic.top_fraction(on.frame(part, cuts=(0, 300, 999)), "clip_score", 0.25))["clip_score"]
    present = np.sort(np.delete(scores, np.arange(0, 1000, 10)))[::-1]
    assert sorted(kept.astype(float), reverse=True) == present[:225].astype(float).tolist()
