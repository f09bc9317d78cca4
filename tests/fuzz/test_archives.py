"""Whatever stands in a shard, what is listed is in the file, and what is written is what was listed."""

from __future__ import annotations

import pytest
import tars

from fuzz import archives, programs
from fuzz.driver import found_before, fuzz


@pytest.mark.parametrize("dialect", tars.dialects())
def test_tars_of_every_dialect_are_read_and_copied_as_others_read_them(dialect: str) -> None:
    for harness in (archives.HARNESS, programs.HARNESS):
        harness.one(tars.dialects()[dialect])


def test_tars_that_were_once_read_wrongly_are_not_any_more() -> None:
    for harness in (archives.HARNESS, programs.HARNESS):
        for data in found_before(harness):
            harness.one(data)


def test_changed_tars_are_listed_and_copied_rightly_or_refused() -> None:
    report = fuzz(archives.HARNESS, runs=1000)
    assert not report.found, "\n".join(map(str, report.found.values()))
