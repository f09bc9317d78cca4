"""What a run asks of any cluster while it waits: whether the scheduler is there, and whether its workers work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import distributed

T = TypeVar("T")

_ANSWER_SECONDS = 30
_WORKING = ("executing", "long-running", "flight")


class WorkersState(NamedTuple):
    """Counts of a cluster's workers.

    Attributes
    ----------
    workers : int
    paused : int
        Workers whose memory is full: they take no new task.
    executing : int
        Tasks that are computed, or whose inputs are on their way, as of the workers' last heartbeats.
    """

    workers: int
    paused: int
    executing: int


def describe_workers(client: distributed.Client) -> WorkersState:
    """Count workers, and what they do, from what the scheduler knows: no worker is asked.

    Parameters
    ----------
    client : distributed.Client

    Returns
    -------
    WorkersState

    Raises
    ------
    ConnectionError
        Where the scheduler went away.

    Examples
    --------
    >>> import imgcurate as ic
    >>> describe_workers(ic.connect()).paused
    0
    """
    workers = _workers(client).values()
    return WorkersState(
        workers=len(workers),
        paused=sum(worker["status"] == "paused" for worker in workers),
        executing=sum(_executing(worker) for worker in workers),
    )


def check_alive(client: distributed.Client, ask: bool = False) -> None:
    """Raise where the connection to the scheduler is lost, or was: with it went all results that the client had asked for.

    Parameters
    ----------
    client : distributed.Client
    ask : bool
        Wait for an answer of the scheduler, too: of one that was killed, the client's own connection is closed a moment after others.

    Raises
    ------
    ConnectionError
        Naming the scheduler.
    """
    connection = client.scheduler_comm
    known = getattr(client, "connection", None) or connection
    if client.status == "running" and connection is known and connection is not None and not connection.closed():
        if not ask:
            return
        with contextlib.suppress(OSError):
            client.sync(client.scheduler.echo, data=0, callback_timeout=_ANSWER_SECONDS)
            return
    address = getattr(client, "address", None) or getattr(client.scheduler, "address", "which this client used")
    raise ConnectionError(
        f"the Dask scheduler at {address} went away; start it again, or take another one, and run the same command again to go on"
    )


def restart_paused(client: distributed.Client) -> int:
    """Start anew the workers that are paused because their memory is full while no worker computes.

    A worker pauses for a moment when it writes to disk what it holds; one that computes nothing and stays paused waits for memory
    that nobody will free. What it held is computed again.

    Parameters
    ----------
    client : distributed.Client

    Returns
    -------
    int
        How many were restarted; 0 where anything computes. Workers without a nanny cannot be.
    """
    workers = _workers(client)
    if any(_executing(worker) for worker in workers.values()):
        return 0
    paused = [address for address, worker in workers.items() if worker["status"] == "paused" and worker["nanny"]]
    if not paused:
        return 0
    with contextlib.suppress(Exception):
        answers = client.restart_workers(paused, timeout=_ANSWER_SECONDS, raise_for_error=False)
        return sum(answer == "OK" for answer in answers.values())
    return 0


def wait_for_worker(client: distributed.Client, timeout: float) -> None:
    """Wait for the first worker; raises TimeoutError where none comes within `timeout` seconds."""
    if _ask(client, 0)["n_workers"]:
        return
    # An adaptive cluster starts workers where there are tasks for them.
    task = client.submit(int, pure=False)
    try:
        task.result(timeout=timeout)
    except TimeoutError:
        raise TimeoutError(
            f"the Dask scheduler at {client.scheduler.address} has had no worker for {timeout:g} s: start some with `dask worker "
            f"{client.scheduler.address}`, or wait longer for them with timeout="
        ) from None


def ask_all(client: distributed.Client, function: Callable[..., T], *arguments: Any) -> dict[str, T]:
    """Call a function on each worker; returns the answers by address, without those of workers that left meanwhile."""
    answers = client.run(function, *arguments, on_error="return")
    for answer in answers.values():
        if isinstance(answer, Exception) and not isinstance(answer, OSError):
            raise answer
    return {worker: answer for worker, answer in answers.items() if not isinstance(answer, OSError)}


def _workers(client: distributed.Client) -> dict[str, dict[str, Any]]:
    """Return the scheduler's words on each worker, by address."""
    return dict(_ask(client, -1)["workers"])


def _ask(client: distributed.Client, n_workers: int) -> dict[str, Any]:
    check_alive(client)
    try:
        return dict(client.sync(client.scheduler.identity, n_workers=n_workers, callback_timeout=_ANSWER_SECONDS))
    except (OSError, AttributeError):  # AttributeError: the client was closed meanwhile
        check_alive(client)
        raise ConnectionError(
            f"the Dask scheduler at {client.scheduler.address} has not answered for {_ANSWER_SECONDS} s; see whether it runs, and run the "
            "same command again to go on"
        ) from None


def _executing(worker: dict[str, Any]) -> int:
    counts = worker["metrics"].get("task_counts", {})
    return sum(counts.get(state, 0) for state in _WORKING)
