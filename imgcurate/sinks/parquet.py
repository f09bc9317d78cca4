"""Rows as Parquet that any reader opens: pandas, pyarrow, Dask, cuDF, polars, DuckDB."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import dask

from imgcurate import identity, parts, schema, storage
from imgcurate.cluster import interruptible


@interruptible
def write_parquet(
    frame: Any,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    storage_options: storage.Options = None,
) -> list[str]:
    """Compute a frame and write it as a folder of Parquet files, one a partition.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    path : str or path
        The folder. Files appear in it, as ``part.00000.parquet`` and so on, when all are whole.
    overwrite : bool, default False
        Replace the Parquet files that are there. `frame` may be read from them.
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    list of str
        The files. Their metadata names the encoder of the embeddings, as JSON under ``imgcurate.encoder``: ``name``, ``kind``,
        ``dimension`` and ``fingerprint``.

    Raises
    ------
    FileExistsError
        Where Parquet files are there and `overwrite` is false.
    ValueError
        Where the frame mixes the embeddings of two encoders.

    Examples
    --------
    >>> write_parquet(frame, "curated/images.parquet")  # doctest: +SKIP
    """
    schema.require(frame, [], "write_parquet")
    with storage.staged_folder(path, ".parquet", overwrite=overwrite, storage_options=storage_options) as folder:
        write = dask.delayed(_write_part)
        # Of a frame read from Parquet of which few columns are left, Dask makes fewer partitions than it said.
        tasks = [
            write(part, folder, f"part.{number:05d}.parquet", storage_options)
            for number, part in enumerate(frame.to_delayed())
        ]
        written = dask.compute(*tasks)
        identity.one([encoder for part in written for encoder in part.encoders], "the frame")
    return [f"{storage.absolute(path, storage_options)}/{part.name}" for part in written]


class Written(NamedTuple):
    """A file that was written: its name, number of rows, and the encoders of its embeddings."""

    name: str
    rows: int
    encoders: frozenset[identity.Identity]


def _write_part(part: Any, folder: str, name: str, storage_options: storage.Options) -> Written:
    with storage.open_atomic(f"{folder}/{name}", storage_options) as file:
        parts.write_table(parts.to_table(part), file)
    return Written(name, len(part), parts.encoders_of(part))
