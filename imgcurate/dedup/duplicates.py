"""Duplicates: what deduplication found, and what a person asks next."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import schema, vectors
from imgcurate.dedup import buckets, rank


class Duplicates:
    """What `semantic_duplicates` found. Frames are lazy views of matches that the cluster computes once.

    Attributes
    ----------
    pairs : Dask DataFrame
        One row a removed image: its id, ``duplicate_of`` (``rule="cover"``: the nearest kept image; ``"pointwise"``: the nearest
        better-ranked one), ``similarity`` (their cosine) and ``cluster``.
    assignments : Dask DataFrame
        One row a compared image: its id, ``cluster`` and ``centroid_distance`` (1 - cosine).
    n_rows, n_compared, n_excluded : int
        Images in the frame; those compared; those not, because of an error or for lack of a usable vector.
    n_clusters : int
    eps : float
    rule, keep
        As given.
    id_field : str
        The name of the id column in all frames.
    """

    def __init__(
        self,
        grouped: list[Delayed],
        *,
        like: Any,
        id_field: str,
        n_rows: int,
        n_compared: int,
        n_clusters: int,
        eps: float,
        rule: buckets.Rule,
        keep: rank.Keep,
    ) -> None:
        self.n_rows, self.n_compared, self.n_excluded = n_rows, n_compared, n_rows - n_compared
        self.n_clusters, self.eps, self.rule, self.keep = n_clusters, eps, rule, keep
        self.id_field = id_field
        self._like, self._id_dtype = like, _id_dtype(like[id_field])
        self._buckets = grouped
        self._matches = self._match(eps)

    def __repr__(self) -> str:
        excluded = f", {self.n_excluded:,} excluded" if self.n_excluded else ""
        clusters = "1 cluster" if self.n_clusters == 1 else f"{self.n_clusters:,} clusters"
        return (
            f"Duplicates({self.n_compared:,} images compared in {clusters}{excluded}; eps={self.eps}, rule={self.rule!r}, "
            f"keep={self.keep!r}; see .pairs, .removals(eps), .sweep([eps, ...]), .assignments)"
        )

    @property
    def pairs(self) -> Any:
        return self._frame(self._matches, ["id", "duplicate_of", "similarity", "cluster"], self.eps)

    @property
    def assignments(self) -> Any:
        return self._frame(self._matches, ["id", "cluster", "centroid_distance"], None)

    def removals(self, eps: float | None = None) -> Any:
        """Return the ids of the images to remove.

        Parameters
        ----------
        eps : float, optional
            Another threshold than that of the call. ``rule="pointwise"`` filters what is stored; ``rule="cover"`` runs the
            join again inside the same clusters.

        Returns
        -------
        Dask DataFrame
            One column, `id_field`.

        Raises
        ------
        ValueError
            Where eps is not between 0 and 2.
        """
        if eps is None:
            eps = self.eps
        check_eps(eps)
        matches = self._matches if eps == self.eps or self.rule == "pointwise" else self._match(eps)
        return self._frame(matches, ["id"], eps)

    def sweep(self, eps: Sequence[float]) -> pd.DataFrame:
        """Count what other thresholds would remove. Eager.

        Parameters
        ----------
        eps : sequence of float

        Returns
        -------
        pandas.DataFrame
            ``eps``, ``removed`` (images) and ``fraction`` (of `n_rows`), one row a threshold in the order given.

        Raises
        ------
        ValueError
            Where an eps is not between 0 and 2.
        """
        thresholds = [float(value) for value in eps]
        for value in thresholds:
            check_eps(value)
        sources = self._matches if self.rule == "pointwise" else self._buckets
        counts = dask.compute(*[dask.delayed(buckets.count)(source, thresholds) for source in sources])
        removed = np.sum(counts, axis=0, dtype=np.int64) if counts else np.zeros(len(thresholds), dtype=np.int64)
        return pd.DataFrame({"eps": thresholds, "removed": removed, "fraction": removed / max(self.n_rows, 1)})

    def _match(self, eps: float) -> list[Delayed]:
        if not self._buckets:
            nothing = buckets.matches_table([], [], [], [], pa.array([], pa.float32()), [])
            return [dask.delayed(nothing)]
        return list(dask.persist(*[dask.delayed(buckets.match)(bucket, eps, self.rule) for bucket in self._buckets]))

    def _frame(self, matches: list[Delayed], columns: list[str], eps: float | None) -> Any:
        id_type = {"id": self._id_dtype, "duplicate_of": self._id_dtype}
        meta = pd.DataFrame(
            {
                self.id_field if name == "id" else name: pd.Series(
                    [], dtype=id_type.get(name) or pd.ArrowDtype(schema.TYPES[name])
                )
                for name in columns
            }
        )
        meta = vectors.from_pandas(meta, self._like)
        parts = [dask.delayed(buckets.view)(found, columns, eps, meta, self._id_dtype) for found in matches]
        return dd.from_delayed(parts, meta=meta, verify_meta=False)


def check_eps(eps: Any) -> None:
    """Raise a ValueError where `eps` is no threshold."""
    if not isinstance(eps, Real) or not 0 < float(eps) < 2:
        raise ValueError(
            f"eps={eps!r} must be above 0 and below 2: images are duplicates where their cosine is at least 1 - eps; "
            "use 1e-6 for vectors equal up to rounding"
        )


def _id_dtype(column: Any) -> Any:
    """Return the type that ids have in the results: that of the frame's column on the host, plain where it is categorical."""
    dtype = vectors.to_pandas(column.to_frame())[column.name].dtype
    if isinstance(dtype, pd.ArrowDtype) and pa.types.is_dictionary(dtype.pyarrow_dtype):
        return pd.ArrowDtype(dtype.pyarrow_dtype.value_type)
    if not isinstance(dtype, pd.CategoricalDtype):
        return dtype
    return pd.ArrowDtype(pa.int64() if pd.api.types.is_integer_dtype(dtype.categories.dtype) else pa.string())
