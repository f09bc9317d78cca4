"""The pieces of pages: thumbnails, histograms, rows that are chosen, charts, and the page itself."""

from __future__ import annotations

import base64
import io
import itertools
import os
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import fsspec
import numpy as np
import pandas as pd
import pytest
from conftest import image_bytes, write_tar
from dask.callbacks import Callback
from hostile import encoded, noise
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import Image

import imgcurate as ic
from imgcurate import rowwise
from imgcurate.report import charts, histogram, page, rows
from imgcurate.report.scores import spread
from imgcurate.report.thumbnails import MOST_BYTES, thumbnails

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;b\x1b[31m\u202egpj"


@pytest.fixture(autouse=True)
def in_process() -> Iterator[None]:
    with dask.config.set({"scheduler": "synchronous"}):
        yield


class Elements(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        self.text += data


# Thumbnails


def rows_of(*files: bytes, **columns: Any) -> pd.DataFrame:
    """Rows of image files that lie one after the other in one file in memory."""
    url = f"memory://thumbs-{abs(hash(files))}.bin"
    fsspec.filesystem("memory").pipe(url.removeprefix("memory:/"), b"".join(files))
    sizes = [len(file) for file in files]
    offsets = np.cumsum([0, *sizes[:-1]]).tolist()
    return pd.DataFrame({"url": url, "offset": offsets, "bytes": sizes, **columns})


def picture(thumb: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(thumb.uri.partition(",")[2])))


def test_a_thumbnail_fits_its_box_and_none_is_made_larger() -> None:
    made = thumbnails(rows_of(image_bytes(1, (400, 300)), image_bytes(2, (30, 90)), image_bytes(3, (3000, 1))), 120)
    assert [(thumb.width, thumb.height) for thumb in made] == [(120, 90), (30, 90), (120, 1)]
    assert [(thumb.of_width, thumb.of_height) for thumb in made] == [(400, 300), (30, 90), (3000, 1)]
    assert [picture(thumb).size for thumb in made] == [(120, 90), (30, 90), (120, 1)]


def test_a_thumbnail_is_upright() -> None:
    image = Image.new("RGB", (200, 100), "red")
    image.paste("blue", (0, 0, 20, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right: what is stored on the left belongs on top
    (thumb,) = thumbnails(rows_of(encoded(image, "JPEG", exif=exif)), 100)
    assert (thumb.width, thumb.height) == (50, 100)
    red, _, blue = picture(thumb).convert("RGB").getpixel((25, 2))
    assert blue > 150 > red


@pytest.mark.parametrize("size", [64, 160, 320])
def test_a_thumbnail_has_few_bytes_whatever_the_picture(size: int) -> None:
    (thumb,) = thumbnails(rows_of(encoded(noise(700, 700), "PNG")), size)
    content = base64.b64decode(thumb.uri.partition(",")[2])
    assert len(content) <= MOST_BYTES * max(1, size / 160) ** 2 and (thumb.width, thumb.height) == (size, size)


def test_what_cannot_be_shown_says_why() -> None:
    files = (image_bytes(1), image_bytes(2)[:300], b"", b"<html>")
    given = rows_of(*files, error=[None, None, None, None])
    given.loc[4] = [given["url"][0], 0, len(files[0]), "sample: it has no image"]
    given.loc[5] = ["memory://nowhere.bin", 0, 10, None]
    made = [thumb.error for thumb in thumbnails(given, 64)]
    assert made[:5] == [
        None,
        "decode: truncated JPEG",
        "decode: empty file",
        "decode: not an image",
        "sample: it has no image",
    ]
    assert made[5].startswith("read: ")


def test_a_file_that_has_changed_spoils_its_own_images_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        (tmp_path / f"{name}.jpg").write_bytes(image_bytes(seed))
    frame = ic.read_files(tmp_path).compute()
    (tmp_path / "b.jpg").write_bytes(image_bytes(4) + b"more")
    made = [thumb.error for thumb in thumbnails(frame, 64)]
    assert made[0] is None and made[2] is None and "b.jpg has changed since it was listed" in made[1]


# Histograms

numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)
columns = st.lists(
    st.one_of(numbers, st.floats(-1, 1), st.integers(-3, 900).map(float), st.sampled_from([0.0, -0.0, 0.5])),
    max_size=60,
)


@given(columns, st.lists(st.integers(0, 60), max_size=6), st.floats(allow_nan=False), st.data())
def test_a_histogram_is_numpys_however_the_rows_are_partitioned(
    values: list[float], cuts: list[int], threshold: float, data: Any
) -> None:
    column = pd.Series(values, dtype="float64", name="score")
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [histogram.of_column(column.iloc[a:b], threshold) for a, b in itertools.pairwise(bounds)]
    at = data.draw(st.integers(0, len(parts)))
    found = histogram.merge([histogram.merge(some) for some in (parts[:at], parts[at:]) if some])
    finite = column[np.isfinite(column)].to_numpy()
    assert found.missing == int(column.isna().sum()) and found.infinite == int(np.isinf(column).sum())
    assert found.at_least == int((column >= threshold).sum())
    if not len(finite):
        assert not len(found.counts) and found.n == found.infinite
        return
    assert (found.low, found.high) == (finite.min(), finite.max())
    assert 1 <= len(found.counts) <= histogram.MOST_BINS and found.counts[0] and found.counts[-1]
    # NumPy counts what equals the last edge in the last bin; of ours, that is where the next begins.
    in_bins = np.searchsorted(found.edges, finite, side="right") - 1
    np.testing.assert_array_equal(found.counts, np.bincount(in_bins, minlength=len(found.counts)))
    at_once = histogram.of_column(column, threshold)
    assert at_once.exponent == found.exponent and at_once.first == found.first
    np.testing.assert_array_equal(at_once.counts, found.counts)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200))
