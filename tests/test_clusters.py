"""k-means, assignment, and the order of images inside a cluster."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.cluster import KMeans

from imgcurate.dedup.graph import rank
from imgcurate.dedup.semantic import screen
from imgcurate.dedup.semantic.clusters import assign, exchange, kmeans
from imgcurate.dedup.semantic.shapes import in_steps
from imgcurate.vectors import unit_rows


def blobs(n: int, k: int, d: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(k, size=n)
    return unit_rows((rng.standard_normal((k, d))[label] * 3 + rng.standard_normal((n, d)) * 0.1).astype(np.float32))[
        0
    ], label


def nearest(rows: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    placed = assign.place(rows, centroids)
    return placed.labels[:, 0], placed.distance


def test_clusters_hold_what_is_near_each_other() -> None:
    rows, label = blobs(600, 5)
    centroids = kmeans.fit(rows, 40, seed=1)
    cluster, distance = nearest(rows, centroids)
    assert np.linalg.norm(centroids, axis=1) == pytest.approx(np.ones(40), abs=1e-6)
    assert all(len(np.unique(label[cluster == number])) == 1 for number in np.unique(cluster))
    assert cluster.tolist() == (rows.astype(np.float64) @ centroids.T).argmax(axis=1).tolist()
    assert distance.dtype == np.float32 and distance.min() >= 0 and distance.max() < 0.05


@pytest.fixture(params=["bfloat16", "float32"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine that multiplies fastest in this format."""
    monkeypatch.setattr(screen, "choose_dtype", lambda device, low_precision=None: request.param)
    monkeypatch.setattr(screen, "made_for_bfloat16", lambda: request.param == "bfloat16")
    return str(request.param)


def test_the_same_seed_gives_the_same_centroids_on_any_number_of_threads(products: str) -> None:
    rows = unit_rows(np.random.default_rng(0).standard_normal((9000, 96)).astype(np.float32) + 0.2)[0]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = kmeans.fit(rows, 70, seed=3)
        torch.set_num_threads(3)
        assert np.array_equal(kmeans.fit(rows, 70, seed=3), one)
    finally:
        torch.set_num_threads(before)
    assert one.dtype == np.float32 and not np.array_equal(kmeans.fit(rows, 70, seed=4), one)


