"""``imgcurate demo``: the job on real photos that installed packages ship."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

from imgcurate.cli import clusters, options
from imgcurate.cli.tables import table
from imgcurate.printable import printable

_MARK = ".imgcurate-demo"


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    demo = commands.add_parser(
        "demo",
        help="curate real photos that installed packages ship",
        description="Gather photos that installed Python packages ship, make shards of them with planted copies and unreadable files, "
        "run the job, and say how many of the copies it found.",
    )
    demo.add_argument("out", metavar="OUT", help="a folder that is empty or not there yet")
    demo.add_argument("--overwrite", action="store_true", help="replace an earlier demo in OUT")
    options.add_cluster(demo)
    demo.set_defaults(function=run)


def run(given: argparse.Namespace) -> None:
    from imgcurate import demo, vectors
    from imgcurate.run.curate import curate
    from imgcurate.sources.parquet import read_parquet

    out = Path(given.out)
    source, curated = out / "source", out / "curated"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        # "source" is what many folders are called: only one that a demo made is removed.
        if not (given.overwrite and (out / _MARK).is_file()):
            raise FileExistsError(
                f"{out} is not empty; name another folder, or replace an earlier demo with --overwrite"
            )
        for folder in (source, curated):
            shutil.rmtree(folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text("made by imgcurate demo, which may replace what lies beside this file\n")
    planted = demo.make_shards(source)
    photos = demo.photos()
    packages = ", ".join(sorted({photo.package for photo in photos}))
    print(f"{len(photos)} photos from {packages}, {len(planted)} planted copies: {source}", flush=True)
    with clusters.connected(given) as connect:
        connect()
        manifest = curate(os.fspath(source), curated, model="efficientnet-lite0", progress=not given.quiet)
        images = vectors.to_pandas(read_parquet(curated / "images.parquet").compute())
    print(f"\n{table(manifest)}\n")
    removed = images[~images["kept"]]
    for image_id, reason in zip(removed["image_id"], removed["reason"], strict=True):
        print(f"  {printable(image_id):<36} {printable(reason)}")
    duplicates = images[images["duplicate_of"].notna()]
    found = demo.found(planted, dict(zip(duplicates["image_id"], duplicates["duplicate_of"], strict=True)))
    print(f"\nfound {len(found)} of {len(planted)} planted copies")
    print(f"{curated}/shards  {curated}/images.parquet  {curated}/manifest.json")
    print(f"open {curated}/report.html in a browser")
