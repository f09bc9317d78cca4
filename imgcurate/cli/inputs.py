"""What commands that work on frames are given: tar shards, image files, or Parquet that names images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from imgcurate.cli import options

_PARQUET = (".parquet", ".pq")


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the inputs, and the options that say how they are read."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="tar shards or image files: paths, folders (read to the bottom), globs, {00000..00041}, any fsspec URL; or one .parquet with the columns url, "
        "offset and bytes",
    )
    options.add_sidecars(parser)


class Inputs(NamedTuple):
    """What a command is to read.

    Attributes
    ----------
    said : str
        What the inputs were taken for, such as ``"3 tar shards"``.
    read : callable
        Gives them as a frame, lazily, on the backend of the cluster, which must be there.
    """

    said: str
    read: Callable[[], Any]


def find(given: argparse.Namespace) -> Inputs:
    """Find the inputs, without a cluster; raises where there are none."""
    from imgcurate import storage
    from imgcurate.run import inputs
    from imgcurate.sources.files import read_files
    from imgcurate.sources.parquet import read_parquet
    from imgcurate.sources.sidecars import chosen
    from imgcurate.sources.webdataset import Shard, read_webdataset

    where: dict[str, Any] = {"storage_options": given.storage_options}
    sidecars = chosen(given.caption_from, given.image, given.max_sidecar)
    if _is_parquet(given):
        storage.expand(given.inputs, _PARQUET, given.storage_options)
        return Inputs("Parquet that names images", partial(read_parquet, given.inputs[0], **where))
    units = inputs.find(given.inputs, given.storage_options)
    inputs.check_sidecars(sidecars, units)
    where["max_sidecar"] = given.max_sidecar
    if isinstance(units[0].content, Shard):
        where |= {"caption_from": given.caption_from, "image": given.image}
        return Inputs(inputs.describe(units), partial(read_webdataset, given.inputs, **where))
    return Inputs(inputs.describe(units), partial(read_files, given.inputs, **where))


def refuse_parquet(given: argparse.Namespace) -> None:
    """Raise where Parquet is given to a command that reads shards and image files."""
    named = [path for path in given.inputs if path.rstrip("/").lower().endswith(_PARQUET)]
    if named:
        raise ValueError(
            f"{named[0]} is Parquet, and imgcurate {given.command} reads tar shards and image files: imgcurate embed and imgcurate remove take "
            "Parquet that names images"
        )


def _is_parquet(given: argparse.Namespace) -> bool:
    named = [path.rstrip("/").lower().endswith(_PARQUET) for path in given.inputs]
    if any(named) and len(named) > 1:
        raise ValueError("Parquet that names images is given alone: name one file, folder or glob as INPUT")
    return any(named)
