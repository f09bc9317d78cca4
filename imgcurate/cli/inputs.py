"""What commands that work on frames are given: tar shards, image files, or Parquet that names images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from imgcurate.cli import options

_PARQUET = (".parquet", ".pq")
#: What ``imgcurate run`` and ``imgcurate inspect`` take, in their help.
OF_RUN = (
    "tar shards, image files, or Parquet whose rows name images (images.parquet of a run, what embed wrote, a list of your own with a column url): "
    "paths, folders (read to the bottom), globs, {00000..00041}, any fsspec URL"
)


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
    from imgcurate.sources.references import References
    from imgcurate.sources.sidecars import chosen
    from imgcurate.sources.webdataset import Shard, read_webdataset

    where: dict[str, Any] = {"storage_options": given.storage_options}
    sidecars = chosen(given.caption_from, given.image, given.max_sidecar)
    if _is_parquet(given):
        storage.expand(given.inputs, _PARQUET, given.storage_options)
        return Inputs("Parquet that names images", partial(read_parquet, given.inputs[0], **where))
    units = inputs.find(given.inputs, given.storage_options)
    if isinstance(units[0].content, References):  # a folder of it
        _refuse_several(given)
        return Inputs(inputs.describe(units), partial(read_parquet, given.inputs[0], **where))
    inputs.check_sidecars(sidecars, units)
    where["max_sidecar"] = given.max_sidecar
    if isinstance(units[0].content, Shard):
        where |= {"caption_from": given.caption_from, "image": given.image}
        return Inputs(inputs.describe(units), partial(read_webdataset, given.inputs, **where))
    return Inputs(inputs.describe(units), partial(read_files, given.inputs, **where))


def _is_parquet(given: argparse.Namespace) -> bool:
    named = [path.rstrip("/").lower().endswith(_PARQUET) for path in given.inputs]
    if any(named):
        _refuse_several(given)
    return any(named)


def _refuse_several(given: argparse.Namespace) -> None:
    if len(given.inputs) > 1:
        raise ValueError("Parquet that names images is given alone: name one file, folder or glob as INPUT")
