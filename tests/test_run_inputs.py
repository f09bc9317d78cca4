"""What a run reads: folders of images as well as shards, known by their versions."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import image_bytes, read_tar, write_tar
from distributed import Client

from imgcurate.run import inputs
from imgcurate.run.curate import curate
from imgcurate.run.verify import verify
from imgcurate.sources.files import File, read_files
from imgcurate.storage import Entry


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


def run(folder: Path, out: Path, **options: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    manifest = curate(folder, out, model=mean_colour, **{"dedup": "exact", "report": False, **options})
    return manifest, pd.read_parquet(out / "images.parquet")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images in two folders, with captions beside them; one is a copy, and one cannot be read."""
    for i in range(12):
        path = tmp_path / "photos" / ("cats" if i < 6 else "dogs") / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(0 if i == 7 else i) if i != 9 else b"<html>")
        path.with_suffix(".txt").write_text(f"caption {i}")
    return tmp_path / "photos"


def test_a_folder_of_images_is_curated_into_shards(
    client: Client, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, images = run(photos, tmp_path / "out", progress=True)
    assert "reading 12 image files" in capsys.readouterr().err
    assert images["image_id"].tolist() == read_files(photos).compute()["image_id"].tolist()
    assert manifest["counts"] | {"shards": 1} == {
        "read": 12, "errors": 1, "flagged": 0, "below_aesthetic": 0, "above_nsfw": 0, "duplicates": 1, "kept": 10, "shards": 1,
    }  # fmt: skip
    assert manifest["sources"].keys() == {str(photos)}
    assert images["reason_kind"].value_counts()[lambda counts: counts > 0].to_dict() == {"error": 1, "exact": 1}
    assert manifest["reasons"] == {"error": 1, "aesthetic": 0, "nsfw": 0, "exact": 1, "perceptual": 0, "semantic": 0}
    members = dict(read_tar(tmp_path / "out" / "shards" / "00000.tar"))
    assert members["dogs/11.jpg"] == (photos / "dogs" / "11.jpg").read_bytes()
    assert members["dogs/11.txt"] == b"caption 11"
    assert verify(tmp_path / "out").problems == ()


def test_a_run_follows_no_link_out_of_a_folder_of_images_and_names_compressed_shards(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes(image_bytes())
    (folder / "a.jpg").write_bytes(image_bytes())
    (folder / "b.jpg").symlink_to(tmp_path / "secret.jpg")
    (unit,) = inputs.find(folder)
    rows = unit.list(None)
    assert rows["error"].fillna("").str.startswith("read: a link out of the folder").tolist() == [False, True]
    shards = tmp_path / "shards"
    shards.mkdir()
    write_tar(tmp_path / "0.tar", [("a.jpg", image_bytes())])
    (shards / "0.tar").symlink_to(tmp_path / "0.tar")  # of shards, people make folders of links
    assert len(inputs.find(shards)) == 1
    (shards / "1.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.tar\.gz.*convert"):
        inputs.find(shards)


def test_a_text_or_an_image_that_changes_is_found_and_named(client: Client, photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    (photos / "cats" / "01.txt").write_text("another caption")
    with pytest.raises(FileExistsError, match=r"1 folder changed \(.*photos\)"):
        run(photos, tmp_path / "out")
    _, images = run(photos, tmp_path / "out", overwrite=True)
    assert images["caption"][1] == "another caption"
    (photos / "cats" / "01.jpg").write_bytes(image_bytes(99))
    with pytest.raises(FileExistsError, match="1 folder changed"):
        run(photos, tmp_path / "out")
    _, images = run(photos, tmp_path / "out", overwrite=True)
    assert images["bytes"][1] == len(image_bytes(99))


def test_shards_and_images_in_one_folder_are_told_apart_by_the_user(
    client: Client, photos: Path, tmp_path: Path
) -> None:
    write_tar(photos / "0.tar", [("a.jpg", image_bytes(1))])
    write_tar(photos / "cats" / "1.tar", [("b.jpg", image_bytes(2))])
    (photos / "dogs" / "12.png").write_bytes(image_bytes(12, format="PNG"))
    said = r"photos holds tar shards \(2\) and images \(13\).*photos/\*\*/\*\.tar to read them, or move them"
    with pytest.raises(ValueError, match=said):
        run(photos, tmp_path / "out")
    manifest, _ = run(f"{photos}/**/*.tar", tmp_path / "shards")  # type: ignore[arg-type]
    assert manifest["counts"]["read"] == 2
    for shard in photos.rglob("*.tar"):
        shard.rename(tmp_path / shard.name)
    manifest, _ = run(photos, tmp_path / "images")
    assert manifest["counts"]["read"] == 13


def test_of_several_inputs_it_is_said_which_hold_shards_and_which_images(photos: Path, tmp_path: Path) -> None:
    shards = [write_tar(tmp_path / "shards" / f"{n}.tar", [("a.jpg", image_bytes(n))]) for n in range(5)]
    with pytest.raises(ValueError, match="name the one or the other") as refused:
        inputs.find([photos / "cats", tmp_path / "shards", photos / "dogs"])
    assert f"tar shards (5) are in '{tmp_path}/shards', images (12) in '{photos}/cats', '{photos}/dogs'" in str(
        refused.value
    )
    with pytest.raises(ValueError, match=r"0\.tar', .*1\.tar', .*2\.tar', \.\.\., images"):
        inputs.find([*shards, photos])
    write_tar(photos / "cats" / "0.tar", [("a.jpg", image_bytes(1))])
    with pytest.raises(ValueError, match=r"cats holds both, the shards are \S+/cats/\*\*/\*\.tar"):
        inputs.find([photos / "cats", photos / "dogs"])


def test_a_run_begins_though_the_first_files_are_a_link_to_nothing_a_pipe_and_a_link_out(
    client: Client, photos: Path, tmp_path: Path
) -> None:
    (photos / "cats" / "-0.jpg").symlink_to("nothing.jpg")
    os.mkfifo(photos / "cats" / "-1.jpg")
    (photos / "cats" / "-2.jpg").symlink_to(tmp_path / "nothing.jpg")
    manifest, images = run(photos, tmp_path / "out")
    assert (manifest["counts"]["read"], manifest["counts"]["errors"]) == (15, 4)
    errors = images.set_index("image_id")["error"].dropna().to_dict()
    assert errors["cats/-0.jpg"] == "read: a link that cannot be followed (No such file or directory)"
    assert errors["cats/-1.jpg"] == "read: not a regular file"
    assert errors["cats/-2.jpg"] == errors["cats/-0.jpg"]
    # Where nothing else is there, each is still an error of its own.
    for photo in photos.rglob("[0-9]*.jpg"):
        photo.unlink()
    manifest, _ = run(photos, tmp_path / "none")
    assert (manifest["counts"]["read"], manifest["counts"]["errors"], manifest["counts"]["kept"]) == (3, 3, 0)


def test_a_folder_that_holds_neither_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.json").write_text(json.dumps({}))
    with pytest.raises(FileNotFoundError, match="notes"):
        inputs.find(tmp_path / "notes")


def test_a_file_that_is_added_changes_one_group_of_files_and_not_those_after_it() -> None:
    def groups(numbers: list[int]) -> set[tuple[str, ...]]:
        files = [File(f"/photos/{number:05d}.jpg", f"{number:05d}.jpg", Entry(1, "1"), ()) for number in numbers]
        return {tuple(file.url for file in group) for group in inputs._cut(files)}

    all_of_them, without = list(range(5000)), [number for number in range(5000) if number != 17]
    assert len(groups(all_of_them)) > 4 and max(map(len, groups(all_of_them))) <= 2048
    assert len(groups(all_of_them) - groups(without)) <= 2
