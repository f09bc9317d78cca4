"""Shards, folders and Parquet as frames."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dask
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tars
from conftest import image_bytes, read_tar, write_tar
from distributed import Client

from imgcurate import parts, schema, storage, tar, vectors
from imgcurate.measures import measure
from imgcurate.sinks.webdataset import write_webdataset
from imgcurate.sources import webdataset
from imgcurate.sources.files import read_files
from imgcurate.sources.parquet import read_parquet
from imgcurate.sources.webdataset import list_shards, read_webdataset


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(3):
        members = []
        for i in range(4):
            members += [
                (f"{i:04d}.jpg", image_bytes(10 * number + i)),
                (f"{i:04d}.txt", f"caption {number} {i}".encode()),
            ]
        write_tar(tmp_path / "shards" / f"{number:05d}.tar", members)
    return tmp_path / "shards"


def test_a_row_names_the_bytes_of_its_image(shards: Path) -> None:
    rows = read_webdataset(shards).compute()
    assert rows["image_id"].tolist() == [f"{n:05d}/{i:04d}" for n in range(3) for i in range(4)]
    for row, seed in zip(rows.itertuples(), [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23], strict=True):
        assert Path(row.url).read_bytes()[row.offset : row.offset + row.bytes] == image_bytes(seed)
    assert rows["caption"].tolist()[5] == "caption 1 1"
    assert rows["error"].isna().all() and rows["metadata"].isna().all()


def test_a_row_carries_the_version_of_its_file(shards: Path, tmp_path: Path) -> None:
    for frame in (read_webdataset(shards), read_files(_photos(tmp_path))):
        rows = frame.compute()
        assert rows["etag"].tolist() == [storage.etag(url) for url in rows["url"]]


def test_partitions_of_shards_that_changed_have_other_tokens(shards: Path) -> None:
    def keys() -> list[str]:
        return [str(part.key) for part in read_webdataset(shards).to_delayed()]

    before = keys()
    assert keys() == before
    (shards / "00001.tar").write_bytes((shards / "00001.tar").read_bytes())
    assert keys() != before


def test_a_shard_that_changes_between_finding_and_listing_is_named(shards: Path) -> None:
    frame = read_webdataset(shards)
    write_tar(shards / "00001.tar", [("0000.jpg", image_bytes(99))])
    with pytest.raises(tar.ShardChanged, match=r"00001\.tar has changed since it was listed"):
        frame.compute()
    assert len(read_webdataset(shards).compute()) == 4 + 1 + 4


def test_rows_have_the_types_of_the_schema(shards: Path, tmp_path: Path) -> None:
    for frame in (read_webdataset(shards), read_files(_photos(tmp_path))):
        for rows in (frame._meta, frame.compute()):
            assert rows.dtypes.to_dict() == schema.empty(schema.SOURCE_COLUMNS).dtypes.to_dict()
            assert vectors.to_arrow(rows).schema == pa.schema({name: schema.TYPES[name] for name in rows.columns})


@pytest.mark.parametrize(
    "pattern", ["{}", "{}/*.tar", "{}/{{00000..00002}}.tar", ["{}/00000.tar", "{}/00001.tar", "{}/00002.tar"]]
)
def test_folders_globs_braces_and_lists_name_shards(shards: Path, pattern: Any) -> None:
    urls = pattern.format(shards) if isinstance(pattern, str) else [p.format(shards) for p in pattern]
    frame = read_webdataset(urls)
    assert (frame.npartitions, len(frame)) == (3, 12)
    assert read_webdataset(urls, shards_per_partition=2).npartitions == 2


def test_a_shard_is_cut_into_partitions_and_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", [(f"{row:03d}.jpg", b"i") for row in range(200)])
    listed = []

    def spy(shards: Any, *arguments: Any, **options: Any) -> pd.DataFrame:
        listed.extend(shards)
        return list_shards(shards, *arguments, **options)

    monkeypatch.setattr(webdataset, "list_shards", spy)
    frame = read_webdataset(tmp_path, rows_per_partition=50)
    parts = dask.compute(*frame.to_delayed(), scheduler="synchronous")
    assert [len(part) for part in parts] == [50] * 8 and len(listed) == 2
    assert pd.concat(parts)["image_id"].tolist() == [f"{n}/{row:03d}" for n in range(2) for row in range(200)]
    assert read_webdataset(tmp_path).npartitions == 14
    assert read_webdataset(tmp_path, rows_per_partition=1000, shards_per_partition=2).npartitions == 1
    with dask.config.set(scheduler="synchronous"):
        assert len(frame.head(3)) == 3 and len(listed) == 3


def test_how_many_rows_a_large_shard_has_is_told_from_its_beginning(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [(f"{row:03d}.jpg", bytes(60_000)) for row in range(100)])
    frame = read_webdataset(tmp_path / "x.tar", rows_per_partition=10)
    assert 9 <= frame.npartitions <= 12 and len(frame) == 100
    (tmp_path / "x.tar").write_bytes(b"")
    assert read_webdataset(tmp_path / "x.tar").npartitions == 1


def test_files_are_cut_into_partitions(tmp_path: Path) -> None:
    for row in range(800):
        (tmp_path / f"{row:03d}.jpg").write_bytes(b"i")
    assert read_files(tmp_path).npartitions == 16
    frame = read_files(tmp_path, rows_per_partition=300)
    assert frame.map_partitions(len).compute(scheduler="synchronous").tolist() == [300, 300, 200]


@pytest.mark.parametrize("rows", [0, -1, 2.5])
def test_a_number_of_rows_that_is_none_is_refused(shards: Path, rows: Any) -> None:
    for read in (read_webdataset, read_files):
        with pytest.raises(ValueError, match=r"rows_per_partition=.* must be a whole number of at least 1"):
            read(shards if read is read_webdataset else _photos(shards), rows_per_partition=rows)


def test_a_jpeg_is_an_image_by_any_of_its_names_and_links_to_folders_are_said_not_to_be_followed(
    tmp_path: Path,
) -> None:
    for name in ("a/0.jfif", "a/1.JPE", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image_bytes())
    (tmp_path / "a/more").symlink_to(tmp_path / "b")
    with pytest.warns(
        UserWarning, match=r"links to folders are not followed: .*/a/more in .*/a; name what is to be read"
    ):
        frame = read_files(tmp_path / "a")
    assert frame.compute()["image_id"].tolist() == ["0.jfif", "1.JPE"]
    shard = write_tar(tmp_path / "0.tar", [(name, image_bytes()) for name in ("0.jfif", "1.jpe")])
    assert read_webdataset(shard).compute()["error"].isna().tolist() == [True, True]


def test_any_fsspec_filesystem_serves(shards: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/bucket/shards", recursive=True)
    try:
        rows = read_webdataset("memory://bucket/shards/*.tar").compute(scheduler="threads")
        assert rows["url"].iloc[0].startswith("memory://")
        assert rows["image_id"].tolist() == read_webdataset(shards).compute()["image_id"].tolist()
    finally:
        memory.rm("/bucket", recursive=True)


def test_listing_does_not_read_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = bytes(3_000_000)
    path = write_tar(tmp_path / "x.tar", [(f"{i}.jpg", big) for i in range(5)])
    read = 0
    original = open(path, "rb")  # noqa: SIM115

    class Counting:
        def seek(self, *args: int) -> int:
            return original.seek(*args)

        def tell(self) -> int:
            return original.tell()

        def read(self, size: int = -1) -> bytes:
            nonlocal read
            content = original.read(size)
            read += len(content)
            return content

    with original:
        assert len(tar.scan(Counting(), path.stat().st_size, str(path))) == 5  # type: ignore[arg-type]
    assert read < 20_000


def test_odd_samples_are_rows_with_an_error(tmp_path: Path) -> None:
    image = image_bytes()
    path = write_tar(
        tmp_path / "x.tar",
        [
            ("good.jpg", image),
            ("only-text.txt", b"no image"),
            ("two.jpg", image),
            ("two.png", image),
            ("../up.jpg", image),
            ("again.jpg", image),
            ("again.jpg", image),
            ("apart.jpg", image),
            ("between.jpg", image),
            ("apart.txt", b"far away"),
        ],
    )
    rows = read_webdataset(path).compute().set_index("image_id")
    assert rows["error"].isna().to_dict() == {
        "x/good": True,
        "x/only-text": False,
        "x/two": False,
        "x/../up": False,
        "x/again": False,
        "x/apart": True,
        "x/between": True,
    }
    assert rows.loc["x/apart", "caption"] == "far away" and np.isnan(rows.loc["x/apart", "sample_offset"])


def test_the_image_is_found_beside_other_pictures_of_the_sample(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "x.tar",
        [("a.seg.png", b"mask"), ("a.JPeG", b"image"), ("b.left.jpg", b"l"), ("c.1.jpg", b""), ("c.2.jpg", b"")],
    )
    rows = read_webdataset(path).compute().set_index("image_id")
    assert rows.loc["x/a", "member"] == "a.JPeG" and rows.loc["x/b", "member"] == "b.left.jpg"
    assert "2 images in one sample: c.1.jpg, c.2.jpg; image= chooses one" in rows.loc["x/c", "error"]
    chosen = read_webdataset(path, image="2.JPG").compute().set_index("image_id")
    assert chosen["member"].dropna().to_dict() == {"x/c": "c.2.jpg"}
    assert read_webdataset(path, image=".png").compute()["member"].dropna().tolist() == ["a.seg.png"]


def test_what_belongs_to_an_image_whose_name_has_dots_is_found(tmp_path: Path) -> None:
    members = [("img.v1.jpg", b"i"), ("img.v1.txt", b"of v1"), ("img.txt", b"of all"), ("img.v1.json", b'{"v": 1}')]
    members += [("b.v2.jpg", b"i"), ("b.txt", b"of all"), ("c.jpg", b"i"), ("c.v1.txt", b"of another")]
    rows = read_webdataset(write_tar(tmp_path / "x.tar", members)).compute().set_index("image_id")
    assert rows["caption"].fillna("-").to_dict() == {"x/img": "of v1", "x/b": "of all", "x/c": "-"}
    assert rows["metadata"].fillna("-").to_dict() == {"x/img": '{"v": 1}', "x/b": "-", "x/c": "-"}


def test_captions_stand_where_one_says(tmp_path: Path) -> None:
    members = []
    for key, metadata in {
        "a": b'{"caption": "in json", "url": "u"}',
        "b": b'{"caption": "half \\ud83d"}',
        "c": b"{}",
        "d": b'{"caption": null}',
        "e": b"[1]",
        "f": b'{"caption": 1}',
        "g": b"no json",
        "h": b"[" * 100_000,
    }.items():
        members += [
            (f"{key}.jpg", b"i"),
            (f"{key}.json", metadata),
            (f"{key}.Caption", b"in caption"),
            (f"{key}.txt", b"t"),
        ]
    path = write_tar(tmp_path / "x.tar", members)
    rows = read_webdataset(path, caption_from="json:caption").compute().set_index("image_id")
    assert rows["caption"].dropna().to_dict() == {"x/a": "in json", "x/b": "half \\ud83d"}
    assert rows.loc["x/a", "metadata"] == '{"caption": "in json", "url": "u"}'
    assert [key for key, error in rows["error"].items() if not pd.isna(error) and "caption_from" in error] == [
        "x/f",
        "x/g",
        "x/h",
    ]
    for other in ("caption", ".caption"):
        rows = read_webdataset(path, caption_from=other).compute()
        assert (rows["caption"] == "in caption").all() and rows["error"].isna().all()
    assert read_webdataset(path, caption_from="text").compute()["caption"].isna().all()


@pytest.mark.parametrize(
    "options",
    [
        {"caption_from": "json:"},
        {"caption_from": ""},
        {"caption_from": "txt:a"},
        {"caption_from": "a/b"},
        {"image": "."},
        {"max_sidecar": 0},
    ],
)
def test_options_that_are_none_are_named_at_once(shards: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))}="):
        read_webdataset(shards, **options)


def test_sidecars_that_are_too_large_are_not_read_and_their_samples_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with path.open("wb") as file:  # which is sparse: 6 GB of caption, and not on the disk
        file.write(tars.member("a.jpg", b"i") + tars.head("a.txt", 6 << 30))
        file.seek(6 << 30, 1)
        file.write(tars.member("b.jpg", b"i") + tars.member("b.json", b"{}" + b" " * (1 << 20)))
        file.write(tars.member("c.jpg", b"i") + tars.member("c.txt", b"x" * (1 << 20)) + tars.END)
    rows = read_webdataset(path).compute().set_index("image_id")
    assert "'a.txt' has 6,442,450,944 bytes" in rows.loc["x/a", "error"] and "max_sidecar" in rows.loc["x/b", "error"]
    assert len(rows.loc["x/c", "caption"]) == 1 << 20 and pd.isna(rows.loc["x/c", "error"])
    rows = read_webdataset(path, max_sidecar=2 << 20).compute()
    assert rows["error"].notna().tolist() == [True, False, False]


def test_texts_beside_an_image_are_read_in_their_encoding_and_to_a_bound(tmp_path: Path) -> None:
    for key, text in {"a": b"caf\xe9\n", "b": b"x" * 1001}.items():
        (tmp_path / f"{key}.jpg").write_bytes(image_bytes())
        (tmp_path / f"{key}.txt").write_bytes(text)
    rows = read_files(tmp_path, max_sidecar=1000).compute().set_index("image_id")
    assert (rows.loc["a.jpg", "caption"], rows.loc["a.jpg", "text_encoding"]) == ("café", "cp1252?")
    assert rows.loc["b.jpg", "error"].endswith("b.txt has more than 1,000 bytes (max_sidecar)")
    assert rows["error"].notna().tolist() == [False, True]
    with pytest.raises(ValueError, match=r"max_sidecar=0"):
        read_files(tmp_path, max_sidecar=0)


def test_messages_name_a_few_members_and_no_long_names(tmp_path: Path) -> None:
    members = [(f"a.{'n' * 5000}{number}.cls", b"") for number in range(200)]
    (error,) = read_webdataset(write_tar(tmp_path / "x.tar", members)).compute()["error"]
    assert error.startswith("no image: the sample has a.nnn") and error.endswith("and 195 more") and len(error) < 700


def test_captions_that_are_not_utf8_are_read_in_the_encoding_they_have(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"i"), ("a.txt", b"caf\xe9"), ("a.json", b'{"a": 1}\n')])
    (row,) = read_webdataset(path).compute().itertuples()
    assert (row.caption, row.metadata, row.text_encoding) == ("café", '{"a": 1}\n', "cp1252?")


def test_the_encoding_of_text_that_is_not_utf8_is_told_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["é".encode(), "é".encode("utf-8-sig"), "é".encode("utf-16"), b"\xe9", b"\xe9", b"\x81\xe9", b""]
    members = [(f"{number}.{name}", text) for number, text in enumerate(texts) for name in ("jpg", "txt")]
    members += [("json.jpg", b""), ("json.json", b'{"a": "\xe9"}')]
    rows = read_webdataset(write_tar(tmp_path / "x.tar", members)).compute(scheduler="sync")
    assert rows["caption"].fillna("-").tolist() == ["é", "é", "é", "é", "é", "\x81é", "", "-"]
    assert rows["text_encoding"].fillna("-").tolist() == [
        "-",
        "-",
        "utf-16",
        "cp1252?",
        "cp1252?",
        "latin-1?",
        "-",
        "cp1252?",
    ]
    assert "(cp1252?: 3, utf-16: 1, latin-1?: 1)" in caplog.text and "x.tar" in caplog.text


def test_a_caption_is_without_the_newline_that_ends_its_file_which_is_written_with_it(tmp_path: Path) -> None:
    texts = {"a": b"A frog.\n", "b": b"A frog.\r\n", "c": b"two\nlines\n\n", "d": b"A frog."}
    members = [(f"{key}.{kind}", text) for key, text in texts.items() for kind, text in (("jpg", b"i"), ("txt", text))]
    path = write_tar(tmp_path / "x.tar", members)
    for name, content in members:
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / name).write_bytes(content)
    for frame in (read_webdataset(path), read_files(tmp_path / "files")):
        assert frame.caption.compute().tolist() == ["A frog.", "A frog.", "two\nlines\n", "A frog."]
        assert len(frame[frame.caption == "A frog."]) == 3
        write_webdataset(frame, tmp_path / "out", overwrite=True)
        assert sorted(read_tar(tmp_path / "out" / "00000.tar")) == sorted(members)


def test_a_truncated_shard_gives_its_whole_samples_and_an_error(shards: Path, client: Client) -> None:
    first = shards / "00000.tar"
    first.write_bytes(first.read_bytes()[:6000])
    rows = read_webdataset(shards).compute()
    assert rows["error"].notna().sum() == 1 and "truncated" in rows.loc[rows["error"].notna(), "error"].iloc[0]
    assert len(rows) == 8 + 3


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>" * 100, b"\x1f\x8b" + bytes(600), tars.head("a.jpg", -1) + tars.END]
)
def test_a_shard_in_which_nothing_can_be_read_is_one_row_and_the_others_are_read(shards: Path, content: bytes) -> None:
    (shards / "00001.tar").write_bytes(content)
    rows = read_webdataset(shards).compute().set_index("image_id")
    assert len(rows) == 4 + 1 + 4 and rows["error"].notna().sum() == 1
    row = rows.loc["00001/"]
    assert row["error"].startswith(f"shard: {shards}/00001.tar ") and row["bytes"] == 0 and pd.isna(row["member"])


def test_compressed_shards_are_refused_with_what_makes_plain_ones(shards: Path, tmp_path: Path) -> None:
    (shards / "x.tar.gz").write_bytes(b"")
    for urls in (shards / "x.tar.gz", shards):
        with pytest.raises(ValueError, match=r"x\.tar\.gz is compressed: .* imgcurate convert"):
            read_webdataset(urls)


@pytest.mark.parametrize("urls", ["nowhere.tar", "nowhere/*.tar", ["nowhere/"]])
def test_a_path_that_names_nothing_is_an_error(urls: Any) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_webdataset(urls)


def test_a_shard_that_is_named_twice_is_an_error(shards: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        read_webdataset([shards / "00000.tar", shards])


def test_ids_that_would_collide_across_nested_shards_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("b/c.jpg", b"1"), ("d.jpg", b"2")])
    write_tar(tmp_path / "a" / "b.tar", [("c.jpg", b"3")])
    with pytest.raises(ValueError, match="a/b/c"):
        read_webdataset(tmp_path)
    write_tar(tmp_path / "a.tar", [("d.jpg", b"2")])
    assert sorted(read_webdataset(tmp_path).compute()["image_id"]) == ["a/b/c", "a/d"]


def test_a_frame_behaves_as_a_dataframe(shards: Path, client: Client) -> None:
    frame = read_webdataset(shards)
    assert "image_id" in repr(frame)
    assert len(frame.head(3)) == 3
    sizes = frame.groupby("url")["bytes"].sum().compute()
    assert len(sizes) == 3
    other = frame[["image_id"]].assign(label=1)
    merged = frame.merge(other, on="image_id").compute()
    assert len(merged) == 12 and (merged["label"] == 1).all()


def _photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("a.jpg", "sub/b.v1.PNG", "sub/c.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image " + name.encode())
    (folder / "a.txt").write_text("an a")
    (folder / "sub" / "b.v1.json").write_text('{"b": 1}')
    (folder / "notes.md").write_text("no image")
    return folder


def test_a_folder_is_read_to_the_bottom(tmp_path: Path) -> None:
    folder = _photos(tmp_path)
    rows = read_files(folder).compute().set_index("image_id")
    assert rows.index.tolist() == ["a.jpg", "sub/b.v1.PNG", "sub/c.webp"]
    assert rows["caption"].to_dict()["a.jpg"] == "an a" and rows["caption"].isna().sum() == 2
    assert rows.loc["sub/b.v1.PNG", "metadata"] == '{"b": 1}'
    assert rows["bytes"].tolist() == [(folder / name).stat().st_size for name in rows.index]
    assert rows[["member", "sample_offset", "error"]].isna().all(axis=None)


def test_a_glob_keeps_the_path_after_its_fixed_part(tmp_path: Path) -> None:
    folder = _photos(tmp_path)
    assert read_files(f"{folder}/*/*.webp").compute()["image_id"].tolist() == ["sub/c.webp"]
    assert read_files(folder / "a.jpg").compute()["image_id"].tolist() == ["a.jpg"]


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("")
    with pytest.raises(FileNotFoundError, match="holds no"):
        read_files(tmp_path)


def test_lists_in_parquet_of_other_writers_have_arrow_types(tmp_path: Path) -> None:
    pd.DataFrame({"id": ["a", "b"], "vector": [[1.0, 2.0], [3.0, 4.0]]}).to_parquet(tmp_path / "x.parquet")
    rows = read_parquet(tmp_path / "x.parquet").compute()
    assert isinstance(rows["vector"].dtype, pd.ArrowDtype) and pa.types.is_list(rows["vector"].dtype.pyarrow_dtype)
    assert rows["id"].tolist() == ["a", "b"]
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_parquet(tmp_path)


def test_parquet_with_the_earlier_name_of_bytes_is_read(shards: Path, tmp_path: Path) -> None:
    rows = read_webdataset(shards).compute(scheduler="sync")
    earlier = rows.rename(columns={"bytes": "size"})
    (tmp_path / "old").mkdir()
    pq.write_table(vectors.to_arrow(earlier), tmp_path / "old" / "part.0.parquet")
    frame = read_parquet(tmp_path / "old")
    assert list(frame.columns) == list(rows.columns) and frame.bytes.compute().tolist() == rows["bytes"].tolist()
    assert read_parquet(tmp_path / "old", columns=["bytes", "url"]).compute().columns.tolist() == ["bytes", "url"]
    with pytest.raises(KeyError, match="read_parquet needs column 'breadth'"):
        read_parquet(tmp_path / "old", columns=["breadth"])
    assert parts.read_part(str(tmp_path / "old" / "part.0.parquet"), None, ["bytes"]).columns.tolist() == ["bytes"]


def test_a_frame_with_the_earlier_name_of_bytes_is_refused_with_what_to_type(shards: Path) -> None:
    frame = read_webdataset(shards).rename(columns={"bytes": "size"})
    with pytest.raises(KeyError, match=r"which was called 'size': frame\.rename"):
        measure(frame)
    assert "bytes" in measure(frame.rename(columns={"size": "bytes"})).columns


def test_a_size_that_is_no_length_of_an_image_keeps_its_name(tmp_path: Path) -> None:
    pd.DataFrame({"url": ["a"], "size": ["large"]}).to_parquet(tmp_path / "x.parquet")
    assert list(read_parquet(tmp_path / "x.parquet").columns) == ["url", "size"]
