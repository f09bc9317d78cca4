"""connect(): one client, the machine's cores, loopback only."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from conftest import image_bytes, write_tar
from distributed import Client, LocalCluster
from sessions import wait_for

from imgcurate.cluster import backend, connect, describe_workers, gpu_available, revive
from imgcurate.encoders import checkpoint


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "at least 1 worker"),
        ({"memory_limit": "much"}, "give a size of memory"),
        ({"memory_limit": "10 MB"}, "at least 256MiB"),
        ({"address": "tcp://127.0.0.1:1", "workers": 2}, "leave it out with a running scheduler"),
        ({"address": "tcp://127.0.0.1:1", "scheduler_file": "s.json"}, "give one of them"),
        ({"address": "tcp://127.0.0.1:1", "security": True}, "with its certificates"),
        ({"address": "tcp://127.0.0.1"}, "give its host and port"),
        ({"security": "tls"}, "distributed.Security"),
        ({"timeout": 0}, "more than 0"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_starts(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        connect(**options)


def test_the_directory_of_models_is_named_once(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGCURATE_MODEL_DIR", "")
    with pytest.raises(FileNotFoundError, match=r"model_dir '.*nowhere' is not a directory"):
        connect(model_dir=tmp_path / "nowhere")
    assert connect(model_dir=tmp_path) is client
    with pytest.raises(FileNotFoundError, match=f"into {tmp_path}/openai/clip-vit-large-patch14"):
        checkpoint.find("clip")


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


def run_script(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script that defines `main(client)` with two workers of its own, and gives what it printed."""
    text = START.format(script=script)
    return subprocess.run(
        [sys.executable, "-c", text, *arguments], capture_output=True, text=True, check=False, timeout=120, **options
    )


START = """
import contextlib, os, signal, sys, time
import distributed
import psutil
from imgcurate import cluster
from imgcurate.cluster import connect, describe_workers, kill, restart_paused, revive

def pids(client):
    return sorted(client.run(os.getpid).values())

def worker_processes():
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in str(child.cmdline()):
                found.append(child)
    return found

{script}

if __name__ == "__main__":
    main()
"""


ENDINGS = {
    "idle": "pass",
    "with tasks that run": "futures = client.map(time.sleep, [60] * 20, pure=False); time.sleep(1)",
    "with results that are held": "futures = client.map(os.urandom, [10**6] * 20, pure=False); distributed.wait(futures)",
}


@pytest.mark.parametrize("how", ["client.close()", "kill(client)", "pass"])
@pytest.mark.parametrize("state", ENDINGS)
def test_a_cluster_ends_quickly_and_quietly_and_leaves_nothing(how: str, state: str, tmp_path: Path) -> None:
    script = f"""
def main():
    client = connect(devices=[], workers=2)
    {ENDINGS[state]}
    print(*pids(client))
    started = time.monotonic()
    {how}
    print(time.monotonic() - started)
"""
    run = run_script(script, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert run.stderr == "" and run.returncode == 0
    workers, seconds = run.stdout.splitlines()
    assert not any(psutil.pid_exists(int(pid)) for pid in workers.split())
    assert list(tmp_path.iterdir()) == []
    assert float(seconds) < 3


@pytest.mark.parametrize("how", ["client.close()", "kill(client)"])
def test_what_dask_says_once_its_cluster_has_closed_is_not_printed(how: str) -> None:
    script = f"""
import logging

def main():
    client = connect(devices=[], workers=1)
    close = client.cluster.close

    def close_and_speak(*args, **kwargs):
        close(*args, **kwargs)
        logging.getLogger("distributed.batched").info("Batched Comm Closed")

    client.cluster.close = close_and_speak
    {how}
    logging.getLogger("distributed.batched").info("said later")
"""
    run = run_script(script)
    assert run.returncode == 0 and "Batched" not in run.stderr and "said later" in run.stderr


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.5])
def test_ctrl_c_while_a_cluster_starts_ends_it_quietly_and_leaves_nothing(seconds: float, tmp_path: Path) -> None:
    script = """
import threading

def main():
    threading.Timer(float(sys.argv[1]), os.killpg, (0, signal.SIGINT)).start()
    try:
        connect(devices=[], workers=2)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted")
"""
    run = run_script(script, str(seconds), env={**os.environ, "TMPDIR": str(tmp_path)}, start_new_session=True)
    assert run.stdout == "interrupted\n" and run.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_workers_and_what_they_hold_outlive_ctrl_c() -> None:
    script = """
import threading

def main():
    client = connect(devices=[], workers=2)
    held = client.map(lambda i: os.urandom(8), range(4), pure=False)
    before, workers = client.gather(held), pids(client)
    interrupted = 0
    for wait in (lambda: time.sleep(30), client.submit(time.sleep, 30).result):
        try:
            threading.Timer(0.5, os.killpg, (0, signal.SIGINT)).start()
            wait()
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted == 2
    assert pids(client) == workers and client.gather(held) == before
    client.close()
    print("done")
"""
    run = run_script(script, start_new_session=True)
    assert run.stdout == "done\n" and run.stderr == ""


