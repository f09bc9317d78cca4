"""A map on a GPU: principal components put images where they do on a CPU, and UMAP keeps groups together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import imgcurate as ic
from gpu.conftest import PANDAS, Backend, embedded, host
from gpu.test_dedup import CUTS, OnCpu, planted


def places(frame: Any, **options: Any) -> np.ndarray:
    found = host(ic.place_on_map(frame, **options)).set_index("image_id").sort_index()
    return found[["x", "y"]].to_numpy(dtype=np.float64)


def test_principal_components_put_images_where_the_cpu_does(on: Backend, on_cpu: OnCpu) -> None:
    part = embedded(planted())
    found = places(on.frame(part, CUTS), sample=400)
    np.testing.assert_allclose(found, on_cpu(lambda: places(PANDAS.frame(part), sample=400)), atol=1e-5)
    assert found.std(axis=0).min() > 0.01


def test_umap_keeps_groups_together(on: Backend) -> None:
    pytest.importorskip("cuml.manifold" if on.name == "cudf" else "umap", reason="UMAP is not installed")
    of_group = np.arange(300) % 3
    noise = 0.05 * np.random.default_rng(0).standard_normal((300, 16))
    matrix = (np.eye(3, 16)[of_group] + noise).astype(np.float32)
    found = places(on.frame(embedded(matrix), [100]), method="umap", sample=150)
    centres = np.array([found[of_group == group].mean(axis=0) for group in range(3)])
    assert (np.linalg.norm(found[:, None] - centres, axis=2).argmin(axis=1) == of_group).all()
