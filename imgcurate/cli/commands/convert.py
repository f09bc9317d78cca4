"""``imgcurate convert``: compressed shards as plain ones."""

from __future__ import annotations

import argparse
from typing import Any

from imgcurate.cli import clusters, options
from imgcurate.cli.tables import answer
from imgcurate.printable import printable


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    convert = commands.add_parser(
        "convert",
        help="decompress tar shards",
        description="Make a plain shard OUT/name.tar of each compressed one (.tar.gz, .tar.bz2, .tar.xz, .tar.zst, .tar.lz4), in which `imgcurate run` "
        "finds the bytes of a sample. Shards that are in OUT already are left as they are, so that a command which was stopped goes on.",
    )
    convert.add_argument(
        "shards",
        nargs="+",
        metavar="IN",
        help="compressed shards: paths, folders, globs, {00000..00041}, any fsspec URL",
    )
    convert.add_argument("out", metavar="OUT", help="the folder for the plain shards")
    convert.add_argument("--overwrite", action="store_true", help="make shards anew that are in OUT")
    convert.add_argument(
        "--max-ratio",
        type=float,
        default=100,
        metavar="N",
        help="a shard that becomes more than N times as large as its file (and more than 64 MiB) is not written (default %(default)s)",
    )
    options.add_cluster(convert)
    options.add_storage(convert)
    options.add_json(convert)
    convert.set_defaults(function=_convert)


def _convert(given: argparse.Namespace) -> int:
    from imgcurate.sinks.convert import convert_shards

    with clusters.connected(given) as connect:
        connect.start()
        made = convert_shards(
            given.shards,
            given.out,
            max_ratio=given.max_ratio,
            overwrite=given.overwrite,
            storage_options=given.storage_options,
        ).compute(scheduler="synchronous")
    errors = made["error"].dropna()
    plain = len(made) - len(errors)
    found = {"out": given.out, "shards": plain, "bytes": made["bytes"].sum(), "problems": list(errors)}
    said = [*(printable(error, 1000) for error in errors)]
    said.append(f"{plain:,} of {len(made):,} shards are plain, {found['bytes']:,} bytes: {printable(given.out)}")
    answer(given, found, "\n".join(said))
    return 1 if len(errors) else 0