def test_ctrl_c_does_not_reach_a_worker_that_is_starting_again() -> None:
    script = """
def main():
    client = connect(devices=[], workers=1)
    (first,), address, seen = pids(client), set(client.nthreads()), set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.kill(first, signal.SIGKILL)
    while not set(client.nthreads()) - address:
        seen |= {process.pid for process in worker_processes()} - {first}
        os.killpg(0, signal.SIGINT)
        time.sleep(0.02)
    assert pids(client) == sorted(seen), (pids(client), seen)
    client.close()
    print("done")
"""
    run = run_script(script, start_new_session=True)
    assert run.stdout == "done\n", run.stderr


INTERRUPTED = """
import os, pathlib, time
import dask.dataframe as dd, pandas as pd
import imgcurate as ic

def slow(number, begun):
    pathlib.Path(begun).touch()
    time.sleep(0.2)
    return pd.DataFrame({"score": [float(number)]})

client = ic.connect(devices=[], workers=1)
mine = dd.from_pandas(pd.DataFrame({"x": range(8)}), npartitions=4).persist()
held = [str(future.key) for future in client.futures_of(mine)]
frame = dd.from_map(slow, range(500), begun=BEGUN, meta=pd.DataFrame({"score": [0.0]}))

def others():
    keys = client.run_on_scheduler(lambda dask_scheduler: [str(key) for key in dask_scheduler.tasks])
    return len(set(keys) - set(held))
"""


def test_a_verb_that_a_notebook_interrupts_lets_go_of_its_tasks_and_leaves_all_else_as_it_is(tmp_path: Path) -> None:
    jupyter_client = pytest.importorskip("jupyter_client")
    manager, kernel = jupyter_client.manager.start_new_kernel()
    try:

        def run(code: str) -> str:
            printed = ""

            def hear(message: dict[str, Any]) -> None:
                nonlocal printed
                printed += str(message["content"].get("text", "")) + str(message["content"].get("ename", ""))

            kernel.execute_interactive(code, timeout=60, output_hook=hear)
            return printed

        assert run(INTERRUPTED.replace("BEGUN", repr(str(tmp_path / "begun")))) == ""
        before = run("print(client.run(os.getpid), mine.x.sum().compute())")
        kernel.execute("ic.top_fraction(frame, 'score', 0.5)")
        wait_for((tmp_path / "begun").exists)
        answer: list[str] = []

        def is_interrupted() -> bool:
            # As one who presses stop again: an interrupt that comes while Python finalises an object is lost.
            manager.interrupt_kernel()
            with contextlib.suppress(queue.Empty):
                answer.append(kernel.get_shell_msg(timeout=5)["content"]["ename"])
            return bool(answer)

        wait_for(is_interrupted)
        assert answer == ["KeyboardInterrupt"]
        # What runs is let finish, and the hundreds that would have followed are forgotten.
        run("until = time.monotonic() + 30\nwhile others() > 4 and time.monotonic() < until: time.sleep(0.1)")
        assert int(run("print(others())")) <= 4
        assert run("print(client.run(os.getpid), mine.x.sum().compute())") == before
        run("client.close()")
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)


README = """
import numpy as np
import imgcurate as ic

def colours(batch):
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1

if __name__ == "__main__":
    client = ic.connect(devices=[], workers=2)
    frame = ic.embed(ic.read_webdataset("in/*.tar"), colours).persist()
    frame = frame[frame.width >= 10]
    frame = ic.remove(frame, ic.semantic_duplicates(frame, eps=0.001))
    ic.write_webdataset(frame, "curated/shards")
"""


def test_a_script_that_does_not_close_its_client_ends_quietly(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "0.tar", [(f"{i}.jpg", image_bytes(i % 7)) for i in range(8)])
    (tmp_path / "script.py").write_text(README)
    run = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert (tmp_path / "curated" / "shards" / "00000.tar").is_file()


def test_workers_that_are_lost_for_ever_are_started_again() -> None:
    script = """
import dask
dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"})  # Dask gives a worker up sooner, and the test is shorter

def main():
    client = connect(devices=[], workers=2)
    assert revive(client) == 0
    while client.cluster.workers:
        for process in worker_processes():
            process.kill()
        time.sleep(0.1)
    assert describe_workers(client).workers == 0
    assert revive(client) == 2
    assert client.gather(client.map(pow, range(10), [2] * 10)) == [i * i for i in range(10)]
    assert describe_workers(client).workers == 2
    client.close()
    print("done")
"""
    run = run_script(script)
    assert run.stdout == "done\n", run.stderr


