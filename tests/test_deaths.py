"""Every way to die, with real signals to real processes: what is said, what is left, and that the next start ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from conftest import image_bytes, write_tar
from sessions import in_session, wait_for
from test_resume import outputs

pytest.importorskip("efficientnet_lite_pytorch")

WARNINGS = ("Traceback", "WARNING", "Warning", "killing", "lost", "Task cancelled")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deaths") / "in"
    for number in range(3):
        # Three parts of each: two of 32 images, and one of two.
        members = [(f"{i:03d}.jpg", image_bytes(200 * number + i if i % 7 else i)) for i in range(66)]
        write_tar(folder / f"{number}.tar", members)
    return folder


@pytest.fixture(scope="module")
def undisturbed(shards: Path) -> dict[str, bytes]:
    """What a run gives that nothing happens to; which says nothing but how far it is."""
    out = shards.parent / "undisturbed"
    with started(shards, out) as run:
        _, said = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert not [word for word in WARNINGS if word in said], said
    return outputs(out)


@contextmanager
def started(shards: Path, out: Path, *options: str, code: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A run in a session of its own, as a terminal gives it one, with a folder for temporary files of its own."""
    scratch = out.parent / "tmp"
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "imgcurate", "run", str(shards), str(out), "--model", "efficientnet-lite0"]
    run = subprocess.Popen(
        [*command, "--eps", "0.001", "--samples-per-shard", "50", "--no-report", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    try:
        yield run
    finally:
        for process in in_session(run.pid):
            process.kill()
        run.wait()


def workers_of(run: subprocess.Popen[str]) -> list[psutil.Process]:
    return [process for process in in_session(run.pid) if "spawn_main" in " ".join(process.cmdline())]


def files(out: Path, table: str) -> int:
    return len(list((out / table).glob("*.parquet")))


def goes_on(shards: Path, out: Path, undisturbed: dict[str, bytes]) -> str:
    """Start the run again; it must end as the undisturbed one."""
    with started(shards, out) as run:
        _, said = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert outputs(out) == undisturbed
    return said


@pytest.mark.parametrize(
    ("number", "table", "count"),
    [
        (signal.SIGINT, ".run/listed", 1),
        (signal.SIGINT, ".run/columns", 2),
        (signal.SIGTERM, ".run/columns", 5),
        (signal.SIGTERM, "images.parquet", 2),
    ],
)
def test_a_run_that_is_stopped_says_how_to_go_on_and_leaves_nothing_behind(
    shards: Path, tmp_path: Path, undisturbed: dict[str, bytes], number: signal.Signals, table: str, count: int
) -> None:
    out = tmp_path / "out"
    with started(shards, out) as run:
        wait_for(lambda: files(out, table) >= count)
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # as Ctrl-C does
        else:
            run.send_signal(number)
        before = time.monotonic()
        _, said = run.communicate(timeout=60)
        seconds = time.monotonic() - before
        wait_for(lambda: not in_session(run.pid), 5)
    assert run.returncode == 128 + number
    assert said.splitlines()[-1] == "imgcurate: stopped; run the same command again to go on where it was"
    assert not [word for word in WARNINGS if word in said], said
    assert seconds < 3
    assert [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()] == []
    goes_on(shards, out, undisturbed)


@pytest.mark.parametrize("command", [("why", "0/a"), ("verify",)])
def test_a_command_that_does_not_go_on_is_stopped_before_there_is_a_cluster_and_says_only_that(
    command: tuple[str, ...],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # which never answers
        server.settimeout(60)
        out = f"http://127.0.0.1:{server.getsockname()[1]}/out"
        arguments = [sys.executable, "-m", "imgcurate", command[0], out, *command[1:]]
        with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            asked, _ = server.accept()
            with asked:
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (130, "imgcurate: stopped")


def test_workers_that_are_killed_again_and_again_cost_no_more_than_what_they_had_in_hand(
    shards: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out, killed = tmp_path / "out", 0
    with started(shards, out) as run:
        for count in (1, 2, 4):
            wait_for(lambda count=count: files(out, ".run/columns") >= count)
            for worker in workers_of(run)[:1] if count < 4 else workers_of(run):
                worker.kill()
                killed += 1
        _, said = run.communicate(timeout=300)
    assert run.returncode == 0 and killed >= 3, said
    assert outputs(out) == undisturbed


def test_a_driver_that_is_killed_takes_its_workers_with_it_and_its_lock_is_not_in_the_way(
    shards: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with started(shards, out) as run:
        wait_for(lambda: files(out, ".run/columns") >= 3)
        run.send_signal(signal.SIGSTOP)  # so that it is still on when the other comes
        with started(shards, out) as second:
            _, said = second.communicate(timeout=60)
        assert second.returncode == 1 and f"another run is on in {out} (process {run.pid} on " in said
        run.kill()
        wait_for(lambda: not in_session(run.pid), 20)
    assert "images are embedded already" in goes_on(shards, out, undisturbed)


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[str, subprocess.Popen[bytes], list[subprocess.Popen[bytes]]]]:
    """A scheduler and workers with their nannies, each in a process of its own."""
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    local = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    processes = [
        subprocess.Popen(
            [*dask, "scheduler", "--port", "0", "--scheduler-file", str(file), *local],
            cwd=folder, **quiet,  # type: ignore[call-overload]
        )
    ]  # fmt: skip
    try:
        wait_for(file.exists)
        for number in range(workers):
            (folder / f"worker{number}").mkdir()
            command = [*dask, "worker", "--scheduler-file", str(file), "--nthreads", "1", *local]
            processes.append(
                subprocess.Popen(command, cwd=folder / f"worker{number}", **quiet)  # type: ignore[call-overload]
            )
        yield str(file), processes[0], processes[1:]
    finally:
        for process in processes:
            for other in in_session(process.pid):
                other.kill()
            process.wait()


def test_a_nanny_that_is_killed_takes_one_worker_and_not_the_run(
    shards: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with cluster(tmp_path, 2) as (file, _, nannies), started(shards, out, "--scheduler-file", file) as run:
        wait_for(lambda: files(out, ".run/columns") >= 2)
        nannies[0].kill()
        _, said = run.communicate(timeout=120)
    assert run.returncode == 0, said
    assert outputs(out) == undisturbed


def test_a_scheduler_that_goes_away_is_noticed_and_the_run_goes_on_with_another(
    shards: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with cluster(tmp_path, 1) as (file, scheduler, _), started(shards, out, "--scheduler-file", file) as run:
        wait_for(lambda: files(out, ".run/columns") >= 2)
        scheduler.kill()
        before = time.monotonic()
        _, said = run.communicate(timeout=60)
        assert time.monotonic() - before < 30
    assert run.returncode == 1
    assert "the Dask scheduler at tcp://127.0.0.1:" in said and "went away" in said.splitlines()[-1]
    assert "Traceback" not in said, said
    goes_on(shards, out, undisturbed)


@pytest.mark.parametrize("room", ["30k", "220k", "500k"])
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(
    shards: Path, tmp_path: Path, undisturbed: dict[str, bytes], room: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        with started(shards, disk / "out") as run:
            _, said = run.communicate(timeout=120)
        assert run.returncode == 1
        last = said.splitlines()[-1]
        assert last.startswith("imgcurate: ") and "No space left on device" in last and str(disk) in last
        assert "Traceback" not in said, said
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        goes_on(shards, disk / "out", undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
