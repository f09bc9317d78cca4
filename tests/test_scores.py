"""Both heads give LAION's figures from every published form of their weights, on any partition."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch
from distributed import Client

from imgcurate import schema, vectors, weights
from imgcurate.scores import aesthetic, nsfw, score_aesthetic, score_nsfw

AESTHETIC_WIDTHS = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
NSFW_WIDTHS = {1: (768, 64), 2: (64, 512), 3: (512, 256), 4: (256, 1)}
SAVED_MODEL_OFFSETS = {
    "norm.mean": 0,
    "norm.variance": 3072,
    "linear_1.weight": 6152,
    "linear_1.bias": 202760,
    "linear_2.weight": 203016,
    "linear_2.bias": 334088,
    "linear_3.weight": 336136,
    "linear_3.bias": 860424,
    "linear_4.weight": 861448,
    "linear_4.bias": 862472,
}
PTH = "sac+logos+ava1-l14-linearMSE.pth"
HUB = "ttj/sac-logos-ava1-l14-linearMSE/model.safetensors"
VERBS = {"aesthetic_score": score_aesthetic, "nsfw_score": score_nsfw}

State = dict[str, torch.Tensor]


def linear(rng: np.random.Generator, inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    weight = rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
    return torch.tensor(weight, dtype=torch.float32), torch.tensor(rng.standard_normal(outputs), dtype=torch.float32)


@pytest.fixture(scope="module")
def aesthetic_state() -> State:
    rng = np.random.default_rng(1)
    state = {}
    for place, widths in AESTHETIC_WIDTHS.items():
        state[f"layers.{place}.weight"], state[f"layers.{place}.bias"] = linear(rng, *widths)
    state["layers.7.bias"] = torch.tensor([5.0])
    return state


@pytest.fixture(scope="module")
def nsfw_state() -> State:
    rng = np.random.default_rng(2)
    state = {"norm.mean": torch.tensor(rng.standard_normal(768), dtype=torch.float32) / 30}
    state["norm.variance"] = torch.tensor(rng.uniform(0.0005, 0.003, 768), dtype=torch.float32)
    for number, widths in NSFW_WIDTHS.items():
        state[f"linear_{number}.weight"], state[f"linear_{number}.bias"] = linear(rng, *widths)
    return state


def layer_by_layer(column: str, state: State, embeddings: np.ndarray) -> np.ndarray:
    """The published networks as they are written down, in float64."""
    x = torch.from_numpy(embeddings).double()
    wide = {name: value.double() for name, value in state.items()}
    if column == "aesthetic_score":
        for place in AESTHETIC_WIDTHS:
            x = torch.nn.functional.linear(x, wide[f"layers.{place}.weight"], wide[f"layers.{place}.bias"])
        return (x[:, 0] / 10).clamp(0, 1).numpy()
    x = (x - wide["norm.mean"]) / wide["norm.variance"].sqrt()
    for number in (1, 2, 3):
        x = torch.nn.functional.linear(x, wide[f"linear_{number}.weight"], wide[f"linear_{number}.bias"]).relu()
    return torch.sigmoid(torch.nn.functional.linear(x, wide["linear_4.weight"], wide["linear_4.bias"]))[:, 0].numpy()


def saved_model_variables(state: State) -> bytes:
    content = bytearray(872095)
    for name, offset in SAVED_MODEL_OFFSETS.items():
        stored = state[name].numpy().T.astype("<f4").tobytes()
        content[offset : offset + len(stored)] = stored
    return bytes(content)


def as_pth(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def as_zip(member: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("clip_autokeras_binary_nsfw/saved_model.pb", b"graph")
        archive.writestr(member, content)
    return buffer.getvalue()


VARIABLES = "clip_autokeras_binary_nsfw/variables/variables.data-00000-of-00001"
AESTHETIC_FORMS: dict[str, Callable[[State], bytes]] = {
    HUB: lambda state: safetensors.numpy.save({name: value.numpy() for name, value in state.items()}),
    PTH: as_pth,
}
NSFW_FORMS: dict[str, Callable[[State], bytes]] = {
    "clip_autokeras_binary_nsfw.zip": lambda state: as_zip(VARIABLES, saved_model_variables(state)),
    "./clip_autokeras_binary_nsfw.zip": lambda state: as_zip("clip_autokeras_binary_nsfw.pth", as_pth(state)),
    "clip_autokeras_binary_nsfw.pth": as_pth,
    "laion/clip-autokeras-binary-nsfw/clip_autokeras_binary_nsfw.pth": as_pth,
    VARIABLES: saved_model_variables,
}


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def model_dir(tmp_path: Path, aesthetic_state: State, nsfw_state: State) -> Path:
    put(tmp_path, PTH, as_pth(aesthetic_state))
    put(tmp_path, "clip_autokeras_binary_nsfw.pth", as_pth(nsfw_state))
    return tmp_path


def unit_vectors(rows: int, dimension: int = 768, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def part_of(embeddings: np.ndarray, valid: np.ndarray | None = None) -> pd.DataFrame:
    part = schema.table({"image_id": [f"shard/{i}" for i in range(len(embeddings))]})
    part["embedding"] = vectors.to_column(embeddings, part, valid)
    return part


def frame_of(embeddings: np.ndarray, valid: np.ndarray | None = None, npartitions: int = 2) -> Any:
    return dd.from_pandas(part_of(embeddings, valid), npartitions=npartitions)


def scored(column: str, frame: Any, model_dir: Path) -> np.ndarray:
    """The column as float64 on the host, null as NaN."""
    with dask.config.set(scheduler="sync"):
        return VERBS[column](frame, model_dir=model_dir)[column].compute().to_numpy(dtype=np.float64, na_value=np.nan)


@pytest.mark.parametrize("name", list(AESTHETIC_FORMS))
def test_aesthetic_score_is_that_of_the_layers(tmp_path: Path, aesthetic_state: State, name: str) -> None:
    put(tmp_path, name, AESTHETIC_FORMS[name](aesthetic_state))
    embeddings = unit_vectors(300)
    expected = layer_by_layer("aesthetic_score", aesthetic_state, embeddings)
    np.testing.assert_allclose(scored("aesthetic_score", frame_of(embeddings), tmp_path), expected, rtol=1e-6)


@pytest.mark.parametrize("name", list(NSFW_FORMS))
def test_nsfw_score_is_that_of_the_layers(tmp_path: Path, nsfw_state: State, name: str) -> None:
    put(tmp_path, name, NSFW_FORMS[name](nsfw_state))
    embeddings = unit_vectors(300)
    expected = layer_by_layer("nsfw_score", nsfw_state, embeddings)
    assert expected.std() > 0.01
    np.testing.assert_allclose(scored("nsfw_score", frame_of(embeddings), tmp_path), expected, atol=1e-6)


def test_published_weights_give_the_published_figures(shared: Path) -> None:
    figures = json.loads((shared / "models" / "reference.json").read_text())
    raw = next(value for name, value in figures.items() if name.startswith("aesthetic"))
    probability = next(value for name, value in figures.items() if name.startswith("nsfw"))
    frame = frame_of(unit_vectors(4))
    np.testing.assert_allclose(scored("aesthetic_score", frame, shared / "models") * 10, raw, rtol=1e-6)
    np.testing.assert_allclose(scored("nsfw_score", frame, shared / "models"), probability, atol=4e-6)


def test_both_published_forms_hold_the_same_heads(shared: Path, tmp_path: Path, nsfw_state: State) -> None:
    frame = frame_of(unit_vectors(50))
    state = weights.read_arrays(shared / "models" / PTH)
    put(tmp_path, HUB, safetensors.numpy.save({name: array.astype(np.float32) for name, array in state.items()}))
    with zipfile.ZipFile(shared / "models" / "clip_autokeras_binary_nsfw.zip") as archive:
        content = archive.read(VARIABLES)
    arrays = {}
    for name, offset in SAVED_MODEL_OFFSETS.items():
        shape = nsfw_state[name].shape[::-1]
        arrays[name] = np.frombuffer(content, "<f4", int(np.prod(shape)), offset).reshape(shape).T
    state_dict = as_pth({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    put(tmp_path, "clip_autokeras_binary_nsfw.zip", as_zip("clip_autokeras_binary_nsfw.pth", state_dict))
    for column in VERBS:
        np.testing.assert_array_equal(scored(column, frame, tmp_path), scored(column, frame, shared / "models"))


def test_photos_get_the_aesthetic_scores_that_are_known_of_them(shared: Path) -> None:
    embeddings = np.load(shared / "embeddings" / "things_test_clip_vit_l14.npy")
    raw = scored("aesthetic_score", frame_of(embeddings), shared / "models") * 10
    assert [round(value, 2) for value in (raw.min(), np.median(raw), raw.max())] == [3.72, 5.05, 5.80]


@pytest.mark.parametrize("column", VERBS)
def test_a_score_does_not_depend_on_the_rows_beside_it(model_dir: Path, column: str) -> None:
    embeddings = unit_vectors(5000)
    together = scored(column, frame_of(embeddings, npartitions=1), model_dir)
    apart = scored(column, frame_of(embeddings, npartitions=7), model_dir)
    np.testing.assert_array_equal(together, apart)


def test_aesthetic_score_is_clipped(tmp_path: Path, aesthetic_state: State) -> None:
    for bias, score in ((1e4, 1.0), (-1e4, 0.0)):
        put(tmp_path, PTH, as_pth({**aesthetic_state, "layers.7.bias": torch.tensor([bias])}))
        assert set(scored("aesthetic_score", frame_of(unit_vectors(3)), tmp_path)) == {score}


@pytest.mark.parametrize("column", VERBS)
def test_rows_without_a_usable_embedding_are_null(model_dir: Path, column: str) -> None:
    embeddings, valid = unit_vectors(8), np.array([True] * 6 + [False] * 2)
    embeddings[0, 5], embeddings[1, 5] = np.nan, np.inf
    result = scored(column, frame_of(embeddings, valid), model_dir)
    assert np.isnan(result).tolist() == [True, True, False, False, False, False, True, True]


@pytest.mark.parametrize("column", VERBS)
def test_partitions_with_no_embedding_and_with_no_row_are_scored(model_dir: Path, column: str) -> None:
    nothing = np.zeros((3, 768), dtype=np.float32)
    parts = [part_of(nothing, np.zeros(3, dtype=bool)), part_of(nothing[:0]), part_of(unit_vectors(2))]
    frame = dd.from_map(lambda i: parts[i], range(3), meta=parts[1])
    result = VERBS[column](frame, model_dir=model_dir).compute(scheduler="sync")
    assert result[column].isna().tolist() == [True, True, True, False, False]
    assert result[column].dtype == np.float32


def test_embeddings_from_plain_readers_are_scored(model_dir: Path, tmp_path: Path) -> None:
    embeddings = unit_vectors(10)
    pd.DataFrame({"embedding": list(embeddings)}).to_parquet(tmp_path / "plain.parquet")
    expected = scored("nsfw_score", frame_of(embeddings), model_dir)
    read = dd.read_parquet(tmp_path / "plain.parquet")
    np.testing.assert_array_equal(scored("nsfw_score", read, model_dir), expected)


@pytest.mark.parametrize(("column", "title"), [("aesthetic_score", "aesthetic head"), ("nsfw_score", "NSFW head")])
def test_another_encoders_embeddings_are_refused_by_name(model_dir: Path, column: str, title: str) -> None:
    told = rf"the {title} takes embeddings of dimension 768 and these have 1280; .*openai/clip-vit-large-patch14"
    with pytest.raises(ValueError, match=told):
        scored(column, frame_of(unit_vectors(4, dimension=1280)), model_dir)


@pytest.mark.parametrize("column", VERBS)
def test_a_frame_without_embeddings_is_refused_at_once(column: str) -> None:
    frame = frame_of(unit_vectors(2))[["image_id"]]
    with pytest.raises(KeyError, match=r"score_\w+ needs column 'embedding'; the frame has 'image_id'"):
        VERBS[column](frame)


def test_scoring_is_lazy_and_gives_the_columns_it_promises(model_dir: Path) -> None:
    def must_not_run(_: int) -> pd.DataFrame:
        raise AssertionError("computed")

    frame = dd.from_map(must_not_run, range(2), meta=part_of(unit_vectors(0)))
    result = score_nsfw(score_aesthetic(frame, model_dir=model_dir), model_dir=model_dir)
    assert list(result.columns) == ["image_id", "embedding", "aesthetic_score", "nsfw_score"]
    assert all(result.dtypes[column] == schema.dtype(schema.TYPES[column], column) for column in result.columns)


def test_a_consumer_of_other_columns_does_not_run_the_heads(model_dir: Path) -> None:
    result = score_nsfw(frame_of(unit_vectors(6)), model_dir=model_dir)
    for file in model_dir.iterdir():
        file.unlink()
    nsfw._load.cache_clear()
    assert len(result[["image_id"]].compute(scheduler="sync")) == 6
    with pytest.raises(FileNotFoundError, match="a worker does not have the weights"):
        result.compute(scheduler="sync")


def test_workers_load_the_weights_and_the_graph_does_not_carry_them(client: Client, model_dir: Path) -> None:
    embeddings = unit_vectors(20)
    parts = [part_of(embeddings[:12]), part_of(embeddings[12:12]), part_of(embeddings[12:])]
    frame = dd.from_map(lambda i: parts[i], range(3), meta=parts[1])
    result = score_nsfw(score_aesthetic(frame, model_dir=model_dir), model_dir=model_dir)
    added = len(cloudpickle.dumps(result.expr)) - len(cloudpickle.dumps(frame.expr))
    assert added < 20_000
    computed = result.compute()
    assert computed.columns.tolist() == ["image_id", "embedding", "aesthetic_score", "nsfw_score"]
    for column in VERBS:
        np.testing.assert_array_equal(
            computed[column].to_numpy(dtype=np.float64), scored(column, frame_of(embeddings), model_dir)
        )


def test_weights_that_change_after_the_call_are_noticed(client: Client, model_dir: Path, nsfw_state: State) -> None:
    frame = score_nsfw(frame_of(unit_vectors(4)), model_dir=model_dir)
    other = {**nsfw_state, "linear_4.bias": torch.tensor([9.0])}
    put(model_dir, "clip_autokeras_binary_nsfw.pth", as_pth(other))
    with pytest.raises(ValueError, match="not those the client chose"):
        frame.compute()


def test_model_dir_may_be_the_file_or_its_directory(model_dir: Path, aesthetic_state: State, nsfw_state: State) -> None:
    file = put(model_dir, "any name.pth", as_pth(aesthetic_state))
    assert aesthetic.weights_path(file) == file
    assert aesthetic.weights_path(str(model_dir)) == model_dir / PTH
    hub = put(model_dir, HUB, AESTHETIC_FORMS[HUB](aesthetic_state))
    assert aesthetic.weights_path(model_dir) == aesthetic.weights_path(hub.parent.parent) == hub
    assert aesthetic.weights_path(hub.parent) == hub
    unpacked = put(model_dir, f"unpacked/{VARIABLES}", saved_model_variables(nsfw_state))
    assert nsfw.weights_path(model_dir / "unpacked") == nsfw.weights_path(unpacked.parent.parent) == unpacked
    embeddings = frame_of(unit_vectors(3))
    np.testing.assert_array_equal(
        scored("nsfw_score", embeddings, unpacked), scored("nsfw_score", embeddings, model_dir)
    )


def test_another_models_safetensors_in_model_dir_is_passed_over(tmp_path: Path, aesthetic_state: State) -> None:
    put(tmp_path, "model.safetensors", safetensors.numpy.save({"vision": np.zeros(3)}))
    put(tmp_path / "plain", "model.safetensors", AESTHETIC_FORMS[HUB](aesthetic_state))
    told = offline_sentences(tmp_path, model_dir=tmp_path)[0]
    assert "model.safetensors of ttj/sac-logos-ava1-l14-linearMSE cannot be downloaded" in told
    assert aesthetic.weights_path(tmp_path / "plain") == tmp_path / "plain" / "model.safetensors"


@pytest.mark.parametrize(
    ("verb", "name", "content", "told"),
    [
        (score_aesthetic, PTH, b"<html>", "linearMSE.pth' cannot be read as model weights"),
        (
            score_aesthetic,
            PTH,
            as_pth({"x": torch.zeros(1)}),
            "does not hold LAION's aesthetic head .* no 'layers.0.weight'",
        ),
        (score_aesthetic, HUB, safetensors.numpy.save({"x": np.zeros(1)}), "does not hold LAION's aesthetic head"),
        (score_nsfw, "clip_autokeras_binary_nsfw.zip", as_zip(VARIABLES, b"short"), "it has 5 bytes and the published"),
        (score_nsfw, "clip_autokeras_binary_nsfw.zip", as_zip("x", b"")[:-30], "zip' cannot be read as model weights"),
        (score_nsfw, "clip_autokeras_binary_nsfw.zip", as_zip("x", b""), "zip' cannot be read as model weights"),
        (
            score_nsfw,
            "clip_autokeras_binary_nsfw.pth",
            as_pth({"norm.mean": torch.zeros(4)}),
            r"shape \(4,\), not \(768,\)",
        ),
    ],
)
def test_a_wrong_weights_file_is_named_at_the_call(
    tmp_path: Path, verb: Callable[..., Any], name: str, content: bytes, told: str
) -> None:
    path = put(tmp_path, name, content)
    with pytest.raises(ValueError, match=told) as raised:
        verb(frame_of(unit_vectors(2)), model_dir=tmp_path)
    assert str(path) in str(raised.value)


def test_a_damaged_zip_is_named(tmp_path: Path, nsfw_state: State) -> None:
    content = bytearray(as_zip(VARIABLES, saved_model_variables(nsfw_state)))
    content[5000] ^= 1
    put(tmp_path, "clip_autokeras_binary_nsfw.zip", bytes(content))
    with pytest.raises(ValueError, match=r"binary_nsfw.zip' is a damaged zip file"):
        score_nsfw(frame_of(unit_vectors(2)), model_dir=tmp_path)


def test_normalisation_must_be_possible(tmp_path: Path, nsfw_state: State) -> None:
    put(tmp_path, "clip_autokeras_binary_nsfw.pth", as_pth({**nsfw_state, "norm.variance": torch.zeros(768)}))
    with pytest.raises(ValueError, match=r"'norm\.variance' has values that are not positive"):
        score_nsfw(frame_of(unit_vectors(2)), model_dir=tmp_path)


def test_nsfw_weights_come_from_the_cache_where_model_dir_lacks_them(
    tmp_path: Path, nsfw_state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    cached = put(tmp_path / "cache" / "imgcurate", "clip_autokeras_binary_nsfw.pth", as_pth(nsfw_state))
    assert nsfw.weights_path(tmp_path / "models") == nsfw.weights_path() == cached


def test_the_published_zip_has_the_checksum_a_download_must_have(shared: Path) -> None:
    assert weights.fingerprint(shared / "models" / "clip_autokeras_binary_nsfw.zip") == nsfw.SHA256


def test_missing_weights_are_one_sentence_that_says_what_to_put_where(tmp_path: Path) -> None:
    first, second = offline_sentences(tmp_path, model_dir=None)
    assert "https://huggingface.co/ttj/sac-logos-ava1-l14-linearMSE" in first
    assert "put it into DIR/ttj/sac-logos-ava1-l14-linearMSE/model.safetensors with model_dir=DIR" in first
    assert "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/raw/main/clip_autokeras_binary_nsfw.zip" in second
    assert (
        f"DIR/clip_autokeras_binary_nsfw.zip with model_dir=DIR, or into {tmp_path}/imgcurate/clip_autokeras_binary_nsfw.zip"
        in second
    )


def test_a_model_dir_that_is_not_there_is_named(tmp_path: Path) -> None:
    for verb in VERBS.values():
        with pytest.raises(FileNotFoundError, match=r"model_dir '.*nowhere' does not exist"):
            verb(frame_of(unit_vectors(2)), model_dir=tmp_path / "nowhere")


def offline_sentences(cache: Path, model_dir: Path | None) -> list[str]:
    """What the two heads say of weights they cannot have, in a process with empty caches and no network."""
    script = f"""
from imgcurate.scores import aesthetic, nsfw
for head in (aesthetic, nsfw):
    try:
        print(head.weights_path({None if model_dir is None else str(model_dir)!r}))
    except FileNotFoundError as problem:
        print(problem)
"""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache),
        "XDG_CACHE_HOME": str(cache),
    }
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()
