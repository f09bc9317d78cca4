"""remove: an anti-join that says what it could not find; and how it and deciding look ids up."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from imgcurate.dedup import lookup, remove, semantic_duplicates
from imgcurate.run.output.decide import decide_part, link_twins
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
        GONE,
        tuple(GONE),
        set(GONE),
        np.array([name for name in GONE if name]),
        pd.Index(GONE),
        pd.DataFrame({"x": 1}, index=pd.Index(GONE, name="image_id")),
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


def test_of_images_that_are_kept_or_not_those_that_are_not_go(tmp_path: Path) -> None:
    for kind in ("bool", "boolean", "bool[pyarrow]"):
        known = pd.DataFrame({"image_id": IDS, "kept": pd.Series([name in LEFT for name in IDS], dtype=kind)})
        known.assign(embedding=[[1.0]] * 20).to_parquet(tmp_path / "images.parquet")
        for removals in (known, dd.from_pandas(known, npartitions=2), tmp_path / "images.parquet"):
            assert ids_of(remove(a_frame(), removals)) == LEFT
    assert ids_of(remove(a_frame(), known, removals_on="image_id")) == LEFT


def test_a_file_of_embeddings_is_no_list(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    vectors = pd.DataFrame({"image_id": GONE, "embedding": [[1.0]] * len(GONE)})
    vectors.to_parquet(path)
    with pytest.raises(
        ValueError, match=r"e\.parquet has a column 'embedding', .*: give a list of ids, or removals_on="
    ):
        remove(a_frame(), path)
    assert ids_of(remove(a_frame(), path, removals_on="image_id")) == LEFT
    assert ids_of(remove(a_frame(), vectors)) == LEFT


def test_frames_and_folders_of_duplicates_that_name_images_that_stay_are_refused(tmp_path: Path) -> None:
    matrix = np.array([[1, 0], [1, 0.01], [0, 1]], dtype=np.float32)
    frame = pd.DataFrame({"image_id": ["a", "b", "c"]})
    found = semantic_duplicates((["a", "b", "c"], matrix), eps=0.01, keep="id")
    for name in ("groups", "edges", "assignments"):
        with pytest.raises(
            ValueError, match=rf"of Duplicates\.{name}, .*: give found itself, found\.pairs or found\.rem"
        ):
            remove(frame, getattr(found, name))
    for fine in (found, found.pairs, found.removals(), frame.merge(found.assignments).merge(found.pairs)):
        assert remove(frame, fine)["image_id"].tolist() == ["a", "c"]
    found.save(tmp_path / "found")
    with pytest.raises(ValueError, match=r"found was written by Duplicates\.save: give Duplicates\.load\('.*'\)\.rem"):
        remove(frame, tmp_path / "found")
    (tmp_path / "found").rename(tmp_path / "duplicates")
    found.removals().to_parquet(tmp_path / "removals.parquet")
    found.pairs.to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=r"was written by imgcurate dedup: give '.*/removals\.parquet'"):
        remove(frame, tmp_path)
    (tmp_path / "text.parquet").write_text("no table")
    for path in ("nowhere", "text.parquet"):
        with pytest.raises(FileNotFoundError, match="no Parquet files of ids to remove at") as refused:
            remove(frame, tmp_path / path)
        assert "\n" not in str(refused.value) and "registered" not in str(refused.value)


def test_the_ids_of_a_list_may_have_another_name(tmp_path: Path) -> None:
    listed = pd.DataFrame({"id": GONE, "image_id": "x"})
    listed.to_parquet(tmp_path / "ids.parquet")
    for removals in (listed, dd.from_pandas(listed, npartitions=2), listed.set_index("id"), tmp_path / "ids.parquet"):
        assert ids_of(remove(a_frame(), removals, removals_on="id")) == LEFT
    other = a_frame().rename(columns={"image_id": "key"})
    assert remove(other, listed, on="key", removals_on="id")["key"].compute().tolist() == LEFT
    with pytest.raises(KeyError, match=r"removal list; removals_on= names another\) needs column 'key'"):
        remove(other, listed, on="key")
    with pytest.raises(KeyError, match=r"removal list\) needs column 'other'"):
        remove(other, listed, on="key", removals_on="other")
    with pytest.raises(ValueError, match="removals_on='id' names a column, and the removal list has none"):
        remove(a_frame(), GONE, removals_on="id")


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
    for nothing in (
        [],
        np.array([]),
        pd.Series([]),
        pd.DataFrame({"image_id": []}),
        pd.Series([None]),
        a_frame()[a_frame().width < 0],
    ):
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
    for ids, kind in ((3, "int"), (b"s/000", "bytes"), ({"s/000": 1}, "dict"), (iter(IDS), "list_iterator")):
        with pytest.raises(TypeError, match=f"remove takes ids as a frame, a series, a list, .* not {kind}"):
            remove(a_frame(), ids)
    with pytest.raises(TypeError, match=r"one id an image, and the removal list is an array of shape \(20, 1\)"):
        remove(a_frame(), np.array(IDS)[:, None])
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


NAMES = st.lists(st.none() | st.text("abé\0", max_size=2), max_size=60)
NUMBERS = st.lists(st.none() | st.integers(-4, 4) | st.integers(-(2**63), 2**63 - 1), max_size=60)


def weak(ids: pa.Array) -> np.ndarray:
    """Give many ids one hash."""
    return np.array([len(str(name)) % 2 for name in ids.to_pylist()], dtype=np.uint64) << np.uint64(63)


def same(ids: pa.Array) -> np.ndarray:
    return np.full(len(ids), 2**64 - 1, dtype=np.uint64)


@pytest.mark.parametrize("hash_ids", [lookup.hash_ids, weak, same])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ids_are_found_where_a_dictionary_finds_them_even_if_hashes_are_equal(
    hash_ids: Any, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from([NAMES, NUMBERS]))
    pieces, asked = data.draw(st.lists(kind, max_size=3)), data.draw(kind)
    dtype = "string[pyarrow]" if kind is NAMES else "int64[pyarrow]"
    distinct = list(dict.fromkeys(name for piece in pieces for name in piece if name is not None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "hash_ids", hash_ids)
        ids = lookup.build([lookup.hashed(pd.Series(piece, dtype=dtype)) for piece in pieces])
        found = ids.find(lookup.plain(pd.Series(asked, dtype=dtype)))
    assert ids.ids.to_pylist() == distinct
    assert found.tolist() == [distinct.index(name) if name in distinct else -1 for name in asked]


def test_a_list_whose_ids_share_their_hashes_removes_and_names_the_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "hash_ids", same)
    with pytest.warns(UserWarning, match="2 of 5 ids to remove are not in the frame: 'x', 'y'"):
        assert ids_of(remove(a_frame(), pd.Series([*GONE, "x", "y", "x"]))) == LEFT


@pytest.mark.parametrize("n", [1_000, 300_000])
def test_few_places_are_looked_at_however_long_the_list_is(n: int) -> None:
    for names in (pd.Series(range(n)).map("shard/{:09}".format), pd.Series(range(n))):
        ids = lookup.build([lookup.hashed(names)])
        assert np.diff(ids.starts).max() <= 20
        assert ids.find(lookup.plain(names)).tolist() == list(range(n))
        assert ids.hashes.nbytes + ids.rows.nbytes + ids.starts.nbytes <= 14 * n + 8


def test_a_hash_is_the_same_in_every_process() -> None:
    hashes = [lookup.hash_ids(lookup.plain(pd.Series(ids)))[0] for ids in (["a/b"], [7], [0.5])]
    assert hashes == [979084724341892967, 1346066267577507604, 306524380890059637]


@pytest.mark.parametrize(
    ("listed", "asked", "found"),
    [
        (["a", "b"], pd.Series(["b", "c"], dtype=pd.ArrowDtype(pa.large_string())), [1, -1]),
        (["a", "b"], pd.Series(["b", None, "a"], dtype="category"), [1, -1, 0]),
        (["a"], pd.Series(["a", "a"], dtype=pd.ArrowDtype(pa.dictionary(pa.int8(), pa.string()))), [0, 0]),
        ([b"a", b"\xff"], pd.Series([b"\xff", b"b"]), [1, -1]),
        ([1, 2**62 + 1], pd.Series([1.0, 1.5, None, float(2**62)]), [0, -1, -1, -1]),
        ([0.5, -0.0, 3.0], pd.Series([3, 1, 0], dtype="int16"), [2, -1, 1]),
        ([0.5, 2.0**53], pd.Series([2**53, 2**53 + 1]), [1, -1]),
        ([-1, 3], pd.Series([2**64 - 1, 3], dtype="uint64"), [-1, 1]),
        (np.array([2**64 - 1, 3], dtype="uint64"), pd.Series([-1, 3]), [-1, 1]),
        ([True, False], pd.Series([0, 2], dtype="uint8"), [1, -1]),
        (["a"], pd.Series([1, 2]), [-1, -1]),
        ([], pd.Series([1, 2]), [-1, -1]),
        (pd.to_datetime(["2024-02-29"]), pd.Series(pd.to_datetime(["2024-02-29", None])).astype("M8[s]"), [0, -1]),
    ],
)
def test_equal_ids_are_found_whatever_their_columns_types(listed: Any, asked: pd.Series, found: list[int]) -> None:
    ids = lookup.build([lookup.hashed(pd.Series(listed))])
    assert ids.find(lookup.plain(asked)).tolist() == found


def test_parts_of_a_list_may_differ_in_type_if_their_ids_can_be_compared() -> None:
    def of(*parts: Any) -> list[Any]:
        return lookup.build([lookup.hashed(pd.Series(part)) for part in parts]).ids.to_pylist()

    assert of([1, 2**62 + 1], [], [2.0, None, 1.0]) == [1, 2**62 + 1, 2]
    assert of([1, 3], [2.5, 1.0]) == [1.0, 3.0, 2.5]
    with pytest.raises(TypeError, match="several types, int64 and large_string"):
        of([1], ["a"])
    with pytest.raises(TypeError, match="several types, int64 and double"):
        of([2**62 + 1], [2.5])
    with pytest.raises(TypeError, match="does not hold ids, which are text or numbers"):
        remove(a_frame(), pd.Series(["a", 1], dtype=object))
    with pytest.raises(TypeError, match="column 'on' does not hold ids"):
        lookup.plain(pd.Series([[1.0]], name="on"))


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 3), min_size=2, max_size=30),
    data=st.data(),
)
def test_the_image_that_is_kept_in_the_end_is_named(ranks: list[int], data: st.DataObject) -> None:
    # Image i duplicates an earlier one; a chain may go through several kinds.
    names = [f"i{row:02}" for row in range(len(ranks))]
    twin = {names[row]: names[data.draw(st.integers(0, row - 1))] for row in range(1, len(ranks)) if ranks[row] > 1}
    stages = ["exact", "semantic"]
    stage = {name: stages[ranks[row] - 2] for row, name in enumerate(names) if name in twin}
    tables = [
        pa.table(
            {
                "image_id": pa.array([name for name in twin if stage[name] == kind], pa.string()),
                "duplicate_of": pa.array([twin[name] for name in twin if stage[name] == kind], pa.string()),
                "similarity": pa.array([0.75 for name in twin if stage[name] == kind], pa.float32()),
            }
        )
        for kind in stages
    ]
    part = table({"image_id": names, "error": [None] * len(names)})
    decided = decide_part(part, link_twins(stages, tables))
    for row, name in enumerate(names):
        kept = name
        while kept in twin:
            kept = twin[kept]
        how = {"exact": "same bytes", "semantic": "0.750"}.get(stage.get(name, ""))
        last = "" if twin.get(name) == kept else f", as which {kept} is kept"
        expected = f"duplicate of {twin[name]} ({how}){last}" if name in twin else None
        assert (decided["reason"][row] if name in twin else None) == expected
        assert decided["kept"][row] == (name not in twin)
        if name in twin:
            assert (decided["duplicate_of"][row], decided["similarity"][row]) == (kept, 0.75)
        else:
            assert pd.isna(decided["duplicate_of"][row]) and pd.isna(decided["similarity"][row])


def test_an_image_that_two_kinds_name_is_refused() -> None:
    twice = pa.table({"image_id": ["a"], "duplicate_of": ["b"], "similarity": pa.array([1.0], pa.float32())})
    with pytest.raises(ValueError, match="1 images are named twice as duplicates"):
        link_twins(["exact", "semantic"], [twice, twice])
    nothing = link_twins([], [])
    part = table({"image_id": ["a"], "error": [None]})
    assert decide_part(part, nothing)["kept"].tolist() == [True]
