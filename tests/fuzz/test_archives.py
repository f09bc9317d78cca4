"""Whatever stands in a shard, what is listed is in the file, and what is written is what was listed."""

from __future__ import annotations

import pytest
import tars

from fuzz import archives
from fuzz.driver import found_before, fuzz


@pytest.mark.parametrize("dialect", tars.dialects())
def test_tars_of_every_dialect_are_read_and_copied_as_tarfile_reads_them(dialect: str) -> None:
    archives.one(tars.dialects()[dialect])


def test_tars_that_were_once_read_wrongly_are_not_any_more() -> None:
    for data in found_before(archives.HARNESS):
        archives.one(data)


def test_changed_tars_are_listed_and_copied_rightly_or_refused() -> None:
    report = fuzz(archives.HARNESS, runs=2000)
    assert not report.found, "\n".join(map(str, report.found.values()))
