"""What only a GPU shows: vectors stay on it from one verb to the next, and partitions larger than its memory spill."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from conftest import image_bytes
from distributed import Client, Worker
from test_curate import model_dir  # noqa: F401

import imgcurate as ic
from gpu.conftest import CUDF, embedded
from gpu.test_models import rows_of
from imgcurate import vectors

_ROWS, _DIMENSION = 4000, 768


class _Watched:
    """What has gone between host and device in this process since `watch`: bytes of each array."""

    brought: ClassVar[list[int]] = []
    sent: ClassVar[list[int]] = []

    @classmethod
    def watch(cls) -> None:
        import torch

        from imgcurate.encoders import base

        to_numpy, cpu, to_device = vectors.to_numpy, torch.Tensor.cpu, base.to_device

        def watched_to_numpy(array: Any) -> Any:
            cls.brought += [array.nbytes] if vectors.on_gpu(array) else []
            return to_numpy(array)

        @functools.wraps(cpu)
        def watched_cpu(tensor: Any, *arguments: Any) -> Any:
            cls.brought += [tensor.nbytes]
            return cpu(tensor, *arguments)

        def watched_to_device(array: Any, device: Any) -> Any:
            cls.sent += [array.nbytes]
            return to_device(array, device)

        vectors.to_numpy, torch.Tensor.cpu, base.to_device = watched_to_numpy, watched_cpu, watched_to_device

    @classmethod
    def seen(cls) -> tuple[int, int]:
        """Return the largest array that was brought, and what was sent in all."""
        return max(cls.brought, default=0), sum(cls.sent)


def test_only_small_pixels_go_to_the_gpu_and_no_vectors_come_back(
    gpu_client: Client,
    tmp_path: Path,
    model_dir: Path,  # noqa: F811
) -> None:
    gpu_client.run(_Watched.watch)
    part = rows_of(tmp_path / "a.bin", [image_bytes(seed) for seed in range(64)])
    frame = ic.embed(CUDF.frame(part, cuts=(20, 40)), "tiny-clip", model_dir=model_dir)
    scored = ic.score_nsfw(ic.score_aesthetic(frame, model_dir=model_dir), model_dir=model_dir).persist()
    ic.semantic_duplicates(scored, eps=0.01, n_clusters=4).removals().compute()
    seen = gpu_client.run(_Watched.seen).values()
    # Numbers of rows and bits of screens come to the host; a matrix of vectors of any partition does not.
    assert max(brought for brought, _ in seen) < 20 * _DIMENSION * 4 / 2
    # One byte a channel of what the model sees, and few more: the numbers of rows, and what the model is tried with.
    pixels = 64 * 32 * 32 * 3
    assert pixels <= sum(sent for _, sent in seen) < 1.2 * pixels


def _limit(size: float, dask_worker: Worker) -> float:
    """Set how many bytes of the device a worker may hold, and return how many it might before."""
    buffer = dask_worker.data.device_buffer
    before, buffer.n = buffer.n, size
    buffer.evict_until_below_target()
    return before


def _held(dask_worker: Worker) -> tuple[float, int]:
    """Return how many bytes a worker holds on the device, and how many objects of the device it holds on the host."""
    from dask_cuda.device_host_file import DeviceSerialized

    data = dask_worker.data
    return data.device_buffer.fast.total_weight, sum(
        isinstance(value, DeviceSerialized) for value in data.host.values()
    )


def test_more_vectors_than_the_limit_of_the_device_spill_and_the_answer_is_the_same(gpu_client: Client) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((8 * _ROWS, _DIMENSION)).astype(np.float32)
    matrix[1::10] = matrix[::10]
    frame = CUDF.frame(embedded(matrix), cuts=tuple(range(_ROWS, 8 * _ROWS, _ROWS)))

    def find() -> tuple[list[str], Any]:
        held = frame.persist()
        found = ic.semantic_duplicates(held, eps=0.001, n_clusters=8)
        return sorted(found.removals().compute()["image_id"].to_pandas()), (held, found)

    expected, _ = find()
    limit = 2 * _ROWS * _DIMENSION * 4
    before = gpu_client.run(_limit, limit)
    try:
        found, _alive = find()
        states = gpu_client.run(_held)
    finally:
        gpu_client.run(_limit, min(before.values()))
    assert found == expected and len(found) == len(matrix) // 10
    assert all(on_device <= limit and spilled > 0 for on_device, spilled in states.values())
