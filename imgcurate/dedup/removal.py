"""remove(): the anti-join. Rows whose id is on a list go; nothing is shuffled.

The list is hashed in parts, sorted once, and held once by each worker process; a partition looks up its own ids in it, so that its cost
is that of its rows.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask.delayed import Delayed

from imgcurate import schema, storage, vectors
from imgcurate.cluster import interruptible
from imgcurate.dedup import lookup
from imgcurate.dedup.dataframes import inputs
from imgcurate.dedup.result import Duplicates
from imgcurate.dedup.work.waves import wait
from imgcurate.printable import quoted

_NAMED = 5
# What `Duplicates` gives about images that stay, by the columns that only these frames have.
_OF_IMAGES_THAT_STAY = {
    "groups": {"removed", "duplicates"},
    "edges": {"other_id", "similarity"},
    "assignments": {"cluster", "centroid_distance"},
}


@interruptible
def remove(
    frame: Any, removals: Any, on: str = "image_id", *, removals_on: str | None = None, missing: str = "warn"
) -> dd.DataFrame:
    """Drop the rows whose id is on a removal list.

    Parameters
    ----------
    frame : Dask, pandas or cuDF DataFrame, or pair of ids and a matrix of shape (n, d)
        With column `on`.
    removals : Duplicates, DataFrame or Series of any kind, index, array, list or set of ids, or path
        The ids: the result of `semantic_duplicates`, column `on` of a frame, a series, ids themselves, or column `on` of a Parquet file or
        directory. Repeated and null ids count for nothing. Of a frame or file with a boolean column ``kept``, such as a run's ``images.parquet``, only
        the rows where it is false are on the list.
    on : str
        The column of ids; of a frame in memory, it may be the index.
    removals_on : str, optional
        What that column is called in `removals`, where it is another name than `on`. Where it is given, `removals` is taken as a list of ids,
        whatever it has beside that column and ``kept``.
    missing : {"warn", "raise", "ignore"}
        What to do where `frame` lacks some of the ids: warn and say which, raise, or not look. Looking reads column `on` of
        `frame` once, eagerly.

    Returns
    -------
    Dask DataFrame, or what `frame` is
        The other rows of `frame`, lazily; a consumer of some columns has only those and `on` computed. Of a frame in memory, its other rows at
        once, with their index and types; of a pair, ids and matrix of the other rows.

    Raises
    ------
    KeyError
        Where `frame` or `removals` has no column of that name.
    TypeError
        Where one holds numbers and the other text, one holds a mixture, or `frame` or `removals` is of no kind named above.
    FileNotFoundError
        Where there are no Parquet files of ids at a path.
    ValueError
        Where ids are missing and ``missing="raise"``; where `removals` is what `Duplicates` gives about images that stay (``groups``, ``edges``,
        ``assignments``), a folder of such a result or of a run, or a file of embeddings.

    Notes
    -----
    A partition costs what its rows cost, however long the list is. The list takes 13 to 14 bytes an id and the ids in Arrow's memory, once in each
    worker process (not spread over them).

    Examples
    --------
    >>> frame = pd.DataFrame({"image_id": ["a", "b", "c"]})
    >>> remove(frame, ["b"])
      image_id
    0        a
    2        c
    >>> lazy = dd.from_pandas(frame, npartitions=2)
    >>> remove(lazy, pd.DataFrame({"id": ["a", "c"]}), removals_on="id")["image_id"].compute().tolist()
    ['b']
    """
    if missing not in ("warn", "raise", "ignore"):
        raise ValueError(f"missing={missing!r} is unknown: give 'warn', 'raise' or 'ignore'")
    ids_of_frame = _ids_of(frame, on)
    name = removals.id_field if isinstance(removals, Duplicates) else on if removals_on is None else removals_on
    column = _id_column(removals, on, removals_on)
    _check_kinds(ids_of_frame, column, on, name)
    pieces = column.to_delayed() if hasattr(column, "to_delayed") else [column]
    ids = _gather(pieces)
    lazy = hasattr(ids_of_frame, "to_delayed")
    if missing != "ignore":
        parts = ids_of_frame.to_delayed() if lazy else [ids_of_frame]
        _report_missing([dask.delayed(_found)(part, ids) for part in parts], ids, missing)
    if not lazy:
        return _without(frame, dask.delayed(_is_listed)(ids_of_frame, ids).compute())
    meta = pd.Series([], dtype=bool) if not vectors.on_gpu(frame._meta) else frame._meta[on].isnull()
    return frame[~ids_of_frame.map_partitions(_is_listed, ids, meta=meta)]


def _gather(pieces: Sequence[Any]) -> Any:
    """Return a list of removals as a task that holds it: it stands in the graph once, and in a worker's memory once."""
    # Started at once: a lazy list may be a view of a Duplicates that only the verb's caller holds, and not for long.
    # Pure, so that what is made of the frame has the same keys in another process, and a checkpoint or a folder of work knows it again.
    hashed = [dask.delayed(_hashed, pure=True)(piece) for piece in pieces]
    ids = dask.delayed(lookup.build, pure=True)(hashed).persist()
    wait([ids])
    return ids


