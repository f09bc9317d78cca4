"""write_files: image files that are the sources' bytes, or the sources themselves by another name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import fsspec
import pandas as pd
import pytest
import xxhash
from conftest import image_bytes, write_tar
from distributed import Client
from s3 import Options, upload
from test_read_embeddings import IDS, clip_retrieval

import imgcurate as ic
from imgcurate.sinks import copies, copying
from imgcurate.tar import ShardChanged


@pytest.fixture
def in_process() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep/er").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "b.v1.PNG", "deep/c.jpeg", "deep/er/a.jpg"]):
        (folder / name).write_bytes(image_bytes(number))
    (folder / "a.txt").write_text("A frog.\n")
    (folder / "deep/c.json").write_bytes(b'{"a": 1}\r\n')
    (folder / "deep/c.xmp").write_text("not looked at")
    return folder


@pytest.mark.parametrize("link", [False, True])
def test_what_was_read_is_written_with_what_stands_beside_it(
    client: Client, photos: Path, tmp_path: Path, link: bool
) -> None:
    frame = ic.read_files(photos, rows_per_partition=3)
    written = ic.write_files(frame, tmp_path / "out", link=link)
    expected = tree(photos)
    del expected["deep/c.xmp"]
    assert tree(tmp_path / "out") == expected
    table = written.compute()
    assert table["image_id"].tolist() == frame["image_id"].compute().tolist()
    assert table["url"].tolist() == [f"{tmp_path}/out/{name}" for name in table["image_id"]]
    assert table["bytes"].tolist() == [len(expected[name]) for name in table["image_id"]]
    if link:
        assert all(os.path.samefile(photos / name, tmp_path / "out" / name) for name in expected)
    else:
        assert table["digest"].tolist() == [xxhash.xxh3_128_hexdigest(expected[name]) for name in table["image_id"]]
        assert not any(os.path.samefile(photos / name, tmp_path / "out" / name) for name in expected)
    again = ic.read_files(tmp_path / "out").compute()
    assert again["caption"].tolist() == frame.compute()["caption"].tolist()


def test_samples_of_tars_become_files_of_their_members(in_process: None, tmp_path: Path) -> None:
    one, two = image_bytes(1), image_bytes(2)
    write_tar(
        tmp_path / "in/00000.tar",
        [
            ("x.JPG", one),
            ("x.txt", b"caption\n"),
            ("x.cls", b"7"),
            ("d/y.jpg", two),
            ("z.txt", b"no image"),
            ("d/y.json", b"{}"),
        ],
    )
    with pytest.warns(UserWarning, match="1 rows have an error and are not written") as seen:
        table = ic.write_files(ic.read_webdataset(tmp_path / "in"), tmp_path / "out").compute()
    assert seen[0].filename == __file__
    assert tree(tmp_path / "out") == {
        "00000/d/y.jpg": two,
        "00000/d/y.json": b"{}",
        "00000/x.JPG": one,
        "00000/x.cls": b"7",
        "00000/x.txt": b"caption\n",
    }
    assert table["image_id"].tolist() == ["00000/x", "00000/d/y"]
    with pytest.raises(ValueError, match="link=True makes links to image files, and 2 images lie in tars"):
        ic.write_files(ic.read_webdataset(tmp_path / "in"), tmp_path / "linked", link=True)


def test_files_that_are_too_large_for_memory_are_copied_block_by_block(
    in_process: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "_MOST_HELD", 700)
    monkeypatch.setattr(copying, "_BLOCK", 300)
    members = [("x.jpg", image_bytes(1)), ("x.mp4", bytes(range(256)) * 9), ("x.txt", b"text"), ("y.jpg", b"small")]
    write_tar(tmp_path / "in/0.tar", members)
    frame = ic.read_webdataset(tmp_path / "in")
    table = ic.write_files(frame, tmp_path / "out").compute()
    assert tree(tmp_path / "out") == {f"0/{name}": content for name, content in members}
    assert table["digest"].tolist() == [xxhash.xxh3_128_hexdigest(c) for n, c in members if n.endswith("jpg")]
    (tmp_path / "other/0").mkdir(parents=True)
    (tmp_path / "other/0/x.mp4").write_bytes(b"another")
    with pytest.raises(FileExistsError, match=r"x\.mp4 is there and says something else"):
        ic.write_files(frame, tmp_path / "other")
    assert (tmp_path / "other/0/x.mp4").read_bytes() == b"another"


@pytest.mark.parametrize("link", [False, True])
def test_nothing_is_replaced_unless_it_is_asked_for(in_process: None, photos: Path, tmp_path: Path, link: bool) -> None:
    frame = ic.read_files(photos)
    (tmp_path / "out/deep").mkdir(parents=True)
    (tmp_path / "out/deep/c.jpeg").write_bytes(b"mine")
    (tmp_path / "out/other").write_bytes(b"mine too")
    with pytest.raises(
        FileExistsError, match=r"out/deep/c\.jpeg would be replaced; name another folder, or pass overwrite=True"
    ):
        ic.write_files(frame, tmp_path / "out", link=link)
    assert set(tree(tmp_path / "out")) == {"deep/c.jpeg", "other"}
    for _ in range(2):
        ic.write_files(frame, tmp_path / "out", link=link, overwrite=True)
        assert tree(tmp_path / "out")["deep/c.jpeg"] == (photos / "deep/c.jpeg").read_bytes()
    assert tree(tmp_path / "out")["other"] == b"mine too" and len(tree(tmp_path / "out")) == 7
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("another")
    with pytest.raises(FileExistsError, match=r"text/a\.txt"):
        ic.write_files(frame, tmp_path / "text", link=link)
    assert (tmp_path / "text/a.txt").read_text() == "another"


def test_a_source_is_never_replaced(in_process: None, photos: Path, tmp_path: Path) -> None:
    before = tree(photos)
    (tmp_path / "way").symlink_to(photos)
    for folder in (photos, tmp_path / "way"):
        with pytest.raises(FileExistsError, match="is itself an image of the frame, and sources are never replaced"):
            ic.write_files(ic.read_files(photos), folder, overwrite=True)
    assert tree(photos) == before
    with pytest.raises(FileExistsError, match="is a file; name a folder for the images"):
        ic.write_files(ic.read_files(photos), photos / "a.jpg")


def test_two_images_never_become_one_file(in_process: None, photos: Path, tmp_path: Path) -> None:
    part = ic.read_files(photos).compute()
    part["image_id"] = ["same", "x", "y", "./same"]
    with pytest.raises(
        FileExistsError, match=r"'same' and './same' would both be .*/out/same.jpg; give them other ids"
    ):
        ic.write_files(dd.from_pandas(part, npartitions=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_id_cannot_lead_out_of_the_folder(in_process: None, photos: Path, tmp_path: Path) -> None:
    part = ic.read_files(photos).compute()
    part["image_id"] = ["../../a", "/etc/b", "..", "c//d.jpg"]
    table = ic.write_files(dd.from_pandas(part, npartitions=1), tmp_path / "out/put").compute()
    names = {"a.jpg", "etc/b.PNG", "image.jpeg", "c/d.jpg"}
    assert set(table["url"]) == {f"{tmp_path}/out/put/{name}" for name in names}
    assert {name for name in tree(tmp_path) if name.startswith("out/")} == {
        *(f"out/put/{name}" for name in names), "out/put/a.txt", "out/put/image.json",
    }  # fmt: skip


@pytest.mark.parametrize("link", [False, True])
def test_an_image_that_changed_since_it_was_listed_is_not_written(
    in_process: None, photos: Path, tmp_path: Path, link: bool
) -> None:
    frame = ic.measure(ic.read_files(photos), ["width"]).persist()
    (photos / "a.jpg").write_bytes(image_bytes(77))
    with pytest.raises(ShardChanged, match=r"a\.jpg has changed since it was listed"):
        ic.write_files(frame, tmp_path / "out", link=link)
    assert "a.jpg" not in tree(tmp_path / "out")
    part = ic.read_files(photos).compute().drop(columns="etag").assign(digest="0" * 32)
    with pytest.raises(ShardChanged, match="not the one looked at before"):
        ic.write_files(dd.from_pandas(part, npartitions=1), tmp_path / "other", link=link)


def test_links_are_of_files_on_a_disk(in_process: None, photos: Path) -> None:
    with pytest.raises(ValueError, match="link=True needs a folder on a disk, and memory:///out is none"):
        ic.write_files(ic.read_files(photos), "memory://out", link=True)
    with pytest.raises(KeyError, match="write_files needs columns 'url', 'member'"):
        ic.write_files(dd.from_pandas(pd.DataFrame({"image_id": ["a"], "offset": 0, "bytes": 0}), npartitions=1), "out")
    nothing = ic.read_files(photos)
    assert len(ic.write_files(nothing[nothing["bytes"] < 0], "memory://empty").compute()) == 0


def test_files_go_into_a_store_too(in_process: None, photos: Path) -> None:
    table = ic.write_files(ic.read_files(photos), "memory://curated/files").compute()
    assert table["url"].tolist()[0] == "memory:///curated/files/a.jpg"
    assert fsspec.filesystem("memory").cat("/curated/files/deep/er/a.jpg") == (photos / "deep/er/a.jpg").read_bytes()


def test_files_and_embeddings_lie_in_a_store_as_on_a_disk(
    in_process: None, photos: Path, tmp_path: Path, bucket: str, options: Options
) -> None:
    frame = ic.read_files(upload(photos, f"{bucket}/photos", options), storage_options=options)
    table = ic.write_files(frame, f"{bucket}/out", storage_options=options).compute()
    fs = fsspec.filesystem("s3", **options)
    root = bucket.removeprefix("s3://")
    written = {name.removeprefix(f"{root}/out/"): fs.cat_file(name) for name in fs.find(f"{root}/out")}
    expected = tree(photos)
    del expected["deep/c.xmp"]
    assert written == expected and table["url"].tolist()[0] == f"{bucket}/out/a.jpg"
    with pytest.raises(FileExistsError, match=r"out/a\.jpg and 3 more would be replaced"):
        ic.write_files(frame, f"{bucket}/out", storage_options=options)
    clip_retrieval(tmp_path)
    embeddings = ic.read_embeddings(upload(tmp_path, f"{bucket}/clip", options), storage_options=options)
    assert embeddings["image_id"].compute().tolist() == IDS and len(embeddings["embedding"].compute()) == 30
