"""``imgcurate report``: the page about a run, made again from what the run wrote."""

from __future__ import annotations

import argparse
from typing import Any

from imgcurate.cli import clusters, options
from imgcurate.cli.tables import answer
from imgcurate.printable import printable


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    report = commands.add_parser(
        "report",
        help="make the page about a run again",
        description="Write OUT/report.html, one self-contained page with pictures about a run that has finished: what became of its images and "
        "why, duplicates, scores, errors, a map. A run writes it too, unless it is told --no-report.",
    )
    report.add_argument("out", metavar="OUT", help="the folder of a run that has finished")
    options.add_cluster(report)
    options.add_storage(report)
    options.add_json(report)
    report.set_defaults(function=_report)


def _report(given: argparse.Namespace) -> None:
    from imgcurate import storage
    from imgcurate.report.run import write_report
    from imgcurate.run.state.folder import Folder
    from imgcurate.run.tasks.steps import Steps

    url = storage.absolute(given.out, given.storage_options).rstrip("/")
    run = Folder(url, given.storage_options)
    place = run.report
    run.images(run.finished(given.out))
    with clusters.connected(given) as connect:
        steps = Steps(connect, progress=not given.quiet)
        with steps("writing the report"):
            write_report(url, place, run.graphs().values(), steps.watch, given.storage_options)
    seconds = steps.seconds["writing the report"]
    answer(given, {"report": place, "seconds": seconds}, f"{printable(place)} written in {seconds:.1f} s")
