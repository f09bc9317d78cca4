"""The similarity join against brute force in float64."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from imgcurate.dedup.semantic import join, screen, threads
from imgcurate.vectors import unit_rows


def with_copies(n: int, d: int, seed: int, noise: float = 0.1) -> np.ndarray:
    """Unit vectors, some of which are copies of others, exact or nearly so."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)).astype(np.float32)
    for copy in range(n // 2):
        rows[rng.integers(n)] = (
            rows[rng.integers(n)] + noise * (copy % 3) * rng.standard_normal(d).astype(np.float32) / d**0.5
        )
    return unit_rows(rows)[0]


def brute_force(rows: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    others_wide = (rows if others is None else others).astype(np.float64)
    cosines = rows.astype(np.float64) @ others_wide.T
    return np.where(np.triu(np.ones_like(cosines), 1) > 0, cosines, -2) if others is None else cosines


def check(pairs: join.Pairs, cosines: np.ndarray, least: float) -> None:
    """The pairs are those of brute force wherever the cosine is further than 1e-6 from the threshold."""
    found = np.zeros(cosines.shape, dtype=bool)
    found[pairs.left, pairs.right] = True
    assert found.sum() == len(pairs.left)
    clear = np.abs(cosines - least) > 1e-6
    assert np.array_equal(found & clear, (cosines >= least) & clear)
    # Not by pytest.approx, which compares millions one by one.
    np.testing.assert_allclose(pairs.similarity, cosines[pairs.left, pairs.right], rtol=0, atol=1e-6)
    assert (pairs.similarity <= 1).all()


@settings(max_examples=80)
@given(
    n=st.integers(0, 300), d=st.sampled_from([1, 2, 3, 16, 300]), seed=st.integers(0, 10**6),
    least=st.sampled_from([1 - 1e-5, 0.987, 0.9, 0.3, 0.0, -0.3]), low=st.sampled_from([True, False]),
    noise=st.sampled_from([0.0, 0.1, 0.5]),
)  # fmt: skip
def test_all_pairs_of_brute_force_are_found(n: int, d: int, seed: int, least: float, low: bool, noise: float) -> None:
    rows = with_copies(n, d, seed, noise)
    check(join.pairs_within(rows, least, low_precision=low), brute_force(rows), least)
    others = with_copies(n // 2 + 1, d, seed + 1, noise)
    others[: n // 3] = rows[: n // 3][: len(others)]
    check(join.pairs_between(rows, others, least, low_precision=low), brute_force(rows, others), least)


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("directions", [32, 128])
def test_no_pair_is_lost_by_shortening_however_bad_the_basis(directions: int, low: bool) -> None:
    rng = np.random.default_rng(0)
    dtype = "bfloat16" if low else "float32"
    for spread in (0.02, 1.0):
        rows = unit_rows((1 + spread * rng.standard_normal((1500, 256))).astype(np.float32))[0]
        rows[::3] = unit_rows(rows[::3] + 0.2 * spread * rng.standard_normal(rows[::3].shape))[0]
        basis = np.linalg.qr(rng.standard_normal((256, directions)))[0]
        for least in (0.5, 0.97, 0.9995):
            check(join.compare(rows, None, screen.Screen(dtype, basis), least), brute_force(rows), least)


def test_screened_products_fall_below_the_cosine_by_less_than_the_margin() -> None:
    import torch

    rng = np.random.default_rng(1)
    for d in (64, 768, 4096):
        rows = unit_rows((rng.random((400, d)) ** 8).astype(np.float32))[0]
        rows[:200] = unit_rows(rows[200:] + 1e-3)[0]
        rows[0] = d**-0.5
        for basis in (None, np.linalg.qr(rng.standard_normal((d, 32)))[0]):
            for dtype in ("bfloat16", "float16", "float32"):
                chosen = screen.Screen(dtype, basis)
                short = screen.apply(rows, chosen)
                products = torch.mm(short, short.T).double().numpy()
                assert (products >= rows.astype(np.float64) @ rows.T - chosen.margin(d)).all()


def test_a_threshold_is_met_at_its_very_value() -> None:
    rows = np.array([[1, 0, 0], [0.6, 0.8, 0], [0.8, 0.6, 0]], dtype=np.float32)
    similarity = float(np.float32(0.8))
    assert join.pairs_within(rows, similarity).right.tolist() == [2, 2]
    assert join.pairs_within(rows, float(np.nextafter(np.float32(0.8), np.float32(1)))).right.tolist() == [2]


def test_a_basis_is_chosen_where_it_pays_and_not_where_it_does_not() -> None:
    rng = np.random.default_rng(2)
    flat = unit_rows(rng.standard_normal((4000, 256)).astype(np.float32))[0]
    steep = unit_rows((rng.standard_normal((4000, 256)) * np.arange(1, 257) ** -1.0).astype(np.float32))[0]
    assert screen.plan(steep, 10**6, 0.95, "bfloat16").width(256) < 80
    assert screen.plan(flat, 10**6, 0.2, "bfloat16").basis is None
    assert screen.plan(steep, 1000, 0.95, "bfloat16").basis is None


def test_orthogonal_and_opposite_vectors_have_no_pairs() -> None:
    assert len(join.pairs_within(np.eye(4096, dtype=np.float32)[:1000], 0.01).left) == 0
    assert len(join.pairs_within(np.array([[1, 0], [-1, 0]], dtype=np.float32), -0.9).left) == 0


def test_a_dense_cluster_is_compared_in_full() -> None:
    rng = np.random.default_rng(3)
    rows = unit_rows((1 + 0.01 * rng.standard_normal((3000, 64))).astype(np.float32))[0]
    check(join.pairs_within(rows, 0.999), brute_force(rows), 0.999)


@pytest.fixture
def inexact_torch() -> Iterator[None]:
    """torch as users set it for speed: float32 products in bfloat16 or TF32, on the CPU too where it can."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


class Watched(TorchFunctionMode):
    """Notes how torch is set whenever it multiplies matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("mm", "addmm_", "matmul", "__matmul__"):
            self.seen.append(torch.get_float32_matmul_precision())
        return func(*args, **kwargs or {})


@pytest.mark.usefixtures("inexact_torch")
@pytest.mark.parametrize("low", [False, True])
def test_products_are_exact_however_torch_is_set_and_the_setting_stays(low: bool) -> None:
    rows, others = (with_copies(n, 64, seed=n) for n in (300, 200))
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 32)))[0]
    with Watched() as watched:
        screen.products(rows, others)
        screen.apply(rows, screen.Screen("float32", basis))
        join.pairs_within(rows, 0.5, low_precision=low)
        join.pairs_between(rows, others, 0.5, low_precision=low)
    assert len(watched.seen) >= 4 and set(watched.seen) == {"highest"}
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.usefixtures("inexact_torch")
def test_the_setting_comes_back_when_the_last_thread_is_done() -> None:
    with screen.exact_products():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(screen.products, np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)).result()
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_torch_threads")
@pytest.mark.parametrize("directions", [None, 31])
def test_the_answer_does_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, directions: int | None
) -> None:
    monkeypatch.setitem(join._TILE, "cpu", (512, 512))  # so that there are four rows of tiles, and three
    rows, others = (with_copies(n, 64, seed=n) for n in (1700, 1150))
    basis = None if directions is None else np.linalg.qr(np.random.default_rng(0).standard_normal((64, directions)))[0]
    chosen = screen.Screen("bfloat16", basis)
    for beside in (None, others):
        once, *more = [join.compare(rows, beside, chosen, 0.7, n_threads=n) for n in (1, 2, 3, None)]
        check(once, brute_force(rows, beside), 0.7)
        for pairs in more:
            assert all(np.array_equal(a, b) for a, b in zip(once, pairs, strict=True))


@pytest.mark.usefixtures("two_torch_threads")
def test_dealt_work_has_one_torch_thread_and_all_other_threads_keep_theirs() -> None:
    assert threads.deal(lambda _: torch.get_num_threads(), range(5), 3) == [1] * 5
    assert threads.alone(torch.get_num_threads) == 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2


def test_an_error_of_dealt_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        threads.deal(lambda item: 1 // item, [1, 0, 2], 2)
