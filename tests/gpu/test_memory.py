"""What only a GPU shows: vectors stay on it from one verb to the next, and partitions larger than its memory spill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from conftest import image_bytes
from distributed import Client
from test_curate import model_dir  # noqa: F401

import imgcurate as ic
from gpu.conftest import CUDF, embedded
from gpu.test_models import rows_of
from imgcurate import vectors

_ROWS, _DIMENSION = 4000, 768


def _watch() -> None:
    """Record the size of every array that CuPy or torch brings to the host in this process."""
    import cupy
    import torch

    brought: list[int] = []
    get, cpu = cupy.ndarray.get, torch.Tensor.cpu

    def counted_get(self: Any, *args: Any, **kwargs: Any) -> Any:
        brought.append(self.nbytes)
        return get(self, *args, **kwargs)

    def counted_cpu(self: Any, *args: Any, **kwargs: Any) -> Any:
        brought.append(self.nbytes)
        return cpu(self, *args, **kwargs)

    # CuPy's class is compiled: what cannot be replaced there is watched where imgcurate asks for it.
    vectors.to_numpy = lambda array: counted_get(array) if vectors.on_gpu(array) else np.asarray(array)
    torch.Tensor.cpu = counted_cpu
    _watch.brought = brought  # type: ignore[attr-defined]


def _brought() -> list[int]:
    return list(_watch.brought)  # type: ignore[attr-defined]


def test_vectors_make_no_round_trip_through_the_host(
    gpu_client: Client,
    tmp_path: Path,
    model_dir: Path,  # noqa: F811
) -> None:
    gpu_client.run(_watch)
    part = rows_of(tmp_path / "a.bin", [image_bytes(seed) for seed in range(64)])
    frame = ic.embed(CUDF.frame(part, cuts=(20, 40)), "tiny-clip", model_dir=model_dir)
    scored = ic.score_nsfw(ic.score_aesthetic(frame, model_dir=model_dir), model_dir=model_dir).persist()
    ic.semantic_duplicates(scored, eps=0.01, n_clusters=4).removals().compute()
    largest = max(size for sizes in gpu_client.run(_brought).values() for size in [0, *sizes])
    # Numbers of rows and bits of screens come to the host; a matrix of vectors of any partition does not.
    assert largest < 20 * _DIMENSION * 4 / 2


def _limit(size: int | None) -> None:
    import cudf
    from cudf.core.buffer.spill_manager import get_global_manager

    manager = get_global_manager()
    assert manager is not None and cudf.get_option("spill"), "connect() turns spilling on"
    manager._device_memory_limit = size


def _spillable() -> tuple[int, int]:
    from cudf.core.buffer.spill_manager import get_global_manager

    manager = get_global_manager()
    spilled, unspilled = manager.spill_to_device_limit(), 0
    for buffer in manager.buffers():
        unspilled += 0 if buffer.is_spilled else buffer.size
    return spilled, unspilled


def test_more_vectors_than_the_limit_of_the_device_spill_and_the_answer_is_the_same(gpu_client: Client) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((8 * _ROWS, _DIMENSION)).astype(np.float32)
    matrix[1::10] = matrix[::10]
    frame = CUDF.frame(embedded(matrix), cuts=tuple(range(_ROWS, 8 * _ROWS, _ROWS)))
    expected = sorted(
        ic.semantic_duplicates(frame, eps=0.001, n_clusters=8).removals().compute()["image_id"].to_pandas()
    )
    limit = 2 * _ROWS * _DIMENSION * 4
    gpu_client.run(_limit, limit)
    try:
        held = frame.persist()
        found = sorted(
            ic.semantic_duplicates(held, eps=0.001, n_clusters=8).removals().compute()["image_id"].to_pandas()
        )
        states = gpu_client.run(_spillable)
    finally:
        gpu_client.run(_limit, None)
    assert found == expected and len(found) == len(matrix) // 10
    assert all(unspilled <= limit + _ROWS * _DIMENSION * 4 for _, unspilled in states.values())
