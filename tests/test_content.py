"""Digests of stored bytes, and the comparison that confirms them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import xxhash
from conftest import image_bytes, write_tar

from imgcurate.dedup.content import digest_part, same_bytes
from imgcurate.sources.webdataset import read_webdataset


def test_a_digest_is_that_of_the_images_bytes_in_the_shard(tmp_path: Path) -> None:
    contents = [image_bytes(1), b"no image", b"", image_bytes(1)]
    write_tar(tmp_path / "a.tar", [(f"{i}.jpg", content) for i, content in enumerate(contents)])
    part = read_webdataset(tmp_path / "a.tar").compute()
    found = digest_part(part)
    expected = [xxhash.xxh3_128_intdigest(content) for content in contents]
    assert [
        (int(h) << 64) + int(low) for h, low in zip(found["digest_high"], found["digest_low"], strict=True)
    ] == expected
    assert found["error"].isna().all()


def test_bytes_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    part = pd.DataFrame({"url": [str(tmp_path / "x"), str(tmp_path / "y")], "offset": [1, 0], "size": [9, 3]})
    found = digest_part(part)
    assert found["digest_low"].isna().all() and found["error"].str.startswith("read: ").all()


def test_only_equal_bytes_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3 * 2**20) + b"1")
    (tmp_path / "b").write_bytes(bytes(3 * 2**20) + b"2")
    rows = [("a", 0, 3 * 2**20 + 1), ("a", 0, 3 * 2**20), ("a", 5, 7), ("a", 0, 3), ("none", 0, 3), ("a", 0, 2**30)]
    others = [("b", 0, 3 * 2**20 + 1), ("b", 0, 3 * 2**20), ("b", 9, 7), ("b", 0, 4), ("a", 0, 3), ("b", 0, 2**30)]
    a, b = (
        pd.DataFrame([(str(tmp_path / name), at, size) for name, at, size in part], columns=["url", "offset", "size"])
        for part in (rows, others)
    )
    assert same_bytes(a, b).tolist() == [False, True, True, False, False, False]
