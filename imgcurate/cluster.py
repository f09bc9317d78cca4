"""connect(): one Dask client for this machine's GPUs or cores, or for a scheduler that is already running."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import dask
import distributed
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

_LOOPBACK = "127.0.0.1"
_MOST_WORKERS = 8
_MEMORY_PER_WORKER = 3 * 2**30


class Client(distributed.Client):
    """A Dask client that closes the local cluster it was made with.

    As a context manager it closes for the one who made it, not for those who were handed it by a later `connect()`.
    """

    #: How many times `connect()` has given it out.
    uses = 1
    _makers: tuple[bool, ...] = ()
    #: Whether its workers have GPUs; None where nobody knows but they.
    has_gpus: bool | None = None

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
        closed = super().close(*args, **kwargs)
        if self.cluster is not None:
            self.cluster.close()
        return closed


def connect(
    address: str | None = None,
    *,
    devices: Sequence[int] | None = None,
    workers: int | None = None,
    memory_limit: str | int | None = None,
    dashboard_address: str | None = None,
) -> distributed.Client:
    """Start, find or reuse the Dask cluster that the verbs run on, and choose the dataframe backend to match.

    Where there are NVIDIA GPUs and RAPIDS is installed, this is a ``LocalCUDACluster`` of one worker a GPU with cuDF partitions;
    else a ``LocalCluster`` whose worker processes share the cores, with pandas partitions. Both listen on loopback only.

    Parameters
    ----------
    address : str, optional
        A running scheduler, such as ``"tcp://10.0.0.5:8786"``. Nothing is started, and closing the client leaves it running.
    devices : sequence of int, optional
        The GPUs to use. Default: all; ``[]`` uses the CPU even where there are GPUs.
    workers : int, optional
        Worker processes without GPUs. Default: one a core, at most 8 and at most one for every 3 GiB of memory.
    memory_limit : str or int, optional
        Memory of one worker, such as ``"8GiB"``. Default: an equal share of the machine's.
    dashboard_address : str, optional
        Where Dask's dashboard listens, such as ``"127.0.0.1:8787"``. Default: a free port of loopback.

    Returns
    -------
    distributed.Client
        Also a context manager, which closes what was started. A second call returns the client that is there, and leaves closing
        it to the first.

    Raises
    ------
    ValueError
        Where GPUs are asked for that cannot be used, or `workers` is below 1.

    Examples
    --------
    >>> import imgcurate as ic
    >>> with ic.connect() as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: a cluster needs at least 1 worker")
    current = _current_client()
    if current is not None and (address is None or current.scheduler.address == address):
        if devices is not None or workers is not None or memory_limit is not None:
            warnings.warn(
                "reusing the Dask client that is already connected; close it first (client.close()) for other workers or devices",
                stacklevel=2,
            )
        # Workers that were started for the CPU see the machine's GPUs too, so they are asked only where nobody else knows.
        known = getattr(current, "has_gpus", None)
        _set_backend(_workers_have_gpus(current) if known is None else known)
        if isinstance(current, Client):
            current.uses += 1
        return current
    if address is not None:
        client = Client(address)
        _set_backend(_workers_have_gpus(client))
        return client
    gpu = gpu_available() if devices is None else len(devices) > 0
    if gpu and not gpu_available():
        raise ValueError(
            f"devices={list(devices or [])}: no GPU can be used here; it takes an NVIDIA GPU with a CUDA 13 driver and "
            "pip install 'imgcurate[cu13]'. Leave devices out to run on the CPU"
        )
    dashboard = dashboard_address or f"{_LOOPBACK}:0"
    cluster = _gpu_cluster(devices, memory_limit, dashboard) if gpu else _cpu_cluster(workers, memory_limit, dashboard)
    _set_backend(gpu)
    client = Client(cluster)
    client.has_gpus = gpu
    client.register_plugin(_QuietWorker())
    return client


