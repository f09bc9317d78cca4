"""Saved graphs, which may come from anyone: what a file says is checked before anything is decided by it, and named where it cannot be."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imgcurate import storage
from imgcurate.dedup.graph import rules
from imgcurate.dedup.graph.nodes import Nodes
from imgcurate.printable import printable

_KINDS: dict[str, Any] = {
    "id_field": str, "rule": str, "keep": (str, list), "eps": (int, float), "min_similarity": (int, float),
    "n_rows": int, "n_compared": int, "n_clusters": int, "n_pairs": int, "n_copies": int,
    "kind": str, "chosen": dict,
}  # fmt: skip


def footer(url: str, storage_options: storage.Options) -> tuple[pa.Schema, int]:
    """Return the schema of a Parquet file, and how many rows it has."""
    try:
        with storage.open_input(url, storage_options) as file:
            content = pq.ParquetFile(file)
            return content.schema_arrow, content.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise _named(url, problem) from None


def known(schema: pa.Schema, url: str, format: str, names: Collection[str]) -> dict[str, Any]:
    """Return what the nodes' file says of the whole result.

    Raises
    ------
    ValueError
        Where it was not written in this format, or says something of another kind.
    """
    found: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads((schema.metadata or {}).get(b"imgcurate", b"{}"))
    if not isinstance(found, dict) or found.get("format") != format:
        raise ValueError(f"{printable(url)} was not written by this version's Duplicates.save")
    if "id" not in schema.names:
        raise _lies(url, "its images have no ids")
    for name in (*names, "n_pairs", "n_copies"):
        value = found.get(name)
        if (
            not isinstance(value, _KINDS[name])
            or isinstance(value, bool)
            or (name.startswith("n_") and found[name] < 0)
        ):
            raise _lies(url, f"{name} is {str(value)[:50]!r}")
    keep = found["keep"]
    if isinstance(keep, list) and not all(isinstance(item, list) and len(item) == 2 for item in keep):
        raise _lies(url, f"keep is {printable(str(keep), 50)}")
    if found["rule"] not in rules.RULES:
        raise _lies(url, f"rule is {found['rule'][:50]!r}")
    if not 0 < found["eps"] < 2 or not -3 <= found["min_similarity"] <= 1:
        raise _lies(url, f"eps is {found['eps']} and min_similarity {found['min_similarity']}")
    return found


def whole(folder: str, urls: Sequence[str], rows: int, what: str, storage_options: storage.Options) -> None:
    """Raise a ValueError where the files of a folder have other than so many rows in all: one is missing, or there is one too many."""
    there = sum(footer(url, storage_options)[1] for url in urls)
    if there != rows:
        raise ValueError(
            f"{printable(folder)} holds {there:,} {what} where {rows:,} were saved: a file is missing or was changed; copy it again"
        )


def read_nodes(url: str, n_compared: int, storage_options: storage.Options) -> Nodes:
    """Read the images of a part that have a pair."""
    table, columns = _read(url, ("row", "cluster", "leader"), storage_options)
    row, leader = columns["row"], columns["leader"]
    here = np.arange(len(leader))
    if "id" not in table.column_names or table["id"].null_count:
        raise _lies(url, "its images have no ids")
    if len(np.unique(row)) < len(row):
        raise _lies(url, "an image is there twice")
    if not ((leader >= 0) & (leader <= here)).all() or not np.array_equal(leader[leader], leader):
        raise _lies(url, "the copies of an image do not lead to it")
    # Images of a corpus, which are never removed, are numbered after those that were compared with it.
    n_fixed = int((row >= n_compared).sum())
    if (row < 0).any() or (row[:n_fixed] < n_compared).any() or n_fixed != _n_fixed(table):
        raise _lies(url, "images of a corpus stand among others")
    copies = np.flatnonzero(leader != here)
    return Nodes(table, rules.group_copies(copies, leader[copies]), n_fixed)


def read_edges(url: str, nodes: Nodes, storage_options: storage.Options) -> rules.Edges:
    """Read pairs of the images of a part."""
    _, columns = _read(url, rules.Edges._fields, storage_options)
    edges = rules.Edges(*(columns[name] for name in rules.Edges._fields))
    if len(edges.earlier) and not (
        edges.earlier.min() >= 0 and (edges.earlier < edges.later).all() and edges.later.max() < len(nodes.table)
    ):
        raise _lies(url, "a pair is of images that are not there")
    if not (np.abs(edges.similarity) <= 1.001).all():
        raise _lies(url, "a similarity is no cosine")
    return edges


def _n_fixed(table: pa.Table) -> Any:
    try:
        return json.loads(table.schema.metadata[b"imgcurate"])["n_fixed"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _read(url: str, names: Sequence[str], storage_options: storage.Options) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """Read a table, and some of its columns as arrays of numbers."""
    try:
        table = storage.read_parquet_table(url, None, storage_options)
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise _named(url, problem) from None
    columns = {}
    for name in names:
        kind = table.schema.field(name).type if table.column_names.count(name) == 1 else None
        fits = pa.types.is_floating if name == "similarity" else pa.types.is_integer
        if kind is None or not fits(kind) or table[name].null_count:
            raise _lies(url, f"the column {name!r} is missing or not of numbers")
        columns[name] = table[name].to_numpy()
    return table, columns


def _named(url: str, problem: Exception) -> Exception:
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem
    return ValueError(f"{url} is damaged ({problem}); save the result again")


def _lies(url: str, what: str) -> ValueError:
    return ValueError(f"{url} is not what Duplicates.save wrote: {what}; save the result again")
