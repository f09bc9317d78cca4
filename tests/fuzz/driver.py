"""Coverage-guided fuzzing: an input that reaches new code is kept and changed further, one that raises is a finding.

A harness is a function of bytes that raises where something is wrong. ``python -m fuzz.driver archives --seconds 600 --seed 7``, in the folder
``tests``, looks for findings and writes each, made small, into ``fuzz/found/archives``; tests run what is there again before they look for more.
There is nothing to install, and what is found from one seed is found again from it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

FOUND = Path(__file__).resolve().parent / "found"

# What sits at the edges of numbers and fields.
_INTERESTING = (
    b"\0",
    b"\xff",
    b"\x80",
    b"\x7f",
    b" ",
    b"/",
    b"0",
    b"7",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0\0\0\0\1",
)
_MOST_BYTES = 1 << 16


class Harness(NamedTuple):
    """What is fuzzed.

    Attributes
    ----------
    name : str
        Of the folder of what was found.
    one : callable
        Takes an input's bytes, and raises where what is tested goes wrong: anything that it raises is a finding.
    seeds : callable
        Returns inputs to begin with: one of each dialect or format.
    watched : tuple of modules
        Whose lines tell one input from another.
    change : callable, optional
        Takes a `random.Random` and an input, and returns another that keeps what the format demands, such as checksums.
    """

    name: str
    one: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    watched: tuple[ModuleType, ...]
    change: Callable[[random.Random, bytes], bytes] | None = None


class Finding(NamedTuple):
    """An input, and what it raised."""

    data: bytes
    problem: BaseException

    @property
    def where(self) -> str:
        """What tells one finding from another: the kind of the problem and the line that raised it."""
        last = traceback.extract_tb(self.problem.__traceback__)[-1]
        return f"{type(self.problem).__name__} in {Path(last.filename).name}:{last.lineno}"

    def __str__(self) -> str:
        return f"{self.where}: {self.problem} (of {len(self.data)} bytes)"


@dataclass
class Report:
    """How many inputs were tried, how many reached new code, how many steps of code those took, and what was found."""

    runs: int = 0
    kept: int = 0
    reached: int = 0
    found: dict[str, Finding] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.runs:,} inputs, {self.kept:,} kept, {self.reached:,} steps reached, {len(self.found)} findings"


class TookTooLong(BaseException):
    """An input that hangs what is tested; no Exception, which that may catch."""


def fuzz(
    harness: Harness,
    *,
    seed: int = 0,
    runs: int | None = None,
    seconds: float | None = None,
    limit: float = 10,
    folder: Path | None = None,
) -> Report:
    """Run a harness on its seeds, on what was found before, and on changes of both.

    Parameters
    ----------
    harness : Harness
    seed : int
        Of the changes.
    runs : int, optional
        Stop after so many inputs,
    seconds : float, optional
        or after so much CPU time, that of programs that are asked with it.
    limit : float
        An input that takes more seconds is a finding.
    folder : path, optional
        Where findings are written, and the input at work, for a process that dies.

    Returns
    -------
    Report
    """
    rng, report, coverage = random.Random(seed), Report(), _Coverage(harness.watched)
    end = _cpu_seconds() + seconds if seconds is not None else None
    corpus: list[bytes] = []
    waiting = [*harness.seeds(), *found_before(harness)]
    while (runs is None or report.runs < runs) and (end is None or _cpu_seconds() < end):
        data = waiting.pop() if waiting else _changed(rng, corpus, harness.change)
        if folder is not None:
            (folder / "at-work").write_bytes(data)
        finding, new = _run(harness, data, coverage, limit)
        report.runs += 1
        if finding is not None and finding.where not in report.found:
            report.found[finding.where] = finding = _smaller(harness, finding, limit)
            if folder is not None:
                (folder / f"{hashlib.sha256(finding.data).hexdigest()[:16]}.bin").write_bytes(finding.data)
                print(finding, flush=True)
        elif finding is None and (new or not corpus):
            corpus.append(data)
    report.kept, report.reached = len(corpus), len(coverage.seen)
    return report


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def found_before(harness: Harness) -> list[bytes]:
    """Return what was ever found with a harness."""
    return [path.read_bytes() for path in sorted((FOUND / harness.name).glob("*.bin"))]


def _run(harness: Harness, data: bytes, coverage: _Coverage, limit: float) -> tuple[Finding | None, bool]:
    before = len(coverage.seen)
    for attempt in range(2):
        try:
            with _at_most(limit), coverage:
                harness.one(data)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:
            if isinstance(problem, TookTooLong) and not attempt:
                continue  # it may be that others had the machine meanwhile
            return Finding(data, problem), False
        break
    return None, len(coverage.seen) > before


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Coverage:
    """The steps from line to line that were taken in some modules."""

    def __init__(self, modules: tuple[ModuleType, ...]) -> None:
        # One number stands for a line of a file: tuples and code objects take longer to hash than the line takes to run.
        self.base = {module.__file__: number * 100_000 for number, module in enumerate(modules, 1)}
        self.seen: set[int] = set()
        self.last = 0

    def __enter__(self) -> None:
        self.last = 0
        sys.settrace(self._call)

    def __exit__(self, *exception: Any) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        base = self.base.get(frame.f_code.co_filename)
        if base is None:
            return None

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            here = base + frame.f_lineno
            self.seen.add(self.last << 32 | here)
            self.last = here
            return line

        return line


def _changed(rng: random.Random, corpus: list[bytes], change: Callable[[random.Random, bytes], bytes] | None) -> bytes:
    """Change an input in a few places; what was kept last is what is least known."""
    data = rng.choice(corpus if rng.random() < 0.5 else corpus[-20:])
    for _ in range(rng.choice((1, 1, 2, 4))):
        if change is not None and rng.random() < 0.7:
            data = change(rng, data)
        else:
            data = _mutated(rng, data, rng.choice(corpus))
    return data[:_MOST_BYTES]


def _mutated(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 8, 64, 512))
    match rng.randrange(7):
        case 0:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 1:
            piece = rng.choice(_INTERESTING)
            return data[:at] + piece + data[at + len(piece) :]
        case 2:
            return data[:at] + data[at + size :]
        case 3:
            return data[:at] + data[at : at + size] + data[at:]
        case 4:
            start = rng.randrange(len(other) + 1)
            return data[:at] + other[start : start + size] + data[at:]
        case 5:
            return data[:at] + other[rng.randrange(len(other) + 1) :]
        case _:
            return data[:at]


def _smaller(harness: Harness, finding: Finding, limit: float) -> Finding:
    """Leave out of a finding what it does not need."""
    nothing = _Coverage(())
    size = len(finding.data) // 2
    while size:
        at = 0
        while at < len(finding.data):
            other, _ = _run(harness, finding.data[:at] + finding.data[at + size :], nothing, limit)
            if other is not None and other.where == finding.where:
                finding = other
            else:
                at += size
        # Down to a block of a tar, or a byte of what is small.
        size = size // 2 if size > 512 or len(finding.data) < 256 else 0
    return finding


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fuzz.driver", description="Look for inputs that break what reads them."
    )
    parser.add_argument("harness", nargs="+", help="a module of tests/fuzz that has a HARNESS, such as archives")
    parser.add_argument(
        "--seconds", type=float, default=600, help="of CPU time, for each harness (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the changes; default: the time")
    options = parser.parse_args()
    findings = 0
    for name in options.harness:
        harness = importlib.import_module(f"fuzz.{name}").HARNESS
        folder = FOUND / harness.name
        folder.mkdir(parents=True, exist_ok=True)
        report = fuzz(harness, seed=options.seed, seconds=options.seconds, folder=folder)
        (folder / "at-work").unlink()
        print(f"{name}, seed {options.seed}: {report}")
        findings += len(report.found)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
