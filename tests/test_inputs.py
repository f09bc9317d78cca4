"""Frames in memory, and ids beside a matrix: what they give is what the same rows give as a Dask dataframe."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from distributed import Client
from test_corpus import by_hand, data
from test_identity import ONE, OTHER, rows
from test_semantic import frame_of, planted, removed

import imgcurate as ic
from imgcurate.dedup.dataframes import inputs

MATRIX = planted(120, 16)
IDS = [f"img{i:05}" for i in range(120)]


@pytest.fixture
def in_process() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def as_given(kind: str) -> Any:
    frame = pd.DataFrame({"image_id": IDS, "n": 7})
    if kind == "arrays":
        return frame.assign(embedding=list(MATRIX))
    if kind == "lists":
        return frame.assign(embedding=MATRIX.tolist())
    if kind == "index":
        return frame.assign(embedding=list(MATRIX)).set_index("image_id")
    if kind == "Arrow":
        return frame_of(MATRIX).compute()
    return {
        "pair": (IDS, MATRIX),
        "float64": (np.array(IDS), MATRIX.astype(np.float64)),
        "torch": (pd.Index(IDS), torch.from_numpy(MATRIX)),
        "nested lists": (pd.Series(IDS, index=range(5, 125)), MATRIX.tolist()),
    }[kind]


@pytest.mark.parametrize("kind", ["arrays", "lists", "index", "Arrow", "pair", "float64", "torch", "nested lists"])
def test_duplicates_of_what_lies_in_memory_are_those_of_a_dask_dataframe(in_process: None, kind: str) -> None:
    lazy = ic.semantic_duplicates(frame_of(MATRIX), eps=0.05, keep="hard")
    found = ic.semantic_duplicates(as_given(kind), eps=0.05)
    for frame in (found.pairs, found.selected, found.groups, found.edges, found.assignments, found.removals()):
        assert type(frame) is pd.DataFrame and frame.index.equals(pd.RangeIndex(len(frame)))
    pairs = [
        list(frame.astype(object).itertuples(index=False, name=None)) for frame in (found.pairs, lazy.pairs.compute())
    ]
    assert pairs[0] == pairs[1] and len(pairs[0]) > 10
    assert "keep='hard' (the frame has no width, height and bytes)" in repr(found)


def test_workers_are_given_frames_in_memory_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_PARTITION_BYTES", 16 * 4 * 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame, at_once = inputs.as_frame((IDS, MATRIX), "semantic_duplicates", "image_id", "embedding")
        assert frame.npartitions == 3 and at_once
        found = ic.semantic_duplicates((IDS, MATRIX), eps=0.05)
    assert (
        found.pairs["image_id"].tolist() == ic.semantic_duplicates(frame, eps=0.05).pairs.compute()["image_id"].tolist()
    )


def test_halves_and_whole_numbers_are_vectors_too(in_process: None) -> None:
    whole = np.repeat(np.eye(4, dtype=np.int8), 2, axis=0)
    for matrix in (whole, whole.astype(np.float16), whole.astype(np.uint8)):
        assert ic.semantic_duplicates((range(8), matrix), keep="id").removals()["image_id"].tolist() == [1, 3, 5, 7]


def test_rows_without_a_usable_vector_stay(in_process: None) -> None:
    frame = pd.DataFrame({"image_id": list("abcd"), "error": [None, None, None, "decode: broken"]})
    frame["embedding"] = [np.ones(3), None, np.ones(3), np.ones(3)]
    found = ic.semantic_duplicates(frame, keep="id")
    assert (found.n_compared, found.n_excluded) == (2, 2) and found.pairs["image_id"].tolist() == ["c"]
    assert ic.remove(frame, found)["image_id"].tolist() == ["a", "b", "d"]
    nothing = ic.semantic_duplicates(frame[:0])
    assert nothing.n_rows == 0 and len(nothing.pairs) == 0
    assert ic.semantic_duplicates(([], np.zeros((0, 3)))).n_rows == 0


def test_what_is_left_in_memory_keeps_its_index_its_types_and_its_columns(in_process: None) -> None:
    frame = as_given("arrays").set_index(pd.Index(range(200, 320), name="n")).assign(notes=[{"a": [1]}] * 120)
    found = ic.semantic_duplicates(frame, eps=0.05)
    kept = ic.remove(frame, found)
    gone = set(found.removals()["image_id"])
    pd.testing.assert_frame_equal(kept, frame[~frame["image_id"].isin(gone)])
    ids, matrix = ic.remove((IDS, MATRIX), found)
    assert ids.tolist() == kept["image_id"].tolist() and matrix.tolist() == np.stack(kept["embedding"]).tolist()
    by_index = ic.remove(frame.set_index("image_id"), found)
    assert by_index.index.tolist() == ids.tolist()
    with pytest.warns(UserWarning, match="1 of 2 ids to remove are not in the frame: 'x'") as seen:
        assert len(ic.remove(frame, ["x", IDS[0]])) == 119
    assert seen[0].filename == __file__


def test_a_corpus_and_an_evaluation_set_may_lie_in_memory(in_process: None, tmp_path: Path) -> None:
    old, new = data()
    names = {"old": [f"old{i:04}" for i in range(900)], "new": [f"img{i:05}" for i in range(150)]}
    assert ic.save_embeddings((names["old"], old), tmp_path / "corpus") == 900
    frame = pd.DataFrame({"image_id": names["new"], "embedding": list(new)})
    for against in ((names["old"], old), frame_of(old, ids=names["old"]), tmp_path / "corpus"):
        found = ic.semantic_duplicates(frame, against=against, eps=0.01, keep="id", exact=True)
        assert sorted(found.removals()["image_id"]) == sorted(by_hand(0.01))
    near = ic.decontaminate(frame, (names["old"], old), eps=0.01)
    assert type(near) is pd.DataFrame and len(near) >= 41
    lazy = ic.decontaminate(frame_of(new), frame_of(old, ids=names["old"]), eps=0.01)
    assert near.astype(object).to_numpy().tolist() == lazy.compute().astype(object).to_numpy().tolist()


def test_the_encoder_of_a_frame_in_memory_is_known(in_process: None) -> None:
    with pytest.raises(ValueError, match=r"mixes the vectors of 'org/one' .* and 'org/other'"):
        ic.semantic_duplicates(rows(ONE), against=rows(OTHER, start=6))
    assert "eps=0.01 (for clip)" in repr(ic.semantic_duplicates(rows(ONE)))


def test_what_is_no_frame_is_refused_in_a_sentence() -> None:
    matrix = np.eye(3)
    for given, said in [
        (MATRIX, r"semantic_duplicates takes a Dask, pandas or cuDF dataframe, or a pair \(ids, matrix\), not ndarray"),
        (pl.DataFrame({"image_id": ["a"]}), r"not DataFrame; its to_pandas\(\) makes one"),
        ("vectors.npy", "not str; imgcurate.read_parquet and imgcurate.read_embeddings read files"),
        ((["a"], matrix[0]), r"the second holds float64 of shape \(3,\), not numbers of shape \(images, dimension\)"),
        ((list("abc"), np.array([["x"]] * 3)), "the second holds <U1 of shape"),
        (pd.DataFrame({"image_id": ["a"], "embedding": ["[1, 2]"]}), "'embedding' holds .*string, not vectors"),
    ]:
        with pytest.raises(TypeError, match=said):
            ic.semantic_duplicates(given)
    with pytest.raises(ValueError, match=r"2 ids and 3 vectors; a pair \(ids, matrix\) has one id a row"):
        ic.decontaminate((["a", "b"], matrix), (["c"], matrix[:1]))
    with pytest.raises(ValueError, match="2 ids and 3 vectors"):
        ic.remove((["a", "b"], matrix), ["a"])
    with pytest.raises(ValueError, match="vectors of several lengths"):
        ic.save_embeddings(pd.DataFrame({"image_id": [1, 2], "embedding": [[1.0], [1.0, 2.0]]}), "nowhere")
    with pytest.raises(KeyError, match="save_embeddings needs column 'image_id'; the frame has 'id', 'embedding'"):
        ic.save_embeddings(pd.DataFrame({"id": [1], "embedding": [[1.0]]}), "nowhere")
    with pytest.raises(KeyError, match="needs column 'score'; the frame has 'image_id', 'n', 'embedding'"):
        ic.semantic_duplicates(as_given("arrays"), keep=[("score", "max")])
    with pytest.raises(TypeError, match="remove takes a Dask, pandas or cuDF dataframe"):
        ic.remove([1, 2], [1])
    with dask.config.set({"dataframe.convert-string": True}):
        text = dd.from_pandas(pd.DataFrame({"image_id": ["a"], "embedding": [[1.0]]}), npartitions=1)
    with pytest.raises(TypeError, match=r"holds text, not vectors.* give the pandas frame itself"):
        ic.semantic_duplicates(text)


def test_ids_that_are_called_what_a_column_of_the_answer_is_are_refused(in_process: None) -> None:
    verbs = {
        "similarity": [ic.semantic_duplicates, lambda frame, **names: ic.search(frame, vectors=[1, 0], **names)],
        "neighbours": [ic.neighbours],
        "outlier_score": [ic.outliers],
        "rank": [lambda frame, **names: ic.representatives(frame, 1, **names)],
        "kind": [lambda frame, **names: ic.leaks(frame, kinds="semantic", **names)],
    }
    for name, those in verbs.items():
        frame = pd.DataFrame({name: ["a", "b"], "embedding": [[1.0, 0.0], [0.0, 1.0]], "split": ["x", "y"]})
        for verb in those:
            with pytest.raises(
                ValueError, match=rf"id_field='{name}' is what a column of the answer is called; rename"
            ):
                verb(frame, id_field=name)


def test_a_pandas_frame_goes_through_the_whole_of_a_result(in_process: None) -> None:
    found = ic.semantic_duplicates(as_given("arrays"), eps=0.05, n_clusters=3)
    assert removed_of(found) == removed(ic.semantic_duplicates(frame_of(MATRIX), eps=0.05, n_clusters=3, keep="hard"))
    assert found.sweep([0.05])["removed"][0] == len(found.pairs) == len(found.rethreshold(0.05).pairs)


def removed_of(found: ic.Duplicates) -> list[str]:
    return sorted(found.removals()["image_id"])