def _ids_of(frame: Any, on: str) -> Any:
    """Return the ids of what rows are removed from, as a Dask series or one in memory."""
    if isinstance(frame, tuple) and len(frame) == 2:
        return inputs.rows_of_pair(*frame, "remove", on)[0][on]
    if inputs.in_memory(frame):
        frame = inputs.with_ids(frame, on)
    elif not hasattr(frame, "to_delayed") or not hasattr(frame, "columns"):
        raise TypeError(inputs.refusal(frame, "remove"))
    schema.require_columns(frame, [on], "remove")
    return frame[on]


def _without(given: Any, listed: Any) -> Any:
    """Return what was given in memory without the listed rows."""
    left = ~vectors.to_pandas(listed).to_numpy()
    if isinstance(given, tuple):
        ids, matrix = given
        ids = ids if hasattr(ids, "dtype") else pd.Index(ids).to_numpy()
        return ids[left], vectors.take(matrix if hasattr(matrix, "shape") else np.asarray(matrix), left)
    return given[left]


def _id_column(removals: Any, on: str, removals_on: str | None) -> Any:
    """Return the ids as a Dask or host Series; in a frame they are a column."""
    if isinstance(removals, str | os.PathLike):
        path = os.fspath(removals)
        removals = _read(path)
        check_list(removals, on, removals_on, path)
    name = on if removals_on is None else removals_on
    if hasattr(removals, "columns") and removals.ndim == 2:
        removals = inputs.with_ids(removals, name) if inputs.in_memory(removals) else removals
        check_list(removals, on, removals_on)
        if _says_what_is_kept(removals):
            removals = removals[~removals["kept"].fillna(True)]
        return vectors.to_pandas(removals[name])
    if removals_on is not None:
        raise ValueError(f"removals_on={removals_on!r} names a column, and the removal list has none; leave it out")
    if isinstance(removals, Duplicates):
        return removals.removals()[removals.id_field]
    if hasattr(removals, "to_delayed"):
        return removals
    if isinstance(removals, list | tuple | set | frozenset):
        removals = list(removals)
    elif not isinstance(removals, pd.Series | pd.Index | np.ndarray) and not vectors.on_gpu(removals):
        raise TypeError(
            f"remove takes ids as a frame, a series, a list, an array, a Duplicates or the path of a Parquet directory, not "
            f"{type(removals).__name__}"
        )
    removals = vectors.to_pandas(removals)
    if getattr(removals, "ndim", 1) != 1:
        raise TypeError(f"remove takes one id an image, and the removal list is an array of shape {removals.shape}")
    return pd.Series(removals, dtype=None if len(removals) else object)


def check_list(removals: Any, on: str, removals_on: str | None, path: str | None = None) -> None:
    """Raise where a frame, or what was read from a path, is no list of ids to remove."""
    columns = set(removals.columns)
    if removals_on is None:
        for name, of_it in _OF_IMAGES_THAT_STAY.items():
            if of_it <= columns and "duplicate_of" not in columns:
                raise ValueError(
                    f"the removal list has the columns {' and '.join(map(repr, sorted(of_it)))} of Duplicates.{name}, which names images that stay: "
                    "give found itself, found.pairs or found.removals()"
                )
        # Rows that were chosen of a frame have vectors, too, but a whole file of vectors is no list.
        if path is not None and on == "image_id" and "embedding" in columns and not _says_what_is_kept(removals):
            raise ValueError(
                f"{path} has a column 'embedding', as what imgcurate embed writes, and would remove all that was embedded: give a list of ids, or "
                f"removals_on={on!r} where it is one"
            )
    other = "" if removals_on is not None else "; removals_on= names another"
    name = on if removals_on is None else removals_on
    schema.require_columns(removals, [name], f"remove (in the removal list{other})")