def test_a_histogram_of_equal_bins_is_numpys(values: list[float]) -> None:
    found = histogram.of_column(pd.Series(values))
    inside = np.array(values)
    np.testing.assert_array_equal(found.counts, np.histogram(inside[inside < found.edges[-1]], bins=found.edges)[0])
    shown = found.shown(16)
    assert len(shown.counts) <= 16 and shown.counts.sum() == len(values)


@pytest.mark.parametrize(
    "dtype", ["float32", "Float64", "int16", "Int32", "uint8", "float[pyarrow]", "int64[pyarrow]", "bool"]
)
def test_a_column_of_any_numbers_is_counted(dtype: str) -> None:
    column = pd.Series([0, 1, 1, 0], dtype=dtype)
    found = histogram.of_column(column, 1)
    assert (found.n, found.at_least, found.low, found.high) == (4, 2, 0, 1)


def test_a_threshold_keeps_what_the_frames_own_comparison_keeps() -> None:
    column = pd.Series([0.7], dtype="float32")  # as float64 it is below .7
    assert histogram.of_column(column, 0.7).at_least == int((column >= 0.7).sum()) == 1


@pytest.mark.parametrize(
    "values", [["a", "b"], [[1.0], [2.0]], pd.to_datetime(["2026-01-01"]), pd.to_timedelta(["1s"])]
)
def test_what_is_no_number_is_refused_by_the_columns_name(values: Any) -> None:
    with pytest.raises(TypeError, match="column 'caption' does not hold numbers"):
        histogram.of_column(pd.Series(values, name="caption"))


# Rows


def table(n: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 20, n) / 20
    return pd.DataFrame(
        {
            "image_id": [f"s/{at:03}" for at in rng.permutation(n)],
            "url": "a.tar",
            "offset": np.arange(n) * 10,
            "bytes": 10,
            "caption": [f"caption {at}" for at in range(n)],
            "score": np.where(np.arange(n) % 7 == 3, np.nan, scores),
        }
    )


def partitioned(part: pd.DataFrame, cuts: list[int]) -> Any:
    bounds = [0, *sorted(min(cut, len(part)) for cut in cuts), len(part)]
    parts = [dask.delayed(part.iloc[a:b]) for a, b in itertools.pairwise(bounds)]
    return dd.from_delayed(parts, meta=part.iloc[:0], verify_meta=False)


