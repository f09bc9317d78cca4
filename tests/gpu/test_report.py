"""Galleries of frames on both backends: the same rows are chosen, and a few of them come to the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import image_bytes

import imgcurate as ic
from gpu.conftest import Backend, embedded
from imgcurate.report import rows
from imgcurate.report.scores import spread

ROWS = 24


@pytest.fixture
def part(tmp_path: Path) -> pd.DataFrame:
    """Images of one file, every fifth without a score, the last of them damaged."""
    files = [image_bytes(seed) for seed in range(ROWS - 1)] + [b"no image"]
    (tmp_path / "gallery.bin").write_bytes(b"".join(files))
    scores = [None if at % 5 == 4 else at % 7 / 7 for at in range(ROWS)]
    sizes = [len(file) for file in files]
    places = {
        "url": [str(tmp_path / "gallery.bin")] * ROWS,
        "offset": np.cumsum([0, *sizes[:-1]]).tolist(),
        "bytes": sizes,
    }
    matrix = np.random.default_rng(0).standard_normal((ROWS, 4))
    return embedded(matrix, caption=[f"é {at}" for at in range(ROWS)], aesthetic_score=scores, **places)


@pytest.fixture
def frame(on: Backend, part: pd.DataFrame) -> Any:
    return on.frame(part, cuts=(5, 5, 17))


def ids(chosen: pd.DataFrame) -> list[str]:
    return chosen["image_id"].tolist()


def test_the_same_rows_are_chosen(on: Backend, frame: Any, part: pd.DataFrame) -> None:
    eager = on.part(part)
    for given in (frame, eager):
        assert ids(rows.sample(given, 7, 3)) == ids(rows.sample(part, 7, 3))
        for largest in (True, False):
            assert ids(rows.top(given, "aesthetic_score", 6, largest)) == ids(
                rows.top(part, "aesthetic_score", 6, largest)
            )
        wanted = ids(part)[3:20:4][::-1]
        found = rows.by_ids(given, wanted, ["caption", "aesthetic_score"])
        assert (
            ids(found) == wanted
            and found["caption"].tolist() == part.set_index("image_id").loc[wanted, "caption"].tolist()
        )


def test_the_histogram_and_what_lies_beside_the_threshold_are_the_same(
    on: Backend, frame: Any, part: pd.DataFrame
) -> None:
    found, expected = (spread(given, "aesthetic_score", 0.4, 4) for given in (frame, part))
    assert found.histogram.counts.tolist() == expected.histogram.counts.tolist()
    assert (found.histogram.missing, found.histogram.at_least) == (
        expected.histogram.missing,
        expected.histogram.at_least,
    )
    assert ids(found.below) == ids(expected.below) and ids(found.above) == ids(expected.above)


def test_pages_are_made(on: Backend, frame: Any) -> None:
    page = ic.show(frame, columns=["caption", "aesthetic_score"])
    assert page.html().count("data:image/webp") == ROWS - 1 and "decode: not an image" in page.html()
    assert "keeps" in repr(ic.plot_scores(frame, "aesthetic_score", 0.5))
    found = ic.semantic_duplicates(frame, eps=0.3, min_similarity=-1, n_clusters=1)
    assert "data:image/webp" in found.show(n=2).html()
