"""What a picture may ask of its decoder is bounded by its bytes and its pixels; what asks for more is one line."""

from __future__ import annotations

import ctypes
import io
import json
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path

import dask
import hostile
import numpy as np
import pandas as pd
import pytest
from conftest import write_tar
from distributed import Client
from hostile import encoded, noise
from PIL import Image, features
from test_embed import jpegs, pack

import imgcurate as ic
from imgcurate import images, measures, pixels
from imgcurate.pixels import PixelError, decode, formats, share, within
from imgcurate.pixels.bounds import boxes, others
from imgcurate.pixels.share import Room, pixels_that_fit
from imgcurate.run.curate import curate


def error_of(data: bytes, **options: object) -> str:
    with pytest.raises(PixelError) as caught:
        decode(data, **options)  # type: ignore[arg-type]
    return str(caught.value)


EXIF = hostile.segment(0xE1, b"Exif\0\0II*\0")
FULL = hostile.segment(0xE1, b"Exif\0\0" + bytes(65_000))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (hostile.jpeg_with(EXIF * 100_000), "more than 32 EXIF segments"),
        (hostile.jpeg_with(FULL * 40), "more than 32 EXIF segments"),
        (hostile.jpeg_with(hostile.segment(0xFE, b"") * 2000), "more segments"),
        (hostile.jpeg_with(hostile.segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 9000) * 990), "more segments"),
        (hostile.jpeg_with(b"\xff\xd8" * 200_000), "more segments"),
        (hostile.jpeg_with(hostile.segment(0xFE, b"a") + bytes(300_000)), "more segments"),
        (hostile.jpeg_of_scans(1000), "more than 100 scans"),
        (hostile.jpeg_header(9400, 9400), "truncated JPEG"),
        (hostile.tiff_of_strips(4000, 4000, 2000, 2000), "2,000 strips where its 4000 x 4000 pixels need 2"),
        (hostile.tiff_of_strips(4000, 4000, 2000, 2000, big=True), "2,000 strips"),
        (hostile.tiff_of_strips(8, 8, 1, 200_000), "has 200,000 values"),
        (hostile.tiff({256: hostile.longs(8), 257: hostile.longs(8), 33000: hostile.shorts(*[1] * 200_000)}), "200,000 values"),
        (hostile.tiff({number: hostile.shorts(1) for number in range(5000)}), "more than 4,096 tags"),
        (hostile.png_of(1, 1, b"\0\0", hostile.chunk(b"tEXt", b"a\0b") * 150_000), "more than 100,000 chunks"),
        (b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1a\0" * 150_000 + b",", "more than 200,000 blocks"),
        (b"GIF89a\1\0\1\0\0\0\0" + b"x" * 300_000 + b",", "more than 200,000 blocks"),
        (hostile.bmp_of_runs(9400, 9400, b"\0\0" * 9400), "this kind of compression"),
        (hostile.jpeg2000_of_tiles(200, 200, 1), "40,000 tiles"),
    ],
)  # fmt: skip
def test_a_file_that_asks_for_more_than_it_is_worth_is_refused_from_its_headers(data: bytes, said: str) -> None:
    text = error_of(data)
    assert text.startswith("decode: ") and said in text and len(text) < 310


def test_strips_of_a_compressed_tiff_may_not_lie_over_one_another() -> None:
    data = bytearray(encoded(noise(64, 4000), "TIFF", compression="tiff_deflate", strip_size=64 * 3 * 8))
    decode(bytes(data))
    with Image.open(io.BytesIO(data)) as image:
        offsets, sizes = image.tag_v2[273], image.tag_v2[279]  # type: ignore[attr-defined]
    assert len(offsets) == 500
    where, which = data.index(struct.pack("<500I", *offsets)), data.index(struct.pack("<500H", *sizes))
    struct.pack_into("<500I", data, where, *[offsets[0]] * 500)
    struct.pack_into("<500H", data, which, *[60_000] * 500)
    assert error_of(bytes(data)) == "decode: broken TIFF: its strips lie over one another"


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_the_true_frame_of_an_avif_counts() -> None:
    lie = hostile.avif_that_lies(1200, 1000)
    assert error_of(lie, max_pixels=1_000_000) == "decode: 1200 x 1000 pixels is more than the limit of 1 megapixels"
    assert decode(lie, max_pixels=1_200_000).size == (64, 64)
    (size,) = struct.unpack_from(">I", lie)
    hidden = lie[:size] + b"\0\0\0\x08free" * 30_000 + lie[size:]
    assert error_of(hidden, max_pixels=1_000_000) == "decode: broken media file: more than 20,000 boxes"


