"""The 10 nearest of every row: `imgcurate.neighbours` beside faiss, scikit-learn and usearch, and `imgcurate.outliers` beside semhash's list.

    python benchmarks/neighbours.py [--rows 20000 100000] [--only NAME ...] [--note TEXT]

Rows are those of embeddings.py, 768-d and like CLIP's, a fifth of them near-duplicates. Each contestant runs in a process of its own, makes ready on few
rows, and then finds the neighbours of all rows, once: its index is built, trained and filled inside its seconds.

- imgcurate: on a LocalCluster of all cores, of a frame that lies on the workers; lists of ids come to nobody until they are asked for, which is counted.
- faiss flat: IndexFlatIP, brute force. faiss IVF: IndexIVFFlat of sqrt(n / 2) lists, as many as imgcurate's clusters, with 3 and 9 lists probed.
- scikit-learn: NearestNeighbors by brute force. usearch: its HNSW index with its defaults.

Recall is of 1,000 rows drawn at random, whose neighbours are computed in float64: the share that is in the list, or as near as the tenth to 1e-6. Seconds are
on the clock; CPU seconds are of all cores, and say more where the machine has other work. Memory is the peak of the largest process.

Strangers: 200 rows with the same mean and spread as 20,000 others but no structure, and what each method ranks highest. Of imgcurate and the local outlier
factor the average precision of the scores; of all how many of the 200 first are strangers, which of semhash are those that it filters.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import embeddings
import numpy as np
from end_to_end import machine, peak_mib
from turns import use_threads

K, SAMPLE, WARM_UP, STRANGERS = 10, 1000, 2000, 200
RESULTS = Path(__file__).parent / "results" / "neighbours.json"
#: Contestants, and the most rows that each is asked.
CONTESTANTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "imgcurate, exact": ("imgcurate", {"exact": True}, 1_000_000),
    "imgcurate, probes=2": ("imgcurate", {"probes": 2, "clusters": True}, 10_000_000),
    "imgcurate, probes=4": ("imgcurate", {"probes": 4, "clusters": True}, 10_000_000),
    "imgcurate, probes=8": ("imgcurate", {"probes": 8, "clusters": True}, 10_000_000),
    "faiss IVF, nprobe=3": ("faiss", {"lists": True, "nprobe": 3}, 10_000_000),
    "faiss IVF, nprobe=9": ("faiss", {"lists": True, "nprobe": 9}, 10_000_000),
    "usearch": ("usearch", {}, 1_000_000),
    "faiss flat": ("faiss", {"lists": False}, 100_000),
    "scikit-learn": ("sklearn", {}, 100_000),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    arguments.add_argument(
        "--only", nargs="+", default=list(CONTESTANTS), help="contestants; others keep the figures that they have"
    )
    arguments.add_argument("--note", default="", help="said beside the results, such as what else the machine did")
    arguments.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.child:
        method, made, how = options.child
        print(json.dumps(METHODS[method](np.load(made, mmap_mode="r"), json.loads(how), made)))
        return
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    report |= {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "note": options.note,
        "k": K,
        "versions": {
            name: importlib.metadata.version(name) for name in ("faiss-cpu", "scikit-learn", "usearch", "semhash")
        },
    }
    with tempfile.TemporaryDirectory(prefix="imgcurate-bench-") as scratch:
        for n in options.rows:
            path = f"{scratch}/{n}.npy"
            np.save(path, embeddings.many(n, 768).vectors)
            # Memory is the contestants'.
            vectors = np.load(path, mmap_mode="r")
            truth = nearest_of_some(vectors)
            found = report["rows"].setdefault(str(n), {})
            for name in options.only:
                method, how, most = CONTESTANTS[name]
                if n <= most:
                    found[name] = one(method, path, how, vectors, truth)
                    print(f"{n:>10,} {name:<22}{json.dumps(found[name])}", flush=True)
                    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
            os.unlink(path)
    report["strangers"] = strangers()
    print(json.dumps(report["strangers"], indent=2))
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def one(method: str, path: str, how: dict[str, Any], vectors: np.ndarray, truth: Any) -> dict[str, Any]:
    """Run a contestant in a process of its own."""
    command = [sys.executable, __file__, "--child", method, path, json.dumps(how)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"stopped with": done.returncode}
    found = json.loads(done.stdout.splitlines()[-1])
    lists = np.load(f"{path}.found.npy")
    rows, least = truth
    hits = 0
    for row, low in zip(rows.tolist(), least.tolist(), strict=True):
        others = np.unique(lists[row][(lists[row] >= 0) & (lists[row] != row)])
        hits += int((vectors[others].astype(np.float64) @ vectors[row].astype(np.float64) >= low - 1e-6).sum())
    return {**found, "recall": round(hits / (K * len(rows)), 4)}


def nearest_of_some(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return some rows, and how near the tenth nearest of each is."""
    rows = np.random.default_rng(0).choice(len(vectors), SAMPLE, replace=False)
    tops = np.full((SAMPLE, K + 1), -2.0)
    for start in range(0, len(vectors), 20_000):
        cosines = vectors[rows].astype(np.float64) @ vectors[start : start + 20_000].astype(np.float64).T
        tops = -np.sort(-np.concatenate([tops, cosines], axis=1), axis=1)[:, : K + 1]
    return rows, tops[:, K]  # the first is the row itself


