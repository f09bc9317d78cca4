"""remove: an anti-join that says what it could not find."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client

from imgcurate.dedup import remove
from imgcurate.schema import table

IDS = [f"s/{i:03}" for i in range(20)]


def a_frame(npartitions: int = 3) -> dd.DataFrame:
    return dd.from_pandas(
        table({"image_id": IDS, "width": list(range(20)), "url": ["u"] * 20}), npartitions=npartitions, sort=False
    )


def ids_of(frame: dd.DataFrame) -> list[Any]:
    return frame["image_id"].compute().tolist()


GONE = [IDS[3], IDS[17], None, IDS[3], IDS[4]]
LEFT = [name for name in IDS if name not in GONE]


@pytest.mark.parametrize(
    "removals",
    [
        pd.DataFrame({"image_id": GONE}),
        pd.Series(GONE),
        pd.Series(GONE, dtype="string[pyarrow]", name="other"),
        pd.Series(GONE, dtype="category"),
        dd.from_pandas(pd.DataFrame({"image_id": GONE, "x": 1}), npartitions=3),
        dd.from_pandas(pd.Series(GONE), npartitions=2),
    ],
)
def test_listed_rows_go_whatever_the_list_comes_as(client: Client, removals: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = remove(a_frame(), removals)
    assert ids_of(frame) == LEFT
    assert frame["width"].sum().compute() == sum(range(20)) - 3 - 17 - 4


def test_a_parquet_directory_of_ids(tmp_path: Path) -> None:
    for number, names in enumerate([GONE[:2], GONE[2:]]):
        pd.DataFrame({"id": names}).to_parquet(tmp_path / f"part.{number}.parquet")
    frame = a_frame().rename(columns={"image_id": "id"})
    for path in (tmp_path, str(tmp_path)):
        assert remove(frame, path, on="id")["id"].compute().tolist() == LEFT
    assert len(remove(frame, tmp_path / "part.0.parquet", on="id")) == 18
    with pytest.raises(KeyError, match=r"removal list.* needs column 'image_id'; the frame has 'id'"):
        remove(a_frame(), tmp_path)
    for nowhere in (tmp_path / "nowhere", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match="no Parquet files of ids to remove at"):
            remove(a_frame(), nowhere)


def test_ids_the_frame_does_not_have_are_named() -> None:
    removals = pd.Series([*IDS[:9], "c", "a", "b", "a"])
    sentence = "3 of 12 ids to remove are not in the frame: 'c', 'a', 'b'"
    with pytest.warns(UserWarning, match=sentence) as seen:
        assert ids_of(remove(a_frame(), removals)) == IDS[9:]
    assert seen[0].filename == __file__
    with pytest.raises(ValueError, match=sentence):
        remove(a_frame(), removals, missing="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids_of(remove(a_frame(), removals, missing="ignore")) == IDS[9:]
    with pytest.warns(UserWarning, match="7 of 7 ids .*: '0', '1', '2', '3', '4', ..."):
        remove(a_frame(), pd.Series(list("0123456")))


def test_an_empty_list_removes_nothing() -> None:
    for nothing in (pd.Series([]), pd.DataFrame({"image_id": []}), pd.Series([None]), a_frame()[a_frame().width < 0]):
        assert ids_of(remove(a_frame(), nothing)) == IDS


def test_integer_ids_of_any_width() -> None:
    frame = dd.from_pandas(pd.DataFrame({"image_id": np.arange(10, dtype=np.int32)}), npartitions=2)
    for kind in ("int64", "uint8", "int64[pyarrow]", "Int64", "float64"):
        assert ids_of(remove(frame, pd.Series([2, 9], dtype=kind))) == [0, 1, 3, 4, 5, 6, 7, 8]


def test_numbers_and_text_are_not_compared() -> None:
    with pytest.raises(TypeError, match="frame holds text, the removal list holds numbers"):
        remove(a_frame(), pd.Series([1, 2]))
    numbers = dd.from_pandas(pd.DataFrame({"image_id": [1, 2]}), npartitions=1)
    with pytest.raises(TypeError, match="frame holds numbers, the removal list holds text"):
        remove(numbers, pd.Series(["1"]))
    with pytest.raises(TypeError, match="frame holds numbers, the removal list holds text"):
        remove(numbers, pd.Series(["1"], dtype=object))


def test_what_is_neither_a_frame_nor_a_path_is_refused() -> None:
    with pytest.raises(TypeError, match=r"not list; pandas.Series\(ids\) makes a series"):
        remove(a_frame(), IDS)
    with pytest.raises(KeyError, match="remove needs column 'key'"):
        remove(a_frame(), pd.Series(IDS), on="key")
    with pytest.raises(ValueError, match="missing='drop' is unknown"):
        remove(a_frame(), pd.Series(IDS), missing="drop")


def test_only_the_columns_that_are_asked_for_are_computed(tmp_path: Path) -> None:
    frame = a_frame()

    def model(part: pd.DataFrame) -> pd.DataFrame:
        (tmp_path / str(part.index[0])).touch()
        return part[["width"]].rename(columns={"width": "score"})

    meta = pd.DataFrame({"score": pd.array([], dtype="int32[pyarrow]")})
    scored = frame.assign(score=frame[["width"]].map_partitions(model, meta=meta)["score"])
    kept = remove(scored, pd.Series(GONE))
    assert kept["width"].sum().compute() > 0
    assert not list(tmp_path.iterdir())
    assert kept["score"].sum().compute() == sum(range(20)) - 3 - 17 - 4
    assert len(list(tmp_path.iterdir())) == 3
