"""``imgcurate remove``: shards without the images of a list."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any

from imgcurate.cli import clusters, inputs, options
from imgcurate.cli.commands.run import NOTHING_KEPT
from imgcurate.cli.tables import answer, lines
from imgcurate.printable import plural

# What shards are written from, and what is looked at where it is there.
_NEEDED = ("image_id", "url", "member", "offset", "bytes", "sample_offset", "sample_size")
_LOOKED_AT = ("etag", "digest", "error")


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    remove = commands.add_parser(
        "remove",
        help="write shards without the images of a list",
        description="Write the samples of the inputs as tar shards OUT/00000.tar, ... without those whose id is on a list: what imgcurate dedup wrote, or any "
        "Parquet with a column of ids; of a run's images.parquet, the ids of images that are not kept. Bytes are copied as they are.",
        epilog="Exit status: 0; 1 where something failed, or no id of the list is in the inputs; 2 where it was asked for wrongly; 3 where no image is left.",
    )
    inputs.add_to(remove)
    remove.add_argument(
        "removals", metavar="REMOVALS", help="a Parquet file or folder of ids, or the folder that imgcurate dedup wrote"
    )
    remove.add_argument("out", metavar="OUT", help="a folder for the shards")
    remove.add_argument(
        "--on", default="image_id", metavar="COLUMN", help="the column that is compared (default %(default)s)"
    )
    remove.add_argument(
        "--removals-on", metavar="COLUMN", help="what that column is called in REMOVALS; default: as in the inputs"
    )
    remove.add_argument("--samples-per-shard", type=int, default=10_000, metavar="N", help="default %(default)s")
    remove.add_argument("--overwrite", action="store_true", help="replace the shards that are there")
    options.add_cluster(remove)
    options.add_storage(remove)
    options.add_json(remove)
    remove.set_defaults(function=_remove)


def _remove(given: argparse.Namespace) -> int:
    from imgcurate import schema, storage
    from imgcurate.dedup import removal
    from imgcurate.run.state.folder import refuse_inside
    from imgcurate.run.tasks.steps import Steps
    from imgcurate.sinks.webdataset import check_samples_per_shard, write_webdataset
    from imgcurate.sources.parquet import read_parquet

    check_samples_per_shard(given.samples_per_shard)
    there = [name for name in storage.sizes_in(given.out, given.storage_options) if name.endswith(".tar")]
    if there and not given.overwrite:
        raise FileExistsError(
            f"{given.out} holds {plural(len(there), 'shard')}; name another folder, or replace them with --overwrite"
        )
    refuse_inside(given.out, given.inputs)
    found = inputs.find(given)
    place = _list_of(given)
    removal.refuse_folder(place, given.storage_options)
    with clusters.connected(given) as connect:
        connect.start()
        removals = read_parquet(place, storage_options=given.storage_options)
        removal.check_list(removals, given.on, given.removals_on, place)
        frame = found.read()
        schema.require_columns(frame, [*_NEEDED, given.on], "remove")
        # Vectors would only be carried along.
        frame = frame[[column for column in frame.columns if column in (*_NEEDED, *_LOOKED_AT, given.on)]]
        steps = Steps(connect.start, not given.quiet)
        steps.say(f"reading {found.said}")
        with steps("reading"):
            frame = frame.persist()
            images, _ = steps.watch(lambda: _counts(frame))
            _refuse_sources(given.out, storage.absolute(given.out, given.storage_options), frame)
        connect()
        with steps("removing"):
            left = steps.watch(lambda: _without(frame, removals, given))
            stay, errors = steps.watch(lambda: _counts(left))
        with steps("writing shards"):
            table = steps.watch(
                lambda: write_webdataset(
                    left,
                    given.out,
                    samples_per_shard=given.samples_per_shard,
                    overwrite=given.overwrite,
                    storage_options=given.storage_options,
                ).compute()
            )
    known = {
        "inputs": found.said,
        "out": given.out,
        "images": images,
        "removed": images - stay,
        "errors": errors,
        "written": table["samples"].sum(),
        "shards": len(table),
        "bytes": table["bytes"].sum(),
    }
    told = [
        ("images", f"{images:,} in {found.said}"),
        ("removed", f"{known['removed']:,}"),
        ("errors", f"{errors:,}{' more, which cannot be written; imgcurate inspect says why' * bool(errors)}"),
        ("written", f"{known['written']:,} in {plural(len(table), 'shard')}: {given.out}"),
    ]
    answer(given, known, lines(told))
    if known["written"]:
        return 0
    print(
        f"imgcurate: no image is left: of {plural(images, 'image')} {known['removed']:,} {'is' if known['removed'] == 1 else 'are'} on the list "
        f"and {errors:,} more {'has' if errors == 1 else 'have'} an error",
        file=sys.stderr,
    )
    return NOTHING_KEPT


def _without(frame: Any, removals: Any, given: argparse.Namespace) -> Any:
    """Return the rows that are not on the list; raises where no id of the list is there, for then it is the list of something else."""
    from imgcurate.dedup.removal import remove

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", r"([\d,]+) of \1 ids to remove are not in the frame")
            return remove(frame, removals, given.on, removals_on=given.removals_on)
    except UserWarning as none:
        raise RuntimeError(
            f"{none}; nothing is written: --on and --removals-on name the columns that are compared"
        ) from none


def _refuse_sources(named: str, out: str, frame: Any) -> None:
    """Raise where shards would be written among those that they are copied from."""
    if bool(frame["url"].map_partitions(_lie_below, out, meta=("url", bool)).any().compute()):
        raise FileExistsError(f"{named} holds sources, which are never replaced; name another folder")


def _lie_below(urls: Any, folder: str) -> Any:
    """Tell whether any file lies in a folder, as a series of one value."""
    from imgcurate import storage, vectors

    host = vectors.to_pandas(urls)
    folders = set(host.str.rpartition("/")[0])
    return (
        host.iloc[:1].map(lambda url: any(storage.lies_below(f"{name}/any", [folder]) for name in folders)).astype(bool)
    )


def _counts(frame: Any) -> tuple[int, int]:
    """Return how many rows a frame has, and how many of them have an error."""
    if "error" not in frame.columns:
        return len(frame), 0
    errors = frame["error"].notnull().compute()
    return len(errors), int(errors.sum())


def _list_of(given: argparse.Namespace) -> str:
    """Return where the ids lie: of what `imgcurate dedup` wrote, in a folder of it."""
    from imgcurate import storage

    inside = f"{given.removals.rstrip('/')}/removals.parquet"
    fs, path = storage.open_filesystem(inside, given.storage_options)
    return inside if fs.exists(path) else given.removals
