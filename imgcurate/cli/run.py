"""``imgcurate run`` and ``imgcurate verify``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any

from imgcurate.cli import clusters
from imgcurate.cli.tables import nothing_kept, table
from imgcurate.printable import printable

#: The exit status of a run that has finished and kept no image.
NOTHING_KEPT = 3


def add_to(commands: Any) -> None:
    """Add the commands to the parser's."""
    run = commands.add_parser(
        "run",
        help="curate tar shards, or folders of images",
        description="Embed the images of tar shards or folders, score and filter them where a limit is given, remove semantic duplicates, and write "
        "OUT/shards/*.tar (original bytes), OUT/images.parquet (every image, kept or not, and why), OUT/shards.parquet (a digest of each shard) and "
        "OUT/manifest.json. A run that was stopped goes on when the same command is given again.",
        epilog="Exit status: 0; 1 where something is wrong; 2 for a wrong command; 3 where no image is kept; 128 + the signal where it was stopped.",
    )
    run.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="tar shards or image files: paths, folders (read to the bottom), globs, {00000..00041}, any fsspec URL",
    )
    run.add_argument("out", metavar="OUT", help="a folder that is empty, not there yet, or that of a run to go on with")
    _add_model_options(run)
    clusters.add_options(run)
    clusters.add_storage_options(run)
    run.add_argument(
        "--min-aesthetic", type=float, metavar="S", help="keep aesthetic_score >= S (0 to 1); default: not scored"
    )
    run.add_argument("--max-nsfw", type=float, metavar="S", help="keep nsfw_score < S (0 to 1); default: not scored")
    run.add_argument(
        "--dedup",
        default="semantic",
        metavar="KINDS",
        help="which duplicates to remove: some of exact,perceptual,semantic (default %(default)s)",
    )
    run.add_argument("--no-dedup", dest="dedup", action="store_const", const="", help="keep duplicates")
    run.add_argument(
        "--max-distance",
        type=int,
        default=4,
        metavar="BITS",
        help="perceptual: hashes differ in at most BITS (default 4)",
    )
    run.add_argument(
        "--eps",
        type=float,
        help="duplicates have cosine >= 1 - EPS; default: what is known of the model (0.01 for CLIP, 0.2 for efficientnet-lite0), else 0.01",
    )
    run.add_argument(
        "--n-clusters", type=int, metavar="K", help="k-means clusters to look for duplicates in; default: by cost"
    )
    run.add_argument(
        "--probes",
        type=int,
        default=2,
        metavar="P",
        help="compare an image in up to P + 1 clusters near to it; 1: in the nearest (default 2)",
    )
    run.add_argument("--exact", action="store_true", help="lose no pair of semantic duplicates, whatever it costs")
    run.add_argument(
        "--keep",
        type=_keep,
        default="largest",
        help="which of several duplicates stays: largest (most pixels, then most bytes), hard, easy, random, id, or columns such as "
        "aesthetic_score:max,bytes:max (default %(default)s)",
    )
    run.add_argument(
        "--rule",
        choices=("cover", "pointwise", "component"),
        default="cover",
        help="see the README (default %(default)s)",
    )
    run.add_argument(
        "--measure", action="store_true", help="add sharpness, brightness, pHash and so on to images.parquet"
    )
    run.add_argument("--truncated", action="store_true", help="keep images whose end is missing; else they are errors")
    run.add_argument(
        "--formats",
        default="",
        metavar="NAMES",
        help="formats to take beside the usual ones: some of PSD,ICO,TGA,PPM,PCX,QOI",
    )
    run.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds that decoding an image may take; default: no limit but that of its size",
    )
    run.add_argument("--samples-per-shard", type=int, default=10_000, metavar="N", help="default %(default)s")
    run.add_argument(
        "--max-read-errors",
        type=float,
        metavar="SHARE",
        help="stop where more than this share of the images cannot be read; default: 0.01, and ten images of few",
    )
    run.add_argument("--retry-errors", action="store_true", help="read again what a finished run could not read")
    run.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the outputs of a run with other options, models or inputs; only what depends on the difference is computed again",
    )
    run.add_argument(
        "--no-report", dest="report", action="store_false", help="write no OUT/report.html, the page about the run"
    )
    run.set_defaults(function=_run, dtype="auto", draft=True)

    verify = commands.add_parser(
        "verify",
        help="check what a run wrote",
        description="Read OUT again: each shard against its digest, each sample against images.parquet, every kept image in exactly one shard.",
    )
    verify.add_argument("out", metavar="OUT", help="the folder of a run that has finished")
    clusters.add_options(verify)
    clusters.add_storage_options(verify)
    verify.set_defaults(function=_verify)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="openai/clip-vit-large-patch14",
        help="a checkpoint of CLIP, SigLIP, DINOv2, ... (hub id or folder), or efficientnet-lite0 (default %(default)s)",
    )
    parser.add_argument("--model-dir", metavar="DIR", help="where weights lie, for use without a network")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a forward pass; default: by device")


def _keep(text: str) -> Any:
    if text in ("largest", "hard", "easy", "random", "id"):
        return text
    columns = []
    for item in text.split(","):
        column, colon, order = item.rpartition(":")
        if not colon or order not in ("min", "max"):
            raise argparse.ArgumentTypeError(
                f"{item!r} is not largest, hard, easy, random, id or COLUMN:min or COLUMN:max"
            )
        columns.append((column, order))
    return columns


def _run(arguments: argparse.Namespace) -> int:
    from imgcurate.run.curate import carry_out
    from imgcurate.run.options import Options, measured, stages_of

    given = {field.name: getattr(arguments, field.name) for field in fields(Options)}
    formats = tuple(name for name in arguments.formats.split(",") if name)
    given |= {"dedup": stages_of(arguments.dedup), "measure": measured(arguments.measure), "formats": formats}
    options = Options(**given)
    with clusters.connected(arguments) as connect:
        manifest = carry_out(
            arguments.inputs,
            arguments.out,
            options,
            retry_errors=arguments.retry_errors,
            overwrite=arguments.overwrite,
            storage_options=arguments.storage_options,
            report=arguments.report,
            progress=True,
            connect=connect,
        )
    print(table(manifest))
    print(f"\n{arguments.out}/shards  {arguments.out}/images.parquet  {arguments.out}/manifest.json")
    if manifest["counts"]["kept"]:
        return 0
    print(f"imgcurate: {nothing_kept(manifest['counts'], arguments.out)}", file=sys.stderr)
    return NOTHING_KEPT


def _verify(options: argparse.Namespace) -> int:
    from imgcurate.run.verify import verify

    with clusters.connected(options) as connect:
        found = verify(options.out, storage_options=options.storage_options, progress=True, connect=connect)
    for problem in found.problems:
        print(printable(problem, 1000))
    print(found)
    if found.problems:
        print("remove the files that are named and run the same command again: they are made anew")
    return 1 if found.problems else 0
