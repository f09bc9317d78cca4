"""Deduplication beside its peers: the similarity join, the whole, the exact whole, and how it grows.

    python benchmarks/dedup.py [--rounds 5] [--only join whole exact growth] [--slow 60] [--cores 2] [--quick] [--output PATH]

Everybody gets the same vectors and the same cores, and a process of its own (dedup_contestants.py). In each round the contestants
take turns, and ratios are taken round by round. One that took more than ``--slow`` seconds at a size is not asked again there.

join     20,000 x 768. imgcurate's join in one process, against the algorithm of NeMo Curator (float32 matrix in blocks of rows, its
         upper triangle, the highest of each column; in torch) and faiss's flat range search, with the BLAS kernels that are its
         fastest here. All must name the same images. On embeddings that look like CLIP's, and on random directions, which are the
         hardest; each with the pairs down to 1 - eps, those that semantic_duplicates stores, and without low precision.
whole    20,000, 100,000 and 300,000 x 512. semantic_duplicates on a cluster, up to the list of ids to remove, against
         scikit-learn's KMeans with NeMo Curator's step in each cluster, faiss's inverted index, semhash, and scikit-learn's
         brute-force radius_neighbors where that is not hopeless. Recall is of the pairs that a brute force finds.
exact    The same with exact=True.
growth   10,000 to 1,000,000 x 768, made on the workers, with 6 GiB a worker.

What the embeddings look like stands in embeddings.py. The results go to benchmarks/results/dedup.json; with ``--only`` the other
sections stay as they were, and with ``--quick`` (few rows, to see that it runs) nothing is written unless ``--output`` is given.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import dedup_tables
import embeddings
import numpy as np
from dedup_contestants import TIE
from end_to_end import machine
from turns import Contestant

EPS = 0.05
OURS_JOIN = {
    "imgcurate": {"least": 1 - EPS, "low_precision": None},
    "imgcurate, down to 1 - 2 eps": {"least": 1 - 2 * EPS, "low_precision": None},
    "imgcurate, float32": {"least": 1 - EPS, "low_precision": False},
}
PEERS_JOIN = {"NeMo Curator's algorithm": "join_nemo", "faiss IndexFlatIP": "join_faiss"}
WHOLE = {
    "imgcurate": ("whole_imgcurate", {}),
    "KMeans + NeMo's step": ("whole_nemo", {}),
    "faiss IVF, nprobe 4": ("whole_faiss", {}),
    "semhash": ("whole_semhash", {}),
    "radius_neighbors": ("whole_radius", {}),
}
EXACT = {
    "imgcurate, exact=True": ("whole_imgcurate", {"verb": {"exact": True}}),
    "radius_neighbors": ("whole_radius", {}),
}
#: The kernels of OpenBLAS that may suit a processor of today; None lets it choose.
KERNELS = (None, "Haswell", "SkylakeX", "Cooperlake", "Sapphirerapids", "Zen")
FULL: dict[str, Any] = {
    "join": (20_000, 768),
    "whole": ([20_000, 100_000, 300_000], 512),
    "growth": ([10_000, 30_000, 100_000, 300_000, 1_000_000], 768),
}
QUICK: dict[str, Any] = {"join": (3000, 768), "whole": ([1500, 3000], 512), "growth": ([1000, 3000], 768)}
LIBRARIES = ("imgcurate", "dask", "faiss-cpu", "numpy", "scikit-learn", "semhash", "torch", "usearch")
MEMORY_LIMIT = "6GiB"
SCRIPT = Path(__file__).with_name("dedup_contestants.py")
SECTIONS = ("join", "whole", "exact", "growth")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    arguments.add_argument(
        "--slow", type=float, default=60.0, help="seconds after which a contestant is not asked again"
    )
    arguments.add_argument("--cores", type=int, default=2)
    arguments.add_argument("--most-rows", type=int, help="leave out the larger sizes of whole, exact and growth")
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--output", type=Path)
    options = arguments.parse_args()
    # Libraries that cannot be told how many threads to use look at what they may run on.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    output = options.output or (None if options.quick else Path(__file__).parent / "results" / "dedup.json")
    sizes = dict(QUICK if options.quick else FULL)
    if options.most_rows:
        for section in ("whole", "growth"):
            rows, dimension = sizes[section]
            sizes[section] = ([n for n in rows if n <= options.most_rows], dimension)
    report = json.loads(output.read_text()) if output and output.exists() else {}
    with tempfile.TemporaryDirectory(prefix="imgcurate-bench-") as folder:
        bench = Bench(Path(folder), options.rounds, options.slow, options.cores, sizes)
        for section in options.only:
            report[section] = {"run": bench.settings(), **getattr(bench, section)()}
            if output:  # at once: a run takes long
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(json.dumps(report, indent=2) + "\n")
    dedup_tables.show({section: report[section] for section in options.only})


class Truth(NamedTuple):
    """The pairs of a brute force, as numbers ``earlier * n + later``, in order.

    Attributes
    ----------
    keys : numpy.ndarray
        All that float32 arithmetic may take for duplicates.
    certain : numpy.ndarray
        Those of them that nobody may miss.
    unplanted : int
        How many of the certain ones are neither a copy and its original nor two copies of one.
    """

    n: int
    keys: np.ndarray
    certain: np.ndarray
    unplanted: int


class Bench:
    """One run: its settings, its folder of vectors, and its sections, each of which returns its report."""

    def __init__(self, folder: Path, rounds: int, slow: float, cores: int, sizes: dict[str, Any]) -> None:
        self.folder, self.rounds, self.slow, self.cores, self.sizes = folder, rounds, slow, cores, sizes
        self._truths: dict[int, Truth] = {}

    def settings(self) -> dict[str, Any]:
        flags = Path("/proc/cpuinfo").read_text()
        return {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "cores": self.cores,
            "bf16_instructions": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "eps": EPS,
            "rounds": self.rounds,
            "not_repeated_above_seconds": self.slow,
        }

    def contestant(self, name: str, options: dict[str, Any]) -> Contestant:
        common = {"name": name, "out": str(self.folder), "eps": EPS, "cores": self.cores}
        core_type = self.core_type if name.endswith("_faiss") else None
        return Contestant(SCRIPT, name, {**common, **options}, core_type)

    def join(self) -> dict[str, Any]:
        n, dimension = self.sizes["join"]
        like_clip = embeddings.many(n, dimension)
        report = {"rows": n, "dimension": dimension, "look": embeddings.check(like_clip)}
        report["faiss_kernels"] = self.kernels
        report["data"] = {
            "like CLIP": self._join("like CLIP", like_clip.vectors),
            "random directions": self._join("random directions", embeddings.even(n, dimension)),
        }
        return report

    def _join(self, data: str, vectors: np.ndarray) -> dict[str, Any]:
        options = {"vectors": str(self.folder / "join.npy")}
        np.save(options["vectors"], vectors)
        sides = {name: ("join_imgcurate", {**options, **more}) for name, more in OURS_JOIN.items()}
        sides |= {name: (side, options) for name, side in PEERS_JOIN.items()}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        with contextlib.ExitStack() as stack:
            asked = {name: stack.enter_context(self.contestant(*side)) for name, side in sides.items()}
            for number in range(self.rounds):
                for name, contestant in asked.items():
                    tell(f"join, {data}, round {number + 1} of {self.rounds}: {name}")
                    found[name].append(contestant.round())
                    found[name][-1]["removed"] = np.load(found[name][-1]["removed"])
            unsure = np.load(found["NeMo Curator's algorithm"][-1]["unsure"])
            computes_in = {name: asked[name].ready["computes_in"] for name in OURS_JOIN}
        removed = found["imgcurate"][0]["removed"]
        for name, rounds in found.items():
            if any(((one["removed"] != removed) & ~unsure).any() for one in rounds):
                raise AssertionError(f"{name} and imgcurate remove different images ({data})")
        return {
            "removed": int(removed.sum()),
            "too_near_to_the_threshold_to_tell": int(unsure.sum()),
            "computes_in": computes_in,
            "contestants": {name: summary(rounds) for name, rounds in found.items()},
            "ratios": {ours: {peer: ratios(found[peer], found[ours]) for peer in PEERS_JOIN} for ours in OURS_JOIN},
        }

    @functools.cached_property
    def kernels(self) -> dict[str, Any]:
        """Seconds of faiss with each of OpenBLAS' kernels, which it chooses when a process starts; None where they do not run here."""
        dimension = self.sizes["join"][1]
        path = self.folder / "kernels.npy"
        np.save(path, embeddings.even(4000, dimension))
        options = {"name": "kernels", "out": str(self.folder), "eps": EPS, "cores": self.cores, "vectors": str(path)}
        found: dict[str, Any] = {}
        for core_type in KERNELS:
            tell(f"faiss with OPENBLAS_CORETYPE={core_type or ''}")
            try:
                with Contestant(SCRIPT, "join_faiss", options, core_type) as contestant:
                    seconds = min(contestant.round()["seconds"] for _ in range(3))
                    found[core_type or "unset"] = {"seconds": round(seconds, 4), "chosen": contestant.ready["kernels"]}
            except ChildProcessError:
                found[core_type or "unset"] = None
        return found

    @property
    def core_type(self) -> str | None:
        """The value of OPENBLAS_CORETYPE with which faiss is fastest."""
        best = min(
            (name for name, found in self.kernels.items() if found), key=lambda name: self.kernels[name]["seconds"]
        )
        return None if best == "unset" else best

    def whole(self) -> dict[str, Any]:
        return self._sizes("whole", WHOLE)

    def exact(self) -> dict[str, Any]:
        return self._sizes("exact", EXACT)

    def _sizes(self, section: str, sides: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
        sizes, dimension = self.sizes["whole"]
        report: dict[str, Any] = {"dimension": dimension, "sizes": {}}
        seconds_of_a_pair = 0.0
        for n in sizes:
            # The time of brute force grows with the square, and can be told beforehand.
            hopeless = seconds_of_a_pair * n**2 > self.slow
            left_out = [name for name in sides if name == "radius_neighbors" and hopeless]
            options = {
                "n": n,
                "dimension": dimension,
                "memory_limit": "auto",
                "pairs": True,
                "vectors": self.vectors(n),
            }
            taking_part = {
                name: (side, {**options, **more}) for name, (side, more) in sides.items() if name not in left_out
            }
            true = self.truth(n)
            found = self._rounds(f"{section}, {n:,} rows", taking_part, true)
            ours = next(iter(sides))
            report["sizes"][str(n)] = {
                "true_pairs": len(true.certain),
                "of_them_not_planted": true.unplanted,
                "contestants": {name: summary(rounds) for name, rounds in found.items()},
                "ratios": {name: ratios(rounds, found[ours]) for name, rounds in found.items() if name != ours},
                "left_out": left_out,
            }
            if "radius_neighbors" in found:
                seconds_of_a_pair = max(one["seconds"] for one in found["radius_neighbors"]) / n**2
        return report

    def growth(self) -> dict[str, Any]:
        sizes, dimension = self.sizes["growth"]
        report: dict[str, Any] = {"dimension": dimension, "memory_limit": MEMORY_LIMIT, "sizes": {}}
        for n in sizes:
            options = {"n": n, "dimension": dimension, "memory_limit": MEMORY_LIMIT, "pairs": False}
            found = self._rounds(f"growth, {n:,} rows", {"imgcurate": ("whole_imgcurate", options)}, None)
            report["sizes"][str(n)] = summary(found["imgcurate"])
        return report

    def _rounds(
        self, label: str, sides: dict[str, tuple[str, dict[str, Any]]], true: Truth | None
    ) -> dict[str, list[dict[str, Any]]]:
        """Let contestants take turns, each time in a fresh process: nobody holds memory while another one runs."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for number in range(self.rounds):
            for name, (side, options) in sides.items():
                if found[name] and max(one["seconds"] for one in found[name]) > self.slow:
                    continue
                tell(f"{label}, round {number + 1} of {self.rounds}: {name}")
                with self.contestant(side, options) as contestant:
                    one = contestant.round()
                found[name].append(one | (judge(one, true) if true else {}))
        return found

    def truth(self, n: int) -> Truth:
        if n not in self._truths:
            tell(f"brute force of {n:,} rows, for the recall")
            with self.contestant("truth", {"vectors": self.vectors(n)}) as contestant:
                found = contestant.round()
            pairs, cosines = np.load(found["pairs"]), np.load(found["cosines"])
            origin = embeddings.many(n, self.sizes["whole"][1]).origin
            certain = cosines >= 1 - EPS + TIE
            keys = pairs[0] * n + pairs[1]
            unplanted = (origin[pairs[0]] != origin[pairs[1]]) & certain
            self._truths[n] = Truth(n, np.sort(keys), np.sort(keys[certain]), int(unplanted.sum()))
        return self._truths[n]

    def vectors(self, n: int) -> str:
        path = self.folder / f"{n}.npy"
        if not path.exists():
            made = embeddings.many(n, self.sizes["whole"][1])
            embeddings.check(made)
            np.save(path, made.vectors)
        return str(path)


def judge(found: dict[str, Any], true: Truth) -> dict[str, Any]:
    """Say what share of the truth a contestant found, and how many pairs it found that are none.

    Of k-means it is the share of pairs that lie in one cluster. semhash tells the images it removes, so of it the share of those
    that its rule, with all pairs, removes.
    """
    if "pairs" in found:
        pairs = np.load(found["pairs"])
        keys = np.unique(pairs.min(axis=0) * true.n + pairs.max(axis=0))
        wrong = int(np.isin(keys, true.keys, invert=True).sum())
        return {"recall": share(np.isin(true.certain, keys)), "recall_of": "pairs", "wrong_pairs": wrong}
    left, right = np.divmod(true.certain, true.n)
    if "labels" in found:
        labels = np.load(found["labels"])
        return {"recall": share(labels[left] == labels[right]), "recall_of": "pairs"}
    kept = np.ones(true.n, dtype=bool)
    for at in np.argsort(right, kind="stable"):  # An image goes where an earlier one that is kept is near.
        kept[right[at]] &= not kept[left[at]]
    return {"recall": share(np.load(found["removed"])[~kept]), "recall_of": "removals"}


def share(found: np.ndarray) -> float:
    return float(found.mean()) if len(found) else 1.0


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the rounds of one contestant."""
    figures = ("recall_of", "wrong_pairs", "n_removed", "n_clusters", "pairs_stored")
    return {
        "seconds": spread([one["seconds"] for one in rounds]),
        "peak_mib": max(one["peak_mib"] for one in rounds),
        **{name: max(one[name] for one in rounds) for name in ("client_peak_mib",) if name in rounds[0]},
        **{name: min(one[name] for one in rounds) for name in ("recall",) if name in rounds[0]},
        **{name: rounds[0][name] for name in figures if name in rounds[0]},
    }


def ratios(peer: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """Say how many times our time a peer took, round by round, as far as both took part."""
    return spread([one["seconds"] / other["seconds"] for one, other in zip(peer, ours, strict=False)])


def spread(values: list[float]) -> dict[str, Any]:
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
        "rounds": len(values),
    }


def tell(text: str) -> None:
    print(f"{text} ...", file=sys.stderr)


if __name__ == "__main__":
    main()
