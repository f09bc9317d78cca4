"""representatives: exactly as many as were asked for, those of brute force, however a frame is partitioned, through memory and through files."""

from __future__ import annotations

import gc
import itertools
import os
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from test_neighbours import grouped, names
from test_semantic import frame_of
from test_work import SMALL, setting

import imgcurate as ic
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic.clusters import kmeans, sample
from imgcurate.dedup.work import memory
from imgcurate.sampling import quotas, steps, tree
from imgcurate.sampling.farthest import farthest_first
from imgcurate.vectors import unit_rows


@pytest.fixture
def in_process() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def taken(found: Any) -> pd.DataFrame:
    """Return what was taken, by cluster and rank."""
    frame = found.frame.compute() if hasattr(found.frame, "dask") else found.frame
    return frame.sort_values(["cluster", "rank"], ignore_index=True)


def greedy(unit: np.ndarray, k: int) -> list[int]:
    """Choose farthest-first in whole numbers of any size: of rows times 2**25, rounded."""
    rows = [[int(value) for value in row] for row in np.rint(unit.astype(np.float64) * 2**25)]

    def dot(a: list[int], b: list[int]) -> int:
        return sum(x * y for x, y in zip(a, b, strict=True))

    mean = [round(sum(column) / len(rows)) for column in zip(*rows, strict=True)]
    chosen = [max(range(len(rows)), key=lambda at: (dot(rows[at], mean), -at))]
    while len(chosen) < k:
        left = [at for at in range(len(rows)) if at not in chosen]
        chosen.append(min(left, key=lambda at: (max(dot(rows[at], rows[other]) for other in chosen), at)))
    return chosen


