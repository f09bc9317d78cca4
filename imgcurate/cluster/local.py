"""Clusters that connect() starts on this machine: safe from Ctrl-C and from other users, started again where they died, and gone when they end."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import IO, Any

import dask
import distributed
import psutil
from distributed import SpecCluster, Status
from distributed.client import AllExit
from distributed.utils import LoopRunner

# Workers that were asked to end get so long; one that works on a task would not end before the task does.
_GRACE_SECONDS = 1.5
_REAP_SECONDS = 0.05
_START_SECONDS = 60
_CLOSE_SECONDS = 10


class LocalWorkers:
    """The worker processes of a cluster that is started here, and what they leave on the machine.

    Parameters
    ----------
    make : callable
        Starts the cluster: a ``LocalCluster`` or what has its interface. It gets `loop`, `local_directory` and `scheduler_kwargs`.
    threads : int, optional
        Threads of each worker for torch and BLAS. Default: as Dask's nanny has it, one.
    """

    def __init__(self, make: Callable[..., Any], threads: int | None) -> None:
        self.threads = threads
        self.cluster, self._runner = None, None
        self._scratch, before = _Scratch(), set(SpecCluster._instances)
        folder = self._scratch.folder
        try:
            self._scratch.make()
            self._runner = _loop_without_interrupts()
            with _environment(threads):
                self.cluster = make(
                    loop=self._runner.loop, local_directory=folder, scheduler_kwargs={"local_directory": folder}
                )
        except BaseException:  # Ctrl-C too: half a cluster is closed like a whole one
            self.cluster = next(iter(set(SpecCluster._instances) - before), None)
            self.close(grace=0)
            raise

    def revive(self) -> int:
        """Start workers in the place of those that nobody starts again; returns how many were started."""
        with _environment(self.threads), _quiet(), contextlib.suppress(TimeoutError):
            return int(self.cluster.sync(self._revive, callback_timeout=_START_SECONDS))
        return 0

    async def _revive(self) -> int:
        cluster = self.cluster
        for name, nanny in list(cluster.workers.items()):
            # A nanny with a process is starting a worker; one without, that has no worker either, has given up.
            if name not in cluster.scheduler.aliases and not nanny.is_alive():
                del cluster.workers[name]
        kept = set(cluster.workers)
        # What Dask has given up may still be starting, and would take the name of the worker that comes in its place.
        await asyncio.gather(*(nanny.close() for nanny in set(cluster._created) - set(cluster.workers.values())))
        while any(name in cluster.scheduler.aliases for name in set(cluster.worker_spec) - kept):
            await asyncio.sleep(_REAP_SECONDS)
        with contextlib.suppress(Exception):  # a worker that died while it started is for the next time
            await cluster._correct_state()
        return sum(nanny.is_alive() for name, nanny in cluster.workers.items() if name not in kept)

    def kill(self) -> None:
        """End the worker processes now, whatever they do; the cluster can only be closed then."""
        with _quiet(), contextlib.suppress(Exception):
            self.cluster.sync(self._kill, callback_timeout=_CLOSE_SECONDS)

    async def _kill(self) -> None:
        _end_processes(self.cluster._created)

    def close(self, grace: float = _GRACE_SECONDS) -> None:
        """End the workers, the scheduler and the scratch folder; what works after `grace` seconds is killed."""
        with _quiet():
            if self.cluster is not None:
                with contextlib.suppress(Exception):
                    self.cluster.sync(self._end, grace, callback_timeout=_CLOSE_SECONDS)
                with contextlib.suppress(Exception):
                    self.cluster.close(timeout=_CLOSE_SECONDS)
            if self._runner is not None:
                self._runner.stop()
        self._scratch.remove()

    async def _end(self, grace: float) -> None:
        async def reap() -> None:
            await asyncio.sleep(grace)
            while True:  # a worker that is still starting has no process to kill yet
                await self._kill()
                await asyncio.sleep(_REAP_SECONDS)

        # The loop ends with the cluster: of workers that failed to start nobody will ask.
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        reaper = asyncio.create_task(reap())
        await asyncio.gather(*(nanny.close() for nanny in self.cluster._created), return_exceptions=True)
        reaper.cancel()
        if self.cluster.status is not Status.running and self.cluster.scheduler is not None:
            await self.cluster.scheduler.close()  # a cluster that has not started does not close it


def _end_processes(nannies: Iterable[Any]) -> None:
    """Kill the workers of nannies with all that they started; told before, a nanny starts no other."""
    processes = []
    for nanny in nannies:
        if nanny.status.name not in ("closing", "closed", "failed"):
            nanny.close_gracefully()
        with contextlib.suppress(psutil.Error):
            if nanny.pid is not None:
                worker = psutil.Process(nanny.pid)
                processes += [*worker.children(recursive=True), worker]
    # Stopped first, because a worker that sees another go would say so.
    for end in (psutil.Process.suspend, psutil.Process.kill):
        for process in processes:
            with contextlib.suppress(psutil.Error):
                end(process)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What Dask warns of when a cluster ends is what an end is: workers that go, and results that go with them."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    # Not the handlers' levels: a cluster that closes sets them back to what they were before it started.
    handlers = list(logging.getLogger("distributed").handlers)
    for handler in handlers:
        handler.addFilter(nothing)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(nothing)


def _loop_without_interrupts() -> LoopRunner:
    """Start the event loop of a cluster in a thread that SIGINT does not reach, and so none of the workers it starts.

    Ctrl-C in a terminal, and a notebook's interrupt, go to the whole group of processes: workers would die of them, with all that was
    persisted. A mask of signals is inherited by threads and processes, and so holds from a worker's first instruction on, also
    where a nanny starts it again; a handler could be set only once it runs.
    """
    runner = LoopRunner()
    resource_tracker.ensure_running()  # it unblocks SIGINT in the thread that first needs it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    runner.loop.asyncio_loop.set_exception_handler(_report)
    return runner


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what went wrong in the loop; that nobody waits for a result any more, as where a user stopped the wait, is nothing wrong."""
    if not isinstance(context.get("exception"), AllExit):
        loop.default_exception_handler(context)


