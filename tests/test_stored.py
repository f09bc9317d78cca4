"""exact_duplicates and perceptual_duplicates on real files: what is equal, what looks alike, and what only claims to be."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from conftest import image_bytes, write_tar
from distributed import Client
from PIL import Image

import imgcurate as ic


def shards(folder: Path) -> Any:
    """Two shards: an original, equal bytes in both, the same picture saved again, another picture, a broken one."""
    original = image_bytes(1, (200, 150))
    again = io.BytesIO()
    Image.open(io.BytesIO(original)).resize((150, 112)).save(again, "JPEG", quality=70)
    write_tar(
        folder / "a.tar", [("one.jpg", original), ("other.jpg", image_bytes(2, (200, 150))), ("bad.jpg", b"<html>")]
    )
    write_tar(folder / "b.tar", [("copy.jpg", original), ("again.jpg", again.getvalue()), ("bad.jpg", b"<html>")])
    return ic.read_webdataset(str(folder / "*.tar"))


def named(found: ic.Duplicates) -> dict[str, str]:
    pairs = found.pairs.compute()
    return dict(zip(pairs["image_id"], pairs["duplicate_of"], strict=True))


def test_equal_bytes_are_exact_duplicates_whatever_they_hold(client: Client, tmp_path: Path) -> None:
    found = ic.exact_duplicates(shards(tmp_path))
    assert named(found) == {"b/copy": "a/one", "b/bad": "a/bad"}
    assert found.pairs.compute()["similarity"].tolist() == [1, 1]
    assert (found.n_rows, found.n_compared) == (6, 6) and "see .pairs" in repr(found)
    kept = ic.remove(shards(tmp_path), found)["image_id"].compute().tolist()
    assert kept == ["a/one", "a/other", "a/bad", "b/again"]


def test_pictures_that_look_alike_are_perceptual_duplicates(client: Client, tmp_path: Path) -> None:
    frame = shards(tmp_path)
    found = ic.perceptual_duplicates(frame)
    assert named(found) == {"b/copy": "a/one", "b/again": "a/one"}
    assert (found.n_rows, found.n_compared, found.n_excluded) == (6, 4, 2)
    assert named(ic.perceptual_duplicates(frame, keep=[("bytes", "min")])) == {"a/one": "b/again", "b/copy": "b/again"}


def test_a_column_of_hashes_is_used_and_compared_to_the_bit(client: Client) -> None:
    hashes = np.array([0, 0b111, 0b1111, 2**64 - 1, 0], dtype=np.uint64)
    part = pd.DataFrame({"image_id": list("abcde"), "phash": pd.array(hashes, "uint64[pyarrow]")})
    frame = dd.from_pandas(part, npartitions=2)
    found = ic.perceptual_duplicates(frame, max_distance=4)
    assert named(found) == {"b": "a", "c": "a", "e": "a"}
    assert sorted(found.pairs.compute()["similarity"]) == [1 - 4 / 64, 1 - 3 / 64, 1]
    assert found.sweep([1 / 64, 3 / 64])["removed"].tolist() == [2, 2]
    assert named(ic.perceptual_duplicates(frame, max_distance=0)) == {"e": "a"}
    with pytest.raises(TypeError, match="unsigned 64-bit"):
        ic.perceptual_duplicates(frame.assign(phash=frame["image_id"]))


def test_a_hash_that_two_files_share_does_not_make_them_copies(client: Client, tmp_path: Path) -> None:
    found = ic.exact_duplicates(shards(tmp_path).assign(digest="0" * 32))
    assert named(found) == {"b/copy": "a/one", "b/bad": "a/bad"}


def test_images_with_a_digest_are_read_only_to_be_compared(client: Client, tmp_path: Path) -> None:
    frame = dd.from_pandas(ic.measure(shards(tmp_path), ["width"]).compute(), npartitions=2)
    (tmp_path / "a.tar").rename(tmp_path / "away.tar")
    found = ic.exact_duplicates(frame)
    assert found.n_compared == 4 and named(found) == {}
    (tmp_path / "away.tar").rename(tmp_path / "a.tar")
    assert named(ic.exact_duplicates(frame)) == {"b/copy": "a/one"}


@pytest.mark.parametrize("distance", [-1, 64, 2.5, None])
def test_a_distance_out_of_range_is_refused(tmp_path: Path, distance: Any) -> None:
    with pytest.raises(ValueError, match="whole number of bits, 0 to 63"):
        ic.perceptual_duplicates(shards(tmp_path), max_distance=distance)


def test_orders_that_need_an_embedding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ranks by distance from a centroid, and exact_duplicates has none"):
        ic.exact_duplicates(shards(tmp_path), keep="hard")
    with pytest.raises(KeyError, match="perceptual_duplicates needs column"):
        ic.perceptual_duplicates(shards(tmp_path)[["image_id"]])