@pytest.mark.parametrize("dimension", [2, 96, 1024])
def test_products_of_vectors_on_the_grid_are_exact(products: str, dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    rows = rng.standard_normal((500, dimension)).astype(np.float32)
    rows[:100] *= np.array([30.0] + [0.01] * (dimension - 1), dtype=np.float32)
    grid, _ = kmeans._on_grid(unit_rows(rows)[0], np.zeros(dimension), getattr(torch, products))
    assert torch.equal(grid, grid.round()) and grid.float().abs().max() > 250
    squares = grid.double().square().sum(dim=1)
    assert squares.max() * 1.5 < 2**24
    assert torch.equal((grid.float() @ grid.float().T).double(), grid.double() @ grid.double().T)


def test_clusters_are_as_tight_as_scikit_learns(products: str) -> None:
    rows, _ = blobs(4000, 60, d=32)
    rows = unit_rows(rows + np.random.default_rng(1).standard_normal(rows.shape).astype(np.float32) / 8)[0]
    ours = nearest(rows, kmeans.fit(rows, 50, seed=0))[1].mean()
    model = KMeans(50, init="random", n_init=1, max_iter=10, random_state=0).fit(rows)
    assert ours < 1.05 * nearest(rows, kmeans.unit_centroids(model.cluster_centers_))[1].mean()


@pytest.mark.parametrize("rows", [np.eye(4)[[2] * 9], np.eye(4)[[1]], np.eye(4)[[0, 3]] * [[1], [-1]]])
def test_a_cluster_for_every_row_is_fitted_where_rows_are_equal_or_opposite(rows: np.ndarray) -> None:
    rows = rows.astype(np.float32)
    assert (nearest(rows, kmeans.fit(rows, len(rows), seed=0))[1] < 1e-3).all()


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


def test_many_clusters_are_fitted_in_two_levels_as_near_and_as_even_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    topics = rng.standard_normal((40, 16))
    rows = unit_rows((topics[rng.integers(40, size=6000)] + rng.standard_normal((6000, 16))).astype(np.float32))[0]
    one = kmeans.fit(rows, 200, seed=3)
    monkeypatch.setattr(kmeans, "_ONE_LEVEL", 10)
    two = kmeans.fit(rows, 200, seed=3)
    assert two.shape == (200, 16) and np.array_equal(kmeans.fit(rows, 200, seed=3), two)
    (label_of_one, distance_of_one), (label, distance) = nearest(rows, one), nearest(rows, two)
    assert distance.mean() < 1.05 * distance_of_one.mean()
    assert np.square(np.bincount(label)).sum() < 1.1 * np.square(np.bincount(label_of_one)).sum()
    assert kmeans.fit(rows[:50], 50, seed=0).shape == (50, 16)


def test_a_mean_without_direction_becomes_an_axis() -> None:
    assert kmeans.unit_centroids(np.zeros((1, 3))).tolist() == [[1, 0, 0]]


def test_the_number_of_clusters_follows_the_number_of_images() -> None:
    assert [kmeans.choose_n_clusters(n) for n in (0, 1, 50_000, 100_000, 200_000, 1_000_000)] == [
        1,
        1,
        1,
        1,
        316,
        1000,
    ]
    assert [kmeans.choose_n_clusters(n, d) for n, d in ((10_000_000, 256), (100_000_000, 768))] == [10_000, 10_922]
    # On a GPU a comparison costs less beside moving a row.
    assert kmeans.choose_n_clusters(300_000, gpu=True) == 1


@pytest.mark.parametrize(("k", "d"), [(30, 20), (200, 96)])
def test_the_nearest_clusters_are_those_of_brute_force_and_ties_go_to_the_lower_number(
    products: str, k: int, d: int
) -> None:
    rng = np.random.default_rng(1)
    rows = unit_rows(rng.standard_normal((5000, d)).astype(np.float32))[0]
    centroids = unit_rows(rng.standard_normal((k, d)).astype(np.float32) + 0.1)[0]
    centroids[17] = centroids[4]
    placed = assign.place(rows, centroids, probes=3, least=0.92)
    cosines = rows.astype(np.float64) @ centroids.T
    cosines[:, 17] = -2
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :4]
    assert np.array_equal(placed.labels[:, 0], order[:, 0])
    assert placed.distance == pytest.approx(1 - cosines.max(axis=1), abs=1e-6)
    # And up to twice as many as was asked for, each where it is nearly as near as the nearest.
    first = order[:, :1]
    gap = np.take_along_axis(cosines, first, 1) - np.take_along_axis(cosines, order, 1)
    reach = 0.4 * np.linalg.norm(centroids[first] - centroids[order], axis=2) + d * 2.0**-22 + 1e-6
    nearly = gap <= 0.375 * reach
    assert 0 < nearly[:, 3].sum() < nearly[:, 1].sum() < len(rows)
    assert np.array_equal(placed.labels, np.where(nearly, order, -1))
    assert np.array_equal(placed.sizes(k), np.bincount(placed.labels[placed.labels >= 0], minlength=k))


def test_many_centroids_are_looked_at_around_a_row_only_and_nearly_all_find_their_nearest(
    products: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assign, "_ALL", 500)
    rng = np.random.default_rng(7)
    topics = rng.standard_normal((300, 24))
    rows, centroids = (
        unit_rows((topics[rng.integers(300, size=n)] + 0.6 * rng.standard_normal((n, 24))).astype(np.float32))[0]
        for n in (3000, 600)
    )
    placed = assign.place(rows, centroids, probes=2, least=0.98)
    cosines = rows.astype(np.float64) @ centroids.T
    assert (placed.labels[:, 0] == cosines.argmax(axis=1)).mean() > 0.95
    assert placed.distance == pytest.approx(1 - np.take_along_axis(cosines, placed.labels[:, :1], 1)[:, 0], abs=1e-6)
    # Each row by itself: in another order, and without the others.
    assert np.array_equal(assign.place(rows[:2000][::-1].copy(), centroids, 2, 0.98).labels[::-1], placed.labels[:2000])
    assert np.array_equal(
        assign.place(rows[:1000], centroids, exact=True, least=0.98).labels[:, 0], cosines[:1000].argmax(axis=1)
    )


