"""Processes that take turns: both ends of the pipe between a benchmark and those it measures, what a round takes, and the report."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from end_to_end import machine, peak_mib

Rounds = Iterator[dict[str, Any]]
T = TypeVar("T")


class Contestant:
    """A process that runs rounds of one contestant when it is asked.

    It does not inherit the environment's wishes for BLAS and threads, which were made for something else and slow some libraries down.

    Parameters
    ----------
    script : Path
        What it runs; calls `serve` with the name and the options that it is given.
    name : str
    options : dict
        Among them ``cores``.
    core_type : str, optional
        The kernels that OpenBLAS is told to use.

    Attributes
    ----------
    ready : dict
        What it said when it had made ready.
    """

    def __init__(self, script: Path, name: str, options: dict[str, Any], core_type: str | None = None) -> None:
        unwanted = ("OPENBLAS_", "OMP_", "MKL_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
        if core_type:
            environment["OPENBLAS_CORETYPE"] = core_type
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, str(script), name, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Contestant:
        try:
            self.ready = self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def round(self) -> dict[str, Any]:
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"{self._name} stopped with exit code {self._process.wait()}")
        return json.loads(line)


def use_threads(count: int) -> None:
    """Let every library that this process has loaded use `count` threads.

    By call and not by environment, where it would count as the user's wish for each of imgcurate's workers.
    """
    import threadpoolctl

    threadpoolctl.threadpool_limits(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(count)


def serve(contestants: Mapping[str, Callable[[dict[str, Any]], Rounds]]) -> None:
    """Run the contestant that the command line names: a line on standard input asks for a round, a line of JSON answers it.

    A contestant is a generator. Up to its first ``yield`` it makes ready, each further one is a round.
    """
    name, options = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    with contextlib.closing(contestants[name](options)) as rounds:
        print(json.dumps(next(rounds)), file=answers, flush=True)
        use_threads(options["cores"])
        for _ in sys.stdin:
            print(json.dumps(next(rounds)), file=answers, flush=True)


def main_or_serve(main: Callable[[], None], contestants: Mapping[str, Callable[[dict[str, Any]], Rounds]]) -> None:
    """Run a benchmark whose contestants stand in the same file: the whole, or the contestant that it has started."""
    if len(sys.argv) == 3 and sys.argv[1] in contestants:
        serve(contestants)
    else:
        main()


def measured(work: Callable[[], T], client: Any = None) -> tuple[T, dict[str, float]]:
    """Do `work` once, and tell what it took.

    Parameters
    ----------
    work : callable
    client : Client, optional
        Of a cluster whose workers do it.

    Returns
    -------
    result
        Of `work`.
    dict
        ``seconds`` on the clock, ``cpu_seconds`` of all processes together, ``peak_mib`` of the largest worker, or of this process if there is none.
    """

    def cpu_seconds() -> float:
        workers = client.run(lambda: sum(os.times()[:2])) if client else {}
        return sum(workers.values()) + sum(os.times()[:2])

    before, started = cpu_seconds(), time.perf_counter()
    result = work()
    seconds, spent = time.perf_counter() - started, cpu_seconds() - before
    peaks = client.run(peak_mib).values() if client else [peak_mib()]
    return result, {"seconds": round(seconds, 2), "cpu_seconds": round(spent, 2), "peak_mib": round(max(peaks))}


def settings(note: str, packages: Sequence[str]) -> dict[str, Any]:
    """Return what a report says of the run: the day, the machine, a note, and the versions of some packages."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "note": note,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def read(path: Path) -> dict[str, Any]:
    """Return the report that is there, for what is not measured anew."""
    return json.loads(path.read_text()) if path.exists() else {}


def save(report: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n")
