"""The perceptual hash against the package whose hash it is."""

from __future__ import annotations

from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from conftest import image_bytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imgcurate.phash import phash, phash_part


def hashed(image: Image.Image) -> str:
    return f"{phash(image):016x}"


@given(
    width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 10**6),
    mode=st.sampled_from(["RGB", "L", "RGBA", "P", "1"]), smooth=st.booleans(),
)  # fmt: skip
def test_it_is_imagehash_to_the_bit(width: int, height: int, seed: int, mode: str, smooth: bool) -> None:
    rng = np.random.default_rng(seed)
    size = (4, 4) if smooth else (height, width)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).resize((width, height)).convert(mode)
    assert hashed(image) == str(imagehash.phash(image))


def test_photos_and_flat_pictures_agree_too() -> None:
    skimage = pytest.importorskip("skimage")
    photos = sorted((Path(skimage.__file__).parent / "data").glob("*.*g"))
    images = [Image.open(path) for path in photos] + [
        Image.new("RGB", (50, 40), color) for color in ("black", "white", "#123")
    ]
    assert len(images) > 5
    for image in images:
        assert hashed(image) == str(imagehash.phash(image))
        assert phash(np.asarray(image.convert("RGB"))) == int(str(imagehash.phash(image.convert("RGB"))), 16)


def test_what_cannot_be_decoded_is_an_error_and_no_hash(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(image_bytes(1))
    (tmp_path / "bad.jpg").write_bytes(image_bytes(1)[:200])
    urls = [str(tmp_path / name) for name in ("good.jpg", "bad.jpg", "none.jpg", "good.jpg")]
    part = pd.DataFrame(
        {"url": urls, "offset": 0, "bytes": [len(image_bytes(1)), 200, 9, 9], "error": [None] * 3 + ["mine"]}
    )
    found = phash_part(part)
    assert found["phash"].notna().tolist() == [True, False, False, False]
    assert found["phash"][0] == int(str(imagehash.phash(Image.open(urls[0]))), 16)
    assert [str(error).split(":")[0] for error in found["error"]] == ["nan", "decode", "read", "mine"]
