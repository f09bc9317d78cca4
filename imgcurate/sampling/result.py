"""Representatives: the smaller set that stands for a frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from dask.delayed import Delayed

from imgcurate import schema
from imgcurate.dedup.dataframes.outputs import Result
from imgcurate.dedup.semantic import frame as frames


class Representatives(Result):
    """Images that stand for all, which stay on the cluster.

    Attributes
    ----------
    n : int
        How many they are.
    n_rows, n_compared, n_excluded : int
        Images in the frame; those that could be taken; those that could not, because of an error or for lack of a vector.
    method : str
    n_clusters : int
        Groups that they were taken from.
    id_field : str
    """

    def __init__(
        self,
        found: list[Delayed],
        rows: frames.Frame,
        *,
        like: Any,
        id_dtype: Any,
        id_field: str,
        n: int,
        method: str,
        n_clusters: int,
        at_once: bool,
    ) -> None:
        super().__init__(rows.n_rows, rows.n_compared, like=like, id_dtype=id_dtype, id_field=id_field, at_once=at_once)
        self.n, self.method, self.n_clusters, self._found = n, method, n_clusters, found

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        of = f"{self.n:,} of {self.n_compared:,} images, from {self.n_clusters:,} cluster{'s' * (self.n_clusters != 1)}"
        return f"Representatives({of}{self._excluded()}; {self.method}; see .frame ({'at once' if self._at_once else 'lazy'}))"

    @property
    def frame(self) -> Any:
        """One row an image that was taken, lazily where the frame was not in memory.

        Its id, ``cluster``, and ``rank``: its place, from 0, in the order in which those of its cluster were taken.
        ``frame.merge(found.frame, on="image_id")`` is the smaller set.
        """
        host = pd.DataFrame({self.id_field: pd.Series([], dtype=self._id_dtype)}).assign(
            cluster=pd.Series([], dtype=schema.dtype(schema.TYPES["cluster"], "cluster")),
            rank=pd.Series([], dtype=np.int64),
        )
        return self._as_frame(self._found, ["id", "cluster", "rank"], host, "representatives", by=["cluster", "rank"])
