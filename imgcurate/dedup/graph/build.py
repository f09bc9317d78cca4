"""The graph of similar pairs on the cluster, from what a search found: in one part, or in parts of whole components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dask
import numpy as np
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate.dedup.graph import across, components, nodes, rank, rules
from imgcurate.dedup.graph.found import counts as found_counts
from imgcurate.dedup.work.mapped import Folder, map_table, write_table
from imgcurate.dedup.work.waves import in_waves, wait

#: A task that decides takes so many pairs at most at once; of more, it takes what some rounds chunk by chunk leave open.
_PAIRS_OF_A_TASK = 2**25
#: A graph that lies in files is cut into parts of about so many pairs: of their images a task holds the ids, and what ranks them.
_PAIRS_OF_A_PART = 2**21
_ROUNDS = 3
#: So many blocks are looked through by a task that looks for some of their rows.
_TABLES_OF_A_TASK = 64

Fixed = Callable[[Delayed], list[Delayed]]


class Part(NamedTuple):
    """Some connected components of a graph.

    Attributes
    ----------
    nodes : Delayed of nodes.Nodes
    edges : list of Delayed of rules.Edges
    in_rounds : bool
        Whether they are too many for one task.
    """

    nodes: Delayed
    edges: list[Delayed]
    in_rounds: bool

    def decide(self, least: float, rule: rules.Rule) -> Delayed:
        """Return the images that a rule removes at a threshold, as `nodes.matches` does."""
        ranked, edges, answer = self.nodes, self.edges, None
        if rule == "cover":
            answer = dask.delayed(nodes.first_state)(ranked)
            for _ in range(_ROUNDS if self.in_rounds else 0):
                known = [dask.delayed(nodes.waiting)(chunk, least, answer) for chunk in edges]
                answer = dask.delayed(rules.settle)(answer, known)
            open_edges = [dask.delayed(nodes.still_open)(chunk, least, answer) for chunk in edges]
            answer = dask.delayed(nodes.keep_greedily)(ranked, open_edges, answer)
        elif rule == "component":
            stars = [dask.delayed(nodes.star)(chunk, least, ranked) for chunk in edges]
            answer = dask.delayed(nodes.roots)(ranked, stars)
        twins = [dask.delayed(nodes.twins)(chunk, least, rule, ranked, answer) for chunk in edges]
        return dask.delayed(nodes.matches)(ranked, twins, rule, answer)


class Graph(NamedTuple):
    """Pairs on the cluster.

    Attributes
    ----------
    tables : list of Delayed of pyarrow.Table, or of files.AssignedRows
        All compared images, block by block: ``id``, ``row``, ``cluster``, ``distance`` and what ranks them.
    parts : list of Part
    n_pairs, n_copies : int
    folder : Folder, optional
        Where answers are written; in memory where there is none.
    key : str
        Of the pairs, for the names of the answers.
    """

    tables: list[Any]
    parts: list[Part]
    n_pairs: int
    n_copies: int
    folder: Folder | None = None
    key: str = ""

    def decide(self, least: float, rule: rules.Rule) -> list[Delayed]:
        """Return the images that a rule removes at a threshold, part by part, decided once. Eager where they go to files."""
        decided = [part.decide(least, rule) for part in self.parts]
        if self.folder is None:
            decided = list(dask.persist(*decided))
            # What they read may lie in files that go with this graph.
            wait(decided)
            return decided
        folder = self.folder.for_tasks()
        folder.names("answers")
        names = _answers(self.key, least, rule, len(self.parts))
        write = dask.delayed(_write_answer, pure=False)
        in_waves(write(table, folder, name) for table, name in zip(decided, names, strict=True))
        return [dask.delayed(_read_answer)(folder, name) for name in names]

    def left(self, least: float, rule: rules.Rule, decided: list[Delayed]) -> list[Delayed]:
        """Return the images that `decide` lets stay, block by block.

        In memory the numbers of all removed rows, 8 bytes each, go to every block; of files each block reads those of its own rows.
        """
        if self.folder is None:
            removed = dask.delayed(nodes.rows_of)(decided)
            return [dask.delayed(nodes.without)(table, removed) for table in self.tables]
        how = self.folder.for_tasks(), self.key, least, rule, len(self.parts)
        return [dask.delayed(_without_answers)(table, *how) for table in self.tables]

    def across(self, least: float, splits: pa.Array, kind: int) -> list[Delayed]:
        """Return what `across.nearest_in_others` says of a graph that is ranked by split, part by part. Eager."""
        rows_of, splits_of, by_node = (
            dask.delayed(task) for task in (across.rows_of, across.splits_of, across.by_node)
        )
        by_edges, of_part = dask.delayed(across.nearest_by_edges), dask.delayed(across.nearest_in_others)
        answers = []
        for part in self.parts:
            rows = rows_of(part.nodes)
            split = by_node(part.nodes, [splits_of(group, rows, splits) for group in _grouped(self.tables)])
            near = [by_edges(edges, least, part.nodes, split) for edges in part.edges]
            answers.append(of_part(part.nodes, split, near, splits, kind))
        answers = list(dask.persist(*answers))
        # What they read may lie in files that go with this graph.
        wait(answers)
        return answers


def build(tables: list[Any], found: list[Delayed], keep: rank.Keep, fixed: Fixed | None = None) -> Graph:
    """Put the images of pairs into rank order, in one part. Eager: it waits until all pairs are found.

    Parameters
    ----------
    tables : list of Delayed of pyarrow.Table, or of files.AssignedRows
    found : list of Delayed of found.Found
        By the rows' numbers; held on the cluster.
    keep : as for `semantic_duplicates`
    fixed : callable, optional
        Given the numbers of the rows that have pairs, the tables of those that are never removed.
    """
    found = list(dask.persist(*found))
    # Of what one task found nothing needs to be known before.
    alone = len(found) == 1
    counts = np.ones((1, 2), dtype=np.int64) if alone else _counts(found)
    part = _part(tables, found, counts, keep, fixed)
    ranked, *edges = dask.persist(part.nodes, *part.edges)
    # What a corpus is read from may lie in files that nobody keeps from here on.
    counts = _counts(found) if alone else counts
    wait([ranked, *edges])
    part = part._replace(nodes=ranked, edges=edges)
    n_pairs, n_copies = (int(total) for total in counts.sum(axis=0))
    return Graph(tables, [part], n_pairs, n_copies)


def fits_one_part(counts: np.ndarray) -> bool:
    """Tell whether so many pairs and copies, by files, are few enough for one part."""
    return int(counts.sum()) <= _PAIRS_OF_A_PART


def build_in_parts(
    tables: list[Any], found: Sequence[str], counts: np.ndarray, keep: rank.Keep, n_rows: int, folder: Folder, key: str
) -> Graph:
    """Do as `build` does with pairs that lie in files, in parts, each of which is made from them again where it is asked.

    Parameters
    ----------
    tables : list of files.AssignedRows
    found : sequence of str
        Files of pairs.
    counts : numpy.ndarray of shape (files, 2)
        How many pairs and copies each has.
    keep : as for `semantic_duplicates`
    n_rows : int
    folder : Folder
    key : str
        Of the pairs, and of how they are ranked.
    """
    n_pairs, n_copies = (int(total) for total in counts.sum(axis=0))
    n_parts = -(-(n_pairs + n_copies) // _PAIRS_OF_A_PART)
    folder.keep("graph", [key])
    folder.keep("answers", [key])
    names = [f"{key}.{at:05d}" for at in range(len(found))]
    forest, paths = folder.file("graph", f"{key}.forest"), [folder.file("graph", name) for name in names]
    dask.delayed(components.components, pure=False)(list(found), n_rows, forest).compute()
    route = dask.delayed(components.route, pure=False)
    routed = in_waves(route(file, forest, n_rows, n_parts, path) for file, path in zip(found, paths, strict=True))
    sizes = np.sum(routed, axis=0)
    gather = dask.delayed(components.gather)
    parts = []
    for number in np.flatnonzero(sizes):
        chunks = max(1, -(-int(sizes[number]) // _PAIRS_OF_A_TASK))
        of_part = [gather(folder.for_tasks(), names[at::chunks], int(number)) for at in range(chunks)]
        parts.append(_part(tables, of_part, np.full((chunks, 2), _PAIRS_OF_A_TASK), keep, None))
    return Graph(tables, parts, n_pairs, n_copies, folder, key)


def _part(tables: list[Any], found: list[Delayed], counts: np.ndarray, keep: rank.Keep, fixed: Fixed | None) -> Part:
    number = np.cumsum(counts.sum(axis=1)) // _PAIRS_OF_A_TASK
    chunks = [[found[at] for at in np.flatnonzero(number == chunk)] for chunk in np.unique(number)]
    rows = dask.delayed(nodes.union)([dask.delayed(nodes.involved)(chunk) for chunk in chunks])
    take, copies = dask.delayed(nodes.take), dask.delayed(nodes.copies_alone)
    ranked = dask.delayed(nodes.rank_nodes)(
        [take(group, rows) for group in _grouped(tables)],
        fixed(rows) if fixed else [],
        [copies(part) for part, (_, n_copies) in zip(found, counts, strict=True) if n_copies],
        keep,
    )
    edges = [dask.delayed(nodes.number)(chunk, ranked) for chunk in chunks]
    return Part(ranked, edges, in_rounds=len(chunks) > 1)


def _grouped(tables: list[Any]) -> list[list[Any]]:
    return [tables[at : at + _TABLES_OF_A_TASK] for at in range(0, len(tables), _TABLES_OF_A_TASK)]


def _answers(key: str, least: float, rule: rules.Rule, n_parts: int) -> list[str]:
    return [f"{key}.{rule}.{least!r}.{number}" for number in range(n_parts)]


def _write_answer(table: pa.Table, folder: Folder, name: str) -> None:
    write_table(table, folder.file("answers", name), durable=False)
    rows = pa.table({"row": nodes.rows_of([table])})
    write_table(rows, folder.file("answers", f"{name}.rows"), durable=False)


def _read_answer(folder: Folder, name: str) -> pa.Table:
    return map_table(folder.file("answers", name))


def _without_answers(table: Any, folder: Folder, key: str, least: float, rule: rules.Rule, n_parts: int) -> pa.Table:
    block = nodes.table_of(table)
    numbers = block["row"].to_numpy()
    removed = [np.zeros(0, dtype=np.int64)]
    for name in _answers(key, least, rule, n_parts) if len(numbers) else []:
        rows = map_table(folder.file("answers", f"{name}.rows"))["row"].to_numpy()
        start, stop = np.searchsorted(rows, [numbers[0], numbers[-1] + 1])
        removed.append(rows[start:stop])
    return nodes.without(block, np.sort(np.concatenate(removed)))


def _counts(found: Sequence[Delayed]) -> np.ndarray:
    counts = dask.compute(*[dask.delayed(found_counts)(part) for part in found])
    return np.array(counts, dtype=np.int64).reshape(-1, 2)