def mixture(n: int = 4000, d: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ten concepts, of which the first has nine in ten; and the concept of each."""
    rng = np.random.default_rng(seed)
    concept = np.where(rng.random(n) < 0.9, 0, rng.integers(1, 10, n))
    noise = 0.5 * rng.standard_normal((n, d)) / d**0.5
    return unit_rows((unit_rows(rng.standard_normal((10, d)))[0][concept] + noise).astype(np.float32))[0], concept


def test_a_users_path(client: Client) -> None:
    frame = frame_of(grouped(), names(500))
    found = ic.representatives(frame, 25)
    assert repr(found) == "Representatives(25 of 500 images, from 1 cluster; farthest-first; see .frame (lazy))"
    assert found.frame._meta.dtypes.to_dict() == found.frame.compute().dtypes.to_dict()
    assert list(found.frame.columns) == ["image_id", "cluster", "rank"] and len(found) == 25
    small = frame.merge(found.frame, on="image_id")
    del found
    gc.collect()
    assert len(small) == 25 and "embedding" in small.columns  # the frame holds what it is made from
    balanced = ic.representatives(frame, fraction=0.1, method="hierarchical")
    assert len(balanced.frame) == balanced.n == 50


@settings(max_examples=40)
@given(n=st.integers(1, 30), d=st.integers(1, 9), levels=st.integers(1, 3), seed=st.integers(0, 99), data=st.data())
def test_farthest_first_is_what_brute_force_chooses(n: int, d: int, levels: int, seed: int, data: Any) -> None:
    # Of few levels, so that many rows are equal or equally far.
    matrix = np.random.default_rng(seed).integers(-levels, levels + 1, (n, d)).astype(np.float32)
    unit = unit_rows(matrix)[0][unit_rows(matrix)[1]]
    if len(unit):
        k = data.draw(st.integers(1, len(unit)))
        assert farthest_first(unit, k).tolist() == greedy(unit, k)


def test_no_other_choice_covers_at_less_than_half_the_distance() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        unit = unit_rows(rng.standard_normal((9, 3)))[0].astype(np.float64)
        apart = np.linalg.norm(unit[:, None] - unit, axis=2)
        for k in (1, 2, 3):
            best = min(apart[list(some)].min(axis=0).max() for some in itertools.combinations(range(9), k))
            radius = apart[farthest_first(unit.astype(np.float32), k)].min(axis=0).max()
            assert radius <= 2 * best + 1e-6


@settings(max_examples=12)
@given(
    n=st.integers(1, 80),
    npartitions=st.integers(1, 6),
    method=st.sampled_from(["farthest-first", "hierarchical"]),
    n_clusters=st.sampled_from([None, 4]),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_partitions_give_the_same_images_and_as_many_as_were_asked_for(
    n: int, npartitions: int, method: str, n_clusters: int | None, weighted: bool, seed: int, data: Any
) -> None:
    rng = np.random.default_rng(seed)
    matrix, ids = rng.integers(-2, 3, (n, 4)).astype(np.float32), np.array(names(n, seed))
    valid, weight = matrix.any(axis=1), rng.integers(0, 3, n).astype(np.float64)
    if not valid.any():
        return
    how = {"method": method, "n_clusters": n_clusters, "weight": "score" if weighted else None}
    wanted = data.draw(st.integers(1, int(valid.sum())))
    order = rng.permutation(n)
    with dask.config.set(scheduler="synchronous"), setting({(steps, "_LARGEST_GROUP"): 20}):
        found = ic.representatives(frame_of(matrix, ids, 1, score=weight), wanted, **how)
        again = ic.representatives(frame_of(matrix[order], ids[order], npartitions, score=weight[order]), wanted, **how)
        pd.testing.assert_frame_equal(taken(found), taken(again))
    assert len(taken(found)) == wanted and set(taken(found)["image_id"]) <= set(ids[valid])
    assert taken(found)["image_id"].is_unique and (found.n_rows, found.n_compared) == (n, valid.sum())


@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=7), data=st.data())
def test_shares_are_those_that_are_counted_out_one_by_one(sizes: list[int], data: Any) -> None:
    n, order = data.draw(st.integers(0, sum(sizes))), data.draw(st.permutations(range(len(sizes))))
    expected = [0] * len(sizes)
    for _ in range(n):
        hungry = [at for at in range(len(sizes)) if expected[at] < sizes[at]]
        expected[min(hungry, key=lambda at: (expected[at], order[at]))] += 1
    assert quotas.balanced(np.array(sizes), n, np.array(order)).tolist() == expected
    shares = quotas.in_proportion(np.array(sizes), n)
    assert shares.sum() == n and (shares <= sizes).all()
    if n:
        exact = np.array(sizes) * n / sum(sizes)
        assert (np.abs(shares - exact) < 1).all()
        up, down = exact[shares > exact] % 1, exact[shares < exact] % 1
        assert not len(up) or not len(down) or up.min() >= down.max() - 1e-9


def test_shares_go_down_the_tree_evenly_at_each_level() -> None:
    rng = np.random.default_rng(0)
    sizes, parents = rng.integers(0, 20, 60), [rng.integers(0, 12, 60), rng.integers(0, 3, 12)]
    for n in (0, 1, 50, 211, int(sizes.sum())):
        leaves = quotas.down_the_tree(sizes, parents, n, seed=3)
        assert leaves.sum() == n and (leaves <= sizes).all()
        given_out, there = leaves, sizes
        for parent in (*parents, None):
            groups = [np.arange(len(there))] if parent is None else [np.flatnonzero(parent == at) for at in set(parent)]
            for own in groups:
                hungry = own[given_out[own] < there[own]]
                if len(hungry):  # none of them may have less than another by more than one
                    assert given_out[own].max() - given_out[hungry].min() <= 1
            if parent is not None:
                given_out, there = (np.bincount(parent, weights=of).astype(int) for of in (given_out, there))


def test_what_is_rare_is_as_frequent_as_what_is_common_down_the_tree(in_process: None) -> None:
    rows, concept = mixture()
    of = dict(zip(names(len(rows)), concept.tolist(), strict=True))

    def shares(**how: Any) -> np.ndarray:
        ids = taken(ic.representatives((list(of), rows), 200, **how))["image_id"]
        return np.bincount([of[name] for name in ids], minlength=10) / 200

    balanced, proportional = shares(method="hierarchical"), shares(n_clusters=20)
    assert balanced.max() < 0.2 and balanced.min() > 0.03
    assert np.exp(-(balanced * np.log(balanced)).sum()) > 9  # of ten equal shares it is ten
    assert (concept == 0).mean() > 0.89 and proportional[0] == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("method", ["farthest-first", "hierarchical"])
def test_clusters_give_their_share_and_ranks_count_from_nought(in_process: None, method: str) -> None:
    pair = names(400), grouped(400)
    every = taken(ic.representatives(pair, fraction=1, method=method, n_clusters=9))
    some = taken(ic.representatives(pair, 70, method=method, n_clusters=9))
    sizes, shares = (np.bincount(frame["cluster"], minlength=9) for frame in (every, some))
    evenly = quotas.down_the_tree(sizes, [], 70, 42)
    assert shares.tolist() == (evenly if method == "hierarchical" else quotas.in_proportion(sizes, 70)).tolist()
    for _, part in some.groupby("cluster"):
        assert part["rank"].tolist() == list(range(len(part)))
    # Those that come first of all are those of the smaller set.
    first = every[every["rank"] < shares[every["cluster"]]].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, first)


def test_a_weight_decides_among_those_that_stand_for_the_same(in_process: None) -> None:
    rng = np.random.default_rng(2)
    rows, ids = grouped(300), names(300)
    weight = rng.random(300).round(1)
    weight[::7] = np.nan
    frame = frame_of(rows, ids, score=weight)
    heavy = dict(zip(ids, np.nan_to_num(weight, nan=-1), strict=True))

    leaves = taken(ic.representatives(frame, fraction=1, method="hierarchical", n_clusters=6, weight="score"))
    for _, part in leaves.groupby("cluster"):
        of = [heavy[name] for name in part["image_id"]]
        assert of == sorted(of, reverse=True)

    order = np.argsort(ids)
    chosen = [ids[at] for at in order[farthest_first(rows[order], 12)]]
    instead = taken(ic.representatives(frame, 12, weight="score"))["image_id"].tolist()
    at = {name: number for number, name in enumerate(ids)}
    cosines = rows.astype(np.float64) @ rows[[at[name] for name in chosen]].astype(np.float64).T
    for number, (center, name) in enumerate(zip(chosen, instead, strict=True)):
        own = cosines[at[name]]
        assert own[number] > own.max() - 1e-6 and heavy[name] >= heavy[center]
        nearest = [other for other in ids if cosines[at[other], number] > np.delete(cosines[at[other]], number).max()]
        assert heavy[name] >= max(heavy[other] for other in nearest)


def test_files_give_what_memory_gives_and_what_is_there_is_not_made_again(in_process: None, tmp_path: Path) -> None:
    rows, ids = grouped(), names(500)
    frame = frame_of(rows, ids, 5, score=np.arange(500.0))
    for how in (
        {"n_clusters": 3},
        {"n_clusters": 3, "weight": "score"},
        {"method": "hierarchical", "n_clusters": [25, 5]},
    ):
        with setting({(steps, "_LARGEST_GROUP"): 90, (steps, "_BUCKET_BYTES"): 20_000}):
            expected = ic.representatives(frame, 60, **how)
            with setting(SMALL):
                found = ic.representatives(frame, 60, work=tmp_path / "work", **how)
                made = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "work").rglob("*.arrow")}
                more = ic.representatives(frame, 61, work=tmp_path / "work", **how)
                assert {path: os.stat(path).st_mtime_ns for path in (tmp_path / "work").rglob("*.arrow")} == made
        pd.testing.assert_frame_equal(taken(found), taken(expected))
        assert found.n_clusters == expected.n_clusters and len(taken(more)) == 61
        assert how.get("method") or found.n_clusters > 3  # whose clusters were cut


def test_a_tree_is_fitted_to_a_sample_in_files_without_holding_it(in_process: None, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((40_000, 64)).astype(np.float32)
    with setting({(memory, "_SHARE_IN_MEMORY"): 0, (frames, "_GROUP_BYTES"): 1 << 20}):
        frame = frames.prepare(frame_of(rows, names(len(rows)), 8), "image_id", "embedding", [], 0, str(tmp_path))
        tracemalloc.start()
        made = sample.of_sample(frame, 36_000, tree.grow, [20, 4], 0).compute()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert made.centroids.shape == (20, 64) and not list((tmp_path / "sample").iterdir())
    assert peak < 36_000 * 64 * 4 / 2


def test_a_temporary_folder_goes_when_all_are_chosen(in_process: None, tmp_path: Path) -> None:
    with setting(SMALL), dask.config.set({"temporary-directory": str(tmp_path)}):
        found = ic.representatives(frame_of(grouped(60), names(60)), 7)
        gc.collect()
        assert not list(tmp_path.iterdir()) and len(found.frame) == 7


def test_images_that_cannot_be_compared_are_counted_and_never_taken(in_process: None) -> None:
    rows = np.vstack([grouped(40), np.zeros((1, 12)), np.full((1, 12), np.nan)]).astype(np.float32)
    error = pd.Series([None] * 39 + ["decode: truncated JPEG"] + [None] * 2, dtype="str")
    frame = frame_of(rows, names(42), error=error)
    for method in ("farthest-first", "hierarchical"):
        found = ic.representatives(frame, fraction=1.0, method=method)
        assert set(taken(found)["image_id"]) == set(names(42)[:39])
        assert (found.n, found.n_rows, found.n_excluded) == (39, 42, 3) and ", 3 excluded;" in repr(found)
    with pytest.raises(ValueError, match="n=40 is more than the 39 images that have a usable vector and no error"):
        ic.representatives(frame, 40)
    with pytest.raises(ValueError, match="n=1 is more than the 0 images"):
        ic.representatives(frame_of(rows[40:]), fraction=0.5)


def test_a_share_is_rounded_up_and_ids_may_be_numbers(in_process: None) -> None:
    pair = range(10), grouped(10)
    assert [ic.representatives(pair, fraction=share).n for share in (1e-9, 0.3, 0.31, 1)] == [1, 3, 4, 10]
    assert taken(ic.representatives(pair, 3))["image_id"].dtype == np.int64


def test_wrong_arguments_are_named() -> None:
    pair = (["a", "b"], np.eye(2, dtype=np.float32))
    for given_both_or_none in ({}, {"n": 1, "fraction": 0.5}):
        with pytest.raises(ValueError, match="give either n, how many images to take, or fraction"):
            ic.representatives(pair, **given_both_or_none)
    for wrong in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match="must be a whole number of at least 1; fraction= takes a share"):
            ic.representatives(pair, wrong)
    for share in (0, 1.01, float("nan"), "half", True):
        with pytest.raises(ValueError, match="must be a share above 0 and at most 1"):
            ic.representatives(pair, fraction=share)
    with pytest.raises(ValueError, match="method='random' is unknown: give 'farthest-first' or 'hierarchical'"):
        ic.representatives(pair, 1, method="random")
    with pytest.raises(ValueError, match=r"n_clusters=\[3, 9\] must fall"):
        ic.representatives(pair, 1, method="hierarchical", n_clusters=[3, 9])
    with pytest.raises(ValueError, match=r"n_clusters=\[9, 3\] must be a whole number"):
        ic.representatives(pair, 1, n_clusters=[9, 3])
    with pytest.raises(KeyError, match="representatives needs column 'score'"):
        ic.representatives(frame_of(np.eye(2)), 1, weight="score")
    with pytest.raises(TypeError, match="column 'score' holds str, not numbers to weigh images by"):
        ic.representatives(frame_of(np.eye(2), score=["a", "b"]), 1, weight="score")


def test_few_rows_far_from_all_others_get_a_centroid_on_any_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    rows = unit_rows(np.array([1.0] + [0] * 7) + 0.01 * rng.standard_normal((900, 8)))[0]
    rows[[100, 500, 700]] = np.eye(8, dtype=np.float32)[[3, 4, 5]]
    threads, fitted = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        fitted.append(kmeans.fit(rows, 12, 0, "k-means++"))
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(*fitted)
    assert (fitted[0] @ rows[[100, 500, 700]].T).max(axis=0).min() > 0.99
    same = kmeans.fit(np.repeat(rows[:1], 20, axis=0), 3, 0, "k-means++")
    assert Counter(map(bytes, same)).total() == 3 and np.allclose(same, rows[0], atol=1e-2)