@pytest.mark.parametrize(
    ("widths", "place", "said"),
    [
        (b"\x44\0", struct.pack(">HHHII", 0, 0, 1, 0, 20_000), "more than the bytes of the file in its items"),
        # A thousand times 65,535 extents, of which none says anything: they begin after the file's end.
        (b"\0\x40", struct.pack(">HHIH", 0, 0, 1 << 30, 65_535), "more than 20,000 extents"),
    ],
)
def test_the_items_of_a_media_file_may_not_lie_over_one_another_or_be_in_endless_pieces(
    widths: bytes, place: bytes, said: str
) -> None:
    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    table = box(b"iloc", bytes(4) + widths + struct.pack(">H", 1000) + place * 1000)
    data = box(b"ftyp", b"avif") + box(b"meta", bytes(4) + box(b"iinf", bytes(6)) + table) + bytes(10_000)
    with pytest.raises(PixelError, match=said):
        list(boxes.items(data))


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_the_frames_of_an_avif_are_found_in_all_its_forms() -> None:
    frames = [noise(50, 38), noise(50, 38).rotate(180)]
    for data in (
        encoded(noise(51, 37), "AVIF"),
        encoded(noise(51, 37, "RGBA"), "AVIF"),
        encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:]),
        encoded(noise(51, 37), "AVIF", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
    ):
        decode(data)
        kinds = [item.kind for item in boxes.items(data)]
        assert b"av01" in kinds
        with pytest.raises(PixelError, match="limit of 0 megapixels"):
            decode(data, max_pixels=1_500)


def test_ordinary_tiffs_are_not_refused() -> None:
    image = noise(300, 200)
    for options in ({}, {"compression": "tiff_lzw", "strip_size": 900}, {"compression": "jpeg"}, {"big_tiff": True}):
        assert decode(encoded(image, "TIFF", **options)).size == (300, 200), options
    for mode in ("1", "L", "P", "CMYK", "I;16", "F"):
        assert (
            decode(encoded(image.convert(mode) if mode != "I;16" else Image.new(mode, (300, 200)), "TIFF")).width == 300
        )


def test_ordinary_jpeg_2000s_are_not_refused() -> None:
    image = noise(300, 200)
    for options in (
        {},
        {"tile_size": (64, 64)},
        {"quality_layers": [40, 20, 10]},
        {"precinct_size": (64, 64)},
        {"no_jp2": True},
    ):
        assert decode(encoded(image, "JPEG2000", **options)).size == (300, 200), options  # fmt: skip


def test_a_jpeg_2000_may_not_ask_for_more_blocks_or_packets_than_there_are_pixels_for() -> None:
    data = encoded(Image.new("RGB", (3000, 3000)), "JPEG2000", no_jp2=True)
    style = data.index(b"\xff\x52")
    small, layers = bytearray(data), bytearray(data)
    small[style + 10 : style + 12] = bytes(2)  # blocks of 4 x 4
    layers[style + 4 : style + 5] = b"\1"  # precincts of a pixel
    layers[style + 14 : style + 14] = bytes(6)
    markers = data[:style] + b"\xff\x5c\0\2" * 300_000 + data[style:]
    boxed = encoded(noise(), "JPEG2000")
    many = boxed[:12] + b"\0\0\0\x08free" * 30_000 + boxed[12:]
    assert error_of(markers).endswith("more than 200,000 markers")
    assert error_of(many) == "decode: broken media file: more than 20,000 boxes"
    assert error_of(bytes(small)).endswith("blocks of code")
    assert error_of(bytes(layers)).endswith("packets")


def test_a_tiff_that_is_turned_and_cut_off_is_as_large_as_what_is_there_of_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(240, 200), "TIFF", exif=exif)
    picture = pixels.decode_picture(data[:-5000], truncated=True)
    assert (picture.width, picture.height) == picture.image.size == (200, 240)
    assert pixels.resize_and_crop(picture, 224, (224, 224)).shape == (224, 224, 3)


