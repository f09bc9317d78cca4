"""The fingerprints of a frame's images: block by block in the workers' memory or in files, and from there by ranges of their keys.

Images of one block that are equal are found there, and one of them goes on with the others of its key from all blocks: an image that is stored a
million times does not make a range larger than the blocks are many.

Growth, for n images in b blocks and r ranges: time n log n; memory of a task one block, or one range; tasks b + r, and where all stays in
memory up to 128 r pieces between them; reads of files b r; on disk and in memory some 100 to 200 bytes an image; of the client some numbers a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed

from imgcurate import fingerprint, parts, storage
from imgcurate.dedup.content import blocks
from imgcurate.dedup.content.blocks import Fingerprint, StoredEntries, StoredImages, StoredTable, Summary
from imgcurate.dedup.dataframes import repeated
from imgcurate.dedup.graph import build, rank
from imgcurate.dedup.graph.found import read_found, write_found
from imgcurate.dedup.work import memory
from imgcurate.dedup.work.mapped import Folder, write_table
from imgcurate.dedup.work.waves import in_waves, threads, written

#: Small partitions are put together up to so many images, or so many that there are not more blocks, as long as every thread has some.
_BLOCK_ROWS, _MOST_BLOCKS, _BLOCKS_OF_A_THREAD = 1 << 16, 20_000, 8
#: So many partitions are looked at to learn how large they are, or as many as can be at a time.
_MEASURED = 8
#: Blocks are put together to so many before each is cut into a piece for every range.
_MOST_CUT = 128


@dataclass(frozen=True)
class Prints:
    """The fingerprints of a frame.

    Attributes
    ----------
    tables : list of Delayed of pyarrow.Table, or of StoredImages
        All compared images, block by block, as `build.Graph` has them.
    entries : list of Delayed of Entries, or of StoredEntries
        Of the same blocks.
    starts : list of int
        The number of the first compared image of each.
    summaries : list of Summary
    key : str
        Of all of it, for the names of files.
    folder : Folder or None
        Where it is in files.
    """

    tables: list[Any]
    entries: list[Any]
    starts: list[int]
    summaries: list[Summary]
    key: str
    folder: Folder | None

    @property
    def n_rows(self) -> int:
        return sum(summary.n_rows for summary in self.summaries)

    @property
    def n_compared(self) -> int:
        return sum(summary.n_compared for summary in self.summaries)

    def copies(self) -> list[Delayed]:
        """Return the copies inside of blocks, as Delayed of Found."""
        number = dask.delayed(blocks.copies_of)
        return [
            number(entries, start)
            for entries, start, summary in zip(self.entries, self.starts, self.summaries, strict=True)
            if summary.n_entries < summary.n_compared
        ]

    def by_range(self, rows: int) -> list[Delayed]:
        """Return all entries by ranges of their keys of about so many rows, as `in_range` does."""
        n_ranges = max(1, -(-sum(summary.n_entries for summary in self.summaries) // rows))
        every = list(zip(self.entries, self.starts, strict=True))
        take, join = dask.delayed(blocks.in_range), dask.delayed(blocks.join)
        cut = dask.delayed(blocks.cut, nout=n_ranges)
        if self.folder is not None:
            # Once on a worker: each task names all files.
            held = dask.delayed(every, traverse=False).persist()
            return [take(held, number, n_ranges) for number in range(n_ranges)]
        if n_ranges == 1:
            return [take(every, 0, 1)]
        of_a_task = -(-len(every) // _MOST_CUT)
        pieces = [list(cut(every[at : at + of_a_task], n_ranges)) for at in range(0, len(every), of_a_task)]
        return [join(list(of_range)) for of_range in zip(*pieces, strict=True)]

    def hold(self, tables: Sequence[Delayed]) -> list[Any]:
        """Compute tables, once, until there is a graph: Delayed of what lies in memory, or a StoredTable for each."""
        if self.folder is None:
            return list(dask.persist(*tables))
        paths = self._paths("held", len(tables))
        write = dask.delayed(write_table, pure=False)
        in_waves(write(table, path, False) for table, path in zip(tables, paths, strict=True))
        return [StoredTable(path) for path in paths]

    def graph(self, found: Sequence[Delayed], keep: rank.Keep) -> build.Graph:
        """Return the graph of what was found, Delayed of Found."""
        folder = self.folder
        if folder is None:
            return build.build(self.tables, list(found), keep)
        paths = self._paths("found", len(found))
        write = dask.delayed(write_found, pure=False)
        counts = in_waves(write(part, path, False) for part, path in zip(found, paths, strict=True))
        folder.keep("held", [])
        used = [number for number, count in enumerate(counts) if any(count)]
        paths = [paths[number] for number in used]
        sizes = np.array([counts[number] for number in used], dtype=np.int64).reshape(-1, 2)
        if build.fits_one_part(sizes):
            return build.build(self.tables, [dask.delayed(read_found)(path) for path in paths], keep)
        key = fingerprint.of(self.key, keep)
        return build.build_in_parts(self.tables, paths, sizes, keep, self.n_compared, folder, key)

    def _paths(self, name: str, count: int) -> list[str]:
        """Return where to write so many files of a table, which has no others."""
        assert self.folder is not None
        self.folder.keep(name, [])
        return [self.folder.file(name, f"{self.key}.{number:06d}") for number in range(count)]


def prepare(
    frame: Any,
    kind: Fingerprint,
    columns: Sequence[str],
    id_field: str,
    keys: Sequence[str],
    seed: int,
    storage_options: storage.Options,
    work: str | None = None,
) -> Prints:
    """Read and fingerprint a frame, once: into memory where some of its partitions say that this will fit, else into files.

    Parameters
    ----------
    frame : Dask DataFrame
    kind : Fingerprint
    columns : sequence of str
        Which ones `kind` reads.
    id_field : str
    keys : sequence of str
        The columns to rank by.
    seed : int
        Of the ids' hash.
    storage_options : dict, optional
    work : str, optional
        A folder for files, which every worker sees. Default: a temporary one, where all workers are on this machine.
    """
    frame = frame[list(dict.fromkeys([id_field, *keys, *columns]))]
    delayed = frame.to_delayed()
    arguments = (kind, id_field, keys, seed)
    task = dask.delayed(blocks.print_block, nout=5)
    looked_at = np.unique(np.linspace(0, len(delayed) - 1, max(_MEASURED, threads())).astype(int)).tolist()
    first = {number: list(task([delayed[number]], *arguments, storage_options)) for number in looked_at}
    folder = Folder(work, durable=True) if work else None
    names = parts.keys_of(frame) if folder else [str(number) for number in range(len(delayed))]
    measured = f"prints.{fingerprint.of(names, arguments)}.json"
    known = folder.read_json(measured) if folder else None
    if known is None:
        persisted = dask.persist(*[output for outputs in first.values() for output in outputs])
        first = {number: list(persisted[5 * at : 5 * at + 5]) for at, number in enumerate(first)}
        summaries = dask.compute(*[outputs[2] for outputs in first.values()])
        mean_rows, mean_bytes = np.mean([(summary.n_rows, summary.n_bytes) for summary in summaries], axis=0).tolist()
        together = max(_BLOCK_ROWS / max(mean_rows, 1), len(delayed) / _MOST_BLOCKS)
        most = len(delayed) / (_BLOCKS_OF_A_THREAD * threads())
        known = {"bytes": mean_bytes, "together": max(1, int(min(together, most)))}
    in_memory, folder = memory.choose(known["bytes"] * len(delayed), folder, gpu=False, of="fingerprints")
    groups = memory.cut_into_groups(len(delayed), looked_at, known["together"])

    def printed(at: range) -> list[Delayed]:
        return first.get(at.start) or list(task(delayed[at.start : at.stop], *arguments, storage_options))

    if in_memory:
        return _held([printed(at) for at in groups], id_field)
    assert folder is not None
    if folder.durable:  # so that another run makes the same blocks
        folder.write_json(measured, known)
    names = [fingerprint.of(names[at.start : at.stop], arguments) for at in groups]
    write = dask.delayed(blocks.write_block, pure=False)
    known = written(
        folder,
        "prints",
        names,
        lambda number, path: write(tuple(printed(groups[number])), path, folder.durable),
        blocks.read_summary,
    )
    paths = [folder.file("prints", name) for name in names]
    return _in_files(paths, known, folder, id_field)


def _held(outputs: list[list[Delayed]], id_field: str) -> Prints:
    """Hold what was printed in memory."""
    persisted = dask.persist(*[output for block in outputs for output in block])
    tables, entries, summaries, hashes, names = (list(persisted[at::5]) for at in range(5))
    known = list(dask.compute(*summaries))
    of_all = [dask.delayed(repeated.named)(part, hashed) for part, hashed in zip(names, hashes, strict=True)]
    repeated.refuse_repeated(hashes, of_all, sum(summary.n_rows for summary in known), id_field)
    starts = _starts(known)
    number = dask.delayed(blocks.numbered)
    return Prints([number(t, start) for t, start in zip(tables, starts, strict=True)], entries, starts, known, "", None)


def _in_files(paths: list[str], known: list[Summary], folder: Folder, id_field: str) -> Prints:
    names = [dask.delayed(repeated.read_names)(path) for path in paths]
    hashes = [f"{path}.hashes" for path in paths]
    repeated.refuse_repeated(hashes, names, sum(summary.n_rows for summary in known), id_field)
    starts = _starts(known)
    tables = [StoredImages(path, start) for path, start in zip(paths, starts, strict=True)]
    return Prints(tables, [StoredEntries(path) for path in paths], starts, known, fingerprint.of(paths), folder)


def _starts(known: Sequence[Summary]) -> list[int]:
    return list(accumulate((summary.n_compared for summary in known[:-1]), initial=0))
