"""connect(): one Dask client for this machine's GPUs or cores, or for a scheduler that is already running."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import dask
import distributed
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed.system import MEMORY_LIMIT
from distributed.versions import VersionMismatchWarning

from imgcurate import weights
from imgcurate.cluster import schedulers
from imgcurate.cluster.agreement import check_paths, check_versions
from imgcurate.cluster.interrupts import cancel, current_client, interruptible
from imgcurate.cluster.local import Client, LocalWorkers, QuietWorker, kill, revive
from imgcurate.cluster.workers import (
    WorkersState,
    ask_all,
    check_alive,
    describe_workers,
    restart_paused,
    wait_for_worker,
)

__all__ = [
    "Client",
    "WorkersState",
    "backend",
    "cancel",
    "check_alive",
    "check_paths",
    "check_versions",
    "connect",
    "describe_workers",
    "gpu_available",
    "interruptible",
    "kill",
    "restart_paused",
    "revive",
]

_LOOPBACK = "127.0.0.1"
# Where people look for it. Where it is taken, Dask takes a free port.
_DASHBOARD = f"{_LOOPBACK}:8787"
_MOST_WORKERS = 8
_MEMORY_PER_WORKER = 3 * 2**30
# Python with Dask and pandas takes more than this before it does anything; a worker with less would be killed while it starts, again and again.
_LEAST_MEMORY = 2**28
# Dask notices after twice as long that a machine is gone; a run shall know within half a minute.
_SILENT_SECONDS = "20s"


def connect(
    address: str | None = None,
    *,
    devices: Sequence[int] | None = None,
    workers: int | None = None,
    memory_limit: str | int | None = None,
    dashboard_address: str | None = None,
    scheduler_file: str | os.PathLike[str] | None = None,
    security: distributed.Security | bool | None = None,
    model_dir: str | os.PathLike[str] | None = None,
    timeout: float = 10,
) -> distributed.Client:
    """Start, find or reuse the Dask cluster that the verbs run on, and choose the dataframe backend to match.

    Where there are NVIDIA GPUs and RAPIDS is installed, this is a ``LocalCUDACluster`` of one worker a GPU with cuDF partitions;
    else a ``LocalCluster`` whose worker processes share the cores, with pandas partitions. Both listen on loopback only, and take tasks
    from this process only. Ctrl-C, and a notebook's interrupt, leave their workers and what they hold as they are.

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
        Where Dask's dashboard listens. Default: ``"127.0.0.1:8787"``, or where that is taken a free port. ``client.dashboard_link`` says
        where it is, and ``pip install 'imgcurate[dashboard]'`` has what it is drawn with.
    scheduler_file : path, optional
        Instead of an address: the file that ``dask scheduler --scheduler-file`` wrote.
    security : distributed.Security or bool, optional
        Certificates for TLS. Default: those of Dask's configuration for a running scheduler, and for a cluster that is started
        here certificates that live in memory only, so that no other user of this machine can send it tasks; False leaves it open to them.
    model_dir : path, optional
        Where verbs of this process look for models that are given no ``model_dir``. Default: the environment variable
        ``IMGCURATE_MODEL_DIR``.
    timeout : float
        Seconds to wait for a running scheduler that is silent, and then for its first worker. One that refuses is waited for 3 seconds.

    Returns
    -------
    distributed.Client
        Also a context manager, which closes what was started. A second call returns the client that is there, and leaves closing
        it to the first.

    Raises
    ------
    ValueError
        Where options contradict each other, GPUs are asked for that cannot be used, or a running cluster has other versions.
    ConnectionError
        Where no scheduler answers at the address.
    FileNotFoundError
        Where `model_dir` does not exist.
    TimeoutError
        Where a running scheduler has no worker.

    Notes
    -----
    A verb that computes at once and takes longer than two seconds shows at a terminal, on stderr, or below a notebook's cell how many tasks of
    those that the cluster knows of are done; the line is gone when the verb ends. ``dask.config.set({"imgcurate.progress": False})``, or
    ``DASK_IMGCURATE__PROGRESS=False`` in the environment, keeps verbs from it.

    Examples
    --------
    >>> import imgcurate as ic
    >>> with ic.connect() as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """
    started_here = {"devices": devices, "workers": workers, "memory_limit": memory_limit}
    if dashboard_address is not None:
        started_here["dashboard_address"] = dashboard_address
    _check_options(address, scheduler_file, started_here, security, timeout)
    if model_dir is not None:
        weights.set_model_dir(model_dir)
    certificates = security if isinstance(security, distributed.Security) else None
    if scheduler_file is not None:
        address = schedulers.address_in(scheduler_file, timeout)
    if address is not None:
        address = schedulers.normalised(address, certificates)
    current = current_client()
    if current is not None and (address is None or current.scheduler.address == address):
        if any(value is not None for value in started_here.values()):
            warnings.warn(
                "reusing the Dask client that is already connected; close it first (client.close()) for other workers or devices",
                stacklevel=2,
            )
        if isinstance(current, Client):
            current.uses += 1
        _adopt(current, timeout)
        return current
    if address is not None:
        return _running_cluster(address, certificates, timeout)
    return _new_cluster(devices, workers, memory_limit, dashboard_address, security)


def _check_options(
    address: str | None,
    scheduler_file: str | os.PathLike[str] | None,
    started_here: dict[str, Any],
    security: distributed.Security | bool | None,
    timeout: float,
) -> None:
    """Refuse what cannot be, before anything is started or asked."""
    if address is not None and scheduler_file is not None:
        raise ValueError("address and scheduler_file both name a scheduler: give one of them")
    if not timeout > 0:
        raise ValueError(f"timeout={timeout}: give the seconds to wait, more than 0")
    if not isinstance(security, distributed.Security | bool | None):
        raise ValueError(f"security={security!r}: give a distributed.Security with the certificates")
    given = [name for name, value in started_here.items() if value is not None]
    if address is not None or scheduler_file is not None:
        if given:
            raise ValueError(
                f"{given[0]}= is for a cluster that is started here: leave it out with a running scheduler"
            )
        if isinstance(security, bool):
            raise ValueError(
                f"security={security}: for a running scheduler give a distributed.Security with its certificates"
            )
    workers, memory = started_here["workers"], started_here["memory_limit"]
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: a cluster needs at least 1 worker")
    if memory is not None and memory != "auto":
        try:
            size = parse_bytes(memory)
        except (ValueError, TypeError):
            raise ValueError(f"memory_limit={memory!r}: give a size of memory, such as '8GiB'") from None
        if size < _LEAST_MEMORY:
            raise ValueError(f"memory_limit={memory!r}: a worker needs at least {_LEAST_MEMORY // 2**20}MiB to start")


def _running_cluster(address: str, security: distributed.Security | None, timeout: float) -> Client:
    schedulers.find(address, security, timeout)
    with warnings.catch_warnings(), dask.config.set({"distributed.comm.timeouts.tcp": _SILENT_SECONDS}):
        warnings.simplefilter("ignore", VersionMismatchWarning)  # check_versions says it in a sentence
        client = Client(address, security=security, timeout=timeout)
    try:
        _adopt(client, timeout)
    except BaseException:
        client.close()
        raise
    return client


def _adopt(client: distributed.Client, timeout: float) -> None:
    """Make a client's cluster the one that the verbs run on; where nobody has yet, see that it can be."""
    if getattr(client, "has_gpus", None) is None:
        wait_for_worker(client, timeout)
        check_versions(client)
        # Asked once: workers that were started for the CPU see the machine's GPUs too, and so would be misjudged.
        vars(client)["has_gpus"] = _workers_have_gpus(client)
    vars(client)["connection"] = client.scheduler_comm
    _set_backend(vars(client)["has_gpus"])


