"""Sources and outputs on an S3 server: the same rows and bytes as on disk, few requests, and faults that pass."""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path

import dask.dataframe as dd
import fsspec
import numpy as np
import pytest
from conftest import Member, image_bytes, write_tar
from distributed import Client
from s3 import Fault, Options, Proxy, upload

from imgcurate import schema, storage, tar, vectors
from imgcurate.dedup.result import Duplicates
from imgcurate.dedup.semantic.corpus import save_embeddings
from imgcurate.dedup.semantic.search import semantic_duplicates
from imgcurate.sinks.parquet import write_parquet
from imgcurate.sinks.webdataset import write_webdataset
from imgcurate.sources.files import read_files
from imgcurate.sources.parquet import read_parquet
from imgcurate.sources.webdataset import find_shards, list_shards, read_webdataset
from imgcurate.storage import ranges


def names_in(url: str, options: Options) -> list[str]:
    fs = fsspec.filesystem("s3", **options)
    fs.invalidate_cache()
    root = url.removeprefix("s3://").rstrip("/")
    return [name.removeprefix(f"{root}/") for name in fs.find(root)]


def sample(key: str, seed: int, size: int = 0) -> list[Member]:
    """Return an image, padded to a size, and its texts."""
    image = image_bytes(seed)
    return [
        (f"{key}.jpg", image + bytes(max(size - len(image), 0))),
        (f"{key}.txt", f"caption {seed}".encode()),
        (f"{key}.json", b'{"seed":%d}' % seed),
    ]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(3):
        write_tar(tmp_path / "in" / f"{number}.tar", [m for i in range(4) for m in sample(f"{i}", 10 * number + i)])
    return tmp_path / "in"


def test_shards_are_read_as_those_of_a_disk(shards: Path, bucket: str, options: Options, client: Client) -> None:
    url = upload(shards, f"{bucket}/in", options)
    local = read_webdataset(shards).compute()
    for pattern in (url, f"{url}/", f"{url}/*.tar", f"{url}/{{0..2}}.tar", [f"{url}/{n}.tar" for n in range(3)]):
        rows = read_webdataset(pattern, storage_options=options).compute()
        same = ["image_id", "member", "offset", "bytes", "sample_offset", "sample_size", "caption", "metadata", "error"]
        assert rows[same].equals(local[same]), pattern
        assert rows["etag"].tolist() == [storage.etag(url, options) for url in rows["url"]]


