"""neighbours and outliers: the lists of brute force, however a frame is partitioned, through memory and through files."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from test_semantic import frame_of
from test_work import SMALL, TILES, setting

import imgcurate as ic
from imgcurate.dedup.semantic import screen
from imgcurate.dedup.semantic.clusters import exchange
from imgcurate.nearest import compare
from imgcurate.vectors import unit_rows


@pytest.fixture
def in_process() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def grouped(n: int = 500, d: int = 12, groups: int = 15, seed: int = 0) -> np.ndarray:
    """Rows in groups, of which some are equal bit by bit, more than any list is long."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((groups, d))[rng.integers(groups, size=n)] + 0.4 * rng.standard_normal((n, d))
    rows[: n // 10] = rows[n // 10]
    return unit_rows(rows[rng.permutation(n)].astype(np.float32))[0]


def names(n: int, seed: int = 1) -> list[str]:
    return [f"img{number:05}" for number in np.random.default_rng(seed).permutation(n)]


def brute(rows: np.ndarray, ids: Any, k: int) -> dict[Any, list[tuple[Any, float]]]:
    """Return what a sort of all cosines says: of equally near ones the lowest id first."""
    cosines = np.minimum((rows.astype(np.float64) @ rows.T.astype(np.float64)).astype(np.float32), 1)
    ids, lists = np.array(ids), {}
    for row, name in enumerate(ids.tolist()):
        order = [at for at in np.lexsort((ids, -cosines[row])) if at != row][:k]
        lists[name] = [(ids[at].item(), float(cosines[row, at])) for at in order]
    return lists


def lists_of(found: Any) -> dict[Any, list[tuple[Any, float]]]:
    frame = found.frame
    frame = frame.compute() if hasattr(frame, "dask") else frame
    return {
        row.image_id: list(zip(list(row.neighbours), map(float, row.similarities), strict=True))
        for row in frame.itertuples()
    }


def assert_alike(a: dict[Any, Any], b: dict[Any, Any]) -> None:
    """The same ids in the same order; a matrix product in float64 may round a cosine the other way than a sum does."""
    assert a.keys() == b.keys()
    for name, pairs in a.items():
        assert [other for other, _ in pairs] == [other for other, _ in b[name]], name
        assert [value for _, value in pairs] == pytest.approx([value for _, value in b[name]], abs=1e-6)


def test_a_users_path(client: Client) -> None:
    rows = grouped()
    found = ic.neighbours(frame_of(rows, names(500)), k=5)
    assert repr(found) == "Neighbours(500 images all compared; k=5; see .frame (lazy), .recall(), .show() (at once))"
    first = found.frame.head(2)
    assert list(first.columns) == ["image_id", "neighbours", "similarities"]
    assert found.frame._meta.dtypes.to_dict() == found.frame.compute().dtypes.to_dict()
    assert_alike(lists_of(found), brute(rows, names(500), 5))
    assert found.recall(50)[:1] == (1.0,)
    frame = found.frame
    del found
    gc.collect()
    assert len(frame) == 500  # which holds what it is made from


@pytest.mark.parametrize("low_precision", [False, True])
def test_one_cluster_and_exact_find_the_lists_of_brute_force(
    in_process: None, monkeypatch: pytest.MonkeyPatch, low_precision: bool
) -> None:
    monkeypatch.setattr(screen, "_is_fast", lambda device, dtype: low_precision)
    monkeypatch.setattr(compare, "TILE", {"cpu": (50, 96)})
    monkeypatch.setattr(exchange, "_SMALLEST_TILE", 100)
    monkeypatch.setattr(exchange, "_LARGEST_TILE", 200)
    rows = grouped()
    for options in ({}, {"n_clusters": 20, "exact": True}, {"n_clusters": 9, "probes": 9}):
        found = ic.neighbours(frame_of(rows, names(500)), k=7, **options)
        assert found.n_clusters == 1
        assert_alike(lists_of(found), brute(rows, names(500), 7))


def test_lists_are_those_of_brute_force_inside_the_clusters_that_are_probed(in_process: None) -> None:
    rows, ids = grouped(seed=3), names(500)
    every = brute(rows, ids, 500)
    found = ic.neighbours(frame_of(rows, ids), k=6, n_clusters=20, probes=3)
    lists = lists_of(found)
    assert set(lists) == set(ids)
    # Each list is the beginning of what brute force says of some of the images.
    for name, pairs in lists.items():
        assert len({other for other, _ in pairs}) == len(pairs) <= 6 and name not in dict(pairs)
        order = {other: at for at, (other, _) in enumerate(every[name])}
        assert sorted(pairs, key=lambda pair: order[pair[0]]) == pairs
        assert dict(pairs) == pytest.approx({other: dict(every[name])[other] for other, _ in pairs}, abs=1e-6)
    true = {name: {other for other, _ in pairs[:6]} for name, pairs in every.items()}
    shares = [
        sum(value >= every[name][5][1] - 1e-6 for _, value in pairs) / 6 for name, pairs in lists.items() if true[name]
    ]
    assert found.recall(500).recall == pytest.approx(np.mean(shares), abs=1e-4)
    more = ic.neighbours(frame_of(rows, ids), k=6, n_clusters=20, probes=8)
    assert 0.6 < found.recall(500).recall < more.recall(500).recall


@settings(max_examples=15)
@given(
    n=st.integers(1, 60),
    d=st.integers(1, 9),
    k=st.integers(1, 70),
    levels=st.integers(1, 4),
    npartitions=st.integers(1, 4),
    n_clusters=st.sampled_from([None, 3, 7]),
    seed=st.integers(0, 99),
)
def test_any_rows_and_any_partitions_give_the_lists_of_brute_force(
    n: int, d: int, k: int, levels: int, npartitions: int, n_clusters: int | None, seed: int
) -> None:
    # Of few levels, so that many cosines are equal or negative.
    matrix = np.random.default_rng(seed).integers(-levels, levels + 1, (n, d)).astype(np.float32)
    unit, valid = unit_rows(matrix)
    ids = np.array(names(n, seed))
    with dask.config.set(scheduler="synchronous"):
        found = ic.neighbours(
            frame_of(matrix, ids, npartitions), k, n_clusters=n_clusters, exact=n_clusters == 3, probes=2
        )
        lists = lists_of(found)
        again = lists_of(ic.neighbours((ids, matrix), k, n_clusters=n_clusters, exact=n_clusters == 3, probes=2))
    assert lists == again
    for pairs in lists.values():
        assert pairs == sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
    assert (found.n_rows, found.n_compared) == (n, valid.sum())
    expected = brute(unit[valid], ids[valid], k)
    if n_clusters != 7:
        assert lists.keys() == expected.keys()
        for name, pairs in lists.items():
            assert [value for _, value in pairs] == pytest.approx([value for _, value in expected[name]], abs=1e-6)


def test_files_give_what_memory_gives_and_what_is_there_is_not_made_again(in_process: None, tmp_path: Path) -> None:
    rows, ids = grouped(), names(500)
    for options in ({}, {"n_clusters": 20, "probes": 3}):
        expected = lists_of(ic.neighbours(frame_of(rows, ids, 5), k=4, **options))
        with setting(SMALL, TILES):
            found = ic.neighbours(frame_of(rows, ids, 5), k=4, work=tmp_path / "work", **options)
            assert lists_of(found) == expected
            assert found.recall(100).recall == ic.neighbours((ids, rows), k=4, **options).recall(100).recall
            made = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "work").rglob("*.arrow")}
            assert lists_of(ic.neighbours(frame_of(rows, ids, 5), k=4, work=tmp_path / "work", **options)) == expected
            assert {path: os.stat(path).st_mtime_ns for path in (tmp_path / "work").rglob("*.arrow")} == made