def test_a_picture_of_one_long_row_is_measured_in_small_blocks() -> None:
    image = Image.new("RGB", (6_000_000, 1), "red")
    picture = pixels.Picture(image, *image.size, (0, 0, *image.size), "PNG")
    tracemalloc.start()
    found = measures.of_picture(picture, 100, measures.COLUMNS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found["sharpness"] == 0 and found["colourfulness"] > 80
    assert peak < 40 << 20


def test_a_picture_of_one_long_row_is_hashed_and_squashed_in_little_memory() -> None:
    program = (
        "import resource; from PIL import Image; from imgcurate import phash, pixels\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "image = Image.linear_gradient('L').rotate(90).resize((40_000_000, 1), 0).convert('RGB')\n"
        "before, hashed = used(), phash.phash(image)\n"
        "row = pixels.resize_and_crop(image, (24, 24), None)[7].mean(axis=1).astype(int).tolist()\n"
        "print(hashed > 0, used() - before < 200 << 10, row)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    hashed, little, row = ended.stdout.split(" ", 2)
    assert (hashed, little) == ("True", "True")
    expected = [255 * (2 * column + 1) / 48 for column in range(24)]
    assert np.abs(np.array(json.loads(row)) - expected).max() < 2


def test_blocks_of_any_shape_make_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(97, 31)
    picture = pixels.Picture(image, *image.size, (0, 0, *image.size), "PNG")
    whole = measures.of_picture(picture, 100, measures.COLUMNS)
    for size in (1, 7, 40, 97, 500):
        monkeypatch.setattr(measures, "_BLOCK_PIXELS", size)
        assert measures.of_picture(picture, 100, measures.COLUMNS) == whole, size


def test_whatever_one_image_does_is_the_error_of_its_row(tmp_path: Path) -> None:
    part = pack(tmp_path / "a.bin", jpegs(3))

    def measured(data: bytes) -> tuple[int]:
        if data == jpegs(3)[1]:
            raise MemoryError
        return (len(data),)

    done = images.map_images(part, measured, {"sample_size": images.schema.TYPES["sample_size"]})
    assert done["error"].fillna("").tolist() == ["", "decode: MemoryError:", ""]
    assert done["sample_size"].notna().tolist() == [True, False, True]


def test_a_larger_file_than_is_allowed_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(100))
    path = str(tmp_path / "a.bin")
    large, endless, fine = pixels.read_images([(path, 0, 60), ("/dev/zero", 0, 1 << 40), (path, 60, 40)], max_bytes=50)
    assert str(large) == "read: 60 bytes are more than the limit of 50; max_bytes= sets it"
    assert isinstance(endless, PixelError) and fine == bytes(40)
    (row,) = ic.measure(ic.read_files(_photo(tmp_path)), ["width"], max_bytes=50).compute(scheduler="sync").itertuples()
    assert row.error.endswith("bytes are more than the limit of 50; max_bytes= sets it")


def _photo(folder: Path) -> str:
    noise().save(folder / "photo.jpg")
    return str(folder / "photo.jpg")


def test_an_image_that_takes_too_long_or_kills_its_process_costs_itself_alone() -> None:
    with pytest.raises(PixelError, match=r"^decode: it took longer than 0.2 s$"):
        within(0.2, time.sleep, 600)
    with pytest.raises(PixelError, match=r"^decode: the process that decoded it died \(signal 11\)$"):
        within(60, ctypes.string_at, 0)
    assert within(60, decode, encoded(noise(), "PNG")).size == (60, 40)
    with pytest.raises(PixelError, match=r"^decode: truncated JPEG$"):
        within(60, decode, jpegs(1)[0][:300])


def test_an_image_that_takes_too_much_memory_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a process has before does not count.
    monkeypatch.setattr(share, "most_memory", lambda: 64 << 20)
    with pytest.raises(PixelError, match=r"^decode: PNG that takes more memory than there is for it$"):
        within(60, decode, encoded(Image.new("RGB", (6000, 4000)), "PNG"))
    with pytest.raises(PixelError, match=r"^decode: it took more than 0.1 GiB of memory$"):
        within(60, bytearray, 100 << 20)
    assert len(within(60, bytearray, 40 << 20)) == 40 << 20
    assert within(60, decode, encoded(noise(), "PNG")).size == (60, 40)


def test_what_is_decoded_within_a_time_is_what_is_decoded(tmp_path: Path) -> None:
    part = pack(tmp_path / "a.bin", [*jpegs(2), b"no image", jpegs(1)[0][:200]])
    expected = measures.measure_part(part, measures.COLUMNS)
    pd.testing.assert_frame_equal(measures.measure_part(part, measures.COLUMNS, timeout=60), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 0}, "timeout=0: give the seconds"),
        ({"max_bytes": 0}, "max_bytes=0: it must be at least 1"),
        ({"max_pixels": 0}, "max_pixels=0: it must be at least 1"),
        ({"formats": ["EPS"]}, "'EPS' is not taken by name"),
        ({"formats": "PSD"}, r"give a list, such as \['PSD'\]"),
    ],
)
def test_limits_that_are_none_are_refused_before_anything_runs(
    tmp_path: Path, options: dict[str, object], said: str
) -> None:
    frame = ic.read_files(_photo(tmp_path))
    verbs = [ic.measure, partial(ic.embed, model=lambda batch: batch)]
    verbs += [ic.perceptual_duplicates] * ("max_pixels" not in options)
    verbs += [ic.exact_duplicates] * ("max_bytes" in options)
    for verb in verbs:
        with pytest.raises(ValueError, match=said):
            verb(frame, **options)


