"""The sections of a page about a run: what each says, of what was gathered, as its template takes it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from imgcurate import flags, storage
from imgcurate.printable import plural, printable
from imgcurate.report import charts
from imgcurate.report.page import share
from imgcurate.report.run import facts, funnel, map
from imgcurate.report.run.album import Album
from imgcurate.report.run.command import command, only_of_curate
from imgcurate.report.run.counts import Counts
from imgcurate.report.run.gather import Gathered

#: The pairs of each kind that are shown: those of equal bytes say little.
_PAIRS = {"semantic": facts.PAIRS, "perceptual": 6, "exact": 3}
_POINTS = 40
# The side of a picture on the map, in pixels, of up to so many images; of a map as wide as the page.
_SIDES, _MAP_WIDTH, _ON_MAP = ((52, 80), (40, 240), (32, 1 << 30)), 1200, 160
_MOST_INPUTS, _MOST_TEXT = 10, 20_000
_TIMES = "\N{MULTIPLICATION SIGN}"


def kept(gathered: Gathered, album: Album) -> dict[str, Any] | None:
    """Return a sample of what is kept."""
    rows = _rows(gathered, "kept", "")
    if rows is None:
        return None
    return {"pictures": album.add(rows, texts=_caption), "all": gathered.manifest["counts"]["kept"]}


def duplicates(gathered: Gathered, album: Album) -> list[dict[str, Any]]:
    """Return of each kind of duplicates the pairs that are least alike, and how like all are."""
    assert gathered.facts is not None
    found = []
    for kind in ("semantic", "perceptual", "exact"):
        n = gathered.manifest["reasons"].get(kind, 0)
        rows = _rows(gathered, "least", kind)
        if not n or rows is None or gathered.relatives is None:
            continue
        twins = gathered.relatives.images.drop_duplicates("image_id").set_index("image_id", drop=False)
        rows = rows[rows["duplicate_of"].isin(twins.index)].head(_PAIRS[kind])
        gone = album.add(rows, texts=_caption, fields=_size)
        stay = album.add(twins.loc[rows["duplicate_of"]], texts=_caption, fields=_size)
        pairs = [
            {"kept": one, "gone": other, "said": _similarity(kind, other.row), "reason": other.row["reason"]}
            for one, other in zip(stay, gone, strict=True)
        ]
        curve, outside = (_curve(gathered, n), _outside(gathered, twins, album)) if kind == "semantic" else ("", [])
        recall = gathered.manifest.get("recall") if kind == "semantic" else None
        found.append(
            {
                "kind": kind,
                "label": funnel.KINDS[kind],
                "n": n,
                "pairs": pairs,
                "curve": curve,
                "outside": outside,
                "recall": recall,
            }
        )
    return found


def groups(gathered: Gathered, album: Album) -> dict[str, Any] | None:
    """Return the images with most duplicates, each with the least similar of these."""
    if gathered.relatives is None or not gathered.groups or gathered.facts is None:
        return None
    found = gathered.relatives
    of_kept = found.images.drop_duplicates("image_id").set_index("image_id", drop=False)
    made = [
        {
            "kept": album.add(of_kept.loc[[image_id]], fields=_size)[0],
            "gone": [
                (picture, _similarity(picture.row["reason_kind"], picture.row))
                for picture in album.add(found.members[image_id], fields=_size)
            ],
            "n": found.sizes[image_id],
        }
        for image_id in gathered.groups
        if image_id in of_kept.index
    ]
    return {"groups": made, "missing": gathered.facts.tallies["group"].missing}


def flags_and_scores(gathered: Gathered, album: Album) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return of each flag and of each score with a limit its histogram, and the images on either side of the limit."""
    assert gathered.facts is not None
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = [], []
    for name, limit in facts.limits_of(gathered.manifest).items():
        counted = gathered.facts.histograms.get(name)
        if counted is None or not counted.n:
            continue
        keep = "<" if name == "nsfw_score" or name in flags.ABOVE else ">="
        # A flag lies beyond its limit: what is at it stays.
        sign, what = ("<=" if name in flags.ABOVE else keep), flags.COMPARED.get(name, name)
        places = (
            ("at the limit or just below", "just above")
            if sign == "<="
            else ("just below the limit", "at the limit or just above")
        )
        passing = counted.at_least if keep == ">=" else counted.n - counted.at_least
        sides = []
        for which, place in zip(("below", "above"), places, strict=True):
            rows = _rows(gathered, which, name)
            pictures = [] if rows is None else album.add(rows, texts=partial(_value, name=name))
            passes = (which == "above") == (keep == ">=")
            sides.append({"place": place, "passes": passes, "pictures": pictures})
        chart = charts.histogram(counted, threshold=limit, keep=keep, title=what)
        said = f"{plural(passing, 'image')} of {counted.n:,} ({share(passing, counted.n)}) have {what} {sign} {limit:g}"
        found[name not in flags.MEASURES].append({"name": name, "said": said, "chart": chart, "sides": sides})
    return found


