"""The threshold that leaves a share of the images is the one that trying all thresholds finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_semantic import frame_of, planted

import imgcurate as ic
from imgcurate.dedup import Duplicates, remove, semantic_duplicates
from imgcurate.dedup.graph.sizes import similarity_that_removes
from imgcurate.vectors import unit_rows


@pytest.fixture(autouse=True)
def in_process() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def crowded(n: int = 60, seed: int = 0) -> np.ndarray:
    """Rows of which many are near to many, at all distances, with some that are equal."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((6, 8))[rng.integers(6, size=n)] + rng.uniform(0.01, 0.6, (n, 1)) * rng.standard_normal(
        (n, 8)
    )
    rows[:5] = rows[5:10]
    return unit_rows(rows)[0]


@pytest.mark.parametrize("rule", ["cover", "pointwise", "component"])
def test_the_threshold_is_the_one_that_trying_all_finds(rule: Any) -> None:
    found = semantic_duplicates(frame_of(crowded()), eps=0.2, min_similarity=0.5, rule=rule)
    similarities = np.unique(found.edges.compute()["similarity"].to_numpy().astype(np.float64))[::-1]
    thresholds = 1 - np.append(similarities[similarities < 1], 0.5)
    removed = found.sweep(thresholds)["removed"].to_numpy()
    for share in (0.9, 0.7, 0.5):
        wanted = 60 - int(share * 60 + 1e-6)
        there = found.to_fraction(share)
        left = there.selected.compute()
        assert len(left) <= share * 60 and len(left) == 60 - found.sweep([there.eps])["removed"][0]
        at = int(np.flatnonzero(thresholds == there.eps)[0])
        assert removed[at] >= wanted and (at == 0 or removed[at - 1] < wanted)
        if rule != "cover":  # of which a higher threshold never removes more
            assert (removed[:at] < wanted).all()
    assert found.eps == 0.2


@given(
    values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30),
    wanted=st.integers(0, 31),
    lowest=st.floats(-1, 0.99),
)
def test_halving_finds_the_highest_threshold_that_removes_enough(values: Any, wanted: int, lowest: float) -> None:
    similarities = np.array(values)
    asked = []

    def count(least: float) -> int:
        asked.append(least)
        return int((similarities >= least).sum())

    found = similarity_that_removes(wanted, count, lowest)
    assert len(asked) <= 32 and min(asked) >= lowest
    if count(lowest) < wanted:
        assert found is None
        return
    highest = float(np.nextafter(np.float32(1), np.float32(0)))
    enough = [value for value in [*values, highest, lowest] if value < 1 and value >= lowest and count(value) >= wanted]
    assert found == max(enough)


def test_a_share_that_the_stored_pairs_do_not_reach_is_refused() -> None:
    found = semantic_duplicates(frame_of(planted()), eps=0.01, min_similarity=0.98)
    with pytest.raises(ValueError, match=r"share=0.1 is not reached: all pairs .* >= 0.98, leave 7\d\.\d%.* lower min"):
        found.to_fraction(0.1)
    for share in (0, 1, 70, -0.5, "0.7", None):
        with pytest.raises(ValueError, match=r"share=.* must be above 0 and below 1"):
            found.to_fraction(share)


def test_images_that_are_not_compared_count_among_those_that_stay() -> None:
    error = [None] * 30 + ["decode: truncated JPEG"] * 30
    found = semantic_duplicates(
        frame_of(crowded(), error=pd.Series(error, dtype="str")), eps=0.2, min_similarity=0.5, keep="id"
    )
    there = found.to_fraction(0.7)
    assert len(remove(frame_of(crowded()), there)) <= 42 and found.n_compared == 30


def test_copies_go_together_and_the_result_says_what_is_left(tmp_path: Path) -> None:
    matrix = np.tile(np.eye(4, dtype=np.float32), (5, 1))
    found = semantic_duplicates((range(20), matrix), eps=0.1)
    there = found.to_fraction(0.9)
    assert len(there.removals()) == 16 and there.eps < 1e-7
    assert "(leaves 20.0%)" in repr(there) and "leaves" not in repr(found)
    found.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="leave 20"):
        Duplicates.load(tmp_path / "saved").to_fraction(0.1)


def test_hashes_that_differ_in_more_bits_make_up_the_share() -> None:
    hashes = [0, 1, 0b111, 1 << 40, 2**64 - 1, 0xFFFF0000FFFF0000]
    part = pd.DataFrame({"image_id": list("abcdef"), "phash": pd.array(hashes, dtype="uint64[pyarrow]")})
    found = ic.perceptual_duplicates(dask.dataframe.from_pandas(part, npartitions=2), max_distance=4, keep="id")
    assert found.to_fraction(0.67).eps == 1 / 64
    with pytest.raises(ValueError, match=r"share=0.3 is not reached.*higher max_distance"):
        found.to_fraction(0.3)
