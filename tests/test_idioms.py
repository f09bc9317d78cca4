"""What users of pandas and Dask type: the same answers on our frames as on frames of their own, and files that their readers open."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import image_bytes, write_tar
from pandas.testing import assert_frame_equal, assert_series_equal

import imgcurate as ic
from imgcurate import schema, vectors

CAPTIONS = ["A frog.", None, "A dog.", "A frog.", "two dogs", ""]
IDS = [f"{shard}/{key}" for shard in range(2) for key in "abcdef"]


@pytest.fixture(autouse=True)
def in_process() -> Iterator[None]:
    with dask.config.set({"scheduler": "synchronous"}), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two equal shards of six images, one caption of each missing and one image of each damaged; measured, scored and with vectors."""
    folder = tmp_path_factory.mktemp("idioms")
    for number in range(2):
        members = []
        for row, (key, caption) in enumerate(zip("abcdef", CAPTIONS, strict=True)):
            image = image_bytes(row, size=(40 * (row + 1), 90))
            members.append((f"{key}.jpg", image[:200] if key == "e" else image))
            members += [] if caption is None else [(f"{key}.txt", f"{caption}\n".encode())]
        write_tar(folder / f"{number}.tar", members)
    frame = ic.measure(ic.read_webdataset(folder), ["width", "height", "phash"])
    frame = frame.assign(aesthetic_score=(frame.width / 240).astype("float32"))
    return frame.map_partitions(_with_vectors, meta=_with_vectors(frame._meta))


def _with_vectors(part: pd.DataFrame) -> pd.DataFrame:
    matrix = np.arange(3 * len(part), dtype=np.float32).reshape(len(part), 3)
    return part.assign(embedding=vectors.to_column(matrix, part, part["error"].isna().to_numpy()))


@pytest.fixture(scope="module")
def native(frame: Any) -> pd.DataFrame:
    """The same rows as pandas makes them of Python's values."""
    rows = frame.compute(scheduler="synchronous")
    lists = {name: [None if pd.isna(value) is True else value for value in rows[name].tolist()] for name in rows}
    names = ["image_id", "url", "member", "bytes", "caption", "error", "width", "height", "aesthetic_score"]
    return pd.DataFrame({name: lists[name] for name in names}).astype({"aesthetic_score": "float32"})


SERIES: dict[str, Callable[[Any], Any]] = {
    "the last part of a path": lambda f: f.url.str.split("/").str[-1],
    "text in capitals": lambda f: f.caption.str.upper(),
    "a slice of text": lambda f: f.image_id.str[0],
    "the length of text": lambda f: f.caption.str.len(),
    "whether text holds a word": lambda f: f.caption.str.contains("frog"),
    "text with a default": lambda f: f.caption.fillna("nothing"),
    "whether text is one of some": lambda f: f.caption.isin(["A frog.", "two dogs"]),
    "text compared": lambda f: f.caption == "A frog.",
    "text that is another": lambda f: f.caption != "A frog.",
    "text put together": lambda f: f.image_id + ": " + f.caption,
    "a number compared": lambda f: f.width > 100,
    "numbers multiplied": lambda f: f.width * f.height,
    "a ratio that is missing": lambda f: (f.width / f.height).fillna(0),
    "the smaller of two columns": lambda f: f[["width", "height"]].min(axis=1),
    "the length of images": lambda f: f.bytes // 1000,
    "conditions together": lambda f: (f.width > 100) & f.caption.notnull() & ~f.caption.str.startswith("A"),
    "a choice": lambda f: f.width.where(f.caption == "A frog.", 0),
}

