"""show(), plot_scores() and what Duplicates shows: which images are on a page, in which order, and what is computed for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import pandas as pd
import pytest
from browser import opened
from conftest import Member, write_tar
from dask.callbacks import Callback
from distributed import Client
from hostile import encoded
from markupsafe import Markup
from PIL import Image, ImageEnhance
from test_report_pieces import HOSTILE, Elements, Verb, partitioned, table
from test_semantic import frame_of, planted

import imgcurate as ic
from imgcurate.report import pairs


@pytest.fixture
def in_process() -> Iterator[None]:
    with dask.config.set({"scheduler": "synchronous"}):
        yield


def names(page: ic.Page) -> list[str]:
    """The ids on a page, in order."""
    return re.findall(r'<div class="name" title="([^"]*)"', page.html())


def photo(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards: five photos, a smaller and a darker copy and an equal one of the first, a smaller one of the second, and one that is cut off."""
    folder = tmp_path_factory.mktemp("photos")
    originals = [encoded(photo(seed), "PNG") for seed in range(5)]
    small = [encoded(photo(seed).resize((48, 36)), "PNG") for seed in range(2)]
    dark = encoded(ImageEnhance.Brightness(photo(0).resize((64, 48))).enhance(0.7), "PNG")

    def members(files: dict[str, bytes]) -> list[Member]:
        return [
            member
            for key, content in files.items()
            for member in ((f"{key}.png", content), (f"{key}.txt", f"Photo {key}, which has a caption.".encode()))
        ]

    write_tar(folder / "a.tar", members({f"p{seed}": content for seed, content in enumerate(originals)}))
    copies = {"small0": small[0], "dark0": dark, "same0": originals[0], "small1": small[1], "cut": originals[2][:400]}
    write_tar(folder / "b.tar", members(copies))
    return folder


