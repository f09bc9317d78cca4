"""The rooms of deduplication stand on one another, and none leans on one above it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import imgcurate

DEDUP = Path(imgcurate.__file__).parent / "dedup"
#: From the ground up; what stands on one floor does not import each other.
FLOORS = [{"work"}, {"dataframes"}, {"graph"}, {"result"}, {"semantic", "content"}]


def imported(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports, with the names that it takes from them, for these may be modules."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_a_room_of_deduplication_imports_only_what_is_below_it(floor: int) -> None:
    below = set().union(*FLOORS[:floor])
    for room in FLOORS[floor]:
        for file in (DEDUP / room).rglob("*.py"):
            ours = {name.split(".")[2] for name in imported(file) if name.startswith("imgcurate.dedup.")}
            assert ours <= below | {room}, file


def test_every_room_of_deduplication_has_a_floor() -> None:
    rooms = {path.parent.name for path in DEDUP.glob("*/__init__.py")}
    assert rooms == set().union(*FLOORS)
