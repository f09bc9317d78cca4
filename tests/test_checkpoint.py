"""checkpoint(): what is there and still holds is read, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars
import pytest
from conftest import image_bytes, write_tar
from distributed import Client

import imgcurate as ic
from imgcurate import identity, parts


def add_shard(folder: Path, number: int, images: int = 6) -> None:
    members = [(f"{i:03d}.jpg", image_bytes(100 * number + i)) for i in range(images)]
    write_tar(folder / f"{number:05d}.tar", members)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(4):
        add_shard(tmp_path / "in", number)
    return tmp_path / "in"


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).mean(axis=1)


def other_colour(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).max(axis=1)


def embedded(shards: Path, model: Any = mean_colour, **options: Any) -> Any:
    frame = ic.embed(ic.read_webdataset(shards), model, **options)
    return frame[frame.width > 10].assign(wide=frame.width * 2)


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def test_a_frame_comes_back_as_it_was_in_order_and_type(client: Client, shards: Path, tmp_path: Path) -> None:
    frame = embedded(shards)
    back = ic.checkpoint(frame, tmp_path / "work")
    pd.testing.assert_frame_equal(
        back.compute().reset_index(drop=True), frame.compute().reset_index(drop=True), check_dtype=True
    )
    assert back.npartitions == 4
    (known,) = identity.of_column(back.compute()["embedding"])
    assert known.name.endswith("mean_colour")
    assert len(polars.read_parquet(tmp_path / "work" / "*.parquet")) == len(pd.read_parquet(tmp_path / "work")) == 24


def test_what_is_there_is_not_computed_again(client: Client, shards: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    ic.checkpoint(embedded(shards), work)
    before = stamps(work)
    assert len(before) == 4
    ic.checkpoint(embedded(shards), work)
    assert stamps(work) == before
    # Of one that is gone and one that is torn, both and no other.
    gone, torn = sorted(before)[:2]
    (work / gone).unlink()
    os.truncate(work / torn, (work / torn).stat().st_size // 2)
    ic.checkpoint(embedded(shards), work)
    after = stamps(work)
    assert set(after) == set(before)
    assert {name for name in before if after[name] != before[name]} == {gone, torn}


def test_only_what_was_added_or_changed_is_computed(client: Client, shards: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    ic.checkpoint(embedded(shards), work)
    before = stamps(work)
    add_shard(shards, 9)
    add_shard(shards, 1, images=7)
    frame = ic.checkpoint(embedded(shards), work)
    after = stamps(work)
    assert len(after) == 5 and len(set(after.items()) & set(before.items())) == 3
    assert frame["image_id"].compute().tolist() == embedded(shards)["image_id"].compute().tolist()
    (shards / "00000.tar").unlink()
    assert len(ic.checkpoint(embedded(shards), work)) == 25
    assert len(stamps(work)) == 4


@pytest.mark.parametrize("change", [{"model": other_colour}, {"image_size": 32}, {"measure": ["sharpness"]}])
def test_other_options_and_models_are_computed_again(
    client: Client, shards: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    before = ic.checkpoint(embedded(shards), tmp_path / "work").compute()
    names = set(stamps(tmp_path / "work"))
    after = ic.checkpoint(embedded(shards, **change), tmp_path / "work").compute()
    assert not names & set(stamps(tmp_path / "work"))
    assert len(after) == len(before)


def test_a_predicate_is_part_of_what_a_partition_is_made_of(client: Client, shards: Path) -> None:
    frame = ic.read_webdataset(shards)
    keys = parts.keys_of(frame[frame["bytes"] > 100])
    assert len(set(keys)) == 4
    again = ic.read_webdataset(shards)
    assert keys == parts.keys_of(again[again["bytes"] > 100])
    assert not set(keys) & set(parts.keys_of(frame[frame["bytes"] > 101]))


def test_partitions_that_mix_are_keyed_by_all_that_they_hold(client: Client, shards: Path) -> None:
    frame = ic.read_webdataset(shards)
    before = parts.keys_of(frame.repartition(npartitions=2))
    add_shard(shards, 0, images=7)
    after = parts.keys_of(ic.read_webdataset(shards).repartition(npartitions=2))
    assert before[0] != after[0] and before[1] == after[1]


def test_what_delayed_tasks_were_made_of_is_known(client: Client, tmp_path: Path) -> None:
    tests = dd.from_dict({"image_id": ["test"], "embedding": [[1.0, 0, 0, 0]]}, npartitions=1)

    def found() -> Any:
        return ic.decontaminate(ic.read_parquet(tmp_path / "images"), tests)

    def write(second: int) -> None:
        rows = {"image_id": ["a", "b"], "embedding": [[1.0, 0, 0, 0.01], [0, 1.0, second, 0]]}
        ic.write_parquet(dd.from_dict(rows, npartitions=1), tmp_path / "images", overwrite=True)

    write(0)
    keys = parts.keys_of(found())
    assert keys == parts.keys_of(found())
    assert ic.checkpoint(found(), tmp_path / "work").compute()["image_id"].tolist() == ["a"]
    write(1)
    assert not set(keys) & set(parts.keys_of(found()))


def test_numbers_texts_and_dates_of_the_users_own_come_back(client: Client, tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "image_id": ["a", "b", "c"],
            "count": np.arange(3),
            "when": pd.to_datetime(["2026-01-01"] * 3),
            "kind": pd.Categorical(["x", "y", "x"]),
            "missing": [1.0, None, 2.0],
        }
    )
    frame = dd.from_pandas(rows, npartitions=2, sort=False)
    back = ic.checkpoint(frame, tmp_path / "work")
    pd.testing.assert_frame_equal(back.compute().reset_index(drop=True), frame.compute().reset_index(drop=True))


def test_a_folder_that_holds_something_else_is_refused(client: Client, shards: Path, tmp_path: Path) -> None:
    ic.write_parquet(ic.read_webdataset(shards), tmp_path / "mine")
    before = stamps(tmp_path / "mine")
    with pytest.raises(FileExistsError, match="not written by checkpoint"):
        ic.checkpoint(ic.read_webdataset(shards), tmp_path / "mine")
    assert stamps(tmp_path / "mine") == before


def test_a_damaged_part_is_named_when_it_is_read(client: Client, shards: Path, tmp_path: Path) -> None:
    frame = ic.checkpoint(ic.read_webdataset(shards), tmp_path / "work")
    name = sorted(stamps(tmp_path / "work"))[0]
    content = bytearray((tmp_path / "work" / name).read_bytes())
    content[40] ^= 1  # in a page, which the footer says nothing of
    (tmp_path / "work" / name).write_bytes(content)
    with pytest.raises(parts.DamagedPart, match=name):
        frame.compute()


def test_a_part_that_is_torn_or_unfinished_is_not_there(tmp_path: Path) -> None:
    part = pd.DataFrame({"image_id": pd.array(["a", "b"], dtype="string[pyarrow]")})
    made = parts.write_part(part, str(tmp_path), "0" * 32)
    assert parts.there(str(tmp_path)) == {"0" * 32: made} and made.rows == 2
    shutil.copy(tmp_path / made.name, tmp_path / ".unfinished-0a1b")
    os.truncate(tmp_path / made.name, 20)
    assert parts.there(str(tmp_path)) == {}


def test_two_parts_of_equal_content_are_equal_byte_for_byte(tmp_path: Path) -> None:
    part = pd.DataFrame({"image_id": pd.array(["a", "b"], dtype="string[pyarrow]")})
    one, other = (parts.write_part(part, str(tmp_path / name), "1" * 32) for name in ("x", "y"))
    assert one == other
    assert (tmp_path / "x" / one.name).read_bytes() == (tmp_path / "y" / other.name).read_bytes()


def test_errors_of_reading_are_counted_in_the_name(tmp_path: Path) -> None:
    errors = pd.array(["read: no such file", None, "decode: empty file"], dtype="string[pyarrow]")
    made = parts.write_part(pd.DataFrame({"error": errors}), str(tmp_path), "2" * 32)
    assert made.unread == 1 and made.name.endswith(".1-unread.parquet")
    better = parts.write_part(pd.DataFrame({"error": errors[1:]}), str(tmp_path), "2" * 32)
    assert parts.there(str(tmp_path)) == {"2" * 32: better}


def test_persisted_frames_and_frames_of_which_some_were_removed_can_be_kept(
    client: Client, shards: Path, tmp_path: Path
) -> None:
    frame = embedded(shards).persist()
    expected = frame["image_id"].compute().tolist()
    assert ic.checkpoint(frame, tmp_path / "a")["image_id"].compute().tolist() == expected
    assert len(set(parts.keys_of(frame[frame.width > 20]))) == 4
    kept = ic.remove(frame, pd.Series(expected[:3], name="image_id"))
    assert ic.checkpoint(kept, tmp_path / "b")["image_id"].compute().tolist() == expected[3:]
    found = ic.semantic_duplicates(frame, eps=1e-6)
    assert len(ic.checkpoint(ic.remove(frame, found), tmp_path / "c")) == len(expected) - len(found.removals())


@pytest.mark.parametrize("filesystem", ["fsspec", "arrow"])
def test_a_parquet_file_that_was_written_again_is_another(tmp_path: Path, filesystem: str) -> None:
    for number in range(3):
        pd.DataFrame({"x": range(number, number + 5)}).to_parquet(tmp_path / f"{number}.parquet")

    def keys() -> list[str]:
        return parts.keys_of(dd.read_parquet(tmp_path, filesystem=filesystem)[["x"]])

    before = keys()
    assert keys() == before
    pd.DataFrame({"x": range(7, 12)}).to_parquet(tmp_path / "0.parquet")
    assert keys() != before