class Encoder:
    """A function that embeds; counts the images that it was given."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.images += len(batch)
        greys = batch[:, 16::32, 16::32].reshape(len(batch), -1).astype(np.float32)
        return greys - greys.mean(axis=1, keepdims=True)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def embedded(in_process: None, shards: Path, encoder: Encoder) -> Any:
    return ic.embed(ic.read_webdataset(shards), lambda batch: encoder(batch))


# show


def test_a_page_has_the_images_their_ids_and_the_columns_that_are_asked_for(in_process: None, shards: Path) -> None:
    frame = ic.measure(ic.read_webdataset(shards), ["width", "sharpness"])
    page = ic.show(frame, columns=["caption", "width"])
    elements = Elements(page.html())
    assert elements.tags.count("img") == 9 and names(page) == frame["image_id"].compute().tolist()
    assert "Photo p3, which has a caption." in elements.text and page.html().count('<dt title="width">') == 10
    assert "decode: truncated PNG" in elements.text
    assert repr(page) == "Page(All 10 images; see .save(path))" and "Photo p3" in page._repr_html_()


def test_only_the_images_that_are_shown_are_decoded_and_none_is_embedded(embedded: Any, encoder: Encoder) -> None:
    made: list[int] = []

    def count(key: Any, result: Any, *_: Any) -> None:
        if "_thumbnails_of" in str(key):
            made.append(len(result))

    with Callback(posttask=count):
        page = ic.show(embedded, 4, seed=3)
    assert sum(made) == 4 == len(names(page)) and encoder.images == 0
    assert names(page) == names(ic.show(embedded.repartition(npartitions=1), 4, seed=3))
    assert names(page) != names(ic.show(embedded, 4, seed=4))


def test_a_column_decides_the_order(in_process: None, shards: Path) -> None:
    frame = ic.measure(ic.read_webdataset(shards), ["sharpness"])
    rows = frame[["image_id", "sharpness"]].compute()
    for sort, ascending in (("sharpness", True), (("sharpness", "min"), True), (("sharpness", "max"), False)):
        expected = rows.sort_values("sharpness", ascending=ascending, kind="stable")["image_id"].tolist()
        assert names(ic.show(frame, 4, sort=sort)) == expected[:4]


def test_the_strangest_of_a_lazy_frame_are_shown_first(embedded: Any) -> None:
    scores = ic.outliers(embedded, k=3).compute().sort_values("outlier_score", ascending=False)
    scored = embedded.merge(ic.outliers(embedded, k=3))
    page = ic.show(scored, 4, sort=("outlier_score", "max"), columns=["outlier_score"])
    assert names(page) == scores["image_id"].tolist()[:4] and page.html().count('<dt title="outlier_score">') == 4


def test_a_frame_in_memory_is_shown_too(in_process: None, shards: Path) -> None:
    frame = ic.read_webdataset(shards)
    lying = frame.compute()
    assert names(ic.show(lying, 4)) == names(ic.show(frame, 4))
    assert names(ic.show(lying.rename(columns={"image_id": "name"}), 4, id_field="name")) == names(ic.show(frame, 4))


def test_a_cluster_decodes(client: Client, shards: Path) -> None:
    frame = ic.read_webdataset(shards)
    page = ic.show(frame, columns="caption")
    found = ic.perceptual_duplicates(frame, max_distance=8)
    assert Elements(page.html()).tags.count("img") == 9 and Elements(found.show().html()).tags.count("img") >= 2
    assert "keeps" in repr(ic.plot_scores(frame, "bytes", 1000))


def test_what_show_does_not_understand_it_says_in_a_sentence(embedded: Any, shards: Path) -> None:
    frame = ic.read_webdataset(shards)
    for given, options, kind, said in (
        (
            frame.drop(columns=["url", "bytes"]),
            {},
            KeyError,
            "show shows images and needs columns 'url', 'bytes', which say where they lie",
        ),
        (frame.rename(columns={"bytes": "size"}), {}, KeyError, "needs column 'bytes', which was called 'size'"),
        (frame, {"columns": ["sharpnes"]}, KeyError, "show needs column 'sharpnes'; the frame has 'image_id', 'url'"),
        (frame, {"sort": "sharpness"}, KeyError, "show needs column 'sharpness'; the frame has"),
        (frame, {"sort": ("bytes", "top")}, ValueError, "sort=('bytes', 'top') is no order: give a column"),
        (embedded, {"sort": "embedding"}, TypeError, "column 'embedding' holds list<"),
        (frame, {"n": 0}, ValueError, "n=0 must be a whole number, 1 to 1,000, of what fits on a page"),
        (frame, {"n": 30_000}, ValueError, "n=30000 must be"),
        (frame, {"seed": "x"}, ValueError, "show: seed='x' must be a whole number"),
        (frame, {"columns": 5}, TypeError, "show: columns=5 is neither a column's name nor a list of names"),
        (frame, {"size": 5}, ValueError, "size=5 must be a whole number of pixels, 16 to 1,024"),
        ("photos", {}, TypeError, "show takes a Dask, pandas or cuDF dataframe, not str"),
    ):
        with pytest.raises(kind) as raised:
            ic.show(given, **options)
        assert said in str(raised.value)


# plot_scores


def test_one_pass_finds_the_histogram_and_the_images_on_either_side(in_process: None, shards: Path) -> None:
    part, verb = table(), Verb()
    frame = verb.applied(partitioned(part, [13, 40]))
    page = ic.plot_scores(frame, "embedded", 401, n=3)
    assert verb.seen == len(part)
    by_value = part.sort_values("offset")["image_id"].tolist()
    assert names(page) == [*by_value[20:17:-1], *by_value[21:24]]
    assert repr(page) == "Page(embedded >= 401 keeps 39 of 60 images, 65.0 %; see .save(path))"
    assert re.findall(r'class="tag (\w+)">(\w+)<', page.html()) == [("gone", "goes"), ("kept", "stays")]


@pytest.mark.parametrize(
    ("column", "keep", "kept"),
    [("nsfw_score", None, 2), ("nsfw_score", ">=", 1), ("other", None, 1), ("other", "<", 2)],
)
def test_the_side_that_stays_is_said(column: str, keep: Any, kept: int) -> None:
    scores = pd.DataFrame({column: [0.1, 0.4, 0.5, None]})
    page = ic.plot_scores(scores, column, 0.5, keep=keep)
    assert f"keeps {kept} of 3 images" in repr(page) and "1 image has no value" in repr(page)
    assert "without images, because the frame has no image_id, url, offset, bytes" in repr(page)
    assert "img" not in Elements(page.html()).tags


def test_without_a_threshold_both_ends_are_shown(in_process: None, shards: Path) -> None:
    frame = ic.measure(ic.read_webdataset(shards), ["sharpness"])
    order = frame[["image_id", "sharpness"]].compute().dropna().sort_values("sharpness")["image_id"].tolist()
    page = ic.plot_scores(frame, "sharpness", n=2, columns="caption")
    assert names(page) == [*order[:2], *order[:-3:-1]] and "sharpness of 9 images, from" in repr(page)


def test_what_plot_scores_does_not_understand_it_says_in_a_sentence(in_process: None, shards: Path) -> None:
    frame = ic.read_webdataset(shards)
    for arguments, options, kind, said in (
        (("sharpness", 1), {}, KeyError, "plot_scores needs column 'sharpness'; the frame has"),
        (("caption", 1), {}, TypeError, "column 'caption' does not hold numbers"),
        (("bytes", float("nan")), {}, ValueError, "threshold=nan is no number"),
        (("bytes", "1"), {}, ValueError, "threshold='1' is no number"),
        (("bytes", 1), {"keep": "<="}, ValueError, "keep='<=' is unknown: give '>=' or '<'"),
    ):
        with pytest.raises(kind) as raised:
            ic.plot_scores(frame, *arguments, **options)
        assert said in str(raised.value)


# Duplicates


def test_pairs_around_the_cut_are_shown_without_embedding_again(embedded: Any, encoder: Encoder) -> None:
    found = ic.semantic_duplicates(embedded[embedded["error"].isnull()], eps=0.01, min_similarity=-0.9)
    seen = encoder.images
    page = found.show(n=3, columns="caption")
    assert encoder.images == seen
    worst = found.least_similar(3)
    inside = [name for row in worst.itertuples() for name in (row.duplicate_of, row.image_id)]
    assert names(page)[: len(inside)] == inside and len(names(page)) > len(inside)
    html = page.html()
    assert f"{worst['similarity'][0]:.4f}" in html and "96 \u00d7 72" in html and "Photo p0" in html
    wider = found.show(n=3, around=1.2)
    assert names(wider) != names(page) and "eps 1.2" in repr(wider)


def test_pairs_just_outside_are_the_most_similar_of_images_that_stay() -> None:
    with dask.config.set(scheduler="synchronous"):
        matrix = planted(300, 16)
        noisy = matrix + 0.05 * np.random.default_rng(1).standard_normal(matrix.shape).astype(np.float32)
        found = ic.semantic_duplicates(frame_of(noisy), eps=0.02, min_similarity=0.5, keep="id")
        stays = set(found.selected["image_id"].compute())
        edges = found.edges.compute()
        edges = edges[(edges["similarity"] < 0.98) & edges["other_id"].isin(stays) & edges["image_id"].isin(stays)]
        edges = edges.sort_values("similarity", ascending=False, kind="stable").head(7)
        images = pd.DataFrame({"image_id": sorted(stays), "url": "memory://none", "offset": 0, "bytes": 1})
        page = found.show(n=7, images=images)
    outside = names(page)[-14:]
    assert len(edges) == 7
    assert set(zip(outside[::2], outside[1::2], strict=True)) == set(
        zip(edges["other_id"], edges["image_id"], strict=True)
    )


def test_an_image_that_is_not_in_the_frame_says_so(embedded: Any) -> None:
    found = ic.semantic_duplicates(embedded, eps=0.2)
    page = found.show(images=embedded[embedded["image_id"] == "a/p0"].compute())
    assert "not in the frame of the images" in page.html() and "a/p0" in names(page)


def test_the_largest_groups_have_the_image_that_stays_first(embedded: Any) -> None:
    found = ic.semantic_duplicates(embedded, eps=0.2)
    groups = found.groups.compute().sort_values(["removed", "image_id"], ascending=[False, True])
    page = found.show_groups(n=2, most=2)
    first = names(page)[:3]
    assert groups["removed"].tolist()[0] == 3 and first[0] == groups["image_id"].tolist()[0] == "a/p0"
    of_first = found.pairs.compute().query("duplicate_of == 'a/p0'").sort_values(["similarity", "image_id"])
    assert first[1:] == of_first["image_id"].tolist()[:2]
    assert "3 duplicates" in page.html() and "and 1 more" in page.html()


def test_a_sweep_is_drawn_with_the_threshold_in_force(embedded: Any) -> None:
    found = ic.semantic_duplicates(embedded, eps=0.2)
    page = found.plot_sweep([0.3, 0.2, 0.01])
    assert found.sweep([0.01, 0.2, 0.3]).to_string(index=False) in repr(page)
    assert (
        re.findall(r'class="chosen"><td class="number">([\d.]+)<', page.html()) == ["0.2"] and "eps 0.2" in page.html()
    )
    assert "0.2" in repr(found.plot_sweep()) and "0.4" in repr(found.plot_sweep())
    with pytest.raises(ValueError, match=r"eps=0\.9 asks for pairs"):
        found.plot_sweep([0.9])
    assert "1 threshold;" in repr(found.plot_sweep(0.2)) and found.sweep(0.2)["eps"].tolist() == [0.2]
    with pytest.raises(ValueError, match=r"eps=\[\] holds no threshold"):
        found.plot_sweep([])
    with pytest.raises(ValueError, match="eps='wide' is neither a number nor a list of numbers"):
        found.plot_sweep("wide")


def test_equal_bytes_and_equal_looks_are_shown_too(in_process: None, shards: Path) -> None:
    frame = ic.read_webdataset(shards)
    exact = ic.exact_duplicates(frame)
    assert names(exact.show()) == ["a/p0", "b/same0"] and "Equal bytes have no near misses." in exact.show().html()
    assert names(exact.show_groups()) == ["a/p0", "b/same0"] and "equal bytes" in repr(exact.show())
    assert "1 threshold" in repr(exact.plot_sweep())
    alike = ic.perceptual_duplicates(frame, max_distance=6)
    assert "differ" in alike.show().html() and "a larger max_distance" in alike.show().html()
    assert re.findall(r'<td class="number">(\d+)</td><td class="number">\d+</td>', alike.plot_sweep().html()) == list(
        "0123456"
    )


def test_what_is_loaded_asks_for_the_images(embedded: Any, tmp_path: Path) -> None:
    found = ic.semantic_duplicates(embedded, eps=0.2)
    found.save(tmp_path / "saved")
    loaded = ic.Duplicates.load(tmp_path / "saved")
    assert names(loaded.show(images=embedded)) == names(found.show())
    assert names(loaded.show_groups(images=embedded.compute())) == names(found.show_groups())
    with pytest.raises(
        ValueError,
        match=r"pass the frame that does, show\(images=frame\), with columns 'image_id', 'url', 'offset', 'bytes'",
    ):
        loaded.show()
    with pytest.raises(ValueError, match=r"show_groups\(images=frame\)"):
        ic.semantic_duplicates((["a", "b"], np.eye(2, dtype=np.float32)), eps=0.2).show_groups()


def test_the_frame_that_was_searched_does_not_go_into_a_pickle(embedded: Any) -> None:
    found = ic.semantic_duplicates(embedded, eps=0.2)
    assert cloudpickle.loads(cloudpickle.dumps(found))._images is None and found._images is not None
    assert found.rethreshold(0.1)._images is found._images


def test_ids_that_are_the_index_of_a_frame_in_memory_are_found(embedded: Any) -> None:
    lying = embedded.compute().set_index("image_id")
    assert names(ic.semantic_duplicates(lying, eps=0.2).show()) == names(
        ic.semantic_duplicates(embedded, eps=0.2).show()
    )


def test_nothing_is_found_where_there_is_nothing(in_process: None, shards: Path) -> None:
    frame = ic.read_webdataset(shards)
    none = ic.exact_duplicates(frame[frame["image_id"] == "a/p1"])
    assert "No image is removed" in none.show().html() and "No image is removed" in repr(none.show_groups())
    assert names(ic.show(frame[frame["bytes"] < 0])) == [] and "0 of 0 images" in repr(
        ic.plot_scores(frame[frame["bytes"] < 0], "bytes", 1)
    )


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("something was computed")


def test_a_notebook_is_told_what_a_result_holds_and_nothing_is_computed(embedded: Any) -> None:
    found = ic.semantic_duplicates(embedded, eps=0.2)
    with dask.config.set(scheduler=refuse):
        text = Elements(found._repr_html_()).text
    assert "a similarity of at least 0.8 (eps 0.2)" in text and ".show()" in text
    assert f"{found.n_compared:,}" in text and "1, which have an error or nothing to compare" in text


def test_a_rule_that_may_remove_twins_does_not_say_that_they_stay(embedded: Any) -> None:
    found = ic.semantic_duplicates(embedded, eps=0.2, rule="pointwise")
    assert "ranks higher" in found.show().html()
    assert pairs.said_likeness(found.kind, None) == "not compared"


def test_an_image_stands_before_those_nearest_to_it(embedded: Any, shards: Path) -> None:
    found = ic.neighbours(embedded, k=3)
    near = {row.image_id: row for row in found.frame.compute().itertuples()}
    page = found.show(ids=["b/small1", "a/p0"], most=2, columns="caption")
    assert names(page) == ["b/small1", *near["b/small1"].neighbours[:2], "a/p0", *near["a/p0"].neighbours[:2]]
    assert f"{near['a/p0'].similarities[1]:.4f}" in page.html() and "Photo p0, which" in page.html()
    assert repr(page) == "Page(2 images and the 2 nearest to each; see .save(path))"
    assert names(found.show(ids="a/p0")) == ["a/p0", *near["a/p0"].neighbours]
    drawn = found.show(n=4, most=1)
    assert len(names(drawn)) == 8 and "4 images, drawn at random, and the 1 nearest" in drawn.html()
    assert drawn.html() == ic.neighbours(embedded.repartition(npartitions=1), k=3).show(n=4, most=1).html()


def test_images_without_neighbours_or_a_place_are_said(embedded: Any) -> None:
    found = ic.neighbours(embedded, k=3)
    broken = embedded[embedded.error.notnull()].image_id.compute().item()
    with pytest.raises(KeyError, match=f"ids names '{broken}', which was not compared"):
        found.show(ids=["a/p0", broken])
    with pytest.raises(ValueError, match="most=0 must be a whole number"):
        found.show(most=0)
    pair = ic.neighbours((["a", "b"], np.eye(2, dtype=np.float32)))
    with pytest.raises(ValueError, match=r"show\(images=frame\), with columns 'image_id', 'url'"):
        pair.show()
    places = pd.DataFrame({"image_id": ["a"], "url": ["a.png"], "offset": [0], "bytes": [1]})
    assert "not in the frame of the images" in pair.show(images=places).html()


def test_a_saved_page_holds_its_images(embedded: Any, tmp_path: Path) -> None:
    ic.semantic_duplicates(embedded, eps=0.2).show(n=2, size=64).save(tmp_path / "pairs.html")
    assert (tmp_path / "pairs.html").read_text().count("data:image/webp;base64,") >= 4


@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_pages_fit_telephones_show_every_image_and_ask_for_nothing(
    embedded: Any, tmp_path: Path, dark: bool
) -> None:
    found = ic.semantic_duplicates(embedded, eps=0.2, min_similarity=-1)
    long = "a_score_with_a_name_that_is_as_long_as_a_sentence"
    lying = embedded.compute().assign(**{long: np.arange(10) / 7, "caption": HOSTILE * 9})
    named = lying.assign(image_id="shards-of-a-folder-without-any-space/" * 4 + lying["image_id"] + "x" * 60)
    pages = [
        ic.show(named, columns=["caption", long, "url"]),
        ic.plot_scores(named, long, 0.9),
        found.show(images=lying, columns=["caption", long]),
        found.show_groups(),
        found.plot_sweep(),
        ic.neighbours(embedded).show(images=lying, columns=["caption", long], size=1000),
    ]
    fragments = [*(page._repr_html_() for page in pages), found._repr_html_()]
    ic.Page("All", Markup("".join(fragments)), "").save(tmp_path / "all.html")
    with opened(tmp_path / "all.html") as tab:
        for width in (400, 1400):
            tab.look(width, dark=dark)
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            beyond = "[...document.querySelectorAll('.imgcurate *')].filter(e => e.getBoundingClientRect().right > innerWidth).length"
            assert tab.evaluate(beyond) == 0
            # A value is seen however long the name beside it is.
            assert tab.evaluate("Math.min(...[...document.querySelectorAll('dd')].map(e => e.clientWidth))") > 4
        images = tab.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(images) > 20 and min(images) > 0
        assert tab.requests == [(tmp_path / "all.html").as_uri()] and tab.said == []
