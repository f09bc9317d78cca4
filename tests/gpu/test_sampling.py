"""Representatives: what is chosen on a GPU is what brute force in float64 chooses, and what the CPU chooses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import imgcurate as ic
from gpu.conftest import PANDAS, Backend, embedded, host
from gpu.test_dedup import CUTS, OnCpu, cosines, planted


def taken(found: Any) -> list[tuple[str, int, int]]:
    frame = host(found.frame).sort_values(["cluster", "rank"])
    return list(zip(frame["image_id"], frame["cluster"].tolist(), frame["rank"].tolist(), strict=True))


def test_each_is_the_farthest_from_those_before_it(on: Backend) -> None:
    unit = planted()
    chosen = [int(name[3:]) for name, _, _ in taken(ic.representatives(on.frame(embedded(unit), CUTS), 60))]
    every = cosines(unit)
    for number in range(1, 60):
        near = np.delete(every[:, chosen[:number]].max(axis=1), chosen[:number])
        assert every[chosen[number], chosen[:number]].max() < near.min() + 1e-6


@pytest.mark.parametrize("how", [{}, {"weight": "aesthetic_score"}, {"method": "hierarchical"}])
def test_what_is_chosen_is_what_the_cpu_chooses(on: Backend, on_cpu: OnCpu, how: dict[str, str]) -> None:
    score = np.random.default_rng(1).permutation(600).astype(np.float32).tolist()
    part = embedded(planted(), aesthetic_score=score)
    expected = on_cpu(lambda: taken(ic.representatives(PANDAS.frame(part), fraction=0.1, **how)))
    assert taken(ic.representatives(on.frame(part, CUTS), fraction=0.1, **how)) == expected


def test_clusters_give_their_share(on: Backend) -> None:
    found = ic.representatives(on.frame(embedded(planted()), CUTS), 100, n_clusters=8)
    every = ic.representatives(on.frame(embedded(planted()), CUTS), fraction=1, n_clusters=8)
    shares, sizes = (np.bincount([group for _, group, _ in taken(of)], minlength=8) for of in (found, every))
    assert len(taken(found)) == 100 and sizes.sum() == 600
    assert np.abs(shares - sizes / 6).max() < 1
