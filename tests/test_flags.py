"""Flags say what their definitions say of each image, and name photos that were spoilt on purpose."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from test_embed import pack

import imgcurate as ic
from imgcurate import flags, schema

FLAGS = list(flags.MEASURES)
OTHERS = dict.fromkeys(FLAGS)


@pytest.fixture(autouse=True)
def in_process() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def measured(rows: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    part = schema.table(
        {
            "brightness": rng.uniform(0, 255, rows),
            "contrast": rng.uniform(0, 60, rows),
            "sharpness": rng.uniform(0, 60, rows),
            "entropy": rng.uniform(0, 8, rows),
            "colourfulness": rng.uniform(0, 3, rows),
            "aspect": rng.uniform(0.1, 5, rows),
            "width": rng.integers(20, 5000, rows),
            "height": rng.integers(20, 5000, rows),
        }
    )
    part.loc[rows // 2] = np.nan  # an image with an error
    return part


def of(part: pd.DataFrame, npartitions: int = 3, **thresholds: Any) -> pd.DataFrame:
    return ic.flag(dd.from_pandas(part, npartitions=npartitions, sort=False), **thresholds).compute()


def test_each_flag_is_what_its_definition_says() -> None:
    part = measured()
    found = of(part)
    side = np.sqrt(part["width"] * part["height"])
    middle = np.sort(np.rint(side.dropna()))[
        19
    ]  # the lower of the two in the middle of 39 ... of an odd number, the one
    expected = {
        "dark": part["brightness"] + 2 * part["contrast"] < 64,
        "light": part["brightness"] - 2 * part["contrast"] > 192,
        "blurry": part["sharpness"] / part["contrast"] ** 2 < 0.02,
        "low_information": part["entropy"] < 2,
        "greyscale": part["colourfulness"] < 1,
        "odd_aspect": np.maximum(part["aspect"], 1 / part["aspect"]) > 3,
        "odd_size": np.maximum(side / middle, middle / side) > 4,
    }
    assert list(found.columns) == [*part.columns, *FLAGS]
    for name, verdict in expected.items():
        assert found[name].dtype == bool
        assert found[name].tolist() == verdict.tolist(), name
        assert 0 < verdict.sum() < len(part), name
    pd.testing.assert_frame_equal(found[part.columns], part)


@settings(max_examples=25)
@given(
    sides=st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    npartitions=st.integers(1, 5),
)
def test_the_median_does_not_depend_on_partitions(sides: list[int], npartitions: int) -> None:
    part = schema.table({"width": sides, "height": sides})
    frame = dd.from_pandas(part, npartitions=npartitions, sort=False)
    median = flags.median_of_sides(frame)
    assert median == np.sort(sides)[(len(sides) + 1) // 2 - 1]
    found = ic.flag(frame, **{**OTHERS, "odd_size": 2}).compute()["odd_size"]
    assert found.tolist() == [side > 2 * median or 2 * side < median for side in sides]


def test_a_given_side_is_compared_with_and_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "median_of_sides", lambda frame: pytest.fail("the median was computed"))
    frame = dd.from_pandas(schema.table({"width": [100, 900], "height": [100, 900]}), npartitions=1)
    found = ic.flag(frame, **{**OTHERS, "odd_size": 4}, median_side=1000)
    assert found.compute()["odd_size"].tolist() == [True, False]
    ic.flag(dd.from_pandas(measured(), npartitions=2), odd_size=None)


def test_a_frame_without_any_size_has_no_odd_one() -> None:
    part = schema.table({"width": [None, None], "height": [None, None]})
    assert not of(part, 1, **{**OTHERS, "odd_size": 2})["odd_size"].any()


def test_columns_as_other_readers_give_them_are_flagged_alike(tmp_path: Path) -> None:
    part = measured()
    expected = of(part)[FLAGS]
    ic.write_parquet(ic.flag(dd.from_pandas(part, npartitions=1)), tmp_path / "a")
    again = ic.read_parquet(tmp_path / "a").compute()
    pd.testing.assert_frame_equal(again[FLAGS], expected)
    nulls = pd.read_parquet(tmp_path / "a", dtype_backend="pyarrow").drop(columns=FLAGS)
    assert nulls["width"].isna().sum() == 1
    pd.testing.assert_frame_equal(of(nulls)[FLAGS], expected)


def spoilt(image: Image.Image) -> dict[str, Image.Image]:
    return {
        "dark": image.point(lambda value: int(0.15 * value)),
        "light": image.point(lambda value: int(255 - 0.15 * (255 - value))),
        "blurry": image.filter(ImageFilter.GaussianBlur(0.01 * max(image.size))),
        "greyscale": image.convert("L"),
        "low_information": Image.new("RGB", image.size, (128, 90, 30)),
        "odd_aspect": image.resize((64, 400)),
        "odd_size": image.resize((image.width // 12, image.height // 12)),
    }


def test_photos_that_were_spoilt_are_named_and_others_are_not(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="needs pip install 'imgcurate[small]'")
    from imgcurate import demo

    names = ("coffee", "chelsea", "astronaut", "flower")
    photos = [Image.open(photo.path).convert("RGB") for photo in demo.photos() if photo.path.stem in names]
    assert len(photos) >= 3
    contents, wrong = [], []
    for photo in photos:
        for name, image in [("", photo), ("", photo), *spoilt(photo).items()]:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            contents.append(buffer.getvalue())
            wrong.append(name)
    frame = dd.from_pandas(pack(tmp_path / "a.bin", [*contents, b"no image"]), npartitions=1)
    found = ic.flag(ic.measure(frame).persist()).compute()
    for name, (_, row) in zip(wrong, found.iterrows(), strict=False):
        named = {flag for flag in FLAGS if row[flag]}
        assert name in named if name else not named, (name, named)
    assert found["error"].iloc[-1] == "decode: not an image" and not found[FLAGS].iloc[-1].any()
    kept = ic.flag(ic.measure(frame).persist())
    assert len(kept[~(kept.dark | kept.blurry)]) < len(found)


def test_what_is_missing_or_wrong_is_named_before_anything_is_computed() -> None:
    frame = dd.from_pandas(measured()[["brightness", "contrast"]], npartitions=1)
    with pytest.raises(
        KeyError, match=r"flag needs columns 'sharpness', 'entropy', .* measure\(frame\).*blurry=None, low_inf"
    ):
        ic.flag(frame)
    # Both that are made of what is missing: who leaves out what is named has left out enough.
    with pytest.raises(KeyError, match=r"needs column 'contrast': .* with dark=None, light=None, blurry=None.$"):
        ic.flag(dd.from_pandas(measured().drop(columns="contrast"), npartitions=1))
    found = ic.flag(frame, **{**OTHERS, "dark": 64, "light": 192})
    with pytest.raises(ValueError, match=r"already has a column 'dark'; drop or rename it, or give dark=None"):
        ic.flag(found, **{**OTHERS, "dark": 64})
    for wrong in ("64", True, float("nan")):
        with pytest.raises(ValueError, match=r"dark=.* must be a number, or None to leave the column out"):
            ic.flag(frame, dark=wrong)
    with pytest.raises(ValueError, match=r"odd_aspect=0.3 must be above 1"):
        ic.flag(frame, odd_aspect=0.3)
    with pytest.raises(ValueError, match=r"median_side=0 must be above 0"):
        ic.flag(frame, median_side=0)
    with pytest.raises(TypeError, match=r"flag takes a Dask dataframe, not DataFrame"):
        ic.flag(measured())
