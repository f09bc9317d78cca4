"""Which copy stays: of a photo and what was made smaller or poorer of it, the photo."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import write_tar
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_semantic import frame_of

import imgcurate as ic
from imgcurate import cli, demo
from imgcurate.dedup.graph import rank

ORIGINALS = {f"photos/b{number:02}" for number in range(len(demo.photos()))}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of photos, and of each a copy whose id comes first: at half its size, or saved at quality 60."""
    originals = demo.photos()
    members = []
    for number, photo in enumerate(originals):
        with Image.open(photo.path) as image:
            picture = image.convert("RGB")
        picture.thumbnail((480, 480))
        half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
        for name, made, quality in (
            ("a", picture if number % 2 else half, 60 if number % 2 else 90),
            ("b", picture, 90),
        ):
            buffer = io.BytesIO()
            made.save(buffer, "JPEG", quality=quality)
            members.append((f"{name}{number:02}.jpg", buffer.getvalue()))
    return write_tar(tmp_path_factory.mktemp("largest") / "photos.tar", sorted(members))


@pytest.fixture(scope="module")
def embedded(photos: Path, client: Client) -> Any:
    return ic.embed(ic.read_webdataset(photos), "efficientnet-lite0").persist()


def test_no_photo_goes_where_a_poorer_copy_of_it_is_there(embedded: Any) -> None:
    found = ic.semantic_duplicates(embedded)
    gone = set(found.removals().compute()["image_id"])
    assert not gone & ORIGINALS and len(gone) >= 15
    assert "eps=0.2 (for efficientnet-lite0), rule='cover', keep='largest'; " in repr(found)


@pytest.mark.parametrize("known", [True, False])
def test_no_photo_goes_where_a_copy_looks_like_it(embedded: Any, photos: Path, known: bool) -> None:
    frame = embedded if known else ic.read_webdataset(photos)
    found = ic.perceptual_duplicates(frame)
    with pytest.raises(ValueError, match=r"again with max_distance=7 \(of hashes, eps is the share of the 64 bits"):
        found.sweep([0.1])
    gone = set(found.removals().compute()["image_id"])
    assert not gone & ORIGINALS and len(gone) >= 15
    assert "pairs whose hashes differ in at most 4 of 64 bits; max_distance=4, rule='cover', keep='largest'; " in repr(
        found
    )
    assert "eps" not in repr(found).partition("see")[0]


def test_no_photo_goes_in_a_run(
    client: Client, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        cli.main(["run", str(photos), str(out), "--model", "efficientnet-lite0", "--dedup", "perceptual,semantic"]) == 0
    )
    images = pd.read_parquet(out / "images.parquet").set_index("image_id")
    assert images.loc[sorted(ORIGINALS), "kept"].all() and (~images["kept"]).sum() >= 15
    options = json.loads((out / "manifest.json").read_text())["options"]
    assert (options["eps"], options["keep"]) == (0.2, "largest")
    said = capsys.readouterr()
    assert "eps=0.2, for efficientnet-lite0" in said.err and "cosine >= 1 - 0.2" in said.out


def test_equal_bytes_are_equally_large_and_the_lowest_id_stays(photos: Path, client: Client, tmp_path: Path) -> None:
    image = photos.read_bytes()[512:1024]
    write_tar(tmp_path / "a.tar", [("y.jpg", image), ("x.jpg", image)])
    found = ic.exact_duplicates(ic.read_webdataset(tmp_path / "a.tar"))
    assert found.removals().compute()["image_id"].tolist() == ["a/y"]
    assert "2 images compared; 1 pair of equal bytes; rule='cover', keep='id'; " in repr(found)


def test_a_frame_that_does_not_know_how_large_images_are_says_what_is_taken_instead(client: Client) -> None:
    frame = frame_of(np.ones((2, 4)), width=[1, 2], height=[1, 2])
    assert "keep='hard' (the frame has no bytes)" in repr(ic.semantic_duplicates(frame))
    hashed = frame.assign(phash=np.uint64(7))[["image_id", "phash"]]
    assert "keep='id' (the frame has no width, height and bytes)" in repr(ic.perceptual_duplicates(hashed))
    asked = ic.semantic_duplicates(frame, eps=0.3, keep="hard")
    assert "eps=0.3, rule='cover', keep='hard'; " in repr(asked)
    default = ic.semantic_duplicates(frame)
    assert "eps=0.01 (the default, as the embeddings do not name their encoder)" in repr(default)
    assert "eps=0.015, rule" in repr(default.rethreshold(0.015))


def test_what_was_chosen_is_saved_and_loaded(client: Client, tmp_path: Path) -> None:
    found = ic.semantic_duplicates(frame_of(np.ones((2, 4))))
    found.save(tmp_path / "found")
    loaded = ic.Duplicates.load(tmp_path / "found")
    assert (loaded.chosen, loaded.kind, loaded.keep) == (found.chosen, "semantic", "hard")
    assert ".recall()" in repr(found) and ".recall()" not in repr(loaded)


SIDES = st.none() | st.integers(1, 4) | st.just(float("nan"))


@settings(max_examples=50)
@given(rows=st.lists(st.tuples(SIDES, SIDES, st.none() | st.integers(0, 3)), max_size=12))
def test_the_order_is_that_of_pixels_then_bytes_then_ids_and_what_is_not_known_is_last(rows: list[Any]) -> None:
    columns = [pa.array([row[at] for row in rows], pa.float64()) for at in range(3)]
    table = pa.table({"id": [f"{i:02}" for i in range(len(rows))], **{f"key{at}": columns[at] for at in range(3)}})

    def place(at: int) -> tuple[float, float, int]:
        width, height, size = (None if value is None or value != value else value for value in rows[at])
        pixels = width * height if width is not None and height is not None else -1
        return -pixels, -(size if size is not None else -1), at

    assert rank.order(table, "largest").tolist() == sorted(range(len(rows)), key=place)


def test_the_largest_stays_whatever_the_columns_types_are(client: Client) -> None:
    for kind in ("int64", "Int32", "float32", "int32[pyarrow]"):
        columns = {name: pd.array([1, 3, 2], dtype=kind) for name in ("width", "height", "bytes")}
        with dask.config.set(scheduler="synchronous"):
            found = ic.semantic_duplicates(frame_of(np.ones((3, 4)), **columns))
            assert found.selected.compute()["image_id"].tolist() == ["img00001"]
