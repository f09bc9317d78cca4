"""Neighbours: what a search for the nearest images found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import schema, storage
from imgcurate.arguments import check_whole_number
from imgcurate.cluster import interruptible
from imgcurate.dedup.dataframes.ids import arrow_type
from imgcurate.dedup.dataframes.outputs import Result
from imgcurate.dedup.result import recall
from imgcurate.dedup.result.shown import OfImages
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic import ground_truth
from imgcurate.dedup.semantic.normalise import Rows
from imgcurate.nearest import compare

if TYPE_CHECKING:
    from imgcurate.report.page import Page


class Neighbours(OfImages, Result):
    """The nearest images of each image, which stay on the cluster.

    Attributes
    ----------
    k : int
        How many were looked for.
    n_rows, n_compared, n_excluded : int
        Images in the frame; those compared; those not, because of an error or for lack of a vector.
    n_clusters, probes : int
        One cluster: everything was compared.
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
        k: int,
        n_clusters: int,
        probes: int,
        at_once: bool,
        images: Any,
    ) -> None:
        super().__init__(rows.n_rows, rows.n_compared, like=like, id_dtype=id_dtype, id_field=id_field, at_once=at_once)
        self.k, self.n_clusters, self.probes = k, n_clusters, probes
        self._found, self._rows, self._images = found, rows, images

    def __repr__(self) -> str:
        how = "all compared" if self.n_clusters <= 1 else f"in {self.n_clusters:,} clusters, probes={self.probes}"
        lazy = "at once" if self._at_once else "lazy"
        return f"Neighbours({self.n_compared:,} images {how}{self._excluded()}; k={self.k}; see .frame ({lazy}), .recall(), .show() (at once))"

    @property
    def frame(self) -> Any:
        """One row a compared image, lazily where it was not in memory: its id, ``neighbours`` (ids) and ``similarities``, the nearest first."""
        ids = self._id_dtype
        lists = {"neighbours": pa.list_(arrow_type(ids)), "similarities": pa.list_(pa.float32())}
        host = pd.DataFrame({self.id_field: pd.Series([], dtype=ids)}).assign(
            **{name: pd.Series([], dtype=schema.dtype(kind)) for name, kind in lists.items()}
        )
        return self._as_frame(self._found, ["id", *lists], host, "neighbours", by=[self.id_field])

    @interruptible
    def show(
        self,
        n: int = 6,
        *,
        ids: Any = None,
        most: int = 5,
        images: Any = None,
        columns: str | Sequence[str] | None = None,
        size: int = 120,
        seed: int = 0,
        storage_options: storage.Options = None,
    ) -> Page:
        """Show some images, each with those nearest to it, the nearest first. Eager.

        Parameters
        ----------
        n : int, default 6
            How many images, drawn at random.
        ids : an id or sequence of ids, optional
            These images instead, in this order.
        most : int, default 5
            How many of the `k` nearest are shown of each.
        images, columns, size, storage_options
            As for `Duplicates.show`.
        seed : int
            Of the draw.

        Returns
        -------
        Page

        Raises
        ------
        KeyError
            Where an id was not compared, or a column is missing.
        ValueError
            Where an option is out of range, or it is not known where the images lie.
        """
        from imgcurate.report import nearest as page
        from imgcurate.report.pairs import Options

        return page.nearest(self, n, ids, most, seed, Options(images, columns, size, storage_options))

    def recall(self, sample: int = 1000, *, seed: int = 0) -> recall.Recall:
        """Estimate which share of the nearest images was found, by an exact search for those of some images. Eager.

        Parameters
        ----------
        sample : int
            Images drawn; all are where there are no more.
        seed : int
            Of the draw.

        Returns
        -------
        Recall
            As of `Duplicates.recall`; ``true_pairs`` are `k` for each image, or all others where there are not so many, and those found are in its
            list, or as near as the last that should be.
        """
        check_whole_number("sample", sample)
        if not self.n_compared:
            return recall.estimate(np.zeros(0, np.int64), np.zeros(0, np.int64))
        blocks = list(zip(self._rows.blocks, self._rows.offsets, strict=True))
        take, highest, count = (dask.delayed(task) for task in (_sample, _highest, _count))
        drawn = dask.delayed(ground_truth.draw)([take(*block, seed, sample) for block in blocks], sample).persist()
        tops = dask.compute(*[highest(drawn, *block, self.k) for block in blocks])
        wanted = min(self.k, self.n_compared - 1)
        true = np.full(tops[0].shape[0], wanted)
        if not wanted:
            return recall.estimate(true, true)
        least = -np.sort(-np.concatenate(tops, axis=1), axis=1)[:, wanted - 1]
        found = np.sum(dask.compute(*[count(drawn, table, least) for table in self._found]), axis=0)
        return recall.estimate(true, found)


def numbered(rows: Any, first: int) -> Rows:
    """Return a block of rows with their numbers."""
    table = rows.table
    return Rows(table.append_column("row", pa.array(np.arange(first, first + len(table)))), rows.vectors)


def _sample(rows: Any, first: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray, Any]:
    block = numbered(rows, first)
    return ground_truth.sample(block.table, block, seed, size)


def _highest(drawn: tuple[np.ndarray, Any], rows: Any, first: int, k: int) -> np.ndarray:
    """Return the cosines of each sampled image with the nearest of a block, itself excluded: minus infinity where there are fewer than `k`."""
    sampled, matrix = drawn
    found = compare.nearest(matrix, rows.vectors, k + 1)
    found = found.where(np.flatnonzero(found.other + first != sampled[found.row]))
    found = found.where(compare.best(found.row, found.similarity, k))
    starts = np.searchsorted(found.row, np.arange(len(sampled)))
    tops = np.full((len(sampled), k), -np.inf, dtype=np.float32)
    tops[found.row, np.arange(len(found.row)) - starts[found.row]] = found.similarity
    return tops


def _count(drawn: tuple[np.ndarray, Any], table: pa.Table, least: np.ndarray) -> np.ndarray:
    """Count those in the lists of sampled images that are at least so similar."""
    sampled = drawn[0]
    order = np.argsort(sampled)
    rows = table["row"].to_numpy()
    at = np.minimum(np.searchsorted(sampled[order], rows), len(sampled) - 1)
    there = np.flatnonzero(sampled[order][at] == rows)
    counted = np.zeros(len(sampled), dtype=np.int64)
    for position, similarities in zip(there.tolist(), table["similarities"].take(pa.array(there)), strict=True):
        image = order[at[position]]
        counted[image] = (similarities.values.to_numpy() >= least[image]).sum()
    return counted