def test_rows_far_from_all_centroids_are_placed_in_the_nearest(products: str) -> None:
    centroids = unit_rows(np.array([[1, 0, 0.1], [1, 0, 0], [1, 0, -0.3]], dtype=np.float32))[0]
    for probes in (1, 2, 3):
        assert assign.place(-centroids, centroids, probes).labels[:, 0].tolist() == [2, 2, 0]
    assert assign.place(centroids[:0], centroids, probes=2).labels.shape == (0, 3)


def test_every_pair_that_is_near_enough_meets_in_the_lower_of_its_two_clusters(products: str) -> None:
    rng = np.random.default_rng(2)
    rows = unit_rows(rng.standard_normal((1500, 6)).astype(np.float32))[0]
    centroids = unit_rows(rng.standard_normal((25, 6)).astype(np.float32))[0]
    for least in (0.7, 0.95, 0.99):
        placed = assign.place(rows, centroids, least=least, exact=True)
        goes = np.zeros((len(rows), 25), dtype=bool)
        goes[np.arange(len(rows)), placed.labels[:, 0]] = True
        goes[placed.also] = True
        left, right = np.nonzero(np.triu(rows.astype(np.float64) @ rows.T >= least, 1))
        lower = np.minimum(placed.labels[left, 0], placed.labels[right, 0])
        assert (goes[left, lower] & goes[right, lower]).all() and len(left) > 10
        assert goes.sum() < goes.size


def test_as_many_probes_as_clusters_lead_to_the_cluster_of_every_partner(products: str) -> None:
    rng = np.random.default_rng(3)
    rows = unit_rows(rng.standard_normal((1500, 6)).astype(np.float32))[0]
    centroids = unit_rows(rng.standard_normal((25, 6)).astype(np.float32))[0]
    placed = assign.place(rows, centroids, probes=25, least=0.9)
    goes = np.zeros((len(rows), 25), dtype=int)
    np.add.at(goes, (np.arange(len(rows)), placed.labels[:, 0]), 1)
    np.add.at(goes, placed.also, 1)
    left, right = np.nonzero(rows.astype(np.float64) @ rows.T >= 0.9)
    assert goes[left, placed.labels[right, 0]].all() and goes.max() == 1 and goes.sum() < goes.size


def test_a_second_cluster_is_left_out_where_no_partner_can_be_in_it() -> None:
    centroids = np.eye(3, dtype=np.float32)
    rows = unit_rows(np.array([[1, 0, 0], [1, 0.95, 0]], dtype=np.float32))[0]
    placed = assign.place(rows, centroids, probes=2, least=0.98)
    assert placed.labels.tolist() == [[0, -1, -1], [0, 1, -1]] and placed.also[0].tolist() == [1]


def test_packing_balances_the_work() -> None:
    work = np.array([100, 1, 1, 50, 50, 0, 98])
    bucket = exchange.pack(work, 3)
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


def test_products_of_any_numbers_of_rows_have_few_shapes() -> None:
    assert len({len(in_steps(torch.zeros(n, 1))) for n in range(1, 1025)}) == 22
    for n in range(1, 140):
        rows = in_steps(torch.ones(n, 1))
        assert rows.sum() == n and n <= len(rows) < max(2 * n, n + 64)
        assert len(in_steps(rows, 64)) % 64 == 0


def test_blocks_of_any_number_of_rows_do_not_make_a_process_larger() -> None:
    program = (
        "import numpy as np, psutil, torch\n"
        "from imgcurate.dedup.semantic.clusters import assign\n"
        "from imgcurate.vectors import unit_rows\n"
        "torch.set_num_threads(1)\n"
        "rows = unit_rows(np.random.default_rng(0).standard_normal((1024, 64)).astype(np.float32))[0]\n"
        "used = lambda: psutil.Process().memory_info().rss\n"
        "assign.place(rows, rows[:320])\n"
        "before = used()\n"
        "for n in range(1, 1024, 6):\n"
        "    assign.place(rows[:n], rows[:320])\n"
        "print(used() - before)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert int(ended.stdout) < 40 << 20
