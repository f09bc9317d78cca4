"""Clusters that others run: where they are, what is installed there, and what they see of this machine's files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import image_bytes, write_tar
from distributed import Client, LocalCluster, Security

import imgcurate as ic
from imgcurate.cluster import check_alive, check_paths, connect, describe_workers, kill, revive
from imgcurate.cluster.agreement import _compare

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `dask scheduler` or `dask worker` in processes of their own, which end with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, before: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[bytes]:
        command = (*before, sys.executable, *options.pop("flags", ()), "-m", "dask", *arguments)
        with open(tmp_path / f"log-{len(processes)}", "wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, **options))
        return processes[-1]

    yield start
    for process in reversed(processes):
        process.kill()
        process.wait()


@pytest.fixture
def scheduler(start: Start, tmp_path: Path) -> Path:
    """A scheduler without workers: its file."""
    file = tmp_path / "scheduler.json"
    start("scheduler", *LOOPBACK, "--no-dashboard", "--port", "0", "--scheduler-file", str(file))
    return file


LOOPBACK = ("--host", "127.0.0.1")
# Without a nanny the process that the test has started is the worker.
WORKER = ("--no-nanny", "--no-dashboard", "--nthreads", "1", *LOOPBACK)


def add_worker(start: Start, scheduler: Path, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return start("worker", "--scheduler-file", str(scheduler), *WORKER, *arguments, **options)


def certificates(folder: Path) -> dict[str, str]:
    """Write a key and its certificate; return what `dask scheduler` and `Security` call them."""
    temporary = Security.temporary()
    (folder / "key.pem").write_text(str(temporary.tls_scheduler_key))
    (folder / "cert.pem").write_text(str(temporary.tls_ca_file))
    return {"ca-file": str(folder / "cert.pem"), "cert": str(folder / "cert.pem"), "key": str(folder / "key.pem")}


def security_of(files: dict[str, str]) -> Security:
    return Security(
        tls_ca_file=files["ca-file"],
        tls_client_cert=files["cert"],
        tls_client_key=files["key"],
        require_encryption=True,
    )


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of something that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


class Web(socketserver.BaseRequestHandler):
    """What web servers answer to what they do not understand."""

    def handle(self) -> None:
        self.request.recv(1)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a web server."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def refusal(*arguments: Any, **options: Any) -> str:
    """Return the one sentence with which connect() says no."""
    with pytest.raises((ConnectionError, TimeoutError, FileNotFoundError, ValueError)) as raised:
        connect(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_wrong_address_is_answered_within_seconds() -> None:
    address, started = f"tcp://127.0.0.1:{free_port()}", time.monotonic()
    said = refusal(address)
    assert time.monotonic() - started < 9  # and not the 10 of the default timeout, or the 30 of Dask
    assert said.startswith(f"no Dask scheduler answers at {address}: nothing has listened there")


def test_a_host_that_is_not_there_is_named() -> None:
    assert "no.such.host.invalid:8786" in refusal("no.such.host.invalid:8786", timeout=1)


def test_what_is_no_scheduler_is_named(silent: str, web: str, client: Client) -> None:
    assert f"{silent}: it was silent" in refusal(silent, timeout=1)
    assert f"{web}: what listens there" in refusal(web, timeout=2)
    with LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as other:
        worker = next(iter(other.scheduler_info["workers"]))
        assert "is a Dask worker, not a scheduler" in refusal(worker)
        # Plain where TLS is spoken, and the other way round.
        assert "pass security=" in refusal(client.scheduler.address.replace("tls:", "tcp:"), timeout=2)
        elsewhere = client.scheduler.address.replace("127.0.0.1", "localhost")  # by its own address it is reused
        assert "takes the scheduler's certificates" in refusal(elsewhere, timeout=2)
        assert "TLS" in refusal(
            other.scheduler_address.replace("tcp:", "tls:"), security=Security.temporary(), timeout=2
        )
        assert "begins with tls://" in refusal(other.scheduler_address, security=Security.temporary(), timeout=5)


def test_certificates_of_another_cluster_are_refused(client: Client) -> None:
    address = client.scheduler.address.replace("127.0.0.1", "localhost")
    assert "the TLS handshake failed" in refusal(address, security=Security.temporary(), timeout=5)


def test_a_scheduler_file_that_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    assert str(file) in refusal(scheduler_file=file, timeout=0.5)
    file.write_text("{}")
    assert f"{file} is no scheduler file" in refusal(scheduler_file=file, timeout=0.5)
    file.write_text(json.dumps({"address": f"tcp://127.0.0.1:{free_port()}"}))
    assert "nothing has listened" in refusal(scheduler_file=file, timeout=5)


def test_a_scheduler_file_leads_to_workers_that_come_late(start: Start, scheduler: Path) -> None:
    add_worker(start, scheduler)
    with connect(scheduler_file=scheduler, timeout=60) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        assert describe_workers(client).workers == 1 and revive(client) == 0
        assert connect(scheduler_file=scheduler) is client


def test_a_cluster_is_reached_over_tls(start: Start, scheduler: Path, tmp_path: Path) -> None:
    files = certificates(tmp_path)
    options = [text for name, path in files.items() for text in (f"--tls-{name}", path)]
    secure = tmp_path / "secure.json"
    start("scheduler", "--protocol", "tls", "--no-dashboard", "--port", "0", "--scheduler-file", str(secure), *options)
    add_worker(start, secure, *options)
    security = security_of(files)
    with connect(scheduler_file=secure, security=security, timeout=60) as client:
        assert client.scheduler.address.startswith("tls://")
        assert client.submit(sum, [1, 2]).result() == 3
        assert connect(client.scheduler.address.removeprefix("tls://"), security=security) is client


def test_a_scheduler_without_workers_is_waited_for_and_then_named(scheduler: Path) -> None:
    while not scheduler.exists():
        time.sleep(0.05)
    address = json.loads(scheduler.read_text())["address"]
    assert f"the Dask scheduler at {address} has had no worker for 3 s" in refusal(address, timeout=3)


def test_an_adaptive_cluster_gets_its_workers_from_the_first_task() -> None:
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0") as adaptive:
        adaptive.adapt(minimum=0, maximum=1, interval="200ms")
        with connect(adaptive.scheduler_address, timeout=60) as client:
            assert client.submit(sum, [1, 2]).result() == 3


def test_a_scheduler_that_dies_is_noticed_and_another_one_takes_over(
    start: Start, scheduler: Path, tmp_path: Path
) -> None:
    add_worker(start, scheduler)
    client = connect(scheduler_file=scheduler, timeout=60)
    address = client.scheduler.address
    held = client.submit(sum, [1, 2])
    assert held.result() == 3
    check_alive(client)
    os.kill(client.run_on_scheduler(os.getpid), signal.SIGKILL)
    killed = time.monotonic()
    while client.status == "running" and time.monotonic() - killed < 30:
        time.sleep(0.1)
    with pytest.raises(ConnectionError, match=f"the Dask scheduler at {address} went away"):
        check_alive(client)
    with pytest.raises(ConnectionError, match="went away"):
        describe_workers(client)
    kill(client)
    second = tmp_path / "second.json"
    start("scheduler", *LOOPBACK, "--no-dashboard", "--port", "0", "--scheduler-file", str(second))
    add_worker(start, second)
    with connect(scheduler_file=second, timeout=60) as client:
        assert client.submit(sum, [1, 2]).result() == 3


def test_a_client_that_lost_its_connection_for_a_moment_says_so(scheduler: Path, start: Start) -> None:
    add_worker(start, scheduler)
    with connect(scheduler_file=scheduler, timeout=60) as client:
        lost = client.scheduler_comm
        client.sync(lost.comm.close)
        with pytest.raises(ConnectionError, match="went away"):
            check_alive(client)
        while client.status != "running" or client.scheduler_comm in (None, lost):
            time.sleep(0.05)
        with pytest.raises(ConnectionError, match="went away"):  # what it held is forgotten all the same
            check_alive(client)
        check_alive(connect(scheduler_file=scheduler))


def test_a_worker_without_imgcurate_is_refused_by_name(start: Start, scheduler: Path, tmp_path: Path) -> None:
    packages = Path(pytest.__file__).parents[1]
    # -S leaves out what links the checkout into the environment.
    add_worker(
        start, scheduler, flags=("-S",), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(packages), "PWD": "/"}
    )
    said = refusal(scheduler_file=scheduler, timeout=60)
    assert said.startswith("worker tcp://127.0.0.1:") and "cannot import imgcurate" in said


HERE = {"python": "3.11.7.final.0", "imgcurate": "0.1.0", "dask": "2026.8.0", "torch": "2.13.0+cpu", "pandas": "3.0.1"}


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"python": "3.12.1.final.0"}, "worker w has python 3.12.1 and this process 3.11.7"),
        ({"imgcurate": "0.1.1"}, "worker w has imgcurate 0.1.1 and this process 0.1.0"),
        ({"dask": "2026.7.1"}, "worker w has dask 2026.7.1 and this process 2026.8.0"),
        ({"pandas": "2.3.0"}, "worker w has pandas 2.3.0"),
        ({"dask": None}, "worker w has no dask"),
    ],
)
def test_versions_that_break_are_refused_with_both_of_them(there: dict[str, str | None], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _compare(HERE, {"worker v": HERE, "worker w": {**HERE, **there}})


def test_other_versions_are_warned_of_in_one_sentence() -> None:
    others = {
        "worker v": {**HERE, "torch": "2.13.0+cu130", "python": "3.11.9.final.0"},
        "worker w": {**HERE, "torch": None},
        "worker x": {**HERE, "torch": "2.12.0"},
    }
    with pytest.warns(UserWarning, match=r"worker w has no torch and this process 2.13.0.* \(and 1 more difference\)"):
        _compare(HERE, others)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _compare(HERE, {"worker v": others["worker v"]})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for number in range(2):
        write_tar(folder / f"{number:05d}.tar", [(f"{number}.jpg", image_bytes(number))])
    return folder


def test_a_worker_that_starts_in_another_folder_reads_what_relative_paths_name_here(
    start: Start, scheduler: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    add_worker(start, scheduler, cwd=tmp_path / "elsewhere")
    monkeypatch.chdir(data.parent)
    with connect(scheduler_file=scheduler, timeout=60) as client:
        frame = ic.read_webdataset("data/*.tar")
        check_paths(client, frame["url"].compute(), str(tmp_path / "out"))
        assert ic.measure(frame, ["brightness"])["error"].isna().compute().all()
    assert list((tmp_path / "out").iterdir()) == []


def mounted(mount: str) -> tuple[str, ...]:
    """A command in front of another one, which then has what `mount` mounts for itself alone."""
    program = ("unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh")
    if shutil.which("unshare") is None or subprocess.run([*program, "true"], capture_output=True).returncode:
        pytest.skip("needs to mount a file system for one process")
    return program


def test_a_worker_that_does_not_see_the_input_is_named_before_anything_runs(
    start: Start, scheduler: Path, data: Path, tmp_path: Path
) -> None:
    add_worker(start, scheduler, before=mounted(f"mount -t tmpfs none '{data}'"))
    with connect(scheduler_file=scheduler, timeout=60) as client:
        with pytest.raises(ValueError, match=r"worker tcp://\S+ does not see \S+00000.tar, which this machine does"):
            check_paths(client, [str(data / "00000.tar")], str(tmp_path / "out"))
        check_paths(client, ["s3://bucket/00000.tar"], "s3://bucket/out")
    assert not (tmp_path / "out").exists()


def test_a_worker_that_sees_another_file_is_named(start: Start, scheduler: Path, data: Path, tmp_path: Path) -> None:
    shard = data / "00000.tar"
    (tmp_path / "other").write_bytes(b"another")
    add_worker(start, scheduler, before=mounted(f"mount --bind '{tmp_path / 'other'}' '{shard}'"))
    size = shard.stat().st_size
    with (
        connect(scheduler_file=scheduler, timeout=60) as client,
        pytest.raises(ValueError, match=rf"sees another file at {shard} \(7 bytes, here {size:,}\)"),
    ):
        check_paths(client, [str(shard)], str(tmp_path / "out"))


def test_a_worker_whose_output_is_not_seen_here_is_named(
    start: Start, scheduler: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    add_worker(start, scheduler, before=mounted(f"mount -t tmpfs none '{out}'"))
    with connect(scheduler_file=scheduler, timeout=60) as client:
        with pytest.raises(ValueError, match=rf"what worker tcp://\S+ writes into {out} is not seen on this machine"):
            check_paths(client, [str(data / "00000.tar")], str(out))
        assert client.run(os.listdir, str(out)) == {worker: [] for worker in client.nthreads()}


def test_a_worker_that_cannot_write_is_named(start: Start, scheduler: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    add_worker(start, scheduler, before=mounted(f"mount -t tmpfs -o ro none '{out}'"))
    with (
        connect(scheduler_file=scheduler, timeout=60) as client,
        pytest.raises(ValueError, match=rf"worker tcp://\S+ cannot write into {out} \(Read-only file system\)"),
    ):
        check_paths(client, [], str(out))
