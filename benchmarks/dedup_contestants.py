"""The contestants of dedup.py, one process each: imgcurate, its peers, and the brute force that says what is true.

A contestant is a generator. Up to its first ``yield`` it makes ready: it imports, loads the vectors, and does its work once on few rows, so
that nobody's clock includes the start of libraries. Each further ``yield`` is one timed round: a dict with ``seconds`` and what was found,
arrays as the names of ``.npy`` files. turns.py has the pipe over which rounds are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import embeddings
import numpy as np
from end_to_end import peak_mib
from turns import serve

Round = dict[str, Any]
Options = dict[str, Any]
BATCH = 1024  # NeMo Curator's
NEIGHBOURS = 10  # of usearch, which knows no search by range
WARM_UP = 2000
#: Cosines nearer to the threshold than this may fall on either side of it: float32 cannot tell.
TIE = 1e-6


def join_imgcurate(options: Options) -> Iterator[Round]:
    from imgcurate.dedup.semantic import join, screen

    vectors, least = np.load(options["vectors"]), options["least"]
    low_precision = options["low_precision"]

    def removed(rows: np.ndarray) -> tuple[np.ndarray, int]:
        pairs = join.pairs_within(rows, least, low_precision=low_precision)
        gone = np.zeros(len(rows), dtype=bool)
        gone[pairs.right[pairs.similarity >= 1 - options["eps"]]] = True
        return gone, len(pairs.left)

    removed(vectors[:WARM_UP])
    yield {"computes_in": screen.choose_dtype("cpu", low_precision)}
    while True:
        seconds, (gone, pairs) = timed(removed, vectors)
        yield {"seconds": seconds, "removed": saved(options, gone), "pairs_stored": pairs, "peak_mib": peak_mib()}


def join_nemo(options: Options) -> Iterator[Round]:
    import torch

    vectors = torch.from_numpy(np.load(options["vectors"]))

    def removed(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        best = nearest_earlier(rows)
        return (best >= 1 - options["eps"]).numpy(), best.numpy()

    removed(vectors[:WARM_UP])
    yield {}
    while True:
        seconds, (gone, best) = timed(removed, vectors)
        unsure = np.abs(best - (1 - options["eps"])) < TIE
        yield {
            "seconds": seconds,
            "removed": saved(options, gone),
            "unsure": saved(options, unsure, "unsure"),
            "peak_mib": peak_mib(),
        }


def join_faiss(options: Options) -> Iterator[Round]:
    import faiss

    vectors = np.load(options["vectors"])[: options.get("rows")]

    def removed(rows: np.ndarray) -> np.ndarray:
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)
        gone = np.zeros(len(rows), dtype=bool)
        gone[faiss_pairs(index, rows, options["eps"])[1]] = True
        return gone

    removed(vectors[:WARM_UP])
    yield {"kernels": blas_kernels("openblaso")}
    while True:
        seconds, gone = timed(removed, vectors)
        yield {"seconds": seconds, "removed": saved(options, gone), "peak_mib": peak_mib()}


def whole_imgcurate(options: Options) -> Iterator[Round]:
    """On a cluster of its own; the frame lies on the workers, read there."""
    import dask.dataframe as dd

    import imgcurate as ic

    n, dimension, verb = options["n"], options["dimension"], options.get("verb", {})
    rows = min(n, embeddings.CHUNK)

    def dedup(frame: Any, **how: Any) -> tuple[Any, Any]:
        duplicates = ic.semantic_duplicates(frame, eps=options["eps"], **how)
        return duplicates, duplicates.removals().compute()

    def frame_of(count: int, size: int) -> Any:
        more = {"dimension": dimension, "path": options["vectors"]}
        return dd.from_map(part, range(count), rows=size, **more, meta=part(0, 0, **more))

    with ic.connect(devices=[], memory_limit=options["memory_limit"]) as client:
        few = frame_of(2 * len(client.scheduler_info()["workers"]), min(rows, WARM_UP) // 4)
        dedup(few, **verb)
        dedup(few, n_clusters=4)  # few rows would not be clustered
        frame = frame_of(n // rows, rows).persist()
        len(frame)
        yield {}
        while True:
            seconds, (duplicates, removals) = timed(dedup, frame, **verb)
            found = {"seconds": seconds, "n_removed": len(removals), "n_clusters": duplicates.n_clusters}
            edges = duplicates.edges
            edges = edges[edges["similarity"] >= 1 - options["eps"]].compute()
            pairs = np.stack([edges[name].to_numpy().astype(np.int64) for name in ("image_id", "other_id")])
            found["pairs"] = saved(options, pairs, "pairs")
            del duplicates  # what it holds on the workers is not the next round's
            yield {**found, "peak_mib": max(client.run(peak_mib).values())}


def whole_nemo(options: Options) -> Iterator[Round]:
    """NeMo Curator's workflow: k-means, by scikit-learn for cuML, and its step inside clusters, the farthest first.

    ``fraction`` of the rows are what k-means is fitted to; theirs takes all unless it is told otherwise.
    """
    import torch
    from sklearn.cluster import KMeans

    vectors, fraction = np.load(options["vectors"]), options["fraction"]

    def work(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k = round((len(rows) / 2) ** 0.5)
        fitted = rows
        if fraction < 1:
            fitted = rows[np.random.default_rng(42).permutation(len(rows))[: max(round(fraction * len(rows)), k)]]
        model = KMeans(n_clusters=k, n_init=1, max_iter=300, tol=1e-4, random_state=42).fit(fitted)
        labels = model.predict(rows)
        # Unit vectors of one cluster are the farther from its centroid the lower their product with it is.
        closeness = np.einsum("ij,ij->i", rows, model.cluster_centers_[labels])
        order = np.lexsort((closeness, labels))
        gone = np.zeros(len(rows), dtype=bool)
        for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
            best = nearest_earlier(torch.from_numpy(rows[members]))
            gone[members[(best >= 1 - options["eps"]).numpy()]] = True
        return gone, labels

    work(vectors[:WARM_UP])
    yield {}
    while True:
        seconds, (gone, labels) = timed(work, vectors)
        yield {
            "seconds": seconds,
            "n_removed": int(gone.sum()),
            "labels": saved(options, labels, "labels"),
            "peak_mib": peak_mib(),
        }


def whole_faiss(options: Options) -> Iterator[Round]:
    """An inverted index, or everything with everything if ``flat`` says so."""
    import faiss

    def pairs(rows: np.ndarray) -> np.ndarray:
        n, dimension = rows.shape
        index = faiss.IndexFlatIP(dimension)
        if not options["flat"]:
            index = faiss.IndexIVFFlat(index, dimension, round((n / 2) ** 0.5), faiss.METRIC_INNER_PRODUCT)
            index.train(rows)
            index.nprobe = 4
        index.add(rows)
        return faiss_pairs(index, rows, options["eps"])

    return _peer(options, pairs)


def whole_usearch(options: Options) -> Iterator[Round]:
    """HNSW with its own defaults but for float32: its bfloat16 would move cosines over the threshold."""
    from usearch.index import Index

    def pairs(rows: np.ndarray) -> np.ndarray:
        index = Index(ndim=rows.shape[1], metric="ip", dtype="f32")
        index.add(np.arange(len(rows)), rows, threads=options["cores"])
        matches = index.search(rows, NEIGHBOURS, threads=options["cores"])
        # A distance is 1 - cosine. Rows of `keys` are as long as `counts` says.
        near = matches.distances <= options["eps"]
        near &= np.arange(matches.keys.shape[1]) < matches.counts[:, None]
        query, column = np.nonzero(near)
        return _ordered(query, matches.keys[query, column].astype(np.int64), len(rows))

    return _peer(options, pairs)


def whole_semhash(options: Options) -> Iterator[Round]:
    from semhash import SemHash

    vectors = np.load(options["vectors"])

    def work(rows: np.ndarray) -> Any:
        # The model embeds records that come later; there are none.
        records = [str(number) for number in range(len(rows))]
        semhash = SemHash.from_embeddings(embeddings=rows, records=records, model=None)
        return semhash.self_deduplicate(threshold=1 - options["eps"])

    work(vectors[:WARM_UP])
    yield {}
    while True:
        seconds, result = timed(work, vectors)
        gone = np.zeros(len(vectors), dtype=bool)
        gone[[int(duplicate.record) for duplicate in result.filtered]] = True
        yield {
            "seconds": seconds,
            "n_removed": int(gone.sum()),
            "removed": saved(options, gone),
            "peak_mib": peak_mib(),
        }


def whole_radius(options: Options) -> Iterator[Round]:
    from sklearn.neighbors import NearestNeighbors

    def pairs(rows: np.ndarray) -> np.ndarray:
        # Of unit vectors the distance says what the cosine does, and scikit-learn's fast way knows only distances.
        model = NearestNeighbors(radius=(2 * options["eps"]) ** 0.5, algorithm="brute", metric="euclidean").fit(rows)
        near = model.radius_neighbors(return_distance=False)
        left = np.repeat(np.arange(len(rows)), [len(found) for found in near])
        right = np.concatenate(near)
        return np.stack([left, right])[:, left < right]

    return _peer(options, pairs)


def _peer(options: Options, pairs: Callable[[np.ndarray], np.ndarray]) -> Iterator[Round]:
    """Rounds of a peer that finds pairs, of which the later row goes."""
    vectors = np.load(options["vectors"])

    def work(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = pairs(rows)
        return np.unique(found[1]), found

    work(vectors[:WARM_UP])
    yield {}
    while True:
        seconds, (gone, found) = timed(work, vectors)
        yield {
            "seconds": seconds,
            "n_removed": len(gone),
            "pairs": saved(options, found, "pairs"),
            "peak_mib": peak_mib(),
        }


def truth(options: Options) -> Iterator[Round]:
    """All pairs at or just below the threshold: float32 products block by block, those that pass again in float64."""
    import torch

    vectors = torch.from_numpy(np.load(options["vectors"]))
    least = 1 - options["eps"] - TIE
    # Rounding moves a float32 product of unit vectors by less than dimension * 2^-24.
    floor = least - vectors.shape[1] * 2.0**-24 - 1e-6
    yield {}
    while True:
        pairs, cosines = [], []
        for start in range(0, len(vectors), BATCH):
            block = vectors[start : start + BATCH]
            row, column = (torch.triu(block @ vectors[start:].T, diagonal=1) >= floor).nonzero(as_tuple=True)
            for rows, columns in zip((row + start).split(1 << 16), (column + start).split(1 << 16), strict=True):
                left, right = vectors[rows].double(), vectors[columns].double()
                exact = (left * right).sum(dim=1) / (left.norm(dim=1) * right.norm(dim=1))
                pairs.append(torch.stack([rows, columns])[:, exact >= least])
                cosines.append(exact[exact >= least])
        yield {
            "pairs": saved(options, torch.cat(pairs, dim=1).numpy(), "pairs"),
            "cosines": saved(options, torch.cat(cosines).numpy(), "cosines"),
        }


def nearest_earlier(rows: Any) -> Any:
    """Return the highest cosine of each row with an earlier one as NeMo Curator 1.4.0 finds it.

    This is its `pairwise_cosine_similarity_batched`. Queries are taken in blocks of `BATCH`. Of each block only the rows
    up to its end are multiplied, into one workspace of n x `BATCH` that all blocks use; what is not earlier, the lower
    triangle of the block's own square with its diagonal, becomes -inf; the highest of each column is the row's score,
    and that of the first row is 0. A row goes if its score is at least ``1 - eps``.

    Theirs asks for CUDA and multiplies in the precision in which k-means has stored the rows; this is the same on a CPU
    in float32. Their default is float16, whose steps just below 1 are 2^-11 = 4.9e-4. With ``eps=.01`` a score is .98975
    or .99023 and nothing between them: rows go from a cosine of about .98999 on, every eps from .00977 to .01025
    removes the same images, and from .99976 on a cosine is 1. The rounding of the rows moves a cosine by up to 3e-4
    among the rows of embeddings.py (standard deviation 7e-5), so that chance decides on pairs so near to the threshold.

    Parameters
    ----------
    rows : torch.Tensor of shape (n, d)
        Of unit length, best-ranked first.

    Returns
    -------
    torch.Tensor of shape (n,)
    """
    import torch

    n, width = len(rows), min(BATCH, len(rows))
    best, at = torch.zeros(n, dtype=rows.dtype), torch.zeros(n, dtype=torch.int64)
    workspace = torch.empty((n, width), dtype=rows.dtype)
    not_earlier = torch.ones((width, width), dtype=torch.bool).tril_()
    for start in range(0, n, BATCH):
        end = min(start + BATCH, n)
        dots = workspace[:end, : end - start]
        torch.mm(rows[:end], rows[start:end].T, out=dots)
        dots[start:end].masked_fill_(not_earlier[: end - start, : end - start], -torch.inf)
        values, where = dots.max(dim=0)
        if not start:
            values[0], where[0] = 0, 0
        best[start:end], at[start:end] = values, where
    return best


def faiss_pairs(index: Any, rows: np.ndarray, eps: float) -> np.ndarray:
    """Return the pairs of rows that `index` finds, earlier row above later row."""
    limits, _, found = index.range_search(rows, 1 - eps)
    query = np.repeat(np.arange(len(rows)), np.diff(limits.astype(np.int64)))
    return _ordered(query, found, len(rows))


def _ordered(query: np.ndarray, found: np.ndarray, n: int) -> np.ndarray:
    """Return each pair once, earlier row above later row; an index may find a pair from one side only."""
    pairs = np.stack([np.minimum(query, found), np.maximum(query, found)])[:, query != found]
    return np.stack(np.divmod(np.unique(pairs[0] * n + pairs[1]), n))


def part(number: int, rows: int, dimension: int, path: str | None = None) -> Any:
    """Return one partition of a frame: rows of a stored matrix, or a chunk that is made here."""
    from imgcurate.schema import table
    from imgcurate.vectors import to_column

    if not rows:
        vectors = np.empty((0, dimension), dtype=np.float32)
    elif path is None:
        vectors = embeddings.chunk(number, dimension, rows).vectors
    else:
        vectors = np.array(np.load(path, mmap_mode="r")[number * rows : (number + 1) * rows])
    made = table({"image_id": [f"{number * rows + row:07}" for row in range(len(vectors))]})
    return made.assign(embedding=to_column(vectors, made))


def blas_kernels(library: str) -> str:
    """Name the kernels that a BLAS in this process has chosen."""
    import threadpoolctl

    found = [pool.get("architecture", "") for pool in threadpoolctl.threadpool_info() if library in pool["filepath"]]
    return ", ".join(found)


def timed(work: Callable[..., Any], *arguments: Any, **keywords: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work(*arguments, **keywords)
    return time.perf_counter() - started, result


def saved(options: Options, array: np.ndarray, name: str = "removed") -> str:
    path = Path(options["out"]) / f"{options['name']}-{name}.npy"
    np.save(path, array)
    return str(path)


CONTESTANTS: dict[str, Callable[[Options], Iterator[Round]]] = {
    "join_imgcurate": join_imgcurate,
    "join_nemo": join_nemo,
    "join_faiss": join_faiss,
    "whole_imgcurate": whole_imgcurate,
    "whole_nemo": whole_nemo,
    "whole_faiss": whole_faiss,
    "whole_usearch": whole_usearch,
    "whole_semhash": whole_semhash,
    "whole_radius": whole_radius,
    "truth": truth,
}


if __name__ == "__main__":
    serve(CONTESTANTS)
