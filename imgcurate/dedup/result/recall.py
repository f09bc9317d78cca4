"""Which share of the true pairs was found, estimated from an exact search for a random sample of images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Recall(NamedTuple):
    """An estimate of the share of true pairs that were found.

    Attributes
    ----------
    recall, low, high : float
        The share in the sample, and the ends of its 95 % interval; NaN, 0 and 1 where no image of the sample has a true partner.
    true_pairs, found_pairs, images : int
        Pairs of the sampled images that an exact search finds, those that had been found, and the sampled images.
    """

    recall: float
    low: float
    high: float
    true_pairs: int
    found_pairs: int
    images: int

    def __repr__(self) -> str:
        if not self.true_pairs:
            return f"Recall(no pairs: none of {self.images:,} sampled images has a true partner, so there was nothing to find)"
        return (
            f"Recall(recall={self.recall:.4g}, low={self.low:.4g}, high={self.high:.4g}, true_pairs={self.true_pairs}, "
            f"found_pairs={self.found_pairs}, images={self.images})"
        )


def estimate(true: np.ndarray, found: np.ndarray) -> Recall:
    """Estimate the recall from the pairs of each sampled image; see `Duplicates.recall`.

    Parameters
    ----------
    true, found : numpy.ndarray of shape (images,)
        Partners of each image: all, and those found.

    Examples
    --------
    >>> estimate(np.array([1, 0, 2, 1]), np.array([1, 0, 2, 0])).recall
    0.75
    """
    from scipy.stats import beta

    found = np.minimum(found, true)
    total, hits = int(true.sum()), int(found.sum())
    if not total:
        return Recall(float("nan"), 0.0, 1.0, 0, 0, len(true))
    share = hits / total
    worth = total**2 / int(np.square(true).sum())
    low = float(beta.ppf(0.025, worth * share, worth * (1 - share) + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, worth * share + 1, worth * (1 - share))) if hits < total else 1.0
    return Recall(share, low, high, total, hits, len(true))