@pytest.mark.parametrize("pattern", ["/nothing", "/nothing/", "/nothing.tar", "/*.tar", "/{0..1}.tar"])
def test_a_url_that_names_nothing_is_an_error(bucket: str, options: Options, pattern: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist|no file matches"):
        read_webdataset(bucket + pattern, storage_options=options)


def test_a_folder_of_images_is_read_with_what_lies_beside_them(tmp_path: Path, bucket: str, options: Options) -> None:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number in range(20):
        (folder / "sub" / f"{number:02d}.jpg").write_bytes(image_bytes(number))
    (folder / "sub" / "03.txt").write_text("three")
    (folder / "sub" / "04.json").write_text("{}")
    url = upload(folder, f"{bucket}/photos", options)
    local = read_files(folder).compute()
    same = ["image_id", "bytes", "caption", "metadata", "error"]
    for pattern in (url, f"{url}/sub/*.jpg"):
        rows = read_files(pattern, storage_options=options).compute(scheduler="sync")
        expected = local[same].assign(image_id=local["image_id"].str.removeprefix("" if pattern == url else "sub/"))
        assert rows[same].equals(expected.astype(rows[same].dtypes.to_dict())), pattern


def test_sidecars_that_are_not_there_are_not_asked_for(
    tmp_path: Path, bucket: str, options: Options, proxy: Proxy
) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.jpg").write_bytes(image_bytes(number))
    url = upload(tmp_path, f"{bucket}/photos", options)
    proxy.reset()
    read_files(url, storage_options=options).compute(scheduler="sync")
    assert sum(proxy.requests.values()) <= 6


def test_shards_are_written_as_on_a_disk(shards: Path, bucket: str, options: Options, tmp_path: Path) -> None:
    url = upload(shards, f"{bucket}/in", options)
    for seed in (7, 5):  # the second time over the first
        frame = read_webdataset(url, storage_options=options)
        kept = frame[frame["bytes"] != len(image_bytes(seed))]
        table = write_webdataset(
            kept, f"{bucket}/out", samples_per_shard=seed, overwrite=True, storage_options=options
        ).compute()
        local = read_webdataset(shards)
        write_webdataset(
            local[local["bytes"] != len(image_bytes(seed))], tmp_path / f"out{seed}", samples_per_shard=seed
        )
        assert names_in(f"{bucket}/out", options) == sorted(os.listdir(tmp_path / f"out{seed}"))
        for name, size in zip(names_in(f"{bucket}/out", options), table["bytes"], strict=True):
            content = storage.read_if_there(f"{bucket}/out/{name}", options)
            assert content == (tmp_path / f"out{seed}" / name).read_bytes() and len(content) == size
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_webdataset(frame, f"{bucket}/out", storage_options=options)


def test_output_that_is_new_is_written_once_and_never_copied(
    shards: Path, bucket: str, options: Options, proxy: Proxy
) -> None:
    frame = read_webdataset(upload(shards, f"{bucket}/in", options), storage_options=options)
    proxy.reset()
    write_webdataset(frame, f"{bucket}/out", samples_per_shard=4, storage_options=options)
    assert proxy.requests["PUT"] == 3 and proxy.requests["DELETE"] == proxy.requests["POST"] == 0


def test_shards_of_the_frame_are_never_replaced(shards: Path, bucket: str, options: Options) -> None:
    url = upload(shards, f"{bucket}/in", options)
    frame = read_webdataset(url, storage_options=options)
    before = names_in(url, options)
    with pytest.raises(FileExistsError, match="sources are never replaced"):
        write_webdataset(frame, url, samples_per_shard=5, overwrite=True, storage_options=options)
    assert names_in(url, options) == before


def test_output_that_fails_leaves_what_was_there(shards: Path, bucket: str, options: Options) -> None:
    url = upload(shards, f"{bucket}/in", options)
    rows = read_webdataset(url, storage_options=options).compute(scheduler="sync").reset_index(drop=True)
    frame = dd.from_pandas(rows, npartitions=3)
    upload(shards, f"{bucket}/old", options)
    for folder, before in (("new", []), ("old", names_in(f"{bucket}/old", options))):
        write_tar(shards / "2.tar", sample("other", 5))
        upload(shards, url, options)
        with pytest.raises(tar.ShardChanged, match=r"2\.tar"):
            write_webdataset(frame, f"{bucket}/{folder}", samples_per_shard=4, overwrite=True, storage_options=options)
        assert names_in(f"{bucket}/{folder}", options) == before if before else not _exists(f"{bucket}/new", options)


def _exists(url: str, options: Options) -> bool:
    fs = fsspec.filesystem("s3", **options)
    fs.invalidate_cache()
    return bool(fs.exists(url))


def test_parquet_and_duplicates_are_kept_on_a_store(bucket: str, options: Options) -> None:
    rng = np.random.default_rng(0)
    vectors_of = rng.standard_normal((60, 8), dtype=np.float32)
    vectors_of[50:] = vectors_of[:10]
    part = schema.table({"image_id": [f"{i:02d}" for i in range(60)]})
    frame = dd.from_pandas(part.assign(embedding=vectors.to_column(vectors_of, part)), npartitions=3)

    written = write_parquet(frame, f"{bucket}/p", storage_options=options)
    assert written == [f"{bucket}/p/part.{i:05d}.parquet" for i in range(3)]
    for path in (f"{bucket}/p", f"{bucket}/p/*.parquet", written[0]):
        back = read_parquet(path, storage_options=options).compute(scheduler="sync")
        assert back.reset_index(drop=True).equals(frame.compute(scheduler="sync").iloc[: len(back)])
    back = read_parquet(f"{bucket}/p", storage_options=options)
    write_parquet(back[back["image_id"] >= "30"], f"{bucket}/p", overwrite=True, storage_options=options)
    assert len(read_parquet(f"{bucket}/p", storage_options=options)) == 30

    found = semantic_duplicates(frame, eps=0.01, n_clusters=2)
    found.save(f"{bucket}/duplicates", storage_options=options)
    loaded = Duplicates.load(f"{bucket}/duplicates", storage_options=options)
    assert loaded.pairs.compute().equals(found.pairs.compute()) and len(loaded.pairs) == 10

    save_embeddings(frame, f"{bucket}/corpus", n_clusters=2, storage_options=options)
    assert save_embeddings(frame, f"{bucket}/corpus", append=True, storage_options=options) == 60
    assert len([name for name in names_in(f"{bucket}/corpus", options) if "centroids" in name]) == 2


# --- files that are there whole or not at all


@pytest.mark.parametrize("size", [0, 100, 20 << 20])
def test_an_object_is_there_when_its_upload_is_complete(bucket: str, options: Options, proxy: Proxy, size: int) -> None:
    url = f"{bucket}/folder/object"
    proxy.reset()
    with storage.open_atomic(url, options) as file:
        for start in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - start)))
        assert not _exists(url, options)
    assert storage.size_of(url, options) == size
    assert proxy.requests["PUT"] == (1 if size < 16 << 20 else 2)


