"""How deduplication grows: one size, in a process of its own, for the section growth of dedup.py.

`semantic_duplicates` over a frame whose partitions are made on the workers when they are asked for, so that all
vectors are never in one process, and never anywhere but where the verb puts them: a work folder, beside which Dask's
spilled bytes are counted. A tenth of the rows are near copies, at a cosine from .98 to 1, of a row of another
partition; with eps .01 half of them are duplicates.

What is measured: wall and CPU seconds of the search and of the list of removals; the peak of each process; the
largest total of the files; the tasks, and their seconds by name; pairs; recall as `Duplicates.recall` estimates it,
and of the near copies within eps, all of which are known, the share of those that do not stay beside their original.
Beside it the seconds of a pass over the frame that only sums up: what making the vectors costs, which is in the
seconds of the search as often as the verb reads the frame.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import embeddings
import numpy as np
import pandas as pd
import psutil
from dedup_contestants import Options, Round, timed
from distributed.diagnostics.plugin import SchedulerPlugin
from end_to_end import peak_mib
from turns import serve

EPS = 0.01
COPIES = embeddings.Copies(share=0.1, low=0.98, high=1.0, here=0.0)
SAMPLED = 1000
#: Cosines nearer to the threshold than this may fall on either side of it.
TIE = 1e-5
MIB, GIB = 2**20, 2**30


def growth(options: Options) -> Iterator[Round]:
    import dask.dataframe as dd

    import imgcurate as ic

    n, dimension = options["n"], options["dimension"]
    rows = min(n // 2, embeddings.CHUNK)  # two partitions at least: copies lie in another one than their original
    folder = Path(options["out"]) / "growth"
    scratch, work = folder / "scratch", folder / "work"
    scratch.mkdir(parents=True)

    def frame_of(count: int, size: int) -> Any:
        return dd.from_map(part, range(count), rows=size, dimension=dimension, meta=part(0, 0, dimension))

    def search(frame: Any, **more: Any) -> Any:
        if not options["in_memory"]:
            shutil.rmtree(work, ignore_errors=True)  # or it would go on from there
            more["work"] = str(work)
        return ic.semantic_duplicates(frame, eps=EPS, **more)

    def count(duplicates: Any) -> int:
        return int(duplicates.removals().map_partitions(lengths).sum().compute())

    with (
        removed_afterwards(folder),
        dask.config.set({"temporary-directory": str(scratch)}),
        ic.connect(devices=[], workers=options["workers"], memory_limit=options["memory_limit"]) as client,
    ):
        count(search(frame_of(2 * options["workers"], 500), n_clusters=4))
        client.register_plugin(Tasks(), name="tasks")
        frame = frame_of(n // rows, rows)
        yield {}
        while True:
            making, total = timed(lambda: float(frame.map_partitions(sums).sum().compute()))
            client.run_on_scheduler(forget_tasks)
            with Watch(client, [work, scratch]) as watch:
                searching, duplicates = timed(search, frame)
                naming, n_removed = timed(count, duplicates)
            tasks = client.run_on_scheduler(tell_tasks)
            measuring, recall = timed(duplicates.recall, SAMPLED)
            yield {
                "eps": EPS,
                "seconds": searching + naming,
                "seconds_of_search": searching,
                "seconds_of_removals": naming,
                "seconds_of_recall": measuring,
                "seconds_to_make_vectors": making,
                "sum_of_vectors": total,
                "partitions": frame.npartitions,
                "n_clusters": duplicates.n_clusters,
                "n_pairs": duplicates.n_pairs,
                "n_removed": n_removed,
                "recall": recall._asdict(),
                "planted": planted(duplicates, n, rows, dimension),
                **watch.found(4 * n * dimension),
                **tasks,
            }


@contextlib.contextmanager
def removed_afterwards(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def part(number: int, rows: int, dimension: int) -> Any:
    """Make one partition, whose ids look like those of shards."""
    from imgcurate.schema import table
    from imgcurate.vectors import to_column

    made = table({"image_id": [f"{number:05}/{number * rows + row:09}" for row in range(rows)]})
    vectors = np.empty((0, dimension), dtype=np.float32)
    if rows:
        vectors = embeddings.chunk(number, dimension, rows, COPIES).vectors
    return made.assign(embedding=to_column(vectors, made))


def sums(partition: Any) -> pd.Series:
    from imgcurate.vectors import to_matrix

    return pd.Series([float(to_matrix(partition["embedding"]).sum())], dtype=float)


def lengths(partition: Any) -> pd.Series:
    return pd.Series([len(partition)], dtype=int)


def planted(duplicates: Any, n: int, rows: int, dimension: int) -> Round:
    """Count the near copies within eps, and those of them that do not stay beside their original."""
    removed = np.zeros(n, dtype=bool)
    for ids in duplicates.removals()["image_id"].to_delayed():
        removed[[int(name.rpartition("/")[2]) for name in ids.compute()]] = True
    bits = dask.delayed(np.packbits(removed))
    counts = [dask.delayed(separated)(bits, number, rows, dimension) for number in range(n // rows)]
    within, apart = (int(total) for total in np.sum(dask.compute(*counts), axis=0))
    return {"copies": within, "separated": apart, "share": apart / within if within else 1.0}


def separated(bits: np.ndarray, number: int, rows: int, dimension: int) -> tuple[int, int]:
    made = embeddings.chunk(number, dimension, rows, COPIES)
    at = np.flatnonzero((made.cosine >= 1 - EPS + TIE) & (made.origin != np.arange(rows) + number * rows))
    removed = np.unpackbits(bits).view(bool)
    apart = removed[at + number * rows] | removed[made.origin[at]]
    return len(at), int(apart.sum())


class Watch(contextlib.AbstractContextManager["Watch"]):
    """Looks at the processes and at the files while something runs, in a thread.

    Peaks are the kernel's own (VmHWM) of each process while it lived, so that nothing is missed between two looks; of
    the start of a process too. The scheduler lives in the client's process.
    """

    def __init__(self, client: Any, folders: list[Path], every: float = 0.5) -> None:
        self._client, self._folders, self._every = client, folders, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._peaks: dict[int, int] = {}
        self._anonymous: dict[int, int] = {}
        self._cpu: dict[int, float] = {}
        self._disk = self._files = self._spilled = 0

    def __enter__(self) -> Watch:
        self._before = set(self._client.run(os.getpid).values())
        self._look()
        self._cpu_before = dict(self._cpu)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._after = set(self._client.run(os.getpid).values())

    def found(self, floats: int) -> Round:
        """Say what was seen; the vectors take `floats` bytes in float32."""
        workers = self._before | self._after
        return {
            "workers_peak_mib": sorted((round(self._peaks[pid] / MIB) for pid in workers), reverse=True),
            "workers_anonymous_peak_mib": sorted((round(self._anonymous[pid] / MIB) for pid in workers), reverse=True),
            "workers_restarted": len(self._after - self._before),
            "client_and_scheduler_peak_mib": round(peak_mib()),
            "cpu_seconds": round(sum(self._cpu.values()) - sum(self._cpu_before.values()), 2),
            "disk_peak_gib": round(self._disk / GIB, 4),
            "disk_of_vectors": round(self._disk / floats, 3),
            "files_peak": self._files,
            "spilled_peak_gib": round(self._spilled / GIB, 4),
        }

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self._look()

    def _look(self) -> None:
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                self._look_at(process)
        totals = [disk_usage(folder) for folder in self._folders]
        self._disk = max(self._disk, sum(size for size, _ in totals))
        self._files = max(self._files, totals[0][1])
        self._spilled = max(self._spilled, totals[1][0])

    def _look_at(self, process: psutil.Process) -> None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        if "VmHWM" not in status:  # it has ended, and nobody has asked for its exit code yet
            return
        times = process.cpu_times()
        self._cpu[process.pid] = times.user + times.system
        for peaks, name in ((self._peaks, "VmHWM"), (self._anonymous, "RssAnon")):
            peaks[process.pid] = max(peaks.get(process.pid, 0), int(status[name].split()[0]) * 1024)


def disk_usage(folder: Path) -> tuple[int, int]:
    """Return the bytes that the files under a folder take on the disk, and how many they are."""
    size = count = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it has been removed meanwhile
                size += os.lstat(os.path.join(directory, name)).st_blocks * 512
                count += 1
    return size, count


class Tasks(SchedulerPlugin):
    """Counts the tasks that workers finish, and their seconds, by the names of their functions."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.steps: dict[str, dict[str, float]] = defaultdict(lambda: {"tasks": 0, "seconds": 0.0, "longest": 0.0})
        self.graphs, self.started = 0, time.time()

    def update_graph(self, scheduler: Any, *, tasks: Any, **more: Any) -> None:
        self.graphs += 1

    def transition(self, key: Any, start: str, finish: str, *arguments: Any, **more: Any) -> None:
        if (start, finish) != ("processing", "memory"):
            return
        step = self.steps[dask.utils.key_split(key)]
        step["tasks"] += 1
        for one in more.get("startstops") or ():
            if one["action"] == "compute":
                seconds = one["stop"] - one["start"]
                step["seconds"] += seconds
                step["longest"] = max(step["longest"], seconds)
                step.setdefault("first", one["start"] - self.started)
                step["last"] = one["stop"] - self.started


def forget_tasks(dask_scheduler: Any) -> None:
    dask_scheduler.plugins["tasks"].forget()


def tell_tasks(dask_scheduler: Any) -> Round:
    """Tell how many tasks there were, and of each step how many, the seconds of all and of the longest, and from when
    to when."""
    plugin = dask_scheduler.plugins["tasks"]
    steps = {
        name: {what: round(value, 3) for what, value in step.items()}
        for name, step in sorted(plugin.steps.items(), key=lambda item: -item[1]["seconds"])
    }
    return {"tasks": sum(int(step["tasks"]) for step in steps.values()), "graphs": plugin.graphs, "steps": steps}


if __name__ == "__main__":
    serve({"growth": growth})
