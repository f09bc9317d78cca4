"""A run that writes files: kept images with what stands beside them, byte for byte, each accounted for, whatever their names are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import image_bytes, read_tar, write_tar
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from s3 import Options, upload

import imgcurate as ic
from imgcurate import cli
from imgcurate.run.curate import curate
from imgcurate.run.output import files
from imgcurate.run.verify import verify


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


def run(inputs: Path | str, out: Path | str, **options: Any) -> dict[str, Any]:
    return curate(inputs, out, model=mean_colour, **{"dedup": "exact", "write": "files", **options})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images in two folders, captions beside some; one is a copy, and one cannot be read."""
    for i in range(12):
        path = tmp_path / "photos" / ("cats" if i < 6 else "dogs/old") / f"{i:02d}.v1.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(0 if i == 7 else i) if i != 9 else b"<html>")
        if i % 2:
            path.with_suffix(".txt").write_text(f"caption {i}\n")
    (tmp_path / "photos/cats/00.v1.json").write_bytes(b'{"a": 1}\r\n')
    (tmp_path / "photos/cats/00.v1.xmp").write_bytes(b"not looked at")
    return tmp_path / "photos"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Forty samples, and among them names that cannot be, or not at the same time, those of files."""
    members = []
    for i in range(40):
        members += [(f"./d/{i:03d}.jpg", image_bytes(i)), (f"./d/{i:03d}.txt", b"%d" % i), (f"./d/{i:03d}.cls", b"7")]
    odd = [
        "a.jpg",
        "./a.jpg",
        "b.jpg",
        "b.jpg/x.jpg",
        "c" * 300 + ".jpg",
        f"e.{'n' * 300}.jpg",
        "renamed/f.jpg",
        "g.jpg",
        "g.d/h.jpg",
    ]
    members += [(name, image_bytes(100 + number)) for number, name in enumerate(odd)] + [("g.d", b"no folder")]
    write_tar(tmp_path / "in/00000.tar", members)
    write_tar(tmp_path / "in/00001.tar", [("d/000.jpg", image_bytes(200)), ("d/000.txt", b"of another shard")])
    return tmp_path / "in"


def test_kept_images_are_files_with_what_stands_beside_them(client: Client, photos: Path, tmp_path: Path) -> None:
    manifest = run(photos, tmp_path / "out")
    expected = {name: content for name, content in tree(photos).items() if "/07." not in name and "/09." not in name}
    del expected["cats/00.v1.xmp"]
    assert tree(tmp_path / "out/files") == expected
    assert manifest["counts"]["kept"] == 10 and manifest["counts"]["files"] == len(expected) == 15
    account = pd.read_parquet(tmp_path / "out/files.parquet")
    assert dict(zip(account["file"], account["bytes"], strict=True)) == {n: len(c) for n, c in expected.items()}
    kept = ic.read_parquet(tmp_path / "out/images.parquet").compute().query("kept")
    assert account[account["image"]]["image_id"].tolist() == kept["image_id"].tolist()
    assert account[account["image"]]["digest"].tolist() == kept["digest"].tolist()
    assert str(verify(tmp_path / "out")) == "15 files of 10 images: all as they were written"
    assert not (tmp_path / "out/shards").exists() and not (tmp_path / "out/shards.parquet").exists()
    again = ic.read_files(tmp_path / "out/files").compute()
    assert again["caption"].tolist() == kept["caption"].tolist()
    with pytest.raises(FileExistsError, match=r"write=files there, write=shards now"):
        run(photos, tmp_path / "out", write="shards")


def test_every_kept_sample_lies_in_files_of_its_own_whatever_its_names_are(
    client: Client, shards: Path, tmp_path: Path
) -> None:
    assert run(shards, tmp_path / "out")["counts"]["kept"] == 50
    account = pd.read_parquet(tmp_path / "out/files.parquet")
    found = tree(tmp_path / "out/files")
    assert sorted(account["file"]) == list(found) and account["image"].sum() == 50
    assert sorted(found.values()) == sorted(content for path in shards.iterdir() for _, content in read_tar(path))
    assert {"00000/d/000.jpg", "00000/d/000.cls", "00001/d/000.txt", "00000/a.jpg", "00000/b.jpg"} <= set(found)
    other = sorted(name for name in found if name.startswith("renamed/"))
    assert [name[8] for name in other] == ["a", "c", "h", "x"] and all(len(name) < 140 for name in other)
    assert verify(tmp_path / "out").problems == ()


paths = st.lists(
    st.sampled_from(["a", "b", ".", "", "a.jpg", "a.d", "x" * 260, "renamed", "ü" * 130]), min_size=1, max_size=4
)


@given(st.lists(paths.map("/".join), unique=True, max_size=8))
def test_no_two_images_are_given_one_name_and_no_name_is_too_long(keys: list[str]) -> None:
    keys = [key for key in keys if key.rpartition("/")[2] not in ("", ".") and "." not in key.rpartition("/")[2]]
    rows = pd.DataFrame(
        {"image_id": [f"0/{key}" for key in keys], "url": "0.tar", "member": [f"{k}.jpg" for k in keys]}
    )
    found = files.names_of(rows, list(rows["image_id"]))
    # Beside each image may stand what has this extension.
    names = [base + suffix for base, extension in found for suffix in (extension, ".d")]
    assert len(set(names)) == 2 * len(keys)
    folders = {name[:at] for name in names for at, sign in enumerate(name) if sign == "/"}
    assert not folders & set(names)
    assert all(len(part.encode()) <= 255 and part not in ("", ".", "..") for name in names for part in name.split("/"))


def test_what_is_not_as_it_was_written_is_named_and_made_anew(client: Client, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(shards, out)
    before = tree(out / "files")
    (out / "files/00000/d/001.cls").write_bytes(b"8")
    (out / "files/00000/d/002.jpg").unlink()
    (out / "files/mine.txt").write_text("mine")
    found = verify(out).problems
    assert [problem.partition(" ")[0] for problem in found] == [
        "files/00000/d/001.cls", "files/00000/d/002.jpg", "files/mine.txt",
    ]  # fmt: skip
    assert found[1].endswith("No such file or directory") and found[2].endswith("was written by no run")
    for name in ("00000/d/001.cls", "mine.txt"):
        (out / "files" / name).unlink()
    run(shards, out)
    assert tree(out / "files") == before and verify(out).problems == ()
    account = out / "files.parquet/part.00000.parquet"
    account.write_bytes(account.read_bytes()[:-9] + b"x" * 9)
    assert "files.parquet/part.00000.parquet is not what was written" in verify(out).problems[0]
    account.unlink()
    assert "files.parquet/part.00000.parquet cannot be read" in verify(out).problems[0]
    run(shards, out)
    assert tree(out / "files") == before and verify(out).problems == ()


def test_another_option_replaces_the_files_of_a_run_and_nobody_elses(
    client: Client, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(shards, out)
    (out / "files/00000/mine.txt").write_text("mine")
    # As where a run was stopped in its second part: files, a note of what was begun, and no account.
    (out / "files.parquet/part.00001.parquet").unlink()
    begun = pd.read_parquet(out / "images.parquet/part.00001.parquet").query("kept")
    note = [base for base, _ in files.names_of(begun, list(begun["image_id"]))]
    (out / ".run/written/part.00001.parquet.begun").write_text(json.dumps(note))
    run(shards, out, write="shards", overwrite=True)
    assert [name for name in tree(out) if name.startswith("files")] == ["files/00000/mine.txt"]
    assert verify(out).problems == ()
    with pytest.raises(FileExistsError, match="holds files that no run wrote"):
        run(shards, out, overwrite=True)
    shutil.rmtree(out / "files")
    run(shards, out, overwrite=True)
    assert not (out / "shards").exists() and not (out / "shards.parquet").exists() and verify(out).problems == ()


def test_an_account_of_a_stranger_removes_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "out/files").mkdir(parents=True)
    (tmp_path / "out/files/way").symlink_to(tmp_path)
    (tmp_path / "out/files/a.jpg").write_bytes(b"image")
    names = ["../../secret", str(tmp_path / "secret"), "way/secret", "a.jpg"]
    (tmp_path / "out/files.parquet").mkdir()
    pd.DataFrame({"file": names}).to_parquet(tmp_path / "out/files.parquet/part.00000.parquet")
    files.remove(str(tmp_path / "out"), str(tmp_path / "out/.run/written"))
    assert (tmp_path / "secret").read_text() == "mine" and not (tmp_path / "out/files/a.jpg").exists()


def test_a_folder_of_a_run_is_read_where_it_is_named_and_not_below_another(
    client: Client, photos: Path, tmp_path: Path
) -> None:
    run(photos, tmp_path / "all/out")
    shutil.copytree(photos, tmp_path / "all/photos")
    shutil.rmtree(tmp_path / "all/out/.run")
    with pytest.warns(UserWarning, match="all/out is what a run wrote and is not read"):
        frame = ic.read_files(tmp_path / "all")
    assert len(frame.compute()) == 12
    assert len(ic.read_files(tmp_path / "all/out").compute()) == 10
    with pytest.raises(FileExistsError, match="which is read to the bottom"):
        run(f"{tmp_path}/all/out*/files/*.jpg", tmp_path / "all/out2")


def test_files_lie_in_a_store_as_on_a_disk(
    client: Client, photos: Path, tmp_path: Path, bucket: str, options: Options
) -> None:
    import fsspec

    source = upload(photos, f"{bucket}/photos", options)
    run(photos, tmp_path / "out")
    manifest = run(source, f"{bucket}/out", storage_options=options)
    fs, root = fsspec.filesystem("s3", **options), f"{bucket.removeprefix('s3://')}/out/files/"
    written = {name.removeprefix(root): fs.cat_file(name) for name in fs.find(root)}
    assert written == tree(tmp_path / "out/files")
    assert str(verify(f"{bucket}/out", storage_options=options)) == "15 files of 10 images: all as they were written"
    fs.rm_file(f"{root}cats/00.v1.JPG")
    assert run(source, f"{bucket}/out", storage_options=options)["counts"] == manifest["counts"]
    assert verify(f"{bucket}/out", storage_options=options).problems == ()
    run(source, f"{bucket}/out", storage_options=options, write="shards", overwrite=True)
    fs.invalidate_cache()
    assert fs.find(root) == [] and fs.find(root.replace("/files/", "/files.parquet")) == []


def test_a_finished_run_is_whole_after_it_was_moved(client: Client, photos: Path, tmp_path: Path) -> None:
    for write in ("files", "shards"):
        run(photos, tmp_path / "here" / write, write=write)
    (tmp_path / "here").rename(tmp_path / "there")
    for write in ("files", "shards"):
        assert verify(tmp_path / "there" / write).problems == ()
        assert run(photos, tmp_path / "there" / write, write=write)["counts"]["kept"] == 10


ODD = ["a::b [q]{1,2} *? ~é", os.fsdecode(b"caf\xe9")]


@pytest.mark.parametrize("name", ODD, ids=["syntax", "bytes"])
def test_the_whole_job_is_done_in_folders_of_any_name(
    client: Client, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    photos.rename(folder / "photos")
    write_tar(folder / "in/00000.tar", [(f"{i}.jpg", image_bytes(i)) for i in range(4)])
    every = {"dedup": "exact,perceptual,semantic", "max_distance": 0, "eps": 1e-6}
    for inputs, write, kept in (("in", "shards", 4), ("photos", "files", 10)):
        out = folder / f"out {write}"
        manifest = run(folder / inputs, out, write=write, **every)
        assert manifest["counts"]["kept"] == kept and verify(out).problems == ()
        assert run(folder / inputs, out, write=write, **every) == json.loads(json.dumps(manifest))
        images = ic.read_parquet(out / "images.parquet")
        # What its rows name is found there again.
        assert ic.measure(images[images["kept"]], ["sharpness"]).compute()["error"].isna().all()
    monkeypatch.chdir(folder)
    assert cli.main(["verify", "out files", "--scheduler", client.scheduler.address]) == 0
    assert run("photos", "out files", **every) == json.loads(json.dumps(manifest))


def test_the_command_line_writes_files(
    client: Client, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs pip install 'imgcurate[small]'")
    command = ["run", str(photos), str(tmp_path / "out"), "--model", "efficientnet-lite0", "--dedup", "exact"]
    command += ["--scheduler", client.scheduler.address]
    assert cli.main([*command, "--write", "files", "--max-sidecar", "10"]) == 0
    said = capsys.readouterr().out
    assert "out/files  " in said and "in " in said and "shards" not in said
    images = pd.read_parquet(tmp_path / "out/images.parquet").set_index("image_id")
    assert images.loc["dogs/old/11.v1.JPG", "reason"].endswith("has more than 10 bytes (max_sidecar)")
    assert cli.main([*command, "--write", "files", "--caption-from", "text"]) == 2
    assert "--caption-from says how samples of tar shards are read" in capsys.readouterr().err
