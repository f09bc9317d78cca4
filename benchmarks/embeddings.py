"""Made embeddings that look like CLIP's, for benchmarks that must run anywhere.

A row is ``normalise(mean + spread * deviation)``:

- ``mean`` is one direction for all rows, of which two coordinates hold the most: CLIP's vectors lie in a narrow cone,
  and so two images that have nothing in common have a cosine of about .54.
- ``deviation`` is ``topic + object + instance``, with weights `TOPIC`, `OBJECT`, `INSTANCE` (of their squares) and
  one covariance: eigenvalues ``(i + SHIFT) ** -DECAY`` in a random rotation. Two images of one object have a cosine
  of about .82.
- ``spread`` is lognormal, drawn an object and an image: rows are nearer to the mean direction or farther from it.
- There are `OBJECTS` objects drawn with probability ``1 / (rank + POPULAR)``: Zipf's law without its peak. The most
  popular object has 0.7 % of the images. Each has one of `TOPICS` topics, drawn in the same way.
- Some rows are near-duplicates ("copies") of another row, at a cosine drawn evenly from a range, in a direction drawn
  from the same covariance: see `Copies`. Few rows have many copies.

Rows are made in chunks, each from its own seed, so that workers make theirs without anything being sent to them. A
deviation is a sum of few rows of a dictionary that all chunks share (the object's, and `TERMS` Gaussian rows for the
image), so that a chunk takes a sparse product, and the original of a copy that lies in another chunk is made alone:
10,000 x 768 in about 0.05 s on one core.

How like they are. likeness.py compares samples of 200 rows, all of different objects, with 200 photos of different
things. The percentiles of the cosines from 1 to 99 % agree to .013, the length of the mean to .003, and the shares of
the variance outside of the 8, 16, 32 and 64 leading directions to .017; of all these only the share outside of 32
(real .699, made .682) is outside of what 90 % of the samples have. They still differ:

- The real directions lie nearer to the coordinates: the 32 coordinates that vary most hold 14 % of the variance, here
  7 %; and the mean has a longer tail of large coordinates.
- The real tails are a little heavier: the nearest two of 200 different things have a cosine of .90, here .84;
  kurtosis is 3.06 and 3.02.
- Nothing is known from 200 photos of different things about two photos of one thing, about how popular things are,
  about how many near-duplicates there are, or beyond the first hundred directions: those are choices.
- Vectors of other lengths than 768 follow the same law with fewer directions; there is nothing real here to compare
  them with.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from scipy import sparse

SEED = 2026
TOPICS, POPULAR_TOPIC = 60, 3
OBJECTS, POPULAR = 20_000, 20
POOL, TERMS = 8192, 4
TOPIC, OBJECT, INSTANCE = 0.4, 0.2, 0.4
SHIFT, DECAY = 0.86, 0.672
SPREAD, SPREAD_OBJECT, SPREAD_IMAGE = 0.919, 0.145, 0.1
LARGE = (0.63, 0.59)
CHUNK = 10_000


class Copies(NamedTuple):
    """Which rows of a chunk are near-duplicates of another row.

    Attributes
    ----------
    share : float
        Of all rows.
    low, high : float
        Their cosines with their originals are drawn evenly from this range.
    here : float
        Which share of them has its original in the same chunk, the others have it in an earlier one.
    """

    share: float = 0.2
    low: float = 0.9
    high: float = 1.0
    here: float = 0.5


class Chunk(NamedTuple):
    """Some rows.

    Attributes
    ----------
    vectors : numpy.ndarray of shape (rows, dimension), float32
        Of unit length.
    origin : numpy.ndarray of shape (rows,), int64
        The number that the original of each has among all rows: its own unless it is a copy.
    cosine : numpy.ndarray of shape (rows,), float32
        Of each with its original.
    thing : numpy.ndarray of shape (rows,), int64
        The object of each.
    """

    vectors: np.ndarray
    origin: np.ndarray
    cosine: np.ndarray
    thing: np.ndarray


class _World(NamedTuple):
    dictionary: np.ndarray
    spread_of: np.ndarray
    cumulative: np.ndarray


class _Drawn(NamedTuple):
    """What the originals of a chunk are made of: numbers among all rows, objects, spreads, terms of the dictionary."""

    at: np.ndarray
    thing: np.ndarray
    spread: np.ndarray
    terms: np.ndarray

    def take(self, chosen: np.ndarray) -> _Drawn:
        return _Drawn(*(column[chosen] for column in self))


def chunk(number: int, dimension: int, rows: int = CHUNK, copies: Copies = Copies()) -> Chunk:  # noqa: B008 - a constant
    """Make one chunk.

    Parameters
    ----------
    number : int
        Which one: chunk i holds rows ``i * rows`` and on of all that are made with the same other arguments.
    dimension : int
    rows : int
    copies : Copies

    Returns
    -------
    Chunk
        In random order.
    """
    rng = np.random.default_rng([SEED, dimension, number, 1])
    n_copies = round(rows * copies.share)
    here = _drawn(number, dimension, rows, n_copies)
    there = _drawn(int(rng.integers(number)), dimension, rows, n_copies) if number else here
    originals = _made(here, dimension)
    vectors, origin = np.empty((rows, dimension), dtype=np.float32), np.empty(rows, dtype=np.int64)
    cosine, thing = np.ones(rows, dtype=np.float32), np.empty(rows, dtype=np.int64)
    places = here.at - number * rows
    vectors[places], origin[places], thing[places] = originals, here.at, here.thing
    left = np.ones(rows, dtype=bool)
    left[places] = False
    places = rng.permutation(np.flatnonzero(left))
    for places_of, drawn in zip(np.split(places, [round(n_copies * copies.here)]), (here, there), strict=True):
        # The square draws few originals often.
        chosen = (len(drawn.at) * rng.random(len(places_of)) ** 2).astype(np.int64)
        sources = originals[chosen] if drawn is here else _made(drawn.take(chosen), dimension)
        towards = rng.standard_normal((len(chosen), 2 * TERMS), dtype=np.float32)
        towards = _combined(towards, rng.integers(POOL, size=towards.shape) + 1 + OBJECTS, dimension)
        cosine[places_of] = rng.uniform(copies.low, copies.high, size=len(chosen))
        vectors[places_of] = _turned(sources, towards, cosine[places_of])
        origin[places_of], thing[places_of] = drawn.at[chosen], drawn.thing[chosen]
    return Chunk(vectors, origin, cosine, thing)


def many(n: int, dimension: int, copies: Copies = Copies()) -> Chunk:  # noqa: B008
    """Make the first `n` rows: whole chunks, or one small one.

    Raises
    ------
    ValueError
        If `n` is neither below nor a multiple of the size of a chunk.
    """
    rows = min(n, CHUNK)
    if n % rows:
        raise ValueError(f"{n} rows are not whole chunks of {rows}")
    chunks = [chunk(number, dimension, rows, copies) for number in range(n // rows)]
    return Chunk(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def even(n: int, dimension: int) -> np.ndarray:
    """Make unit rows that look like nothing: random directions, a fifth of them near-duplicates of another row.

    What no method can take advantage of.
    """
    rng = np.random.default_rng([SEED, dimension])
    vectors = _normalised(rng.standard_normal((n, dimension), dtype=np.float32))
    order = rng.permutation(n)
    copies, originals = np.split(order, [round(n * Copies().share)])
    sources = vectors[rng.choice(originals, size=len(copies))]
    cosine = rng.uniform(Copies().low, Copies().high, size=len(copies)).astype(np.float32)
    vectors[copies] = _turned(sources, rng.standard_normal(sources.shape, dtype=np.float32), cosine)
    return vectors


@functools.lru_cache(maxsize=2)
def _world(dimension: int) -> _World:
    """What all chunks share. Rows of the dictionary: the mean, the objects, the pool of which instances are made."""
    rng = np.random.default_rng([SEED, dimension])
    mean = rng.standard_normal(dimension)
    large = rng.choice(dimension, size=len(LARGE), replace=False)
    mean[large] = 0
    mean *= np.sqrt(1 - np.square(LARGE).sum()) / np.linalg.norm(mean)
    mean[large] = LARGE
    rotation = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    eigenvalues = (np.arange(dimension) + SHIFT) ** -DECAY
    basis = (np.sqrt(eigenvalues / eigenvalues.sum())[:, None] * rotation).astype(np.float32)
    topics = rng.standard_normal((TOPICS, dimension), dtype=np.float32)
    topic_of = rng.choice(TOPICS, size=OBJECTS, p=_zipf(TOPICS, POPULAR_TOPIC))
    dictionary = np.empty((1 + OBJECTS + POOL, dimension), dtype=np.float32)
    dictionary[0] = mean
    rng.standard_normal(out=dictionary[1:], dtype=np.float32)
    objects, pool = dictionary[1 : 1 + OBJECTS], dictionary[1 + OBJECTS :]
    objects *= np.float32(OBJECT**0.5)
    objects += np.float32(TOPIC**0.5) * topics[topic_of]
    pool *= np.float32(INSTANCE**0.5)
    for start in range(1, len(dictionary), 4096):  # in blocks: no second dictionary in memory
        dictionary[start : start + 4096] = dictionary[start : start + 4096] @ basis
    spread_of = SPREAD * np.exp(SPREAD_OBJECT * rng.standard_normal(OBJECTS))
    return _World(dictionary, spread_of, np.cumsum(_zipf(OBJECTS, POPULAR)))


def _zipf(count: int, flat: float) -> np.ndarray:
    popularity = 1 / (np.arange(count) + 1.0 + flat)
    return popularity / popularity.sum()


def _drawn(number: int, dimension: int, rows: int, n_copies: int) -> _Drawn:
    """Draw the rows of a chunk that are no copies."""
    world = _world(dimension)
    rng = np.random.default_rng([SEED, dimension, number, 0])
    count = rows - n_copies
    at = np.sort(rng.choice(rows, size=count, replace=False)) + number * rows
    thing = np.searchsorted(world.cumulative, rng.random(count) * world.cumulative[-1])
    spread = world.spread_of[thing] * np.exp(SPREAD_IMAGE * rng.standard_normal(count))
    return _Drawn(at, thing, spread, rng.integers(POOL, size=(count, TERMS)))


def _made(drawn: _Drawn, dimension: int) -> np.ndarray:
    count = len(drawn.at)
    weights = np.empty((count, 2 + TERMS), dtype=np.float32)
    weights[:, 0], weights[:, 1] = 1, drawn.spread
    weights[:, 2:] = drawn.spread[:, None] * TERMS**-0.5
    columns = np.column_stack([np.zeros(count, dtype=np.int64), 1 + drawn.thing, 1 + OBJECTS + drawn.terms])
    return _normalised(_combined(weights, columns, dimension))


def _combined(weights: np.ndarray, columns: np.ndarray, dimension: int) -> np.ndarray:
    """Return sums of rows of the dictionary."""
    dictionary = _world(dimension).dictionary
    starts = np.arange(0, weights.size + 1, weights.shape[1])
    chosen = sparse.csr_array((weights.ravel(), columns.ravel(), starts), shape=(len(weights), len(dictionary)))
    return chosen @ dictionary


def _turned(sources: np.ndarray, towards: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """Turn each row in a direction, by the angle that has its `cosine`."""
    away = _normalised(towards - np.einsum("ij,ij->i", towards, sources)[:, None] * sources)
    return _normalised(cosine[:, None] * sources + np.sqrt(1 - cosine**2)[:, None] * away)


def _normalised(rows: np.ndarray) -> np.ndarray:
    """Scale rows to unit length where they are."""
    rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return rows
