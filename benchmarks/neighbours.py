"""The 10 nearest of every row: `imgcurate.neighbours` beside faiss, scikit-learn and usearch, and `imgcurate.outliers` beside semhash's list.

    python benchmarks/neighbours.py [--rows 20000 100000] [--only NAME ...] [--note TEXT]

Rows are those of embeddings.py, 768-d and like CLIP's, a fifth of them near-duplicates. Each contestant runs in a process of its own, makes ready on few
rows, and then finds the neighbours of all rows, once: its index is built, trained and filled inside its seconds.

- imgcurate: on a LocalCluster of all cores, of a frame that lies on the workers; lists of ids come to nobody until they are asked for, which is counted.
- faiss flat: IndexFlatIP, brute force. faiss IVF: IndexIVFFlat of sqrt(n / 2) lists, as many as imgcurate's clusters, with 3 and 9 lists probed.
- scikit-learn: NearestNeighbors by brute force. usearch: its HNSW index with its defaults, which hold vectors in bfloat16 where the machine has it.

Of more than 100,000 rows faiss flat, faiss IVF with 9 lists and scikit-learn are not asked for the neighbours of all, which would take hours, but for those
of 10,000 rows drawn at random, in one call. The index is of all rows. Measured are the seconds in which it is built and those of the queries; what all rows
would take is computed from them, the second times the rows for each query, and stands in the results as "computed for all".

Recall is of 1,000 rows drawn at random, whose neighbours are computed in float64: the share that is in the list, or as near as the tenth to 1e-6. Seconds are
on the clock; CPU seconds are of all cores, and say more where the machine has other work. Memory is the peak of the largest process.

Strangers: 200 rows with the same mean and spread as 20,000 others but no structure, and what each method ranks highest. Of imgcurate and the local outlier
factor the average precision of the scores; of all how many of the 200 first are strangers, which of semhash are those that it filters.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import embeddings
import numpy as np
from turns import Contestant, Rounds, main_or_serve, measured, read, save, settings

K, SAMPLE, QUERIES, WARM_UP, STRANGERS = 10, 1000, 10_000, 2000, 200
RESULTS = Path(__file__).parent / "results" / "neighbours.json"
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "imgcurate, exact": ("imgcurate", {"exact": True}),
    "imgcurate, probes=2": ("imgcurate", {"probes": 2, "clusters": True}),
    "imgcurate, probes=4": ("imgcurate", {"probes": 4, "clusters": True}),
    "imgcurate, probes=8": ("imgcurate", {"probes": 8, "clusters": True}),
    "faiss IVF, nprobe=3": ("faiss", {"lists": True, "nprobe": 3}),
    "faiss IVF, nprobe=9": ("faiss", {"lists": True, "nprobe": 9}),
    "usearch": ("usearch", {}),
    "faiss flat": ("faiss", {"lists": False}),
    "scikit-learn": ("sklearn", {}),
}
#: Of more than `ASKED_OF_ALL` rows these are asked for the neighbours of `QUERIES` of them.
SLOW, ASKED_OF_ALL = ("faiss IVF, nprobe=9", "faiss flat", "scikit-learn"), 100_000


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    parts = [*CONTESTANTS, "strangers"]
    arguments.add_argument(
        "--only",
        nargs="+",
        choices=parts,
        default=parts,
        metavar="NAME",
        help="contestants, in this order, or strangers; what is not named keeps the figures that it has",
    )
    arguments.add_argument("--note", default="", help="said beside the results, such as what else the machine did")
    options = arguments.parse_args()
    report = read(RESULTS) | settings(options.note, ("faiss-cpu", "scikit-learn", "usearch", "semhash")) | {"k": K}
    chosen = [name for name in options.only if name in CONTESTANTS]
    with tempfile.TemporaryDirectory(prefix="imgcurate-bench-") as scratch:
        for n in options.rows if chosen else []:
            path = f"{scratch}/{n}.npy"
            np.save(path, embeddings.many(n, 768).vectors)
            # Memory is the contestants'.
            vectors = np.load(path, mmap_mode="r")
            truth = nearest_of_some(vectors)
            found = report.setdefault("rows", {}).setdefault(str(n), {})
            for name in chosen:
                found[name] = one(name, path, vectors, *truth)
                print(f"{n:>10,} {name:<22}{json.dumps(found[name])}", flush=True)
                save(report, RESULTS)
            os.unlink(path)
    if "strangers" in options.only:
        report["strangers"] = strangers()
        print(json.dumps(report["strangers"], indent=2))
        save(report, RESULTS)


def one(name: str, path: str, vectors: np.ndarray, rows: np.ndarray, least: np.ndarray) -> dict[str, Any]:
    """Run a contestant in a process of its own, and judge its lists of some rows."""
    method, how = CONTESTANTS[name]
    given = {"path": path, "how": how, "queries": None, "cores": os.cpu_count()}
    if name in SLOW and len(vectors) > ASKED_OF_ALL:
        others = np.setdiff1d(np.arange(len(vectors)), rows)
        queries = np.random.default_rng(1).choice(others, QUERIES - len(rows), replace=False)
        given["queries"] = f"{path}.queries.npy"
        np.save(given["queries"], np.concatenate([rows, queries]))
    try:
        with Contestant(Path(__file__), method, given) as contestant:
            found = contestant.round()
    except ChildProcessError as error:
        return {"error": str(error)}
    lists = np.load(f"{path}.found.npy", mmap_mode="r")
    lists = lists[: len(rows)] if given["queries"] else lists[rows]
    hits = 0
    for row, low, near in zip(rows.tolist(), least.tolist(), lists, strict=True):
        others = np.unique(near[(near >= 0) & (near != row)])
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


def by_imgcurate(options: dict[str, Any]) -> Rounds:
    import imgcurate as ic

    path, how = options["path"], dict(options["how"])
    n = len(np.load(path, mmap_mode="r"))
    if how.pop("clusters", False):
        how["n_clusters"] = round((n / 2) ** 0.5)  # its default, but for few rows, which it would compare all

    def lists(frame: Any, **how: Any) -> tuple[Any, Any]:
        found = ic.neighbours(frame, K, **how)
        return found, found.frame.compute()

    with ic.connect(devices=[]) as client:
        lists(frame_of(path, WARM_UP, 2), n_clusters=20)
        frame = frame_of(path, n, max(2, n // 10_000)).persist()
        assert len(frame) == n
        yield {}
        (found, made), figures = measured(lambda: lists(frame, **how), client)
        every = np.full((n, K), -1, dtype=np.int64)
        for row, others in zip(made["image_id"].to_numpy().astype(np.int64), made["neighbours"], strict=True):
            every[row, : len(others)] = others
        np.save(f"{path}.found.npy", every)
        estimated = [round(value, 4) for value in found.recall(SAMPLE)[:3]]
        yield figures | {"clusters": found.n_clusters, "recall() says": estimated}


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


def by_faiss(options: dict[str, Any]) -> Rounds:
    import faiss

    how = options["how"]

    def build(rows: np.ndarray) -> Any:
        dimension = rows.shape[1]
        index = faiss.IndexFlatIP(dimension)
        if how["lists"]:
            index = faiss.IndexIVFFlat(index, dimension, round((len(rows) / 2) ** 0.5), faiss.METRIC_INNER_PRODUCT)
            index.train(rows)
            index.nprobe = how["nprobe"]
        index.add(rows)
        return index

    return indexed(build, lambda index, rows: index.search(rows, K + 1)[1], options)


def by_sklearn(options: dict[str, Any]) -> Rounds:
    from sklearn.neighbors import NearestNeighbors

    # Of unit vectors the nearest are those of the highest cosine.
    return indexed(
        lambda rows: NearestNeighbors(n_neighbors=K + 1, algorithm="brute").fit(rows),
        lambda index, rows: index.kneighbors(rows, return_distance=False),
        options,
    )


def by_usearch(options: dict[str, Any]) -> Rounds:
    from usearch.index import Index

    def build(rows: np.ndarray) -> Any:
        index = Index(ndim=rows.shape[1], metric="ip")
        index.add(np.arange(len(rows)), rows)
        return index

    return indexed(build, lambda index, rows: index.search(rows, K + 1).keys.astype(np.int64), options)


def indexed(
    build: Callable[[np.ndarray], Any], ask: Callable[[Any, np.ndarray], np.ndarray], options: dict[str, Any]
) -> Rounds:
    """Build an index of all rows in this process, and ask it for the neighbours of all, or of some and compute what all would take."""
    path, queries = options["path"], options["queries"]
    vectors = np.load(path, mmap_mode="r")
    ask(build(vectors[:WARM_UP]), vectors[:WARM_UP])
    yield {}
    index, building = measured(lambda: build(vectors))
    wanted = vectors[np.load(queries)] if queries else vectors
    found, asking = measured(lambda: ask(index, wanted))
    np.save(f"{path}.found.npy", found)
    clocks, every = ("seconds", "cpu_seconds"), len(vectors) / len(wanted)
    whole = {name: round(building[name] + asking[name] * every, 2) for name in clocks}
    if queries:
        took = {"building": building, "queries": asking}
        whole = {
            "queries": len(wanted),
            "measured": {part: {name: of[name] for name in clocks} for part, of in took.items()},
            "computed for all": whole,
        }
    yield {**whole, "peak_mib": asking["peak_mib"]}


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
    main_or_serve(main, METHODS)