@contextlib.contextmanager
def _environment(threads: int | None) -> Iterator[None]:
    """Give each worker that is started here `threads` threads for torch and BLAS, where a number is given.

    The nanny starts workers with one thread, and the number is read when a process starts, so this is the one place to say otherwise. A
    variable that the user has set wins. The nanny writes what it sets into this process too, where it would count as the user's at the next
    call; so it is put back.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    ours = {} if threads is None else dict.fromkeys(names, threads)
    before = {name: os.environ.get(name) for name in names}
    environment = {**dask.config.get("distributed.nanny.pre-spawn-environ"), **ours}
    try:
        # Dask's profiler takes a sample of each thread a hundred times a second, for 2 to 4 % of a core.
        every = dask.config.get("distributed.worker.profile.interval")
        every = "100ms" if every == "10ms" else every
        with dask.config.set(
            {"distributed.nanny.pre-spawn-environ": environment, "distributed.worker.profile.interval": every}
        ):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class _Scratch:
    """A folder for what workers spill, which no other user can enter: Dask's own is shared, and taken as it is found.

    It is locked while its owner lives, so that the next cluster of this user can remove what a killed one has left.
    """

    def __init__(self) -> None:
        base = Path(dask.config.get("temporary-directory") or tempfile.gettempdir())
        # The host is part of the name: on a disk that hosts share a lock tells nothing of another's.
        prefix = f"imgcurate-{socket.gethostname()}-"
        for folder in base.glob(f"{prefix}*/"):
            _remove_if_left(folder)
        self.folder = str(base / f"{prefix}{uuid.uuid4().hex[:16]}")
        self._lock: IO[bytes] | None = None

    def make(self) -> None:
        """Make the folder, whose name is known before: who is interrupted here can remove it."""
        os.mkdir(self.folder, 0o700)
        self._lock = open(os.path.join(self.folder, "lock"), "wb")  # noqa: SIM115 (it is open as long as the cluster)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def _remove_if_left(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return
        lock: IO[bytes]
        with open(folder / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


class Client(distributed.Client):
    """A Dask client that closes the local cluster it was made with.

    As a context manager it closes for the one who made it, not for those who were handed it by a later `connect()`.
    """

    #: How many times `connect()` has given it out.
    uses = 1
    _makers: tuple[bool, ...] = ()
    #: Whether its workers have GPUs; None where nobody has asked them yet.
    has_gpus: bool | None = None
    #: What was started for it here; None where the cluster is somebody else's.
    local: LocalWorkers | None = None
    #: The connection that it began with; another one knows nothing of what was computed.
    connection: Any = None

    def __enter__(self) -> Client:
        made_it = self.uses == 1
        self._makers = (*self._makers, made_it)
        return super().__enter__() if made_it else self

    def __exit__(self, *exception: Any) -> None:
        *outer, made_it = self._makers
        self._makers = tuple(outer)
        if made_it:
            super().__exit__(*exception)

    def close(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with _quiet():
                return super().close(*args, **kwargs)
        finally:
            local, self.local = self.local, None
            if local is not None:
                local.close()


def kill(client: distributed.Client) -> None:
    """End a client at once, for those who were interrupted: without a word, and without waiting for tasks.

    The processes of a cluster that `connect` has started are killed, with all that they have started, and what they have on disk for
    themselves is removed. Of another's cluster only the client is closed; its tasks are forgotten, and those that run end by themselves.

    Parameters
    ----------
    client : distributed.Client
    """
    local, ours = None, client if isinstance(client, Client) else None
    if ours is not None:
        local, ours.local = ours.local, None
    with _quiet():  # all the while: connections are missed between two of these steps, too
        if local is not None:
            local.kill()
        with contextlib.suppress(Exception):
            client.close(timeout=1)
        if local is not None:
            local.close(grace=0)


def revive(client: distributed.Client) -> int:
    """Start workers in the place of those that are lost for ever, which Dask does not do.

    A worker that is killed is started again by its nanny. One that is killed while it starts, or again before the cluster has seen it back,
    is given up.

    Parameters
    ----------
    client : distributed.Client

    Returns
    -------
    int
        How many were started. 0 for clusters that `connect` has not started: their workers are for others to start.
    """
    local = getattr(client, "local", None)
    return 0 if local is None else local.revive()


@atexit.register
def _close_clients() -> None:
    """End the clusters of a script that has not closed them, before Dask does it, which takes its time and warns."""
    for client in list(Client._instances):
        if isinstance(client, Client):
            client.close()


class QuietWorker(distributed.WorkerPlugin):
    """Keeps the workers of a local cluster from printing what the client is told, or what is no failure.

    A task's exception reaches the user where its result is asked for; printed by the worker as well, with a traceback for each
    partition, it buries that. And a worker that ends speaks of the tasks, heartbeats and connections that end with it.
    """

    name = "imgcurate-quiet-worker"

    def setup(self, worker: distributed.Worker) -> None:
        for name in ("distributed.worker", "distributed.worker.state_machine"):
            logging.getLogger(name).addFilter(_is_news)

    def teardown(self, worker: distributed.Worker) -> None:
        logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("distributed."):
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return (
        not message.startswith(("Compute Failed", "Async instruction for <Task cancelled"))
        and "during heartbeat" not in message
    )
