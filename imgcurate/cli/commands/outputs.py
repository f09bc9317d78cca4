"""``imgcurate sweep`` and ``imgcurate why``: questions to what a run, or a deduplication, has left."""

from __future__ import annotations

import argparse
from typing import Any

from imgcurate.cli import clusters, options
from imgcurate.cli.tables import answer, lines
from imgcurate.printable import plural


def add_to(commands: Any) -> None:
    """Add the commands to the parser's."""
    sweep = commands.add_parser(
        "sweep",
        help="count what other thresholds would remove",
        description="Count how many images other thresholds would remove as semantic duplicates, from the pairs that are stored: nothing is compared again.",
    )
    sweep.add_argument(
        "out",
        metavar="OUT",
        help="the folder of a finished run, of imgcurate dedup, or one that Duplicates.save wrote",
    )
    sweep.add_argument(
        "--eps", type=options.numbers, required=True, metavar="EPS,...", help="the thresholds, such as .01,.02,.05"
    )
    options.add_storage(sweep)
    options.add_json(sweep)
    sweep.set_defaults(function=_sweep)

    why = commands.add_parser(
        "why",
        help="say what became of an image",
        description="Say what became of an image of a run: whether it is kept and why not, where it lies, its scores, and which images are like it.",
    )
    why.add_argument("out", metavar="OUT", help="the folder of a run that has finished")
    why.add_argument("image_id", metavar="IMAGE_ID", help="as in images.parquet, such as 00012/000451")
    options.add_storage(why)
    options.add_json(why)
    why.set_defaults(function=_why)


def _sweep(given: argparse.Namespace) -> None:
    from imgcurate.dedup.result import check_eps

    for eps in given.eps:
        check_eps(eps)
    found = _stored(given)
    most = 1 - found.min_similarity
    beyond = [eps for eps in given.eps if eps > most + 1e-9]
    if beyond:
        raise ValueError(
            f"--eps {beyond[0]:g} asks for pairs of similarity >= {1 - beyond[0]:g}, and {given.out} stores those down to "
            f"{found.min_similarity:g}: give at most {most:g}, or look for duplicates again with a larger --eps"
        )
    with clusters.working():
        table = found.sweep(given.eps)
    rows = [{**row, "in_force": abs(row["eps"] - found.eps) < 1e-9} for row in table.to_dict("records")]
    said = [f"{'eps':>8}{'removed':>12}{'share':>8}"]
    said += [
        f"{row['eps']:>8g}{row['removed']:>12,}{row['fraction']:>8.1%}{'  in force' if row['in_force'] else ''}"
        for row in rows
    ]
    said.append(f"of {plural(found.n_rows, 'image')}, rule {found.rule}; any eps up to {most:g} can be asked for")
    known = {"images": found.n_rows, "rule": found.rule, "eps": found.eps, "most_eps": most, "sweep": rows}
    answer(given, known, "\n".join(said))


def _stored(given: argparse.Namespace) -> Any:
    """Return the pairs that a folder stores."""
    from imgcurate import storage
    from imgcurate.dedup.result import Duplicates
    from imgcurate.run.state.folder import Folder

    out = storage.absolute(given.out, given.storage_options).rstrip("/")
    run = Folder(out, given.storage_options)
    places = [out, f"{out}/duplicates", *(run.graphs().values() if run.manifest() else ())]
    for folder in places:
        if "nodes.parquet" in storage.sizes_in(folder, given.storage_options):
            with clusters.working():
                return Duplicates.load(folder, storage_options=given.storage_options)
    raise FileNotFoundError(
        f"{given.out} stores no pairs of semantic duplicates: it is not the folder of a finished run that looked for them (or .run was removed, or an "
        "earlier version wrote it), nor of imgcurate dedup or Duplicates.save"
    )


def _why(given: argparse.Namespace) -> None:
    from imgcurate.parts import DamagedPart
    from imgcurate.run.explain import explain

    try:
        found = explain(given.out, given.image_id, storage_options=given.storage_options)
    except DamagedPart as problem:
        raise clusters.Failed from problem
    answer(given, found, lines(_told(found)))


def _told(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a person is told of an image: names, and what is said of each."""
    told = [
        ("image", found["image_id"]),
        ("fate", f"kept, in {found['written']}" if found["kept"] else f"not kept: {found['reason']}"),
        ("source", _place(found)),
        ("size", _size(found)),
        ("scores", _scores(found)),
        ("caption", found.get("caption") or ""),
    ]
    twin = found["twin"]
    if twin is not None:
        told += [
            ("kept instead", twin["image_id"]),
            ("  source", _place(twin)),
            ("  size", _size(twin)),
            ("  scores", _scores(twin)),
        ]
    if found["n_duplicates"]:
        more = found["n_duplicates"] - len(found["duplicates"])
        ids = ", ".join(found["duplicates"]) + (f" and {more:,} more" if more else "")
        told.append(("kept for", f"{plural(found['n_duplicates'], 'duplicate')}: {ids}"))
    return told


def _place(row: dict[str, Any]) -> str:
    if row.get("member") is None:
        return str(row["url"])
    return f"{row['member']} in {row['url']}, {int(row['bytes']):,} bytes from {int(row['offset']):,} on"


def _size(row: dict[str, Any]) -> str:
    pixels = f"{int(row['width'])} x {int(row['height'])} pixels, " if row.get("width") is not None else ""
    return f"{pixels}{int(row['bytes']):,} bytes"


def _scores(row: dict[str, Any]) -> str:
    known = [(name, row[name]) for name in row if name.endswith("_score") and row[name] is not None]
    return ", ".join(f"{name} {value:.3f}" for name, value in known)
