"""Whatever stands in a file, it is a picture or one line of text."""

from __future__ import annotations

import pytest

from fuzz import pictures
from fuzz.driver import found_before, fuzz
from imgcurate import pixels


def test_pictures_of_every_format_are_seeds() -> None:
    found = {
        pixels.decode_picture(data, formats=pixels.BY_NAME, truncated=True).format.replace("MPO", "JPEG")
        for data in pictures.seeds()
    }
    assert found >= {"JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "TGA", "PPM", "PCX", "QOI", "ICO"}


@pytest.mark.parametrize("number", range(len(found_before(pictures.HARNESS))))
def test_pictures_that_once_broke_something_do_not_any_more(number: int) -> None:
    pictures.one(found_before(pictures.HARNESS)[number])


def test_changed_pictures_are_decoded_or_refused() -> None:
    report = fuzz(pictures.HARNESS, runs=500)
    assert not report.found, "\n".join(map(str, report.found.values()))
