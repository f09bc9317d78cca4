"""Kept bytes are the bytes that were looked at: whatever changes between listing, reading and writing is found, and passing errors pass."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import dask.dataframe as dd
import fsspec
import numpy as np
import pandas as pd
import pytest
import tars
import xxhash
from conftest import Member, image_bytes, read_tar, write_tar
from distributed import Client
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import imgcurate as ic
from imgcurate import images, pixels, storage, tar
from imgcurate.dedup.content.digest import digest_part
from imgcurate.encoders.embed import embed_part
from imgcurate.measures import measure_part
from imgcurate.phash import phash_part
from imgcurate.sinks.webdataset import keys_of, write_shard
from imgcurate.sources.files import read_files
from imgcurate.sources.webdataset import read_webdataset
from imgcurate.tar import ShardChanged


def shard(path: Path, seed: int = 0, count: int = 4) -> Path:
    """A tar of samples whose size does not depend on the seed, which makes their pictures."""
    members: list[Member] = []
    for number in range(count):
        members += [(f"{number}.bmp", image_bytes(seed + number, format="BMP")), (f"{number}.txt", b"a caption")]
    return write_tar(path, members)


def digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def colour(batch: np.ndarray) -> np.ndarray:
    """A model: the mean colour."""
    return batch.reshape(len(batch), -1, 3).mean(axis=1).astype(np.float32) + 1


def held(frame: Any) -> Any:
    """A frame of what another computes to now."""
    return dd.from_pandas(frame.compute(), npartitions=2, sort=False)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("restored", [False, True])
def test_a_shard_that_was_swapped_after_embedding_is_named_and_nothing_is_written(
    client: Client, tmp_path: Path, restored: bool
) -> None:
    for number in range(3):
        shard(tmp_path / "in" / f"{number}.tar", 10 * number)
    embedded = held(ic.embed(read_webdataset(tmp_path / "in"), colour, image_size=8))
    swapped = tmp_path / "in" / "1.tar"
    before = swapped.stat()
    shard(swapped, 100)
    if restored:
        os.utime(swapped, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (swapped.stat().st_size, swapped.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(
        ShardChanged, match=r"1\.tar has changed since it was listed .*: nothing of it was written"
    ) as raised:
        ic.write_webdataset(embedded, tmp_path / "out", samples_per_shard=5)
    assert raised.value.url == str(swapped)
    assert ("is not the one looked at before" in str(raised.value)) == restored
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("verb", [embed_part, measure_part, phash_part, digest_part])
def test_a_shard_that_was_swapped_after_listing_stops_who_reads_it(tmp_path: Path, verb: Callable[..., Any]) -> None:
    path = shard(tmp_path / "a.tar")
    rows = read_webdataset(path).compute(scheduler="sync")
    shard(path, 100)
    arguments = {embed_part: (colour,), measure_part: (["width"],)}.get(verb, ())
    with pytest.raises(ShardChanged, match=r"a\.tar .*written again since, with as many bytes"):
        verb(rows, *arguments)
    assert verb(rows.drop(columns="etag"), *arguments)["digest"].notna().all()


@pytest.mark.parametrize("verb", [embed_part, measure_part, phash_part])
def test_an_image_that_was_swapped_after_its_digest_stops_who_reads_it(
    tmp_path: Path, verb: Callable[..., Any]
) -> None:
    path = shard(tmp_path / "a.tar")
    rows = read_webdataset(path).compute(scheduler="sync").drop(columns="etag")
    rows["digest"] = digest_part(rows)["digest"]
    arguments = {embed_part: (colour,), measure_part: (["width"],)}.get(verb, ())
    assert verb(rows, *arguments)["digest"].equals(rows["digest"])
    content = bytearray(path.read_bytes())
    content[int(rows["offset"].iloc[2]) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ShardChanged, match=f"the image at byte {rows['offset'].iloc[2]} is not the one looked at before"
    ):
        verb(rows, *arguments)


def test_a_shard_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar")
    rows = read_webdataset(path).compute(scheduler="sync")

    def touching(data: bytes) -> tuple[()]:
        os.utime(path, ns=(1, 1))
        return ()

    with pytest.raises(ShardChanged, match=r"a\.tar"):
        images.map_images(rows, touching, {})


def test_the_error_says_the_same_in_another_process() -> None:
    problem = ShardChanged("s3://bucket/a.tar", "it is gone")
    again = pickle.loads(pickle.dumps(problem))
    assert (again.url, again.what, str(again)) == (problem.url, problem.what, str(problem))


def shrink(path: Path) -> None:
    os.truncate(path, 3000)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(10240))


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    ("change", "what"),
    [(shrink, "bytes then, 3,000 now|ends at byte 3000"), (Path.unlink, "it is gone"), (grow, "bytes then,")],
)
def test_a_shard_that_shrank_grew_or_vanished_is_named(
    tmp_path: Path, change: Callable[[Path], None], what: str, checked: bool
) -> None:
    path = shard(tmp_path / "a.tar")
    rows = read_webdataset(path).compute(scheduler="sync")
    if not checked:
        rows = rows.drop(columns="etag")
    change(path)
    if change is grow and not checked:  # whose samples are where they were
        assert write_shard(rows, f"{tmp_path}/out/0.tar").samples == 4
        return
    with pytest.raises(ShardChanged, match=what):
        write_shard(rows, f"{tmp_path}/out/0.tar")
    assert files_below(tmp_path / "out") == []


def test_a_shard_that_vanished_is_an_error_of_its_rows_where_images_are_read(tmp_path: Path) -> None:
    rows = read_webdataset(shard(tmp_path / "a.tar")).compute(scheduler="sync")
    (tmp_path / "a.tar").unlink()
    found = measure_part(rows, ["width"])
    assert found["error"].tolist() == ["read: No such file or directory"] * 4 and found["digest"].isna().all()


def test_an_image_that_cannot_be_decoded_has_a_digest_and_one_that_cannot_be_read_has_none(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    contents = {"a.jpg": image_bytes(1), "b.jpg": b"<html>", "c.jpg": b"short"}
    for name, data in contents.items():
        (tmp_path / "in" / name).write_bytes(data)
    rows = read_files(tmp_path / "in").compute(scheduler="sync").drop(columns="etag")
    rows["bytes"] = [len(contents["a.jpg"]), 6, 9]
    for found in (embed_part(rows, colour, image_size=8), measure_part(rows, ["width"]), phash_part(rows)):
        assert found["digest"].fillna("").tolist() == [digest(contents["a.jpg"]), digest(b"<html>"), ""]
        assert [str(error).partition(":")[0] for error in found["error"]] == ["nan", "decode", "read"]


def test_image_files_are_compared_by_their_digest_and_by_their_etag_where_they_have_none(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.jpg"
    path.write_bytes(image_bytes(1))
    listed = read_files(tmp_path / "in").compute(scheduler="sync")
    measured = listed.assign(digest=measure_part(listed, ["width"])["digest"])
    path.write_bytes(image_bytes(1))  # another time, the same picture
    os.utime(path, ns=(1, 1))
    assert write_shard(measured, f"{tmp_path}/out/0.tar").samples == 1
    with pytest.raises(ShardChanged, match=r"a\.jpg .*written again"):
        write_shard(listed, f"{tmp_path}/out/1.tar")
    path.write_bytes(image_bytes(2, format="PNG")[: path.stat().st_size])
    with pytest.raises(ShardChanged, match=r"a\.jpg"):
        write_shard(measured, f"{tmp_path}/out/1.tar")
    path.unlink()
    with pytest.raises(ShardChanged, match=r"a\.jpg .*it is gone"):
        write_shard(measured, f"{tmp_path}/out/1.tar")
    assert files_below(tmp_path / "out") == ["0.tar"]


@st.composite
def shards_of_samples(draw: st.DrawFn) -> list[list[Member]]:
    """Shards whose members stand together or apart, under keys that repeat from shard to shard."""
    found = []
    for number in range(draw(st.integers(1, 3))):
        members = [
            member
            for key in draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
            for member in ((f"{key}.jpg", draw(st.binary(max_size=1500))), (f"{key}.txt", b"%d" % number))
        ]
        found.append(draw(st.permutations(members)) if draw(st.booleans()) else members)
    return found


@given(shards=shards_of_samples(), data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_has_the_digests_of_the_rows_and_a_flipped_bit_is_found(
    tmp_path: Path, shards: list[list[Member]], data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    for number, members in enumerate(shards):
        write_tar(tmp_path / "in" / f"{number}.tar", members)
    rows = read_webdataset(tmp_path / "in").compute(scheduler="sync").reset_index(drop=True)
    rows["digest"] = digest_part(rows)["digest"]
    order = data.draw(st.permutations(range(len(rows))))
    kept = rows.iloc[order[: data.draw(st.integers(1, len(rows)))]].reset_index(drop=True)

    written = write_shard(kept, f"{tmp_path}/out/0.tar")
    content = (tmp_path / "out" / "0.tar").read_bytes()
    assert (written.samples, written.bytes, written.digest) == (len(kept), len(content), digest(content))
    pictures = {name: data for name, data in read_tar(tmp_path / "out" / "0.tar") if name.endswith(".jpg")}
    assert len(pictures) == len(kept)
    assert [digest(pictures[f"{key}.jpg"]) for key in keys_of(kept)] == kept["digest"].tolist()

    lit = kept[kept["bytes"] > 0]
    if len(lit):
        row = lit.iloc[data.draw(st.integers(0, len(lit) - 1))]
        place = int(row["offset"]) + data.draw(st.integers(0, int(row["bytes"]) - 1))
        source = bytearray(Path(row["url"]).read_bytes())
        source[place] ^= 1 << data.draw(st.integers(0, 7))
        Path(row["url"]).write_bytes(source)
        with pytest.raises(ShardChanged, match="is not the one looked at before"):
            write_shard(kept.drop(columns="etag"), f"{tmp_path}/out/1.tar")
        assert files_below(tmp_path / "out") == ["0.tar"]


@pytest.mark.parametrize("block", [1, 7, 512, 5000])
def test_images_are_compared_across_the_blocks_they_are_copied_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    from imgcurate.sinks import copying

    monkeypatch.setattr(copying, "_BLOCK", block)
    members = [("a.jpg", b"x" * 700), ("b.jpg", b""), ("b.txt", b"text"), ("c.jpg", b"yz")]
    rows = read_webdataset(write_tar(tmp_path / "a.tar", members)).compute(scheduler="sync")
    rows["digest"] = digest_part(rows)["digest"]
    write_shard(rows, f"{tmp_path}/out/0.tar")
    assert read_tar(tmp_path / "out" / "0.tar") == members
    for row in range(3):
        wrong = rows["digest"].tolist()
        wrong[row] = digest(b"other")
        with pytest.raises(ShardChanged, match=f"the image at byte {rows['offset'].iloc[row]} is not"):
            write_shard(rows.assign(digest=wrong), f"{tmp_path}/out/1.tar")


def test_an_image_outside_its_sample_is_refused(tmp_path: Path) -> None:
    rows = read_webdataset(shard(tmp_path / "a.tar")).compute(scheduler="sync")
    rows["digest"] = digest_part(rows)["digest"]
    moved = rows.assign(offset=rows["offset"] + (1 << 20))
    with pytest.raises(ShardChanged, match="is no member of its sample"):
        write_shard(moved, f"{tmp_path}/out/0.tar")


LIES = {
    "offset": 512 * 3,
    "bytes": 7,
    "member": "0.txt",
    "sample_offset": 512,
    "sample_size": -512,
    "url": "b.tar",
}


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("column", LIES)
def test_rows_that_lie_are_refused_before_anything_appears(tmp_path: Path, column: str, renamed: bool) -> None:
    shard(tmp_path / "b.tar", 9, count=1)
    rows = read_webdataset(shard(tmp_path / "a.tar")).compute(scheduler="sync").drop(columns="etag")
    if renamed:
        rows = pd.concat([rows, rows.assign(image_id="again/" + rows["image_id"])], ignore_index=True)
    lie = f"{tmp_path}/b.tar" if column == "url" else LIES[column]
    rows.loc[len(rows) - 1, column] = lie
    with pytest.raises(ShardChanged, match=r"\.tar has changed since it was listed"):
        write_shard(rows, f"{tmp_path}/out/0.tar")
    assert files_below(tmp_path / "out") == []


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize(
    "run",
    [
        tars.pax(tars.record("path", "0.jpg"), kind=b"g") + tars.member("0.jpg", b"image"),
        tars.pax(tars.record("path", "../0.jpg")) + tars.member("0.jpg", b"image"),
        tars.member("../0.jpg", b"image") + bytes(1024),
        tars.member("0.jpg", b"other image"),
        tars.member("0.jpg", b"image") + tars.member("1.txt", b"of another"),
        tars.member("0.jpg", b"image") * 2,
        tars.head("0.jpg", 1 << 40) + tars.pad(b"image"),
        tars.pax(tars.record("GNU.sparse.realsize", 5)) + tars.member("0.jpg", b"image"),
    ],
)
def test_what_is_written_has_the_names_and_sizes_that_were_listed(tmp_path: Path, run: bytes, renamed: bool) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tars.member("0.jpg", b"image") + tars.member("0.txt", b"a caption") + tars.END)
    rows = read_webdataset(path).compute(scheduler="sync").drop(columns="etag")
    rows["sample_size"] = len(run)
    rows["offset"] = len(run) - 512 if run[156:157] == b"x" else 512
    if renamed:
        path.with_name("b.tar").write_bytes(tars.member("0.jpg", b"first") + tars.END)
        rows = pd.concat([read_webdataset(tmp_path / "b.tar").compute(scheduler="sync").drop(columns="etag"), rows])
        rows = rows.reset_index(drop=True)
    path.write_bytes(run + tars.END)
    with pytest.raises(ShardChanged, match=r"a\.tar .*(are not the sample '0'|is no member of its sample)"):
        write_shard(rows, f"{tmp_path}/out/0.tar")
    assert files_below(tmp_path / "out") == []


def test_samples_get_another_key_whatever_their_headers_say_of_times_and_owners(tmp_path: Path) -> None:
    odd = (
        tars.pax(*(tars.record(name, "inf") for name in ("mtime", "uid")), tars.record("size", 5))
        + tars.head("0.jpg")
        + tars.pad(b"image")
    )
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(odd + tars.member("0.TXT", b"a caption") + tars.END)
    rows = read_webdataset([tmp_path / "0.tar", tmp_path / "1.tar"]).compute(scheduler="sync")
    rows["digest"] = digest_part(rows)["digest"]
    assert write_shard(rows, f"{tmp_path}/out/0.tar").renamed == 1
    content = (tmp_path / "out" / "0.tar").read_bytes()
    assert content.startswith(odd) and [
        (sample.key, sample.problem) for sample in tar.scan(io.BytesIO(content), len(content), "0.tar")
    ] == [
        ("0", None),
        ("1/0", None),
    ]
    with tarfile.open(tmp_path / "out" / "0.tar") as archive:
        assert [info.name for info in archive] == ["0.jpg", "0.TXT", "1/0.jpg", "1/0.TXT"]


@given(
    st.text(max_size=12),
    st.lists(st.sampled_from(["..", ".", "", "__x__", "a.b", "C:", "\\", "\n", "__", "____"]), max_size=4),
)
def test_keys_of_files_are_keys_that_a_reader_finds_again(text: str, parts: list[str]) -> None:
    (key,) = keys_of(pd.DataFrame({"image_id": ["/".join([*parts, text])], "member": [None]}))
    assert tar.split_name(f"{key}.jpg") == (key, "jpg") and not tar.is_unsafe(f"{key}.jpg")
    assert key.encode()


@pytest.mark.parametrize("apart", [True, False])
def test_samples_that_get_another_key_are_found_where_they_were_listed_or_not_at_all(
    tmp_path: Path, apart: bool
) -> None:
    members = [("a.jpg", b"picture"), ("a.txt", b"caption"), ("b.jpg", b"another")]
    first = write_tar(tmp_path / "in" / "0.tar", members)
    second = write_tar(tmp_path / "in" / "1.tar", [members[i] for i in ((0, 2, 1) if apart else (0, 1, 2))])
    rows = read_webdataset(tmp_path / "in").compute(scheduler="sync").drop(columns="etag")
    assert write_shard(rows, f"{tmp_path}/out/0.tar").renamed == 2
    write_tar(second, [("z.jpg", b"picture"), ("z.txt", b"caption"), ("b.jpg", b"another")])
    with pytest.raises(ShardChanged, match=r"1\.tar") as raised:
        write_shard(rows, f"{tmp_path}/out/1.tar")
    assert raised.value.url == str(second) and first.exists()
    second.write_bytes(b"\xff" * second.stat().st_size)
    with pytest.raises(ValueError, match=r"1\.tar"):
        write_shard(rows, f"{tmp_path}/out/1.tar")
    assert files_below(tmp_path / "out") == ["0.tar"]


def test_the_table_of_shards_has_the_digest_of_each(client: Client, tmp_path: Path) -> None:
    shard(tmp_path / "in" / "a.tar")
    frame = ic.measure(read_webdataset(tmp_path / "in"), ["width"])
    table = ic.write_webdataset(frame, tmp_path / "out", samples_per_shard=3).compute()
    assert list(table.columns) == ["url", "samples", "bytes", "renamed", "digest"]
    assert [digest(Path(url).read_bytes()) for url in table["url"]] == table["digest"].tolist()


def test_nothing_is_being_written_any_more_when_a_changed_source_is_told(client: Client, tmp_path: Path) -> None:
    for number in range(6):
        shard(tmp_path / "in" / f"{number}.tar", 10 * number, count=10)
    frame = held(read_webdataset(tmp_path / "in"))
    shard(tmp_path / "in" / "2.tar", 100, count=9)
    with pytest.raises(ShardChanged, match=r"2\.tar"):
        ic.write_webdataset(frame, tmp_path / "out", samples_per_shard=1)
    # A task that wrote still would make a folder again.
    assert list((tmp_path / "out").iterdir()) == []


def test_frames_without_etags_and_digests_are_written_as_before(client: Client, tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar")
    ic.write_webdataset(held(read_webdataset(path)).drop(columns="etag"), tmp_path / "out")
    assert read_tar(tmp_path / "out" / "00000.tar") == read_tar(path)


def test_one_thread_decodes_one_image_at_a_time_none_ahead_and_to_the_same_bits(tmp_path: Path) -> None:
    rows = read_webdataset(shard(tmp_path / "a.tar", count=20)).compute(scheduler="sync")
    at_work, most, begun = 0, 0, 0
    lock = threading.Lock()

    def watched(data: bytes) -> int:
        nonlocal at_work, most, begun
        with lock:
            at_work, begun = at_work + 1, begun + 1
            most = max(most, at_work)
        size = pixels.decode(data).width
        with lock:
            at_work -= 1
        return size

    for asked, _ in enumerate(images.work(rows, watched, threads=1).results, 1):
        assert begun == asked
    assert (begun, most) == (20, 1)
    for part in (lambda n: embed_part(rows, colour, 3, image_size=8, threads=n), lambda n: phash_part(rows, threads=n)):
        pd.testing.assert_frame_equal(part(1), part(3))


class Store(AbstractFileSystem):
    """A store of the tests: it counts what it is asked, and fails as it is told."""

    protocol = "failing"
    cachable = False
    contents: ClassVar[dict[str, bytes]] = {}
    etags: ClassVar[dict[str, str]] = {}
    #: What the next requests for bytes do: raise, or answer with so many bytes only.
    failures: ClassVar[Iterator[Exception | int | None]] = iter(())
    asked: ClassVar[list[tuple[str, int, int]]] = []

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path not in self.contents:
            raise FileNotFoundError(path)
        return {"name": path, "type": "file", "size": len(self.contents[path]), "ETag": self.etags.get(path, '"0"')}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> File:
        return File(self, path, mode, cache_type="none")


class File(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        Store.asked.append((self.path, start, end))
        failure = next(Store.failures, None)
        if isinstance(failure, Exception):
            raise failure
        content = Store.contents[self.path][start:end]
        return content if failure is None else content[:failure]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> type[Store]:
    fsspec.register_implementation("failing", Store, clobber=True)
    for name, value in {"contents": {}, "etags": {}, "failures": iter(()), "asked": []}.items():
        monkeypatch.setattr(Store, name, value)
    # Only the waiting between attempts is shortened.
    retrying = storage.retrying
    monkeypatch.setattr(storage, "retrying", lambda: retrying().copy(wait=lambda state: 0.001))
    return Store


def test_reads_that_fail_and_then_succeed_give_the_bytes(store: type[Store]) -> None:
    store.contents["a.bin"] = bytes(range(100))
    rows = [("failing://a.bin", 10, 5), ("failing://a.bin", 90, 10)]
    for failures in ([ConnectionResetError()], [TimeoutError(), OSError("503")], [7, 0], [TimeoutError(), 3, 89]):
        store.failures, store.asked[:] = iter(failures), []
        assert list(pixels.read_images(rows)) == [bytes(range(10, 15)), bytes(range(90, 100))], failures
        assert store.asked == [("a.bin", 10, 100)] * (len(failures) + 1)


def test_a_read_that_never_succeeds_is_an_error_of_its_rows_after_a_few_attempts(store: type[Store]) -> None:
    store.contents["a.bin"], store.failures = bytes(100), iter([OSError("the store is on fire")] * 100)
    found = list(pixels.read_images([("failing://a.bin", 0, 5), ("failing://a.bin", 9, 1)]))
    assert [str(problem) for problem in found] == ["read: the store is on fire"] * 2
    assert len(store.asked) == 4
    store.failures = iter([50] * 100)
    (short,) = pixels.read_images([("failing://a.bin", 0, 99)])
    assert str(short) == "read: 50 of 99 bytes came, and then the connection ended"


@pytest.mark.parametrize("problem", [FileNotFoundError("gone"), PermissionError("not yours")])
def test_what_does_not_pass_is_asked_once(store: type[Store], problem: Exception) -> None:
    store.contents["a.bin"], store.failures = bytes(100), iter([problem] * 100)
    (found,) = pixels.read_images([("failing://a.bin", 0, 5)])
    assert isinstance(found, pixels.PixelError) and len(store.asked) == 1


def test_a_store_that_has_gone_away_is_not_waited_for_at_every_file(store: type[Store]) -> None:
    store.contents = {f"{number}.bin": b"abc" for number in range(20)}
    dead: list[Exception | int | None] = [TimeoutError("no answer")] * (4 + 9)
    store.failures = iter([*dead, None, TimeoutError("no answer"), None])
    found = list(pixels.read_images((f"failing://{name}", 0, 3) for name in store.contents))
    assert [str(problem) for problem in found[:10]] == ["read: no answer"] * 10
    # From the first that answers again on, the others are waited for as before.
    assert found[10:] == [b"abc"] * 10
    assert len(store.asked) == 4 + 9 + 1 + 2 + 8


def test_a_file_shorter_than_listed_is_not_asked_again(store: type[Store]) -> None:
    store.contents["a.bin"] = b"abc"
    (found,) = pixels.read_images([("failing://a.bin", 1, 9)])
    assert str(found) == "read: 2 bytes where there should be 9; the file is shorter than when it was listed"
    assert len(store.asked) == 1


def test_remote_images_are_read_in_pieces_of_tens_of_megabytes(store: type[Store]) -> None:
    store.contents["a.bin"] = bytes(70 << 20)
    places = [(at, 100_000) for at in range(0, 65 << 20, 1_000_000)]
    assert all(len(data) == 100_000 for data in pixels.read_images(("failing://a.bin", *place) for place in places))
    assert len(store.asked) == 3 and max(stop - start for _, start, stop in store.asked) <= 32 << 20


def packed(store: type[Store]) -> pd.DataFrame:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(4):
            info, data = tarfile.TarInfo(f"{number}.jpg"), image_bytes(number)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    store.contents["a.tar"] = buffer.getvalue()
    rows = read_webdataset("failing://a.tar").compute(scheduler="sync")
    return rows.assign(digest=digest_part(rows)["digest"])


def test_shards_are_written_through_errors_that_pass(store: type[Store], tmp_path: Path) -> None:
    rows = packed(store)
    store.failures = iter([TimeoutError(), 10])
    write_shard(rows, f"{tmp_path}/out/0.tar")
    assert (tmp_path / "out" / "0.tar").read_bytes()[:-1024] == store.contents["a.tar"][
        : int(rows.iloc[-1]["sample_offset"] + rows.iloc[-1]["sample_size"])
    ]
    store.failures = iter([TimeoutError("no answer")] * 100)
    with pytest.raises(TimeoutError, match="no answer"):
        write_shard(rows, f"{tmp_path}/out/1.tar")
    assert files_below(tmp_path / "out") == ["0.tar"]


def test_a_source_that_changes_while_it_is_copied_is_named(
    store: type[Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = packed(store)

    def replaced() -> Iterator[None]:
        store.etags["a.tar"] = '"1"'
        yield None

    store.failures = replaced()
    with pytest.raises(ShardChanged, match=r"failing://a\.tar has changed since it was listed \(etag 0 then, 1 now\)"):
        write_shard(rows, f"{tmp_path}/out/0.tar")
    assert files_below(tmp_path / "out") == []
