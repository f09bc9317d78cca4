"""The embedding column and its matrix: the same numbers, without a copy where none is needed."""

from __future__ import annotations

from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import imgcurate as ic
from imgcurate import identity, schema, vectors

matrices = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 20), st.integers(1, 9)), elements=st.floats(-1e3, 1e3, width=32)
)


@given(matrices, st.randoms(use_true_random=False))
def test_a_matrix_survives_the_column_and_null_rows_become_nan(matrix: np.ndarray, random: Any) -> None:
    valid = np.array([random.random() < 0.7 for _ in matrix], dtype=bool)
    like = pd.DataFrame(index=[random.randint(0, 5) for _ in matrix])
    column = vectors.to_column(matrix, like, valid)
    assert column.index.equals(like.index) and column.isna().to_numpy().tolist() == (~valid).tolist()
    found = vectors.to_matrix(column)
    if valid.any():
        np.testing.assert_array_equal(found[valid], matrix[valid])
    assert np.isnan(found[~valid]).all() and found.dtype == np.float32


def test_without_nulls_neither_way_copies() -> None:
    matrix = np.random.default_rng(0).random((50, 8), dtype=np.float32)
    column = vectors.to_column(matrix, pd.DataFrame(index=range(50)))
    assert np.shares_memory(vectors.to_matrix(column), matrix)
    assert np.shares_memory(vectors.to_matrix(column.iloc[10:20]), matrix)
    np.testing.assert_array_equal(vectors.to_matrix(column.iloc[10:20]), matrix[10:20])
    tensor = torch.from_numpy(matrix)
    assert np.shares_memory(vectors.to_matrix(vectors.to_column(tensor, pd.DataFrame(index=range(50)))), matrix)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([np.array([1.0, 2.0]), None, np.array([3.0, 4.0])]),
        pd.Series([[1, 2], None, [3, 4]]),
        pd.Series([[1.0, 2.0], None, [3.0, 4.0]], dtype=pd.ArrowDtype(pa.list_(pa.float64()))),
        pd.Series([[1.0, 2.0], None, [3.0, 4.0]], dtype=pd.ArrowDtype(pa.large_list(pa.float32()))),
        pd.Series([[1.0, 2.0], None, [3.0, 4.0]], dtype=pd.ArrowDtype(pa.list_(pa.float32(), 2))),
        pd.Series([[1.0, 2.0], None, [3.0, 4.0]], dtype=pd.ArrowDtype(pa.list_(pa.float16()))),
    ],
    ids=["arrays", "lists", "float64", "large", "fixed-size", "float16"],
)
def test_columns_of_other_readers_are_understood(column: pd.Series) -> None:
    expected = np.array([[1, 2], [np.nan, np.nan], [3, 4]], dtype=np.float32)
    np.testing.assert_array_equal(vectors.to_matrix(column), expected)
    np.testing.assert_array_equal(vectors.to_matrix(column.iloc[1:]), expected[1:])
    assert vectors.to_matrix(column.iloc[:0]).shape[0] == 0
    assert vectors.to_matrix(column.iloc[1:2]).shape[0] == 1


@pytest.mark.parametrize(
    ("column", "error"),
    [
        (pd.Series([[1.0], [1.0, 2.0]], name="v"), ValueError),
        (pd.Series(["a"], name="v"), TypeError),
        (pd.Series([1.0], name="v"), TypeError),
        (pd.Series([["a"]], name="v"), TypeError),
    ],
)
def test_what_holds_no_vectors_is_refused_by_name(column: pd.Series, error: type[Exception]) -> None:
    with pytest.raises(error, match="'v'"):
        vectors.to_matrix(column)


