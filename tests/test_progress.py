"""Verbs show how far they are where somebody sees it: at a real terminal, in a real kernel, and nowhere else."""

from __future__ import annotations

import gzip
import io
import os
import pty
import re
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from conftest import image_bytes, write_tar
from distributed import Client
from jupyter_client.manager import start_new_kernel
from sessions import wait_for
from test_work import mean_colours

from imgcurate import checkpoint, cli, exact_duplicates, read_webdataset, write_parquet
from imgcurate.cluster import interruptible, progress
from imgcurate.run.curate import curate


class Terminal:
    """A pseudoterminal in the place of stderr, of which all that is written is kept."""

    def __enter__(self) -> Terminal:
        self.said = ""
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        self._before, sys.stderr = sys.stderr, open(theirs, "w", encoding="utf-8")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        while True:
            try:
                content = os.read(self._ours, 1 << 16)
            except OSError:  # nobody has it open any more
                return
            self.said += content.decode(errors="replace")

    def __exit__(self, *exception: object) -> None:
        self._before, stderr = sys.stderr, self._before
        sys.stderr = stderr
        self._before.close()
        self._reader.join()
        os.close(self._ours)

    @property
    def line(self) -> str:
        """What stands on the line at last."""
        return self.said.replace("\n", "\r").rsplit("\r", 1)[-1].strip()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for before a line is shown."""
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0)


@pytest.fixture
def in_threads() -> Iterator[None]:
    with dask.config.set(scheduler="threads"):
        yield


def when_there(number: int, gate: Path) -> pd.DataFrame:
    """A partition; the last one comes when a file is there."""
    wait_for(lambda: number < 7 or gate.exists())
    return pd.DataFrame({"number": [number]})


def frame_with(gate: Path) -> dd.DataFrame:
    return dd.from_map(when_there, range(8), gate=gate, meta={"number": "int64"})


def when_said(pattern: str, terminal: Terminal, do: Callable[[], object]) -> None:
    def look() -> None:
        try:
            wait_for(lambda: re.search(pattern, terminal.said), 20)
        finally:
            do()

    threading.Thread(target=look, daemon=True).start()


def test_a_verb_shows_its_name_and_its_tasks_on_one_line_that_is_gone_when_it_ends(
    client: Client, tmp_path: Path
) -> None:
    with Terminal() as terminal:
        when_said(r"write_parquet: [1-9]\d* of \d+ tasks, 00:", terminal, (tmp_path / "gate").touch)
        write_parquet(frame_with(tmp_path / "gate"), tmp_path / "out")
    assert re.search(r" write_parquet: \d+ of (8|16) tasks, 00:\d\d", terminal.said), terminal.said
    assert "\n" not in terminal.said and terminal.line == ""


def test_without_a_cluster_the_tasks_of_this_process_count(in_threads: None, tmp_path: Path) -> None:
    with Terminal() as terminal:
        when_said(r"checkpoint: [1-9]\d* of ", terminal, (tmp_path / "gate").touch)
        checkpoint(frame_with(tmp_path / "gate"), tmp_path / "out")
    assert re.search(r" checkpoint: \d+ of 16 tasks, 00:\d\d", terminal.said), terminal.said
    assert terminal.line == ""


def lines_drawn(call: Callable[[dd.DataFrame], object]) -> int:
    """How many lines are drawn while the tasks of a call run, which do in this process."""
    seen: list[int] = []

    def look(number: int) -> pd.DataFrame:
        seen.append(sum(thread.name == "imgcurate-progress" for thread in threading.enumerate()))
        return pd.DataFrame({"number": [number]})

    call(dd.from_map(look, range(2), meta={"number": "int64"}))
    (found,) = set(seen)
    return found


def test_verbs_that_call_others_show_one_line(in_threads: None, tmp_path: Path) -> None:
    @interruptible
    def outer(frame: dd.DataFrame) -> None:
        checkpoint(frame, tmp_path / "out")

    with Terminal() as terminal:
        assert lines_drawn(outer) == 1
    assert "outer: " in terminal.said and "checkpoint" not in terminal.said


def test_a_user_can_say_that_nothing_is_to_be_shown(in_threads: None, tmp_path: Path) -> None:
    with Terminal(), dask.config.set({"imgcurate.progress": False}):
        assert lines_drawn(lambda frame: checkpoint(frame, tmp_path / "out")) == 0
    assert dask.config.collect_env({"DASK_IMGCURATE__PROGRESS": "false"}) == {"imgcurate": {"progress": False}}


@pytest.mark.parametrize("stderr", [io.StringIO(), None], ids=["a file", "nothing"])
def test_nothing_is_shown_where_stderr_is_no_terminal(
    in_threads: None, monkeypatch: pytest.MonkeyPatch, stderr: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stderr", stderr)
    assert lines_drawn(lambda frame: checkpoint(frame, tmp_path / "out")) == 0


def test_nothing_is_shown_of_a_verb_in_another_thread(in_threads: None, tmp_path: Path) -> None:
    found: list[int] = []

    def call() -> None:
        found.append(lines_drawn(lambda frame: checkpoint(frame, tmp_path / "out")))

    with Terminal():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert found == [0]


def test_what_is_done_within_two_seconds_says_nothing(
    in_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 60)
    with Terminal() as terminal:
        assert lines_drawn(lambda frame: checkpoint(frame, tmp_path / "out")) == 1
    assert terminal.said == ""


def test_a_line_that_cannot_be_drawn_stops_no_work(
    in_threads: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(progress._Counter, "look", lambda counter: 1 / 0)
    with Terminal():
        lines_drawn(lambda frame: checkpoint(frame, tmp_path / "out"))
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_verb_that_is_stopped_leaves_no_line(client: Client, tmp_path: Path) -> None:
    with Terminal() as terminal:
        when_said(r"checkpoint: [1-9]\d* of ", terminal, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            checkpoint(frame_with(tmp_path / "gate"), tmp_path / "out")
    (tmp_path / "gate").touch()
    assert terminal.line == ""


def test_a_run_shows_its_own_progress_and_not_that_of_its_verbs(client: Client, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", [(f"{i}.jpg", image_bytes(i % 4)) for i in range(6)])
    with Terminal() as terminal:
        curate(shard, tmp_path / "out", model=mean_colours, dedup=("exact", "semantic"), eps=1e-5, progress=True)
    assert "writing shards" in terminal.said
    assert "_duplicates: " not in terminal.said and " tasks, " not in terminal.said
    with Terminal() as terminal:
        exact_duplicates(read_webdataset(shard))
    assert "exact_duplicates: " in terminal.said


@pytest.mark.parametrize("options", [[], ["--quiet"]])
def test_a_command_shows_it_unless_it_is_to_be_quiet(client: Client, tmp_path: Path, options: list[str]) -> None:
    shard = write_tar(tmp_path / "0.tar", [("a.jpg", image_bytes(0))])
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    with Terminal() as terminal:
        assert cli.main(["convert", str(tmp_path / "0.tar.gz"), str(tmp_path / "out"), *options]) == 0
    assert ("convert_shards: " in terminal.said) == (not options)


def test_a_notebook_shows_it_below_the_cell_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    cell = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import dask, dask.dataframe as dd, pandas as pd
from imgcurate import checkpoint
from imgcurate.cluster import progress
progress._PATIENCE_SECONDS = 0

def when_there(number):
    while number == 3 and not os.path.exists({str(tmp_path / "gate")!r}):
        time.sleep(.01)
    return pd.DataFrame({{"number": [number]}})

with dask.config.set(scheduler="threads"):
    checkpoint(dd.from_map(when_there, range(4), meta={{"number": "int64"}}), {str(tmp_path / "out")!r})
"""
    manager, client = start_new_kernel()
    try:
        request, shown = client.execute(cell), []
        while True:
            message = client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["content"].get("execution_state") == "idle":
                break
            assert message["msg_type"] != "error", message["content"]["traceback"]
            if message["msg_type"] in ("display_data", "update_display_data"):
                shown.append(message["content"]["data"])
                if re.match(r"checkpoint: [1-9]\d* of ", shown[-1]["text/plain"]):
                    (tmp_path / "gate").touch()
            assert message["msg_type"] != "stream", message["content"]["text"]
    finally:
        (tmp_path / "gate").touch()
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert any(found["text/html"].startswith("<progress value=") for found in shown)
    assert shown[-1] == {"text/plain": "", "text/html": ""}
