"""Duplicates: what deduplication found, and what a person asks next."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import schema, storage
from imgcurate.cluster import interruptible
from imgcurate.dedup.dataframes.ids import arrow_id_dtype, arrow_type
from imgcurate.dedup.dataframes.outputs import on_host
from imgcurate.dedup.graph import build, nodes, rank, rules
from imgcurate.dedup.result import saved
from imgcurate.dedup.result.recall import Recall
from imgcurate.dedup.result.shown import Shown, with_places
from imgcurate.dedup.result.swept import Swept
from imgcurate.dedup.result.thresholds import BITS, Kind
from imgcurate.dedup.work.mapped import Folder
from imgcurate.printable import plural

_SAVED = (
    "id_field", "n_rows", "n_compared", "n_clusters", "eps", "min_similarity", "rule", "keep", "kind", "chosen",
)  # fmt: skip


class Duplicates(Swept, Shown):
    """What deduplication found: a graph of similar pairs that stays on the cluster, and what a rule says of it.

    Lazy, as Dask DataFrames: `pairs` (or `removed`), `selected`, `groups`, `edges`, `assignments` and `removals`. Where what was compared lay in
    memory, as a pandas or cuDF frame or as ``(ids, matrix)``, these are pandas or cuDF frames, computed when they are asked for. At once:
    `sweep`, `to_fraction`, `least_similar`, `duplicate_ratio`, `recall`; and, to look at, `show`, `show_groups` and `plot_sweep`.

    Attributes
    ----------
    n_rows, n_compared, n_excluded : int
        Images in the frame; those compared; those not, because of an error or for lack of what is compared.
    n_clusters, n_pairs : int
    eps, min_similarity : float
        The threshold in force, and down to which similarity pairs are stored. Of perceptual hashes, a similarity is ``1 - distance / 64``.
    rule, keep
        The rule and the order in force.
    chosen : dict of str to str
        Of ``"eps"`` and ``"keep"``, why they are not what was asked for, or where they were taken from.
    id_field : str
        The name of the id column in all frames.
    kind : {"semantic", "exact", "perceptual"}
    """

    def __init__(
        self,
        found: build.Graph,
        *,
        like: Any,
        id_dtype: Any,
        id_field: str,
        n_rows: int,
        n_compared: int,
        n_clusters: int,
        eps: float,
        min_similarity: float,
        rule: rules.Rule,
        keep: rank.Keep,
        kind: Kind = "semantic",
        chosen: Mapping[str, str] | None = None,
        at_once: bool = False,
        recall: Callable[[Duplicates, int, int], Recall] | None = None,
        folder: Folder | None = None,
        images: Any = None,
    ) -> None:
        super().__init__(n_rows, n_compared, like=like, id_dtype=id_dtype, id_field=id_field, at_once=at_once)
        self.n_clusters, self.n_pairs = n_clusters, found.n_pairs + found.n_copies
        self.eps, self.min_similarity, self.rule, self.keep = eps, min_similarity, rule, keep
        self.kind, self.chosen = kind, {name: why for name, why in (chosen or {}).items() if why}
        self._graph, self._folder, self._recall = found, folder, recall
        self._images = with_places(images)
        self._answers: dict[float, list[Delayed]] = {}

    def __repr__(self) -> str:
        through = f" through files in {self._folder.path}" if self._folder else ""
        clusters = "1 cluster" if self.n_clusters == 1 else f"{self.n_clusters:,} clusters"
        clusters = f" in {clusters}" if self.kind == "semantic" else ""
        said = {"rule": repr(self.rule), "keep": repr(self.keep)}
        if self.kind == "semantic":
            what = f"of similarity >= {self.min_similarity:g}"
            said = {"eps": f"{self.eps:g}"} | said
        elif self.kind == "perceptual":
            what = f"whose hashes differ in at most {round((1 - self.min_similarity) * BITS)} of {BITS} bits"
            said = {"max_distance": str(round(self.eps * BITS))} | said
        else:
            what = "of equal bytes"
        options = [f"{name}={value}{self._why(name)}" for name, value in said.items()]
        lazy = "at once" if self._at_once else "lazy"
        return (
            f"Duplicates({self.n_compared:,} images compared{clusters}{through}{self._excluded()}; {plural(self.n_pairs, 'pair')} {what}; {', '.join(options)}; "
            f"see .pairs, .groups, .removals() ({lazy}), .sweep([eps, ...]), .least_similar(), .show(){', .recall()' * (self._recall is not None)} (at once))"
        )

    def _why(self, name: str) -> str:
        return f" ({self.chosen[name]})" if name in self.chosen else ""

    @property
    def pairs(self) -> dd.DataFrame:
        """One row a removed image, lazily.

        Its id, ``duplicate_of`` (``rule="cover"``: the nearest kept image that ranks higher; ``"pointwise"``: the nearest that ranks higher, kept or
        not; ``"component"``: the best of the connected component), ``similarity`` (of the two; null where a component's best was not compared
        with it) and ``cluster``.
        """
        return self._frame(self._matches(self.eps), ["id", "duplicate_of", "similarity", "cluster"])

    @property
    def removed(self) -> dd.DataFrame:
        """The same as `pairs`."""
        return self.pairs

    @property
    def selected(self) -> dd.DataFrame:
        """One row a compared image that stays, lazily: its id."""
        return self._frame(self._graph.left(1 - self.eps, self.rule, self._matches(self.eps)), ["id"])

    @property
    def groups(self) -> dd.DataFrame:
        """One row a kept image that has duplicates, lazily, the largest group of each partition first.

        Its id, how many were ``removed``, ``duplicates`` (their ids) and the lowest ``similarity`` among them.
        """
        grouped = [dask.delayed(nodes.groups)(removed) for removed in self._matches(self.eps)]
        return self._frame(grouped, ["id", "removed", "duplicates", "similarity"])

    @property
    def edges(self) -> dd.DataFrame:
        """Every stored pair, lazily, whatever the rule and eps.

        ``id``, ``other_id`` (the better-ranked of the two) and ``similarity``. Of images that are equal bit by bit in what was compared, one has the
        pairs, and each other has one pair, with that one.
        """
        parts = self._graph.parts
        named = [dask.delayed(nodes.edge_table)(edges, part.nodes) for part in parts for edges in part.edges]
        copies = [dask.delayed(nodes.copy_table)(part.nodes) for part in parts]
        return self._frame([*named, *copies], ["id", "other_id", "similarity"])

    @property
    def assignments(self) -> dd.DataFrame:
        """One row a compared image, lazily: its id, ``cluster`` and ``centroid_distance`` (1 - cosine); by cluster, best-ranked first."""
        n_parts = max(1, min(self.n_clusters, self.n_compared // 2**20))
        tables = self._graph.tables
        parts = [
            dask.delayed(nodes.assigned)(tables, self.keep, part, n_parts) for part in range(n_parts if tables else 0)
        ]
        return self._frame(parts, ["id", "cluster", "distance"])

    def removals(self, eps: float | None = None) -> dd.DataFrame:
        """Return the ids of the images to remove, lazily.

        Parameters
        ----------
        eps : float, optional
            Another threshold than that in force, up to ``1 - min_similarity``. Nothing is compared again.

        Returns
        -------
        Dask DataFrame
            One column, `id_field`. As with the other frames, computed where what was compared lay in memory.

        Raises
        ------
        ValueError
            Where eps is out of range.
        """
        return self._frame(self._matches(self.eps if eps is None else eps), ["id"])

    @interruptible
    def least_similar(self, n: int = 10, eps: float | None = None) -> pd.DataFrame:
        """Return the removed images that are least like what they duplicate: the ones to look at before choosing a threshold. Eager.

        Parameters
        ----------
        n : int
        eps : float, optional
            Around another threshold than that in force.

        Returns
        -------
        pandas.DataFrame
            Rows of `pairs`, least similar first.
        """
        removed = dask.delayed(nodes.least_similar)(self._matches(self.eps if eps is None else eps), n)
        columns = ["id", "duplicate_of", "similarity", "cluster"]
        return on_host(removed.compute(), columns, self._empty(columns))

    @interruptible
    def recall(self, sample: int = 1000, *, seed: int = 0) -> Recall:
        """Estimate which share of the true pairs was found, by an exact search for the pairs of some images. Eager.

        Parameters
        ----------
        sample : int
            Images drawn; all are where there are no more.
        seed : int
            Of the draw.

        Returns
        -------
        Recall
            ``recall`` with ``low`` and ``high``, the ends of its 95 % interval; ``true_pairs``, ``found_pairs`` and ``images``, the counts it
            comes from. Pairs of a cosine of at least ``1 - eps`` count.

        Raises
        ------
        ValueError
            Where there are no vectors to search, as after `load`.

        Notes
        -----
        The interval is that of Clopper and Pearson (1934) for as many independent pairs as the drawn ones are worth: those of one
        image may be found or lost together, so that of ``t_i`` true pairs of image i there are ``(sum t_i)^2 / sum t_i^2`` (Kish, 1965).
        """
        if self._recall is None:
            raise ValueError("recall() searches the vectors, which only what found these duplicates has; ask it there")
        return self._recall(self, sample, seed)

    @interruptible
    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, storage_options: storage.Options = None
    ) -> None:
        """Write all pairs as Parquet. Eager.

        Parameters
        ----------
        path : str or path
            A folder; gets ``nodes.parquet`` (images with pairs, in rank order; of several million pairs also ``nodes.00001.parquet`` and so on),
            ``edges.*.parquet`` (pairs of their positions) and ``images.*.parquet`` (all compared images), all or nothing.
        overwrite : bool, default False
            Replace the Parquet files that are there.
        storage_options : dict, optional
            For the fsspec filesystem.

        Raises
        ------
        FileExistsError
            Where Parquet files are there and `overwrite` is false.
        """
        known = {name: getattr(self, name) for name in _SAVED}
        saved.write(self._graph, known, path, overwrite, storage_options)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, storage_options: storage.Options = None) -> Duplicates:
        """Read what `save` wrote. Everything but `recall` works as before.

        Parameters
        ----------
        path : str or path
        storage_options : dict, optional

        Returns
        -------
        Duplicates

        Raises
        ------
        FileNotFoundError
            Where there is no such folder.
        ValueError
            Where it holds something else, or a file is missing, damaged or says what cannot be; of what is read later when a frame is computed.
        """
        found, known, id_type = saved.read(path, _SAVED, storage_options)
        if not isinstance(known["keep"], str):
            known["keep"] = [(name, order) for name, order in known["keep"]]
        return cls(found, like=pd.DataFrame(), id_dtype=arrow_id_dtype(id_type), **known)

    def _frame(self, tables: list[Delayed], columns: list[str]) -> Any:
        return self._as_frame(tables, columns, self._empty(columns), "duplicates")

    def _empty(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return a frame of no rows, on the host, of what a user sees of some columns of a table."""
        ids = self._id_dtype
        kinds = dict.fromkeys(("id", "duplicate_of", "other_id"), ids)
        kinds |= {"removed": np.dtype("int64"), "duplicates": schema.dtype(pa.list_(arrow_type(ids)))}
        names = {"id": self.id_field, "distance": "centroid_distance"}
        named = {names.get(name, name): kinds.get(name) for name in columns}
        known = schema.empty(name for name, kind in named.items() if kind is None)
        return pd.DataFrame(
            {name: known[name] if kind is None else pd.Series([], dtype=kind) for name, kind in named.items()}
        )
