"""Deduplication beside its peers: the similarity join, the whole, the exact whole, and how it grows.

    python benchmarks/dedup.py [--rounds 5] [--only join whole exact growth] [--slow 60] [--cores 2] [--quick] [--output PATH]

Everybody gets the same vectors and the same cores, and a process of its own (dedup_contestants.py). In each round the contestants
take turns, and ratios are taken round by round. One that took more than ``--slow`` seconds at a size is not asked again there.

join     20,000 x 768. imgcurate's join in one process, against the step of NeMo Curator 1.4.0 in torch, and faiss's flat range search with
         the BLAS kernels that are its fastest here. All must name the same images. On embeddings that look like CLIP's, and on random
         directions, which are the hardest; each with the pairs down to 1 - eps, those that semantic_duplicates stores, and without
         low precision.
whole    20,000 x 768, 100,000 and 300,000 x 512. semantic_duplicates on a cluster, up to the list of ids to remove, against
         scikit-learn's KMeans (of all rows, and of a quarter of them) with NeMo Curator 1.4.0's step in each cluster, faiss's inverted
         index, usearch, semhash, and two brute forces where they are not hopeless: faiss's flat range search and scikit-learn's
         radius_neighbors. Recall is of the pairs that a brute force finds.
exact    The same with exact=True.
growth   100,000 to 4,000,000 x 768 and 1,000,000 and 10,000,000 x 256 through a work folder, on two workers of 3 GiB: see scaling.py.
         A size can be chosen by ``--least-rows`` and ``--most-rows``; the others stay in the results as they were.

What the embeddings look like stands in embeddings.py. The results go to benchmarks/results/dedup.json, and growth as a figure to
scaling.svg beside it; with ``--only`` the other sections stay as they were, and with ``--quick`` (few rows, to see that it runs) nothing is
written unless ``--output`` is given. The peers come with the extra ``bench``.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dedup_tables
import embeddings
import likeness
import numpy as np
import scaling_figure
from dedup_contestants import TIE
from end_to_end import machine
from turns import Contestant

EPS = 0.05
OURS_JOIN = {
    "imgcurate": {"least": 1 - EPS, "low_precision": None},
    "imgcurate, down to 1 - 2 eps": {"least": 1 - 2 * EPS, "low_precision": None},
    "imgcurate, float32": {"least": 1 - EPS, "low_precision": False},
}
NEMO = "NeMo Curator 1.4.0"
PEERS_JOIN = {NEMO: "join_nemo", "faiss IndexFlatIP": "join_faiss"}
WHOLE = {
    "imgcurate": ("whole_imgcurate", {}),
    "KMeans + NeMo 1.4.0's step": ("whole_nemo", {"fraction": 1}),
    "KMeans of 1/4 + NeMo 1.4.0's": ("whole_nemo", {"fraction": 0.25}),
    "faiss IVF, nprobe 4": ("whole_faiss", {"flat": False}),
    "faiss flat": ("whole_faiss", {"flat": True}),
    "usearch, 10 nearest": ("whole_usearch", {}),
    "semhash": ("whole_semhash", {}),
    "radius_neighbors": ("whole_radius", {}),
}
EXACT = {
    "imgcurate, exact=True": ("whole_imgcurate", {"verb": {"exact": True}}),
    "radius_neighbors": ("whole_radius", {}),
}
#: Their time grows with the square of the rows, and can be told beforehand.
BRUTE_FORCES = ("faiss flat", "radius_neighbors")
#: The kernels of OpenBLAS that may suit a processor of today; None lets it choose.
KERNELS = (None, "Haswell", "SkylakeX", "Cooperlake", "Sapphirerapids", "Zen")
FULL: dict[str, Any] = {
    "join": (20_000, 768),
    "whole": [(20_000, 768), (100_000, 512), (300_000, 512)],
    "growth": [
        (100_000, 768), (300_000, 768), (1_000_000, 768), (4_000_000, 768), (1_000_000, 256), (10_000_000, 256)
    ],
}  # fmt: skip
QUICK: dict[str, Any] = {
    "join": (3000, 768),
    "whole": [(1500, 768), (3000, 512)],
    "growth": [(2000, 768), (5000, 768), (5000, 256)],
}
LIBRARIES = ("imgcurate", "dask", "faiss-cpu", "numpy", "scikit-learn", "semhash", "torch", "usearch")
WORKERS, MEMORY_LIMIT = 2, "3GiB"
SCRIPT = Path(__file__).with_name("dedup_contestants.py")
GROWTH = SCRIPT.with_name("scaling.py")
SECTIONS = ("join", "whole", "exact", "growth")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    arguments.add_argument(
        "--slow", type=float, default=60.0, help="seconds after which a contestant is not asked again"
    )
    arguments.add_argument("--cores", type=int, default=2)
    arguments.add_argument(
        "--least-rows", type=int, default=0, help="leave out smaller sizes of whole, exact and growth"
    )
    arguments.add_argument("--most-rows", type=int, default=sys.maxsize, help="leave out larger ones")
    arguments.add_argument("--in-memory", action="store_true", help="growth without a work folder, to compare")
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--output", type=Path)
    options = arguments.parse_args()
    # Libraries that cannot be told how many threads to use look at what they may run on.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    output = options.output or (None if options.quick else Path(__file__).parent / "results" / "dedup.json")
    sizes = dict(QUICK if options.quick else FULL)
    for section in ("whole", "growth"):
        sizes[section] = [size for size in sizes[section] if options.least_rows <= size[0] <= options.most_rows]
    report = json.loads(output.read_text()) if output and output.exists() else {}
    with tempfile.TemporaryDirectory(prefix="imgcurate-bench-") as folder:
        bench = Bench(Path(folder), options.rounds, options.slow, options.cores, sizes)
        for section in options.only:
            if section == "growth":
                for size, found in bench.growth(options.in_memory):
                    report.setdefault("growth", {})[size] = {"run": bench.settings(), **found}
                    save(report, output)  # at once: a run takes long
            else:
                report[section] = {"run": bench.settings(), **getattr(bench, section)()}
                save(report, output)
    dedup_tables.show({section: report[section] for section in options.only})


def save(report: dict[str, Any], output: Path | None) -> None:
    if output is None:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    if any(one["disk_peak_gib"] for one in report.get("growth", {}).values()):
        output.with_name("scaling.svg").write_text(scaling_figure.draw(report["growth"]))


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
        self._truths: dict[tuple[int, int], Truth] = {}

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
        return Contestant(GROWTH if name == "growth" else SCRIPT, name, {**common, **options}, core_type)

    def join(self) -> dict[str, Any]:
        n, dimension = self.sizes["join"]
        like_clip = embeddings.many(n, dimension)
        report = {"rows": n, "dimension": dimension, "look": likeness.check(like_clip)}
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
            unsure = np.load(found[NEMO][-1]["unsure"])
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
        report: dict[str, Any] = {"sizes": {}}
        seconds_of_a_product: dict[str, float] = {}
        for n, dimension in self.sizes["whole"]:
            expected = {name: seconds * n**2 * dimension for name, seconds in seconds_of_a_product.items()}
            left_out = {name: round(seconds) for name, seconds in expected.items() if seconds > self.slow}
            options = {
                "n": n,
                "dimension": dimension,
                "memory_limit": "auto",
                "vectors": self.vectors(n, dimension),
            }
            taking_part = {
                name: (side, {**options, **more}) for name, (side, more) in sides.items() if name not in left_out
            }
            true = self.truth(n, dimension)
            found = self._rounds(f"{section}, {n:,} x {dimension}", taking_part, true)
            ours = next(iter(sides))
            report["sizes"][f"{n} x {dimension}"] = {
                "true_pairs": len(true.certain),
                "of_them_not_planted": true.unplanted,
                "contestants": {name: summary(rounds) for name, rounds in found.items()},
                "ratios": {name: ratios(rounds, found[ours]) for name, rounds in found.items() if name != ours},
                "left_out_as_it_would_take_seconds": left_out,
            }
            seconds_of_a_product |= {
                name: max(one["seconds"] for one in found[name]) / (n**2 * dimension)
                for name in BRUTE_FORCES
                if name in found
            }
        return report

    def growth(self, in_memory: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each size with what was measured of it."""
        for n, dimension in self.sizes["growth"]:
            size = f"{n} x {dimension}" + (", in memory" if in_memory else "")
            options = {
                "n": n,
                "dimension": dimension,
                "workers": WORKERS,
                "memory_limit": MEMORY_LIMIT,
                "in_memory": in_memory,
            }
            rounds = self._rounds(f"growth, {size}", {"growth": ("growth", options)}, None)["growth"]
            best = min(rounds, key=lambda one: one["seconds"])
            seconds = spread([one["seconds"] for one in rounds])
            yield size, {**options, **best, "seconds": seconds, "seconds_per_row": seconds["median"] / n}

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

    def truth(self, n: int, dimension: int) -> Truth:
        if (n, dimension) not in self._truths:
            tell(f"brute force of {n:,} x {dimension}, for the recall")
            with self.contestant("truth", {"vectors": self.vectors(n, dimension)}) as contestant:
                found = contestant.round()
            pairs, cosines = np.load(found["pairs"]), np.load(found["cosines"])
            origin = embeddings.many(n, dimension).origin
            certain = cosines >= 1 - EPS + TIE
            keys = pairs[0] * n + pairs[1]
            unplanted = (origin[pairs[0]] != origin[pairs[1]]) & certain
            true = Truth(n, np.sort(keys), np.sort(keys[certain]), int(unplanted.sum()))
            self._truths[n, dimension] = true
        return self._truths[n, dimension]

    def vectors(self, n: int, dimension: int) -> str:
        path = self.folder / f"{n}-{dimension}.npy"
        if not path.exists():
            made = embeddings.many(n, dimension)
            likeness.check(made)
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
