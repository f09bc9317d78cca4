"""imgcurate on one GPU: the models, the similarity join, deduplication, and the whole job.

    python benchmarks/gpu.py [--rounds 5] [--only peak embed join dedup neighbours run] [--output PATH]
    python benchmarks/gpu.py --dry          a few rows on the CPU, to see that it runs; nothing is written

peak    what a product of 8192 x 8192 matrices reaches in bfloat16, TF32 and float32: what the figures below are shares of.
embed   ViT-B/32 and ViT-L/14 in their true configuration with random weights: images a second from uint8 in memory, from JPEG shards
        through Dask, and how fast this machine's cores decode those, with the share of the bfloat16 peak (multiplications and additions of
        the network / seconds / peak). The slower of model and decoding is the limit.
join    100,000 x 768 in one cluster (embeddings.py): all pairs of cosine >= 0.95, against the algorithm of NeMo Curator (blocks of the
        float32 matrix, upper triangle, highest of each column; in torch on the same GPU) in float32 and with TF32 allowed. The same images
        must go.
dedup   1,000,000 x 768 in 1,000 clusters: semantic_duplicates on a LocalCUDACluster, rows a second.
neighbours  the 10 nearest of each of the same rows, in its clusters, with the recall that it measures; and of 100,000 of them all, beside cuML's
        NearestNeighbors by brute force.
run     the whole job from tar shards to tar shards, ViT-L/14, both heads: images a second.

A part that fails says so in the table and in the results, and the others go on. Results go to benchmarks/results/gpu.json with the machine,
versions and date.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import distributed
import embed as images_bench
import embeddings
import end_to_end
import numpy as np
import torch
from dask.utils import key_split
from turns import use_threads

PARTS = ("peak", "embed", "join", "dedup", "neighbours", "run")
EPS, K = 0.05, 10
# Multiplications and additions of one image: 2 * (parameters of each layer's products * tokens + attention) of the vision towers.
FLOP = {"ViT-B/32": 8.8e9, "ViT-L/14": 162e9}
PACKAGES = ("imgcurate", "torch", "transformers", "cudf", "cuml", "dask-cuda", "cupy", "dask")

Result = dict[str, Any]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments.add_argument("--images", type=int, default=4000)
    arguments.add_argument("--shard", type=int, default=500, help="images of a shard, which is a partition")
    arguments.add_argument("--distinct", type=int, default=200, help="of which so many differ")
    arguments.add_argument("--dry", action="store_true")
    arguments.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = arguments.parse_args()
    if not options.dry and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use; --dry runs a few rows on the CPU")
    # What is not measured this time stays as it was.
    report: Result = json.loads(options.output.read_text()) if options.output.exists() and not options.dry else {}
    report["settings"] = settings(options)
    with tempfile.TemporaryDirectory(prefix="imgcurate-bench-") as folder:
        bench = Bench(options, Path(folder))
        for part in options.only:
            print(f"{part} ...", file=sys.stderr, flush=True)
            try:
                report[part] = getattr(bench, part)()
            except Exception as problem:
                traceback.print_exc()
                report[part] = {"failed": f"{type(problem).__name__}: {problem}"}
            if not options.dry:
                options.output.write_text(json.dumps(report, indent=2) + "\n")
    show(report)


def settings(options: argparse.Namespace) -> Result:
    known = {}
    for name in PACKAGES:
        for distribution in (name, f"{name}-cu13", f"{name}-cuda13x"):
            try:
                known[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    on = "CPU (dry)" if options.dry else torch.cuda.get_device_name()
    return {
        "date": datetime.date.today().isoformat(),
        "device": on,
        "cores": os.cpu_count(),
        "rounds": options.rounds,
        "versions": known,
    }


class Bench:
    """The parts, on a GPU or, dry, on the CPU."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.folder = folder
        self.dry, self.rounds = options.dry, 1 if options.dry else options.rounds
        self.images = 16 if options.dry else options.images
        self.distinct, self.shard = min(options.distinct, self.images), options.shard
        self.began = time.perf_counter()
        self.device = torch.device("cpu" if options.dry else "cuda")
        self.peaks: dict[str, float] = {}

    def peak(self) -> Result:
        side = 256 if self.dry else 8192
        self.peaks = {}
        for name, dtype, tf32 in (("bfloat16", torch.bfloat16, False), ("tf32", torch.float32, True), ("float32", torch.float32, False)):  # fmt: skip
            a = torch.randn(side, side, device=self.device, dtype=dtype)
            with _tf32(tf32):
                seconds = self._times(lambda a=a: [a @ a for _ in range(10)])
            self.peaks[name] = 10 * 2 * side**3 / statistics.median(seconds) / 1e12
        return {"tflops": {name: round(value, 2) for name, value in self.peaks.items()}}

    def embed(self) -> Result:
        import imgcurate as ic
        from imgcurate.encoders import load_encoder

        if not self.peaks:
            self.peak()
        found: Result = {}
        batch, times = (2, 1) if self.dry else (256, 20)
        made, shards = self._images
        decoding = self._decode(shards)
        self._say(f"decoding: {decoding:.0f} images a second")
        with ic.connect(devices=self.devices) as client:
            cores = min(client.run(_cores).values())
            frame = ic.read_webdataset(str(shards)).persist()
            len(frame)
            for model in ("ViT-B/32", "ViT-L/14"):
                checkpoint = self.folder / "models" / model.replace("/", "-")
                images_bench.make_model(checkpoint, model)
                encoder = load_encoder(str(checkpoint), device=self.device)
                self._say(f"{model} loaded")
                pixels = list(np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8))
                ready = self._times(lambda e=encoder, p=pixels: [e.encode(p) for _ in range(times)])
                memory = [times * batch / seconds for seconds in ready]

                def work(checkpoint: Path = checkpoint) -> None:
                    done = int(ic.embed(frame, str(checkpoint))["embedding"].count().compute())
                    assert done == self.images, f"{self.images - done} images failed"

                jpeg = [self.images / seconds for seconds in self._times(work)]
                share = FLOP[model] * statistics.median(memory) / 1e12 / self.peaks["bfloat16"]
                limit = min(statistics.median(memory), decoding)
                found[model] = {
                    "from_memory": spread(memory),
                    "of_bf16_peak": round(share, 3),
                    "from_jpeg": spread(jpeg),
                    "limit": "decoding" if decoding < statistics.median(memory) else "model",
                    "of_limit": round(statistics.median(jpeg) / limit, 3),
                }
        return {
            "images": {"count": self.images, "shard": self.shard, **made},
            "decoding": round(decoding, 1),
            "cores_of_a_worker": cores,
            "models": found,
        }

    def join(self) -> Result:
        from imgcurate.dedup.semantic import join

        rows = embeddings.many(1000 if self.dry else 100_000, 768).vectors
        if self.dry:
            given: Any = rows
        else:
            import cupy

            given = cupy.asarray(rows)
        tensor = torch.from_numpy(rows).to(self.device)
        seconds: dict[str, list[float]] = {}
        removed: dict[str, np.ndarray] = {}

        def ours() -> None:
            pairs = join.pairs_within(given, 1 - EPS)
            gone = np.zeros(len(rows), dtype=bool)
            gone[pairs.right] = True
            removed["imgcurate"] = gone

        def nemo(name: str) -> None:
            best = _nearest_earlier(tensor)
            removed[name] = (best >= 1 - EPS).cpu().numpy()
            unsure[name] = (best - (1 - EPS)).abs().cpu().numpy() < tolerance[name]

        unsure: dict[str, np.ndarray] = {}
        tolerance = {"NeMo's algorithm, float32": 1e-5, "NeMo's algorithm, TF32": 2e-3}
        contestants: dict[str, tuple[Callable[[], None], bool]] = {"imgcurate": (ours, False)}
        for name in tolerance:
            contestants[name] = (lambda name=name: nemo(name), "TF32" in name)
        for work, tf32 in contestants.values():
            with _tf32(tf32):
                work()
        for _ in range(self.rounds):
            for name, (work, tf32) in contestants.items():
                with _tf32(tf32):
                    seconds.setdefault(name, []).extend(self._times(work, 1))
        same = {
            name: bool(np.array_equal(removed["imgcurate"][~unsure[name]], removed[name][~unsure[name]]))
            for name in tolerance
        }
        return {
            "rows": len(rows),
            "removed": int(removed["imgcurate"].sum()),
            "seconds": {name: spread(values, 4) for name, values in seconds.items()},
            "ratio": {
                name: spread([b / a for a, b in zip(seconds["imgcurate"], seconds[name], strict=True)], 2)
                for name in tolerance
            },
            "same_removals": same,
        }

    def dedup(self) -> Result:
        import imgcurate as ic

        removed = []
        with self._rows() as (frame, clusters):

            def work() -> None:
                found = ic.semantic_duplicates(frame, eps=EPS, n_clusters=clusters)
                removed.append(len(found.removals().compute()))

            seconds, rows = self._times(work), len(frame)
            tasks = _seconds_of_tasks(work)
        return {
            "rows": rows,
            "clusters": clusters,
            "removed": removed[-1],
            "seconds": spread(seconds, 2),
            "rows_per_second": spread([rows / value for value in seconds], 0),
            "tasks": tasks,
        }

    def neighbours(self) -> Result:
        import imgcurate as ic

        found: Result = {"k": K, "probes": {}, "exact": {}}
        lists = []

        def work(frame: Any, **options: Any) -> None:
            lists.append(ic.neighbours(frame, K, **options))
            len(lists[-1].frame)

        with self._rows() as (frame, clusters):
            for probes in (2, 8):
                seconds = self._times(lambda n=probes: work(frame, n_clusters=clusters, probes=n))
                recall = lists[-1].recall(1000)
                found["probes"][str(probes)] = {"seconds": spread(seconds, 2), "recall": round(recall.recall, 4)}
            some = frame.partitions[: max(1, frame.npartitions // 10)].persist()
            found |= {"rows": len(frame), "clusters": clusters, "some": len(some)}
            found["tasks"] = _seconds_of_tasks(lambda: work(frame, n_clusters=clusters, probes=2))
            found["exact"]["imgcurate"] = spread(self._times(lambda: work(some, exact=True)), 2)
        if not self.dry:
            found["exact"]["cuML, brute force"] = spread(self._times(self._nearest_by_cuml), 2)
        return found

    def _nearest_by_cuml(self) -> None:
        import cupy
        from cuml.neighbors import NearestNeighbors

        rows = cupy.asarray(self._matrix[: len(self._matrix) // 10])
        NearestNeighbors(n_neighbors=K + 1, algorithm="brute", metric="cosine").fit(rows).kneighbors(rows)
        self._wait()

    @contextmanager
    def _rows(self) -> Iterator[tuple[Any, int]]:
        """Give a frame that lies on the workers, and the number of clusters it is cut into."""
        import dask
        import dask.dataframe as dd
        from dedup_contestants import part

        import imgcurate as ic
        from imgcurate import vectors

        path, size, clusters = f"{self.folder}/rows.npy", *((500, 4) if self.dry else (10_000, 1000))
        numbers = range(len(self._matrix) // size)
        with ic.connect(devices=self.devices):
            made = [dask.delayed(part)(number, size, 768, path) for number in numbers]
            frame = dd.from_delayed(made, meta=part(0, 0, 768), verify_meta=False)
            frame = vectors.to_backend(frame, "pandas" if self.dry else "cudf").persist()
            len(frame)
            self._say("rows on the device")
            yield frame, clusters

    @cached_property
    def _matrix(self) -> np.ndarray:
        """Rows of a file, which are made by all cores."""
        count, size = (2000, 500) if self.dry else (1_000_000, 10_000)
        path = f"{self.folder}/rows.npy"
        np.lib.format.open_memmap(path, "w+", np.float32, (count, 768))
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(_store, itertools.repeat(path), range(count // size), itertools.repeat(size)))
        self._say("rows made")
        return np.load(path, mmap_mode="r")

    def run(self) -> Result:
        import imgcurate as ic
        from imgcurate import curate

        _, shards = self._images
        models = self.folder / "heads"
        end_to_end.make_models(models)
        images_bench.make_model(models / "clip", "ViT-L/14")
        self._say("models made")
        seconds, kept = [], 0
        with ic.connect(devices=self.devices):
            for number in range(self.rounds + 1):
                started = time.perf_counter()
                manifest = curate(
                    str(shards),
                    self.folder / f"out-{number}",
                    model="clip",
                    model_dir=models,
                    min_aesthetic=0.0,
                    max_nsfw=1.0,
                    eps=EPS,
                )
                seconds.append(time.perf_counter() - started)
                self._say(f"a run of {seconds[-1]:.1f} s")
                kept = manifest["counts"]["kept"]
        # The first loads the models and compiles kernels.
        warm = seconds[1:]
        return {
            "images": self.images,
            "kept": kept,
            "first_seconds": round(seconds[0], 2),
            "seconds": spread(warm, 2),
            "steps": manifest["seconds"],
            "images_per_second": spread([self.images / value for value in warm]),
        }

    @property
    def devices(self) -> list[int] | None:
        """Which GPUs a cluster is started on: all, or none."""
        return [] if self.dry else None

    @cached_property
    def _images(self) -> tuple[Result, Path]:
        """What images are like, and the folder of their shards."""
        made = images_bench.make_images(self.folder / "distinct", self.distinct)
        shards = images_bench.repeat(self.folder, "shards", self.images, self.shard)
        self._say("images made")
        return made, shards

    def _times(self, work: Callable[[], Any], rounds: int | None = None) -> list[float]:
        work()
        taken = []
        for _ in range(rounds or self.rounds):
            self._wait()
            started = time.perf_counter()
            work()
            self._wait()
            taken.append(time.perf_counter() - started)
            self._say(f"a round of {taken[-1]:.3f} s")
        return taken

    def _say(self, what: str) -> None:
        """Tell how far it is: what is cut short says at least where the time went."""
        print(f"  {time.perf_counter() - self.began:.1f} s: {what}", file=sys.stderr, flush=True)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _decode(self, shards: Path) -> float:
        """Images a second that all cores decode and resize."""
        decoding = images_bench.decoding({"shards": str(shards), "cores": os.cpu_count()})
        next(decoding)
        return self.images / min(next(decoding)["seconds"] for _ in range(1 if self.dry else 3))


def _seconds_of_tasks(work: Callable[[], Any]) -> dict[str, float]:
    """Work once more, and return what the workers' tasks and their waiting for one another's results took, by the tasks' names, the most first."""
    client = distributed.get_client()
    taken: Counter[str] = Counter()
    with distributed.get_task_stream(client) as stream:
        work()
    for task in stream.data:
        name = key_split(task["key"])
        for part in task["startstops"]:
            taken[name if part["action"] == "compute" else f"{name}: {part['action']}"] += part["stop"] - part["start"]
    return {name: round(seconds, 2) for name, seconds in taken.most_common(12)}


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _store(path: str, number: int, size: int) -> None:
    use_threads(1)
    rows = np.lib.format.open_memmap(path, "r+")
    rows[number * size : (number + 1) * size] = embeddings.chunk(number, 768, size).vectors
    rows.flush()


class _tf32:
    """Allow or forbid TF32 in torch's products."""

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed

    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self._allowed

    def __exit__(self, *exception: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self._before


def _nearest_earlier(rows: torch.Tensor) -> torch.Tensor:
    """Return the highest cosine of each row with an earlier one as NeMo Curator finds it."""
    best = torch.zeros(len(rows), device=rows.device)
    at = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for start in range(0, len(rows), 1024):
        dots = torch.triu(rows[start : start + 1024] @ rows.T, diagonal=1 + start)
        values, where = dots.max(dim=0)
        better = values > best
        best, at = torch.where(better, values, best), torch.where(better, where + start, at)
    return best


def spread(values: list[float], digits: int = 1) -> dict[str, float]:
    return images_bench.spread(values, digits)


def show(report: Result) -> None:
    about = report["settings"]
    print(f"\n{about['device']}, {about['cores']} cores, {about['date']}; median (min to max)\n")
    rows: list[tuple[str, str, str]] = []
    for part in PARTS:
        found = report.get(part)
        if found is None:
            continue
        if "failed" in found:
            rows.append((part, "failed", found["failed"]))
            continue
        rows += [(part, *row) for row in TABLES[part](found)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    last = None
    for part, what, value in rows:
        print(f"{part if part != last else '':<{widths[0]}}  {what:<{widths[1]}}  {value}")
        last = part


def _range(values: dict[str, float], unit: str = "") -> str:
    return f"{values['median']:,g} ({values['min']:,g} to {values['max']:,g}){unit}"


def _of_embed(found: Result) -> list[tuple[str, str]]:
    rows = [("decoding, all cores", f"{found['decoding']:,} images/s")]
    for model, of in found["models"].items():
        rows += [
            (f"{model} from uint8", f"{_range(of['from_memory'], ' images/s')}, {of['of_bf16_peak']:.0%} of the bf16 peak"),
            (f"{model} from JPEG", f"{_range(of['from_jpeg'], ' images/s')}, {of['of_limit']:.0%} of the limit: {of['limit']}"),
        ]  # fmt: skip
    return rows


def _of_join(found: Result) -> list[tuple[str, str]]:
    rows = [(name, _range(values, " s")) for name, values in found["seconds"].items()]
    return rows + [
        (f"ratio to {name}", f"{_range(values, ' x')}, same removals: {found['same_removals'][name]}")
        for name, values in found["ratio"].items()
    ]


def _of_neighbours(found: Result) -> list[tuple[str, str]]:
    rows = [
        (f"{found['rows']:,} x 768, {probes} of {found['clusters']} clusters", f"{_range(of['seconds'], ' s')}, recall {of['recall']}")
        for probes, of in found["probes"].items()
    ]  # fmt: skip
    return rows + [
        (f"{found['some']:,} x 768, all: {name}", _range(values, " s")) for name, values in found["exact"].items()
    ]


TABLES: dict[str, Callable[[Result], list[tuple[str, str]]]] = {
    "peak": lambda found: [(name, f"{value:,} TFLOP/s") for name, value in found["tflops"].items()],
    "embed": _of_embed,
    "join": _of_join,
    "dedup": lambda found: [
        (f"{found['rows']:,} x 768, k={found['clusters']}", _range(found["rows_per_second"], " rows/s")),
        *((f"  {name}", f"{seconds:.2f} s") for name, seconds in found.get("tasks", {}).items()),
    ],
    "neighbours": _of_neighbours,
    "run": lambda found: list(
        itertools.chain(
            [("tar to tar, ViT-L/14", _range(found["images_per_second"], " images/s"))],
            [(f"  {step}", f"{seconds:.2f} s") for step, seconds in found["steps"].items()],
        )
    ),
}

if __name__ == "__main__":
    main()
