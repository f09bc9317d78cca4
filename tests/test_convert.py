"""Compressed shards become plain ones, byte for byte and within bounds."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pyarrow as pa
import pytest
from conftest import image_bytes, write_tar
from distributed import Client

import imgcurate as ic
from imgcurate import cli
from imgcurate.sinks import convert


def arrow(codec: str) -> Callable[[bytes], bytes]:
    def compressed(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()

    return compressed


CODECS = {
    ".tar.gz": gzip.compress,
    ".tgz": lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:]) + bytes(512),
    ".tar.bz2": bz2.compress,
    ".TAR.XZ": lzma.compress,
    ".tar.zst": arrow("zstd"),
    ".tar.lz4": arrow("lz4"),
}


@pytest.fixture(autouse=True)
def in_process() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def plain(tmp_path: Path) -> bytes:
    return write_tar(tmp_path / "x.tar", [("a.jpg", image_bytes()), ("a.txt", b"an a")]).read_bytes()


def test_compressed_shards_become_the_plain_ones_that_they_were(tmp_path: Path, plain: bytes) -> None:
    for number, (extension, compress) in enumerate(CODECS.items()):
        (tmp_path / "in" / "sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "sub" / f"{number}{extension}").write_bytes(compress(plain))
    (tmp_path / "in" / "top.tar.gz").write_bytes(gzip.compress(plain))
    made = ic.convert_shards(tmp_path / "in", tmp_path / "out").compute()
    assert made["error"].isna().all() and made["bytes"].tolist() == [len(plain)] * 7
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert names == [*(f"sub/{number}.tar" for number in range(6)), "top.tar"]
    assert all(Path(url).read_bytes() == plain for url in made["url"])
    rows = ic.read_webdataset(tmp_path / "out").compute()
    assert len(rows) == 7 and rows["error"].isna().all() and (rows["caption"] == "an a").all()


def test_what_cannot_be_decompressed_is_named_and_the_others_are_made(
    tmp_path: Path, plain: bytes, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {extension: compress(plain) for extension, compress in CODECS.items()}
    (tmp_path / "in").mkdir()
    for number, (extension, data) in enumerate(whole.items()):
        (tmp_path / "in" / f"cut{number}{extension}").write_bytes(data[: len(data) // 2])
    (tmp_path / "in" / "damaged.tar.gz").write_bytes(whole[".tar.gz"][:-8] + bytes(8))
    (tmp_path / "in" / "not.tar.gz").write_bytes(plain)
    (tmp_path / "in" / "empty.tar.gz").write_bytes(b"")
    (tmp_path / "in" / "good.tar.zst").write_bytes(whole[".tar.zst"])
    command = ["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--scheduler", client.scheduler.address]
    assert cli.main(command) == 1
    said = capsys.readouterr().out.splitlines()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.tar"]
    assert len(said) == 10 and said[-1].startswith("1 of 10 shards are plain")
    for name in ("cut0", "damaged", "not", "empty"):
        assert any(f"/{name}.tar.gz cannot be decompressed: " in line for line in said)


def test_what_grows_without_end_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_ALWAYS", 1 << 15)
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(bytes(1 << 20)))
    source, target = str(tmp_path / "bomb.tar.gz"), str(tmp_path / "out" / "bomb.tar")
    error = convert.convert_shard(source, target, 100).error or ""
    assert "it grows to more than" in error and "raise max_ratio" in error
    assert list((tmp_path / "out").iterdir()) == []
    assert convert.convert_shard(source, target, 2000) == (source, target, 1 << 20, None)


def test_shards_that_are_there_are_left_until_they_are_to_be_made_anew(tmp_path: Path, plain: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain))
    ic.convert_shards(tmp_path / "a.tar.gz", tmp_path / "out")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain + bytes(512)))
    ic.convert_shards(tmp_path / "a.tar.gz", tmp_path / "out")
    assert (tmp_path / "out" / "a.tar").read_bytes() == plain
    ic.convert_shards(tmp_path / "a.tar.gz", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "a.tar").read_bytes() == plain + bytes(512)


def test_two_shards_of_one_name_are_refused(tmp_path: Path) -> None:
    for extension in (".tar.gz", ".tgz"):
        (tmp_path / f"a{extension}").write_bytes(b"")
    with pytest.raises(ValueError, match=r"would both become a\.tar"):
        ic.convert_shards(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="max_ratio=0"):
        ic.convert_shards(tmp_path, tmp_path / "out", max_ratio=0)
