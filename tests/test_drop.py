"""A run drops images by the flags that `flag` gives them, says so of each, and computes again no more than it must."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from conftest import write_tar
from distributed import Client
from PIL import Image

import imgcurate as ic
from imgcurate import cli, flags, parts, schema
from imgcurate.cli.tables import nothing_kept, table
from imgcurate.run.estimate import estimate
from imgcurate.run.options import Options, dropped, measured
from imgcurate.run.output.columns import Rows, Sources, read_rows
from imgcurate.run.verify import verify

FLAGS = list(flags.MEASURES)


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


def noise(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """A picture with no flag."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def coarse(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    return noise(seed, 4, 3).resize((width, height), Image.Resampling.BICUBIC)


SPOILT: dict[str, Callable[[], Image.Image]] = {
    "dark": lambda: noise(20).point(lambda value: value // 10),
    "light": lambda: noise(21).point(lambda value: 255 - value // 10),
    "blurry": lambda: coarse(22),
    "low_information": lambda: Image.new("RGB", (96, 72), (128, 90, 30)),
    "greyscale": lambda: noise(23).convert("L"),
    "odd_aspect": lambda: noise(24, 30, 240),
    "odd_size": lambda: noise(25, 16, 12),
}


def sample(key: str, image: Image.Image) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"{key}.png", buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Images without a flag, one with each, one with two, and one that cannot be used, in two shards."""
    folder = tmp_path / "in"
    write_tar(folder / "0.tar", [sample(f"good-{seed}", noise(seed)) for seed in range(9)])
    spoilt = [sample(name, make()) for name, make in SPOILT.items()]
    both = sample("both", coarse(3).convert("L").point(lambda value: value // 10))
    write_tar(folder / "1.tar", [*spoilt, both, ("cut.png", spoilt[0][1][:200])])
    return folder


def run(shards: Path, out: Path, **options: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    given = {"dedup": False, "report": False, **options}
    manifest = ic.curate(shards, out, model=mean_colour, **given)
    return manifest, pd.read_parquet(out / "images.parquet").set_index("image_id")


def made(out: Path, name: str) -> dict[str, int]:
    """The parts of a table of a run, and when they were made."""
    return {path.name: path.stat().st_mtime_ns for path in (out / ".run" / name).glob("*.parquet")}


def test_images_go_for_the_flags_that_flag_gives_them_and_are_accounted_for(
    client: Client, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, images = run(shards, tmp_path / "out", drop=",".join(reversed(FLAGS)), report=True)
    # By the verb, on what the run wrote of images that can be used.
    usable = images[images["error"].isna()].assign(aspect=lambda rows: rows["width"] / rows["height"])
    verdicts = ic.flag(dd.from_pandas(usable, npartitions=2, sort=False)).compute()
    for image_id, row in verdicts.iterrows():
        has = [name for name in FLAGS if row[name]]
        assert has == has[:1] if "both" not in image_id else has[:1] == ["dark"] and len(has) > 1, image_id
        assert images["kept"][image_id] == (not has) and not pd.isna(row["sharpness"])
        assert images["reason_kind"].astype(object)[image_id] == (has[0] if has else None) or not has
        for name in has:
            assert f"{name} ({flags.COMPARED[name]}" in images["reason"][image_id]
    assert images.loc["1/cut", "reason_kind"] == "error"
    assert images.loc["1/odd_size", "reason"] == "odd_size (ratio to the median side of 83 px = 5.99 > 4)"
    assert images.loc["1/odd_aspect", "reason"] == "odd_aspect (longer / shorter side = 8 > 3)"
    assert images.loc["1/greyscale", "reason"] == "greyscale (colourfulness = 0 < 1)"
    assert [name for name in SPOILT if not images["kept"][f"1/{name}"]] == FLAGS

    counts, reasons = manifest["counts"], manifest["reasons"]
    assert (counts["read"], counts["errors"], counts["flagged"], counts["kept"]) == (18, 1, 8, 9)
    assert {name: reasons[name] for name in FLAGS} == {**dict.fromkeys(FLAGS, 1), "dark": 2}
    assert counts["read"] == counts["kept"] + sum(reasons.values())
    assert manifest["flags"] == flags.DEFAULTS and manifest["median_side"] == 83
    assert [source["flagged"] for source in manifest["sources"].values()] == [0, 8]
    told = table(manifest)
    lines = [line.split() for line in told.splitlines()]
    assert ["flagged", "8", "44.4%", "dark,", "light,", "blurry,"] in [line[:6] for line in lines]
    assert "odd_size beside a median of 83 px\n" in told and ["low_information", "1", "5.6%"] in lines
    assert verify(tmp_path / "out").problems == ()
    assert cli.main(["why", str(tmp_path / "out"), "1/blurry"]) == 0
    assert "not kept: blurry (sharpness / contrast ** 2 = 0.00" in capsys.readouterr().out

    page = (tmp_path / "out" / "report.html").read_text()
    assert '<section class="part" id="flags">' in page and '<section class="part" id="scores">' not in page
    for name in FLAGS:
        assert f'<li class="c-{name}">' in page and f'<h3 class="sub">{name}</h3>' in page
    # A picture of each that went, below its flag.
    section = page.partition('id="flags"')[2].partition("</section>")[0]
    for name in FLAGS:
        gallery = section.partition(f'<h3 class="sub">{name}</h3>')[2].partition('<h3 class="sub">')[0]
        goes = max(gallery.split("<h4>"), key=lambda side: side.partition("</h4>")[0].endswith(": go"))
        assert f"{name}</" in goes or f">{name}" in goes, name


def test_what_is_flagged_is_not_the_copy_that_stays(client: Client, tmp_path: Path) -> None:
    # Of each pair the larger one would stay, and it is blurry.
    pairs = [[sample(f"{seed}-sharp", coarse(seed, 24, 18)), sample(f"{seed}-large", coarse(seed))] for seed in (1, 2)]
    write_tar(tmp_path / "in" / "0.tar", [member for pair in pairs for member in pair])
    near = {"dedup": True, "eps": 1e-5}
    _, without = run(tmp_path / "in", tmp_path / "without", **near)
    assert without.index[without["kept"]].tolist() == ["0/1-large", "0/2-large"]
    manifest, images = run(tmp_path / "in", tmp_path / "out", drop=["blurry"], **near)
    assert images.index[images["kept"]].tolist() == ["0/1-sharp", "0/2-sharp"]
    assert set(images["reason_kind"].dropna()) == {"blurry"} and images["duplicate_of"].isna().all()
    assert (manifest["reasons"]["blurry"], manifest["counts"]["duplicates"]) == (2, 0)


def test_another_drop_is_refused_by_name_and_embeds_nothing_again(client: Client, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(shards, out)
    embedded, listed = made(out, "columns"), made(out, "listed")
    assert not made(out, "measures")
    with pytest.raises(FileExistsError, match=r"\(drop='' there, drop=blurry now\)"):
        run(shards, out, drop="blurry")
    run(shards, out, drop="blurry", overwrite=True)
    measured = made(out, "measures")
    assert len(measured) == 2
    with pytest.raises(FileExistsError, match=r"\(drop=blurry there, drop=dark,blurry,odd_size now\)"):
        run(shards, out, drop=("dark", "odd_size", "blurry"))
    manifest, _ = run(shards, out, drop=("dark", "odd_size", "blurry"), overwrite=True)
    assert (made(out, "columns"), made(out, "listed")) == (embedded, listed)
    assert made(out, "measures") == measured
    written = (out / "manifest.json").stat().st_mtime_ns
    assert run(shards, out, drop="blurry,dark,odd_size")[0]["counts"] == manifest["counts"]
    assert (out / "manifest.json").stat().st_mtime_ns == written
    # As a run that was never anything else.
    fresh, _ = run(shards, tmp_path / "fresh", drop="blurry,dark,odd_size")
    assert (fresh["parts"], fresh["reasons"]) == (manifest["parts"], manifest["reasons"])
    assert (out / "shards" / "00000.tar").read_bytes() == (tmp_path / "fresh/shards/00000.tar").read_bytes()
    # And back: what was measured stays for another time.
    run(shards, out, overwrite=True)
    assert (made(out, "columns"), made(out, "measures")) == (embedded, measured)


def test_a_run_of_an_earlier_version_which_knew_no_flags_is_finished(
    client: Client, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(shards, out)
    for name in ("manifest.json", ".run/run.json"):
        known = json.loads((out / name).read_text())
        del known["options"]["drop"]
        for left_out in ("flags", "median_side"):
            known.pop(left_out, None)
        for counts in [*([known["counts"]] if "counts" in known else []), *known["sources"].values()]:
            if isinstance(counts, dict):
                counts.pop("flagged", None)
        (out / name).write_text(json.dumps(known))
    manifest, _ = run(shards, out, progress=True, report=True)
    assert "is finished: there is nothing to do" in capsys.readouterr().err
    assert "flagged" not in manifest["counts"] and "flagged" not in table(manifest)
    assert nothing_kept({**manifest["counts"], "kept": 0}, "out").startswith("no image is kept: of 18 images 1 has")
    assert (out / "report.html").exists()


def test_a_run_of_nothing_but_broken_images_has_no_median(client: Client, tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "0.tar", [(f"{name}.png", b"<html>") for name in "ab"])
    manifest, _ = run(tmp_path / "in", tmp_path / "out", drop=FLAGS, report=True)
    assert (manifest["counts"]["errors"], manifest["median_side"]) == (2, None)
    assert (tmp_path / "out" / "report.html").exists() and "odd_size\n" in table(manifest)


@pytest.mark.parametrize(
    ("options", "measures"),
    [
        ({"drop": FLAGS, "measure": True}, []),
        ({"drop": ["odd_size", "odd_aspect"]}, []),
        ({"drop": ["dark"], "measure": ["contrast"]}, ["sharpness", "brightness", "entropy"]),
        ({"drop": ["greyscale"]}, ["colourfulness"]),
    ],
)
def test_no_image_is_measured_for_what_is_known_of_it(options: dict[str, Any], measures: list[str]) -> None:
    found = options_of(drop=dropped(options["drop"]), measure=measured(options.get("measure", False)))
    assert list(found.flagged_by) == measures


def options_of(**options: Any) -> Options:
    given: dict[str, Any] = {field.name: None for field in fields(Options)}
    given |= {"model": mean_colour, "dedup": (), "max_distance": 4, "probes": 2, "exact": False, "keep": "largest"}
    given |= {"rule": "cover", "samples_per_shard": 10, "dtype": "auto", "draft": True, "truncated": False}
    given |= {"formats": (), "measure": (), "write": "shards", "caption_from": "txt", "max_sidecar": 1 << 20}
    return Options(**{**given, **options})


def test_a_dry_run_says_what_would_be_dropped(client: Client, shards: Path, tmp_path: Path) -> None:
    said = dict(estimate(shards, tmp_path / "out", options_of(drop=("dark", "blurry"))).as_rows())
    assert said["filters"] == "not dark or blurry"
    assert said["time"].endswith("for embedding; measures, scores, duplicates and writing come on top")
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_measured_is_an_error_and_does_not_pass(tmp_path: Path) -> None:
    def table_of(name: str, **columns: list[Any]) -> str:
        part = parts.write_part(schema.table(columns), str(tmp_path / name), "0" * 32)
        return f"{tmp_path / name}/{part.name}"

    ids = ["a", "b", "c", "d"]
    wrong = ["sidecar: not UTF-8", None, None, None]
    listed = table_of("listed", image_id=ids, error=wrong)
    columns = table_of(
        "columns", width=[9, 9, None, 9], error=[None, None, "decode: not an image", None], digest=["a", "b", "c", "d"]
    )
    measures = table_of(
        "measures", sharpness=[1.0, None, None, 4.0], error=[None, "read: timed out", "decode: not an image", None]
    )
    sources = Sources(Rows("", "", "", listed, 0, 4), (columns, measures))
    found = read_rows(sources, schema.table({"image_id": []}))
    assert found["error"].tolist()[:3] == ["sidecar: not UTF-8", "read: timed out", "decode: not an image"]
    assert found["error"].isna().tolist() == [False, False, False, True]
    assert found["width"].isna().tolist() == [True, True, True, False]
    assert found["sharpness"].isna().tolist() == [True, True, True, False]
    assert found["digest"].isna().tolist() == [True, True, False, False]


def test_a_flag_that_is_none_is_refused_with_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ValueError, match=r"drop='blury': 'blury' is no flag; give some of dark, light, blurry, low_inf"
    ):
        ic.curate(tmp_path, tmp_path / "out", drop="blury")
    assert cli.main(["run", str(tmp_path), str(tmp_path / "out"), "--drop", "dark,blurry<20"]) == 2
    assert "'blurry<20' is no flag; give some of dark, light" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
