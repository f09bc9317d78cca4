"""curate() and the notebook user's path, from tar to tar, on both backends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import read_tar
from test_curate import model_dir, shards  # noqa: F401

import imgcurate as ic
from gpu.conftest import CUDF, PANDAS, Backend, host, in_own_session
from imgcurate import curate
from imgcurate.cluster import gpu_available

# Byte for byte copies are embedded alike in float32 whatever batch they are in; narrower types may not be.
OPTIONS = {"model": "tiny-clip", "dtype": "float32"}


@pytest.fixture(params=["pandas", "cudf"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A backend with its cluster, which the whole job cannot do without."""
    if request.param == "cudf":
        request.getfixturevalue("gpu_client")
        yield CUDF
    else:
        if gpu_available() and in_own_session(request):
            pytest.skip("this session's client has GPUs; a session of the whole suite runs this half")
        request.getfixturevalue("client")
        yield PANDAS


@pytest.mark.parametrize("n_clusters", [None, 3])
def test_the_whole_job_keeps_one_of_each_copy_and_accounts_for_every_image(
    cluster: Backend,
    shards: Path,  # noqa: F811
    tmp_path: Path,
    model_dir: Path,  # noqa: F811
    n_clusters: int | None,
) -> None:
    out = tmp_path / "out"
    manifest = curate(
        shards,
        out,
        model_dir=model_dir,
        min_aesthetic=0,
        max_nsfw=1,
        eps=1e-4,
        n_clusters=n_clusters,
        samples_per_shard=7,
        **OPTIONS,
    )
    assert manifest["backend"] == cluster.name
    assert manifest["counts"] == {
        "read": 40,
        "errors": 4,
        "flagged": 0,
        "below_aesthetic": 0,
        "above_nsfw": 0,
        "duplicates": 6,
        "kept": 30,
        "shards": 5,
    }
    images = pd.read_parquet(out / "images.parquet", dtype_backend="pyarrow").set_index("image_id")
    assert images["embedding"].notna().sum() == images["aesthetic_score"].notna().sum() == 36
    duplicates = images[images["duplicate_of"].notna()]
    for row in duplicates.itertuples():
        assert row.Index[-3:] == row.duplicate_of[-3:] and images.loc[row.duplicate_of, "kept"]
        assert row.reason == f"duplicate of {row.duplicate_of} (1.000)"
    source = {f"{path.stem}/{name}": content for path in shards.glob("*.tar") for name, content in read_tar(path)}
    kept = images.index[images["kept"]]
    expected = [source[f"{image_id}.{extension}"] for image_id in kept for extension in ("jpg", "txt", "json")]
    written = sorted((out / "shards").glob("*.tar"))
    assert [content for path in written for _, content in read_tar(path)] == expected
    assert json.loads((out / "manifest.json").read_text())["counts"] == manifest["counts"]


def test_a_dataframe_users_path(
    cluster: Backend,
    shards: Path,  # noqa: F811
    tmp_path: Path,
    model_dir: Path,  # noqa: F811
) -> None:
    client = ic.connect()
    assert ic.connect() is client
    frame = ic.read_webdataset(shards)
    frame = ic.embed(frame, OPTIONS["model"], model_dir=model_dir, dtype=OPTIONS["dtype"])
    frame = ic.score_aesthetic(frame, model_dir=model_dir)
    frame = ic.score_nsfw(frame, model_dir=model_dir).persist()
    assert type(frame._meta).__module__.startswith(cluster.name)
    assert "aesthetic_score" in repr(frame) and len(frame) == 40 and len(frame.head(5)) == 5
    assert int(frame.groupby("url").size().compute().sum()) == 40
    usable = frame[frame.error.isnull() & (frame.aesthetic_score >= 0) & (frame.nsfw_score <= 1)]
    duplicates = ic.semantic_duplicates(usable, eps=1e-4)
    assert len(duplicates.removals()) == 6 and "36 images compared" in repr(duplicates)
    placed = frame.merge(duplicates.assignments, on="image_id")
    assert len(placed) == 36 and host(placed)["embedding"].notna().all()
    kept = ic.remove(usable, duplicates)
    shards_written = host(ic.write_webdataset(kept, tmp_path / "kept", samples_per_shard=20))
    assert shards_written["samples"].tolist() == [20, 10]
    assert len(ic.read_webdataset(tmp_path / "kept")) == 30