@pytest.mark.parametrize("size", [100, 20 << 20])
def test_an_upload_that_was_not_finished_is_aborted(bucket: str, options: Options, size: int) -> None:
    def fail() -> None:
        with storage.open_atomic(f"{bucket}/object", options) as file:
            file.write(bytes(size))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    fs = fsspec.filesystem("s3", **options)
    assert not _exists(f"{bucket}/object", options) and fs.list_multipart_uploads(bucket.removeprefix("s3://")) == []


def test_an_upload_whose_end_fails_leaves_nothing(bucket: str, options: Options, proxy: Proxy) -> None:
    proxy.reset(lambda number, method, path: "500" if method == "POST" and "uploadId" in path else None)
    with pytest.raises(OSError, match="internal error"):
        _write(f"{bucket}/object", 20 << 20, options)
    proxy.reset()
    fs = fsspec.filesystem("s3", **options)
    assert not _exists(f"{bucket}/object", options) and fs.list_multipart_uploads(bucket.removeprefix("s3://")) == []


def _write(url: str, size: int, options: Options) -> None:
    with storage.open_atomic(url, options) as file:
        file.write(bytes(size))


def test_an_object_that_was_replaced_has_another_etag(bucket: str, options: Options) -> None:
    fs = fsspec.filesystem("s3", **options)
    fs.pipe(f"{bucket}/a.tar", b"0123")
    ((url, entry),) = storage.expand(bucket, (".tar",), options).items()
    assert entry.etag == storage.etag(url, options)
    other = fsspec.filesystem(
        "s3", **options, skip_instance_cache=True
    )  # another process, to whom ours remembers nothing
    other.pipe(f"{bucket}/a.tar", b"4567")
    assert storage.etag(url, options) != entry.etag


def test_a_shard_that_changes_while_it_is_listed_is_named(
    bucket: str, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "0.tar", [m for i in range(8) for m in sample(f"{i}", i, 3 << 20)])
    upload(tmp_path, bucket, options)
    found = find_shards(bucket, options)
    original, calls = tar.split_name, itertools.count()

    def replace_in_the_middle(name: str) -> tuple[str, str] | None:
        if next(calls) == 5:
            fsspec.filesystem("s3", **options).pipe(f"{bucket}/0.tar", path.read_bytes()[::-1])
        return original(name)

    monkeypatch.setattr(tar.headers, "split_name", replace_in_the_middle)
    with pytest.raises(tar.ShardChanged, match=r"0\.tar has changed"):
        list_shards(found, options)


# --- requests


