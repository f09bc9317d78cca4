"""``imgcurate report``: the page about a run, made again from what the run wrote."""

from __future__ import annotations

import argparse
from typing import Any

from imgcurate.cli import clusters


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    report = commands.add_parser(
        "report",
        help="make the page about a run again",
        description="Write OUT/report.html, one self-contained page with pictures about a run that has finished: what became of its images and "
        "why, duplicates, scores, errors, a map. A run writes it too, unless it is told --no-report.",
    )
    report.add_argument("out", metavar="OUT", help="the folder of a run that has finished")
    clusters.add_options(report)
    clusters.add_storage_options(report)
    report.set_defaults(function=_report)


def _report(options: argparse.Namespace) -> None:
    from imgcurate import storage
    from imgcurate.report.run import write_report
    from imgcurate.report.run.gather import manifest_of
    from imgcurate.run.folder import REPORT
    from imgcurate.run.steps import Steps

    url = storage.absolute(options.out, options.storage_options).rstrip("/")
    place = f"{url}/{REPORT}"
    manifest_of(url, options.storage_options)
    with clusters.connected(options) as connect:
        client = connect()
        steps = Steps(lambda: client, progress=True)
        with steps("writing the report"):
            write_report(url, place, steps.watch, options.storage_options)
    print(f"{place} written in {steps.seconds['writing the report']:.1f} s")
