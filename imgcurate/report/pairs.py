"""What `Duplicates` shows: pairs around the cut, the largest groups, and what other thresholds would remove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import numpy as np
import pandas as pd

from imgcurate import storage
from imgcurate.dedup.dataframes import inputs
from imgcurate.dedup.graph import nodes
from imgcurate.dedup.result.thresholds import thresholds_of
from imgcurate.printable import plural
from imgcurate.report import charts, rows
from imgcurate.report.gallery import Card, cards, check_options
from imgcurate.report.page import Page, fragment, render, said, share
from imgcurate.report.thumbnails import Thumbnail

if TYPE_CHECKING:
    from imgcurate.dedup.leaked import Leaks
    from imgcurate.dedup.result import Duplicates
    from imgcurate.nearest.result import Neighbours

#: About so many thresholds, and the one in force, are tried for a curve: round ones, which can be read and typed.
_THRESHOLDS = 12
# Of a perceptual hash.
_BITS = 64
_RULES = {
    "cover": "an image goes where one that stays is a duplicate of it",
    "pointwise": "an image goes where one that ranks higher is a duplicate of it, whether that stays or not",
    "component": "of images that are connected by duplicates, one stays",
}
_TIMES = "\N{MULTIPLICATION SIGN}"


#: Two images by their ids, and how like they are.
Named = tuple[Any, Any, float]


class Pair(NamedTuple):
    """Two images that are alike.

    Attributes
    ----------
    first, second : Card
        The better-ranked first.
    likeness : str
    by : str
        What is said of the likeness: what it is, or by what the images are alike.
    """

    first: Card
    second: Card
    likeness: str
    by: str = "similarity"


class Options(NamedTuple):
    """What images are shown with; the arguments of `Duplicates.show`."""

    images: Any
    columns: str | Sequence[str] | None
    size: int
    storage_options: storage.Options


def around_cut(found: Duplicates, n: int, eps: float, options: Options) -> Page:
    """Return the removed images that are least like what they duplicate, and the pairs that stay though they are most alike."""
    check_options("show", options.size, n=n)
    options = with_frame(found, "show", options)
    goes, stays = nearest(found, n, eps)
    images = images_of(found, [name for pair in (*goes, *stays) for name in pair[:2]], options)
    sides = [
        {
            "label": "Just inside: the second of each pair goes",
            "tags": (_first_tag(found), "goes"),
            "pairs": _pairs(found, goes, images),
            "none": "No image is removed.",
        },
        {
            "label": "Just outside: both stay",
            "tags": ("stays", "stays"),
            "pairs": _pairs(found, stays, images),
            "none": _nothing_outside(found, eps),
        },
    ]
    cut = _cut(found, eps)
    how = f"{plural(len(goes), 'pair')} just inside and {len(stays):,} just outside {cut}"
    body = render(
        "pairs.html",
        title="Pairs around the cut",
        said=f"Images are duplicates at {cut}.",
        sides=sides,
        size=options.size,
    )
    return Page("Pairs around the cut", body, f"Page({how}; see .save(path))")


def nearest(found: Duplicates, n: int, eps: float) -> tuple[list[Named], list[Named]]:
    """Return the n removed images that are least like what they duplicate, and the n most similar pairs that stay. Eager.

    Returns
    -------
    list of (id, id, similarity), list of (id, id, similarity)
        The image that stays first; of two that stay the better-ranked.
    """
    decided = found._matches(eps)
    misses = [
        dask.delayed(nodes.near_misses)(edges, part.nodes, removed, 1 - eps, n)
        for part, removed in zip(found._graph.parts, decided, strict=True)
        for edges in part.edges
    ]
    inside = dask.delayed(nodes.least_similar)(decided, n) if decided else None
    outside = dask.delayed(nodes.most_similar)(misses, n) if misses else None
    goes, stays = ([] if table is None else table.to_pylist() for table in dask.compute(inside, outside))
    return (
        [(row["duplicate_of"], row["id"], row["similarity"]) for row in goes],
        [(row["other_id"], row["id"], row["similarity"]) for row in stays],
    )


def largest_groups(found: Duplicates, n: int, most: int, options: Options) -> Page:
    """Return the largest groups of duplicates, each with the image that stays first."""
    check_options("show_groups", options.size, n=n, most=most)
    options = with_frame(found, "show_groups", options)
    parts = dask.compute(*[dask.delayed(nodes.largest_groups)(part, n, most) for part in found._matches(found.eps)])
    groups = sorted(
        ((size, table.to_pylist()) for part in parts for size, table in part),
        key=lambda group: (-group[0], group[1][0]["duplicate_of"]),
    )[:n]
    names = [name for _, table in groups for row in table for name in (row["duplicate_of"], row["id"])]
    images = images_of(found, names, options)
    shown = [
        {
            "size": size,
            "kept": images[table[0]["duplicate_of"]],
            "others": [(images[row["id"]], said_likeness(found.kind, row["similarity"])) for row in table],
        }
        for size, table in groups
    ]
    how = f"The {plural(len(groups), 'largest group')} of duplicates" if groups else "No image is removed"
    body = render(
        "groups.html",
        title="The largest groups",
        said=f"{how} at {_cut(found, found.eps)}.",
        groups=shown,
        size=options.size,
        tag=_first_tag(found),
    )
    return Page("The largest groups of duplicates", body, f"Page({how}; see .save(path))")


def sweep(found: Duplicates, eps: float | Sequence[float] | None) -> Page:
    """Return the share of the images that each of several thresholds removes, as a curve and as a table."""
    asked = _thresholds(found) if eps is None else sorted(set(thresholds_of(eps)))
    if not asked:
        raise ValueError(
            "plot_sweep: eps=[] holds no threshold: give some, such as [0.01, 0.05], or none for round ones"
        )
    tried = found.sweep(asked)
    x = [_of_eps(found, value) for value in tried["eps"]]
    name = {"semantic": "eps", "perceptual": "differing bits", "exact": "eps"}[found.kind]
    marked = _of_eps(found, found.eps)
    chart = charts.curve(
        x,
        tried["fraction"].tolist(),
        marked=marked,
        mark=f"{name} {said(marked)}",
        percent=True,
        title=f"Share of the images that are removed, by {name}",
    )
    table = [
        {
            "at": at,
            "removed": int(row.removed),
            "share": share(row.removed, found.n_rows),
            "chosen": row.eps == found.eps,
        }
        for at, row in zip(x, tried.itertuples(), strict=True)
    ]
    sentence = f"Of {plural(found.n_rows, 'image')}, what each threshold removes; nothing is compared again."
    body = render("sweep.html", title="What a threshold removes", said=sentence, chart=chart, name=name, table=table)
    return Page(
        "What a threshold removes",
        body,
        f"Page({plural(len(table), 'threshold')}; see .save(path))\n{tried.to_string(index=False)}",
    )


def summary(found: Duplicates) -> str:
    """Return what a result holds as HTML; computes nothing."""
    facts = [("Images compared", f"{found.n_compared:,}")]
    if found.n_excluded:
        facts.append(("Not compared", f"{found.n_excluded:,}, which have an error or nothing to compare"))
    facts += [("Pairs stored", f"{found.n_pairs:,}"), ("Duplicates at", _cut(found, found.eps))]
    facts.append(("Rule", f"{found.rule}: {_RULES[found.rule]}"))
    facts.append(("Keep", found.keep if isinstance(found.keep, str) else ", ".join(map(" ".join, found.keep))))
    facts += [(f"Why this {name}", why) for name, why in found.chosen.items()]
    calls = [
        (".show()", "pairs around the cut, side by side"),
        (".show_groups()", "the largest groups"),
        (".plot_sweep()", "what other thresholds would remove"),
        (".pairs, .removals()", "what goes, as dataframes"),
        ("remove(frame, duplicates)", "the frame without it"),
    ]
    return str(fragment(render("duplicates.html", kind=found.kind, facts=facts, calls=calls)))


def _thresholds(found: Duplicates) -> list[float]:
    """Return thresholds from far below to as far as pairs are stored, with the one in force."""
    widest = 1 - found.min_similarity
    if found.kind == "exact":
        return [found.eps]
    if found.kind == "perceptual":
        bits = range(round(widest * _BITS) + 1)
        return sorted({found.eps, *(max(at / _BITS, min(found.eps, 1e-6)) for at in bits)})
    return sorted(
        {found.eps, *(at for at in charts.ticks(0, widest, _THRESHOLDS) if 0 < at <= widest + 1e-9 and at < 2)}
    )


def _of_eps(found: Duplicates, eps: float) -> float:
    return round(eps * _BITS) if found.kind == "perceptual" else eps


def _cut(found: Duplicates, eps: float) -> str:
    if found.kind == "exact":
        return "equal bytes"
    if found.kind == "perceptual":
        return f"hashes that differ in at most {plural(round(eps * _BITS), 'bit')}"
    return f"a similarity of at least {1 - eps:.6g} (eps {eps:g})"


def said_likeness(kind: str, similarity: float | None) -> str:
    """Return how alike two images are, as a person reads it.

    Examples
    --------
    >>> said_likeness("exact", 1.0), said_likeness("perceptual", 1 - 3 / 64), said_likeness("semantic", 0.98765)
    ('equal bytes', '3 bits differ', '0.9877')
    """
    if similarity is None or np.isnan(similarity):
        return "not compared"
    if kind == "exact":
        return "equal bytes"
    if kind == "perceptual":
        bits = round((1 - similarity) * _BITS)
        return f"{plural(bits, 'bit')} differ{'s' * (bits == 1)}" if bits else "equal hashes"
    return f"{similarity:.4f}"


def _nothing_outside(found: Duplicates, eps: float) -> str:
    if found.kind == "exact":
        return "Equal bytes have no near misses."
    if 1 - eps <= found.min_similarity + 1e-9:
        instead = "a larger max_distance" if found.kind == "perceptual" else "a lower min_similarity"
        return f"No pairs beyond the cut are stored: look for duplicates again with {instead}."
    return "No other pair is stored of which both images stay."


def _first_tag(found: Duplicates) -> str:
    # By the pointwise rule, what ranks higher may itself be removed.
    return "ranks higher" if found.rule == "pointwise" else "stays"


def _pairs(found: Duplicates, named: Sequence[tuple[Any, Any, float]], images: dict[Any, Card]) -> list[Pair]:
    return [
        Pair(images[first], images[second], said_likeness(found.kind, likeness)) for first, second, likeness in named
    ]


def with_frame(found: Duplicates | Leaks | Neighbours, verb: str, options: Options) -> Options:
    """Return the options with a frame that says where the images lie, and a list of columns that it has."""
    frame = found._images if options.images is None else options.images
    columns = rows.names_of(options.columns, verb)
    if frame is None:
        raise ValueError(
            f"{verb}() has no images to show, because what was found was loaded, or found in a frame that does not say where images lie: "
            f"pass the frame that does, {verb}(images=frame), with columns {', '.join(map(repr, (found.id_field, *rows.PLACE)))}"
        )
    frame = inputs.with_ids(frame, found.id_field) if inputs.in_memory(frame) else frame
    rows.require(frame, [found.id_field, *columns], verb)
    return options._replace(images=frame, columns=columns)


def images_of(found: Duplicates | Leaks | Neighbours, names: Sequence[Any], options: Options) -> dict[Any, Card]:
    """Return images by their ids, with their size in pixels and bytes; one that is not there says so."""
    if not names:
        return {}
    columns = list(options.columns or ())
    chosen = rows.by_ids(options.images, names, columns, id_field=found.id_field)
    shown = cards(chosen, columns, options.size, found.id_field, options.storage_options)
    known = dict(zip(chosen[found.id_field].tolist(), map(_with_size, shown, chosen["bytes"]), strict=True))
    absent = Thumbnail(None, 0, 0, "not in the frame of the images")
    return {name: known.get(name) or Card(str(name), str(name), absent, [], []) for name in names}


def _with_size(card: Card, size: Any) -> Card:
    fields = []
    if card.thumb.uri:
        fields.append(("pixels", f"{card.thumb.of_width:,} {_TIMES} {card.thumb.of_height:,}"))
    if not pd.isna(size):
        fields.append(("file", _bytes(float(size))))
    return card._replace(fields=[*fields, *card.fields])


def _bytes(size: float) -> str:
    """Return a file's size as a person reads it.

    Examples
    --------
    >>> _bytes(310), _bytes(41_500), _bytes(2_400_000)
    ('310 B', '42 kB', '2.4 MB')
    """
    if size < 1000:
        return f"{size:.0f} B"
    return f"{size / 1e3:.0f} kB" if size < 999_500 else f"{size / 1e6:.1f} MB"
