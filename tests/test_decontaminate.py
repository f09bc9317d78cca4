"""decontaminate: brute force, whatever the blocks are, and what is computed when."""

from __future__ import annotations

import importlib
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from test_corpus import data, frames
from test_semantic import frame_of, planted

import imgcurate as ic
from imgcurate import parts
from imgcurate.vectors import to_column, unit_rows

decontaminating = importlib.import_module("imgcurate.dedup.decontaminate")


def test_training_images_near_evaluation_images_are_named(client: Client) -> None:
    old, new = frames()
    found = ic.decontaminate(old, new, eps=0.01)
    table = found.compute()
    rows, others = data()
    cosines = rows.astype(np.float64) @ others.astype(np.float64).T
    expected = np.flatnonzero(cosines.max(axis=1) >= 0.99)
    assert table["image_id"].tolist() == [f"old{row:04}" for row in expected]
    best = [int(name[3:]) for name in table["duplicate_of"]]
    assert cosines[expected, best] == pytest.approx(cosines[expected].max(axis=1), abs=1e-6)
    assert table["similarity"].to_numpy() == pytest.approx(cosines[expected, best], abs=1e-6)
    assert len(ic.remove(old, found)) == 900 - len(expected)
    with pytest.raises(ValueError, match="embed both with one encoder"):
        ic.decontaminate(old, frame_of(planted(20, 8))).compute()


@pytest.mark.parametrize(("rows", "comparisons"), [(1_000, 50_000), (64, 50_000), (7, 50_000), (7, 40), (1, 1)])
def test_the_answer_does_not_depend_on_the_blocks(
    client: Client, monkeypatch: pytest.MonkeyPatch, rows: int, comparisons: int
) -> None:
    monkeypatch.setattr(decontaminating, "_ROWS", rows)
    monkeypatch.setattr(decontaminating, "_COMPARISONS", comparisons)
    rng = np.random.default_rng(1)
    evaluation = unit_rows(rng.standard_normal((100, 16)))[0]
    train = unit_rows(evaluation[rng.integers(100, size=150)] + 0.05 * rng.standard_normal((150, 16)))[0]
    evaluation[[30, 77]] = evaluation[5]  # of equally near images, the first is named
    train[[3, 140]] = evaluation[5]
    errors = pd.array(["decode: truncated" if row in (5, 11) else None for row in range(100)], dtype="string[pyarrow]")
    usable = np.array([row not in (5, 11) for row in range(100)])
    found = ic.decontaminate(frame_of(train, npartitions=5), frame_of(evaluation, npartitions=4, error=errors), eps=0.1)
    table = found.compute()
    cosines = (train.astype(np.float64) @ evaluation.astype(np.float64).T).astype(np.float32)
    cosines[:, ~usable] = -1
    expected = np.flatnonzero(cosines.max(axis=1) >= 0.9)
    assert 20 < len(expected) < 150
    assert table["image_id"].tolist() == [f"img{row:05}" for row in expected]
    assert table["duplicate_of"].tolist() == [f"img{row:05}" for row in cosines[expected].argmax(axis=1)]
    assert table["similarity"].to_numpy() == pytest.approx(cosines[expected].max(axis=1), abs=1e-6)
    assert dict(zip(table["image_id"], table["duplicate_of"], strict=True))["img00140"] == "img00030"
    assert table.dtypes.equals(found._meta.dtypes)


def test_blocks_hold_every_row_once_and_none_is_larger_than_it_may_be() -> None:
    rng = np.random.default_rng(0)
    for dimension in (0, 16, 768, 1 << 20):
        most = min(32_768, 2**26 // max(dimension, 1))
        sizes = rng.choice([0, 1, 500, 20_000, 100_000] if dimension < 1_000 else [0, 1, 60, 200], size=40).tolist()
        plan = decontaminating._plan(sizes, dimension)
        rows = [(part, row) for block in plan for part, first, last in block for row in range(first, last)]
        assert rows == [(part, row) for part, size in enumerate(sizes) for row in range(size)]
        counts = [sum(last - first for _, first, last in block) for block in plan]
        assert max(counts) <= most and len(plan) <= sum(sizes) // most + 1
        assert all(first < last for block in plan for _, first, last in block)
    assert decontaminating._plan([0, 0], 0) == [[]] == decontaminating._plan([], 0)


def test_many_partitions_and_blocks_are_compared_in_a_bounded_number_of_tasks(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decontaminating, "_ROWS", 10)
    monkeypatch.setattr(decontaminating, "_COMPARISONS", 100)
    train, evaluation = frame_of(planted(120), npartitions=60), frame_of(planted(200, seed=1), npartitions=50)
    found = ic.decontaminate(train, evaluation)
    tasks = [key for key in dict(found.__dask_graph__()) if str(key).startswith("_nearest_in")]
    assert 60 < len(tasks) <= 100  # and not 60 * 20
    assert found.npartitions == 5


def test_nothing_of_train_is_computed_before_it_is_asked_for(client: Client, tmp_path: Path) -> None:
    def embedded(part: pd.DataFrame) -> pd.DataFrame:
        (tmp_path / str(part.index[0])).touch()
        return part.assign(embedding=to_column(planted(len(part)), part))

    meta = frame_of(planted(3))._meta
    ids = frame_of(planted(40), npartitions=4)[["image_id"]]
    train = ids.map_partitions(embedded, meta=meta)
    found = ic.decontaminate(train, frame_of(planted(10)))
    assert not list(tmp_path.iterdir())
    assert len(found) == 40  # each partition has the vectors that evaluation has
    assert len(list(tmp_path.iterdir())) == 4


def test_without_usable_images_nothing_is_named(client: Client) -> None:
    frame, nothing = frame_of(planted(20)), frame_of(np.full((5, 32), np.nan))
    for train, evaluation in ((frame, nothing), (nothing, frame)):
        found = ic.decontaminate(train, evaluation)
        assert len(found.compute()) == 0 and found.compute().dtypes.equals(found._meta.dtypes)
    with pytest.raises(KeyError, match=r"decontaminate \(evaluation\) needs column 'embedding'"):
        ic.decontaminate(frame, frame[["image_id"]])


def test_a_checkpoint_of_the_answer_knows_it_again(client: Client, tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("evaluation", 1), ("other", 2)):
        ic.write_parquet(frame_of(planted(50, seed=seed)), tmp_path / name)

    def keys(train: str, evaluation: str) -> list[str]:
        frames = [dd.read_parquet(tmp_path / name) for name in (train, evaluation)]
        return parts.keys_of(ic.decontaminate(*frames))

    once = keys("train", "evaluation")
    assert keys("train", "evaluation") == once
    assert not set(once) & {*keys("other", "evaluation"), *keys("train", "other")}
