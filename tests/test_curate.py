"""The whole job, with a real CLIP of a small configuration and heads of the published layout."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Member, image_bytes, read_tar, write_tar
from distributed import Client
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from imgcurate import cli, curate, identity
from imgcurate.cli.tables import table
from imgcurate.dedup import semantic_duplicates
from imgcurate.sources.parquet import read_parquet
from imgcurate.sources.webdataset import read_webdataset


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with vectors as long as ViT-L/14's, and both heads, all with random weights."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    # A network this small maps all pictures to nearly one vector unless its weights are larger than usual.
    vision = {**tower, "image_size": 32, "patch_size": 8, "initializer_factor": 5.0}
    config = CLIPConfig(text_config={**tower, "vocab_size": 50}, vision_config=vision, projection_dim=768)
    CLIPModel(config).save_pretrained(folder / "tiny-clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "tiny-clip"
    )
    aesthetic = _layers("layers.{}", (0, 2, 4, 6, 7), (768, 1024, 128, 64, 16, 1))
    aesthetic["layers.7.bias"] += 5
    torch.save(aesthetic, folder / "sac+logos+ava1-l14-linearMSE.pth")
    nsfw = _layers("linear_{}", (1, 2, 3, 4), (768, 64, 512, 256, 1))
    nsfw |= {"norm.mean": torch.zeros(768), "norm.variance": torch.full((768,), 1e-4)}
    torch.save(nsfw, folder / "clip_autokeras_binary_nsfw.pth")
    return folder


def _layers(name: str, places: Sequence[int], widths: Sequence[int]) -> dict[str, torch.Tensor]:
    state = {}
    for place, inputs, outputs in zip(places, widths[:-1], widths[1:], strict=True):
        layer = torch.nn.Linear(inputs, outputs)
        state[name.format(place) + ".weight"] = layer.weight.data * 1.7
        state[name.format(place) + ".bias"] = layer.bias.data
    return state


def sample(key: str, image: bytes, caption: str) -> list[Member]:
    return [(f"{key}.jpg", image), (f"{key}.txt", caption.encode()), (f"{key}.json", json.dumps({"key": key}).encode())]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Forty images in three shards: every fifth a byte for byte copy of an earlier one, and four that cannot be used."""
    for number in range(3):
        members: list[Member] = []
        for i in range(12):
            seed = 100 + 12 * number + i
            members += sample(f"{i:03d}", image_bytes(seed if i % 5 else 100 + i), f"caption {seed}")
        write_tar(tmp_path / "in" / f"{number:05d}.tar", members)
    write_tar(
        tmp_path / "in" / "00003.tar",
        [
            *sample("cut", image_bytes(1)[:300], "truncated"),
            *sample("empty", b"", "no bytes"),
            ("lonely.txt", b"no image"),
            *sample("html", b"<html>404</html>", "not found"),
        ],
    )
    return tmp_path / "in"


