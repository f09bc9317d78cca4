"""How like CLIP's are the embeddings of embeddings.py?

python benchmarks/likeness.py [REAL.npy]      beside 200 real embeddings of CLIP ViT-L/14, or their figures
"""

from __future__ import annotations

import sys

import embeddings
import numpy as np

#: So many rows of CLIP's are at hand, and `look` asks of so many.
SAMPLE = 200
PERCENTS = (1, 5, 25, 50, 75, 95, 99)
DIRECTIONS = (8, 16, 32, 64)
#: `look` of 200 photos of 200 different things, by CLIP ViT-L/14.
CLIP = {
    "cosine, 1 %": 0.356,
    "cosine, 5 %": 0.415,
    "cosine, 25 %": 0.488,
    "cosine, 50 %": 0.542,
    "cosine, 75 %": 0.597,
    "cosine, 95 %": 0.684,
    "cosine, 99 %": 0.743,
    "length of the mean": 0.739,
    "outside 8": 0.826,
    "outside 16": 0.767,
    "outside 32": 0.699,
    "outside 64": 0.612,
}


def look(vectors: np.ndarray, splits: int = 20) -> dict[str, float]:
    """Return what few unit rows look like.

    Parameters
    ----------
    vectors : numpy.ndarray of shape (rows, dimension)
        The figures depend on how many: compare `SAMPLE` rows with as many.
    splits : int

    Returns
    -------
    dict of str to float
        Percentiles of the cosines of all pairs; the length of the mean; "outside 32": which share of the variance
        lies outside of the 32 leading directions, where mean and directions are those of one half of the rows and the
        variance is that of the other half, the mean of some random halves.
    """
    vectors = vectors.astype(np.float64)
    dots = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    found = {f"cosine, {percent} %": float(np.percentile(dots, percent)) for percent in PERCENTS}
    found["length of the mean"] = float(np.linalg.norm(vectors.mean(axis=0)))
    rng = np.random.default_rng(embeddings.SEED)
    outside = np.zeros((splits, len(DIRECTIONS)))
    for split in outside:
        one, other = np.array_split(vectors[rng.permutation(len(vectors))], 2)
        directions = np.linalg.svd(one - one.mean(axis=0), full_matrices=False)[2]
        inside = np.square((other - one.mean(axis=0)) @ directions.T)
        total = np.square(other - one.mean(axis=0)).sum()
        split[:] = [1 - inside[:, :count].sum() / total for count in DIRECTIONS]
    return found | {
        f"outside {count}": float(share) for count, share in zip(DIRECTIONS, outside.mean(axis=0), strict=True)
    }


def samples(made: embeddings.Chunk, count: int) -> list[dict[str, float]]:
    """Return `look` of random samples of `SAMPLE` rows, no two of one object and none a copy."""
    rng = np.random.default_rng(embeddings.SEED)
    originals = np.flatnonzero(made.origin == np.arange(len(made.origin)))
    found = []
    for _ in range(count):
        shuffled = rng.permutation(originals)
        different = np.unique(made.thing[shuffled], return_index=True)[1]
        found.append(look(made.vectors[shuffled[rng.permutation(different)[:SAMPLE]]], splits=4))
    return found


def check(made: embeddings.Chunk, tolerance: float = 0.03) -> dict[str, float]:
    """Return the mean `look` of some samples; raise a ValueError if, at CLIP's length, it is not within `tolerance`."""
    looks = samples(made, 10)
    found = {name: round(float(np.mean([one[name] for one in looks])), 3) for name in CLIP}
    far = [name for name in CLIP if abs(found[name] - CLIP[name]) > tolerance]
    if far and made.vectors.shape[1] == 768:
        raise ValueError(f"these embeddings do not look like CLIP's in {', '.join(far)}: {found}; CLIP's: {CLIP}")
    return found


def likeness(path: str | None = None, dimension: int = 768, count: int = 200) -> None:
    """Print what the made rows look like beside real ones.

    Parameters
    ----------
    path : str, optional
        A ``.npy`` file of `SAMPLE` real embeddings, of images that show different things; scaled to unit length.
        Default: the figures of CLIP ViT-L/14 that stand in `CLIP`.
    dimension : int
    count : int
        How many samples are drawn of the made rows.
    """
    figures = CLIP
    if path:
        real = np.load(path)[:SAMPLE].astype(np.float64)
        figures = look(real / np.linalg.norm(real, axis=1, keepdims=True))
    looks = samples(embeddings.many(3 * embeddings.CHUNK, dimension), count)
    print(f"{'':<20}{'real':>10}{f'made, {dimension}-d':>16}{'5 to 95 % of samples':>26}{'samples below real':>22}")
    for name in CLIP:
        values = np.array([one[name] for one in looks])
        low, high = np.percentile(values, (5, 95))
        print(
            f"{name:<20}{figures[name]:>10.3f}{values.mean():>16.3f}{f'{low:.3f} to {high:.3f}':>26}{(values < figures[name]).mean():>22.0%}"
        )


if __name__ == "__main__":
    likeness(*sys.argv[1:2])