def by_imgcurate(vectors: np.ndarray, how: dict[str, Any], path: str) -> dict[str, Any]:

    import imgcurate as ic

    n, how = len(vectors), dict(how)
    if how.pop("clusters", False):
        how["n_clusters"] = max(round((n / 2) ** 0.5), n // 1000)

    def lists(frame: Any, **options: Any) -> tuple[Any, Any]:
        found = ic.neighbours(frame, K, **options)
        return found, found.frame.compute()

    with ic.connect(devices=[]) as client:
        lists(frame_of(path, WARM_UP, 2), n_clusters=20)
        frame = frame_of(path, n, max(2, n // 10_000)).persist()
        assert len(frame) == n

        def seconds_of_cpu() -> float:
            workers = client.run(lambda: sum(os.times()[:2]))
            return sum(workers.values()) + sum(os.times()[:2])

        before, started = seconds_of_cpu(), time.perf_counter()
        found, made = lists(frame, **how)
        seconds, cpu = time.perf_counter() - started, seconds_of_cpu() - before
        peak = max(client.run(peak_mib).values())
        estimated = found.recall(SAMPLE)
    every = np.full((n, K), -1, dtype=np.int64)
    for row, others in zip(made["image_id"].to_numpy().astype(np.int64), made["neighbours"], strict=True):
        every[row, : len(others)] = others
    np.save(f"{path}.found.npy", every)
    return figures(seconds, cpu, peak) | {
        "clusters": found.n_clusters,
        "recall() says": [round(value, 4) for value in estimated[:3]],
    }


def frame_of(path: str, n: int, npartitions: int) -> Any:
    """Return the first rows as a frame whose partitions the workers read."""
    import dask.dataframe as dd

    ends = np.linspace(0, n, npartitions + 1).astype(int).tolist()
    return dd.from_map(part, ends[:-1], ends[1:], path=path, meta=part(0, 0, path))


def part(start: int, stop: int, path: str) -> Any:
    import pandas as pd

    from imgcurate.vectors import to_column

    rows = pd.DataFrame({"image_id": np.arange(start, stop)})
    return rows.assign(embedding=to_column(np.array(np.load(path, mmap_mode="r")[start:stop]), rows))


def by_faiss(vectors: np.ndarray, how: dict[str, Any], path: str) -> dict[str, Any]:
    import faiss

    use_threads(os.cpu_count() or 1)
    dimension = vectors.shape[1]

    def lists(rows: np.ndarray) -> np.ndarray:
        index = faiss.IndexFlatIP(dimension)
        if how["lists"]:
            index = faiss.IndexIVFFlat(index, dimension, round((len(rows) / 2) ** 0.5), faiss.METRIC_INNER_PRODUCT)
            index.train(rows)
            index.nprobe = how["nprobe"]
        index.add(rows)
        return index.search(rows, K + 1)[1]

    return timed(lists, vectors, path)


def by_sklearn(vectors: np.ndarray, how: dict[str, Any], path: str) -> dict[str, Any]:
    from sklearn.neighbors import NearestNeighbors

    # Of unit vectors the nearest are those of the highest cosine.
    return timed(
        lambda rows: (
            NearestNeighbors(n_neighbors=K + 1, algorithm="brute").fit(rows).kneighbors(rows, return_distance=False)
        ),
        vectors,
        path,
    )


def by_usearch(vectors: np.ndarray, how: dict[str, Any], path: str) -> dict[str, Any]:
    from usearch.index import Index

    def lists(rows: np.ndarray) -> np.ndarray:
        index = Index(ndim=rows.shape[1], metric="ip")
        index.add(np.arange(len(rows)), rows)
        return index.search(rows, K + 1).keys.astype(np.int64)

    return timed(lists, vectors, path)


def timed(lists: Callable[[np.ndarray], np.ndarray], vectors: np.ndarray, path: str) -> dict[str, Any]:
    lists(vectors[:WARM_UP])
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    found = lists(vectors)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    np.save(f"{path}.found.npy", found)
    return figures(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak_mib())


def figures(seconds: float, cpu: float, peak: float) -> dict[str, Any]:
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mib": round(peak)}


def strangers(n: int = 20_000) -> dict[str, Any]:
    """Return how well each method finds planted strangers."""
    from semhash import SemHash
    from sklearn.metrics import average_precision_score
    from sklearn.neighbors import LocalOutlierFactor

    import imgcurate as ic

    rows = embeddings.many(n, 768).vectors
    rng = np.random.default_rng(0)
    mean = rows.mean(axis=0)
    length = float(np.linalg.norm(rows - mean, axis=1).mean())
    noise = rng.standard_normal((STRANGERS, rows.shape[1])).astype(np.float32)
    planted = mean + length * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    order = rng.permutation(n + STRANGERS)
    every = np.concatenate([rows, planted / np.linalg.norm(planted, axis=1, keepdims=True)])[order].astype(np.float32)
    strange = order >= n

    def said(scores: np.ndarray) -> dict[str, float]:
        first = np.argsort(-scores, kind="stable")[:STRANGERS]
        return {
            "average precision": round(float(average_precision_score(strange, scores)), 4),
            "strangers among the first": int(strange[first].sum()),
        }

    scores = ic.outliers((np.arange(len(every)), every), K).sort_values("image_id")["outlier_score"].to_numpy()
    factor = LocalOutlierFactor(n_neighbors=K, metric="cosine", algorithm="brute").fit(every).negative_outlier_factor_
    semhash = SemHash.from_embeddings(
        embeddings=every, records=[str(number) for number in range(len(every))], model=None
    )
    filtered = semhash.self_filter_outliers(outlier_percentage=STRANGERS / len(every)).filtered
    return {
        "images": n,
        "strangers": STRANGERS,
        "imgcurate.outliers": said(scores),
        "local outlier factor": said(-factor),
        "semhash": {
            "filtered": len(filtered),
            "strangers among the first": int(sum(strange[int(record)] for record in filtered)),
        },
    }


METHODS = {"imgcurate": by_imgcurate, "faiss": by_faiss, "sklearn": by_sklearn, "usearch": by_usearch}

if __name__ == "__main__":
    main()
