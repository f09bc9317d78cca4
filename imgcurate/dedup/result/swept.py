"""What other thresholds than that in force would find: the rule decides again on the pairs that are stored, and nothing is compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Self

import dask
import numpy as np
import pandas as pd
from dask.delayed import Delayed

from imgcurate.cluster import interruptible
from imgcurate.dedup.dataframes.outputs import Result
from imgcurate.dedup.graph import build, rules, sizes
from imgcurate.dedup.result.thresholds import BITS, Kind, check_eps, thresholds_of


class Swept(Result):
    """The thresholds of `Duplicates`, each decided once."""

    eps: float
    min_similarity: float
    rule: rules.Rule
    kind: Kind
    chosen: dict[str, str]
    _graph: build.Graph
    _answers: dict[float, list[Delayed]]

    @property
    def duplicate_ratio(self) -> float:
        """The share of the compared images that go, at once."""
        return self._count([self.eps])[0] / max(self.n_compared, 1)

    def rethreshold(self, eps: float) -> Self:
        """Return the same pairs under another threshold, up to ``1 - min_similarity``; this one stays as it is.

        Parameters
        ----------
        eps : float

        Returns
        -------
        Duplicates

        Raises
        ------
        ValueError
            Where eps is out of range.
        """
        self._check(eps)
        other = object.__new__(type(self))
        chosen = {name: why for name, why in self.chosen.items() if name != "eps"}
        other.__dict__.update(self.__dict__, eps=float(eps), chosen=chosen)
        return other

    @interruptible
    def to_fraction(self, share: float) -> Self:
        """Return the same pairs under the threshold that leaves a share of the images; this one stays as it is. Eager.

        Parameters
        ----------
        share : float
            Which share of `n_rows` may stay at most, above 0 and below 1.

        Returns
        -------
        Duplicates
            Its `eps` is the smallest that leaves no more than that; images that go at the same threshold go together, so that a few fewer may be
            left. `remove` takes it.

        Raises
        ------
        ValueError
            Where `share` is out of range, or all stored pairs leave more.

        Notes
        -----
        The rule in force decides on the whole graph at most 32 times; nothing is compared again. A higher eps may make ``rule="cover"`` keep an image
        more: then it is an eps that leaves no more than `share` while the next smaller one does.

        Examples
        --------
        >>> from imgcurate import semantic_duplicates
        >>> matrix = np.array([[1, 0], [1, 0.1], [0, 1], [0.3, 1]], dtype=np.float32)
        >>> found = semantic_duplicates((["a", "b", "c", "d"], matrix), eps=0.05, keep="id")
        >>> found.to_fraction(0.75).removals()["image_id"].tolist()
        ['b']
        """
        if not isinstance(share, Real) or not 0 < float(share) < 1:
            raise ValueError(f"share={share!r} must be above 0 and below 1: which share of the images may stay")
        # The tolerance undoes what binary fractions add: 0.3 * 10 is 3.
        most = int(float(share) * self.n_rows + 1e-9 * self.n_rows)
        counted: dict[float, int] = {}

        def count(least: float) -> int:
            # Not kept, as answers are that somebody asked for.
            decided = [part.decide(least, self.rule) for part in self._graph.parts]
            counted[least] = sum(dask.compute(*[dask.delayed(len)(table) for table in decided]))
            return counted[least]

        least = sizes.similarity_that_removes(self.n_rows - most, count, self.min_similarity)
        if least is None:
            left = 1 - counted[self.min_similarity] / self.n_rows
            again = {"semantic": "a lower min_similarity", "perceptual": "a higher max_distance"}.get(self.kind)
            raise ValueError(
                f"share={share:g} is not reached: all pairs that are stored, of similarity >= {self.min_similarity:g}, leave {left:.1%} of "
                f"{self.n_rows:,} images; give a higher share{f', or look for duplicates again with {again}' if again else ''}"
            )
        found = self.rethreshold(1 - least)
        found.chosen["eps"] = f"leaves {1 - counted[least] / max(self.n_rows, 1):.1%}"
        return found

    @interruptible
    def sweep(self, eps: float | Sequence[float]) -> pd.DataFrame:
        """Count what other thresholds would remove. Eager.

        Parameters
        ----------
        eps : float or sequence of float
            Each up to ``1 - min_similarity``.

        Returns
        -------
        pandas.DataFrame
            ``eps``, ``removed`` (images) and ``fraction`` (of `n_rows`), one row a threshold in the order given.

        Raises
        ------
        ValueError
            Where an eps is out of range.
        """
        thresholds = thresholds_of(eps)
        removed = self._count(thresholds)
        return pd.DataFrame({"eps": thresholds, "removed": removed, "fraction": removed / max(self.n_rows, 1)})

    def _check(self, eps: Any) -> float:
        check_eps(eps)
        again = f"with min_similarity={1 - eps:g}"
        if self.kind == "perceptual":
            again = f"with max_distance={math.ceil(float(eps) * BITS)} (of hashes, eps is the share of the {BITS} bits that may differ)"
        # As far as a decimal number can say it: 1 - 2 * 0.1 and 0.8 are not one float.
        if 1 - float(eps) < self.min_similarity - 1e-9:
            raise ValueError(
                f"eps={eps:g} asks for pairs of similarity >= {1 - eps:g}, but they were stored down to "
                f"min_similarity={self.min_similarity:g}: give an eps of at most {1 - self.min_similarity:g}, or look for duplicates "
                f"again {again}"
            )
        return float(eps)

    def _count(self, thresholds: Sequence[float]) -> np.ndarray:
        counts = dask.compute(*[[dask.delayed(len)(part) for part in self._matches(value)] for value in thresholds])
        return np.array([sum(parts) for parts in counts], dtype=np.int64)

    def _matches(self, eps: float) -> list[Delayed]:
        """Return the removed images under a threshold, part by part, decided once."""
        eps = self._check(eps)
        if eps not in self._answers:
            self._answers[eps] = self._graph.decide(1 - eps, self.rule)
        return self._answers[eps]