def run(shards: Path, out: Path, model_dir: Path, **options: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    manifest = curate(shards, out, model="tiny-clip", model_dir=model_dir, **{"eps": 1e-4, "report": False, **options})
    return manifest, pd.read_parquet(out / "images.parquet").set_index("image_id")


def written(out: Path) -> dict[str, bytes]:
    """Members of all written shards, under the ids that their sources gave the samples (by their captions)."""
    return {
        f"{shard.name}/{name}": content
        for shard in sorted((out / "shards").glob("*.tar"))
        for name, content in read_tar(shard)
    }


def test_every_image_is_accounted_for_with_its_reason(
    client: Client, shards: Path, tmp_path: Path, model_dir: Path
) -> None:
    manifest, images = run(shards, tmp_path / "out", model_dir)
    assert manifest["counts"] == {
        "read": 40,
        "errors": 4,
        "flagged": 0,
        "below_aesthetic": 0,
        "above_nsfw": 0,
        "duplicates": 6,
        "kept": 30,
        "shards": 1,
    }
    assert images.index.tolist() == read_webdataset(shards).compute()["image_id"].tolist()
    reasons = images["reason"]
    assert reasons["00003/lonely"].startswith("error: no image")
    assert reasons["00003/cut"] == "error: decode: truncated JPEG"
    assert reasons["00003/empty"] == "error: decode: empty file"
    duplicates = images[images["duplicate_of"].notna()]
    for row in duplicates.itertuples():
        assert re.fullmatch(rf"duplicate of {row.duplicate_of} \(1\.000\)", row.reason)
        assert images.loc[row.duplicate_of, "kept"]
        assert row.Index[-3:] == row.duplicate_of[-3:]
    assert (images["kept"] == reasons.isna()).all()
    assert images["width"].dropna().eq(40).all()
    assert images["embedding"].notna().sum() == 36


def test_kept_samples_are_those_of_the_sources_byte_for_byte(
    client: Client, shards: Path, tmp_path: Path, model_dir: Path
) -> None:
    _, images = run(shards, tmp_path / "out", model_dir, samples_per_shard=7)
    kept = images.index[images["kept"]]
    source = {f"{path.stem}/{name}": content for path in shards.glob("*.tar") for name, content in read_tar(path)}
    expected = [source[f"{image_id}.{extension}"] for image_id in kept for extension in ("jpg", "txt", "json")]
    shards_written = sorted((tmp_path / "out" / "shards").glob("*.tar"))
    assert len(shards_written) == 5
    assert [content for path in shards_written for _, content in read_tar(path)] == expected
    again = read_webdataset(tmp_path / "out" / "shards").compute()
    assert again["caption"].tolist() == images.loc[kept, "caption"].tolist()


def test_filters_keep_what_reaches_the_limit_and_say_by_how_much_the_rest_misses(
    client: Client, shards: Path, tmp_path: Path, model_dir: Path
) -> None:
    _, scores = run(shards, tmp_path / "all", model_dir, min_aesthetic=0, max_nsfw=1, dedup=False)
    assert scores["kept"].sum() == 36
    at_least, below = float(scores["aesthetic_score"].median()), float(scores["nsfw_score"].quantile(0.7))
    # The limits are scores that images have: one exactly at the aesthetic limit stays, one exactly at the NSFW limit goes.
    at_least = float(scores["aesthetic_score"].dropna().sort_values().iloc[18])
    below = float(scores["nsfw_score"].dropna().sort_values().iloc[27])
    manifest, images = run(shards, tmp_path / "out", model_dir, min_aesthetic=at_least, max_nsfw=below, dedup=False)
    low = scores["aesthetic_score"] < at_least
    high = scores["nsfw_score"] >= below
    usable = images["error"].isna()
    assert images["kept"].tolist() == (usable & ~low & ~high).tolist()
    assert manifest["counts"]["below_aesthetic"] == (usable & low).sum()
    assert manifest["counts"]["above_nsfw"] == (usable & ~low & high).sum()
    for row in images[usable & ~images["kept"]].itertuples():
        name, score, sign, limit = row.reason.split()
        value = getattr(row, name)
        assert float(score) == pytest.approx(value, abs=0.005)
        assert (float(score) < float(limit)) == (sign == "<") or float(score) == pytest.approx(float(limit), abs=1e-4)


def test_duplicates_are_looked_for_only_among_what_the_filters_keep(
    client: Client, tmp_path: Path, model_dir: Path
) -> None:
    image = image_bytes(5)
    write_tar(
        tmp_path / "in" / "x.tar",
        [*sample("a", image, "a"), *sample("b", image, "b"), *sample("c", image_bytes(6), "c")],
    )
    _, images = run(tmp_path / "in", tmp_path / "out", model_dir, min_aesthetic=1.0)
    assert images["reason"].str.startswith("aesthetic_score").all()
    assert images["duplicate_of"].isna().all()
    assert list((tmp_path / "out" / "shards").iterdir()) == []


def test_kinds_of_duplicates_follow_one_another_and_name_what_is_kept(
    client: Client, shards: Path, tmp_path: Path, model_dir: Path
) -> None:
    manifest, images = run(
        shards,
        tmp_path / "out",
        model_dir,
        dedup="semantic,exact",
        eps=0.9,
        keep=[("bytes", "max")],
        n_clusters=2,
        exact=True,
    )
    assert manifest["options"]["dedup"] == ["exact", "semantic"]
    removed = images[images["duplicate_of"].notna()]
    same = removed[removed["reason"].str.contains("(same bytes)", regex=False)]
    assert len(same) == 6 and len(removed) == manifest["counts"]["duplicates"] > 6
    assert images.loc[removed["duplicate_of"], "kept"].all()
    # What an exact copy equals may be removed later: then the image that is kept in its place is named too.
    for row in removed.itertuples():
        first = re.match(r"duplicate of (\S+) ", row.reason)[1]
        assert first == row.duplicate_of or row.reason.endswith(f", as which {row.duplicate_of} is kept")
    only, _ = run(shards, tmp_path / "only", model_dir, dedup=["perceptual"], max_distance=0)
    assert only["counts"]["duplicates"] >= 6 and only["n_clusters"] is None
    with pytest.raises(ValueError, match="'fuzzy' is unknown; give some of exact, perceptual, semantic"):
        run(shards, tmp_path / "no", model_dir, dedup="fuzzy")
    with pytest.raises(ValueError, match="0 to 63"):
        run(shards, tmp_path / "no", model_dir, dedup="perceptual", max_distance=64)
    assert not (tmp_path / "no").exists()


def test_a_run_estimates_which_share_of_the_pairs_its_clusters_have_found(
    client: Client, shards: Path, tmp_path: Path, model_dir: Path
) -> None:
    asked = {"eps": 0.3, "n_clusters": 6, "probes": 1}
    out = tmp_path / "out"
    manifest, _ = run(shards, out, model_dir, **asked)
    frame = read_parquet(out / "images.parquet")
    estimate = semantic_duplicates(frame[frame["error"].isnull()], **asked).recall()
    assert manifest["recall"] == estimate._asdict() and estimate.true_pairs > 0
    again, _ = run(shards, out, model_dir, **asked, samples_per_shard=5, overwrite=True, report=True)
    assert again["recall"] == manifest["recall"]
    assert f"about {estimate.recall:.1%} of the pairs found" in table(manifest)
    assert f"{100 * estimate.recall:.1f} % were found" in (out / "report.html").read_text()
    whole, _ = run(shards, tmp_path / "whole", model_dir, **asked | {"exact": True})
    assert whole["recall"] is None


def test_the_manifest_says_what_was_run(client: Client, shards: Path, tmp_path: Path, model_dir: Path) -> None:
    manifest, _ = run(shards, tmp_path / "out", model_dir, min_aesthetic=0.1, keep=[("width", "max")])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    assert manifest["options"]["keep"] == [["width", "max"]]
    assert set(manifest["models"]) == {"encoder", "aesthetic"}
    assert all(re.fullmatch("[0-9a-f]{64}", model["fingerprint"]) for model in manifest["models"].values())
    assert manifest["versions"]["torch"] == importlib.metadata.version("torch")
    names = [".run", "images.parquet", "manifest.json", "shards", "shards.parquet"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_what_is_kept_does_not_depend_on_the_batch_size(
    client: Client, shards: Path, tmp_path: Path, model_dir: Path
) -> None:
    _, one = run(shards, tmp_path / "one", model_dir, batch_size=1)
    _, many = run(shards, tmp_path / "many", model_dir, batch_size=50)
    assert one["reason"].fillna("").tolist() == many["reason"].fillna("").tolist()


def test_an_output_that_is_there_is_refused_or_replaced(
    client: Client, shards: Path, tmp_path: Path, model_dir: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        run(shards, out, model_dir)
    run(shards, out, model_dir, overwrite=True, samples_per_shard=5)
    run(shards, out, model_dir, overwrite=True)
    assert [path.name for path in (out / "shards").iterdir()] == ["00000.tar"]
    assert (out / "notes.txt").read_text() == "mine"


def test_shards_that_no_run_wrote_are_never_removed(
    client: Client, shards: Path, tmp_path: Path, model_dir: Path
) -> None:
    mine = write_tar(tmp_path / "out" / "shards" / "00000.tar", sample("mine", image_bytes(1), "mine"))
    before = mine.read_bytes()
    with pytest.raises(FileExistsError, match="not of an earlier run"):
        run(shards, tmp_path / "out", model_dir, overwrite=True)
    assert mine.read_bytes() == before


def test_the_demo_removes_only_what_a_demo_made(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "project" / "source" / "main.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert cli.main(["demo", str(tmp_path / "project"), "--overwrite"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    for _ in range(2):
        assert cli.main(["demo", str(tmp_path / "demo"), "--overwrite"]) == 0
        assert "found 29 of 29 planted copies" in capsys.readouterr().out
    assert cli.main(["demo", str(tmp_path / "demo")]) == 2


def test_the_shards_of_an_earlier_run_are_not_removed_as_its_output(
    client: Client, shards: Path, tmp_path: Path, model_dir: Path
) -> None:
    out = tmp_path / "out"
    run(shards, out, model_dir)
    before = [path.read_bytes() for path in sorted((out / "shards").iterdir())]
    with pytest.raises(FileExistsError, match="is a source"):
        run(out / "shards", out, model_dir, overwrite=True)
    assert [path.read_bytes() for path in sorted((out / "shards").iterdir())] == before


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"min_aesthetic": 5.0}, ValueError, "scores go from 0 to 1"),
        ({"samples_per_shard": 0}, ValueError, "at least 1"),
        ({"eps": 0.0}, ValueError, "eps"),
        ({"rule": "all"}, ValueError, "rule"),
        ({"keep": [("beauty", "max")]}, KeyError, "beauty"),
        ({"model": "tiny-clop"}, FileNotFoundError, "tiny-clop"),
        ({"model": "efficientnet-lite0", "max_nsfw": 0.5}, ValueError, "1280"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    client: Client,
    shards: Path,
    tmp_path: Path,
    model_dir: Path,
    options: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        curate(shards, tmp_path / "out", **{"model": "tiny-clip", "model_dir": model_dir, **options})
    assert not (tmp_path / "out").exists()


def test_a_job_that_fails_leaves_no_output_under_its_final_name(
    client: Client, shards: Path, tmp_path: Path, model_dir: Path
) -> None:
    (shards / "00009.tar").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"00009\.tar"):
        run(shards, tmp_path / "out", model_dir)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".run"]


def test_the_command_line_runs_the_job(
    client: Client, shards: Path, tmp_path: Path, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", *map(str, sorted(shards.glob("*.tar"))), str(tmp_path / "out"), "--model", "tiny-clip"]
    command += [
        "--model-dir",
        str(model_dir),
        "--eps",
        "0.0001",
        "--keep",
        "width:max,bytes:max",
        "--samples-per-shard",
        "8",
    ]
    command += ["--n-clusters", "1", "--scheduler", client.scheduler.address]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    table = [line.rsplit("%", 1)[0].split() for line in printed.out.splitlines()[:6]]
    assert [(" ".join(words[:-2]), words[-2]) for words in table] == [
        ("read", "40"),
        ("errors", "4"),
        ("below aesthetic", "0"),
        ("above NSFW", "0"),
        ("duplicates", "6"),
        ("kept", "30"),
    ]
    assert "embedding" in printed.err
    assert np.sum([len(read_tar(path)) for path in (tmp_path / "out" / "shards").iterdir()]) == 90
    assert client.status == "running"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere/*.tar", "{out}"], "no file matches 'nowhere/*.tar'"),
        (["run", "{shards}", "{out}", "--model", "no/such-model-anywhere", "--model-dir", "{shards}"], "no/such-model"),
        (["run", "{shards}", "{shards}"], "is a source and lies where the output would be written"),
    ],
)
def test_a_wrong_command_is_answered_in_one_sentence(
    client: Client,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
    model_dir: Path,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [argument.format(shards=shards, out=tmp_path / "out") for argument in arguments]
    if "--model" not in command:
        command += ["--model", "tiny-clip", "--model-dir", str(model_dir)]
    assert cli.main([*command, "--scheduler", client.scheduler.address]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("imgcurate: ")
    assert said in error
    assert "\n" not in error


def test_a_users_function_curates_and_is_named_in_the_manifest(client: Client, shards: Path, tmp_path: Path) -> None:
    def mean_colour(batch: np.ndarray) -> np.ndarray:
        return batch.reshape(len(batch), -1, 3).mean(axis=1)

    manifest = curate(shards, tmp_path / "out", model=mean_colour, eps=0.0001, measure=["sharpness"])
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    encoder = manifest["models"]["encoder"]
    assert manifest["options"]["model"] == encoder["name"] and encoder["name"].endswith("mean_colour")
    images = read_parquet(tmp_path / "out" / "images.parquet").compute()
    (known,) = identity.of_column(images["embedding"])
    assert (known.dimension, known.fingerprint) == (3, encoder["fingerprint"])
    assert images["sharpness"].notna().tolist() == images["error"].isna().tolist()