def test_large_pictures_are_decoded_one_after_the_other_and_none_waits_for_ever() -> None:
    room, most, at_once = Room(), 100, []

    def decode_one(pixels: int) -> None:
        with room.of(pixels, most):
            at_once.append(room.taken)
            time.sleep(0.001)

    threads = [
        threading.Thread(target=decode_one, args=(pixels,)) for pixels in [60, 60, 10, 300, 5, 60, 90, 100, 1] * 5
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(at_once) == len(threads) and room.taken == 0
    assert {taken for taken in at_once if taken > most} == {300}


def test_half_of_a_workers_memory_is_for_what_is_decoded(client: Client) -> None:
    limits = {address: worker["memory_limit"] for address, worker in client.scheduler_info()["workers"].items()}
    fitting = client.run(pixels_that_fit)
    assert fitting == {address: limit // 40 for address, limit in limits.items()}


PICTURES = {
    "TGA": encoded(noise(), "TGA"),
    "PPM": encoded(noise(), "PPM"),
    "PCX": encoded(noise(), "PCX"),
    "ICO": hostile.ico_of(encoded(noise(16, 16), "PNG")),
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 40, 60, 8, 3) + bytes(12) + b"\0\0" + np.asarray(noise()).transpose(2, 0, 1).tobytes(),
    "QOI": encoded(noise(), "QOI"),
}  # fmt: skip


@pytest.mark.parametrize("format", PICTURES)
def test_other_formats_are_named_and_taken_where_they_are_asked_for(format: str) -> None:
    assert error_of(PICTURES[format]) == f"decode: format not taken: {format}; formats=['{format}'] takes it"
    decoded = decode(PICTURES[format], formats=[format])
    assert np.array_equal(np.asarray(decoded), np.asarray(noise(*decoded.size)))


def test_formats_are_asked_for_of_the_verbs(tmp_path: Path) -> None:
    part = pack(tmp_path / "a.bin", [PICTURES["PSD"], PICTURES["TGA"], jpegs(1)[0]])
    done = measures.measure_part(part, ["format", "width"], formats=["PSD"])
    assert done["format"].fillna("").tolist() == ["PSD", "", "JPEG"]
    assert "format not taken: TGA" in done["error"].iloc[1]


def test_duplicates_are_looked_for_within_the_same_limits(tmp_path: Path) -> None:
    for name, data in {"a.jpg": PICTURES["PSD"], "b.jpg": PICTURES["PSD"] + b" ", "c.jpg": jpegs(1)[0]}.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"copy-{name}").write_bytes(data)
    size = len(PICTURES["PSD"])
    with dask.config.set(scheduler="threads"):
        frame = ic.read_files(str(tmp_path))
        assert ic.exact_duplicates(frame).n_compared == 6
        assert ic.exact_duplicates(frame, max_bytes=size).n_compared == 4
        for keep in ("largest", "id"):  # with sizes of the pictures, and without
            look = partial(ic.perceptual_duplicates, frame, keep=keep, timeout=60)
            assert look().n_compared == 2
            assert look(formats=["PSD"]).n_compared == 6
            assert look(formats=["PSD"], max_bytes=size).n_compared == 4
            one = ic.read_files(str(tmp_path / "c.jpg"))
            assert ic.perceptual_duplicates(one, keep=keep, timeout=1e-5).n_compared == 0


