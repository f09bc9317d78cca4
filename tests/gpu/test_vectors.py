"""The embedding column and its matrix: the same numbers on both backends, without a copy where none is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from gpu.conftest import Backend, host
from imgcurate import schema, vectors

RNG = np.random.default_rng(0)


def like(on: Backend, rows: int, start: int = 0) -> Any:
    part = schema.table({"image_id": [str(i) for i in range(rows)]})
    return on.part(part.set_axis(range(start, start + rows)))


@pytest.mark.parametrize("valid", [[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
def test_a_matrix_survives_the_column_and_null_rows_become_nan(on: Backend, valid: list[int]) -> None:
    matrix, there = RNG.random((5, 3), dtype=np.float32), np.array(valid, dtype=bool)
    part = like(on, 5, start=7)
    column = vectors.to_column(on.array(matrix), part, there)
    assert type(column).__module__.startswith(on.name) and column.name == "embedding" and len(column) == 5
    assert vectors.to_numpy(column.index.values).tolist() == list(range(7, 12))
    assert vectors.to_numpy(column.isnull().values).tolist() == (~there).tolist()
    found = vectors.to_matrix(column)
    assert vectors.on_gpu(found) == (on.name == "cudf") and found.dtype == np.float32 and len(found) == 5
    back = vectors.to_numpy(found)
    if there.any():
        np.testing.assert_array_equal(back[there], matrix[there])
    assert np.isnan(back[~there]).all()


def test_without_nulls_neither_way_copies(on: Backend) -> None:
    matrix = on.array(RNG.random((50, 8), dtype=np.float32))
    column = vectors.to_column(matrix, like(on, 50))
    assert on.address(vectors.to_matrix(column)) == on.address(matrix)


def test_torchs_vectors_become_a_column_without_a_copy(on: Backend) -> None:
    tensor = torch.arange(24, dtype=torch.float32, device=on.device).reshape(6, 4)
    found = vectors.to_matrix(vectors.to_column(tensor, like(on, 6)))
    assert on.address(found) == tensor.data_ptr()
    np.testing.assert_array_equal(vectors.to_numpy(found), np.arange(24, dtype=np.float32).reshape(6, 4))


def test_a_host_matrix_becomes_a_column_of_any_partition(on: Backend) -> None:
    matrix = RNG.random((4, 3), dtype=np.float32)
    found = vectors.to_matrix(vectors.to_column(matrix, like(on, 4)))
    np.testing.assert_array_equal(vectors.to_numpy(found), matrix)


@pytest.mark.parametrize("valid", [None, np.arange(50) % 3 > 0])
@pytest.mark.parametrize(("start", "stop"), [(0, 50), (10, 20), (49, 50), (13, 13)])
def test_a_slice_gives_the_vectors_of_its_rows(on: Backend, start: int, stop: int, valid: Any) -> None:
    matrix = RNG.random((50, 8), dtype=np.float32)
    there = np.ones(50, dtype=bool) if valid is None else valid
    column = vectors.to_column(on.array(matrix), like(on, 50), valid)
    found = vectors.to_numpy(vectors.to_matrix(column.iloc[start:stop]))
    assert len(found) == stop - start
    if stop > start:
        np.testing.assert_array_equal(found, np.where(there[:, None], matrix, np.nan)[start:stop])


def test_no_rows_and_no_vectors_are_matrices_too(on: Backend) -> None:
    assert len(vectors.to_matrix(vectors.to_column(on.array(np.zeros((0, 5), np.float32)), like(on, 0)))) == 0
    nothing = vectors.to_column(on.array(np.zeros((3, 5), np.float32)), like(on, 3), np.zeros(3, dtype=bool))
    assert vectors.to_matrix(nothing).shape[0] == 3 and np.isnan(vectors.to_numpy(vectors.to_matrix(nothing))).all()
    assert len(vectors.to_matrix(vectors.empty_like(like(on, 2), ["embedding"])["embedding"])) == 0


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int32()])
def test_lists_of_any_numbers_are_understood(on: Backend, kind: pa.DataType) -> None:
    lists = pd.Series([[1, 2], None, [3, 4]], dtype=pd.ArrowDtype(pa.list_(kind)), name="v")
    found = vectors.to_matrix(on.part(lists.to_frame())["v"])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(vectors.to_numpy(found), [[1, 2], [np.nan, np.nan], [3, 4]])


@pytest.mark.parametrize(
    ("values", "kind", "error"),
    [
        ([[1.0], [1.0, 2.0]], pa.list_(pa.float32()), ValueError),
        (["a"], pa.string(), TypeError),
        ([1.0], pa.float32(), TypeError),
        ([["a"]], pa.list_(pa.string()), TypeError),
    ],
)
def test_what_holds_no_vectors_is_refused_by_name(
    on: Backend, values: list[Any], kind: pa.DataType, error: type[Exception]
) -> None:
    part = on.part(pd.DataFrame({"v": pd.array(values, dtype=pd.ArrowDtype(kind))}))
    with pytest.raises(error, match="'v'"):
        vectors.to_matrix(part["v"])


def test_a_partition_too_large_for_one_list_column_is_refused(on: Backend) -> None:
    vast = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape=(2**21, 2**10), strides=(0, 0))
    with pytest.raises(ValueError, match="smaller partitions"):
        vectors.to_column(vast, like(on, 1))


def test_none_and_nan_are_null_in_a_column_of_numbers_and_types_are_those_of_the_schema(on: Backend) -> None:
    part = like(on, 3, start=4)
    for values in ([0.5, None, 1.0], np.array([0.5, np.nan, 1.0]), on.array(np.array([0.5, np.nan, 1.0], np.float32))):
        scores = vectors.to_series(values, "aesthetic_score", part)
        assert vectors.to_numpy(scores.isnull().values).tolist() == [False, True, False]
        assert vectors.to_numpy(scores.index.values).tolist() == [4, 5, 6]
        assert host(scores.to_frame()).dtypes["aesthetic_score"] == np.float32
    wide = vectors.to_series(on.array(np.array([1, 2, 3], dtype=np.int64)), "cluster", part)
    assert host(wide.to_frame()).dtypes["cluster"] == np.int32
    errors = vectors.to_series([None, "decode: é", ""], "error", part)
    assert vectors.to_arrow(errors.to_frame())["error"].to_pylist() == [None, "decode: é", ""]


def test_a_partition_goes_to_the_backend_and_back_unchanged(on: Backend) -> None:
    part = schema.table(
        {
            "image_id": ["a", "b", "c"],
            "bytes": [1, 2, 3],
            "sample_offset": [0, None, 2**40],
            "caption": ["é", None, ""],
            "width": [None, 3, 4],
            "kept": [True, False, True],
        }
    )
    part = part.assign(embedding=vectors.to_column(np.eye(3, dtype=np.float32), part, np.array([True, False, True])))
    moved = vectors.from_pandas(part, on.part(part.iloc[:0]))
    assert type(moved).__module__.startswith(on.name)
    pd.testing.assert_frame_equal(vectors.to_pandas(moved), part)
    assert vectors.to_pandas(on.part(part.set_axis([5, 6, 9]))).index.tolist() == [5, 6, 9]


def test_an_empty_partition_has_the_types_of_a_full_one(on: Backend) -> None:
    part = schema.table({"image_id": ["a"], "width": [1], "error": [None], "aesthetic_score": [0.5], "kept": [True]})
    part = part.assign(embedding=vectors.to_column(np.eye(1, dtype=np.float32), part))
    full = on.part(part)
    empty = vectors.empty_like(full, list(part.columns))
    assert len(empty) == 0 and empty.dtypes.to_dict() == full.dtypes.to_dict()


def test_arrow_tables_have_the_types_of_the_schema_and_no_pandas_metadata(on: Backend) -> None:
    part = schema.table({"image_id": ["a"], "caption": [None], "width": [1], "kept": [True]})
    part = part.assign(embedding=vectors.to_column(np.eye(1, dtype=np.float32), part))
    table = vectors.to_arrow(on.part(part.set_axis([3])))
    assert table.column_names == list(part.columns) and table.schema.metadata is None
    for field in table.schema:
        expected = schema.TYPES[field.name]
        same = pa.types.is_list(field.type) and field.type.value_type == pa.float32()
        assert field.type == expected or (field.name == "embedding" and same)


def test_unit_rows_are_those_of_float64_and_do_not_depend_on_their_neighbours(on: Backend) -> None:
    matrix = RNG.standard_normal((9000, 7)).astype(np.float32)
    matrix[3], matrix[4], matrix[5, 0], matrix[6, 0] = 0, np.nan, np.inf, 1e-30
    unit, valid = vectors.unit_rows(on.array(matrix))
    assert isinstance(valid, np.ndarray) and np.flatnonzero(~valid).tolist() == [3, 4, 5]
    assert unit.dtype == np.float32 and (vectors.to_numpy(unit)[~valid] == 0).all()
    wide = matrix[valid].astype(np.float64)
    expected = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors.to_numpy(unit)[valid], expected, rtol=1e-6, atol=0)
    for start, stop in ((0, 1), (8, 9), (4000, 4200), (8999, 9000)):
        alone, _ = vectors.unit_rows(on.array(matrix[start:stop]))
        np.testing.assert_array_equal(vectors.to_numpy(alone), vectors.to_numpy(unit)[start:stop])