def test_a_temporary_folder_goes_with_the_last_frame(in_process: None, tmp_path: Path) -> None:
    with setting(SMALL), dask.config.set({"temporary-directory": str(tmp_path)}):
        frame = ic.neighbours(frame_of(grouped(60), names(60)), k=3).frame
        assert len(frame) == 60 and len(list(tmp_path.iterdir())) == 1
        del frame
        gc.collect()
        assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_compared_have_no_list_and_are_in_none(in_process: None) -> None:
    rows = np.vstack([grouped(40), np.zeros((1, 12)), np.full((1, 12), np.nan)]).astype(np.float32)
    error = pd.Series([None] * 39 + ["decode: truncated JPEG"] + [None] * 2, dtype="str")
    found = ic.neighbours(frame_of(rows, names(42), error=error), k=50)
    lists = lists_of(found)
    assert set(lists) == set(names(42)[:39]) and all(len(pairs) == 38 for pairs in lists.values())
    assert "39 images all compared, 3 excluded" in repr(found)


def test_ids_may_be_numbers_and_a_frame_may_have_one_image_or_none(in_process: None) -> None:
    rows = grouped(30)
    assert_alike(lists_of(ic.neighbours((range(30), rows), k=3)), brute(rows, range(30), 3))
    hashes = np.arange(30, dtype=np.uint64) + np.uint64(2**63)  # beyond what 64 bits with a sign hold
    large = pd.DataFrame({"image_id": hashes, "embedding": list(rows)})
    assert_alike(lists_of(ic.neighbours(dd.from_pandas(large, npartitions=2), k=3)), brute(rows, hashes.tolist(), 3))
    one = ic.neighbours((["a"], rows[:1]), k=3)
    assert lists_of(one) == {"a": []} and not one.recall().true_pairs
    none = ic.neighbours(frame_of(rows[:3], error=["x"] * 3), k=3)
    assert lists_of(none) == {} and none.recall().images == 0 and len(ic.outliers(none)) == 0