@given(st.lists(st.integers(0, 60), max_size=40), st.integers(1, 70), st.integers(-2, 2**70))
def test_a_sample_does_not_depend_on_partitions_and_is_in_the_frames_order(cuts: list[int], n: int, seed: int) -> None:
    part = table()
    with dask.config.set(scheduler="synchronous"):
        drawn = rows.sample(partitioned(part, cuts), n, seed)
    pd.testing.assert_frame_equal(drawn, rows.sample(part, n, seed))
    assert drawn["image_id"].tolist() == [name for name in part["image_id"] if name in set(drawn["image_id"])]
    assert len(drawn) == min(n, len(part))


def test_another_seed_draws_others() -> None:
    assert rows.sample(table(), 5, 0)["image_id"].tolist() != rows.sample(table(), 5, 1)["image_id"].tolist()


@given(
    st.lists(st.integers(0, 60), max_size=20), st.integers(1, 70), st.booleans(), st.sampled_from(["score", "caption"])
)
def test_the_first_by_a_column_are_those_of_pandas(cuts: list[int], n: int, largest: bool, column: str) -> None:
    part = table()
    expected = part.sort_values(column, ascending=not largest, kind="stable")["image_id"].tolist()[:n]
    with dask.config.set(scheduler="synchronous"):
        found = rows.top(partitioned(part, cuts), column, n, largest)
    assert found["image_id"].tolist() == expected == rows.top(part, column, n, largest)["image_id"].tolist()


@given(st.lists(st.integers(0, 60), max_size=20), st.integers(1, 70), st.floats(-0.1, 1.1))
def test_the_nearest_to_a_threshold_are_found_on_both_sides(cuts: list[int], n: int, threshold: float) -> None:
    part = table()
    by_score = part.sort_values("score", kind="stable")
    above = by_score[by_score["score"] >= threshold]["score"].tolist()[:n]
    below = by_score[by_score["score"] < threshold]["score"].tolist()[::-1][:n]
    with dask.config.set(scheduler="synchronous"):
        found = spread(partitioned(part, cuts), "score", threshold, n)
    assert [side["score"].tolist() for side in found[1:]] == [below, above]


def test_no_step_holds_more_rows_than_are_asked_for() -> None:
    held: list[int] = []

    def count(key: Any, result: Any, *_: Any) -> None:
        if "sampled" in str(key):
            held.append(len(result))

    with Callback(posttask=count):
        rows.sample(partitioned(table(), list(range(0, 60, 2))), 3)
    # 31 partitions, and two rounds of what is put together.
    assert len(held) == 31 + 2 + 1 and max(held) <= 3


