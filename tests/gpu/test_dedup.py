"""Duplicates: what is removed on a GPU is what brute force in float64 removes, and what the CPU removes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import image_bytes

import imgcurate as ic
from gpu.conftest import PANDAS, Backend, embedded, host
from gpu.test_models import rows_of
from imgcurate import vectors

EPS = 0.05
BAND = 1e-4
CUTS = (0, 100, 100, 371)

OnCpu = Callable[[Callable[[], Any]], Any]


def planted(n: int = 600, d: int = 32, seed: int = 0) -> np.ndarray:
    """Unit vectors, a third of them near another, with no cosine so near to 1 - EPS that rounding could decide."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d))
    copies = rng.permutation(n)[: n // 3]
    noise = rng.uniform(0.05, 0.45, (len(copies), 1))
    rows[copies] = rows[rng.integers(n, size=len(copies))] + noise * rng.standard_normal((len(copies), d))
    unit = vectors.unit_rows(rows)[0]
    for _ in range(20):
        close = np.abs(cosines(unit) - (1 - EPS)) < 2 * BAND
        if not close.any():
            return unit
        unit[close.any(axis=1)] = vectors.unit_rows(rng.standard_normal((int(close.any(axis=1).sum()), d)))[0]
    raise AssertionError("no such vectors were found")


def cosines(unit: np.ndarray) -> np.ndarray:
    wide = unit.astype(np.float64)
    return wide @ wide.T


def brute_force(unit: np.ndarray, order: np.ndarray, rule: str) -> set[str]:
    """Walk in rank order, comparing every pair."""
    near = cosines(unit) >= 1 - EPS
    earlier: list[int] = []
    gone = []
    for row in order:
        found = near[row, earlier].any() if earlier else False
        if found:
            gone.append(row)
        if not found or rule == "pointwise":
            earlier.append(row)
    return {f"img{row:04}" for row in gone}


def removed(found: ic.Duplicates, eps: float | None = None) -> set[str]:
    return set(host(found.removals(eps))["image_id"])


@pytest.mark.parametrize("rule", ["cover", "pointwise"])
def test_what_goes_is_what_brute_force_in_float64_says(on: Backend, rule: str) -> None:
    unit = planted()
    score = np.random.default_rng(1).permutation(len(unit)).astype(np.float32)
    frame = on.frame(embedded(unit, aesthetic_score=score.tolist()), CUTS)
    found = ic.semantic_duplicates(frame, eps=EPS, rule=rule, keep=[("aesthetic_score", "max")])
    expected = brute_force(unit, np.argsort(-score), rule)
    assert removed(found) == expected and len(expected) > 50
    assert found.sweep([EPS])["removed"].tolist() == [len(expected)]
    pairs = host(found.pairs)
    rows, twins = (pairs[name].str[3:].astype(int) for name in ("image_id", "duplicate_of"))
    np.testing.assert_allclose(pairs["similarity"].astype(float), cosines(unit)[rows, twins], atol=1e-5)


@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
def test_ranks_and_twins_are_those_of_the_cpu(on: Backend, on_cpu: OnCpu, keep: Any) -> None:
    part = embedded(planted(seed=2))
    found = host(ic.semantic_duplicates(on.frame(part, CUTS), eps=EPS, keep=keep).pairs)
    expected = on_cpu(lambda: host(ic.semantic_duplicates(PANDAS.frame(part, CUTS), eps=EPS, keep=keep).pairs))
    found, expected = (pairs.sort_values("image_id", ignore_index=True) for pairs in (found, expected))
    assert found["image_id"].tolist() == expected["image_id"].tolist()
    np.testing.assert_allclose(found["similarity"].astype(float), expected["similarity"].astype(float), atol=1e-5)


@pytest.mark.parametrize("rule", ["cover", "pointwise"])
def test_inside_given_clusters_the_answer_is_that_of_the_cpu(on: Backend, on_cpu: OnCpu, rule: Any) -> None:
    unit = planted(seed=3)
    part, options = embedded(unit), {"eps": EPS, "rule": rule, "keep": "random", "centroids": unit[:7]}
    found = ic.semantic_duplicates(on.frame(part, CUTS), **options)
    expected = on_cpu(lambda: ic.semantic_duplicates(PANDAS.frame(part, CUTS), **options))
    assert removed(found) == on_cpu(lambda: removed(expected))
    places = host(found.assignments).sort_values("image_id", ignore_index=True)
    theirs = on_cpu(lambda: host(expected.assignments)).sort_values("image_id", ignore_index=True)
    assert places["cluster"].tolist() == theirs["cluster"].tolist()
    np.testing.assert_allclose(
        places["centroid_distance"].astype(float), theirs["centroid_distance"].astype(float), atol=1e-6
    )


@pytest.mark.parametrize("n_clusters", [2, 8, 40])
def test_k_means_leaves_one_of_each_group_of_copies(on: Backend, n_clusters: int) -> None:
    rng = np.random.default_rng(4)
    originals = vectors.unit_rows(rng.standard_normal((300, 16)))[0]
    copied = np.concatenate([np.arange(300), rng.integers(300, size=150)])
    frame = on.frame(embedded(originals[copied]), (7, 7, 200, 440))
    found = ic.semantic_duplicates(frame, eps=1e-5, n_clusters=n_clusters)
    kept = [int(image_id[3:]) for image_id in host(ic.remove(frame, found))["image_id"]]
    assert sorted(copied[kept]) == list(range(300)) and found.n_clusters == n_clusters
    sizes = host(found.assignments)["cluster"].value_counts()
    assert sizes.sum() == 450 and sizes.max() < 450


def test_more_clusters_than_images_are_as_many_as_there_are_images(on: Backend) -> None:
    frame = on.frame(embedded(np.eye(4, dtype=np.float32)[[0, 1, 2, 0]]), (1, 1, 3))
    found = ic.semantic_duplicates(frame, eps=EPS, n_clusters=9)
    assert found.n_clusters == 4 and len(removed(found)) == 1


@pytest.mark.parametrize("rows", [0, 1])
def test_frames_of_no_row_or_one_have_no_duplicates(on: Backend, rows: int) -> None:
    found = ic.semantic_duplicates(on.frame(embedded(np.ones((rows, 3)))), eps=EPS)
    assert removed(found) == set() and len(host(found.pairs)) == 0 and found.n_rows == rows


def test_rows_without_a_usable_vector_or_with_an_error_are_not_compared(on: Backend) -> None:
    matrix = np.tile(np.array([[3.0, 4.0]], dtype=np.float32), (7, 1))
    matrix[1], matrix[2], matrix[3, 0] = np.nan, 0, np.inf
    errors = [None, None, None, None, None, "decode: not an image", None]
    part = embedded(matrix, np.array([1, 1, 1, 1, 0, 1, 1], dtype=bool), error=errors)
    found = ic.semantic_duplicates(on.frame(part, (2, 5)), eps=EPS, keep="easy")
    assert (found.n_rows, found.n_compared, found.n_excluded) == (7, 2, 5)
    assert removed(found) == {"img0006"}


def test_remove_takes_every_form_of_list_and_keeps_the_vectors(on: Backend, tmp_path: Path) -> None:
    unit = planted(n=60, seed=5)
    part = embedded(unit)
    frame = on.frame(part, (0, 11, 11, 40))
    found = ic.semantic_duplicates(frame, eps=EPS)
    gone = removed(found)
    ic.write_parquet(found.removals(), tmp_path / "gone")
    expected = part[~part["image_id"].isin(list(gone))]
    assert 0 < len(gone) < 60
    for removals in (
        found,
        found.removals(),
        tmp_path / "gone",
        pd.Series(sorted(gone)),
        on.part(host(found.removals())),
        on.part(host(found.removals()))["image_id"].rename(None),
    ):
        kept = host(ic.remove(frame, removals))
        assert kept["image_id"].tolist() == expected["image_id"].tolist()
        np.testing.assert_array_equal(vectors.to_matrix(kept["embedding"]), unit[expected.index])


def test_ids_that_the_frame_does_not_have_are_counted(on: Backend) -> None:
    frame = on.frame(embedded(np.eye(4, dtype=np.float32)), (2,))
    with pytest.warns(UserWarning, match="1 of 2 ids to remove are not in the frame: 'absent'"):
        assert len(ic.remove(frame, pd.Series(["img0001", "absent"]))) == 3


def test_repeated_ids_are_refused_by_name(on: Backend) -> None:
    part = embedded(np.eye(4, dtype=np.float32))
    part["image_id"] = part["image_id"].where(part.index != 3, "img0001")
    with pytest.raises(ValueError, match="img0001"):
        ic.semantic_duplicates(on.frame(part, (2,)), eps=EPS)


@pytest.mark.parametrize(
    "options", [{"n_clusters": 5, "probes": 1}, {"n_clusters": 5}, {"n_clusters": 5, "exact": True}]
)
def test_probes_and_exact_search_find_what_they_find_on_the_cpu(
    on: Backend, on_cpu: OnCpu, options: dict[str, Any]
) -> None:
    unit = planted(seed=6)
    part, given = embedded(unit), {**options, "eps": EPS, "centroids": unit[:5], "keep": "id"}
    found = ic.semantic_duplicates(on.frame(part, CUTS), **given)
    expected = on_cpu(lambda: removed(ic.semantic_duplicates(PANDAS.frame(part, CUTS), **given)))
    assert removed(found) == expected
    if "exact" in options:
        assert expected == brute_force(unit, np.arange(len(unit)), "cover")
    assert found.recall(50).recall <= 1


def test_what_was_found_is_saved_loaded_and_asked_for_other_thresholds(on: Backend, tmp_path: Path) -> None:
    unit = planted(seed=7)
    found = ic.semantic_duplicates(on.frame(embedded(unit), CUTS), eps=EPS, keep="id", min_similarity=0.7)
    found.save(tmp_path / "found")
    for again in (found, ic.Duplicates.load(tmp_path / "found")):
        assert removed(again) == brute_force(unit, np.arange(len(unit)), "cover")
        assert removed(again, 0.001) == removed(ic.semantic_duplicates(on.frame(embedded(unit)), eps=0.001, keep="id"))
        assert again.duplicate_ratio == pytest.approx(len(removed(again)) / len(unit))
    assert len(host(found.least_similar(5))) == 5 and type(found.pairs._meta).__module__.startswith(on.name)
    assert {name for names in host(found.groups)["duplicates"] for name in names} == removed(found)


@pytest.mark.parametrize("saved", [False, True])
def test_images_near_those_of_a_corpus_go(on: Backend, on_cpu: OnCpu, tmp_path: Path, saved: bool) -> None:
    unit = planted(seed=8)
    old, new = (
        embedded(rows).assign(image_id=[f"{name}{row:04}" for row in range(len(rows))])
        for name, rows in (("old", unit[:250]), ("img", unit[250:]))
    )

    def search(backend: Backend, folder: Path) -> set[str]:
        corpus: Any = backend.frame(old, (100, 100))
        if saved:
            assert ic.save_embeddings(corpus, folder, n_clusters=1) == 250
            corpus = folder
        return removed(ic.semantic_duplicates(backend.frame(new, (50,)), eps=EPS, keep="id", against=corpus))

    found = search(on, tmp_path / "here")
    assert found == on_cpu(lambda: search(PANDAS, tmp_path / "cpu"))
    # Rows of the corpus come first and are never removed.
    cross = cosines(unit)[250:, :250] >= 1 - EPS
    assert {f"img{row:04}" for row in np.flatnonzero(cross.any(axis=1))} <= found


def test_training_images_near_evaluation_images_are_named(on: Backend) -> None:
    unit = planted(seed=9)
    train, evaluation = on.frame(embedded(unit[100:]), (0, 200)), on.frame(embedded(unit[:100]))
    named = ic.decontaminate(train, evaluation, eps=EPS)
    found = host(named).sort_values("image_id")
    near = cosines(unit)[100:, :100]
    rows = np.flatnonzero((near >= 1 - EPS).any(axis=1))
    assert found["image_id"].tolist() == [f"img{row:04}" for row in rows] and len(rows) > 5
    assert found["duplicate_of"].tolist() == [f"img{row:04}" for row in near[rows].argmax(axis=1)]
    assert len(ic.remove(train, named)) == len(unit) - 100 - len(rows)


def test_equal_bytes_and_equal_looks_are_found_as_on_the_cpu(on: Backend, on_cpu: OnCpu, tmp_path: Path) -> None:
    contents = [image_bytes(seed) for seed in range(6)]
    broken = b"no image"
    part = rows_of(
        tmp_path / "a.bin", [*contents, contents[0], image_bytes(1, format="PNG"), contents[2], broken, broken]
    )
    for stage, options in ((ic.exact_duplicates, {}), (ic.perceptual_duplicates, {"max_distance": 2})):
        found = removed(stage(on.frame(part, (3, 3, 8)), keep="id", **options))
        assert found == on_cpu(lambda stage=stage, options=options: removed(stage(PANDAS.frame(part, (3,)), keep="id", **options)))  # fmt: skip
        assert {"a/6", "a/8"} <= found


def test_frames_and_matrices_in_a_devices_memory_are_taken_as_they_are(on: Backend) -> None:
    unit = planted(200)
    names = [f"img{row:04}" for row in range(200)]
    part = embedded(unit)
    expected = brute_force(unit, np.arange(200), "cover")
    for given in (on.part(part), (names, on.array(unit))):
        found = ic.semantic_duplicates(given, eps=EPS, keep="id")
        pairs = found.pairs
        assert type(pairs).__module__.startswith("pandas" if on is PANDAS else on.name)
        assert set(host(pairs)["image_id"]) == expected
        left = ic.remove(given, found)
        ids = host(left)["image_id"].tolist() if not isinstance(left, tuple) else left[0].tolist()
        assert ids == [name for name in names if name not in expected]
        if isinstance(left, tuple):
            assert vectors.on_gpu(left[1]) == (on is not PANDAS) and len(left[1]) == len(ids)
    near = ic.decontaminate(on.part(part), (names, on.array(unit)), eps=EPS)
    assert host(near)["image_id"].tolist() == names
