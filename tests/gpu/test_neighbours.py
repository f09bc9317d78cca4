"""Neighbours: the lists of a GPU are those of brute force in float64, and its outliers the planted ones."""

from __future__ import annotations

import numpy as np

import imgcurate as ic
from gpu.conftest import Backend, embedded, host
from gpu.test_dedup import CUTS, cosines, planted


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
