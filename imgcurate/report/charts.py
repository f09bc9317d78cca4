"""Charts as inline SVG that is as wide as there is room: positions are percentages, and text keeps its size.

Lines and text have the colour of the text around, so that a chart fits into light and dark pages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from imgcurate.report.histogram import Histogram
from imgcurate.report.page import said, share

#: Bars that are told apart where a chart is as narrow as a telephone, and so many for few values.
_BARS, _FEWEST_BARS = 64, 16
#: What stands above and below the plot, in pixels.
_ABOVE, _BELOW = 22, 24


def histogram(
    found: Histogram, *, threshold: float | None = None, keep: str = ">=", height: int = 150, title: str = ""
) -> Markup:
    """Draw a histogram, with a threshold and the values that it keeps.

    Parameters
    ----------
    found : Histogram
    threshold : float, optional
    keep : {">=", "<"}
        Which side of the threshold stays.
    height : int
        Of the plot, in pixels.
    title : str
        What it is of, for those who have it read to them.
    """
    # Of few values, narrow bars would show each and not how they are spread.
    shown = found.shown(min(_BARS, max(_FEWEST_BARS, round(2 * math.sqrt(found.n)))))
    if not len(shown.counts):
        return Markup('<p class="muted">No values.</p>')
    edges, most = shown.edges, int(shown.counts.max())
    marks = [edges[0], edges[-1], *([threshold] if threshold is not None and math.isfinite(threshold) else [])]
    plot = _Plot(min(marks), max(marks), 0, most, height)
    plot.levels = {at: _compact(at) for at in ticks(0, most, 3) if at == round(at)}
    parts: list[Markup] = []
    for count, left, right in zip(shown.counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if count:
            parts += _bar(plot, count, left, right, threshold, keep, f"{said(left)} to {said(right)}: {count:,}")
    parts += [plot.vertical(at, said(at)) for at in ticks(plot.left, plot.right, 5)]
    if threshold is not None and math.isfinite(threshold):
        parts.append(plot.mark(threshold, f"{keep} {said(threshold)}"))
    described = f"{title}: {found.n:,} values from {said(found.low)} to {said(found.high)}"
    return plot.drawn("histogram", f"Histogram of {described}", parts)


def curve(
    x: Sequence[float],
    y: Sequence[float],
    *,
    marked: float | None = None,
    mark: str = "",
    percent: bool = False,
    height: int = 170,
    title: str = "",
) -> Markup:
    """Draw a line through points, and mark a place on its x axis.

    Parameters
    ----------
    x, y : sequence of float
        Of the same length, x ascending.
    marked : float, optional
    mark : str
        What is said there.
    percent : bool
        Whether y is a share of 1.
    height : int
    title : str
        As for `histogram`.
    """
    values = [100 * value for value in y] if percent else list(y)
    unit = " %" if percent else ""
    plot = _Plot(min(x), max(x), 0, max([*values, 1e-9]), height)
    # Of counts no line is drawn at a half.
    whole = not percent and all(value == round(value) for value in values)
    plot.levels = {at: f"{said(at)}{unit}" for at in ticks(0, plot.top, 3) if not whole or at == round(at)}
    parts = []
    points = list(zip(x, values, strict=True))
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        parts.append(_tag("line", x1=plot.x(x0), x2=plot.x(x1), y1=plot.y(y0), y2=plot.y(y1), class_="curve"))
    parts += [plot.vertical(at, said(at)) for at in ticks(plot.left, plot.right, 5)]
    if marked is not None:
        parts.append(plot.mark(marked, mark))
    for at, value in points:
        label = _tag("title", f"{said(at)}: {said(value)}{unit}")
        parts.append(_tag("circle", label, cx=plot.x(at), cy=plot.y(value), r=3, class_="point"))
    return plot.drawn("curve", title, parts)


def bars(items: Sequence[tuple[str, float]], *, total: float | None = None, title: str = "") -> Markup:
    """Draw a bar a line, with what it is of on its left and how much on its right.

    Parameters
    ----------
    items : sequence of (str, number)
    total : number, optional
        What is 100 %: a bar's share of it stands beside its number. Default: bars are compared with the longest.
    title : str
    """
    longest = total or max([value for _, value in items], default=0) or 1
    rows = []
    for label, value in items:
        width = max(0.0, min(100.0, 100 * value / longest))
        amount = said(value) + (f" · {share(value, total)}" if total else "")
        drawn = Markup('<span class="bar"><span style="width:{:.2f}%"></span></span>').format(width)
        rows.append(
            Markup(
                '<div class="bars-row"><span class="bars-label">{}</span>{}<span class="bars-value">{}</span></div>'
            ).format(label, drawn, amount)
        )
    return Markup('<div class="bars" role="img" aria-label="{}">{}</div>').format(
        f"{title}: {', '.join(f'{label} {said(value)}' for label, value in items)}", Markup("").join(rows)
    )


def ticks(low: float, high: float, n: int) -> list[float]:
    """Return about n round numbers between two.

    Examples
    --------
    >>> ticks(0, 1, 5), ticks(0, 870, 3)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 200.0, 400.0, 600.0, 800.0])
    """
    if not high > low or not math.isfinite(high - low):
        return [float(low)]
    step = 10.0 ** math.floor(math.log10((high - low) / n))
    step *= min((1, 2, 5, 10), key=lambda times: abs(math.log((high - low) / (step * times) / n)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{at * step:.12g}") for at in range(first, last + 1)]


class _Plot:
    """The room for a chart: values become percentages of its width and pixels of its height."""

    def __init__(self, left: float, right: float, bottom: float, top: float, height: int) -> None:
        left, right, bottom, top = map(float, (left, right, bottom, top))
        self.left, self.right = (left, right) if right > left else (left - 0.5, right + 0.5)
        self.bottom, self.top = (bottom, top) if top > bottom else (bottom - 0.5, top + 0.5)
        self.height = height
        #: What the lines across are called, on their left: in HTML, because only there a width may be so many pixels less than all.
        self.levels: dict[float, str] = {}

    def share(self, value: float) -> float:
        # Halves, because the ends may be as far apart as numbers can be.
        return (value / 2 - self.left / 2) / (self.right / 2 - self.left / 2)

    def x(self, value: float) -> str:
        return f"{100 * self.share(value):.3f}%"

    def y(self, value: float) -> str:
        of = (value / 2 - self.bottom / 2) / (self.top / 2 - self.bottom / 2)
        return f"{_ABOVE + self.height * (1 - of):.1f}"

    def vertical(self, value: float, label: str) -> Markup:
        at = self.share(value)
        anchor = "start" if at < 0.03 else "end" if at > 0.97 else "middle"
        y = f"{_ABOVE + self.height + 17:.1f}"
        return _tag("text", label, x=self.x(value), y=y, class_="tick", text_anchor=anchor)

    def mark(self, value: float, label: str) -> Markup:
        at = self.share(value)
        anchor, shift = ("end", -5) if at > 0.7 else ("start", 5)
        line = _tag("line", x1=self.x(value), x2=self.x(value), y1="4", y2=f"{_ABOVE + self.height}", class_="mark")
        return line + _tag("text", label, x=self.x(value), dx=shift, y="13", class_="mark-label", text_anchor=anchor)

    def drawn(self, kind: str, title: str, parts: Sequence[Markup]) -> Markup:
        base = f"{_ABOVE + self.height}"
        lines = [
            _tag("line", x1="0", x2="100%", y1=self.y(at), y2=self.y(at), class_="grid-line") for at in self.levels
        ]
        lines.append(_tag("line", x1="0", x2="100%", y1=base, y2=base, class_="axis"))
        inside = _tag("title", title) + Markup("").join([*lines, *parts])
        height = self.height + _ABOVE + _BELOW
        chart = _tag("svg", inside, class_=f"chart {kind}", role="img", aria_label=title, width="100%", height=height)
        labels = Markup("").join(
            Markup('<span style="top: {}px">{}</span>').format(self.y(at), label) for at, label in self.levels.items()
        )
        return Markup('<div class="plot"><div class="levels" aria-hidden="true">{}</div>{}</div>').format(labels, chart)


def _bar(
    plot: _Plot, count: int, left: float, right: float, threshold: float | None, keep: str, label: str
) -> list[Markup]:
    """Draw a bar; one that a threshold lies in, in two."""
    if threshold is None:
        cuts = [(left, right, "kept")]
    else:
        at = min(max(threshold, left), right)
        sides = ("gone", "kept") if keep == ">=" else ("kept", "gone")
        cuts = [(left, at, sides[0]), (at, right, sides[1])]
    y = plot.y(count)
    # What is there is seen.
    height = max(1.0, _ABOVE + plot.height - float(y))
    y = f"{_ABOVE + plot.height - height:.1f}"
    title = _tag("title", label)
    return [
        _tag(
            "rect",
            title,
            x=plot.x(start),
            y=y,
            width=f"{100 * (plot.share(end) - plot.share(start)):.3f}%",
            height=f"{height:.1f}",
            class_=side,
        )
        for start, end, side in cuts
        if end > start
    ]


def _compact(number: float) -> str:
    """Return a count in few characters.

    Examples
    --------
    >>> _compact(950), _compact(1500), _compact(20_000), _compact(3_000_000)
    ('950', '1.5k', '20k', '3M')
    """
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:g}{sign}"
    return f"{number:g}"


def _tag(name: str, inside: Any = "", /, **attributes: Any) -> Markup:
    said = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
    )
    return Markup("<{}{}>{}</{}>").format(Markup(name), said, escape(inside), Markup(name))
