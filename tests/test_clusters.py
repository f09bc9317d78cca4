"""k-means, assignment, and the order of images inside a cluster."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow as pa
import pytest

from imgcurate.dedup.graph import rank
from imgcurate.dedup.semantic import kmeans
from imgcurate.vectors import unit_rows


def blobs(n: int, k: int, d: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(k, size=n)
    return unit_rows((rng.standard_normal((k, d))[label] * 3 + rng.standard_normal((n, d)) * 0.1).astype(np.float32))[
        0
    ], label


def nearest(rows: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    placed = kmeans.place(rows, centroids)
    return placed.labels[:, 0], placed.distance


def test_clusters_hold_what_is_near_each_other() -> None:
    rows, label = blobs(600, 5)
    centroids = kmeans.fit(rows, 40, seed=1)
    cluster, distance = nearest(rows, centroids)
    assert np.linalg.norm(centroids, axis=1) == pytest.approx(np.ones(40), abs=1e-6)
    assert all(len(np.unique(label[cluster == number])) == 1 for number in np.unique(cluster))
    assert cluster.tolist() == (rows @ centroids.T).argmax(axis=1).tolist()
    assert distance.dtype == np.float32 and distance.min() >= 0 and distance.max() < 0.05


def test_the_same_seed_gives_the_same_centroids() -> None:
    rows, _ = blobs(500, 9)
    assert np.array_equal(kmeans.fit(rows, 20, seed=3), kmeans.fit(rows, 20, seed=3))


def test_fewer_distinct_vectors_than_clusters_are_clustered_in_silence() -> None:
    rows = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        centroids = kmeans.fit(rows, 8, seed=0)
    cluster, distance = nearest(rows, centroids)
    assert len(np.unique(cluster)) == 3 and (distance < 1e-6).all()


def test_equal_vectors_share_cluster_and_distance_wherever_they_lie() -> None:
    rng = np.random.default_rng(0)
    centroids = unit_rows(rng.standard_normal((37, 100)).astype(np.float32))[0]
    between = unit_rows(centroids[3:4] + centroids[5:6])[0]
    rows = unit_rows(rng.standard_normal((9001, 100)).astype(np.float32))[0]
    places = [0, 1, 7, 4095, 4096, 8999, 9000]
    rows[places] = between
    alone = nearest(between, centroids)
    whole = nearest(rows, centroids)
    tail = nearest(rows[4095:], centroids)
    for here, wanted in zip(whole, alone, strict=True):
        assert (here[places] == wanted[0]).all()
    for here, wanted in zip(tail, alone, strict=True):
        assert (here[[0, 1, -2, -1]] == wanted[0]).all()


def test_a_mean_does_not_depend_on_the_order_of_its_terms() -> None:
    rows, _ = blobs(10_000, 3)
    halves = kmeans.vector_sum(rows[:777]) + kmeans.vector_sum(rows[777:])
    assert np.array_equal(kmeans.vector_sum(rows[::-1]), halves)
    assert halves / 2**32 == pytest.approx(rows.astype(np.float64).sum(axis=0), abs=1e-5)


def test_a_mean_without_direction_becomes_an_axis() -> None:
    assert kmeans.unit_centroids(np.zeros((1, 3))).tolist() == [[1, 0, 0]]


def test_the_number_of_clusters_follows_the_number_of_images() -> None:
    assert [kmeans.choose_n_clusters(n) for n in (0, 1, 50_000, 100_000, 200_000, 1_000_000)] == [
        1,
        1,
        1,
        1,
        316,
        707,
    ]
    # On a GPU a comparison costs less beside moving a row.
    assert kmeans.choose_n_clusters(300_000, gpu=True) == 1


def test_the_nearest_clusters_are_those_of_brute_force_and_ties_go_to_the_lower_number() -> None:
    rng = np.random.default_rng(1)
    rows = unit_rows(rng.standard_normal((5000, 20)).astype(np.float32))[0]
    centroids = unit_rows(rng.standard_normal((30, 20)).astype(np.float32))[0]
    centroids[17] = centroids[4]
    placed = kmeans.place(rows, centroids, probes=3)
    cosines = rows.astype(np.float64) @ centroids.T
    cosines[:, 17] = -2
    nearest = np.argsort(-cosines, axis=1, kind="stable")
    assert np.array_equal(placed.labels[:, :3], nearest[:, :3])
    # And a fourth, where it is nearly as near as the nearest.
    first, fourth = nearest[:, 0], nearest[:, 3]
    gap = np.take_along_axis(cosines, first[:, None], 1)[:, 0] - np.take_along_axis(cosines, fourth[:, None], 1)[:, 0]
    reach = 2 * np.linalg.norm(centroids[first] - centroids[fourth], axis=1)
    nearly = gap <= 0.15 * reach
    assert 0 < nearly.sum() < len(rows)
    assert np.array_equal(placed.labels[nearly, 3], nearest[nearly, 3])
    assert (placed.labels[~nearly, 3] == -1).all()
    assert np.array_equal(placed.sizes(30), np.bincount(placed.labels[placed.labels >= 0], minlength=30))


def test_every_pair_that_is_near_enough_meets_in_the_lower_of_its_two_clusters() -> None:
    rng = np.random.default_rng(2)
    rows = unit_rows(rng.standard_normal((1500, 6)).astype(np.float32))[0]
    centroids = unit_rows(rng.standard_normal((25, 6)).astype(np.float32))[0]
    for least in (0.7, 0.95, 0.99):
        placed = kmeans.place(rows, centroids, least=least, exact=True)
        goes = np.zeros((len(rows), 25), dtype=bool)
        goes[np.arange(len(rows)), placed.labels[:, 0]] = True
        goes[placed.also] = True
        left, right = np.nonzero(np.triu(rows.astype(np.float64) @ rows.T >= least, 1))
        lower = np.minimum(placed.labels[left, 0], placed.labels[right, 0])
        assert (goes[left, lower] & goes[right, lower]).all() and len(left) > 10
        assert goes.sum() < goes.size


def test_a_second_cluster_is_left_out_where_no_partner_can_be_in_it() -> None:
    centroids = np.eye(2, dtype=np.float32)
    rows = unit_rows(np.array([[1, 0], [1, 0.9]], dtype=np.float32))[0]
    placed = kmeans.place(rows, centroids, probes=2, least=0.98)
    assert placed.labels.tolist() == [[0, -1], [0, 1]] and placed.also[0].tolist() == [1]


def test_packing_balances_the_work() -> None:
    work = np.array([100, 1, 1, 50, 50, 0, 98])
    bucket = kmeans.pack(work, 3)
    assert np.bincount(bucket, weights=work, minlength=3).tolist() == [100, 100, 100]


TABLE = pa.table(
    {
        "id": ["a", "b", "c", "d", "e", "f"],
        "cluster": [1, 0, 0, 0, 0, 0],
        "distance": [0.9, 0.5, 0.1, 0.5, 0.7, 0.1],
        "hash": pa.array([0, 2, 1, 9, 3, 7], pa.uint64()),
        "key0": [1.0, None, 3.0, float("nan"), 2.0, 3.0],
        "key1": [0, 5, 2, 1, 0, 1],
    }
)


@pytest.mark.parametrize(
    ("keep", "ranked"),
    [
        ("hard", "edbfca"),
        ("easy", "cfbdea"),
        ("random", "cbefda"),
        ("id", "bcdefa"),
        ([("x", "max"), ("y", "min")], "fcedba"),
        ([("x", "min"), ("y", "max")], "ecfbda"),
        ([("x", "max")], "cfebda"),
    ],
)
def test_images_are_ranked_inside_their_cluster(keep: rank.Keep, ranked: str) -> None:
    assert "".join(TABLE["id"].take(pa.array(rank.order(TABLE, keep, by_cluster=True))).to_pylist()) == ranked


def test_the_order_over_all_clusters_is_that_inside_each() -> None:
    assert "".join(TABLE["id"].take(pa.array(rank.order(TABLE, "hard"))).to_pylist()) == "aedbfc"


def test_an_ids_hash_depends_on_the_id_and_the_seed_alone() -> None:
    ids = pa.array(["x", "y", "z"])
    assert rank.hash_ids(ids, 1)[2] == rank.hash_ids(ids[2:], 1)[0] != rank.hash_ids(ids[2:], 2)[0]
    assert rank.hash_ids(pa.array([12]), 1)[0] == rank.hash_ids(pa.array(["12"]), 1)[0]


@pytest.mark.parametrize("keep", ["best", [], [("x", "up")], ["x"], None, [("x",)], [(1, "min")]])
def test_an_unknown_order_is_refused(keep: object) -> None:
    with pytest.raises(ValueError, match="is not an order"):
        rank.keep_columns(keep)  # type: ignore[arg-type]
