"""Steps of a run: what is left on the cluster when one is stopped."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time

import dask
import pytest
from distributed import Client
from sessions import wait_for

from imgcurate.run.tasks import progress
from imgcurate.run.tasks.steps import Steps

# Of 25 images a second, each third time that four seconds have gone.
LEFT = [
    (600, "1 min 36 s"), (900, "1 min 24 s"), (1200, "1 min 12 s"), (1500, "1 min"), (1800, "48 s"), (2100, "36 s"), (2400, "24 s"), (2700, "12 s"), (3000, "0.0 s"),
]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_file_a_step_says_every_ten_seconds_how_far_it_is_and_how_long_it_will_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.shown("embedding", 3000, "image", visible=True) as step:
        for _ in range(30):
            now[0] += 4
            step.update(100)
    assert capsys.readouterr().err.splitlines() == [
        "embedding: 300 of 3,000 images, 25 a second, 1 min 48 s left",
        *(f"embedding: {n:,} of 3,000 images, 25 a second, {left} left" for n, left in LEFT),
        "embedding: 3,000 images in 2 min, 25 a second",
    ]
    with progress.shown("comparing", None, "", visible=True) as step:
        now[0] += 11
        step.update()
    assert capsys.readouterr().err.splitlines() == ["comparing: for 11 s so far"]


def test_at_a_terminal_a_step_is_a_bar_with_its_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.shown("embedding", 200, "image", visible=True) as step:
        step.update(50)
        step.update(150)
    said = terminal.getvalue()
    assert "100%" in said and "200/200" in said and " images/s]" in said
    terminal.truncate(0)
    for visible, total in ((False, 200), (True, 0)):
        with progress.shown("embedding", total, "image", visible=visible) as step:
            step.update(50)
    assert terminal.getvalue() == ""


def test_what_a_step_waits_for_when_it_is_stopped_is_let_go(client: Client) -> None:
    tasks = [dask.delayed(time.sleep, pure=False)(0.2) for _ in range(300)]

    def left() -> int:
        keys = client.run_on_scheduler(lambda dask_scheduler: [str(key) for key in dask_scheduler.tasks])
        return sum(key.startswith("sleep-") for key in keys)

    def stop_when_it_is_on() -> None:
        wait_for(lambda: left() > 0)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_when_it_is_on).start()
    with pytest.raises(KeyboardInterrupt):
        Steps(lambda: client, progress=False).watch(lambda: dask.compute(*tasks))
    wait_for(lambda: left() <= 2, seconds=10)
