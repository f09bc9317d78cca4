"""What is written: the bytes of the sources, in shards and Parquet that any reader opens."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from conftest import Member, image_bytes, read_tar, write_tar
from distributed import Client

from imgcurate import schema, vectors
from imgcurate.sinks.parquet import write_parquet
from imgcurate.sinks.webdataset import write_webdataset
from imgcurate.sources.files import read_files
from imgcurate.sources.parquet import read_parquet
from imgcurate.sources.webdataset import read_webdataset

GNU, PAX = tarfile.GNU_FORMAT, tarfile.PAX_FORMAT


def sample(key: str, seed: int) -> list[Member]:
    return [
        (f"{key}.jpg", image_bytes(seed)),
        (f"{key}.txt", f"caption {seed}".encode()),
        (f"{key}.json", b'{"seed":%d}' % seed),
    ]


def written(folder: Path) -> list[Member]:
    return [member for shard in sorted(folder.glob("*.tar")) for member in read_tar(shard)]


def test_kept_samples_are_copied_byte_for_byte(tmp_path: Path, client: Client) -> None:
    long = "folder/" + "n" * 180
    first = [*sample("a", 1), *sample(long, 2), ("c.cls", b"7"), ("c.jpg", image_bytes(3))]
    second = [*sample("d", 4), *sample("v1.0/é", 5)]
    write_tar(tmp_path / "in" / "0.tar", first, GNU)
    write_tar(tmp_path / "in" / "1.tar", second, PAX)
    frame = read_webdataset(tmp_path / "in")
    shards = write_webdataset(frame[frame["image_id"] != "0/a"], tmp_path / "out", samples_per_shard=3).compute()
    assert written(tmp_path / "out") == first[3:] + second
    assert shards["samples"].tolist() == [3, 1] and shards["renamed"].tolist() == [0, 0]
    assert [Path(url).stat().st_size for url in shards["url"]] == shards["bytes"].tolist()
    for url in shards["url"]:
        subprocess.run(["tar", "tf", url], check=True, capture_output=True)
    again = read_webdataset(tmp_path / "out").compute()
    assert again["error"].isna().all() and len(again) == 4


def test_writing_and_reading_again_gives_the_same_bytes_whatever_the_cuts(tmp_path: Path) -> None:
    members = [member for i in range(10) for member in sample(f"{i:03d}", i)]
    for number in range(2):
        write_tar(tmp_path / "in" / f"{number}.tar", members[15 * number : 15 * number + 15])
    frame = read_webdataset(tmp_path / "in")
    for samples_per_shard in (1, 3, 5, 100):
        folder = tmp_path / f"out{samples_per_shard}"
        shards = write_webdataset(frame, folder, samples_per_shard=samples_per_shard).compute()
        assert written(folder) == members
        assert shards["samples"].sum() == 10 and shards["samples"].max() == min(samples_per_shard, 10)


def test_members_that_stand_apart_are_written_together(tmp_path: Path) -> None:
    a, b = sample("a", 1), sample("b", 2)
    write_tar(tmp_path / "x.tar", [a[0], b[0], a[1], b[1], b[2], a[2]])
    write_webdataset(read_webdataset(tmp_path / "x.tar"), tmp_path / "out")
    assert written(tmp_path / "out") == a + b


def test_keys_that_collide_in_one_shard_get_keys_that_do_not(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / "in" / f"{number}.tar", sample("a", number))
    tricky = [("1/a.jpg", image_bytes(9)), ("s.jpg", image_bytes(10)), ("s.txt", b"s")]
    write_tar(tmp_path / "in" / "3.tar", [*tricky, ("a.jpg", b"x"), ("t.jpg", b"y"), ("a.txt", b"z")])
    shards = write_webdataset(read_webdataset(tmp_path / "in"), tmp_path / "out").compute()
    assert shards["renamed"].tolist() == [3]
    rows = read_webdataset(tmp_path / "out").compute()
    assert rows["image_id"].is_unique and rows["error"].isna().all()
    assert rows["image_id"].tolist() == [
        "00000/a",
        "00000/1/a-2",
        "00000/2/a",
        "00000/1/a",
        "00000/s",
        "00000/3/a",
        "00000/t",
    ]
    assert (
        rows["caption"].tolist()[:3] == ["caption 0", "caption 1", "caption 2"] and rows["caption"].tolist()[5] == "z"
    )
    contents = [content for _, content in written(tmp_path / "out")]
    assert contents[:9] == [content for number in range(3) for _, content in sample("a", number)]


def test_rows_with_an_error_are_left_out_and_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [*sample("a", 1), ("b.txt", b"no image")])
    with pytest.warns(UserWarning, match="1 rows have an error"):
        shards = write_webdataset(read_webdataset(tmp_path / "x.tar"), tmp_path / "out").compute()
    assert shards["samples"].tolist() == [1] and written(tmp_path / "out") == sample("a", 1)


def test_image_files_become_samples_with_their_sidecars(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("cat.v1.jpg", "cat.v1.png", "dog.jpg"):
        (folder / name).write_bytes(name.encode())
    (folder / "cat.v1.txt").write_text("a cat")
    (folder / "dog.json").write_text("{}")
    write_webdataset(read_files(folder), tmp_path / "out")
    assert written(tmp_path / "out") == [
        ("cat_v1.jpg", b"cat.v1.jpg"),
        ("cat_v1.txt", b"a cat"),
        ("cat_v1_png.png", b"cat.v1.png"),
        ("cat_v1_png.txt", b"a cat"),
        ("dog.jpg", b"dog.jpg"),
        ("dog.json", b"{}"),
    ]


def test_no_rows_make_no_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", sample("a", 1))
    frame = read_webdataset(tmp_path / "x.tar")
    assert len(write_webdataset(frame[frame["bytes"] < 0], tmp_path / "out")) == 0
    assert list((tmp_path / "out").iterdir()) == []


def test_shards_that_are_there_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "x.tar", sample("a", 1) + sample("b", 2))
    frame = read_webdataset(tmp_path / "in")
    write_webdataset(frame, tmp_path / "out", samples_per_shard=1)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_webdataset(frame, tmp_path / "out")
    write_webdataset(frame, tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000.tar"]


def test_shards_of_the_frame_are_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "in"
    shards = [write_tar(source / f"{number:05d}.tar", sample(str(number), number)) for number in range(3)]
    before = [shard.read_bytes() for shard in shards]
    (tmp_path / "link").symlink_to(source)
    frame = read_webdataset(source)
    frame = frame[frame["image_id"] == "00000/0"]
    for folder in (source, tmp_path / "link", source / ".." / "in"):
        with pytest.raises(FileExistsError, match="sources are never replaced; name another folder"):
            write_webdataset(frame, folder, overwrite=True)
    assert [path.read_bytes() for path in sorted(source.iterdir())] == before
    write_webdataset(frame, tmp_path, overwrite=True)  # of which the sources lie in a folder


def test_a_source_that_shrank_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", sample("a", 1))
    frame = dd.from_pandas(read_webdataset(path).compute(), npartitions=1)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"x.tar has changed since it was listed \(10,240 bytes then, 700 now\)"):
        write_webdataset(frame, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_sources_are_never_modified(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "in" / "x.tar", sample("a", 1))
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        write_webdataset(read_webdataset(path), tmp_path / "in")
    assert path.read_bytes() == before


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    frame = dd.from_pandas(schema.table({"image_id": ["a"], "url": ["b"]}), npartitions=1)
    with pytest.raises(KeyError, match="'member'"):
        write_webdataset(frame, tmp_path / "out")


def _with_embedding() -> tuple[dd.DataFrame, np.ndarray]:
    matrix = np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32)
    part = schema.table({"image_id": list("abcdef")})
    valid = np.array([True, True, False, True, True, True])
    return dd.from_pandas(part.assign(embedding=vectors.to_column(matrix, part, valid)), npartitions=2), matrix


def test_parquet_opens_everywhere_embeddings_included(tmp_path: Path, client: Client) -> None:
    frame, matrix = _with_embedding()
    files = write_parquet(frame, tmp_path / "p")
    assert [Path(file).name for file in files] == ["part.00000.parquet", "part.00001.parquet"]
    opened = {
        "pandas": pd.read_parquet(tmp_path / "p")["embedding"],
        "pyarrow": pq.read_table(tmp_path / "p").to_pandas()["embedding"],
        "dask": dd.read_parquet(tmp_path / "p").compute()["embedding"],
        "polars": pl.read_parquet(tmp_path / "p" / "*.parquet")["embedding"].to_pandas(),
        "imgcurate": read_parquet(tmp_path / "p").compute()["embedding"],
    }
    for reader, column in opened.items():
        found = vectors.to_matrix(column.reset_index(drop=True))
        assert np.isnan(found[2]).all() and np.array_equal(np.delete(found, 2, 0), np.delete(matrix, 2, 0)), reader


def test_some_columns_of_parquet_can_be_written(tmp_path: Path) -> None:
    # Where few columns of many are left, Dask reads several files as one partition, and says so late.
    wide = {"image_id": list("abcdef"), **{f"n{number}": range(6) for number in range(20)}}
    write_parquet(dd.from_pandas(pd.DataFrame(wide), npartitions=3), tmp_path / "p")
    read = read_parquet(tmp_path / "p")[["image_id"]]
    assert len(read.to_delayed()) < read.npartitions
    write_parquet(read, tmp_path / "q")
    assert read_parquet(tmp_path / "q").compute()["image_id"].tolist() == list("abcdef")


def test_parquet_can_be_rewritten_in_place(tmp_path: Path) -> None:
    frame, _ = _with_embedding()
    write_parquet(frame, tmp_path / "p")
    read = read_parquet(tmp_path / "p")
    with pytest.raises(FileExistsError):
        write_parquet(read, tmp_path / "p")
    write_parquet(read[read["image_id"] > "c"], tmp_path / "p", overwrite=True)
    assert read_parquet(tmp_path / "p").compute()["image_id"].tolist() == ["d", "e", "f"]
