"""Made embeddings that look like CLIP's, for benchmarks that must run anywhere.

    python benchmarks/embeddings.py        what they look like, beside 200 real embeddings of CLIP ViT-L/14

A row is ``normalise(mean + spread * deviation)``:

- ``mean`` is one direction for all rows, of which two coordinates hold the most: CLIP's vectors lie in a narrow cone, and so
  two images that have nothing in common have a cosine of about .54.
- ``deviation`` is ``topic + object + instance``, Gaussian each, with weights `TOPIC`, `OBJECT`, `INSTANCE` (of their squares) and
  one covariance: eigenvalues ``(i + SHIFT) ** -DECAY`` in a random rotation. Two images of one object have a cosine of about .82.
- ``spread`` is lognormal, drawn an object and an image: rows are nearer to the mean direction or farther from it.
- There are `TOPICS` topics, and `OBJECTS` objects drawn with probability ``1 / (rank + POPULAR)``: Zipf's law without its peak. The
  most popular object has 0.7 % of the images.
- A fifth of all rows are near-duplicates ("copies") of another row, half of them of one in the same chunk and half of one in an
  earlier chunk, at a cosine drawn evenly from `COPIES`, in a direction drawn from the same covariance. Few rows have many copies.

Rows are made in chunks, each from its own seed, so that workers make theirs without anything being sent to them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

SEED = 2026
TOPICS, OBJECTS, POPULAR = 30, 20_000, 20
TOPIC, OBJECT, INSTANCE = 0.3, 0.3, 0.4
SHIFT, DECAY = 1.5, 0.75
SPREAD, SPREAD_OBJECT, SPREAD_IMAGE = 0.92, 0.12, 0.1
LARGE = (0.63, 0.59)
COPY_SHARE, COPIES = 0.2, (0.9, 1.0)
CHUNK = 10_000
#: The figures of `look` for 200 photos of 200 different things, by CLIP ViT-L/14.
CLIP = {
    "cosine, 5 %": 0.415,
    "cosine, 50 %": 0.542,
    "cosine, 95 %": 0.684,
    "outside 16": 0.353,
    "outside 32": 0.321,
    "outside 64": 0.281,
}


class Chunk(NamedTuple):
    """Some rows, and for each the number that its original has among all rows: its own unless it is a copy."""

    vectors: np.ndarray
    origin: np.ndarray


class _World(NamedTuple):
    mean: np.ndarray
    basis: np.ndarray
    topics: np.ndarray
    objects: np.ndarray
    topic_of: np.ndarray
    spread_of: np.ndarray
    cumulative: np.ndarray


def chunk(number: int, dimension: int, rows: int = CHUNK) -> Chunk:
    """Make one chunk.

    Parameters
    ----------
    number : int
        Which one. Chunks of one `dimension` and one number of `rows` belong together: chunk i holds rows ``i * rows`` and on.
    dimension : int
    rows : int

    Returns
    -------
    Chunk
        Unit vectors of shape (rows, dimension), float32, in random order, and their origins.
    """
    rng = np.random.default_rng([SEED, dimension, number, 1])
    n_copies = round(rows * COPY_SHARE)
    here, here_at = _originals(number, dimension, rows)
    there, there_at = _originals(int(rng.integers(number)), dimension, rows) if number else (here, here_at)
    vectors, origin = np.empty((rows, dimension), dtype=np.float32), np.empty(rows, dtype=np.int64)
    origin[here_at - number * rows], vectors[here_at - number * rows] = here_at, here
    places = np.setdiff1d(np.arange(rows), here_at - number * rows)
    rng.shuffle(places)
    for places_of, source, source_at in (
        (places[: n_copies // 2], here, here_at),
        (places[n_copies // 2 :], there, there_at),
    ):
        # The square draws few originals often.
        chosen = (len(source) * rng.random(len(places_of)) ** 2).astype(np.int64)
        towards = rng.standard_normal((len(chosen), dimension), dtype=np.float32) @ _world(dimension).basis
        vectors[places_of] = _turned(source[chosen], towards, rng)
        origin[places_of] = source_at[chosen]
    return Chunk(vectors, origin)


def many(n: int, dimension: int) -> Chunk:
    """Make the first `n` rows: whole chunks, or one small one.

    Raises
    ------
    ValueError
        Where `n` is neither below nor a multiple of the size of a chunk.
    """
    rows = min(n, CHUNK)
    if n % rows:
        raise ValueError(f"{n} rows are not whole chunks of {rows}")
    chunks = [chunk(number, dimension, rows) for number in range(n // rows)]
    return Chunk(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def even(n: int, dimension: int) -> np.ndarray:
    """Make unit rows that look like nothing: random directions, a fifth of them near-duplicates of another row as above.

    What no method can take advantage of.
    """
    rng = np.random.default_rng([SEED, dimension])
    vectors = _normalised(rng.standard_normal((n, dimension), dtype=np.float32))
    order = rng.permutation(n)
    copies, originals = np.split(order, [round(n * COPY_SHARE)])
    sources = vectors[rng.choice(originals, size=len(copies))]
    vectors[copies] = _turned(sources, rng.standard_normal(sources.shape, dtype=np.float32), rng)
    return vectors


def look(vectors: np.ndarray) -> dict[str, float]:
    """Return what unit rows look like: percentiles of the cosines of random pairs, and how fast their spectrum falls.

    "outside 32" is the share of a row's squared length that lies outside of the 32 leading directions of 100 other rows. Few rows,
    so that it can be asked of the 200 rows of CLIP's that are at hand; means over 20 draws.
    """
    rng = np.random.default_rng(SEED)
    left, right = rng.integers(len(vectors), size=(2, 200_000))
    dots = np.einsum("ij,ij->i", vectors[left], vectors[right])[left != right]
    found = {f"cosine, {percent} %": float(np.percentile(dots, percent)) for percent in (5, 50, 95)}
    outside = np.zeros((20, 3))
    for draw in outside:
        chosen = vectors[rng.permutation(len(vectors))[:200]].astype(np.float64)
        parts = chosen[100:] @ np.linalg.svd(chosen[:100], full_matrices=False)[2].T
        draw[:] = [1 - np.square(parts[:, :directions]).sum(axis=1).mean() for directions in (16, 32, 64)]
    found |= zip(("outside 16", "outside 32", "outside 64"), outside.mean(axis=0).tolist(), strict=True)
    return {name: round(value, 3) for name, value in found.items()}


def check(made: Chunk, tolerance: float = 0.04) -> dict[str, float]:
    """Return `look` of the rows that are no copies, or raise a ValueError where it is further than `tolerance` from CLIP's."""
    found = look(made.vectors[made.origin == np.arange(len(made.origin))])
    if max(abs(found[name] - CLIP[name]) for name in CLIP) > tolerance:
        raise ValueError(f"these embeddings do not look like CLIP's: {found}; CLIP's: {CLIP}")
    return found


