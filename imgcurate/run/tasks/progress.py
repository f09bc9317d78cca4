"""How far a step is: a bar at a terminal, and in a file a plain line every ten seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

from tqdm import tqdm

from imgcurate.printable import plural

_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.1
# From here on a bar counts in thousands.
_SCALED = 10_000


class Progress(Protocol):
    """What a step tells how far it is."""

    def update(self, n: int = 0) -> None:
        """Say that `n` more are done, or that it goes on."""


@contextlib.contextmanager
def shown(label: str, total: int | None, unit: str, *, visible: bool) -> Iterator[Progress]:
    """Show on stderr how far a step is.

    Parameters
    ----------
    label : str
        Of the step.
    total : int or None
        How many there are to do; None where only the time that it takes can be told.
    unit : str
        What is counted, one of it.
    visible : bool

    Yields
    ------
    Progress
    """
    if not visible or total == 0:
        yield _Nothing()
    elif sys.stderr.isatty():
        form: dict[str, Any] = {"unit": f" {unit}s", "unit_scale": (total or 0) >= _SCALED}
        if total is None:
            form = {"bar_format": "{desc}: {elapsed}", "leave": False}
        with tqdm(total=total, desc=f"{label:<19}", mininterval=_BAR_SECONDS, file=sys.stderr, **form) as bar:
            yield _Bar(bar)
    else:
        lines = _Lines(label, total, unit)
        yield lines
        lines.end()


def duration(seconds: float) -> str:
    """Say how long something takes.

    Examples
    --------
    >>> [duration(seconds) for seconds in (0.4, 59.6, 526, 7800, 200_000)]
    ['0.4 s', '1 min', '8 min 46 s', '2 h 10 min', '2 d 7 h']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole, parts = round(seconds), []
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count} {name}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts)


def rate(n: int, seconds: float) -> str:
    """Say how many there are a second.

    Examples
    --------
    >>> rate(120_000, 60), rate(100, 40)
    ('2,000 a second', '2.5 a second')
    """
    each = n / max(seconds, 1e-9)
    return f"{each:,.0f} a second" if each >= 10 else f"{each:.2g} a second"


class _Nothing:
    def update(self, n: int = 0) -> None:
        pass


class _Bar:
    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def update(self, n: int = 0) -> None:
        self._bar.update(n)
        if not n:
            self._bar.refresh()


class _Lines:
    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done, self._started = 0, time.monotonic()
        self._told = self._started

    def update(self, n: int = 0) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._told >= _LINE_SECONDS:
            self._told = now
            self._say(now - self._started)

    def end(self) -> None:
        if self._total is not None:
            seconds = time.monotonic() - self._started
            _write(f"{self._label}: {self._counted(self._done)} in {duration(seconds)}, {rate(self._done, seconds)}")

    def _say(self, seconds: float) -> None:
        if self._total is None:
            _write(f"{self._label}: for {duration(seconds)} so far")
            return
        left = f", {duration(seconds * (self._total - self._done) / self._done)} left" if self._done else ""
        _write(f"{self._label}: {self._done:,} of {self._counted(self._total)}, {rate(self._done, seconds)}{left}")

    def _counted(self, n: int) -> str:
        return plural(n, self._unit)


def _write(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