def measures(gathered: Gathered, album: Album) -> list[dict[str, Any]]:
    """Return the histogram of each measure, with the images at its ends."""
    assert gathered.facts is not None
    found = []
    for name, counted in gathered.facts.histograms.items():
        lowest, highest = _rows(gathered, "lowest", name), _rows(gathered, "highest", name)
        if lowest is None or highest is None or not counted.n:
            continue
        ends = [
            {"which": which, "pictures": album.add(rows, texts=partial(_value, name=name))}
            for which, rows in (("lowest", lowest), ("highest", highest.iloc[::-1]))
        ]
        found.append({"name": name, "chart": charts.histogram(counted, height=90, title=name), "ends": ends})
    return found


def errors(gathered: Gathered) -> dict[str, Any] | None:
    """Return what went wrong: each kind with how often, and some of the images."""
    assert gathered.facts is not None
    n = gathered.manifest["counts"]["errors"]
    if not n:
        return None
    tally = gathered.facts.tallies["error"]
    kinds: list[dict[str, Any]] = []
    for kind, count in tally.largest(20):
        rows = _rows(gathered, "error", kind)
        samples = [] if rows is None else [{"id": row.image_id, "error": row.error} for row in rows.itertuples()]
        # Of a single image it is said as it is; where rare kinds were let go, counts may be too low.
        single = count == 1 and len(samples) == 1 and not tally.missing
        kinds.append({"kind": samples[0]["error"] if single else kind, "count": count, "samples": samples})
    return {"n": n, "kinds": kinds, "rest": n - sum(kind["count"] for kind in kinds)}


def pictures(gathered: Gathered) -> dict[str, Any]:
    """Return how large images and files are, of what formats, and how long captions are."""
    assert gathered.facts is not None
    tallies, n = gathered.facts.tallies, gathered.manifest["counts"]["read"]
    measured = "format" in gathered.manifest["options"].get("measure", ())
    formats = tallies["format"].largest(12)
    rest = sum(tallies["format"].held.values()) - sum(count for _, count in formats)
    captions = tallies["caption"]
    without = captions.held["none"] + captions.held["empty"]
    lengths = [("no caption", captions.held["none"]), ("empty", captions.held["empty"]), *_by_power(captions, _length)]
    charts_of = [
        ("Longer side", _by_power(tallies["side"], lambda at: f"{at:,} to {2 * at - 1:,} px")),
        ("File size", _by_power(tallies["bytes"], lambda at: f"{_bytes(at)} to {_bytes(4 * at)}", step=2)),
        ("Format" if measured else "Extension", [*formats, *([("others", rest)] if rest else [])]),
        ("Caption", [(label, count) for label, count in lengths if count or label not in ("no caption", "empty")]),
    ]
    return {
        "charts": [(title, charts.bars(items, total=n, title=title)) for title, items in charts_of if items],
        "captions": f"{share(without, n)} have no caption or an empty one." if without else "All have a caption.",
    }


def map_of(gathered: Gathered, album: Album) -> dict[str, Any] | None:
    """Return the points of the map; as many have a picture as the page may still hold."""
    placed = gathered.map
    if placed is None:
        return None
    shown = facts.at_random(placed["image_id"]).nsmallest(min(album.left, _ON_MAP)).index
    made = dict(zip(shown, album.add(placed.loc[shown]), strict=True))
    side = next(side for side, most in _SIDES if len(placed) <= most)
    places = placed[["x", "y"]].copy()
    places.loc[shown] = map.apart(places.loc[shown].to_numpy(), (side + 6) / _MAP_WIDTH)
    points = [
        {
            "x": round(100 * x, 2),
            "y": round(100 * y, 2),
            "kind": "kept" if row.kept else row.reason_kind,
            "id": row.image_id,
            "said": "kept" if row.kept else row.reason,
            "picture": made.get(row.Index),
        }
        for row, (x, y) in zip(placed.itertuples(), places.to_numpy().tolist(), strict=True)
    ]
    kinds = [kind for kind in ("kept", *funnel.KINDS) if any(point["kind"] == kind for point in points)]
    return {
        "points": points,
        "kinds": kinds,
        "labels": {"kept": "kept", **funnel.KINDS},
        "shown": len(made),
        "side": side,
    }


def about(gathered: Gathered) -> dict[str, Any]:
    """Return the options, models, versions and seconds of a run."""
    manifest = gathered.manifest
    options = {name: _option(value) for name, value in manifest["options"].items()}
    models = [
        (name, model.get("name") or model.get("path"), model.get("kind") or "", model["fingerprint"])
        for name, model in manifest["models"].items()
    ]
    seconds = list(manifest["seconds"].items())
    total = sum(spent for _, spent in seconds)
    timed = charts.bars([(name, round(spent, 1)) for name, spent in seconds], total=round(total, 1), title="Seconds")
    return {
        "options": options,
        "models": models,
        "versions": {**manifest["versions"], "dataframes": manifest["backend"]},
        "seconds": timed,
        "total": total,
        "n_clusters": manifest["n_clusters"],
    }


