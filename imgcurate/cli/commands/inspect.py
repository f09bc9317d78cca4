"""``imgcurate inspect``: what shards and image files hold."""

from __future__ import annotations

import argparse
from typing import Any

from imgcurate.cli import clusters, inputs, options
from imgcurate.cli.tables import answer, lines
from imgcurate.printable import plural

_MOST_KINDS = 12


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    inspect = commands.add_parser(
        "inspect",
        help="say what shards, folders or Parquet hold",
        description="Say what tar shards, folders of images, or lists of images in Parquet hold: how many images, their formats and sizes, captions, and "
        "what is broken. Reads headers and captions, no pixels, and writes nothing but the page that --html asks for.",
    )
    inspect.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help=inputs.OF_RUN,
    )
    inspect.add_argument(
        "--decode", action="store_true", help="decode each image too, which finds those that are cut off or damaged"
    )
    inspect.add_argument("--html", metavar="FILE", help="write what is told, and some of the images, as a page")
    inspect.add_argument("--overwrite", action="store_true", help="replace the page that is there")
    options.add_sidecars(inspect)
    options.add_roots(inspect)
    options.add_cluster(inspect)
    options.add_storage(inspect)
    options.add_json(inspect)
    inspect.set_defaults(function=_inspect)


def _inspect(given: argparse.Namespace) -> None:
    from imgcurate.report.inputs import page
    from imgcurate.report.page import refuse_file
    from imgcurate.run.inspection import inspect
    from imgcurate.sources.sidecars import chosen

    if given.html is not None:
        refuse_file(given.html, given.storage_options, overwrite=given.overwrite)
    with clusters.connected(given) as connect:
        what, found = inspect(
            given.inputs,
            decode=given.decode,
            sidecars=chosen(given.caption_from, given.image, given.max_sidecar),
            roots=given.roots,
            storage_options=given.storage_options,
            progress=not given.quiet,
            connect=connect,
        )
        known = {"inputs": what, "decoded": given.decode, **found.as_json()}
        if given.html is not None:
            page(known, found.sample, given.storage_options).save(
                given.html, overwrite=True, storage_options=given.storage_options
            )
    answer(given, known, lines(_told(known)))


def _told(known: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a person is told: names, and what is said of each."""
    from dask.utils import format_bytes

    of_all = f" of {known['images']:,}"
    size = known["bytes"]
    told = [
        ("images", f"{known['images']:,} in {known['inputs']}"),
        (
            "broken",
            f"{known['broken']:,}{'' if known['decoded'] else ' by their headers; --decode looks at the pixels'}",
        ),
    ]
    for error in known["errors"][:_MOST_KINDS]:
        more = ", ..." if error["images"] > len(error["examples"]) else ""
        told.append(("", f"{error['images']:,} {error['kind']} ({', '.join(error['examples'])}{more})"))
    if len(known["errors"]) > _MOST_KINDS:
        told.append(("", f"and {plural(len(known['errors']) - _MOST_KINDS, 'kind')} more; --json has all"))
    told.append(("formats", _counts(known["formats"])))
    for name in ("width", "height"):
        if (spread := known[name]) is not None:
            told.append((name, f"{spread['least']:,.0f} to {spread['most']:,.0f} pixels, mean {spread['mean']:,.0f}"))
    told.append(("shorter side", _counts(known["shorter_side"])))
    if "mean" in size:
        each = f"{format_bytes(int(size['least']))} to {format_bytes(int(size['most']))} an image"
        told.append(("bytes", f"{format_bytes(size['total'])} in all, {each}, mean {format_bytes(int(size['mean']))}"))
    captions, characters = known["captions"], known["characters"]
    spread = (
        f", {characters['least']:.0f} to {characters['most']:,.0f} characters, mean {characters['mean']:,.0f}"
        if characters
        else ""
    )
    empty = f", {captions['empty']:,} more are empty" if captions["empty"] else ""
    told.append(("captions", f"{captions['present']:,}{of_all}{spread}{empty}"))
    told.append(("JSON", f"{known['metadata']:,}{of_all}"))
    told.append(("encodings", _counts(known["text_encodings"])))
    return told


def _counts(known: dict[str, int]) -> str:
    return ", ".join(f"{name}: {n:,}" for name, n in known.items())