def test_a_worker_that_waits_for_memory_that_nobody_frees_is_started_again() -> None:
    script = """
def fill():
    worker = distributed.get_worker()
    worker.filled = []
    while psutil.Process().memory_info().rss < 0.86 * worker.memory_manager.memory_limit:
        worker.filled.append(os.urandom(2**20))

def main():
    client = connect(devices=[], workers=1, memory_limit="700MiB")
    assert restart_paused(client) == 0
    client.submit(fill).result()
    while not describe_workers(client).paused:
        time.sleep(0.1)
    waiting = client.submit(pow, 2, 3)
    while describe_workers(client).executing:
        time.sleep(0.1)
    assert restart_paused(client) == 1
    assert waiting.result() == 8
    client.close()
    print("done")
"""
    run = run_script(script)
    assert run.stdout == "done\n", run.stderr


def test_a_worker_is_not_paused_for_memory_that_it_has_freed() -> None:
    script = """
from imgcurate.cluster.freed import keep_freed_memory

def fill_and_free():
    keep_freed_memory()
    worker, filled, process = distributed.get_worker(), [], psutil.Process()
    while process.memory_info().rss < 0.9 * worker.memory_manager.memory_limit:
        filled.append(bytearray(b"1") * 2**18)
    worker.filled = filled[::64]  # so that the heaps are not free as a whole

def main():
    client = connect(devices=[], workers=1, memory_limit="600MiB")
    filled = client.submit(fill_and_free)
    while not describe_workers(client).paused:
        time.sleep(0.01)
    assert client.gather([filled, client.submit(pow, 2, 3)])[1] == 8
    client.close()
    print("done")
"""
    run = run_script(script)
    assert run.stdout == "done\n", run.stderr


def test_what_workers_do_is_counted(client: Client) -> None:
    tasks = client.map(time.sleep, [4] * 2, pure=False)
    deadline = time.monotonic() + 30
    while not describe_workers(client).executing and time.monotonic() < deadline:
        time.sleep(0.05)
    state = describe_workers(client)
    assert state.workers == 2 and state.paused == 0 and 1 <= state.executing <= 2
    client.gather(tasks)
    assert revive(client) == 0


STRANGER = """
import sys
from distributed import Client
try:
    print(Client(sys.argv[1], timeout=2).run_on_scheduler(__import__("os").getpid))
except Exception as refusal:
    print(type(refusal).__name__)
"""


def stranger(address: str) -> str:
    return subprocess.run([sys.executable, "-c", STRANGER, address], capture_output=True, text=True).stdout.strip()


def test_another_process_cannot_send_tasks_to_a_cluster_that_is_started_here(client: Client) -> None:
    address = client.scheduler.address
    assert stranger(address) in ("RuntimeError", "TypeError")
    assert stranger(address.replace("tls://", "tcp://")) in ("OSError", "CommClosedError", "TimeoutError")


def test_without_security_other_processes_can() -> None:
    script = """
import subprocess

def main():
    with connect(devices=[], workers=1, security=False) as client:
        print(os.getpid(), flush=True)
        subprocess.run([sys.executable, "-c", sys.argv[1], client.scheduler.address])
"""
    run = run_script(script, STRANGER)
    here, there = run.stdout.split()
    assert here == there


def test_what_workers_spill_no_other_user_can_reach(client: Client) -> None:
    for folder in client.run(lambda dask_worker: dask_worker.local_directory).values():
        private = Path(folder).parents[1]
        assert private.name.startswith("imgcurate-")
        assert private.stat().st_mode & 0o777 == 0o700 and private.stat().st_uid == os.getuid()


def test_the_scratch_folder_of_a_killed_process_is_removed_by_the_next(tmp_path: Path) -> None:
    script = """
def main():
    client = connect(devices=[], workers=1)
    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[1] == "die" else client.close()
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    assert run_script(script, "die", env=environment).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("imgcurate-*"))) == 1
    assert run_script(script, "live", env=environment).returncode == 0
    assert list(tmp_path.glob("imgcurate-*")) == []


@pytest.mark.skipif(sys.version_info >= (3, 11, 9), reason="Python's deadlock is mended in 3.11.9")
def test_workers_are_without_the_profiler_that_can_stop_them_for_ever(client: Client) -> None:
    enabled = client.run(lambda dask_worker: "profile" in dask_worker.periodic_callbacks)
    assert enabled and not any(enabled.values())