class Verb:
    """A function of rows, as `embed` applies one; counts the rows that it was given."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, part: pd.DataFrame) -> pd.DataFrame:
        self.seen += len(part)
        made = {"embedded": part["offset"] * 2.0, "error": part["offset"].astype(str).where(part["offset"] > 300)}
        return pd.DataFrame(made, index=part.index)

    def applied(self, frame: Any) -> Any:
        added = rowwise.map_rows(frame[["url", "offset"]], self, meta=self(frame._meta))
        self.seen = 0
        return frame.assign(embedded=added["embedded"], error=added["error"])


FRAMES = {
    "as it is": lambda frame: frame,
    "filtered": lambda frame: frame[(frame.embedded >= 0) & frame.score.notnull()],
    "without missing": lambda frame: frame.dropna(subset=["score", "embedded"]),
    "queried": lambda frame: frame.query("embedded >= 0"),
    "in other partitions": lambda frame: frame[frame.score < 2].repartition(npartitions=2),
    "with more columns": lambda frame: frame[frame.score >= 0].assign(more=frame.embedded + frame.score),
    "in part": lambda frame: frame[["image_id", "url", "offset", "bytes", "embedded", "score"]],
}


@pytest.mark.parametrize("kind", FRAMES)
def test_rows_are_had_by_their_ids_without_embedding_any(kind: str) -> None:
    part, verb = table(), Verb()
    frame = FRAMES[kind](verb.applied(partitioned(part, [13, 40])))
    ids = part[part["score"].notna()]["image_id"].tolist()[:9][::-1]
    found = rows.by_ids(frame, [*ids, ids[0], "nowhere"])
    assert found["image_id"].tolist() == ids and verb.seen == 0
    assert found["offset"].tolist() == part.set_index("image_id").loc[ids, "offset"].tolist()


@pytest.mark.parametrize("kind", FRAMES)
def test_a_computed_column_is_computed_of_the_rows_asked_for_alone(kind: str) -> None:
    part, verb = table(), Verb()
    frame = FRAMES[kind](verb.applied(partitioned(part, [13, 40])))
    ids = part[part["score"].notna()]["image_id"].tolist()[:9][::-1]
    found = rows.by_ids(frame, ids, ["embedded", "score"])
    expected = part.set_index("image_id").loc[ids]
    assert found["embedded"].tolist() == (expected["offset"] * 2.0).tolist() and verb.seen == len(ids)
    assert found["score"].tolist() == expected["score"].tolist()


def test_a_sample_is_drawn_before_anything_is_embedded() -> None:
    part, verb = table().assign(error=None), Verb()
    frame = verb.applied(partitioned(part, [13, 40]))
    drawn = rows.sample(frame, 5)
    assert verb.seen == 0 and drawn["error"].isna().all() and "embedded" not in drawn
    again = rows.sample(frame, 5, columns=["embedded", "error"])
    assert verb.seen == 5 and again["image_id"].tolist() == drawn["image_id"].tolist()
    assert again["embedded"].tolist() == (again["offset"] * 2.0).tolist()


def test_what_other_rows_decide_is_not_computed_of_a_few() -> None:
    part = table()
    frame = partitioned(part, [13, 40])
    ids = part["image_id"].tolist()[5:8]
    above = frame.assign(above=frame.offset - frame[frame.score > 0.5].offset.mean())
    ranked = frame.assign(rank=frame.map_partitions(lambda p: p["offset"].rank(), meta=("rank", "float64")))
    renamed = frame.assign(other=frame.image_id.str.upper()).rename(columns={"image_id": "other", "other": "image_id"})
    gap = frame.assign(high=frame[frame.score > 0.5].score)
    for lazy, column in ((above, "above"), (ranked, "rank"), (gap, "high")):
        expected = lazy.compute().set_index("image_id").loc[ids, column]
        np.testing.assert_array_equal(rows.by_ids(lazy, ids, [column])[column], expected)
    upper = [name.upper() for name in ids]
    assert rows.by_ids(renamed, upper)["offset"].tolist() == part["offset"].tolist()[5:8]


def test_of_ids_that_repeat_below_a_filter_those_above_it_are_meant() -> None:
    old, new = table(), table().assign(url="b.tar")
    both = dd.concat([partitioned(old, [20]), partitioned(new, [40])])
    ids = old["image_id"].tolist()[:4]
    assert rows.by_ids(both[both.url == "b.tar"], ids)["url"].tolist() == ["b.tar"] * 4


def test_ids_that_are_numbers_or_categories_are_found() -> None:
    part = table().assign(image_id=range(60))
    assert rows.by_ids(partitioned(part, [7]), [41, 3])["offset"].tolist() == [410, 30]
    assert rows.by_ids(part.astype({"image_id": "category"}), [41, 3])["offset"].tolist() == [410, 30]


# Charts


def test_a_chart_says_what_it_is_and_escapes_what_it_is_given() -> None:
    found = histogram.of_column(pd.Series([0.1, 0.2, 0.2, 0.9]))
    drawn = [
        charts.histogram(found, threshold=0.15, title=HOSTILE),
        charts.curve([0, 1], [0.1, 0.4], marked=0.5, mark=HOSTILE, title=HOSTILE),
        charts.bars([(HOSTILE, 3), ("b", 0)], total=4, title=HOSTILE),
    ]
    for chart in drawn:
        elements = Elements(chart)
        assert not {"script", "img", "b"} & set(elements.tags)
        assert dict(elements.attributes)["role"] == "img" and HOSTILE in dict(elements.attributes)["aria-label"]


@pytest.mark.parametrize(
    "values", [[], [1.0], [0.5, 0.5], [-1e308, 1e308], [1e-300, 2e-300], [float("inf"), 1.0], [3, 7]]
)
@pytest.mark.parametrize("threshold", [None, 0.5, 1e300, -5.0])
def test_a_histogram_of_any_values_can_be_drawn(values: list[float], threshold: float | None) -> None:
    drawn = charts.histogram(histogram.of_column(pd.Series(values, dtype="float64")), threshold=threshold)
    assert "nan" not in drawn and "inf%" not in drawn


# The page


def test_a_page_is_saved_whole_or_not_and_never_over_another_unasked(tmp_path: Path) -> None:
    made = page.Page("A <title>", Markup("<p>body</p>"), "Page(text)")
    made.save(tmp_path / "deep" / "page.html")
    text = (tmp_path / "deep" / "page.html").read_text()
    assert "<title>A &lt;title&gt;</title>" in text and "<p>body</p>" in text
    with pytest.raises(
        FileExistsError, match=r"page\.html is there already; name another file, or pass overwrite=True"
    ):
        made.save(tmp_path / "deep" / "page.html")
    made.save(str(tmp_path / "deep" / "page.html"), overwrite=True)
    assert os.listdir(tmp_path / "deep") == ["page.html"] and repr(made) == "Page(text)"


def test_a_page_that_cannot_be_written_says_so_with_the_path_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = page.Page("a", Markup("<p>body</p>"), "")
    Path("file").write_text("")
    Path("folder").mkdir()
    with pytest.raises(
        FileExistsError, match=r"^folder is a folder; name a file for the page, such as folder/page\.html$"
    ):
        made.save("folder", overwrite=True)
    with pytest.raises(NotADirectoryError, match=rf"^file/page\.html cannot be written: {tmp_path}/file is no folder"):
        made.save("file/page.html")
    with pytest.raises(ValueError, match=r"^'' is no path"):
        made.save("")
    with pytest.raises(TypeError, match=r"^None is no path"):
        made.save(None)  # type: ignore[arg-type]
    assert sorted(os.listdir()) == ["file", "folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_page_in_a_folder_that_may_not_be_written_to_says_so(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match=r"^.*/locked/deep/page\.html cannot be written: .*/locked may not be"):
        page.Page("a", Markup("<p>body</p>"), "").save(tmp_path / "locked" / "deep" / "page.html")


def test_a_page_is_saved_where_fsspec_can_write() -> None:
    made = page.Page("a", Markup("<p>body</p>"), "")
    made.save("memory://pages/a.html")
    assert b"<p>body</p>" in fsspec.filesystem("memory").cat("/pages/a.html")


def test_a_notebook_is_given_a_fragment_with_its_own_style() -> None:
    html = page.Page("a", Markup("<p>body</p>"), "")._repr_html_()
    elements = Elements(html)
    assert elements.tags[:3] == ["style", "div", "p"] and "html" not in elements.tags
    # Text has the colour of the notebook's, which knows whether it is light or dark.
    assert "prefers-color-scheme" not in html


def test_a_page_asks_nothing_of_any_network(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.jpg", image_bytes()), ("x.txt", HOSTILE.encode())])
    made = ic.show(ic.read_webdataset(tmp_path), columns=["caption", "url"])
    elements = Elements(made.html())
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in elements.attributes
    assert not {"script", "link", "iframe", "object"} & set(elements.tags)
    for name, value in elements.attributes:
        assert not name.startswith("on") and (
            name not in ("src", "href") or value.startswith("data:image/webp;base64,")
        )


def test_strange_text_is_shown_as_text(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.jpg", image_bytes()), ("x.txt", HOSTILE.encode())])
    elements = Elements(ic.show(ic.read_webdataset(tmp_path), columns="caption").html())
    assert "<script>alert(1)</script>" in elements.text and elements.tags.count("img") == 1
    # What a terminal would obey, and what turns the direction of writing, is seen.
    assert "\\x1b[31m\\u202egpj" in elements.text and "\x1b" not in elements.text
