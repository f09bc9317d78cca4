"""A frame whose comparable rows lie in the workers' memory or in files.

Growth, in n rows: time n; memory of a task a group of small partitions or one large one; of the client a few numbers a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed

from imgcurate import fingerprint, identity, parts, vectors
from imgcurate.dedup.dataframes import repeated
from imgcurate.dedup.semantic import normalise, store
from imgcurate.dedup.semantic.store import Stored, StoredRows
from imgcurate.dedup.work import memory
from imgcurate.dedup.work.mapped import Folder
from imgcurate.dedup.work.waves import written

#: Of so many partitions a group is made at most: others may be larger than those that were looked at.
_MOST_PARTITIONS = 1000
#: So many partitions are looked at to learn how large they are.
_MEASURED = 8
#: Small partitions are put together up to so many bytes of vectors, and large parts are worked on in such runs.
_GROUP_BYTES = 64 << 20


@dataclass
class Frame:
    """A frame's comparable rows, and what the client knows of them.

    Attributes
    ----------
    blocks : list of Delayed of normalise.Rows, or of StoredRows
    offsets : list of int
        The number of each block's first row.
    n_rows, n_compared, dimension : int
    encoders : frozenset of Identity
        What made the vectors, as far as it is known.
    folder : Folder or None
        Where the rows are in files.
    parts : list of Stored
        Those files.
    """

    blocks: list[Any]
    offsets: list[int]
    n_rows: int
    n_compared: int
    dimension: int
    encoders: frozenset[identity.Identity]
    folder: Folder | None = None
    parts: list[Stored] = field(default_factory=list)

    def refuse_other_dimension(self, expected: int, of: str, embedding_field: str) -> None:
        """Raise where the vectors are not of the dimension of what they are to be compared with."""
        if self.n_compared and self.dimension != expected:
            raise ValueError(
                f"{of} have dimension {expected}, the vectors of column {embedding_field!r} {self.dimension}"
            )


def prepare(
    frame: Any,
    id_field: str,
    embedding_field: str,
    key_fields: list[str],
    seed: int,
    work: str | None = None,
) -> Frame:
    """Compute the frame, once: into memory where some of its partitions say that it will fit, else into files.

    Parameters
    ----------
    work : str, optional
        A folder for files, which every worker sees. Default: a temporary one, where all workers are on this machine.
    """
    columns = [id_field, embedding_field, *key_fields, *(["error"] if "error" in frame.columns else [])]
    frame = frame[list(dict.fromkeys(columns))]
    delayed = frame.to_delayed()
    arguments = (id_field, embedding_field, key_fields, seed)
    task = dask.delayed(normalise.prepare_several, nout=4)
    # Of all over the frame: the first may be small, or filtered away.
    looked_at = np.unique(np.linspace(0, len(delayed) - 1, _MEASURED).astype(int)).tolist()
    first = {number: list(task([delayed[number]], *arguments)) for number in looked_at}
    folder = Folder(work, durable=True) if work else None
    keys = parts.keys_of(frame) if folder else [str(number) for number in range(len(delayed))]
    measured = f"size.{fingerprint.of(keys, arguments)}.json"
    known = folder.read_json(measured) if folder else None
    asked: tuple[Any, Any] = (None, None)
    if known is None:
        persisted = _in_fours(dask.persist(*[output for outputs in first.values() for output in outputs]))
        first = dict(zip(first, persisted, strict=True))
        whole = len(first) == len(delayed)
        # Of a frame of few partitions all that the client has to know is asked for at once.
        suspects = dask.delayed(repeated.repeated)([outputs[2] for outputs in persisted], 0, 1) if whole else None
        *summaries, suspects = dask.compute(*[outputs[1] for outputs in persisted], suspects)
        asked = (summaries, suspects) if whole else asked
        rows = sum(summary.n_compared for summary in summaries) / len(summaries)
        known = [rows, max((summary.dimension for summary in summaries), default=0)]
    size = known[0] * known[1] * 4
    in_memory, folder = memory.choose(size * len(delayed), folder, gpu=vectors.on_gpu(frame._meta))
    together = max(1, min(int(_GROUP_BYTES / size) if size else 1, _MOST_PARTITIONS))
    groups = memory.cut_into_groups(len(delayed), looked_at, together)

    def prepared(at: range) -> list[Delayed]:
        return first.get(at.start) or list(task(delayed[at.start : at.stop], *arguments))

    if in_memory:
        return _held([prepared(at) for at in groups], id_field, embedding_field, *asked)
    assert folder is not None
    if folder.durable:  # so that another run makes the same groups
        folder.write_json(measured, known)
    names = [fingerprint.of(keys[at.start : at.stop], arguments) for at in groups]
    write = dask.delayed(store.write_rows, pure=False)
    records = written(
        folder,
        "rows",
        names,
        lambda number, path: write([tuple(prepared(groups[number]))], embedding_field, path, folder.durable),
        store.read_record,
    )
    return _in_files(records, folder, id_field, embedding_field)


def _held(
    outputs: list[list[Delayed]],
    id_field: str,
    embedding_field: str,
    summaries: Sequence[normalise.Summary] | None,
    suspects: np.ndarray | None,
) -> Frame:
    """Hold rows in memory; `summaries` of all of them and `suspects` among their hashes are asked for where they are not known."""
    if summaries is None:
        outputs = _in_fours(dask.persist(*[output for four in outputs for output in four]))
        summaries = dask.compute(*[summary for _, summary, _, _ in outputs])
    n_rows = sum(summary.n_rows for summary in summaries)
    pair = dask.delayed(repeated.named)
    names = [pair(names, hashes) for _, _, hashes, names in outputs]
    repeated.refuse_repeated([hashes for _, _, hashes, _ in outputs], names, n_rows, id_field, suspects)
    used = [number for number, summary in enumerate(summaries) if summary.n_compared]
    counts = [summaries[number].n_compared for number in used]
    return Frame(
        [outputs[number][0] for number in used],
        list(accumulate(counts, initial=0))[:-1],
        n_rows,
        sum(counts),
        normalise.one_dimension([summaries[number] for number in used], embedding_field),
        frozenset(encoder for summary in summaries for encoder in summary.encoders),
    )


def _in_files(records: list[Stored], folder: Folder, id_field: str, embedding_field: str) -> Frame:
    n_rows = sum(record.n_rows for record in records)
    names = [dask.delayed(repeated.read_names)(record.path) for record in records]
    repeated.refuse_repeated([f"{record.path}.hashes" for record in records], names, n_rows, id_field)
    used = [record for record in records if record.n_compared]
    dimension = normalise.one_dimension(used, embedding_field)
    rows = max(1, _GROUP_BYTES // max(dimension * 4, 1))
    blocks = [
        StoredRows(record.path, start, min(start + rows, record.n_compared), dimension)
        for record in used
        for start in range(0, record.n_compared, rows)
    ]
    return Frame(
        blocks,
        list(accumulate((block.stop - block.start for block in blocks), initial=0))[:-1],
        n_rows,
        sum(record.n_compared for record in used),
        dimension,
        frozenset(encoder for record in used for encoder in record.encoders),
        folder,
        used,
    )


def _in_fours(outputs: Sequence[Delayed]) -> list[list[Delayed]]:
    return [list(outputs[at : at + 4]) for at in range(0, len(outputs), 4)]
