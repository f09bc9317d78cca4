"""Time, memory and disk over the number of rows, as an SVG: the figure of dedup.py's section growth.

python benchmarks/scaling_figure.py [benchmarks/results/dedup.json]      draws scaling.svg beside the results anew
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from dask.utils import parse_bytes

WIDTH, HEIGHT, LEFT, TOP = 300, 260, 62, 52
GAP, BOTTOM = 78, 138
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


class Panel(NamedTuple):
    """One panel: its title, and of each size that was measured the values of its lines."""

    title: str
    lines: dict[str, Callable[[dict[str, Any]], float]]


PANELS = (
    Panel(
        "seconds, wall clock",
        {
            "semantic_duplicates": lambda one: one["seconds"]["median"],
            "making the vectors once": lambda one: one["seconds_to_make_vectors"],
        },
    ),
    Panel(
        "peak memory of a process, GiB",
        {
            "larger worker": lambda one: one["workers_peak_mib"][0] / 1024,
            "limit of a worker": lambda one: parse_bytes(one["memory_limit"]) / 2**30,
            "client and scheduler": lambda one: one["client_and_scheduler_peak_mib"] / 1024,
        },
    ),
    Panel(
        "disk, GiB",
        {
            "largest total of the files": lambda one: one["disk_peak_gib"],
            "the vectors in float32": lambda one: one["n"] * one["dimension"] * 4 / 2**30,
        },
    ),
)


def draw(growth: Mapping[str, dict[str, Any]]) -> str:
    """Return the figure of what went through a work folder as SVG: log-log, a line for each length of the vectors, grey lines of slope 1."""
    sizes = sorted(
        (one for one in growth.values() if one["disk_peak_gib"]), key=lambda one: (one["dimension"], one["n"])
    )
    dimensions = sorted({one["dimension"] for one in sizes}, reverse=True)
    width, height = LEFT + len(PANELS) * (WIDTH + GAP), TOP + HEIGHT + BOTTOM
    body = [
        _panel(panel, sizes, dimensions, LEFT + number * (WIDTH + GAP), _decades([one["n"] for one in sizes]))
        for number, panel in enumerate(PANELS)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _panel(panel: Panel, sizes: list[dict[str, Any]], dimensions: list[int], x: int, columns: tuple[int, int]) -> str:
    found = {
        (name, dimension): [(one["n"], value(one)) for one in sizes if one["dimension"] == dimension]
        for name, value in panel.lines.items()
        for dimension in dimensions
    }
    rows = _decades([value for points in found.values() for _, value in points])

    def at(n: float, value: float) -> tuple[float, float]:
        across = (math.log10(n) - columns[0]) / (columns[1] - columns[0])
        up = (math.log10(value) - rows[0]) / (rows[1] - rows[0])
        return round(x + across * WIDTH, 1), round(TOP + (1 - up) * HEIGHT, 1)

    parts = [_text(x, TOP - 22, panel.title, weight="bold")]
    parts += _grid(columns, rows, at, x)
    parts.append(_text(x + WIDTH / 2, TOP + HEIGHT + 33, "rows", anchor="middle"))
    for number, name in enumerate(panel.lines):
        for dash, dimension in enumerate(dimensions):
            points = [at(*point) for point in found[name, dimension]]
            label = f"{name}, {dimension}-d"
            parts += _line(points, COLOURS[number], dash, label)
            y = TOP + HEIGHT + 56 + 15 * (number * len(dimensions) + dash)
            parts += _line([(x, y - 4), (x + 26, y - 4)], COLOURS[number], dash, label)
            parts.append(_text(x + 34, y, label))
    return "\n".join(parts)


def _grid(
    columns: tuple[int, int], rows: tuple[int, int], at: Callable[[float, float], tuple[float, float]], x: int
) -> list[str]:
    parts = []
    for power in range(columns[0], columns[1] + 1):
        across = at(10.0**power, 10.0 ** rows[0])[0]
        parts.append(_stroke(across, TOP, across, TOP + HEIGHT))
        parts.append(_text(across, TOP + HEIGHT + 16, f"{10**power:,}", anchor="middle"))
    for power in range(rows[0], rows[1] + 1):
        up = at(10.0 ** columns[0], 10.0**power)[1]
        parts.append(_stroke(x, up, x + WIDTH, up))
        parts.append(_text(x - 6, up + 4, f"{10.0**power:,.10g}", anchor="end"))
    # What grows with the rows goes along these.
    for power in range(rows[0] - (columns[1] - columns[0]), rows[1]):
        first = max(columns[0], columns[0] + rows[0] - power)
        last = min(columns[1], columns[0] + rows[1] - power)
        if first < last:
            ends = (at(10.0**end, 10.0 ** (power + end - columns[0])) for end in (first, last))
            parts.append(_stroke(*(value for end in ends for value in end), dashes="2 5"))
    return parts


def _line(points: list[tuple[float, float]], colour: str, dash: int, label: str) -> list[str]:
    if not points:
        return []
    dashes = f' stroke-dasharray="{5 * dash} {3 * dash}"' if dash else ""
    path = " ".join(f"{across},{up}" for across, up in points)
    dots = [f'<circle cx="{across}" cy="{up}" r="3" fill="{colour}"/>' for across, up in points]
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}><title>{escape(label)}</title></polyline>',
        *dots,
    ]


def _stroke(x1: float, y1: float, x2: float, y2: float, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#cccccc"{dashed}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" fill="#222222">{escape(text)}</text>'


def _decades(values: list[float]) -> tuple[int, int]:
    """Return the powers of ten between which values lie."""
    least, most = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return least, max(most, least + 1)


if __name__ == "__main__":
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "dedup.json"
    results.with_name("scaling.svg").write_text(draw(json.loads(results.read_text())["growth"]))
