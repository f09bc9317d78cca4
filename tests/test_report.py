"""The page about a run: what it says adds up, it opens in a real browser that reaches nothing, and it does not grow with the run."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
from browser import Tab, opened
from conftest import Member, image_bytes, write_tar
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from s3 import upload
from test_curate import model_dir  # noqa: F401

from imgcurate import cli, curate
from imgcurate.report.run import album, facts, funnel, sections
from imgcurate.report.run.command import command, only_of_curate
from imgcurate.report.run.counts import Counts
from imgcurate.report.run.gather import Gathered
from imgcurate.report.thumbnails import Thumbnail
from imgcurate.run.curate import carry_out
from imgcurate.run.options import Options

SCRIPT = "<script>document.title = 'taken over'</script>"
HOSTILE = [
    f"</div></main>{SCRIPT}",
    '"><img src=http://example.com/a.png onerror="document.title = 1">',
    "{{ 7 * 7 }} {% for %} \x1b[31m \u202egnp.exe",
    "'; alert(1); '<svg onload=alert(1)>",
]


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


def sample(key: str, image: bytes, caption: str | None) -> list[Member]:
    return [(f"{key}.jpg", image), *([(f"{key}.txt", caption.encode())] if caption is not None else [])]


def small_shard(path: Path, seeds: list[int], broken: int = 0) -> None:
    members = [member for at, seed in enumerate(seeds) for member in sample(f"{at:03d}", image_bytes(seed), None)]
    for at in range(broken):
        members += sample(f"broken-{at}", b"<html>", "gone")
    write_tar(path, members)


@pytest.fixture(scope="module")
def curated(client: Client, tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:  # noqa: F811
    """A run with everything: scores, measures, three kinds of duplicates, errors, and texts of somebody who means harm."""
    folder = tmp_path_factory.mktemp("everything")
    for number in range(3):
        members: list[Member] = []
        for i in range(14):
            seed = 100 + 14 * number + i if i % 4 else i
            members += sample(f"{i:03d}", image_bytes(seed), HOSTILE[i % 4] if i < 8 else f"caption {seed}")
        members += sample("<img src=x onerror=alert(1)>", image_bytes(500 + number), "named by a stranger")
        members += sample("larger", image_bytes(100 + 14 * number + 1, (80, 60)), "looks like another")
        members.append(("again.png", image_bytes(100 + 14 * number + 2, format="PNG")))
        members += sample("cut", image_bytes(1)[:300], "truncated")
        write_tar(folder / "in" / f"{number:05d}.tar", members)
    manifest = curate(
        folder / "in", folder / "out", model="tiny-clip", model_dir=model_dir, min_aesthetic=0.1, max_nsfw=0.9,
        dedup="exact,perceptual,semantic", eps=0.15, measure=True,
    )  # fmt: skip
    assert all(manifest["reasons"][kind] for kind in ("error", "exact", "perceptual", "semantic")), manifest["reasons"]
    assert manifest["counts"]["kept"] > 10, manifest["counts"]
    return folder


@pytest.fixture(scope="module")
def tab(curated: Path) -> Iterator[Tab]:
    with opened(curated / "out" / "report.html") as tab:
        yield tab


def test_the_page_asks_for_nothing_and_complains_of_nothing(tab: Tab, curated: Path) -> None:
    tab.look(1000)
    assert tab.requests == [(curated / "out" / "report.html").as_uri()]
    assert tab.said == []
    broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert tab.evaluate("document.images.length") > 60 and tab.evaluate(broken) == 0


def test_it_has_a_section_for_all_that_the_run_did_and_names_them_in_its_contents(tab: Tab) -> None:
    sections = tab.evaluate("[...document.querySelectorAll('section.part')].map(part => part.id)")
    expected = ["funnel", "kept", "duplicates", "scores", "measures", "errors", "pictures", "map", "run", "next"]
    assert sections == expected
    assert tab.evaluate("[...document.querySelectorAll('nav a')].map(link => link.hash.slice(1))") == expected
    headings = tab.evaluate("[...document.querySelectorAll('#scores h3, #measures h3')].map(one => one.textContent)")
    assert {"aesthetic_score", "nsfw_score", "sharpness", "entropy"} <= set(headings)


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_window_in_light_and_dark(tab: Tab, width: int, dark: bool) -> None:
    tab.look(width, dark=dark)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    colour = json.loads(tab.evaluate("getComputedStyle(document.documentElement).backgroundColor").replace("rgb(", "[").replace(")", "]"))  # fmt: skip
    assert (max(colour) < 60) == dark
    # What scrolls by itself may be wide inside; nothing else may stick out of the window.
    outside = f"""[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll') && !one.closest('svg') &&
        one.getBoundingClientRect().width && one.getBoundingClientRect().right > {width} + 1).map(one => one.outerHTML.slice(0, 200))"""
    assert tab.evaluate(outside) == []


def test_what_strangers_wrote_stays_text(tab: Tab) -> None:
    assert tab.evaluate("document.scripts.length") == 0 and tab.evaluate("document.title").endswith("out")
    assert tab.evaluate("document.querySelectorAll('[onerror], [onload], svg script').length") == 0
    shown = tab.evaluate("document.body.textContent")
    assert SCRIPT[:8] in shown and "{{ 7 * 7 }}" in shown and "<img src=x onerror=alert(1)>" in shown
    assert "\\x1b[31m" in shown and "\\u202e" in shown and not set(shown) & {"\x1b", "\u202e"}


def test_pictures_have_words_in_their_place(tab: Tab) -> None:
    assert tab.evaluate("[...document.images].filter(image => !image.alt.trim()).length") == 0
    unnamed = "[...document.querySelectorAll('[role=img], [role=region], svg')].filter(one => !one.getAttribute('aria-label'))"
    assert tab.evaluate(f"{unnamed}.length") == 0


def test_the_map_is_walked_by_keyboard(tab: Tab) -> None:
    tab.look(1000)
    tab.evaluate("document.querySelector('a.skip').focus()")
    small = tab.evaluate("document.querySelector('.spot').getBoundingClientRect().width")
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.className").startswith("spot")
    inside = "(box => box.left >= 0 && box.right <= innerWidth)(document.activeElement.getBoundingClientRect())"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().width") > 2 * small and tab.evaluate(inside)
    assert tab.evaluate("getComputedStyle(document.activeElement.querySelector('.about')).display") == "block"


def test_on_paper_what_is_folded_is_open(tab: Tab) -> None:
    options = "document.querySelector('#run details table').getBoundingClientRect().height"
    tab.look(1000)
    assert tab.evaluate("document.querySelector('#run details').open") is False
    tab.look(1000, printed=True)
    assert tab.evaluate(options) > 100
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"


def test_an_image_that_may_not_be_safe_is_veiled_until_it_is_asked_for(client: Client, curated: Path) -> None:
    folder = curated / "veiled"
    images = pd.read_parquet(curated / "out" / "images.parquet")
    assert images["nsfw_score"].max() < 1
    (folder / "images.parquet").mkdir(parents=True)
    manifest = json.loads((curated / "out" / "manifest.json").read_text())
    for name in manifest["parts"]:
        part = pd.read_parquet(curated / "out" / "images.parquet" / name, dtype_backend="pyarrow")
        part["nsfw_score"] = part["nsfw_score"].mask(part["nsfw_score"].notna(), 0.6).astype("float32")
        part.to_parquet(folder / "images.parquet" / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["report", str(folder), "--scheduler", client.scheduler.address]) == 0
    with opened(folder / "report.html") as tab:
        tab.look(1000)
        pictures = tab.evaluate("document.querySelectorAll('figure img').length")
        assert tab.evaluate("document.querySelectorAll('.veil figure img').length") == pictures > 0
        blurred = "getComputedStyle(document.querySelector('.veil img')).filter"
        assert "blur" in tab.evaluate(blurred)
        tab.evaluate("document.querySelector('.veil input').focus()")
        tab.press("Space")
        assert tab.evaluate(blurred) == "none"


def numbers(page: str) -> list[tuple[str, int]]:
    """The lines of the funnel of a page."""
    lines = re.findall(r'<li class="c-(\w+)">.*?<span class="amount">\W*([\d,]+)</span>', page, re.DOTALL)
    return [(name, int(amount.replace(",", ""))) for name, amount in lines]


def sources(page: str) -> list[list[int]]:
    """The numbers of each source in a page: read, and what became of its images."""
    table = page.partition('aria-label="what became of the images of each source"')[2].partition("</table>")[0]
    rows = table.partition("<tbody>")[2].split("</tr>")[:-1]
    return [[int(n.replace(",", "")) for n in re.findall(r'<td class="number[^>]*>([\d,]+)<', row)] for row in rows]


def test_the_funnel_adds_up_in_all_and_by_source(curated: Path) -> None:
    page = (curated / "out" / "report.html").read_text()
    counts = json.loads((curated / "out" / "manifest.json").read_text())["counts"]
    (_, read), *removed, (_, kept) = numbers(page)
    assert [name for name, _ in removed] == ["error", "aesthetic", "nsfw", "exact", "perceptual", "semantic"]
    assert read - sum(amount for _, amount in removed) == kept == counts["kept"] and read == counts["read"] == 54
    assert len(sources(page)) == 3
    assert all(read == sum(became) for read, *became in sources(page))
    assert sum(read for read, *_ in sources(page)) == read


@given(
    st.lists(
        st.lists(st.integers(0, 50), min_size=len(funnel.OUTCOMES), max_size=len(funnel.OUTCOMES)),
        min_size=1,
        max_size=120,
    ),
    st.randoms(),
)
def test_counts_of_any_sources_add_up_whatever_is_left_out(became: list[list[int]], random: Any) -> None:
    known = {
        f"s3://bucket/{number}.tar": {"read": sum(one), **dict(zip(funnel.OUTCOMES, one, strict=True))}
        for number, one in enumerate(became)
    }
    lines = funnel.by_source(known, "s3://bucket")
    assert len(lines) <= funnel.MOST_SOURCES + 1
    assert all(line.read == sum(line.counts.values()) for line in lines)
    assert sum(line.read for line in lines) == sum(map(sum, became))
    lost = [line.read - line.counts["kept"] for line in lines]
    if len(became) > funnel.MOST_SOURCES:
        assert min(lost[:-1]) >= 0 and lost[:-1] == sorted(lost[:-1], reverse=True)


def test_counts_that_do_not_add_up_are_refused() -> None:
    manifest = {
        "counts": {"read": 5, "kept": 4, "shards": 1},
        "reasons": {"error": 2},
        "options": {"dedup": []},
        "sources": {},
    }
    with pytest.raises(ValueError, match="do not add up"):
        funnel.steps_of(manifest)


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=30), min_size=1, max_size=6), st.integers(1, 8))
def test_what_is_counted_in_bounded_room_is_right_but_for_what_it_says(parts: list[list[str]], most: int) -> None:
    counts = Counts(most)
    for part in parts:
        counts = counts.merge(Counts(most).add(part))
    of_all = [value for part in parts for value in part]
    assert len(counts.held) <= most and counts.missing <= len(of_all) / (most + 1)
    for value in set(of_all):
        assert of_all.count(value) - counts.missing <= counts.held[value] <= of_all.count(value)


@pytest.mark.parametrize("n", [2, 7])
def test_facts_of_parts_are_those_of_all(curated_images: pd.DataFrame, n: int) -> None:
    limits = {"aesthetic_score": 0.5}
    at_once = facts.of_images(curated_images, limits)
    cuts = np.array_split(np.arange(len(curated_images)), n)
    merged = facts.merge([facts.of_images(curated_images.iloc[cut].reset_index(drop=True), limits) for cut in cuts])
    assert (merged.read, merged.kept) == (at_once.read, at_once.kept)
    assert {name: tally.held for name, tally in merged.tallies.items()} == {
        name: tally.held for name, tally in at_once.tallies.items()
    }
    assert merged.rows.keys() == at_once.rows.keys()
    for which, rows in at_once.rows.items():
        assert merged.rows[which]["image_id"].tolist() == rows["image_id"].tolist(), which
    for name, counted in at_once.histograms.items():
        assert merged.histograms[name].counts.tolist() == counted.counts.tolist()


def test_errors_keep_the_digits_of_names_and_that_of_a_single_image_its_text(curated_images: pd.DataFrame) -> None:
    said = ["member 'a.jpg' has 3 parts", "its name is not UTF-8; rename it", "decode: JPEG 2000 of 70 pixels"]
    images = curated_images.head(4).assign(error=[*said, "decode: JPEG 2000 of 80 pixels"])
    gathered = Gathered("out", {"counts": {"errors": 4}}, facts.of_images(images, {}), None, [], None, None)
    shown = sections.errors(gathered)
    assert shown is not None
    assert {kind["kind"]: kind["count"] for kind in shown["kinds"]} == {
        "decode: JPEG 2000 of N pixels": 2,
        "member 'a.jpg' has 3 parts": 1,
        "its name is not UTF-8; rename it": 1,
    }


@pytest.fixture(scope="module")
def curated_images(curated: Path) -> pd.DataFrame:
    from imgcurate import parts

    folder = curated / "out" / "images.parquet"
    tables = [parts.read_part(str(path), None, facts.COLUMNS) for path in sorted(folder.iterdir())]
    return pd.concat(tables, ignore_index=True)


def test_the_page_is_made_again_from_what_the_run_wrote(
    client: Client, curated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = curated / "out" / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert cli.main(["report", str(curated / "out"), "--scheduler", client.scheduler.address]) == 0
    assert f"{page} written in" in capsys.readouterr().out
    assert page.read_bytes() == before
    assert cli.main(["report", str(curated)]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_what_other_thresholds_would_remove_is_told_as_far_as_it_is_stored(client: Client, curated: Path) -> None:
    page = (curated / "out" / "report.html").read_text()
    assert "How many images each threshold would remove" in page and "imgcurate sweep" in page
    bare = curated / "bare"
    shutil.copytree(curated / "out", bare, ignore=shutil.ignore_patterns(".run"))
    assert cli.main(["report", str(bare), "--scheduler", client.scheduler.address]) == 0
    page = (bare / "report.html").read_text()
    assert "so the curve ends at the run&#39;s eps" in page or "so the curve ends at the run's eps" in page
    assert "imgcurate sweep" not in page


def without_times(page: Path) -> str:
    return re.sub(r'<h3 class="sub">Seconds.*?Models|· [\d,]+ s</p>', "", page.read_text(), flags=re.DOTALL)


def test_a_run_that_goes_on_has_the_page_of_one_that_was_not_stopped(client: Client, tmp_path: Path) -> None:
    small_shard(tmp_path / "in" / "0.tar", [0, 1, 2, 3, 0, 1], broken=1)
    out, options = tmp_path / "out", {"model": mean_colour, "eps": 1e-5}
    curate(tmp_path / "in", out, **options)
    page = without_times(out / "report.html")
    (out / "manifest.json").unlink()
    (out / "shards" / "00000.tar").unlink()
    curate(tmp_path / "in", out, **options, report=False)
    assert not (out / "report.html").exists()  # what was there may be of another run
    curate(tmp_path / "in", out, **options)
    assert without_times(out / "report.html") == page


def test_a_page_that_cannot_be_written_is_a_sentence_and_no_failure(client: Client, tmp_path: Path) -> None:
    small_shard(tmp_path / "in" / "0.tar", [0, 1])
    (tmp_path / "out" / "report.html" / "mine").mkdir(parents=True)
    with pytest.warns(UserWarning, match="the run has finished, but not its report .* imgcurate report") as said:
        manifest = curate(tmp_path / "in", tmp_path / "out", model=mean_colour, eps=1e-5, overwrite=True)
    assert len(said) == 1 and "\n" not in str(said[0].message)
    assert manifest["counts"]["kept"] == 2 and (tmp_path / "out" / "manifest.json").exists()


def pages_of(tmp_path: Path, **options: Any) -> str:
    curate(tmp_path / "in", tmp_path / "out", **{"model": mean_colour, "eps": 1e-5, **options})
    return (tmp_path / "out" / "report.html").read_text()


def test_a_run_of_nothing_but_errors_has_a_page(client: Client, tmp_path: Path) -> None:
    small_shard(tmp_path / "in" / "0.tar", [], broken=3)
    page = pages_of(tmp_path)
    assert "0 of 3 images kept" in page and "No image is kept" in page and "decode: not an image" in page
    assert 'id="map"' not in page and 'id="kept"' not in page and 'id="duplicates"' not in page


def test_a_run_of_no_images_has_a_page(client: Client, tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "0.tar", [])
    page = pages_of(tmp_path)
    assert "0 of 0 images kept" in page and "holds no image" in page and 'id="pictures"' not in page


def test_a_run_without_duplicates_scores_and_captions_has_a_page(client: Client, tmp_path: Path) -> None:
    small_shard(tmp_path / "in" / "0.tar", list(range(6)))
    page = pages_of(tmp_path, dedup=False)
    assert "6 of 6 images kept" in page and 'id="duplicates"' not in page and 'id="scores"' not in page
    assert "100 % have no caption" in page
    assert [name for name, _ in numbers(page)] == ["read", "error", "kept"]


def test_a_run_of_folders_of_images_has_a_page(client: Client, tmp_path: Path) -> None:
    for at in range(8):
        path = tmp_path / "in" / ("cats" if at < 4 else "dogs") / f"{at}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(at % 6))
        path.with_suffix(".txt").write_text("a caption")
    page = pages_of(tmp_path, dedup="exact", write="files")
    assert (
        "in 12 files" in page and "6 of 8 images kept" in page and "same bytes" in page and "All have a caption" in page
    )


def test_a_run_on_a_store_has_its_page_there(
    client: Client, tmp_path: Path, bucket: str, options: dict[str, Any]
) -> None:
    small_shard(tmp_path / "in" / "0.tar", [0, 1, 2, 3, 4, 5, 0])
    source, out = upload(tmp_path / "in", f"{bucket}/in", options), f"{bucket}/out"
    curate(source, out, model=mean_colour, eps=1e-5, storage_options=options)
    fs = fsspec.filesystem("s3", **options)
    fs.invalidate_cache()
    page = fs.cat_file(f"{out}/report.html").decode()
    assert "6 of 7 images kept" in page and page.count("<img ") > 10 and "How many images each threshold" in page


def noise(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (240, 240, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_a_page_of_pictures_that_cannot_be_packed_is_small_all_the_same(client: Client, tmp_path: Path) -> None:
    images = [noise(at) for at in range(150)]
    images += [noise(at) for at in range(25)]
    write_tar(tmp_path / "in" / "0.tar", [(f"{at:04d}.jpg", image) for at, image in enumerate(images)])
    page = pages_of(tmp_path, dedup="exact,semantic", eps=1e-9, measure=True)
    assert 200 < page.count("<img ") <= album.MOST and len(page.encode()) <= 5_000_000


def test_an_album_holds_no_more_than_a_page_may() -> None:
    rows = pd.DataFrame({"image_id": [str(at) for at in range(450)], "caption": [None] * 450})
    for size, most in ((100, album.MOST), (12_000, album.MOST_BYTES // 12_000)):
        pictures = (full := album.Album(None)).add(rows)
        full.develop(lambda rows, size=size: [Thumbnail("x" * size, 1, 1, None)] * len(rows))
        assert sum(picture.thumb.uri is not None for picture in pictures) == most and full.left == 0
        assert "left out" in str(pictures[-1].thumb.error)


PLACES = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(
    inputs=st.one_of(PLACES, st.lists(PLACES, min_size=1, max_size=3)),
    out=PLACES,
    options=st.fixed_dictionaries(
        {
            "model": st.sampled_from(["openai/clip-vit-large-patch14", "efficientnet-lite0", "-odd name"]),
            "min_aesthetic": st.none() | st.floats(0, 1),
            "max_nsfw": st.none() | st.sampled_from([0.5, 0.123456789]),
            "drop": st.sampled_from([[], ["dark", "odd_size"]]),
            "dedup": st.sampled_from([[], ["semantic"], ["exact", "semantic"]]),
            "eps": st.floats(0, 0.9),
            "probes": st.integers(1, 3),
            "exact": st.booleans(),
            "keep": st.sampled_from(["largest", "id", [["aesthetic_score", "max"], ["bytes", "min"]]]),
            "rule": st.sampled_from(["cover", "component"]),
            "formats": st.sampled_from([[], ["PSD", "TGA"]]),
            "timeout": st.none() | st.just(2.5),
            "measure": st.booleans().map(lambda all_of_them: ["width", "phash"] if all_of_them else []),
        }
    ),
)
def test_the_command_that_goes_on_is_that_of_the_run(inputs: Any, out: str, options: dict[str, Any]) -> None:
    program, *words = shlex.split(command({"inputs": inputs, "out": out, **options}))
    parsed = vars(cli._parser().parse_args(words))
    assert program == "imgcurate" and parsed["command"] == "run"
    assert parsed["inputs"] == ([inputs] if isinstance(inputs, str) else inputs) and parsed["out"] == out
    keep = options["keep"] if isinstance(options["keep"], str) else [tuple(column) for column in options["keep"]]
    said = {**{name: ",".join(options[name]) for name in ("drop", "dedup", "formats")}, "keep": keep}
    for name, value in {**options, **said, "measure": bool(options["measure"])}.items():
        assert parsed[name] == value, name


def test_the_command_leaves_out_what_the_command_line_has_by_itself() -> None:
    parsed = vars(cli._parser().parse_args(["run", "in", "out"]))
    from imgcurate.report.run.command import _DEFAULTS, _OF_CURATE

    said = {"drop": [], "dedup": ["semantic"], "formats": [], "measure": []}
    assert {name: said.get(name, parsed[name]) for name in _DEFAULTS} == _DEFAULTS
    assert {*_DEFAULTS, *_OF_CURATE} == {field.name for field in fields(Options)}
    assert (parsed["dedup"], parsed["formats"], parsed["measure"]) == ("semantic", "", False)
    assert only_of_curate({"options": parsed, "models": {"encoder": {"kind": "callable"}}}) == ["model"]
    assert carry_out.__kwdefaults__["report"] is True
