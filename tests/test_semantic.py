"""semantic_duplicates on real Dask frames: figures that are published, odd rows, odd frames, and what must not depend on luck."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from distributed import Client

from imgcurate.dedup import Duplicates, remove, semantic_duplicates
from imgcurate.schema import table
from imgcurate.vectors import to_column, unit_rows

REFERENCE = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [1, 2, 3], [1, 2, 3]], dtype=np.float32)


def frame_of(vectors: np.ndarray, ids: Any = None, npartitions: int = 3, **columns: Any) -> dd.DataFrame:
    part = table({"image_id": [f"img{i:05}" for i in range(len(vectors))] if ids is None else ids})
    part["embedding"] = to_column(np.ascontiguousarray(vectors, dtype=np.float32), part)
    return dd.from_pandas(part.assign(**columns), npartitions=npartitions, sort=False)


def planted(n: int = 400, d: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d))
    copies = rng.permutation(n)[: n // 3]
    rows[copies] = rows[rng.integers(n, size=len(copies))] + 0.02 * rng.standard_normal((len(copies), d))
    return unit_rows(rows)[0]


def removed(found: Duplicates, eps: float | None = None) -> list[Any]:
    return sorted(found.removals(eps)[found.id_field].compute().tolist())


@pytest.mark.parametrize(
    ("keep", "ranks", "twins", "cosines", "gone"),
    [
        ("hard", [3, 2, 1, 5, 4, 0], [3, 3, 2, 1, 5, 5], [0, 0.99961, 0.99819, 0.974631, 1, 1], [0, 1, 2, 4]),
        ("easy", [0, 4, 5, 1, 2, 3], [0, 0, 0, 0, 1, 2], [0, 1, 1, 0.97464, 0.99819, 0.999618], [2, 3, 4, 5]),
    ],
)
def test_pointwise_reproduces_the_published_reference(
    keep: Any, ranks: list[int], twins: list[int], cosines: list[float], gone: list[int]
) -> None:
    part = pd.DataFrame({"image_id": range(6), "embedding": to_column(REFERENCE, pd.DataFrame(index=range(6)))})
    found = semantic_duplicates(
        dd.from_pandas(part, npartitions=2), eps=0.01, keep=keep, rule="pointwise", centroids=REFERENCE[:1]
    )
    assert removed(found) == gone
    assert found.assignments["image_id"].compute().tolist() == ranks
    everything = semantic_duplicates(
        dd.from_pandas(part, npartitions=2), eps=1.9, keep=keep, rule="pointwise", centroids=REFERENCE[:1]
    ).pairs.compute()
    assert everything["image_id"].tolist() == ranks[1:]
    assert everything["duplicate_of"].tolist() == twins[1:]
    assert everything["similarity"].tolist() == pytest.approx(cosines[1:], abs=2e-5)


def test_a_users_path(client: Client) -> None:
    vectors = planted()
    frame = frame_of(vectors)
    dups = semantic_duplicates(frame, eps=0.1)
    assert list(dups.pairs.head(3).columns) == ["image_id", "duplicate_of", "similarity", "cluster"]
    assert "400 images compared in 1 cluster" in repr(dups)
    sweep = dups.sweep([0.1, 0.0001, 0.2])
    assert sweep["removed"].tolist() == [len(dups.removals()), len(dups.removals(0.0001)), len(dups.removals(0.2))]
    assert sweep["fraction"].tolist() == pytest.approx((sweep["removed"] / 400).tolist())
    assert sweep["removed"][1] < sweep["removed"][0] <= sweep["removed"][2]
    kept = remove(frame, dups)
    assert len(kept) == 400 - len(dups.removals())
    with_cluster = frame[["image_id"]].merge(dups.assignments, on="image_id").compute()
    assert len(with_cluster) == 400 and with_cluster["cluster"].dtype == np.int32


def cosines_of(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float64) @ vectors.astype(np.float64).T


def pairs_of(vectors: np.ndarray, least: float) -> set[tuple[int, int]]:
    left, right = np.nonzero(np.triu(cosines_of(vectors) >= least, 1))
    return set(zip(left.tolist(), right.tolist(), strict=True))


def found_pairs(found: Duplicates, least: float) -> set[tuple[int, int]]:
    """Every pair of the graph, the pairs of copies written out."""
    edges = found.edges.compute()
    a, b = (edges[name].str[3:].astype(int).to_numpy() for name in ("image_id", "other_id"))
    near = edges["similarity"].to_numpy() >= least
    pairs = {(min(pair), max(pair)) for pair in zip(a[near].tolist(), b[near].tolist(), strict=True)}
    assert len(pairs) == near.sum()
    return pairs


@pytest.mark.parametrize("options", [{"n_clusters": 1}, {"n_clusters": 12}, {"n_clusters": 12, "probes": 1}])
def test_every_removed_image_has_a_kept_twin_and_no_two_kept_ones_are_near(client: Client, options: Any) -> None:
    vectors = planted(seed=1)
    found = semantic_duplicates(frame_of(vectors), eps=0.05, **options)
    pairs, places = found.pairs.compute(), found.assignments.compute().set_index("image_id")
    cosines = pd.DataFrame(cosines_of(vectors), index=places.index.sort_values(), columns=places.index.sort_values())
    gone = set(pairs["image_id"])
    assert len(places) == 400 and len(gone) > 50
    assert not gone & set(pairs["duplicate_of"])
    for pair in pairs.itertuples():
        assert cosines.loc[pair.image_id, pair.duplicate_of] == pytest.approx(pair.similarity, abs=1e-6)
        assert pair.similarity >= 0.95 and pair.cluster == places.loc[pair.image_id, "cluster"]
    for _, cluster in places.drop(index=list(gone)).groupby("cluster"):
        inside = cosines.loc[cluster.index, cluster.index].to_numpy()
        assert (inside[np.triu_indices(len(inside), 1)] < 0.95 + 1e-6).all()


def test_the_removed_image_farthest_from_its_twin_is_shown_first() -> None:
    found = semantic_duplicates(frame_of(planted()), eps=0.05)
    pairs = found.pairs.compute()
    shown = found.least_similar(5)
    assert shown["similarity"].tolist() == sorted(pairs["similarity"])[:5]
    groups = found.groups.compute()
    assert groups["removed"].sum() == len(pairs) == sum(map(len, groups["duplicates"]))
    by_twin = pairs.groupby("duplicate_of")["image_id"].agg(list)
    assert {row.image_id: list(row.duplicates) for row in groups.itertuples()} == by_twin.to_dict()
    assert sorted([*found.selected.compute()["image_id"], *found.removed.compute()["image_id"]]) == [
        f"img{i:05}" for i in range(400)
    ]
    assert found.duplicate_ratio == len(pairs) / 400


def test_one_cluster_and_exact_find_all_pairs_of_brute_force(client: Client) -> None:
    rng = np.random.default_rng(5)
    vectors = unit_rows(
        0.5 * rng.standard_normal((3000, 24)) + 3 * rng.standard_normal((40, 24))[rng.integers(40, size=3000)]
    )[0]
    for eps in (0.02, 0.2):
        truth = pairs_of(vectors, 1 - eps)
        frame = frame_of(vectors, npartitions=4)
        for options in ({"n_clusters": 1}, {"n_clusters": 30, "exact": True}, {"n_clusters": 400, "exact": True}):
            found = semantic_duplicates(frame, eps=eps, min_similarity=1 - eps, **options)
            assert found_pairs(found, 1 - eps) == truth and len(truth) > 100
        recalls = [
            len(found_pairs(semantic_duplicates(frame, eps=eps, n_clusters=30, probes=probes), 1 - eps) & truth)
            / len(truth)
            for probes in (1, 2, 4)
        ]
        assert recalls[0] < recalls[1] <= recalls[2] <= 1


def test_recall_says_what_share_of_the_pairs_was_found(client: Client) -> None:
    rng = np.random.default_rng(6)
    vectors = unit_rows(rng.standard_normal((2000, 12)))[0]
    truth = pairs_of(vectors, 0.8)
    found = semantic_duplicates(frame_of(vectors, npartitions=4), eps=0.2, n_clusters=40, probes=1)
    known = len(found_pairs(found, 0.8)) / len(truth)
    whole = found.recall(sample=10_000)
    assert whole.images == 2000 and whole.true_pairs == 2 * len(truth)
    assert whole.recall == pytest.approx(known, abs=1e-9) and known < 0.9
    part = found.recall(sample=300, seed=3)
    assert part.images == 300 and part.low < known < part.high and part.high - part.low < 0.3
    exact = semantic_duplicates(frame_of(vectors, npartitions=4), eps=0.2, n_clusters=40, exact=True).recall(sample=300)
    assert exact.recall == exact.high == 1 > exact.low > 0.9


def test_recall_counts_the_pairs_of_copies(client: Client) -> None:
    vectors = np.repeat(planted(60), 5, axis=0)
    found = semantic_duplicates(frame_of(vectors), eps=0.05, n_clusters=4, exact=True).recall()
    assert found.true_pairs == found.found_pairs == 2 * len(pairs_of(vectors, 0.95)) and found.recall == 1


@pytest.mark.parametrize(
    ("keep", "rule", "n_clusters"),
    [
        ("hard", "cover", None),
        ("hard", "cover", 9),
        ("random", "pointwise", 9),
        ([("score", "max")], "cover", 9),
        ("easy", "component", 9),
    ],
)
def test_the_answer_does_not_depend_on_partitioning(client: Client, keep: Any, rule: Any, n_clusters: Any) -> None:
    vectors = planted(seed=2)
    score = np.random.default_rng(0).integers(5, size=len(vectors))
    answers = []
    for npartitions in (1, 3, 19):
        frame = frame_of(vectors, npartitions=npartitions, score=score)
        found = semantic_duplicates(frame, eps=0.05, keep=keep, rule=rule, n_clusters=n_clusters)
        answers.append(found.pairs.compute().sort_values("image_id", ignore_index=True))
    pd.testing.assert_frame_equal(answers[0], answers[1])
    pd.testing.assert_frame_equal(answers[0], answers[2])


def test_it_runs_without_a_client_and_agrees(client: Client) -> None:
    vectors = planted(seed=3)
    with_client = removed(semantic_duplicates(frame_of(vectors), eps=0.05, n_clusters=5))
    with client.as_current(), dask.config.set(scheduler="threads"):
        without = removed(semantic_duplicates(frame_of(vectors), eps=0.05, n_clusters=5))
    assert with_client == without


def test_the_best_by_columns_stays() -> None:
    same = np.tile(REFERENCE[:1], (5, 1))
    frame = frame_of(same, npartitions=2, score=pd.array([1, 3, 3, None, 2], dtype="Int64"), width=[9, 5, 7, 99, 9])
    kept = {
        str(keep): remove(frame, semantic_duplicates(frame, keep=keep))["image_id"].compute().tolist()
        for keep in ([("score", "max"), ("width", "max")], [("score", "max")], [("score", "min")], [("width", "max")])
    }
    assert [name for [name] in kept.values()] == ["img00002", "img00001", "img00000", "img00003"]


def test_rows_that_cannot_be_compared_are_counted_and_never_removed() -> None:
    part = table({"image_id": list("abcdefgh"), "error": [None, None, "decode: broken", None, None, None, None, None]})
    part["embedding"] = pd.array(
        [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], None, [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [-1.0, 0.0]],
        dtype=pd.ArrowDtype(pa.list_(pa.float32())),
    )
    for npartitions in (1, 4, 8):
        found = semantic_duplicates(dd.from_pandas(part, npartitions=npartitions), eps=1.5, keep="id")
        assert (found.n_rows, found.n_compared, found.n_excluded) == (8, 3, 5)
        assert removed(found) == ["b"]
        assert sorted(found.assignments["image_id"].compute()) == ["a", "b", "h"]


@pytest.mark.parametrize("rule", ["cover", "pointwise", "component"])
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_hardly_any_rows(rows: int, rule: Any) -> None:
    found = semantic_duplicates(frame_of(np.ones((rows, 4)), npartitions=1), rule=rule, n_clusters=3)
    assert (found.n_rows, found.n_compared, found.n_clusters) == (rows, rows, rows)
    assert len(found.pairs) == len(found.removals(0.02)) == found.sweep([0.01])["removed"][0] == max(rows - 1, 0)
    assert dict(found.pairs.compute().dtypes) == dict(found.pairs._meta.dtypes)


def test_nothing_to_compare_gives_empty_frames_with_the_right_types() -> None:
    part = table({"image_id": ["a", "b"], "embedding": [None, None]})
    found = semantic_duplicates(dd.from_pandas(part, npartitions=2))
    assert (found.n_compared, found.n_excluded) == (0, 2)
    for answer in (found.pairs, found.assignments, found.removals(0.01), found.selected, found.groups, found.edges):
        computed = answer.compute()
        assert len(computed) == 0 and dict(computed.dtypes) == dict(answer._meta.dtypes)
        assert computed["image_id"].dtype == "str"
    assert np.isnan(found.recall().recall)
    assert repr(found.recall()).startswith("Recall(no pairs: none of 0 sampled images")
    assert len(remove(dd.from_pandas(part, npartitions=2), found)) == 2
    assert found.sweep([0.01, 0.02])["removed"].tolist() == [0, 0]


def test_a_chain_keeps_its_tail_by_cover_and_loses_it_pointwise() -> None:
    angles = np.array([0.0, 0.2, 0.4])
    frame = frame_of(np.stack([np.cos(angles), np.sin(angles)], axis=1), rank=[0, 1, 2])
    order = [("rank", "min")]
    assert removed(semantic_duplicates(frame, eps=0.05, keep=order)) == ["img00001"]
    assert removed(semantic_duplicates(frame, eps=0.05, keep=order, rule="pointwise")) == ["img00001", "img00002"]
    together = semantic_duplicates(frame, eps=0.05, keep=order, rule="component").pairs.compute()
    assert together["duplicate_of"].tolist() == ["img00000", "img00000"]
    assert together["similarity"].tolist() == pytest.approx([np.cos(0.2), np.cos(0.4)], abs=1e-6)


@pytest.mark.parametrize("rule", ["cover", "pointwise", "component"])
def test_another_eps_gives_what_a_new_run_gives(rule: Any) -> None:
    vectors = planted(seed=4)
    found = semantic_duplicates(frame_of(vectors), eps=0.01, rule=rule, n_clusters=4)
    for eps in (0.0005, 0.02):
        again = semantic_duplicates(frame_of(vectors), eps=eps, rule=rule, n_clusters=4, min_similarity=0.98)
        assert removed(found, eps) == removed(again) == removed(found.rethreshold(eps))
    assert removed(found) == removed(found, 0.01) and found.rethreshold(0.02).eps == 0.02
    for ask in (
        found.removals,
        found.rethreshold,
        lambda eps: found.sweep([0.01, eps]),
        lambda eps: found.least_similar(3, eps),
    ):
        with pytest.raises(ValueError, match=r"stored down to min_similarity=0.98: give an eps of at most 0.02"):
            ask(0.021)


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        ("arrays", "int64"),
        ("lists", "int32[pyarrow]"),
        ("fixed", "str"),
        ("large", "string[pyarrow]"),
        ("float64", "object"),
        ("fixed", "category"),
        ("fixed", "dictionary"),
    ],
)
def test_frames_of_other_tools_with_their_own_names(tmp_path: Path, kind: str, ids: str) -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    names = pd.Series([10, 11, 12, 13, 14, 15], dtype=ids if "int" in ids else "int64")
    if ids == "dictionary":
        names = names.astype(str).astype(pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())))
    elif "int" not in ids:
        names = names.astype(str).astype(ids)
    column: Any = list(vectors) if kind == "arrays" else vectors.tolist()
    if kind in ("fixed", "large", "float64"):
        of = {
            "fixed": pa.list_(pa.float32(), 3),
            "large": pa.large_list(pa.float32()),
            "float64": pa.list_(pa.float64()),
        }[kind]
        column = pd.array(vectors.tolist(), dtype=pd.ArrowDtype(of))
    part = pd.DataFrame({"key": names, "vector": pd.Series(column)})
    # Dask would turn object columns of arrays and lists into text.
    with dask.config.set({"dataframe.convert-string": False}):
        frame = dd.from_map(lambda at: part.iloc[at : at + 3], [0, 3], meta=part.iloc[:0])
        found = semantic_duplicates(frame, id_field="key", embedding_field="vector", keep="easy")
        pairs = found.pairs.compute()
        left = remove(frame, found, on="key")["key"].compute().astype(str).tolist()
    assert pairs["key"].astype(str).tolist() == ["11", "13", "15"]
    assert pairs["duplicate_of"].astype(str).tolist() == ["10", "12", "14"]
    assert pairs["key"].dtype == pairs["duplicate_of"].dtype
    if ids not in ("category", "dictionary"):
        assert pairs["key"].dtype == part["key"].dtype
    assert left == ["10", "12", "14"]


@pytest.mark.parametrize("options", [{"n_clusters": 3}, {}, {"n_clusters": 3, "exact": True}])
def test_fifty_thousand_copies_of_one_image_leave_one(client: Client, options: Any) -> None:
    found = semantic_duplicates(frame_of(np.tile(REFERENCE[:1], (50_000, 1))), **options)
    assert len(found.removals()) == found.n_pairs == 49_999


def test_a_giant_cluster_is_many_tasks_and_the_same_answer(client: Client) -> None:
    rng = np.random.default_rng(7)
    center = rng.standard_normal((1, 48))
    vectors = unit_rows(
        np.concatenate([center + 0.35 * rng.standard_normal((12_000, 48)), rng.standard_normal((500, 48))])
    )[0]
    frame = frame_of(vectors, npartitions=5)
    found = semantic_duplicates(frame, eps=0.03, n_clusters=4, min_similarity=0.97, exact=True)
    assert sum(len(part.edges) for part in found._graph.parts) >= 1 and found_pairs(found, 0.97) == pairs_of(
        vectors, 0.97
    )


@pytest.mark.parametrize("rule", ["cover", "pointwise", "component"])
def test_rules_agree_however_the_pairs_are_cut_into_tasks(client: Client, rule: Any, monkeypatch: Any) -> None:
    frame = frame_of(np.repeat(planted(300, seed=8), 2, axis=0), npartitions=5)
    answers = []
    for most in (2**25, 200):
        monkeypatch.setattr("imgcurate.dedup.graph.build._PAIRS_OF_A_TASK", most)
        found = semantic_duplicates(frame, eps=0.1, rule=rule, n_clusters=6)
        answers.append(found.pairs.compute())
    assert sum(len(part.edges) for part in found._graph.parts) > 1
    pd.testing.assert_frame_equal(*answers)


def test_pairs_are_stored_less_far_down_where_they_would_be_too_many(client: Client, monkeypatch: Any) -> None:
    vectors = unit_rows(np.random.default_rng(9).standard_normal((3000, 4)))[0]
    monkeypatch.setattr("imgcurate.dedup.semantic.search._MOST_PAIRS", 4000)
    monkeypatch.setattr("imgcurate.dedup.semantic.search._MOST_PAIRS_PER_IMAGE", 1)
    found = semantic_duplicates(frame_of(vectors), eps=0.01)
    assert 0.98 < found.min_similarity <= 0.99 and found.n_pairs < 6000
    assert semantic_duplicates(frame_of(vectors), eps=0.01, min_similarity=0.98).min_similarity == 0.98


@pytest.mark.parametrize("rule", ["cover", "pointwise", "component"])
def test_what_is_saved_answers_as_before(client: Client, rule: Any, tmp_path: Path) -> None:
    found = semantic_duplicates(
        frame_of(np.repeat(planted(200), 2, axis=0)), eps=0.05, rule=rule, keep=[("image_id", "max")]
    )
    found.save(tmp_path / "found")
    again = Duplicates.load(tmp_path / "found")
    assert repr(again) == repr(found).replace(", .recall()", "")  # which needs the vectors
    for name in ("pairs", "edges", "assignments", "groups", "selected"):
        pd.testing.assert_frame_equal(getattr(again, name).compute(), getattr(found, name).compute())
    assert removed(again, 0.1) == removed(found, 0.1)
    assert len(pd.read_parquet(tmp_path / "found/nodes.parquet")) > 200
    with pytest.raises(ValueError, match="only what found these duplicates has"):
        again.recall()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        found.save(tmp_path / "found")
    found.save(tmp_path / "found", overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Duplicates.load(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other/nodes.parquet")
    with pytest.raises(ValueError, match="not written by"):
        Duplicates.load(tmp_path / "other")


def test_the_frame_is_computed_once(client: Client, tmp_path: Path) -> None:
    vectors = planted(60)

    def model(part: pd.DataFrame) -> pd.DataFrame:
        (tmp_path / f"{part['image_id'].iloc[0]}-{np.random.default_rng().integers(2**60)}").touch()
        return part[["embedding"]]

    frame = frame_of(vectors)
    embedded = frame[["image_id"]].assign(
        embedding=frame.map_partitions(model, meta=frame._meta[["embedding"]])["embedding"]
    )
    found = semantic_duplicates(embedded, eps=0.05, n_clusters=3)
    (
        found.pairs.compute(),
        found.assignments.compute(),
        found.removals(0.1).compute(),
        found.sweep([0.1, 0.02]),
        found.recall(),
    )
    assert len(list(tmp_path.iterdir())) == frame.npartitions


def test_ids_that_repeat_or_are_null_are_refused() -> None:
    with pytest.raises(ValueError, match="2 ids of column 'image_id' name more than one row: 'a', 'b'"):
        semantic_duplicates(frame_of(np.ones((5, 2)), ids=list("abcab")))
    with pytest.raises(ValueError, match="have no 'image_id'"):
        semantic_duplicates(frame_of(np.ones((2, 2)), ids=["a", None]))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"eps": 0}, "use 1e-6 for vectors equal up to rounding"),
        ({"eps": 2}, "above 0 and below 2"),
        ({"eps": "0.1"}, "above 0 and below 2"),
        ({"n_clusters": 0}, "whole number of at least 1"),
        ({"n_clusters": 2.5}, "whole number of at least 1"),
        ({"rule": "best"}, "rule='best' is unknown"),
        ({"probes": 0}, "exact=True loses no pair"),
        ({"exact": "yes"}, "must be True or False"),
        ({"min_similarity": 2}, "must be a cosine"),
        ({"min_similarity": 0.999}, "would not be stored"),
        ({"keep": "best"}, "keep='best' is not an order"),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"centroids": np.zeros((1, 4))}, "has no direction"),
        ({"centroids": np.ones(4)}, "must be a matrix"),
        ({"centroids": np.ones((1, 4)), "n_clusters": 2}, "leave n_clusters out"),
        ({"centroids": np.ones((1, 5))}, "centroids have dimension 5"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        semantic_duplicates(frame_of(np.ones((2, 4))), **options)


def test_missing_and_unfit_columns_are_refused() -> None:
    frame = frame_of(np.ones((2, 4)), number=[0.5, 1.5])
    with pytest.raises(KeyError, match="semantic_duplicates needs column 'vector'"):
        semantic_duplicates(frame, embedding_field="vector")
    with pytest.raises(KeyError, match="semantic_duplicates needs column 'aesthetic_score'"):
        semantic_duplicates(frame, keep=[("aesthetic_score", "max")])
    with pytest.raises(TypeError, match="ids are strings or whole numbers"):
        semantic_duplicates(frame, id_field="number")
    with pytest.raises(TypeError, match="which has no order"):
        semantic_duplicates(frame, keep=[("embedding", "max")])
    text = dd.from_pandas(
        pd.DataFrame({"image_id": ["a"], "embedding": [np.ones(3)]}).astype({"embedding": str}), npartitions=1
    )
    with pytest.raises(TypeError, match=r"holds text, not vectors; .* give the pandas frame itself"):
        semantic_duplicates(text)
    with pytest.raises(TypeError, match="takes a Dask, pandas or cuDF dataframe"):
        semantic_duplicates([frame])
    with pytest.raises(ValueError, match="vectors of several lengths"):
        semantic_duplicates(dd.concat([frame_of(np.ones((2, 4))), frame_of(np.ones((2, 5)), ids=["x", "y"])]))


def test_frames_outlive_the_duplicates_that_they_are_views_of(client: Client) -> None:
    frame = frame_of(planted())
    pairs = semantic_duplicates(frame, eps=0.05).pairs
    views = [remove(frame, semantic_duplicates(frame, eps=0.05), missing=missing) for missing in ("ignore", "warn")]
    gc.collect()
    assert {len(view) for view in views} == {400 - len(pairs)}
