"""connect() where there are GPUs: one worker a GPU, one allocator for all libraries, frames of cuDF."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, Worker
from test_curate import model_dir, shards  # noqa: F401

import imgcurate as ic
from imgcurate.cluster import backend, connect


def _seen_by_worker(dask_worker: Worker) -> dict[str, Any]:
    import cudf
    import cupy
    import rmm
    import torch

    torch.zeros(1, device="cuda")
    return {
        "resource": type(rmm.mr.get_current_device_resource()).__name__,
        "cupy": cupy.cuda.get_allocator().__name__,
        "torch": torch.cuda.memory.get_allocator_backend(),
        "cudf spills": cudf.get_option("spill"),
        "share of the device before spilling": round(
            dask_worker.data.device_buffer.n / torch.cuda.mem_get_info()[1], 2
        ),
    }


def test_connect_starts_one_worker_a_gpu_on_loopback(gpu_client: Client) -> None:
    import cupy
    from dask_cuda import LocalCUDACluster

    assert isinstance(gpu_client.cluster, LocalCUDACluster)
    workers = gpu_client.scheduler_info(n_workers=-1)["workers"]
    assert len(workers) == cupy.cuda.runtime.getDeviceCount()
    assert all(address.startswith("tls://127.0.0.1:") for address in [gpu_client.scheduler.address, *workers])
    assert "127.0.0.1" in gpu_client.dashboard_link


def test_connect_chooses_the_cudf_backend(gpu_client: Client) -> None:
    assert connect() is gpu_client
    assert backend() == dask.config.get("dataframe.backend") == "cudf"


def test_a_second_call_for_other_devices_is_told_that_the_client_is_reused(gpu_client: Client) -> None:
    with pytest.warns(UserWarning, match="already connected"):
        assert connect(devices=[]) is gpu_client


def test_cudf_cupy_and_torch_share_one_allocator_and_dask_cuda_spills(gpu_client: Client) -> None:
    for seen in gpu_client.run(_seen_by_worker).values():
        assert seen == {
            "resource": "CudaAsyncMemoryResource",
            "cupy": "rmm_cupy_allocator",
            "torch": "pluggable",
            "cudf spills": False,
            "share of the device before spilling": 0.8,
        }


CPU_SCRIPT = """
import imgcurate as ic
from imgcurate.cluster import backend

if __name__ == "__main__":
    with ic.connect(devices=[], workers=1) as client:
        assert backend() == "pandas"
        assert ic.connect() is client and backend() == "pandas"
    print("done")
"""


@pytest.mark.usefixtures("gpu_client")
def test_a_client_without_devices_stays_one_of_pandas_when_it_is_reused() -> None:
    run = subprocess.run([sys.executable, "-c", CPU_SCRIPT], capture_output=True, text=True, check=False)
    assert run.stdout.strip().endswith("done"), run.stderr


SEVERAL_SCRIPT = """
import sys
import distributed
import imgcurate as ic
from imgcurate.cluster import backend

if __name__ == "__main__":
    shards, model = sys.argv[1:]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1") as cluster:
        client = ic.connect(cluster.scheduler_address)
        assert backend() == "cudf" and len(client.scheduler_info(n_workers=-1)["workers"]) == 2
        frame = ic.embed(ic.read_webdataset(shards), model, dtype="float32").persist()
        found = ic.semantic_duplicates(frame, eps=1e-4, n_clusters=1, keep="id")
        print(*sorted(found.removals().compute()["image_id"].to_pandas()))
"""


def test_workers_of_any_cluster_may_share_a_gpu(
    gpu_client: Client,
    on_cpu: Callable[[Callable[[], Any]], Any],
    shards: Path,  # noqa: F811
    model_dir: Path,  # noqa: F811
) -> None:
    command = [sys.executable, "-c", SEVERAL_SCRIPT, str(shards), str(model_dir / "tiny-clip")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)

    def expected() -> list[str]:
        frame = ic.embed(ic.read_webdataset(shards), str(model_dir / "tiny-clip"), dtype="float32")
        return sorted(ic.semantic_duplicates(frame, eps=1e-4, n_clusters=1, keep="id").removals().compute()["image_id"])

    assert run.stdout.split() == on_cpu(expected), run.stderr