def test_wrong_arguments_are_named() -> None:
    pair = (["a", "b"], np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match="k=0 must be a whole number of at least 1"):
        ic.neighbours(pair, 0)
    with pytest.raises(ValueError, match=r"probes=0 .* exact=True compares everything"):
        ic.neighbours(pair, probes=0)
    with pytest.raises(ValueError, match="exact='yes' must be True or False"):
        ic.neighbours(pair, exact="yes")
    with pytest.raises(KeyError, match="neighbours needs column 'embedding'"):
        ic.neighbours(dd.from_pandas(pd.DataFrame({"image_id": ["a"]}), npartitions=1))
    with pytest.raises(ValueError, match="name more than one row"):
        ic.neighbours((["a", "a"], np.eye(2)))
    with pytest.raises(ValueError, match=r"sample=0 must be"):
        ic.neighbours(pair).recall(0)


def test_planted_strangers_have_the_highest_scores(client: Client) -> None:
    rng = np.random.default_rng(99)
    rows = np.vstack([grouped(400, 24, seed=4), rng.standard_normal((8, 24))])
    ids = names(408)
    frame = frame_of(rows, ids)
    scores = ic.outliers(frame, k=6)
    assert set(scores.nlargest(8, "outlier_score").compute()["image_id"]) == set(ids[400:])
    done = scores.compute().set_index("image_id")["outlier_score"]
    assert done.dtype == np.float32 and done.index.is_unique
    expected = {
        name: 1 - np.mean([value for _, value in pairs]) for name, pairs in brute(unit_rows(rows)[0], ids, 6).items()
    }
    assert done.to_dict() == pytest.approx(expected, abs=1e-6)
    with_scores = frame.merge(scores, on="image_id", how="left").compute()
    assert len(with_scores) == 408 and with_scores["outlier_score"].notna().all()


def test_what_neighbours_found_is_scored_without_another_search(
    in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = (names(50), grouped(50))
    found = ic.neighbours(pair, k=3)
    expected = ic.outliers(pair, k=3)
    monkeypatch.setattr("imgcurate.nearest.outliers.neighbours", lambda *a, **k: pytest.fail("searched again"))
    pd.testing.assert_frame_equal(ic.outliers(found), expected)
    lonely = ic.neighbours((["a"], np.ones((1, 3))))
    assert ic.outliers(lonely)["outlier_score"].isna().all()
