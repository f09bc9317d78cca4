"""Recipes on a GPU remove, step by step, as many rows as on a CPU, and keep the same ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gpu.conftest import PANDAS, Backend, embedded, host
from gpu.test_dedup import CUTS, OnCpu, planted
from imgcurate import recipes


def rows() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    unit = planted()
    n = len(unit)
    words = np.array([None, "a dog", "a red dog", "a\u2003b c d", "\u00e9t\u00e9 \u00e0 la mer", "12345"])
    columns = {
        "caption": words[rng.integers(len(words), size=n)],
        "bytes": rng.integers(4000, 9000, n),
        "width": [None if side < 100 else int(side) for side in rng.integers(90, 700, n)],
        "height": rng.integers(150, 700, n),
        "clip_score": rng.random(n).astype(np.float32),
        "error": [None if fine else "decode: empty file" for fine in rng.random(n) > 0.1],
    }
    return embedded(unit, **columns)


def test_recipes_keep_on_a_gpu_what_they_keep_on_a_cpu(on: Backend, on_cpu: OnCpu) -> None:
    unit = planted()
    some = {
        "laion": recipes.laion(0.5),
        "basic": recipes.datacomp_basic(),
        "both": recipes.top_clip_score(0.5) + recipes.image_based(unit[:40], unit[100:130] * np.float32(0.7)),
        "semdedup": recipes.datacomp_basic() + recipes.semdedup(0.1, n_clusters=1),
        "d4": recipes.d4(0.5, r_dedup=0.9, min_similarity=0.7, n_clusters=1),
    }

    def applied(backend: Backend, steps: list[recipes.Step]) -> tuple[list[str], list[Any]]:
        kept, table = recipes.apply(backend.frame(rows(), CUTS), steps)
        return sorted(host(kept)["image_id"]), table["left"].tolist()

    for name, steps in some.items():
        ids, left = applied(on, steps)
        assert (ids, left) == on_cpu(lambda steps=steps: applied(PANDAS, steps)), name
        assert 0 < left[-1] < len(unit), name