def onwards(gathered: Gathered) -> dict[str, Any]:
    """Return the commands that go on from here."""
    manifest = gathered.manifest
    options = manifest["options"]
    eps = options.get("eps")
    changed = {"eps": round(eps / 2, 6)} if eps and "semantic" in options["dedup"] else {}
    return {
        "place": printable(shlex.quote(options["out"]), _MOST_TEXT),
        "images": printable(repr(f"{options['out']}/images.parquet"), _MOST_TEXT),
        "again": printable(f"{command(options, **changed)} --overwrite", _MOST_TEXT),
        "sweep": gathered.thresholds is not None and f"{gathered.thresholds.eps[-1]:g}",
        "changed": [f"eps {eps:g} becomes {changed['eps']:g}"] if changed else [],
        "only_of_curate": only_of_curate(manifest),
    }


def sources(gathered: Gathered) -> dict[str, Any]:
    """Return what became of the images of each source."""
    known = gathered.manifest["sources"]
    # Of one source its name is enough.
    common = storage.common_folder([url.rpartition("/")[0] for url in known]) if known else ""
    lines = funnel.by_source(known, common)
    outcomes = {name: colour for name, colour in funnel.OUTCOMES.items() if any(line.counts[name] for line in lines)}
    return {"lines": lines, "n": len(known), "outcomes": outcomes}


def _rows(gathered: Gathered, what: str, name: str) -> pd.DataFrame | None:
    assert gathered.facts is not None
    rows = gathered.facts.rows.get((what, name))
    return rows if rows is not None and len(rows) else None


def _curve(gathered: Gathered, n: int) -> Markup:
    """Draw what other thresholds would remove, or else how many of the removed images are how like what is kept."""
    assert gathered.facts is not None
    counted, eps = gathered.facts.histograms["semantic"].shown(_POINTS), gathered.manifest["options"]["eps"]
    tried = gathered.thresholds
    if tried is not None:
        title = f"Images that thresholds up to eps {tried.eps[-1]:g} would remove; {n:,} at eps {eps:g}"
        return charts.curve(tried.eps, tried.removed, marked=eps, mark=f"eps {eps:g}", title=title, height=150)
    if len(counted.counts) < 3:
        return Markup("")
    at_least = np.cumsum(counted.counts[::-1])
    x = np.clip(1 - counted.edges[:-1][::-1], 0, eps)
    title = f"Removed images by how far they are from what is kept: {n:,} within eps {eps:g}"
    return charts.curve(
        [0.0, *x.tolist(), eps], [0, *at_least.tolist(), n], marked=eps, mark=f"eps {eps:g}", title=title, height=150
    )


def _outside(gathered: Gathered, images: pd.DataFrame, album: Album) -> list[dict[str, Any]]:
    """Return the pairs that the threshold only just spares."""
    pairs = gathered.thresholds.outside if gathered.thresholds is not None else []
    return [
        {
            "first": album.add(images.loc[[one]], texts=_caption, fields=_size)[0],
            "second": album.add(images.loc[[other]], texts=_caption, fields=_size)[0],
            "said": f"cosine {similarity:.3f}",
        }
        for one, other, similarity in pairs
        if one in images.index and other in images.index
    ]


def _caption(row: Any) -> list[tuple[str, str]]:
    return [("caption", row["caption"])] if isinstance(row["caption"], str) and row["caption"].strip() else []


def _size(row: Any) -> list[tuple[str, Any]]:
    return [("size", f"{row['width']:.0f} {_TIMES} {row['height']:.0f}")] if row["width"] == row["width"] else []


def _similarity(kind: str, row: Any) -> str:
    similarity = row["similarity"]
    if kind == "exact":
        return "same bytes"
    if similarity != similarity:
        return "connected by others"
    said = f"cosine {similarity:.3f}" if kind == "semantic" else f"{round((1 - similarity) * 64)} of 64 bits differ"
    # What it is that like may have gone later, as a duplicate of the one that is kept.
    by_another = row["reason"].endswith(f", as which {row['duplicate_of']} is kept")
    return f"{said}, with another that went" if by_another else said


def _value(row: Any, name: str) -> list[tuple[str, str]]:
    return [(name, f"{row[name]:.4g}")]


def _by_power(tally: Counts, label: Callable[[int], str], step: int = 1) -> list[tuple[str, int]]:
    """Return how many values lie from each power of 2**step up to the next, with those between that have none."""
    powers = sorted(int(power) for power in tally.held if power.isdigit())
    if not powers:
        return []
    first, last = (power.bit_length() - 1 for power in (powers[0], powers[-1]))
    starts = range(first // step * step, last + 1, step)
    return [(label(1 << start), sum(tally.held[str(1 << start + more)] for more in range(step))) for start in starts]


def _length(at: int) -> str:
    return "1 character" if at == 1 else f"{at:,} to {2 * at - 1:,} characters"


def _bytes(n: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= size:
            return f"{n / size:g} {unit}"
    return f"{n} B"


def _option(value: Any) -> str:
    if isinstance(value, list):
        more = f" and {len(value) - _MOST_INPUTS:,} more" if len(value) > _MOST_INPUTS else ""
        return ", ".join(printable(str(item)) for item in value[:_MOST_INPUTS]) + more or "none"
    if isinstance(value, Mapping):
        return printable(str(dict(value)))
    return "none" if value is None else printable(str(value))
