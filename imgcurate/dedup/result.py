"""Duplicates: what deduplication found, and what a person asks next."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from dask.delayed import Delayed

from imgcurate import schema, storage, vectors
from imgcurate.dedup.graph import build, nodes, rank, rules
from imgcurate.dedup.mapped import Folder
from imgcurate.dedup.recall import Recall

_FORMAT = "imgcurate duplicates 2"
_SAVED = ("id_field", "n_rows", "n_compared", "n_clusters", "eps", "min_similarity", "rule", "keep")


class Duplicates:
    """What deduplication found. Frames are lazy views of a graph of similar pairs that stays on the cluster.

    Attributes
    ----------
    pairs, removed : Dask DataFrame
        One row a removed image: its id, ``duplicate_of`` (``rule="cover"``: the nearest kept image that ranks higher; ``"pointwise"``: the
        nearest that ranks higher, kept or not; ``"component"``: the best of the connected component), ``similarity`` (their cosine; null
        where a component's best was not compared with it) and ``cluster``.
    selected : Dask DataFrame
        One row a compared image that stays: its id.
    groups : Dask DataFrame
        One row a kept image that has duplicates, the largest group of each partition first: its id, how many were ``removed``, ``duplicates`` (their ids) and
        the lowest ``similarity`` among them.
    edges : Dask DataFrame
        Every stored pair, whatever the rule and eps: ``id``, ``other_id`` (the better-ranked of the two), ``similarity``. Of images whose
        vectors are equal bit by bit, one has the pairs, and each other has one pair, with that one.
    assignments : Dask DataFrame
        One row a compared image: its id, ``cluster`` and ``centroid_distance`` (1 - cosine); by cluster, best-ranked first.
    n_rows, n_compared, n_excluded : int
        Images in the frame; those compared; those not, because of an error or for lack of a usable vector.
    n_clusters, n_pairs : int
    eps, min_similarity : float
        The threshold in force, and down to which cosine pairs are stored.
    rule, keep
        As given.
    id_field : str
        The name of the id column in all frames.
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
        recall: Callable[[Duplicates, int, int], Recall] | None = None,
        folder: Folder | None = None,
    ) -> None:
        self.n_rows, self.n_compared, self.n_excluded = n_rows, n_compared, n_rows - n_compared
        self.n_clusters, self.n_pairs = n_clusters, found.n_pairs + found.n_copies
        self.eps, self.min_similarity, self.rule, self.keep = eps, min_similarity, rule, keep
        self.id_field, self._folder = id_field, folder
        self._graph, self._like, self._id_dtype, self._recall = found, like, id_dtype, recall
        self._answers: dict[float, list[Delayed]] = {}

    def __repr__(self) -> str:
        excluded = f", {self.n_excluded:,} excluded" if self.n_excluded else ""
        through = f" through files in {self._folder.path}" if self._folder else ""
        clusters = "1 cluster" if self.n_clusters == 1 else f"{self.n_clusters:,} clusters"
        return (
            f"Duplicates({self.n_compared:,} images compared in {clusters}{through}{excluded}; {self.n_pairs:,} pairs of similarity >= "
            f"{self.min_similarity:g}; eps={self.eps:g}, rule={self.rule!r}, keep={self.keep!r}; "
            "see .pairs, .groups, .removals(eps), .sweep([eps, ...]), .recall())"
        )

    @property
    def pairs(self) -> dd.DataFrame:
        return self._frame(self._matches(self.eps), ["id", "duplicate_of", "similarity", "cluster"])

    @property
    def removed(self) -> dd.DataFrame:
        return self.pairs

    @property
    def selected(self) -> dd.DataFrame:
        removed = dask.delayed(nodes.rows_of)(self._matches(self.eps))
        return self._frame([dask.delayed(nodes.without)(table, removed) for table in self._graph.tables], ["id"])

    @property
    def groups(self) -> dd.DataFrame:
        grouped = [dask.delayed(nodes.groups)(removed) for removed in self._matches(self.eps)]
        return self._frame(grouped, ["id", "removed", "duplicates", "similarity"])

    @property
    def edges(self) -> dd.DataFrame:
        parts = self._graph.parts
        named = [dask.delayed(nodes.edge_table)(edges, part.nodes) for part in parts for edges in part.edges]
        copies = [dask.delayed(nodes.copy_table)(part.nodes) for part in parts]
        return self._frame([*named, *copies], ["id", "other_id", "similarity"])

    @property
    def assignments(self) -> dd.DataFrame:
        n_parts = max(1, min(self.n_clusters, self.n_compared // 2**20))
        tables = self._graph.tables
        parts = [
            dask.delayed(nodes.assigned)(tables, self.keep, part, n_parts) for part in range(n_parts if tables else 0)
        ]
        return self._frame(parts, ["id", "cluster", "distance"])

    @property
    def duplicate_ratio(self) -> float:
        """The share of the compared images that go. Eager."""
        return self._count([self.eps])[0] / max(self.n_compared, 1)

    def removals(self, eps: float | None = None) -> dd.DataFrame:
        """Return the ids of the images to remove.

        Parameters
        ----------
        eps : float, optional
            Another threshold than that in force, up to ``1 - min_similarity``. Nothing is compared again.

        Returns
        -------
        Dask DataFrame
            One column, `id_field`.

        Raises
        ------
        ValueError
            Where eps is out of range.
        """
        return self._frame(self._matches(self.eps if eps is None else eps), ["id"])

    def rethreshold(self, eps: float) -> Duplicates:
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
        other = object.__new__(Duplicates)
        other.__dict__.update(self.__dict__, eps=float(eps))
        return other

    def sweep(self, eps: Sequence[float]) -> pd.DataFrame:
        """Count what other thresholds would remove. Eager.

        Parameters
        ----------
        eps : sequence of float
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
        thresholds = [float(value) for value in eps]
        removed = self._count(thresholds)
        return pd.DataFrame({"eps": thresholds, "removed": removed, "fraction": removed / max(self.n_rows, 1)})

    def least_similar(self, n: int = 10, eps: float | None = None) -> dd.DataFrame:
        """Return the removed images that are least like what they duplicate: the ones to look at before choosing a threshold.

        Parameters
        ----------
        n : int
        eps : float, optional
            Around another threshold than that in force.

        Returns
        -------
        Dask DataFrame
            Rows of `pairs`, least similar first.
        """
        removed = self._matches(self.eps if eps is None else eps)
        return self._frame(
            [dask.delayed(nodes.least_similar)(removed, n)], ["id", "duplicate_of", "similarity", "cluster"]
        )

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
        graph = self._graph
        known.update(format=_FORMAT, n_pairs=graph.n_pairs, n_copies=graph.n_copies)
        with storage.staged_folder(path, ".parquet", overwrite=overwrite, storage_options=storage_options) as folder:
            write, table = dask.delayed(storage.write_parquet_table), dask.delayed(nodes.table_of)
            tasks = [
                write(table(t), f"{folder}/images.{n:05d}.parquet", storage_options) for n, t in enumerate(graph.tables)
            ]
            # The nodes last, because without them there is nothing to load: on a store, files are seen as they are written.
            last = []
            for number, part in enumerate(graph.parts):
                ranked = dask.delayed(_node_table)(part.nodes, json.dumps(known))
                last.append(write(ranked, f"{folder}/{_nodes_file(number)}", storage_options))
                for at, edges in enumerate(part.edges):
                    name = f"edges.{number:05d}.{at:05d}.parquet"
                    tasks.append(write(dask.delayed(_plain_edges)(edges), f"{folder}/{name}", storage_options))
            dask.compute(*tasks)
            dask.compute(*last[1:])
            dask.compute(*last[:1])

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
            Where it holds something else.
        """
        files = storage.expand(path, (".parquet",), storage_options)
        of = {
            name: [file for file in files if file.rpartition("/")[2].startswith(name)]
            for name in ("nodes", "edges", "images")
        }
        first = [file for file in of["nodes"] if file.rpartition("/")[2] == _nodes_file(0)]
        if not first:
            raise ValueError(f"{os.fspath(path)!r} holds no nodes.parquet: it was not written by Duplicates.save")
        kinds = _read_schema(first[0], storage_options)
        known = json.loads((kinds.metadata or {}).get(b"imgcurate", b"{}"))
        if known.get("format") != _FORMAT:
            raise ValueError(f"{os.fspath(path)!r} was not written by this version's Duplicates.save")
        parts = []
        for number in range(len(of["nodes"])):
            folder = first[0].rpartition("/")[0]
            ranked = dask.delayed(_read_nodes)(f"{folder}/{_nodes_file(number)}", storage_options)
            mine = [file for file in of["edges"] if file.rpartition("/")[2].startswith(f"edges.{number:05d}.")]
            edges = [dask.delayed(_read_edges)(file, storage_options) for file in mine]
            parts.append(build.Part(ranked, edges, in_rounds=len(edges) > 1))
        tables = [dask.delayed(storage.read_parquet_table)(file, None, storage_options) for file in of["images"]]
        found = build.Graph(tables, parts, known["n_pairs"], known["n_copies"])
        keep = known["keep"] if isinstance(known["keep"], str) else [(name, order) for name, order in known["keep"]]
        known = {name: known[name] for name in _SAVED} | {"keep": keep}
        return cls(found, like=pd.DataFrame(), id_dtype=_arrow_id_dtype(kinds.field("id").type), **known)

    def _check(self, eps: Any) -> float:
        check_eps(eps)
        # As far as a decimal number can say it: 1 - 2 * 0.1 and 0.8 are not one float.
        if 1 - float(eps) < self.min_similarity - 1e-9:
            raise ValueError(
                f"eps={eps:g} asks for pairs of similarity >= {1 - eps:g}, but they were stored down to "
                f"min_similarity={self.min_similarity:g}: give an eps of at most {1 - self.min_similarity:g}, or look for duplicates "
                f"again with min_similarity={1 - eps:g}"
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

    def _frame(self, tables: list[Delayed], columns: list[str]) -> Any:
        kinds = {"id": self._id_dtype, "duplicate_of": self._id_dtype, "other_id": self._id_dtype}
        kinds["removed"] = np.dtype("int64")
        kinds["duplicates"] = schema.dtype(pa.list_(_arrow_type(self._id_dtype)))
        names = {"id": self.id_field, "distance": "centroid_distance"}
        named = {names.get(name, name): kinds.get(name) for name in columns}
        known = schema.empty(name for name, kind in named.items() if kind is None)
        meta = pd.DataFrame(
            {name: known[name] if kind is None else pd.Series([], dtype=kind) for name, kind in named.items()}
        )
        like = vectors.from_pandas(meta, self._like)
        parts = [dask.delayed(_view)(table, columns, meta, like) for table in tables] or [dask.delayed(like)]
        return dd.from_delayed(parts, meta=like, verify_meta=False, prefix=_Prefix(self))


def check_eps(eps: Any) -> None:
    """Raise a ValueError where `eps` is no threshold."""
    if not isinstance(eps, Real) or not 0 < float(eps) < 2:
        raise ValueError(
            f"eps={eps!r} must be above 0 and below 2: images are duplicates where their cosine is at least 1 - eps; "
            "use 1e-6 for vectors equal up to rounding"
        )


def id_dtype(column: Any) -> Any:
    """Return the type that ids have in the results: that of the frame's column on the host, plain where it is categorical."""
    dtype = vectors.to_pandas(column).dtype
    if isinstance(dtype, pd.ArrowDtype) and pa.types.is_dictionary(dtype.pyarrow_dtype):
        return schema.dtype(dtype.pyarrow_dtype.value_type)
    if not isinstance(dtype, pd.CategoricalDtype):
        return dtype
    return dtype.categories.dtype if pd.api.types.is_integer_dtype(dtype.categories.dtype) else schema.TEXT


class _Prefix(str):
    """Of a frame's keys; keeps the result, and with it what lies on the cluster or in a temporary folder, for as long as the frame is there.

    Dask's graphs name what was persisted and do not hold it, and of all that a frame is made of this is what stays in this process.
    """

    def __new__(cls, result: Duplicates) -> _Prefix:
        self = super().__new__(cls, "duplicates")
        self._result = result
        return self

    _result: Duplicates

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def _view(table: pa.Table, columns: Sequence[str], meta: pd.DataFrame, like: Any) -> Any:
    """Return columns of a table as a partition on the backend of `like`, with the names and types of `meta`."""
    part = schema.to_pandas(table.select(list(columns)).rename_columns(list(meta.columns)))
    return vectors.from_pandas(part.astype(dict(meta.dtypes)), like)


def _arrow_type(dtype: Any) -> pa.DataType:
    if isinstance(dtype, pd.ArrowDtype):
        return dtype.pyarrow_dtype
    return pa.int64() if pd.api.types.is_integer_dtype(dtype) else pa.string()


def _arrow_id_dtype(kind: pa.DataType) -> Any:
    return np.dtype(kind.to_pandas_dtype()) if pa.types.is_integer(kind) else schema.dtype(kind)


def _node_table(ranked: nodes.Nodes, known: str) -> pa.Table:
    known = json.dumps(json.loads(known) | {"n_fixed": ranked.n_fixed})
    return ranked.table.replace_schema_metadata({"imgcurate": known})


def _nodes_file(number: int) -> str:
    return f"nodes.{number:05d}.parquet" if number else "nodes.parquet"


def _read_schema(url: str, storage_options: storage.Options) -> pa.Schema:
    with storage.open_input(url, storage_options) as file:
        return pq.read_schema(file)


def _read_nodes(url: str, storage_options: storage.Options) -> nodes.Nodes:
    table = storage.read_parquet_table(url, None, storage_options)
    leader = table["leader"].to_numpy()
    copies = np.flatnonzero(leader != np.arange(len(leader)))
    n_fixed = json.loads(table.schema.metadata[b"imgcurate"])["n_fixed"]
    return nodes.Nodes(table, rules.group_copies(copies, leader[copies]), n_fixed)


def _plain_edges(edges: rules.Edges) -> pa.Table:
    return pa.table(edges._asdict())


def _read_edges(url: str, storage_options: storage.Options) -> rules.Edges:
    table = storage.read_parquet_table(url, None, storage_options)
    return rules.Edges(*(table[name].to_numpy() for name in rules.Edges._fields))
