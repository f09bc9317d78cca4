"""Frames with an embedding column, as a dataframe user treats them: the same rows come back from both backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import Member, image_bytes, read_tar, write_tar

import imgcurate as ic
from gpu.conftest import Backend, embedded, host
from imgcurate import schema, vectors
from imgcurate.sources.webdataset import list_shards

ROWS = 24
SOURCE = list(schema.SOURCE_COLUMNS)


def sample(key: str, seed: int) -> list[Member]:
    return [
        (f"{key}.jpg", image_bytes(seed)),
        (f"{key}.txt", f"é {seed}".encode()),
        (f"{key}.json", b'{"n": %d}' % seed),
    ]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards: one with a sample that has no image and one whose members stand apart, one whose sample has no caption."""
    a, b = sample("a", 1), sample("b", 2)
    write_tar(tmp_path / "in" / "0.tar", [a[0], b[0], a[1], b[1], b[2], a[2], ("lonely.txt", b"no image")])
    write_tar(tmp_path / "in" / "1.tar", [*sample("c", 3), *sample("d", 4)])
    write_tar(tmp_path / "in" / "2.tar", [("e.png", image_bytes(5, format="PNG"))])
    return tmp_path / "in"


@pytest.fixture
def part() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    scores = [None if i % 6 == 5 else i / ROWS for i in range(ROWS)]
    return embedded(
        rng.standard_normal((ROWS, 4)),
        np.arange(ROWS) % 6 != 5,
        aesthetic_score=scores,
        nsfw_score=scores[::-1],
        url=[f"shard{i % 3}" for i in range(ROWS)],
    )


@pytest.fixture
def frame(on: Backend, part: pd.DataFrame) -> Any:
    return on.frame(part, cuts=(5, 5, 17))


def by_id(part: pd.DataFrame) -> pd.DataFrame:
    return part.sort_values("image_id", ignore_index=True)


