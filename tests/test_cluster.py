"""connect(): one client, the machine's cores, loopback only."""

from __future__ import annotations

import subprocess
import sys

import dask
import pytest
from distributed import Client, LocalCluster

from imgcurate.cluster import backend, connect, gpu_available


def test_a_second_call_gives_the_same_client(client: Client) -> None:
    assert connect() is client
    with pytest.warns(UserWarning, match="already connected"):
        assert connect(workers=1) is client


def test_who_was_handed_a_client_does_not_close_it(client: Client) -> None:
    with connect() as same:
        assert same is client
    assert client.status == "running"
    assert client.submit(sum, [1, 2]).result() == 3


def test_the_cluster_listens_on_loopback_only(client: Client) -> None:
    info = client.scheduler_info()
    assert client.scheduler.address.startswith("tls://127.0.0.1:") and "127.0.0.1" in client.dashboard_link
    assert all(address.startswith("tls://127.0.0.1:") for address in info["workers"])


def test_the_workers_use_the_cores(client: Client) -> None:
    assert len(client.ncores()) == 2 and set(client.ncores().values()) == {1}


def test_the_backend_matches_the_workers(client: Client) -> None:
    assert backend() == "pandas" and dask.config.get("dataframe.backend") == "pandas"


def test_too_few_workers_and_absent_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        connect(workers=0)


SCRIPT = """
import os
from dask.system import CPU_COUNT
from imgcurate.cluster import connect, gpu_available

def threads():
    import torch
    return torch.get_num_threads()

if __name__ == "__main__":
    with connect(devices=[], workers=1) as client:
        assert list(client.run(threads).values()) == [CPU_COUNT], client.run(threads)
        cluster = client.cluster
    assert cluster.status.name == "closed" and "OMP_NUM_THREADS" not in os.environ
    if not gpu_available():
        try:
            connect(devices=[0])
        except ValueError as error:
            assert "imgcurate[cu13]" in str(error)
        else:
            raise AssertionError("a GPU that is not there was accepted")
    print("done")
"""


def test_one_worker_gets_all_cores_and_closing_stops_what_was_started() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert run.stdout.strip().endswith("done"), run.stderr


ADDRESS_SCRIPT = """
import sys
from imgcurate.cluster import connect, backend
with connect(sys.argv[1]) as client:
    assert client.submit(sum, [1, 2]).result() == 3 and backend() == "pandas"
print("done")
"""


@pytest.mark.skipif(gpu_available(), reason="the workers of this cluster would have GPUs")
def test_a_running_scheduler_is_used_and_left_running() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        run = subprocess.run(
            [sys.executable, "-c", ADDRESS_SCRIPT, cluster.scheduler_address],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.stdout.strip() == "done", run.stderr
        assert cluster.status.name == "running"