@functools.lru_cache(maxsize=1)
def _world(dimension: int) -> _World:
    """What all chunks share."""
    rng = np.random.default_rng([SEED, dimension])
    mean = rng.standard_normal(dimension)
    large = rng.choice(dimension, size=len(LARGE), replace=False)
    mean[large] = 0
    mean *= np.sqrt(1 - np.square(LARGE).sum()) / np.linalg.norm(mean)
    mean[large] = LARGE
    rotation = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    eigenvalues = (np.arange(dimension) + SHIFT) ** -DECAY
    basis = np.sqrt(eigenvalues / eigenvalues.sum())[:, None] * rotation
    popularity = 1 / (np.arange(OBJECTS) + 1.0 + POPULAR)
    return _World(
        mean.astype(np.float32),
        basis.astype(np.float32),
        rng.standard_normal((TOPICS, dimension), dtype=np.float32),
        rng.standard_normal((OBJECTS, dimension), dtype=np.float32),
        rng.integers(TOPICS, size=OBJECTS),
        SPREAD_OBJECT * rng.standard_normal(OBJECTS, dtype=np.float32),
        np.cumsum(popularity / popularity.sum()),
    )


def _originals(number: int, dimension: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a chunk that are no copies, and their numbers among all rows."""
    world = _world(dimension)
    rng = np.random.default_rng([SEED, dimension, number, 0])
    count = rows - round(rows * COPY_SHARE)
    at = np.sort(rng.choice(rows, size=count, replace=False)) + number * rows
    of = np.searchsorted(world.cumulative, rng.random(count) * world.cumulative[-1])
    deviation = np.sqrt(INSTANCE, dtype=np.float32) * rng.standard_normal((count, dimension), dtype=np.float32)
    deviation += np.sqrt(OBJECT, dtype=np.float32) * world.objects[of]
    deviation += np.sqrt(TOPIC, dtype=np.float32) * world.topics[world.topic_of[of]]
    spread = SPREAD * np.exp(world.spread_of[of] + SPREAD_IMAGE * rng.standard_normal(count, dtype=np.float32))
    return _normalised(world.mean + spread[:, None] * (deviation @ world.basis)), at


def _turned(sources: np.ndarray, towards: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn each row in a direction, by an angle drawn from `COPIES`."""
    away = _normalised(towards - np.einsum("ij,ij->i", towards, sources)[:, None] * sources)
    cosine = rng.uniform(*COPIES, size=(len(sources), 1)).astype(np.float32)
    return _normalised(cosine * sources + np.sqrt(1 - cosine**2) * away)


def _normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    looks = [CLIP, *(check(many(CHUNK, dimension)) for dimension in (768, 512))]
    print(f"{'':<16}{'CLIP ViT-L/14':>16}{'made, 768-d':>16}{'made, 512-d':>16}")
    for name in CLIP:
        print(f"{name:<16}" + "".join(f"{figures[name]:>16.3f}" for figures in looks))