class _QuietWorker(distributed.WorkerPlugin):
    """Keeps the workers of a local cluster from printing what the client is told, or what is no failure.

    A task's exception reaches the user where its result is asked for; printed by the worker as well, with a traceback for each
    partition, it buries that. And when a cluster closes a heartbeat may still be on its way, which looks like a failure at the end
    of a job that went well.
    """

    name = "imgcurate-quiet-worker"

    def setup(self, worker: distributed.Worker) -> None:
        logging.getLogger("distributed.worker").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not message.startswith("Compute Failed") and "during heartbeat" not in message


def gpu_available() -> bool:
    """Tell whether this process can use a GPU with RAPIDS.

    RAPIDS imports on machines without a GPU, so importing it tells nothing: the driver is asked.
    """
    if any(importlib.util.find_spec(name) is None for name in ("cupy", "cudf", "dask_cudf", "dask_cuda")):
        return False
    import cupy

    return bool(cupy.cuda.is_available())


def backend() -> str:
    """Return the dataframe backend in force: ``"pandas"`` or ``"cudf"``."""
    return str(dask.config.get("dataframe.backend", "pandas"))


def prefer_task_shuffle() -> None:
    """Make "tasks" the default shuffle method where the user has not chosen one.

    Dask's P2P shuffle fails on a column of lists ("data type 'list<...>[pyarrow]' not understood"), so that a merge or
    sort of a frame with embeddings would fail; cuml.dask sets the same default.
    """
    if dask.config.get("dataframe.shuffle.method", None) is None:
        dask.config.set({"dataframe.shuffle.method": "tasks"})


def _current_client() -> distributed.Client | None:
    try:
        client = distributed.default_client()
    except ValueError:
        return None
    return client if client.status == "running" else None


def _workers_have_gpus(client: distributed.Client) -> bool:
    """Ask the workers, and this process too: it builds cuDF's meta."""
    answers = client.run(gpu_available)
    return bool(answers) and all(answers.values()) and gpu_available()


def _set_backend(gpu: bool) -> None:
    dask.config.set({"dataframe.backend": "cudf" if gpu else "pandas"})


def _cpu_cluster(workers: int | None, memory_limit: str | int | None, dashboard: str) -> distributed.LocalCluster:
    if workers is None:
        workers = max(1, min(CPU_COUNT, _MOST_WORKERS, MEMORY_LIMIT // _MEMORY_PER_WORKER))
    with _worker_environment(max(1, CPU_COUNT // workers)):
        return distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit="auto" if memory_limit is None else memory_limit,
            host=_LOOPBACK,
            dashboard_address=dashboard,
        )


@contextlib.contextmanager
def _worker_environment(threads: int) -> Iterator[None]:
    """Give each worker that is started here `threads` threads for torch and BLAS.

    The nanny starts workers with one thread, and the number is read when a process starts, so this is the one place to say otherwise. A
    variable that the user has set wins. The nanny writes what it sets into this process too, where it would count as the user's at the next
    call; so it is put back.
    """
    ours = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    before = {name: os.environ.get(name) for name in ours}
    environment = {**dask.config.get("distributed.nanny.pre-spawn-environ"), **ours}
    try:
        with dask.config.set({"distributed.nanny.pre-spawn-environ": environment}):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _gpu_cluster(devices: Sequence[int] | None, memory_limit: str | int | None, dashboard: str) -> Any:
    from dask_cuda import LocalCUDACluster

    return LocalCUDACluster(
        CUDA_VISIBLE_DEVICES=None if devices is None else list(devices),
        memory_limit="auto" if memory_limit is None else memory_limit,
        # One allocator for RMM, torch and CuPy; without it each keeps its own pool and they starve one another.
        rmm_async=True,
        rmm_allocator_external_lib_list=["torch", "cupy"],
        # dask-cuda moves what workers hold to the host from 80 % of the GPU's memory on. cuDF's own spilling in its place would pin every
        # frame whose embeddings have been read, because a view of a buffer forbids it, and knows nothing of CuPy's arrays.
        enable_cudf_spill=False,
        host=_LOOPBACK,
        dashboard_address=dashboard,
    )