FRAMES: dict[str, Callable[[Any], Any]] = {
    "rows by a predicate on text": lambda f: f[f.caption == "A frog."],
    "rows by a predicate turned round": lambda f: f[~f.caption.str.contains("dog").fillna(False).astype(bool)],
    "rows by a number that may be missing": lambda f: f[f.width > 100],
    "rows without an error": lambda f: f[f.error.isna()],
    "large images": lambda f: f[f.bytes > 1000],
    "a query": lambda f: f.query("width > 100 and aesthetic_score >= 0.5"),
    "a query of text": lambda f: f.query("caption == 'A frog.'"),
    "a column more": lambda f: f.assign(shard=f.image_id.str.split("/").str[0]),
    "rows without what is missing": lambda f: f.dropna(subset=["caption", "width"]),
    "renamed columns": lambda f: f.rename(columns={"caption": "text"}),
}

IN_ANY_ORDER: dict[str, Callable[[Any], Any]] = {
    "how often each text is there": lambda f: f.caption.value_counts(),
    "sums of groups": lambda f: f.groupby("caption").width.sum(),
    "sizes of groups": lambda f: f.groupby("error").size(),
    "several of groups": lambda f: f.groupby("caption").agg({"width": "max", "bytes": "sum"}),
    "different texts": lambda f: f.drop_duplicates("caption").set_index("caption")[["bytes"]],
}


@pytest.mark.parametrize("idiom", SERIES)
def test_a_column_made_of_columns_is_that_of_pandas(frame: Any, native: pd.DataFrame, idiom: str) -> None:
    assert_series_equal(SERIES[idiom](frame).compute().reset_index(drop=True), SERIES[idiom](native))


@pytest.mark.parametrize("idiom", FRAMES)
def test_chosen_rows_are_those_of_pandas(frame: Any, native: pd.DataFrame, idiom: str) -> None:
    expected = FRAMES[idiom](native).reset_index(drop=True)
    found = FRAMES[idiom](frame).compute().reset_index(drop=True)
    assert_frame_equal(found[expected.columns], expected)


@pytest.mark.parametrize("idiom", IN_ANY_ORDER)
def test_groups_are_those_of_pandas(frame: Any, native: pd.DataFrame, idiom: str) -> None:
    found, expected = (
        answer.sort_index() for answer in (IN_ANY_ORDER[idiom](frame).compute(), IN_ANY_ORDER[idiom](native))
    )
    (assert_series_equal if found.ndim == 1 else assert_frame_equal)(found, expected)


def test_rows_are_sorted_with_missing_numbers_last(frame: Any) -> None:
    widths = frame.sort_values("width").width.compute().tolist()
    assert widths[:10] == sorted(widths[:10]) and np.isnan(widths[10:]).all()


def test_frames_are_merged_without_a_warning(frame: Any) -> None:
    labels = pd.DataFrame({"image_id": IDS[:5], "label": ["x", None, "y", "z", "z"]})
    for other in (labels, dd.from_pandas(labels, npartitions=2)):
        merged = frame.merge(other, on="image_id").compute()
        assert sorted(merged.image_id) == IDS[:5] and merged.image_id.dtype == merged.label.dtype == "str"
        assert np.shape(merged.embedding.iloc[0]) == (3,)
    left = frame.merge(labels, on="image_id", how="left")[["image_id", "label"]].compute()
    assert left.label.notna().sum() == 4 and len(left) == 12


def test_a_function_of_the_users_meets_no_value_that_it_cannot_judge(frame: Any) -> None:
    def words(caption: Any) -> int:
        return len(caption.split()) if isinstance(caption, str) and caption else 0

    def is_wide(row: Any) -> bool:
        return bool(row.width > 100 and row.caption == "A dog.")

    assert frame.caption.map(words, meta=("n", "int64")).compute().tolist() == [2, 0, 2, 2, 2, 0] * 2
    assert frame.apply(is_wide, axis=1, meta=("wide", bool)).compute().sum() == 2
    named = frame.map_partitions(lambda part: part.assign(kind=np.where(part.caption == "A dog.", "dog", "other")))
    assert named.kind.compute().value_counts().to_dict() == {"other": 10, "dog": 2}
    rows = frame.compute().itertuples()
    assert [row.image_id for row in rows if row.width > 100 and row.caption != "A dog."] == ["0/d", "0/f", "1/d", "1/f"]


