"""Images whose stored bytes are the same: found by a digest, proven by comparison."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xxhash
from conftest import image_bytes, write_tar

import imgcurate as ic
from imgcurate.dedup.content import digest
from imgcurate.dedup.content.digest import digest_part, halves, same_bytes


def references(*rows: tuple[Any, Any, Any]) -> pd.DataFrame:
    """A partition of (url, offset, size) rows."""
    return pd.DataFrame(rows, columns=["url", "offset", "bytes"])


def files(folder: Path, *contents: bytes) -> pd.DataFrame:
    """A partition of files with those contents."""
    rows = []
    for number, data in enumerate(contents):
        path = folder / f"{number}.bin"
        path.write_bytes(data)
        rows.append((str(path), 0, len(data)))
    return references(*rows)


def forged_twins() -> tuple[bytes, bytes]:
    """Two contents that differ in eight bytes and have one XXH3-128, made with no search at all.

    XXH3 adds up, in each lane, the input itself and a product of the halves of the input under a public secret. Lanes whose low half
    is the secret's own multiply by 0, so that of their high halves only the sum counts.
    """
    lanes = (0, bytes.fromhex("b8fe6c39")), (64, bytes.fromhex("7c01812c"))

    def build(*halves: int) -> bytes:
        data = bytearray(b"x" * 300)
        for (start, zero), half in zip(lanes, halves, strict=True):
            data[start : start + 8] = zero + half.to_bytes(4, "little")
        return bytes(data)

    return build(1, 2), build(2, 1)


def test_equal_bytes_in_different_shards_have_one_digest(tmp_path: Path) -> None:
    one, two = image_bytes(1), image_bytes(2)
    write_tar(tmp_path / "a.tar", [("x.jpg", one), ("y.jpg", two)])
    write_tar(tmp_path / "b.tar", [("long/name/z.jpg", one), ("long/name/z.txt", b"a caption")])
    part = ic.read_webdataset(str(tmp_path)).compute(scheduler="synchronous")
    digests = digest_part(part)
    assert digests["error"].isna().all()
    assert digests["digest"].tolist() == [xxhash.xxh3_128_hexdigest(data) for data in (one, two, one)]
    high, low = halves(pa.chunked_array([digests["digest"].array.__arrow_array__()]))
    whole = [(int(a) << 64) | int(b) for a, b in zip(high, low, strict=True)]
    assert whole == [xxhash.xxh3_128_intdigest(data) for data in (one, two, one)]


def test_files_of_other_names_and_formats_are_told_by_their_bytes(tmp_path: Path) -> None:
    for name, data in {
        "a.jpg": image_bytes(1),
        "sub/b.png": image_bytes(1),
        "c.jpg": image_bytes(1, format="PNG"),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    part = ic.read_files(str(tmp_path)).compute(scheduler="synchronous").set_index("image_id")
    digests = digest_part(part)
    assert digests.loc["a.jpg"].equals(digests.loc["sub/b.png"])
    assert digests.loc["a.jpg", "digest"] != digests.loc["c.jpg", "digest"]


def test_what_cannot_be_read_has_an_error_and_no_digest(tmp_path: Path) -> None:
    part = files(tmp_path, b"abc", b"abcd", b"abc")
    part["bytes"] = [3, 9, None]
    part = pd.concat([part, references((str(tmp_path / "gone"), 0, 3))], ignore_index=True)
    digests = digest_part(part)
    assert digests["digest"].isna().tolist() == [False, True, True, True]
    assert digests["error"].tolist()[1:] == [
        "read: 4 bytes where there should be 9; the file is shorter than when it was listed",
        "read: the row has no offset and size",
        "read: No such file or directory",
    ]


def test_a_row_with_an_error_keeps_it_and_is_not_read(tmp_path: Path) -> None:
    digests = digest_part(files(tmp_path, b"abc", b"abc").assign(error=["no image", None]))
    assert digests["digest"].isna().tolist() == [True, False]
    assert digests["error"].tolist()[0] == "no image" and digests["error"].isna().tolist() == [False, True]


def test_a_digest_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    part = files(tmp_path, b"abc", b"xyz", b"abc").assign(
        digest=[xxhash.xxh3_128_hexdigest(b"abc"), None, None], error=[None, None, "mine"]
    )
    (tmp_path / "0.bin").unlink()
    digests = digest_part(part)
    known = [xxhash.xxh3_128_hexdigest(data) for data in (b"abc", b"xyz")]
    assert digests["digest"].tolist()[:2] == known and digests["digest"].isna().tolist() == [False, False, True]
    assert digests["error"].isna().tolist() == [True, True, False]


def test_a_column_of_other_digests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'digest' holds 'sha1:00', and a digest is 32 hexadecimal digits"):
        digest_part(files(tmp_path, b"abc").assign(digest="sha1:00"))


def test_bytes_are_not_decoded(tmp_path: Path) -> None:
    digests = digest_part(files(tmp_path, b"no image", b""))
    assert digests["error"].isna().all() and digests["digest"].notna().all()


def test_columns_are_text_with_the_index_of_the_partition(tmp_path: Path) -> None:
    part = files(tmp_path, b"a", b"b").set_index(pd.Index([9, 4], name="n"))
    for rows in (part, part[:0]):
        digests = digest_part(rows)
        assert digests.index.equals(rows.index)
        assert digests.dtypes.astype(str).to_dict() == {"error": "str", "digest": "str"}


def test_a_forged_collision_is_exposed_by_comparison(tmp_path: Path) -> None:
    one, two = forged_twins()
    part = files(tmp_path, one, two, one)
    digests = digest_part(part)
    assert one != two and digests["digest"].nunique() == 1
    first = part.iloc[[0, 0, 0]]
    assert same_bytes(first, part).tolist() == [True, False, True]


@pytest.mark.parametrize("block", [1, 3, 4, 1 << 20])
def test_a_difference_anywhere_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(digest, "_BLOCK", block)
    data = b"0123456789"
    changed = [bytes(data[:k]) + b"x" + data[k + 1 :] for k in range(len(data))]
    part = files(tmp_path, data, *changed, data)
    expected = [True, *[False] * len(data), True]
    assert same_bytes(part.iloc[[0] * len(part)], part).tolist() == expected


def test_ranges_of_shards_are_compared_by_position_not_by_index(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"..abc..abd..")
    (tmp_path / "b.bin").write_bytes(b"abdabc")
    a, b = str(tmp_path / "a.bin"), str(tmp_path / "b.bin")
    left = references((a, 7, 3), (a, 2, 3), (a, 2, 3), (b, 3, 3), (a, 2, 2))
    right = references((b, 0, 3), (b, 3, 3), (b, 0, 3), (a, 2, 3), (a, 7, 2))
    right.index = pd.Index([4, 3, 2, 1, 0])
    assert same_bytes(left, right).tolist() == [True, True, False, True, True]


def test_images_of_different_sizes_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest.storage, "open_input", lambda *_: pytest.fail("a file was opened"))
    assert same_bytes(references(("/a", 0, 3)), references(("/b", 0, 4))).tolist() == [False]


def test_what_cannot_be_read_is_not_the_same_and_does_not_spoil_its_neighbours(tmp_path: Path) -> None:
    part = files(tmp_path, b"abc", b"abc")
    there, twin = part["url"]
    gone = str(tmp_path / "gone")
    left = references((there, 0, 3), (gone, 0, 3), (there, 0, 9), (there, -1, 3), (there, None, 3), (there, 0, 3))
    right = references((twin, 0, 3), (gone, 0, 3), (twin, 0, 9), (twin, -1, 3), (twin, 0, 3), (None, 0, 3))
    assert same_bytes(left, right).tolist() == [True, False, False, False, False, False]


def test_no_rows_are_compared_with_no_rows_and_never_with_some() -> None:
    none = references()
    assert same_bytes(none, none).tolist() == []
    with pytest.raises(ValueError, match="row by row: 0 rows cannot be compared with 1"):
        same_bytes(none, references(("/a", 0, 3)))


def test_large_images_are_compared_in_bounded_memory(tmp_path: Path) -> None:
    size = 40 << 20
    data = np.random.default_rng(0).bytes(size)
    part = files(tmp_path, data, data[:-1] + bytes([data[-1] ^ 1]), data)
    del data
    tracemalloc.start()
    same = same_bytes(part.iloc[[0, 0]], part.iloc[[1, 2]])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert same.tolist() == [False, True]
    assert peak < 8 << 20


def test_storage_options_reach_the_store(tmp_path: Path) -> None:
    files(tmp_path, b"abc", b"abc")
    options = {"path": str(tmp_path), "target_protocol": "file"}
    part = references(("dir://0.bin", 0, 3), ("dir://1.bin", 0, 3))
    assert digest_part(part, options)["digest"].nunique() == 1
    assert same_bytes(part, part[::-1], options).all()