@given(matrices)
def test_unit_rows_have_length_one_or_are_invalid(matrix: np.ndarray) -> None:
    unit, valid = vectors.unit_rows(matrix)
    norms = np.linalg.norm(matrix.astype(np.float64), axis=1)
    np.testing.assert_array_equal(valid, norms > 0)
    np.testing.assert_allclose(np.linalg.norm(unit[valid].astype(np.float64), axis=1), 1, atol=1e-6)
    if valid.any():
        np.testing.assert_allclose(unit[valid], matrix[valid] / norms[valid, None], atol=1e-6)
    for row in range(len(matrix)):
        alone, _ = vectors.unit_rows(matrix[row : row + 1])
        np.testing.assert_array_equal(alone[0], unit[row])


def test_nan_and_infinite_vectors_have_no_direction() -> None:
    unit, valid = vectors.unit_rows(np.array([[np.nan, 1], [np.inf, 1], [3, 4]], dtype=np.float32))
    assert valid.tolist() == [False, False, True] and (unit[:2] == 0).all()


def test_an_embedding_column_goes_through_dataframe_operations(client: Client) -> None:
    matrix = np.random.default_rng(0).random((20, 4), dtype=np.float32)
    part = schema.table({"image_id": [f"{i % 10}" for i in range(20)]})
    frame = dd.from_pandas(part.assign(embedding=vectors.to_column(matrix, part)), npartitions=4)
    merged = frame.merge(frame[["image_id"]].drop_duplicates().assign(label=1), on="image_id").compute()
    assert len(merged) == 20
    shuffled = frame.shuffle("image_id").compute()
    assert sorted(vectors.to_matrix(shuffled["embedding"]).sum(1)) == pytest.approx(sorted(matrix.sum(1)))
    assert len(frame.drop_duplicates(subset=["image_id"]).compute()) == 10
    assert frame.sort_values("image_id").compute()["image_id"].is_monotonic_increasing


def test_arrow_tables_carry_no_pandas_metadata() -> None:
    part = schema.table({"image_id": ["a"]})
    assert vectors.to_arrow(part).schema.metadata is None


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    with pytest.raises(KeyError, match=r"embed needs column 'url'; the frame has 'image_id'"):
        schema.require(dd.from_pandas(schema.empty(["image_id"]), npartitions=1), ["image_id", "url"], "embed")


def test_a_frame_that_is_not_dasks_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"embed takes a Dask dataframe, not DataFrame; .*from_pandas"):
        schema.require(schema.empty(["url"]), ["url"], "embed")


def test_a_function_of_the_users_has_the_vectors_of_a_partition() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    part = pd.DataFrame({"image_id": list("abcd")}, index=[3, 1, 4, 5])
    part["embedding"] = vectors.to_column(matrix, part, np.array([True, True, False, True]))

    def first(part: pd.DataFrame) -> pd.Series:
        return pd.Series(ic.to_matrix(part, dimension=3)[:, 0], index=part.index)

    frame = dd.from_pandas(part, npartitions=2, sort=False)
    chosen = frame[frame.image_id != "d"]
    for made in (chosen.map_partitions(first, meta=(None, "float32")), chosen.map_partitions(first)):
        assert made.compute(scheduler="sync").fillna(-1).tolist() == [0, 3, -1]
    nothing = frame[frame.image_id == "e"].map_partitions(first, meta=(None, "float32"))
    assert len(nothing.compute(scheduler="sync")) == 0
    with pytest.raises(ValueError, match="holds vectors of dimension 3, and dimension=4 was asked for"):
        ic.to_matrix(part, dimension=4)
    with pytest.raises(KeyError, match="to_matrix needs column 'embedding'; the frame has 'image_id'"):
        ic.to_matrix(part[["image_id"]])


def test_a_partition_without_vectors_knows_their_dimension_from_the_encoder() -> None:
    encoder = identity.Identity("org/model", "clip", 5, "0f")
    part = pd.DataFrame(index=range(2))
    column = vectors.to_column(np.ones((2, 5), dtype=np.float32), part, np.zeros(2, dtype=bool), encoder)
    assert vectors.to_matrix(column).shape == (2, 5) and vectors.to_matrix(column[:0]).shape == (0, 5)
    assert vectors.to_matrix(schema.empty(["embedding"])).shape == (0, 0)
