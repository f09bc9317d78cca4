"""How samples are read is an option of a run: which member is the caption, which the image, and how large a text may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import image_bytes, write_tar
from distributed import Client

from imgcurate.run.curate import curate
from imgcurate.run.verify import verify


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Six stereo pictures with captions in three places; one text is long."""
    members = []
    for i in range(6):
        members += [(f"{i}.left.jpg", image_bytes(i)), (f"{i}.right.jpg", image_bytes(50 + i))]
        members += [(f"{i}.txt", b"txt %d" % i + b"!" * 1000 * (i == 3)), (f"{i}.text", b"text %d" % i)]
        members += [(f"{i}.json", b'{"caption": "json %d"}' % i)]
    return write_tar(tmp_path / "in/0.tar", members).parent


def run(shards: Path, out: Path, **options: Any) -> pd.DataFrame:
    curate(shards, out, model=mean_colour, dedup="exact", measure=["phash"], **options)
    return pd.read_parquet(out / "images.parquet")


def parts(out: Path, table: str) -> set[str]:
    return {path.name for path in (out / ".run" / table).glob("*.parquet")}


def test_captions_and_images_are_those_that_are_asked_for(client: Client, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(shards, tmp_path / "none")["error"].str.startswith("2 images in one sample").all()
    left = run(shards, out, image="left.jpg")
    assert left["caption"].tolist()[:2] == ["txt 0", "txt 1"] and left["kept"].all()
    assert verify(out).problems == ()
    with pytest.raises(FileExistsError, match=r"caption_from=txt there, caption_from=json:caption now"):
        run(shards, out, image="left.jpg", caption_from="json:caption")
    embedded = parts(out, "columns")
    captions = run(shards, out, image="left.jpg", caption_from="json:caption", overwrite=True)
    assert captions["caption"].tolist() == [f"json {i}" for i in range(6)] and parts(out, "columns") == embedded
    assert captions["digest"].tolist() == left["digest"].tolist()
    right = run(shards, out, image=".RIGHT.jpg", caption_from="text", overwrite=True)
    assert right["caption"].tolist() == [f"text {i}" for i in range(6)]
    assert right["member"].tolist() == [f"{i}.right.jpg" for i in range(6)]
    assert not set(right["digest"]) & set(left["digest"]) and verify(out).problems == ()
    run(shards, tmp_path / "fresh", image="right.jpg", caption_from="text")
    fresh = (tmp_path / "fresh/images.parquet/part.00000.parquet").read_bytes()
    assert (out / "images.parquet/part.00000.parquet").read_bytes() == fresh


def test_a_text_that_is_too_long_is_an_error_until_longer_ones_may_be(
    client: Client, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    short = run(shards, out, image="left.jpg", max_sidecar=100)
    assert short["reason"].fillna("").str.startswith("error: sidecar: ").tolist() == [i == 3 for i in range(6)]
    # As of any row with an error nothing is known of its image.
    assert short.loc[3, ["embedding", "digest", "width", "phash"]].isna().all()
    assert short.loc[[0, 1, 2, 4, 5], ["embedding", "digest", "width", "phash"]].notna().all(axis=None)
    embedded = parts(out, "columns")
    long = run(shards, out, image="left.jpg", overwrite=True)
    assert long["kept"].all() and long["embedding"].notna().all() and parts(out, "columns") == embedded
    assert long["phash"][0] == short["phash"][0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"caption_from": "json:"}, "caption_from='json:': give an extension"),
        ({"image": "."}, "image='.'"),
        ({"max_sidecar": 0}, "max_sidecar=0: it must be at least 1 byte"),
        ({"write": "parquet"}, "write='parquet': give one of shards, files"),
    ],
)
def test_options_that_are_none_are_refused_at_once(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "nowhere", tmp_path / "out", **options)


def test_image_files_have_no_members_to_choose_from(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    with pytest.raises(ValueError, match=r"image= says how samples of tar shards are read.*leave it out"):
        run(tmp_path / "a.jpg", tmp_path / "out", image="jpg")
    with pytest.raises(ValueError, match=r"caption_from= says how"):
        run(tmp_path / "a.jpg", tmp_path / "out", caption_from="text")
