"""A smaller set of many rows: `imgcurate.representatives` beside greedy k-centre in NumPy, and beside hierarchical k-means by scikit-learn.

    python benchmarks/representatives.py [--only NAME ...] [--note TEXT]

Each contestant runs in a process of its own, makes ready on few rows, and then takes 1,000 rows, once. imgcurate runs on a LocalCluster of all cores, of a
frame that lies on the workers.

- cover: 100,000 x 256 like CLIP's (embeddings.py). The peer is farthest-first over all rows, as active learning's core-set selection does it: for each row
  that is taken one matrix product, in float32. How far the farthest row is from its nearest one that was taken, and how far rows are on average, as
  1 - cosine. The hierarchical method is not made for this, and stands there to show what it costs.
- balance: 50,000 x 256 of 100 concepts, the r-th of which has a share in proportion to 1 / r. The peer is what Vo et al. (2024) publish, in scikit-learn's
  k-means: k-means++, 50 rounds at most, no resampling of the first level and ten times of the other, as in their settings for images of the web, and
  balanced sampling. It has 500 clusters and 100 of clusters; imgcurate the same, and those of its default. How many concepts the rows that are taken seem to be of (the exponential of the entropy of their shares: 100
  where all have the same), and the share of the largest.

Seconds are on the clock; CPU seconds are of all cores. Memory is the peak of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from neighbours import frame_of
from turns import Contestant, Rounds, main_or_serve, measured, read, save, settings

TAKEN, WARM_UP, CONCEPTS, LEVELS = 1000, 3000, 100, (500, 100)
RESULTS = Path(__file__).parent / "results" / "representatives.json"
COVER, BALANCE = (100_000, 256), (50_000, 256)
#: Contestants: the rows, and how they are taken.
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cover: imgcurate, farthest-first": ("imgcurate", {"method": "farthest-first"}),
    "cover: imgcurate, hierarchical": ("imgcurate", {"method": "hierarchical"}),
    "cover: greedy k-centre of all rows": ("numpy", {}),
    "cover: random": ("random", {}),
    "balance: imgcurate, hierarchical": ("imgcurate", {"method": "hierarchical"}),
    "balance: imgcurate, the peer's levels": ("imgcurate", {"method": "hierarchical", "n_clusters": LEVELS}),
    "balance: imgcurate, farthest-first": ("imgcurate", {"method": "farthest-first"}),
    "balance: scikit-learn, hierarchical": ("sklearn", {}),
    "balance: random": ("random", {}),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--only", nargs="+", default=list(CONTESTANTS), help="contestants; others keep the figures that they have"
    )
    arguments.add_argument("--note", default="", help="said beside the results, such as what else the machine did")
    options = arguments.parse_args()
    report = read(RESULTS) | settings(options.note, ("numpy", "scikit-learn"))
    report |= {"taken": TAKEN, "rows": {"cover": COVER, "balance": BALANCE}}
    found = report.setdefault("found", {})
    with tempfile.TemporaryDirectory(prefix="imgcurate-bench-") as scratch:
        for task, made in (("cover", like_clip), ("balance", long_tailed)):
            rows, concept = made()
            path = f"{scratch}/{task}.npy"
            np.save(path, rows)
            for name in (name for name in CONTESTANTS if name in options.only and name.startswith(task)):
                method, how = CONTESTANTS[name]
                given = {"path": path, "how": how, "cores": os.cpu_count()}
                with Contestant(Path(__file__), method, given) as contestant:
                    found[name] = contestant.round()
                chosen = np.load(f"{path}.taken.npy")
                assert len(np.unique(chosen)) == TAKEN
                found[name] |= coverage(rows, chosen) if concept is None else balance(concept[chosen])
                print(f"{name:<38}{json.dumps(found[name])}", flush=True)
                save(report, RESULTS)


def like_clip() -> tuple[np.ndarray, None]:
    import embeddings

    return embeddings.many(*COVER).vectors, None


def long_tailed() -> tuple[np.ndarray, np.ndarray]:
    """Return rows of many concepts, each spread over some directions of its own, and the concept of each row."""
    n, dimension = BALANCE
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, CONCEPTS + 1)
    concept = rng.choice(CONCEPTS, n, p=share / share.sum())
    rows = np.empty((n, dimension), dtype=np.float32)
    for number in range(CONCEPTS):
        own = np.flatnonzero(concept == number)
        directions = rng.standard_normal((16, dimension)) / dimension**0.5
        spread = rng.standard_normal((len(own), 16)) / 4 @ directions
        rows[own] = rng.standard_normal(dimension) / dimension**0.5 + spread
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), concept


def coverage(rows: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    near = np.concatenate([(rows[at : at + 5000] @ rows[chosen].T).max(axis=1) for at in range(0, len(rows), 5000)])
    return {"farthest": round(float(1 - near.min()), 4), "mean": round(float(1 - near.mean()), 4)}


def balance(concept: np.ndarray) -> dict[str, float]:
    shares = np.bincount(concept, minlength=CONCEPTS) / len(concept)
    there = shares[shares > 0]
    entropy = float(-(there * np.log(there)).sum())
    return {"concepts": round(float(np.exp(entropy)), 1), "share of the largest": round(float(shares.max()), 4)}


def by_imgcurate(options: dict[str, Any]) -> Rounds:
    import imgcurate as ic

    path, how = options["path"], options["how"]
    n = len(np.load(path, mmap_mode="r"))
    with ic.connect(devices=[]) as client:
        ic.representatives(frame_of(path, WARM_UP, 2), 100, **how).frame.compute()
        frame = frame_of(path, n, n // 10_000).persist()
        assert len(frame) == n
        yield {}
        made, figures = measured(lambda: ic.representatives(frame, TAKEN, **how).frame.compute(), client)
        np.save(f"{path}.taken.npy", made["image_id"].to_numpy().astype(np.int64))
        yield figures


def by_numpy(options: dict[str, Any]) -> Rounds:
    def take(rows: np.ndarray) -> np.ndarray:
        near, chosen = np.full(len(rows), -np.inf, dtype=np.float32), [0]
        while len(chosen) < min(TAKEN, len(rows)):
            np.maximum(near, rows @ rows[chosen[-1]], out=near)
            chosen.append(int(near.argmin()))
        return np.array(chosen)

    return alone(take, options["path"])


def by_sklearn(options: dict[str, Any]) -> Rounds:
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(0)

    def fitted(points: np.ndarray, k: int) -> KMeans:
        return KMeans(min(k, len(points)), init="k-means++", n_init=1, max_iter=50, random_state=0).fit(points)

    def take(rows: np.ndarray) -> np.ndarray:
        points, labels = rows, []
        for level, k in enumerate(LEVELS):
            model = fitted(points, k)
            label = model.labels_
            for _ in range(10 if level else 0):
                apart = np.linalg.norm(points - model.cluster_centers_[label], axis=1)
                near = [
                    own[np.argsort(apart[own])[: max(2, len(points) // (2 * k))]]
                    for own in (np.flatnonzero(label == at) for at in range(k))
                ]
                model = fitted(points[np.concatenate(near)], k)
                label = model.predict(points)
            points = model.cluster_centers_
            labels.append(label)
        return np.array(down(labels, len(labels) - 1, np.unique(labels[-1]), TAKEN))

    def down(labels: list[np.ndarray], level: int, clusters: np.ndarray, quota: int) -> list[int]:
        """Take so many rows of some clusters of a level, from each the same as far as it has them."""
        below = [np.flatnonzero(labels[level] == at) for at in clusters]
        sizes = [size_of(labels, level - 1, own) if level else len(own) for own in below]
        low, high = 0, max(sizes)
        while low < high:  # the most for each that is not too many for all
            middle = (low + high + 1) // 2
            low, high = (middle, high) if sum(min(middle, size) for size in sizes) <= quota else (low, middle - 1)
        shares = [min(low, size) for size in sizes]
        more = [at for at, size in enumerate(sizes) if size > low]
        for at in rng.permutation(more)[: quota - sum(shares)].tolist():
            shares[at] += 1
        found: list[int] = []
        for own, share in zip(below, shares, strict=True):
            if share and level:
                found += down(labels, level - 1, own, share)
            elif share:
                found += rng.choice(own, share, replace=False).tolist()
        return found

    def size_of(labels: list[np.ndarray], level: int, clusters: np.ndarray) -> int:
        own = np.flatnonzero(np.isin(labels[level], clusters))
        return len(own) if not level else size_of(labels, level - 1, own)

    return alone(take, options["path"])


def at_random(options: dict[str, Any]) -> Rounds:
    def take(rows: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).choice(len(rows), TAKEN, replace=False)

    return alone(take, options["path"])


def alone(take: Callable[[np.ndarray], np.ndarray], path: str) -> Rounds:
    """Take rows in this process."""
    rows = np.load(path)
    take(rows[:WARM_UP])
    yield {}
    chosen, figures = measured(lambda: take(rows))
    np.save(f"{path}.taken.npy", chosen)
    yield figures


METHODS = {"imgcurate": by_imgcurate, "numpy": by_numpy, "sklearn": by_sklearn, "random": at_random}

if __name__ == "__main__":
    main_or_serve(main, METHODS)
