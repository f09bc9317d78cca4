"""What is measured of images is what the definitions and other libraries say of the same pixels."""

from __future__ import annotations

import io
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from conftest import image_bytes
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageStat
from scipy import ndimage
from skimage.measure import shannon_entropy
from test_embed import frame_of, jpegs, pack
from test_encoders import save_checkpoint

import imgcurate as ic
from imgcurate import measures, pixels, schema
from imgcurate.encoders.embed import embed_part
from imgcurate.measures import COLUMNS, measure_part


def of(image: Image.Image) -> dict[str, float]:
    picture = pixels.Picture(image, image.width, image.height, (0, 0, image.width, image.height), "PNG")
    return measures.of_picture(picture, 100, COLUMNS)


@settings(max_examples=25)
@given(width=st.integers(1, 90), height=st.integers(1, 90), levels=st.integers(1, 256), seed=st.integers(0, 99))
def test_measures_are_those_of_their_definitions(width: int, height: int, levels: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, levels, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(rgb)
    found, grey = of(image), image.convert("L")
    statistics = ImageStat.Stat(grey)
    assert found["brightness"] == pytest.approx(statistics.mean[0], abs=1e-9)
    assert found["contrast"] == pytest.approx(statistics.stddev[0], abs=1e-6)
    assert found["entropy"] == pytest.approx(shannon_entropy(np.asarray(grey)), abs=1e-9)
    laplacian = ndimage.laplace(np.asarray(grey, dtype=np.float64), mode="mirror")
    assert found["sharpness"] == pytest.approx(laplacian.var(), rel=1e-9, abs=1e-9)
    red, green, blue = rgb.astype(np.float64).transpose(2, 0, 1)
    first, second = red - green, (red + green) / 2 - blue
    colour = np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean())
    assert found["colourfulness"] == pytest.approx(colour, abs=1e-6)
    assert found["aspect"] == width / height and found["bytes_per_pixel"] == 100 / (width * height)
    assert f"{found['phash']:016x}" == str(imagehash.phash(image))


def test_large_pictures_are_measured_in_blocks_without_a_seam() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    image = Image.fromarray(rgb)
    laplacian = ndimage.laplace(np.asarray(image.convert("L"), dtype=np.float64), mode="mirror")
    assert of(image)["sharpness"] == pytest.approx(laplacian.var(), rel=1e-9)


def test_measure_adds_its_columns_and_errors(client: Client, tmp_path: Path) -> None:
    contents = [*jpegs(3), b"no image", image_bytes(5, format="PNG"), jpegs(1)[0][:200]]
    frame = ic.measure(frame_of(pack(tmp_path / "a.bin", contents), 2))
    assert list(frame.columns) == ["image_id", "url", "offset", "bytes", "error", *COLUMNS, "digest"]
    done = frame.compute()
    assert done.dtypes.to_dict() == frame._meta.dtypes.to_dict()
    assert done.dtypes[list(COLUMNS)].to_dict() == schema.empty(COLUMNS).dtypes.to_dict()
    assert done["error"].fillna("").tolist() == ["", "", "", "decode: not an image", "", "decode: truncated JPEG"]
    assert done["sharpness"].isna().tolist() == [False, False, False, True, False, True]
    assert done["format"].fillna("").tolist() == ["JPEG", "JPEG", "JPEG", "", "PNG", ""]
    for row, data in enumerate(contents):
        if row not in (3, 5):
            image = pixels.decode(data)
            assert (done["width"].iloc[row], done["height"].iloc[row]) == image.size
            assert f"{done['phash'].iloc[row]:016x}" == str(imagehash.phash(image))


def test_what_the_header_says_needs_no_decoding(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = [jpegs(1)[0][:-100]]
    for format in ("JPEG", "TIFF", "PNG"):
        buffer = io.BytesIO()
        Image.new("RGB", (60, 40)).save(buffer, format, exif=exif)
        contents.append(buffer.getvalue())
    names = ["width", "height", "format"]
    done = measure_part(pack(tmp_path / "a.bin", contents), names)
    whole = measure_part(pack(tmp_path / "a.bin", contents), [*names, "brightness"])
    assert done["error"].isna().all() and whole["error"].isna().tolist() == [False, True, True, True]
    assert done[names].iloc[1:].to_numpy().tolist() == whole[names].iloc[1:].to_numpy().tolist()
    assert done["width"].tolist() == [40, 40, 40, 40]


def test_embed_measures_from_the_same_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(save_checkpoint(tmp_path / "clip"))
    part = pack(tmp_path / "a.bin", [*jpegs(5), b"x"])
    expected = measure_part(part, COLUMNS)
    decoded = []
    decode = pixels.decode_picture
    monkeypatch.setattr(pixels, "decode_picture", lambda data, *a, **k: decoded.append(1) or decode(data, *a, **k))
    done = embed_part(part, model, measured=COLUMNS)
    assert len(decoded) == 6
    pd.testing.assert_frame_equal(done[list(COLUMNS)], expected[list(COLUMNS)])
    assert done["embedding"].isna().tolist() == [False] * 5 + [True]


def test_embed_takes_the_measures_by_name(client: Client, tmp_path: Path) -> None:
    model = str(save_checkpoint(tmp_path / "clip"))
    frame = frame_of(pack(tmp_path / "a.bin", jpegs(3)), 2)
    made = ic.embed(frame, model, measure=["phash", "sharpness"])
    assert list(made.columns) == [*frame.columns, "embedding", "width", "height", "digest", "sharpness", "phash"]
    assert made.compute()["sharpness"].notna().all()
    with pytest.raises(ValueError, match="already has a column 'sharpness'"):
        ic.embed(ic.measure(frame, ["sharpness"]), model, measure=True)


def test_columns_that_are_there_stay(client: Client, tmp_path: Path) -> None:
    frame = frame_of(pack(tmp_path / "a.bin", jpegs(2)).assign(width=7))
    done = ic.measure(frame, ["width", "height"]).compute()
    assert done["width"].tolist() == [7, 7] and done["height"].tolist() == [30, 31]


def test_unknown_measures_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'blur' is unknown; give some of width"):
        ic.measure(frame_of(pack(tmp_path / "a.bin", jpegs(1))), ["blur"])


def test_a_hash_of_a_draft_is_near_that_of_the_picture(tmp_path: Path) -> None:
    from imgcurate import demo

    pytest.importorskip("skimage", reason="needs pip install 'imgcurate[small]'")
    contents = [photo.path.read_bytes() for photo in demo.photos() if photo.path.suffix == ".jpg"][:20]
    part = pack(tmp_path / "a.bin", contents)
    full, draft = (measure_part(part, ["phash"], draft=draft)["phash"].tolist() for draft in (False, True))
    bits = [(a ^ b).bit_count() for a, b in zip(full, draft, strict=True)]
    assert max(bits) <= 4 and np.mean(bits) < 1
