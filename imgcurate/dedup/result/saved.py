"""Duplicates on disk: the graph of pairs, part by part, and all that is known of it, as plain Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import dask
import pyarrow as pa

from imgcurate import storage
from imgcurate.dedup.graph import build, nodes, rules
from imgcurate.dedup.result import checked

_FORMAT = "imgcurate duplicates 3"


def write(
    graph: build.Graph,
    known: Mapping[str, Any],
    path: str | os.PathLike[str],
    overwrite: bool,
    storage_options: storage.Options,
) -> None:
    """Write a graph, and what is known of it, into a folder; see `Duplicates.save`."""
    text = json.dumps({**known, "format": _FORMAT, "n_pairs": graph.n_pairs, "n_copies": graph.n_copies})
    with storage.staged_folder(path, ".parquet", overwrite=overwrite, storage_options=storage_options) as folder:
        write, table = dask.delayed(storage.write_parquet_table), dask.delayed(nodes.table_of)
        tasks = [
            write(table(t), f"{folder}/images.{n:05d}.parquet", storage_options) for n, t in enumerate(graph.tables)
        ]
        # The nodes last, because without them there is nothing to load: on a store, files are seen as they are written.
        last = []
        for number, part in enumerate(graph.parts):
            ranked = dask.delayed(_node_table)(part.nodes, text)
            last.append(write(ranked, f"{folder}/{_nodes_file(number)}", storage_options))
            for at, edges in enumerate(part.edges):
                name = f"edges.{number:05d}.{at:05d}.parquet"
                tasks.append(write(dask.delayed(_plain_edges)(edges), f"{folder}/{name}", storage_options))
        dask.compute(*tasks)
        dask.compute(*last[1:])
        dask.compute(*last[:1])


def read(
    path: str | os.PathLike[str], names: Sequence[str], storage_options: storage.Options
) -> tuple[build.Graph, dict[str, Any], pa.DataType]:
    """Return the graph that a folder holds, lazily, what is known of it by `names`, and the type of its ids; see `Duplicates.load`."""
    files = storage.expand(path, (".parquet",), storage_options)
    of = {
        name: [file for file in files if file.rpartition("/")[2].startswith(name)]
        for name in ("nodes", "edges", "images")
    }
    first = [file for file in of["nodes"] if file.rpartition("/")[2] == _nodes_file(0)]
    if not first:
        raise ValueError(f"{os.fspath(path)!r} holds no nodes.parquet: it was not written by Duplicates.save")
    kinds, _ = checked.footer(first[0], storage_options)
    known = checked.known(kinds, first[0], _FORMAT, names)
    checked.whole(os.fspath(path), of["edges"], known["n_pairs"], "pairs", storage_options)
    checked.whole(os.fspath(path), of["images"], known["n_compared"], "images", storage_options)
    parts = []
    for number in range(len(of["nodes"])):
        folder = first[0].rpartition("/")[0]
        url = f"{folder}/{_nodes_file(number)}"
        ranked = dask.delayed(checked.read_nodes)(url, known["n_compared"], storage_options)
        mine = [file for file in of["edges"] if file.rpartition("/")[2].startswith(f"edges.{number:05d}.")]
        edges = [dask.delayed(checked.read_edges)(file, ranked, storage_options) for file in mine]
        parts.append(build.Part(ranked, edges, in_rounds=len(edges) > 1))
    tables = [dask.delayed(storage.read_parquet_table)(file, None, storage_options) for file in of["images"]]
    graph = build.Graph(tables, parts, known["n_pairs"], known["n_copies"])
    return graph, {name: known[name] for name in names}, kinds.field("id").type


def _node_table(ranked: nodes.Nodes, known: str) -> pa.Table:
    known = json.dumps(json.loads(known) | {"n_fixed": ranked.n_fixed})
    return ranked.table.replace_schema_metadata({"imgcurate": known})


def _nodes_file(number: int) -> str:
    return f"nodes.{number:05d}.parquet" if number else "nodes.parquet"


def _plain_edges(edges: rules.Edges) -> pa.Table:
    return pa.table(edges._asdict())
