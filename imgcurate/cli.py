"""The command line: `imgcurate run` curates shards, `imgcurate demo` shows it on real photos."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgcurate import __version__

_DEMO_MARK = ".imgcurate-demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.function(options)
    except KeyboardInterrupt:
        print("imgcurate: stopped", file=sys.stderr)
        return 130
    except (OSError, ValueError, KeyError, TypeError, ImportError) as problem:
        text = problem.args[0] if isinstance(problem, KeyError) and problem.args else problem
        print(f"imgcurate: {text}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="imgcurate", description="Curate image datasets in WebDataset tar shards.")
    parser.add_argument("--version", action="version", version=f"imgcurate {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser(
        "run",
        help="curate tar shards",
        description="Embed the images of tar shards, score and filter them where a limit is given, remove semantic duplicates, and write "
        "OUT/shards/*.tar (original bytes), OUT/images.parquet (every image, kept or not, and why) and OUT/manifest.json.",
    )
    run.add_argument(
        "shards", nargs="+", metavar="SHARDS", help="tar shards: paths, folders, globs, {00000..00041}, any fsspec URL"
    )
    run.add_argument("out", metavar="OUT", help="a folder that is empty or not there yet")
    _add_model_options(run)
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
    run.add_argument("--eps", type=float, default=0.01, help="duplicates have cosine >= 1 - EPS (default %(default)s)")
    run.add_argument(
        "--n-clusters", type=int, metavar="K", help="k-means clusters to look for duplicates in; default: by cost"
    )
    run.add_argument(
        "--probes", type=int, default=2, metavar="P", help="compare an image in its P nearest clusters (default 2)"
    )
    run.add_argument("--exact", action="store_true", help="lose no pair of semantic duplicates, whatever it costs")
    run.add_argument(
        "--keep",
        type=_keep,
        default="hard",
        help="which of several duplicates stays: hard, easy, random, id, or columns such as aesthetic_score:max,size:max (default hard)",
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
    run.add_argument("--samples-per-shard", type=int, default=10_000, metavar="N", help="default %(default)s")
    run.add_argument("--overwrite", action="store_true", help="replace the outputs of an earlier run in OUT")
    run.set_defaults(function=_run)

    demo = commands.add_parser(
        "demo",
        help="curate real photos that installed packages ship",
        description="Gather photos that installed Python packages ship, make shards of them with planted copies and unreadable files, "
        "run the job, and say how many of the copies it found.",
    )
    demo.add_argument("out", metavar="OUT", help="a folder that is empty or not there yet")
    demo.add_argument("--overwrite", action="store_true", help="replace an earlier demo in OUT")
    demo.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask scheduler")
    demo.set_defaults(function=_demo)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="openai/clip-vit-large-patch14",
        help="a checkpoint of CLIP, SigLIP, DINOv2, ... (hub id or folder), or efficientnet-lite0 (default %(default)s)",
    )
    parser.add_argument("--model-dir", metavar="DIR", help="where weights lie, for use without a network")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a forward pass; default: by device")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="a running Dask scheduler; default: this machine's GPUs or cores"
    )


def _keep(text: str) -> Any:
    if text in ("hard", "easy", "random", "id"):
        return text
    columns = []
    for item in text.split(","):
        column, colon, order = item.rpartition(":")
        if not colon or order not in ("min", "max"):
            raise argparse.ArgumentTypeError(f"{item!r} is not hard, easy, random, id or COLUMN:min or COLUMN:max")
        columns.append((column, order))
    return columns


def _run(options: argparse.Namespace) -> None:
    from imgcurate.cluster import connect
    from imgcurate.curate import curate

    with connect(options.scheduler):
        manifest = curate(
            options.shards,
            options.out,
            model=options.model,
            model_dir=options.model_dir,
            min_aesthetic=options.min_aesthetic,
            max_nsfw=options.max_nsfw,
            dedup=[kind for kind in options.dedup.split(",") if kind],
            max_distance=options.max_distance,
            eps=options.eps,
            n_clusters=options.n_clusters,
            probes=options.probes,
            exact=options.exact,
            keep=options.keep,
            rule=options.rule,
            samples_per_shard=options.samples_per_shard,
            batch_size=options.batch_size,
            measure=options.measure,
            truncated=options.truncated,
            overwrite=options.overwrite,
            progress=True,
        )
    print(table(manifest))
    print(f"\n{options.out}/shards  {options.out}/images.parquet  {options.out}/manifest.json")


def table(manifest: dict[str, Any]) -> str:
    """Say in a table what became of the images.

    Parameters
    ----------
    manifest : dict
        What `curate` returns.

    Returns
    -------
    str
        A line a step; its counts add up to the images read.
    """
    counts, options = manifest["counts"], manifest["options"]
    lines = [
        ("read", "read", ""),
        ("errors", "errors", ""),
        ("below aesthetic", "below_aesthetic", _limit("aesthetic_score <", options["min_aesthetic"])),
        ("above NSFW", "above_nsfw", _limit("nsfw_score >=", options["max_nsfw"])),
        ("duplicates", "duplicates", _kinds(options)),
        ("kept", "kept", f"in {counts['shards']} shard{'s' * (counts['shards'] != 1)}"),
    ]
    read = max(1, counts["read"])
    return "\n".join(
        f"{title:<16}{counts[name]:>12,}{counts[name] / read:>8.1%}  {note}".rstrip() for title, name, note in lines
    )


def _kinds(options: dict[str, Any]) -> str:
    """Say which images count as duplicates."""
    said = {
        "exact": "same bytes",
        "perceptual": f"at most {options['max_distance']} of 64 bits differ",
        "semantic": f"cosine >= 1 - {options['eps']:g}",
    }
    return ", or ".join(said[kind] for kind in options["dedup"]) or "not asked for"


def _limit(text: str, limit: float | None) -> str:
    return "not asked for" if limit is None else f"{text} {limit:g}"


def _demo(options: argparse.Namespace) -> None:
    from imgcurate import demo
    from imgcurate.cluster import connect
    from imgcurate.curate import curate
    from imgcurate.sources.parquet import read_parquet

    out = Path(options.out)
    source, curated = out / "source", out / "curated"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        # "source" is what many folders are called: only one that a demo made is removed.
        if not (options.overwrite and (out / _DEMO_MARK).is_file()):
            raise FileExistsError(
                f"{out} is not empty; name another folder, or replace an earlier demo with --overwrite"
            )
        for folder in (source, curated):
            shutil.rmtree(folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / _DEMO_MARK).write_text("made by imgcurate demo, which may replace what lies beside this file\n")
    planted = demo.make_shards(source)
    photos = demo.photos()
    packages = ", ".join(sorted({photo.package for photo in photos}))
    print(f"{len(photos)} photos from {packages}, {len(planted)} planted copies: {source}", flush=True)
    with connect(options.scheduler):
        # This encoder's cosines of copies are lower than CLIP's: 0.2 is what separates copies from different photos.
        manifest = curate(
            os.fspath(source),
            curated,
            model="efficientnet-lite0",
            eps=0.2,
            keep=[("width", "max"), ("size", "max")],
            progress=True,
        )
        images = read_parquet(curated / "images.parquet").compute()
    print(f"\n{table(manifest)}\n")
    removed = images[~images["kept"]]
    for image_id, reason in zip(removed["image_id"], removed["reason"], strict=True):
        print(f"  {image_id:<36} {reason}")
    duplicates = images[images["duplicate_of"].notna()]
    found = demo.found(planted, dict(zip(duplicates["image_id"], duplicates["duplicate_of"], strict=True)))
    print(f"\nfound {len(found)} of {len(planted)} planted copies")
    print(f"{curated}/shards  {curated}/images.parquet  {curated}/manifest.json")


if __name__ == "__main__":
    sys.exit(main())
