"""Neighbours: the lists of a GPU are those of brute force in float64, and its outliers the planted ones; search and leaks find what the CPU finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import imgcurate as ic
from gpu.conftest import PANDAS, Backend, embedded, host
from gpu.test_dedup import CUTS, OnCpu, cosines, planted


def test_lists_are_those_of_brute_force(on: Backend) -> None:
    unit = planted()
    found = ic.neighbours(on.frame(embedded(unit), CUTS), k=5)
    every = cosines(unit) - 9 * np.eye(len(unit))
    lists = host(found.frame)
    assert len(lists) == len(unit)
    for row in lists.itertuples():
        expected = np.sort(every[int(row.image_id[3:])])[::-1][:5]
        others = [int(name[3:]) for name in row.neighbours]
        np.testing.assert_allclose(np.asarray(row.similarities, dtype=float), expected, atol=1e-6)
        np.testing.assert_allclose(every[int(row.image_id[3:]), others], expected, atol=1e-6)
    assert found.recall(100).recall == 1


def test_probed_clusters_find_most_and_strangers_score_highest(on: Backend) -> None:
    unit = planted()
    found = ic.neighbours(on.frame(embedded(unit), CUTS), k=5, n_clusters=12, probes=4)
    assert found.recall(200).recall > 0.7
    scores = host(ic.outliers(found)).set_index("image_id")["outlier_score"].astype(float)
    lists = host(found.frame).set_index("image_id")["similarities"]
    assert scores.to_dict() == {
        name: np.float32(1 - np.mean(np.asarray(lists[name], dtype=float))) for name in scores.index
    }


def test_a_column_of_embeddings_is_looked_for_as_brute_force_does(on: Backend) -> None:
    unit = planted()
    frame = on.frame(embedded(unit), CUTS)
    rows = frame.compute().head(3)
    found = ic.search(frame, 5, vectors=rows["embedding"])
    every = cosines(unit)
    for number, name in enumerate(host(rows)["image_id"]):
        expected = np.sort(every[int(name[3:])])[::-1][:5]
        np.testing.assert_allclose(found["similarity"][found["query"] == number], expected, atol=1e-6)


def test_a_search_of_a_frame_and_of_what_was_saved_finds_the_nearest(on: Backend, tmp_path: Path) -> None:
    unit = planted()
    frame, queries = on.frame(embedded(unit), CUTS), unit[[3, 500]] + np.float32(0.01)
    expected = np.argsort(-(queries @ unit.T), axis=1)[:, :5]
    ic.save_embeddings(frame, tmp_path / "saved", n_clusters=6)
    for given in (frame, tmp_path / "saved"):
        hits = ic.search(given, 5, vectors=queries)
        assert hits["image_id"].tolist() == [f"img{row:04}" for row in expected.ravel()]


def test_leaks_are_those_of_the_cpu(on: Backend, on_cpu: OnCpu) -> None:
    splits = np.random.default_rng(1).choice(["train", "val", "test"], 600, p=[0.8, 0.1, 0.1]).tolist()
    part = embedded(planted(), caption=splits).rename(columns={"caption": "split"})

    def pairs(frame: Any) -> list[tuple[str, ...]]:
        found = host(ic.leaks(frame, kinds=["semantic"]).pairs)
        return sorted(zip(*(found[name].tolist() for name in ("image_id", "split", "duplicate_of")), strict=True))

    found = pairs(on.frame(part, CUTS))
    assert found == on_cpu(lambda: pairs(PANDAS.frame(part))) and found