def _says_what_is_kept(removals: Any) -> bool:
    return "kept" in removals.columns and pd.api.types.is_bool_dtype(removals["kept"].dtype)


def refuse_folder(path: str, storage_options: storage.Options = None) -> None:
    """Raise where a folder holds a run or what deduplication found, of which a list is a part or still to be made."""
    for inside, instead in (
        ("nodes.parquet", f"was written by Duplicates.save: give Duplicates.load({path!r}).removals()"),
        ("pairs.parquet", f"was written by imgcurate dedup: give '{path.rstrip('/')}/removals.parquet'"),
        ("manifest.json", f"was written by a run: give '{path.rstrip('/')}/images.parquet'"),
    ):
        fs, place = storage.open_filesystem(f"{path.rstrip('/')}/{inside}", storage_options)
        if fs.exists(place):
            raise ValueError(f"{path} {instead}")


def _read(path: str) -> Any:
    refuse_folder(path)
    try:
        storage.expand(path, (".parquet", ".parq", ".pq"))
        return storage.read_parquet_frame(path)
    except (FileNotFoundError, ValueError) as problem:
        # Dask says it in several lines, of which the last is the problem.
        why = (str(problem).splitlines() or [type(problem).__name__])[-1]
        raise FileNotFoundError(f"no Parquet files of ids to remove at {path!r}: {why}") from problem


def _check_kinds(ids_of_frame: Any, column: Any, on: str, name: str) -> None:
    lazy = hasattr(column, "to_delayed")
    listed = column._meta if lazy else column.dropna()
    if not lazy and listed.empty:
        return
    known = ids_of_frame._meta if hasattr(ids_of_frame, "to_delayed") else ids_of_frame
    ours, theirs = _kind(known), _kind(listed)
    if {ours, theirs} == {"numbers", "text"}:
        raise TypeError(
            f"column {on!r} of the frame holds {ours}, the removal list holds {theirs}: nothing would be removed; convert one of "
            f"them, for example removals.astype({{{name!r}: {known.dtype.name!r}}})"
        )


def _kind(column: Any) -> str | None:
    """Return "numbers" or "text"; None where the type does not tell (an object column that is still to be read)."""
    host = vectors.to_pandas(column)
    if pd.api.types.is_numeric_dtype(host.dtype):
        return "numbers"
    if isinstance(host.dtype, pd.CategoricalDtype):
        return None
    if host.dtype == object:
        inferred = pd.api.types.infer_dtype(host, skipna=True)
        return {"string": "text", "integer": "numbers", "floating": "numbers"}.get(inferred)
    return "text" if pd.api.types.is_string_dtype(host.dtype) else None


def _hashed(column: Any) -> lookup.Hashed:
    return lookup.hashed(vectors.to_pandas(column))


def _is_listed(column: Any, ids: lookup.Lookup) -> Any:
    host = vectors.to_pandas(column)
    listed = ids.find(lookup.plain(host)) >= 0
    if not vectors.on_gpu(column):
        return pd.Series(listed, index=column.index, name=column.name)
    # What is listed of this partition goes back, not the list.
    return column.isin(vectors.from_pandas(host[listed].to_frame(name="id"), column)["id"])


def _found(column: Any, ids: lookup.Lookup) -> np.ndarray:
    found = np.unique(ids.find(lookup.plain(vectors.to_pandas(column))))
    return found[found >= 0]


def _missing(ids: lookup.Lookup, found: Sequence[np.ndarray]) -> tuple[int, int, list[Any]]:
    absent = np.ones(len(ids.ids), dtype=bool)
    for rows in found:
        absent[rows] = False
    named = np.flatnonzero(absent)[: _NAMED + 1]
    return int(absent.sum()), len(absent), ids.ids.take(pa.array(named)).to_pylist()


def _report_missing(found: Sequence[Delayed], ids: Delayed, missing: str) -> None:
    n_missing, n_ids, named = dask.delayed(_missing)(ids, list(found)).compute()
    if not n_missing:
        return
    sentence = f"{n_missing:,} of {n_ids:,} ids to remove are not in the frame: {quoted(named, _NAMED)}"
    if missing == "raise":
        raise ValueError(sentence)
    warnings.warn(sentence, stacklevel=4)
