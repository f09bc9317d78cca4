"""A frame written as Parquet, image by image, so that it is seen how far it is and a start after a stop goes on."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import dask

from imgcurate import parts, storage
from imgcurate.run.tasks.steps import Steps
from imgcurate.sinks.parquet import write_parquet

# What is done already, in the folder that it goes to.
_WORK = ".unfinished"


class Embedded(NamedTuple):
    """How many images there are, and how many of them have an error."""

    images: int
    errors: int


def write_embeddings(
    frame: Any,
    path: str | os.PathLike[str],
    steps: Steps,
    *,
    overwrite: bool = False,
    storage_options: storage.Options = None,
) -> Embedded:
    """Compute a frame that `embed` gave, and write it as a folder of Parquet files, as `write_parquet` does.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    path : str or path
        The folder. What is computed lies in a hidden folder of it until all is, from which a call after one that was stopped goes on.
    steps : Steps
    overwrite : bool, default False
        Replace the Parquet files that are there.
    storage_options : dict, optional
        For the fsspec filesystem.

    Returns
    -------
    Embedded
    """
    out = storage.absolute(path, storage_options).rstrip("/")
    work = f"{out}/{_WORK}"
    keys, partitions = parts.keys_of(frame), frame.to_delayed()
    with steps("reading"):
        count = dask.delayed(len)
        rows = steps.run((count(part) for part in frame[["image_id"]].to_delayed()), len(keys))
    known = {key: part for key, part in parts.there(work, storage_options).items() if not part.unread}
    left = [number for number, key in enumerate(keys) if key not in known]
    n_left = sum(rows[number] for number in left)
    if len(left) < len(keys):
        steps.say(f"{sum(rows) - n_left:,} of {sum(rows):,} images are embedded already")
    with steps("embedding"):
        write = dask.delayed(parts.write_part, pure=False)
        tasks = (write(partitions[number], work, keys[number], storage_options) for number in left)
        made = steps.run(tasks, n_left, unit="image", size=lambda part: part.rows)
    known |= {part.key: part for part in made}
    written = parts.from_parts([f"{work}/{known[key].name}" for key in keys], frame._meta, storage_options)
    with steps("writing"):
        steps.watch(lambda: write_parquet(written, out, overwrite=overwrite, storage_options=storage_options))
        errors = steps.watch(lambda: int(written["error"].notnull().sum().compute()))
    fs, place = storage.open_filesystem(work, storage_options)
    fs.rm(place, recursive=True)
    return Embedded(sum(rows), errors)


def refuse_files(path: str | os.PathLike[str], overwrite: bool, storage_options: storage.Options = None) -> None:
    """Raise a FileExistsError where `write_embeddings` would, when it has computed everything."""
    fs, place = storage.open_filesystem(os.fspath(path), storage_options)
    if fs.isfile(place):
        raise FileExistsError(f"{os.fspath(path)} is a file; name a folder for the Parquet files")
    there = [name for name in storage.sizes_in(os.fspath(path), storage_options) if name.endswith(".parquet")]
    if there and not overwrite:
        raise FileExistsError(
            f"{os.fspath(path)} holds {len(there):,} Parquet files; name another folder, or replace them with overwrite=True"
        )