def test_numbers_have_the_types_that_numpy_has(frame: Any) -> None:
    rows = frame.compute()
    assert rows.dtypes.to_dict() == frame.dtypes.to_dict()
    kinds = {
        **dict.fromkeys(["image_id", "url", "member", "etag", "caption", "metadata", "error", "digest"], "str"),
        **dict.fromkeys(["sample_offset", "sample_size", "width", "height"], "float64"),
        **{"offset": "int64", "bytes": "int64", "aesthetic_score": "float32"},
        **{"phash": "uint64[pyarrow]", "embedding": "object"},
    }
    assert kinds.items() <= rows.dtypes.astype(str).to_dict().items()
    assert (
        frame.width.mean().compute() == rows.width.mean() and frame.bytes.sum().compute() == rows.bytes.to_numpy().sum()
    )


def written(frame: Any, path: Path) -> Path:
    frame.to_parquet(path, write_index=False)
    return path


@pytest.mark.parametrize("write", [written, lambda frame, path: ic.write_parquet(frame, path) and path])
def test_parquet_opens_in_every_reader(frame: Any, native: pd.DataFrame, tmp_path: Path, write: Any) -> None:
    path = write(frame, tmp_path / "rows")
    expected = vectors.to_matrix(frame.embedding.compute())
    for read in (pd.read_parquet, lambda p: dd.read_parquet(p).compute(), lambda p: ic.read_parquet(p).compute()):
        rows = read(path)
        assert rows.image_id.tolist() == IDS and rows.caption.isna().sum() == 2
        np.testing.assert_array_equal(vectors.to_matrix(rows.embedding), expected)
        assert_series_equal(rows.width.astype("float64").reset_index(drop=True), native.width)
    kinds = pq.read_table(path).schema
    assert kinds.field("embedding").type == schema.TYPES["embedding"]
    polars = pytest.importorskip("polars")
    assert polars.read_parquet(path / "*.parquet")["image_id"].to_list() == IDS
    again = ic.read_parquet(path)
    assert len(ic.semantic_duplicates(again, eps=1e-6).pairs.compute()) == 5


def test_few_different_texts_are_read_again_as_a_category(tmp_path: Path) -> None:
    kinds = pa.array(["exact", None, "semantic", "exact"]).dictionary_encode()
    pq.write_table(pa.table({"reason_kind": kinds, "image_id": list("abcd")}), tmp_path / "rows.parquet")
    frame = ic.read_parquet(tmp_path / "rows.parquet")
    assert frame.reason_kind.value_counts().compute().to_dict() == {"exact": 2, "semantic": 1}
    frame.to_parquet(tmp_path / "again", write_index=False)
    for read in (pd.read_parquet, lambda path: dd.read_parquet(path).compute()):
        assert read(tmp_path / "again").reason_kind.astype(object).fillna("").tolist() == [
            "exact",
            "",
            "semantic",
            "exact",
        ]


def test_what_dask_wrote_opens_where_imgcurate_is_not_installed(frame: Any, tmp_path: Path) -> None:
    frame.to_parquet(tmp_path / "rows", write_index=False)
    script = "import sys, pandas; rows = pandas.read_parquet(sys.argv[1]); print(len(rows), len(rows.embedding[0]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "rows")], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["12", "3"]


@pytest.mark.parametrize(
    "code",
    ["ic.read_files('photos').", "ic.embed(ic.read_webdataset('shards')).", "ic.semantic_duplicates(frame).pairs."],
)
def test_a_notebook_completes_what_a_verb_returns(code: str) -> None:
    jedi = pytest.importorskip("jedi")
    names = {found.name for found in jedi.Script(f"import imgcurate as ic\n{code}").complete(2, len(code))}
    assert names >= {"groupby", "merge", "persist", "to_parquet"}
