"""An attempt to make a part of the rows of a shard: images that kill the process that decodes them become errors in the next one."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from typing import Any

import pandas as pd

from imgcurate import measures, parts, pixels, schema, storage, tar, vectors
from imgcurate.parts import Part
from imgcurate.run.output.columns import Make, Rows, read_listed
from imgcurate.run.state.owner import is_here, lives, this_process
from imgcurate.run.tasks.probe import killers


def make_part(
    make: Make, rows: Rows, folder: str, key: str, replaced: str | None, like: Any, storage_options: storage.Options
) -> Part:
    """Make a part of a shard's rows and write it, in place of the one `replaced`; images that kill the process become errors.

    Parameters
    ----------
    make : Columns, Hashes or Measures
    rows : Rows
    folder : str
        Of the table.
    key : str
    replaced : str or None
        The name of an earlier part.
    like : pandas or cuDF DataFrame
        Where the part is to be made.
    storage_options : dict or None
    """
    host = read_listed(rows, storage_options)
    # What is wrong with a text is no matter of the image: who reads it otherwise need not look at the image again.
    host["error"] = host["error"].mask(_of_sidecar(host["error"]))
    # The first that was there when it was listed: of image files others may be links to nothing.
    for url in host["url"][host["error"].isna()].head(1):
        try:
            storage.etag(url, storage_options)
        except FileNotFoundError:
            raise tar.ShardChanged(url, "it is gone") from None
    with _begun(f"{folder}/{key}.begun", storage_options) as died:
        if died:
            host = _without_killers(host, make, like, storage_options)
        part = make(vectors.from_pandas(host, like), 1 if died else None)
    made = parts.write_part(part, folder, key, storage_options)
    if replaced is not None and replaced != made.name:
        storage.remove(f"{folder}/{replaced}", storage_options)
    return made


@contextlib.contextmanager
def _begun(mark: str, storage_options: storage.Options) -> Iterator[bool]:
    """Tell whether the process of an earlier attempt died, from the mark that it left."""
    fs, path = storage.open_filesystem(mark, storage_options)
    before = storage.read_if_there(mark, storage_options)
    fs.touch(path)  # a full disk has room for that, and perhaps not for who it is
    with contextlib.suppress(OSError):
        fs.pipe_file(path, json.dumps(this_process()).encode())
    try:
        yield before is not None and not _is_at_it(before)
    finally:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)


def _is_at_it(mark: bytes) -> bool:
    """Tell whether who left a mark still works: on a task that Dask gave to another too, or that was cancelled."""
    try:
        owner = json.loads(mark)
        return is_here(owner) and lives(owner)
    except (ValueError, KeyError):
        return False


def _without_killers(host: pd.DataFrame, make: Make, like: Any, storage_options: storage.Options) -> pd.DataFrame:
    """Return rows with an error at each image that kills a process which works on it alone."""
    on_gpu = vectors.on_gpu(like)
    if not on_gpu:
        make.load("cpu")

    usable = [row for row, error in enumerate(host["error"].isna()) if error]
    with _on_this_machine(host, usable, storage_options) as local:

        def alone(row: int) -> None:
            image = local.iloc[[row]]
            # CUDA cannot be used in a fork, and decoders are what kills.
            measures.measure_part(image, ["brightness"], threads=1) if on_gpu else make(image, 1)

        found = killers(usable, alone)
    errors = host["error"].to_list()
    for row, how in found.items():
        errors[row] = f"decode: the process that decoded it died ({how})"
    return host.assign(error=pd.array(errors, dtype=schema.TEXT))


@contextlib.contextmanager
def _on_this_machine(host: pd.DataFrame, usable: list[int], storage_options: storage.Options) -> Iterator[pd.DataFrame]:
    """Give rows whose images lie on this machine: in a fork, the threads in which clients of stores read are missing."""
    if all(storage.is_local(storage.path_of(url)) for url in host["url"]):
        yield host
        return
    with tempfile.NamedTemporaryFile(prefix="imgcurate-") as file:
        places = ((host["url"][row], host["offset"][row], host["bytes"][row]) for row in usable)
        offsets = [0] * len(host)
        for row, image in zip(usable, pixels.read_images(places, storage_options), strict=True):
            offsets[row] = file.tell()
            if isinstance(image, bytes):
                file.write(image)
        file.flush()
        yield host.assign(url=file.name, offset=offsets).drop(columns="etag")


def _of_sidecar(errors: pd.Series) -> pd.Series:
    return errors.str.startswith("sidecar: ").fillna(False).astype(bool)
