"""Shards that others write are read and written back, and others read what is written."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import dask
import pytest
import tars
from conftest import image_bytes, read_tar

import imgcurate as ic
from imgcurate import tar

SAMPLES = {
    f"{number:09d}": {
        "jpg": image_bytes(number),
        "json": b'{"key": "%09d", "status": "success"}' % number,
        "txt": b"a caption",
    }
    for number in range(3)
}


def unpacked(folder: Path) -> list[str]:
    folder.mkdir()
    for key, members in SAMPLES.items():
        for extension, content in members.items():
            (folder / f"{key}.{extension}").write_bytes(content)
    return [f"{key}.{extension}" for key, members in SAMPLES.items() for extension in members]


def by_webdataset(folder: Path, path: Path) -> None:
    """As img2dataset and DataComp's tools write, which use its ShardWriter; its times have fractions, and so PAX headers."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=100, verbose=0) as writer:
        for key, members in SAMPLES.items():
            writer.write({"__key__": key, **members})
    (folder / "00000.tar").rename(path)


def by_program(program: str, *options: str) -> Callable[[Path, Path], None]:
    def write(folder: Path, path: Path) -> None:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        names = unpacked(folder / "files")
        subprocess.run([program, *options, "-cf", path, "-C", folder / "files", *names], check=True)

    return write


def by_hand(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    def write(folder: Path, path: Path) -> None:
        members = [(f"{key}.{extension}", content) for key, of in SAMPLES.items() for extension, content in of.items()]
        path.write_bytes(
            b"".join(change(tars.head(name, len(data))) + tars.pad(data) for name, data in members) + tars.END
        )

    return write


def as_bsdtar(block: bytes) -> bytes:
    """Numbers that end in a blank, as libarchive writes them."""
    numbers = b"000644 \0" + b"000765 \0" + b"000024 \0" + block[124:135] + b" " + b"14650205403 "
    return tars.summed(block[:100] + numbers + block[148:329] + b"000000 \0" * 2 + block[345:])


def as_go(block: bytes) -> bytes:
    """As Go's archive/tar, and so tarp, writes a file: no device numbers, and a user's name."""
    return tars.summed(block[:265] + b"bigdata".ljust(32, b"\0") * 2 + bytes(16) + block[345:])


WRITERS = {
    "webdataset and img2dataset": by_webdataset,
    "tarp": by_hand(as_go),
    "libarchive": by_hand(as_bsdtar),
    **{f"tar --format={name}": by_program("tar", f"--format={name}", "--owner=someone", "--mtime=2001-02-03 04:05:06.7") for name in ("v7", "oldgnu", "gnu", "ustar", "posix")},
    **{f"bsdtar --format={name}": by_program("bsdtar", f"--format={name}") for name in ("ustar", "pax", "gnutar")},
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_shards_of_others_are_read_and_written_back_byte_for_byte(tmp_path: Path, writer: str) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "00000.tar"
    WRITERS[writer](tmp_path, path)
    with dask.config.set(scheduler="synchronous"):
        frame = ic.read_webdataset(tmp_path / "in")
        rows = frame.compute()
        assert rows["error"].isna().all() and rows["text_encoding"].isna().all()
        assert rows["image_id"].tolist() == [f"00000/{key}" for key in SAMPLES]
        assert rows["caption"].tolist() == ["a caption"] * 3 and rows["metadata"].str.contains("success").all()
        ic.write_webdataset(frame, tmp_path / "out")
    written = tmp_path / "out" / "00000.tar"
    assert read_tar(written) == [
        (f"{key}.{extension}", data) for key, of in SAMPLES.items() for extension, data in of.items()
    ]
    stop = int(rows["sample_offset"].iloc[-1] + rows["sample_size"].iloc[-1])
    assert written.read_bytes() == path.read_bytes()[:stop] + tar.END


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A shard that holds copied, renamed and scattered samples."""
    (tmp_path / "in").mkdir()
    by_hand(bytes)(tmp_path, tmp_path / "in" / "0.tar")
    members = [
        (f"{key}.{extension}", SAMPLES[key][extension]) for extension in ("jpg", "json", "txt") for key in SAMPLES
    ]
    (tmp_path / "in" / "1.tar").write_bytes(tars.of_tarfile(members, 1))
    with dask.config.set(scheduler="synchronous"):
        assert (
            ic.write_webdataset(ic.read_webdataset(tmp_path / "in"), tmp_path / "out").compute()["renamed"].item() == 3
        )
    return tmp_path / "out" / "00000.tar"


KEYS = [*SAMPLES, *(f"1/{key}" for key in SAMPLES)]


def test_webdataset_reads_what_is_written(written: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    found = list(webdataset.WebDataset(str(written), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == KEYS
    for sample in found:
        assert {name: sample[name] for name in ("jpg", "json", "txt")} == SAMPLES[sample["__key__"][-9:]]


def test_datasets_of_hugging_face_reads_what_is_written(
    written: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    frame = datasets.load_dataset(
        "webdataset", data_files=str(written), split="train", streaming=True, cache_dir=str(tmp_path)
    )
    found = list(frame.cast_column("jpg", datasets.Image(decode=False)))
    assert [sample["__key__"] for sample in found] == KEYS
    for sample in found:
        assert sample["jpg"]["bytes"] == SAMPLES[sample["__key__"][-9:]]["jpg"] and sample["txt"] == "a caption"


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_other_programs_unpack_what_is_written(written: Path, tmp_path: Path, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    (tmp_path / "unpacked").mkdir()
    subprocess.run([program, "-xf", written, "-C", tmp_path / "unpacked"], check=True)
    for key in KEYS:
        for extension, content in SAMPLES[key[-9:]].items():
            assert (tmp_path / "unpacked" / f"{key}.{extension}").read_bytes() == content