def _new_cluster(
    devices: Sequence[int] | None,
    workers: int | None,
    memory_limit: str | int | None,
    dashboard_address: str | None,
    security: distributed.Security | bool | None,
) -> Client:
    gpu = gpu_available() if devices is None else len(devices) > 0
    if gpu and not gpu_available():
        raise ValueError(
            f"devices={list(devices or [])}: no GPU can be used here; it takes an NVIDIA GPU with a CUDA 13 driver and "
            "pip install 'imgcurate[cu13]'. Leave devices out to run on the CPU"
        )
    options = {
        "memory_limit": "auto" if memory_limit is None else memory_limit,
        "host": _LOOPBACK,
        "dashboard_address": dashboard_address or _DASHBOARD,
        "security": distributed.Security.temporary() if security in (None, True) else security or None,
    }
    if workers is None:
        workers = max(1, min(CPU_COUNT, _MOST_WORKERS, MEMORY_LIMIT // _MEMORY_PER_WORKER))
    make = partial(_gpu_cluster, devices, options) if gpu else partial(_cpu_cluster, workers, options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Port .* is already in use")
        local = LocalWorkers(make, threads=None if gpu else max(1, CPU_COUNT // workers))
    try:
        client = Client(local.cluster)
        client.register_plugin(QuietWorker())
    except BaseException:
        local.close(grace=0)
        raise
    client.local, client.has_gpus, client.connection = local, gpu, client.scheduler_comm
    _set_backend(gpu)
    return client


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


def _workers_have_gpus(client: distributed.Client) -> bool:
    """Ask the workers, and this process too: it builds cuDF's meta."""
    # An adaptive cluster may have sent its workers away again, and takes a task to have one.
    answers = list(ask_all(client, gpu_available).values()) or [client.submit(gpu_available, pure=False).result()]
    return all(answers) and gpu_available()


def _set_backend(gpu: bool) -> None:
    dask.config.set({"dataframe.backend": "cudf" if gpu else "pandas"})


def _cpu_cluster(workers: int, options: dict[str, Any], **more: Any) -> distributed.LocalCluster:
    return distributed.LocalCluster(n_workers=workers, threads_per_worker=1, **options, **more)


def _gpu_cluster(devices: Sequence[int] | None, options: dict[str, Any], **more: Any) -> Any:
    from dask_cuda import LocalCUDACluster

    return LocalCUDACluster(
        CUDA_VISIBLE_DEVICES=None if devices is None else list(devices),
        # One allocator for RMM, torch and CuPy; without it each keeps its own pool and they starve one another.
        rmm_async=True,
        rmm_allocator_external_lib_list=["torch", "cupy"],
        # dask-cuda moves what workers hold to the host from 80 % of the GPU's memory on. cuDF's own spilling in its place would pin every
        # frame whose embeddings have been read, because a view of a buffer forbids it, and knows nothing of CuPy's arrays.
        enable_cudf_spill=False,
        **options,
        **more,
    )