def _mean_colours(batch: np.ndarray) -> np.ndarray:
    return batch.mean(axis=(1, 2)) + 1


def test_a_run_over_pictures_that_ask_for_too_much_ends_and_says_what_it_lost(client: Client, tmp_path: Path) -> None:
    pictures = {
        "fine": jpegs(1)[0],
        "strips": hostile.tiff_of_strips(4000, 4000, 2000, 2000),
        "scans": hostile.jpeg_of_scans(1000),
        "psd": PICTURES["PSD"],
        "tga": PICTURES["TGA"],
    }
    write_tar(tmp_path / "in" / "0.tar", [(f"{name}.jpg", data) for name, data in pictures.items()])
    manifest = curate(
        tmp_path / "in",
        tmp_path / "out",
        model=_mean_colours,
        dedup="perceptual",
        formats=["PSD"],
        timeout=60,
        report=False,
    )
    images = pd.read_parquet(tmp_path / "out" / "images.parquet").set_index("image_id")
    errors = {name: str(images["error"][f"0/{name}"]) for name in pictures}
    assert errors["strips"].startswith("decode: broken TIFF") and errors["scans"].startswith("decode: broken JPEG")
    assert errors["tga"].startswith("decode: format not taken: TGA")
    assert manifest["counts"]["read"] == 5 and images["kept"].sum() == 2
    with pytest.raises(ValueError, match="'EPS' is not taken by name"):
        curate(tmp_path / "in", tmp_path / "out", model=_mean_colours, formats=["EPS"])


@pytest.mark.parametrize(
    ("format", "data"),
    [
        ("ICO", hostile.ico_of(hostile.png_of(60_000, 60_000, b""))),
        ("PPM", b"P3 2000 2000 255\n" + b"1 " * 12_000_000),
        ("PPM", b"P6 3000 3000 254\n" + bytes(27_000_000)),
        ("PPM", b"P6\n#" + b"a" * 100_000 + b"\n1 1 255\nabc"),
        ("PSD", PICTURES["PSD"][:30] + struct.pack(">I", 400_000) + b"8BIM\0\0\0\0\0\0\0\0" * 40_000),
        ("QOI", b"qoif" + struct.pack(">IIBB", 4000, 4000, 3, 0) + bytes(100)),
    ],
)
def test_formats_that_are_taken_by_name_are_bounded_too(format: str, data: bytes) -> None:
    assert error_of(data, formats=[format]).startswith("decode: ")


def test_formats_that_a_package_adds_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "can_open", lambda name: False)
    assert error_of(b"\xff\x0a") == "decode: JPEG XL needs pillow-jxl-plugin: pip install 'imgcurate[jxl]'"


def test_a_jpeg_xl_is_decoded_where_the_extra_is_installed() -> None:
    pytest.importorskip("pillow_jxl", reason="needs pip install 'imgcurate[jxl]'")
    assert formats.can_open("JXL")
    for size in ((64, 48), (61, 47), (256, 256), (300, 200)):
        for options in ({"lossless": True}, {"lossless": True, "use_container": True}):
            data = encoded(noise(*size), "JXL", **options)
            assert np.array_equal(np.asarray(decode(data)), np.asarray(noise(*size)))
            assert others.excess_of_jxl(data, size[0] * size[1]) is None
            with pytest.raises(PixelError, match=f"{size[0]} x {size[1]} pixels"):
                decode(data, max_pixels=size[0] * size[1] - 1)
