"""A row's bytes become RGB, or say in one line why not."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from imgcurate import pixels
from imgcurate.pixels import PixelError, decode, decode_picture, formats, read_images, resize_and_crop, resizing

_ORIENTATION = 0x0112
BICUBIC = Image.Resampling.BICUBIC


def picture(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    """A picture with no two alike, smooth as photos are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), BICUBIC)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds one byte of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def error_of(data: bytes) -> str:
    with pytest.raises(PixelError) as caught:
        decode(data)
    return str(caught.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_every_listed_format_is_decoded(format: str) -> None:
    if format in ("WEBP", "AVIF") and not features.check(format.lower()):
        pytest.skip(f"Pillow was built without {format}")
    image = picture()
    decoded = decode(encoded(image, format))
    assert (decoded.mode, decoded.size) == ("RGB", image.size)
    assert np.abs(np.asarray(decoded, int) - np.asarray(image, int)).mean() < 12


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    upright = picture()
    # How a camera stores the upright picture under each orientation: the inverse of what a viewer does.
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    decoded = decode(encoded(image, format, exif=exif, quality=95))
    assert decoded.size == upright.size
    assert np.abs(np.asarray(decoded, int) - np.asarray(upright, int)).mean() < 8


@pytest.mark.parametrize("orientation", [0, 9, 4870])
def test_an_orientation_that_there_is_not_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    data = encoded(picture(), "JPEG", exif=exif)
    opened = pixels.open_picture(data)
    assert decode(data).size == (opened.width, opened.height) == (60, 40)
    draft = decode_picture(data, lambda width, height: (width // 2, height // 2))
    assert draft.image.size == (30, 20)


def test_broken_exif_does_not_cost_the_picture() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data).size == (60, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    image = Image.new(mode, (20, 10), (0,) * len(mode))
    assert np.asarray(decode(encoded(image, "PNG"))).min() == 255


def test_half_transparent_black_over_white_is_grey() -> None:
    pixel = np.asarray(decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG")))[0, 0]
    assert pixel.tolist() == [127, 127, 127]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(format: str) -> None:
    image = Image.new("P", (8, 4))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    pixels = np.asarray(decode(encoded(image, format, transparency=0)))
    assert pixels[1, 1].tolist() == [255, 255, 255]
    assert pixels[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    format = "TIFF" if mode == "YCbCr" else "PNG"
    assert decode(encoded(picture().convert(mode), format)).mode == "RGB"


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    pixel = np.asarray(decode(encoded(red, "JPEG", quality=95)))[8, 8].astype(int)
    assert np.abs(pixel - [250, 10, 10]).max() < 12


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format: str) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    decoded = np.asarray(decode(encoded(Image.fromarray(ramp), format)))[..., 0]
    assert decoded.reshape(-1).tolist() == list(range(256))


def test_32_bit_integer_tiff_that_exceeds_16_bits_is_stretched() -> None:
    ramp = np.linspace(0, 2_000_000, 256).astype(np.int32).reshape(16, 16)
    decoded = np.asarray(decode(encoded(Image.fromarray(ramp), "TIFF")))[..., 0]
    assert decoded.reshape(-1).tolist() == list(range(256))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-3, 7)])
def test_float_tiff_is_scaled_by_its_range(low: float, high: float) -> None:
    ramp = np.linspace(low, high, 256, dtype=np.float32).reshape(16, 16)
    decoded = np.asarray(decode(encoded(Image.fromarray(ramp), "TIFF")))[..., 0]
    assert decoded.reshape(-1).tolist() == list(range(256))


def test_float_tiff_with_nan_and_infinity_is_decoded() -> None:
    values = np.array([[0, 1], [np.nan, np.inf]], dtype=np.float32)
    assert np.asarray(decode(encoded(Image.fromarray(values), "TIFF")))[..., 0].tolist() == [[0, 255], [0, 0]]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    data = encoded(first, format, save_all=True, append_images=[second])
    pixel = np.asarray(decode(data))[10, 10]
    assert pixel[0] > 240 and pixel[2] < 20


def test_a_wrong_extension_does_not_matter_but_a_text_is_no_image() -> None:
    assert error_of(b"<html>not found</html>") == "decode: not an image"


def test_an_empty_file_is_named_so() -> None:
    assert error_of(b"") == "decode: empty file"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
def test_a_truncated_image_is_named_so(format: str) -> None:
    data = encoded(picture(), format)
    assert error_of(data[: len(data) // 2]) == f"decode: truncated {format}"


@pytest.mark.parametrize("format", ["WEBP", "AVIF"])
def test_a_truncated_webp_or_avif_is_an_error(format: str) -> None:
    data = encoded(picture(), format)
    assert error_of(data[: len(data) // 2]).startswith("decode: ")


@settings(max_examples=40)
@given(
    format=st.sampled_from(["JPEG", "PNG", "TIFF", "BMP", "GIF"]), share=st.floats(0.05, 0.99), seed=st.integers(0, 9)
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_there_of_a_truncated_image_is_what_pillow_takes(format: str, share: float, seed: int) -> None:
    data = encoded(picture(90, 70, seed=seed), format)
    data = data[: int(len(data) * share)]
    try:
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(opened.convert("RGB"))
    except Exception:
        expected = None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        made = np.asarray(decode(data, truncated=True))
    except PixelError:
        made = None
    # Of what is not even opened, or ends within the first line, there is nothing.
    assert made is None or (expected is not None and np.array_equal(made, expected))
    if format == "JPEG" and share > 0.6:
        assert made is not None


def test_a_heic_photo_is_decoded_where_the_extra_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pip install 'imgcurate[heic]'")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture(64, 48)).save(buffer, quality=90)
    decoded = decode(buffer.getvalue())
    assert np.abs(np.asarray(decoded, int) - np.asarray(picture(64, 48), int)).mean() < 12
    monkeypatch.setattr(formats, "can_open", lambda name: False)
    assert error_of(buffer.getvalue()) == "decode: HEIC needs pillow-heif: pip install 'imgcurate[heic]'"


def test_files_of_cameras_and_editors_are_decoded_as_pillow_decodes_them() -> None:
    image = picture(50, 40)
    variants = {
        "progressive JPEG": encoded(image, "JPEG", progressive=True),
        "grey JPEG": encoded(image.convert("L"), "JPEG"),
        "CMYK JPEG": encoded(image.convert("CMYK"), "JPEG"),
        "4:1:1 JPEG": encoded(image, "JPEG", subsampling="4:1:1"),
        "MPO": encoded(image, "MPO", save_all=True, append_images=[picture(50, 40, seed=3)]),
        "interlaced PNG": encoded(image, "PNG", interlace=1),
        "BMP": encoded(image, "BMP"),
        "AVIF": encoded(image, "AVIF"),
        "multipage TIFF": encoded(image, "TIFF", save_all=True, append_images=[picture(20, 20)]),
        "LZW TIFF": encoded(image, "TIFF", compression="tiff_lzw"),
    }
    for name, data in variants.items():
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(np.asarray(decode(data)), expected), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_draft_lies_where_the_picture_lies(orientation: int) -> None:
    """Sizes that no fraction divides: what is resized from a draft must not be shifted or stretched."""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    data = encoded(picture(1003, 797, seed=4), "JPEG", quality=95, exif=exif)
    full, draft = decode_picture(data), decode_picture(data, lambda width, height: (width // 4, height // 4))
    assert (full.width, full.height) == (draft.width, draft.height)
    assert draft.image.width < full.image.width / 3
    difference = np.abs(resize_and_crop(full, 40, (40, 40)).astype(int) - resize_and_crop(draft, 40, (40, 40)))
    assert difference.mean() < 1 and difference.max() < 8


def test_a_huge_image_is_refused_before_its_pixels_are_decoded() -> None:
    text = error_of(png_header(60_000, 60_000))
    assert text == "decode: 60000 x 60000 pixels is more than the limit of 89 megapixels"
    assert error_of(png_header(9_000, 10_000)).startswith("decode: 9000 x 10000")


def test_the_pixel_limit_can_be_set() -> None:
    data = encoded(picture(), "PNG")
    assert decode(data, max_pixels=2400).size == (60, 40)
    with pytest.raises(PixelError, match="60 x 40 pixels"):
        decode(data, max_pixels=2399)


def test_formats_that_run_other_programs_are_not_opened() -> None:
    assert error_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n") == "decode: not an image"


@settings(max_examples=300, deadline=None)
@given(
    format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]),
    damage=st.lists(st.tuples(st.integers(0, 1999), st.integers(0, 255)), min_size=1, max_size=6),
    length=st.integers(1, 4000),
)
@pytest.mark.filterwarnings("ignore")
def test_damage_of_any_kind_is_one_line_and_never_another_exception(
    format: str, damage: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(encoded(picture(24, 20), format))
    for position, value in damage:
        data[position % len(data)] = value
    text = "decode: none"
    try:
        decode(bytes(data[:length]), max_pixels=1_000_000)
    except PixelError as problem:
        text = str(problem)
    assert text.startswith("decode: ") and "\n" not in text


def transformers_size(width: int, height: int, size: int) -> tuple[int, int]:
    long = int(size * max(width, height) / min(width, height))
    return (size, long) if width <= height else (long, size)


def resize_then_crop(image: Image.Image, size: int, crop: int) -> np.ndarray:
    """The plain way, with transformers' rounding and offsets, for crops that fit."""
    resized = image.resize(transformers_size(*image.size, size), BICUBIC)
    left, top = (resized.width - crop) // 2, (resized.height - crop) // 2
    return np.asarray(resized.crop((left, top, left + crop, top + crop)))


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700), size=st.integers(16, 80), less=st.integers(0, 7))
def test_resizing_only_what_is_kept_is_resizing_and_then_cropping(
    width: int, height: int, size: int, less: int
) -> None:
    image = picture(width, height, seed=width)
    expected = resize_then_crop(image, size, size - less).astype(int)
    difference = np.abs(resize_and_crop(image, size, (size - less, size - less)) - expected)
    if max(width, height) <= 3 * min(width, height) and less == 0:
        assert difference.max() <= 2
    assert difference.max() <= 6
    assert difference.mean() < 1


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(9, 60), crop=st.integers(9, 60))
@pytest.mark.filterwarnings("ignore")
def test_pixels_are_those_of_transformers_processor(width: int, height: int, size: int, crop: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = picture(width, height, seed=height)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size=crop, do_normalize=False, do_rescale=False
    )
    expected = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0).astype(int)
    difference = np.abs(resize_and_crop(image, size, (crop, crop)) - expected)
    if max(width, height) <= 3 * min(width, height) and size <= crop:
        assert difference.max() <= 2
    assert difference.max() <= 6
    assert difference.mean() < 1


@pytest.mark.parametrize("size", [(333, 333), (640, 427), (101, 300), (1800, 601)])
def test_ordinary_shapes_are_resized_as_pillow_does_but_for_rounding(size: tuple[int, int]) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    difference = np.abs(resize_and_crop(noise, 224, (224, 224)).astype(int) - resize_then_crop(noise, 224, 224))
    assert difference.max() <= 2 and difference.mean() < 0.25


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, BICUBIC, Image.Resampling.LANCZOS])
def test_both_sides_given_squash_the_picture(resample: int) -> None:
    image = picture(90, 30)
    expected = np.asarray(image.resize((20, 20), resample)).astype(int)
    assert np.abs(resize_and_crop(image, (20, 20), None, resample) - expected).max() <= 1


def test_without_resize_the_centre_is_cut() -> None:
    image = picture(50, 40)
    assert np.array_equal(resize_and_crop(image, None, (20, 20)), np.asarray(image)[10:30, 15:35])


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_strip_needs_no_giant_intermediate(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *args: object, **kwargs: object) -> Image.Image:
        made.append(size)
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    assert resize_and_crop(Image.new("RGB", size, "red"), 224, (224, 224)).shape == (224, 224, 3)
    assert made == [(224, 224)]


def test_a_shard_is_read_in_one_pass_of_large_pieces(tmp_path: Path) -> None:
    """As on an object store, where every read is a question to a server."""
    asked: list[tuple[int, int]] = []

    class File(AbstractBufferedFile):
        def _fetch_range(self, start: int, end: int) -> bytes:
            asked.append((start, end))
            return content[start:end]

    class Store(AbstractFileSystem):
        protocol = "counted"

        def info(self, path: str, **kwargs: object) -> dict[str, object]:
            return {"name": path, "size": len(content), "type": "file"}

        def _open(self, path: str, mode: str = "rb", **kwargs: object) -> File:
            return File(self, path, mode, **kwargs)

    fsspec.register_implementation("counted", Store, clobber=True)
    content = np.random.default_rng(0).bytes(20 << 20)
    # Images of 200 kB with headers and captions of 2 kB between them, and a hole.
    places = [(at, 200_000) for at in range(512, 20 << 20, 202_000) if not 8 << 20 < at < 12 << 20]
    places = [(at, size) for at, size in places if at + size <= len(content)]
    read = list(read_images([("counted://shard.tar", at, size) for at, size in places]))
    assert read == [content[at : at + size] for at, size in places]
    assert len(asked) <= 6
    assert sum(end - start for start, end in asked) <= 1.02 * sum(size for _, size in places)


@given(
    places=st.lists(st.tuples(st.integers(-1, 120), st.integers(-1, 40)) | st.just((None, 3)), max_size=12),
)
def test_pieces_are_cut_into_the_bytes_of_each_row(places: list[tuple[int | None, int]]) -> None:
    content = bytes(range(100))
    fsspec.filesystem("memory").pipe("/pieces.bin", content)
    found = list(read_images([("memory://pieces.bin", *place) for place in places]))
    for (offset, size), data in zip(places, found, strict=True):
        if offset is None or offset < 0 or size < 0:
            assert str(data) == "read: the row has no offset and size"
        elif offset + size > len(content) and size:
            assert isinstance(data, PixelError) and "the file is shorter" in str(data)
        else:
            assert data == content[offset : offset + size]


def test_runs_of_rows_are_read_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a.bin", tmp_path / "b.bin"
    first.write_bytes(bytes(range(100)))
    second.write_bytes(bytes(range(100, 200)))
    rows = [(str(first), 10, 3), (str(first), 50, 2), (str(second), 0, 4), (str(first), 0, 1), (str(first), 99, 0)]
    expected = [bytes([10, 11, 12]), bytes([50, 51]), bytes([100, 101, 102, 103]), b"\0", b""]
    assert list(read_images(rows)) == expected


def test_a_missing_file_is_an_error_of_its_rows_only(tmp_path: Path) -> None:
    there, gone = tmp_path / "there.bin", tmp_path / "gone.bin"
    there.write_bytes(b"abc")
    rows = [(str(gone), 0, 1), (str(gone), 1, 1), (str(there), 1, 2)]
    *lost, found = read_images(rows)
    assert [str(problem) for problem in lost] == ["read: No such file or directory"] * 2
    assert found == b"bc"


def test_a_short_read_and_a_missing_offset_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "short.bin"
    file.write_bytes(b"abc")
    short, nowhere, negative, whole = read_images(
        [(str(file), 1, 5), (str(file), None, None), (str(file), -4, 2), (str(file), 0, 3)]
    )
    assert str(short) == "read: 2 bytes where there should be 5; the file is shorter than when it was listed"
    assert str(nowhere) == "read: the row has no offset and size"
    assert str(negative) == "read: the row has no offset and size"
    assert whole == b"abc"


def test_storage_options_reach_the_store(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc")
    rows = [("dir://a.bin", 0, 3)]
    assert list(read_images(rows, {"path": str(tmp_path), "target_protocol": "file"})) == [b"abc"]


def test_museum_photos_are_preprocessed_as_by_resize_then_crop_but_for_rounding(shared: Path) -> None:
    for file in sorted((shared / "photos" / "met").glob("*.jpg"))[:10]:
        image = decode(file.read_bytes())
        expected = resize_then_crop(image, 224, 224).astype(int)
        difference = np.abs(resize_and_crop(image, 224, (224, 224)) - expected)
        assert difference.max() <= 2 and difference.mean() < 0.01


@pytest.mark.parametrize("side", [40, 2100])  # above 2048 x 2048 Pillow's memory is in several pieces
def test_shared_memory_is_the_image_and_is_not_copied_where_it_need_not_be(side: int) -> None:
    content = np.random.default_rng(0).integers(0, 256, (side, side + 3, 3), dtype=np.uint8)
    shared = resizing._shared(Image.fromarray(content))
    assert np.array_equal(shared[..., :3], content) and shared.shape[2] == (4 if side == 40 else 3)
    resized = pixels.resize_and_crop(Image.fromarray(content), 32, (32, 32))
    tensor = torch.from_numpy(content).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(tensor, (32, 32 * (side + 3) // side), mode="bicubic", antialias=True)
    left = (expected.shape[3] - 32) // 2
    assert np.abs(resized.astype(int) - expected[0, :, :, left : left + 32].permute(1, 2, 0).numpy()).max() <= 1
