"""``imgcurate run`` and ``imgcurate verify``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, fields
from typing import Any

from imgcurate.cli import clusters, inputs, options
from imgcurate.cli.tables import answer, lines, nothing_kept, table
from imgcurate.printable import printable

#: The exit status of a run that has finished and kept no image.
NOTHING_KEPT = 3


def add_to(commands: Any) -> None:
    """Add the commands to the parser's."""
    run = commands.add_parser(
        "run",
        help="curate tar shards, folders of images, or images that Parquet names",
        description="Embed the images of tar shards or folders, or those that rows of Parquet name, score and filter them where a limit is given, "
        "remove semantic duplicates, and write OUT/shards/*.tar or OUT/files (original bytes), OUT/images.parquet (every image, kept or not, and why), OUT/shards.parquet or OUT/files.parquet "
        "(a digest of each shard or file) and OUT/manifest.json. A run that was stopped goes on when the same command is given again.",
        epilog="Exit status: 0; 1 where something failed; 2 where it was asked for wrongly; 3 where no image is kept; 128 + the signal where it was stopped.",
    )
    run.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help=inputs.OF_RUN,
    )
    run.add_argument("out", metavar="OUT", help="a folder that is empty, not there yet, or that of a run to go on with")
    options.add_model(run)
    filters = options.group(run, "filters")
    filters.add_argument(
        "--min-aesthetic", type=float, metavar="S", help="keep aesthetic_score >= S (0 to 1); default: not scored"
    )
    filters.add_argument(
        "--max-nsfw", type=float, metavar="S", help="keep nsfw_score < S (0 to 1); default: not scored"
    )
    filters.add_argument(
        "--drop",
        default="",
        metavar="FLAGS",
        help="drop images that are any of these, as flag() finds: some of dark,light,blurry,low_information,greyscale,odd_aspect,odd_size; default: none",
    )
    duplicates = options.group(run, "duplicates")
    duplicates.add_argument(
        "--dedup",
        default="semantic",
        metavar="KINDS",
        help="which duplicates to remove: some of exact,perceptual,semantic (default %(default)s)",
    )
    duplicates.add_argument("--no-dedup", dest="dedup", action="store_const", const="", help="keep duplicates")
    options.add_duplicates(run)
    duplicates.add_argument(
        "--max-distance",
        type=int,
        default=4,
        metavar="BITS",
        help="perceptual: hashes differ in at most BITS (default 4)",
    )
    options.add_pixels(run)
    options.add_sidecars(run)
    options.add_roots(run)
    options.group(run, "which images are read, and how").add_argument(
        "--max-read-errors",
        type=float,
        metavar="SHARE",
        help="stop where more than this share of the images cannot be read; default: 0.01, and ten images of few",
    )
    output = options.group(run, "what is written")
    output.add_argument(
        "--write",
        choices=("shards", "files"),
        default="shards",
        help="what kept images become: tar shards, or files in a folder, with what stands beside them (default %(default)s)",
    )
    output.add_argument("--samples-per-shard", type=int, default=10_000, metavar="N", help="default %(default)s")
    output.add_argument(
        "--measure", action="store_true", help="add sharpness, brightness, pHash and so on to images.parquet"
    )
    output.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the outputs of a run with other options, models or inputs; only what depends on the difference is computed again",
    )
    output.add_argument("--retry-errors", action="store_true", help="read again what a finished run could not read")
    output.add_argument(
        "--no-report", dest="report", action="store_false", help="write no OUT/report.html, the page about the run"
    )
    output.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: say what would be read, with which model, and how long it would take at the rate of a hundred images",
    )
    options.add_cluster(run)
    options.add_storage(run)
    options.add_json(run)
    run.set_defaults(function=_run, dtype="auto", draft=True)

    verify = commands.add_parser(
        "verify",
        help="check what a run wrote",
        description="Read OUT again: each shard or file against its digest and against images.parquet, every kept image in exactly one.",
    )
    verify.add_argument("out", metavar="OUT", help="the folder of a run that has finished")
    options.add_cluster(verify)
    options.add_storage(verify)
    options.add_json(verify)
    verify.set_defaults(function=_verify)


def _run(given: argparse.Namespace) -> int:
    from imgcurate.run.curate import carry_out
    from imgcurate.run.options import Options, dropped, measured, stages_of
    from imgcurate.sources.parquet import absolute_roots

    asked = {field.name: getattr(given, field.name) for field in fields(Options)}
    asked |= {
        "drop": dropped(given.drop),
        "dedup": stages_of(given.dedup),
        "measure": measured(given.measure),
        "formats": options.names(given.formats),
        "roots": None if given.roots is None else absolute_roots(given.roots, given.storage_options),
    }
    of_run = Options(**asked)
    with clusters.connected(given, goes_on=not given.dry_run) as connect:
        if given.dry_run:
            return _dry_run(given, of_run, connect)
        manifest = carry_out(
            given.inputs,
            given.out,
            of_run,
            retry_errors=given.retry_errors,
            overwrite=given.overwrite,
            storage_options=given.storage_options,
            report=given.report,
            progress=not given.quiet,
            connect=connect,
        )
    out = printable(given.out)
    answer(given, manifest, f"{table(manifest)}\n\n{out}/{given.write}  {out}/images.parquet  {out}/manifest.json")
    if manifest["counts"]["kept"]:
        return 0
    print(f"imgcurate: {nothing_kept(manifest['counts'], out)}", file=sys.stderr)
    return NOTHING_KEPT


def _dry_run(given: argparse.Namespace, of_run: Any, connect: clusters.Cluster) -> int:
    from imgcurate.run.estimate import estimate

    found = estimate(
        given.inputs,
        given.out,
        of_run,
        overwrite=given.overwrite,
        storage_options=given.storage_options,
        progress=not given.quiet,
        connect=connect,
    )
    answer(given, found.as_json(), lines(list(found.as_rows())))
    return 0


def _verify(given: argparse.Namespace) -> int:
    from imgcurate.run.verify import verify

    with clusters.connected(given) as connect:
        found = verify(given.out, storage_options=given.storage_options, progress=not given.quiet, connect=connect)
    said = [*(printable(problem, 1000) for problem in found.problems), str(found)]
    if found.problems:
        said.append("remove the files that are named and run the same command again: they are made anew")
    answer(given, asdict(found), "\n".join(said))
    return 1 if found.problems else 0