def _list(bucket: str, options: Options, proxy: Proxy, folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    upload(folder, f"{bucket}/in", options)
    found = find_shards(f"{bucket}/in", options)
    proxy.reset()
    with caplog.at_level(logging.DEBUG, logger="imgcurate"):
        rows = list_shards(found, options)
    assert rows["caption"].notna().all() and rows["error"].isna().all()
    return caplog.text


def test_a_shard_of_small_images_is_listed_in_one_pass(
    tmp_path: Path, bucket: str, options: Options, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "in" / "0.tar", [m for i in range(300) for m in sample(f"{i:04d}", i % 9, 100_000)])
    said = _list(bucket, options, proxy, tmp_path / "in", caplog)
    size = path.stat().st_size
    assert "0.tar: one pass" in said and sum(proxy.requests.values()) <= 13
    assert 0.98 * size <= proxy.sent <= 1.01 * size


def test_a_shard_of_large_images_is_hopped_over(
    tmp_path: Path, bucket: str, options: Options, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "in" / "0.tar", [m for i in range(10) for m in sample(f"{i:04d}", i, 4 << 20)])
    said = _list(bucket, options, proxy, tmp_path / "in", caplog)
    assert "0.tar: hopped" in said and sum(proxy.requests.values()) <= 14
    assert proxy.sent < 0.02 * path.stat().st_size


def test_requests_do_not_grow_with_the_number_of_images(
    tmp_path: Path, bucket: str, options: Options, proxy: Proxy
) -> None:
    counts = []
    for n_images in (200, 2000):
        folder = tmp_path / str(n_images)
        size = 10_240_000 // n_images - 5 * 512  # less its headers and texts
        write_tar(folder / "0.tar", [m for i in range(n_images) for m in sample(f"{i:04d}", i % 9, size)])
        url = upload(folder, f"{bucket}/{n_images}", options)
        frame = dd.from_pandas(list_shards(find_shards(url, options), options), npartitions=1)
        proxy.reset()
        list_shards(find_shards(url, options), options)
        listing = sum(proxy.requests.values())
        proxy.reset()
        write_webdataset(frame, f"{url}/out", storage_options=options)
        counts.append((listing, sum(proxy.requests.values())))
    assert np.ptp(counts, axis=0).max() <= 1 and np.max(counts) <= 15, counts


# --- faults


FAULTS: dict[str, Fault] = {
    "500 now and then": lambda number, method, path: "500" if number % 3 == 1 else None,
    "503 twice in a row": lambda number, method, path: "503" if number % 4 in (1, 2) else None,
    "slow answers": lambda number, method, path: "slow" if number % 5 == 2 else None,
    "answers that are cut": lambda number, method, path: "cut" if number % 2 and method == "GET" else None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass_change_nothing(
    shards: Path, bucket: str, options: Options, proxy: Proxy, fault: str, tmp_path: Path
) -> None:
    url = upload(shards, f"{bucket}/in", options)
    local = read_webdataset(shards).compute(scheduler="sync")
    proxy.reset(FAULTS[fault])
    frame = read_webdataset(url, storage_options=options)
    rows = frame.compute(scheduler="sync")
    write_webdataset(
        dd.from_pandas(rows.reset_index(drop=True), npartitions=1), f"{bucket}/out", storage_options=options
    )
    proxy.reset()
    same = ["image_id", "offset", "bytes", "caption", "metadata", "error"]
    assert rows[same].equals(local[same])
    write_webdataset(read_webdataset(shards), tmp_path / "out")
    assert storage.read_if_there(f"{bucket}/out/00000.tar", options) == (tmp_path / "out" / "00000.tar").read_bytes()


def test_a_store_that_stays_down_is_given_up(bucket: str, options: Options, proxy: Proxy) -> None:
    fsspec.filesystem("s3", **options).pipe(f"{bucket}/a", b"1")
    proxy.reset(lambda number, method, path: "500")
    with pytest.raises(OSError):
        storage.etag(f"{bucket}/a", options)
    assert sum(proxy.requests.values()) == 4


def test_what_a_store_denies_is_asked_for_once(bucket: str, options: Options, proxy: Proxy) -> None:
    proxy.reset()
    assert storage.read_if_there(f"{bucket}/nothing", options) is None
    assert proxy.requests == {"HEAD": 1, "GET": 1}


def test_a_pass_reads_each_byte_once_whatever_is_asked_for() -> None:
    content = os.urandom(40 << 20)
    file = ranges.Forward(lambda start, stop: content[start:stop], len(content), "x")
    rng = np.random.default_rng(0)
    at = 0
    while at < len(content):
        size = int(rng.integers(1, 300_000))
        assert file.read(size) == content[at : at + size]
        at += size
    assert file.fetched == len(content) and file.requests <= 12


def test_a_pass_that_begins_in_the_middle_grows_like_another() -> None:
    content = bytes(100 << 20)
    file = ranges.Forward(lambda start, stop: content[start:stop], len(content), "x")
    file.seek(40 << 20)
    while file.read(1 << 20):
        pass
    assert file.hops == 1 and file.requests <= 10 and file.fetched == 60 << 20


def test_what_lies_between_far_places_is_not_fetched() -> None:
    content = bytes(100 << 20)
    file = ranges.Forward(lambda start, stop: content[start:stop], len(content), "x")
    for start in range(0, len(content), 5 << 20):
        file.seek(start)
        assert len(file.read(2000)) == 2000
    assert file.requests == 20 and file.fetched < 0.01 * len(content)


def test_places_in_any_order_are_read_as_they_are() -> None:
    content = os.urandom(8 << 20)
    file = ranges.Forward(lambda start, stop: content[start:stop], len(content), "x")
    rng = np.random.default_rng(1)
    for at, size in zip(
        rng.integers(0, len(content), 500).tolist(), rng.integers(0, 60_000, 500).tolist(), strict=True
    ):
        file.seek(at)
        assert file.read(size) == content[at : at + size]
    assert file.read(0) == b"" and file.seek(0, os.SEEK_END) == len(content) and file.read() == b""
