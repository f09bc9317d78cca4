"""Steps of a run: what is left on the cluster when one is stopped."""

from __future__ import annotations

import os
import signal
import threading
import time

import dask
import pytest
from distributed import Client
from sessions import wait_for

from imgcurate.run.steps import Steps


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