def check_rows(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Check that all columns of `expected` came back, each vector with its own row."""
    expected = by_id(expected)
    found = by_id(found)[list(expected.columns)].astype(expected.dtypes.drop("embedding").to_dict())
    np.testing.assert_array_equal(vectors.to_matrix(found["embedding"]), vectors.to_matrix(expected["embedding"]))
    pd.testing.assert_frame_equal(found.drop(columns="embedding"), expected.drop(columns="embedding"))


def test_shards_are_listed_as_on_the_cpu(on: Backend, shards: Path) -> None:
    frame = ic.read_webdataset(shards)
    assert type(frame._meta).__module__.startswith(on.name) and list(frame.columns) == SOURCE
    expected = list_shards([(str(shards / f"{i}.tar"), str(i)) for i in range(3)])
    assert len(frame) == len(expected) == 6 and frame.npartitions == 3
    pd.testing.assert_frame_equal(host(frame).reset_index(drop=True), expected)
    pd.testing.assert_frame_equal(
        host(frame[["image_id", "caption"]]).reset_index(drop=True), expected[["image_id", "caption"]]
    )


@pytest.mark.parametrize("on", ["cudf"], indirect=True)
def test_a_source_has_the_types_that_cudfs_own_readers_give(on: Backend, shards: Path, tmp_path: Path) -> None:
    frame = ic.read_webdataset(shards)
    assert frame.compute().dtypes.to_dict() == frame.dtypes.to_dict()
    ic.write_parquet(frame, tmp_path / "rows")
    again = ic.read_parquet(tmp_path / "rows")
    assert again.dtypes.to_dict() == frame.dtypes.to_dict()
    assert len(dd.concat([frame, again])) == 12
    both = frame.merge(again[["image_id", "offset"]].rename(columns={"offset": "again"}), on="image_id", how="left")
    assert host((both["offset"] == both["again"]).to_frame(name="same"))["same"].all()


def test_folders_are_listed_as_on_the_cpu(on: Backend, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(image_bytes(i))
    (tmp_path / "1.txt").write_text("é")
    frame = ic.read_files(tmp_path, rows_per_partition=2)
    found = host(frame)
    assert type(frame._meta).__module__.startswith(on.name)
    assert found["image_id"].tolist() == ["0.jpg", "1.jpg", "2.jpg"]
    assert found["caption"].fillna("-").tolist() == ["-", "é", "-"] and found["sample_offset"].isna().all()


def test_a_predicate_keeps_rows_whose_scores_say_so_and_drops_null_scores(frame: Any, part: pd.DataFrame) -> None:
    kept = frame[(frame.aesthetic_score >= 0.25) & (frame.nsfw_score < 0.75)]
    expected = part[((part.aesthetic_score >= 0.25) & (part.nsfw_score < 0.75)).fillna(False).astype(bool)]
    assert 0 < len(expected) < ROWS and len(kept) == len(expected)
    check_rows(host(kept), expected)


def test_a_frame_shows_itself(frame: Any, part: pd.DataFrame) -> None:
    assert "embedding" in repr(frame) and len(frame) == ROWS
    check_rows(host(frame.head(3)), part.head(3))
    assert host(frame.tail(2))["image_id"].tolist() == part["image_id"].tolist()[-2:]
    assert host(frame[["image_id"]].head(7, npartitions=-1))["image_id"].tolist() == part["image_id"].tolist()[:7]


def test_a_groupby_beside_embeddings(frame: Any, part: pd.DataFrame) -> None:
    means = host(frame.groupby("url")["aesthetic_score"].mean().reset_index()).sort_values("url")
    expected = part.groupby("url")["aesthetic_score"].mean()
    assert means["url"].tolist() == expected.index.tolist()
    np.testing.assert_allclose(means["aesthetic_score"].astype(float), expected.astype(float), rtol=1e-6)
    sizes = host(frame.groupby("url").size().to_frame(name="n").reset_index())
    assert sizes["n"].tolist() == [8, 8, 8]


def test_a_merge_keeps_each_vector_with_its_row(on: Backend, frame: Any, part: pd.DataFrame) -> None:
    labels = schema.table({"image_id": part["image_id"].tolist()[::-1], "width": list(range(ROWS))})
    merged = frame.merge(on.frame(labels, cuts=(10,)), on="image_id")
    check_rows(host(merged), part.assign(width=schema.table({"width": list(range(ROWS))[::-1]})["width"]))


def test_shuffles_sorts_and_drop_duplicates_keep_each_vector_with_its_row(
    on: Backend, frame: Any, part: pd.DataFrame
) -> None:
    check_rows(host(frame.shuffle("image_id")), part)
    check_rows(host(frame.repartition(npartitions=2)), part)
    check_rows(host(frame.sort_values("image_id", ascending=False)), part)
    firsts = host(frame.drop_duplicates(subset=["url"]))
    assert sorted(firsts["url"]) == ["shard0", "shard1", "shard2"]
    check_rows(firsts, part[part["image_id"].isin(firsts["image_id"])])
    if (
        on.name == "pandas"
    ):  # of lists, dask-cudf 26.10 gives a concatenation the numbers of a made-up row, and casts the others
        check_rows(host(dd.concat([frame, frame])).drop_duplicates("image_id"), part)


def test_plain_to_parquet_writes_what_pandas_reads(frame: Any, part: pd.DataFrame, tmp_path: Path) -> None:
    frame[["image_id", "url", "aesthetic_score", "nsfw_score"]].to_parquet(tmp_path / "plain")
    found = pd.read_parquet(tmp_path / "plain", dtype_backend="pyarrow").sort_values("image_id")
    assert found["image_id"].tolist() == part["image_id"].tolist()
    assert found["aesthetic_score"].isna().tolist() == part["aesthetic_score"].isna().tolist()


def test_parquet_has_the_schema_of_the_cpus_and_any_reader_opens_it(
    on: Backend, frame: Any, part: pd.DataFrame, tmp_path: Path
) -> None:
    files = ic.write_parquet(frame, tmp_path / "rows")
    assert len(files) == 4
    for file in files:
        written = pq.read_schema(file)
        assert written.metadata is None or b"pandas" not in written.metadata
        assert [written.field(name).type for name in ("image_id", "aesthetic_score")] == [
            schema.TYPES[name] for name in ("image_id", "aesthetic_score")
        ]
    check_rows(pd.read_parquet(tmp_path / "rows", dtype_backend="pyarrow"), part)
    again = ic.read_parquet(tmp_path / "rows")
    assert type(again._meta).__module__.startswith(on.name) and len(again) == ROWS
    check_rows(host(again), part)
    check_rows(
        host(ic.read_parquet(tmp_path / "rows", columns=["image_id", "embedding"])), part[["image_id", "embedding"]]
    )


def test_embeddings_of_other_writers_are_read(on: Backend, part: pd.DataFrame, tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    lists = [None if value is pd.NA or value is None else list(value) for value in part["embedding"].tolist()]
    polars.DataFrame({"image_id": part["image_id"].tolist(), "embedding": lists}).write_parquet(
        tmp_path / "other.parquet"
    )
    read = ic.read_parquet(tmp_path / "other.parquet").compute()
    found = vectors.to_numpy(vectors.to_matrix(read["embedding"]))
    np.testing.assert_array_equal(found, vectors.to_matrix(part["embedding"]))


def test_kept_samples_are_written_byte_for_byte(on: Backend, shards: Path, tmp_path: Path) -> None:
    frame = ic.read_webdataset(shards)
    with pytest.warns(UserWarning, match="1 rows have an error"):
        written = ic.write_webdataset(frame[frame.image_id != "1/c"], tmp_path / "out", samples_per_shard=2)
    assert host(written)["samples"].tolist() == [2, 2]
    expected = [*sample("a", 1), *sample("b", 2), *sample("d", 4), ("e.png", image_bytes(5, format="PNG"))]
    assert [member for i in range(2) for member in read_tar(tmp_path / "out" / f"0000{i}.tar")] == expected
