"""A run that was stopped goes on, to the result of one that was not; a run that was changed does again what depends on the change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import image_bytes, write_tar
from distributed import Client

from imgcurate.run.curate import curate
from imgcurate.run.verify import verify
from imgcurate.storage import digest_of
from imgcurate.tar import ShardChanged

DYING = Path(__file__).with_name("dying.py")


def shard(path: Path, seeds: list[int], text: str = "caption") -> Path:
    """A shard of images of these seeds."""
    members = []
    for number, seed in enumerate(seeds):
        members += [(f"{number:03d}.jpg", image_bytes(seed)), (f"{number:03d}.txt", f"{text} {seed}".encode())]
    return write_tar(path, members)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A hundred and fifty images in three shards, every fifth a copy of one in another shard."""
    for number in range(3):
        shard(tmp_path / "in" / f"{number:05d}.tar", [50 * number * (i % 5 != 0) + i for i in range(50)])
    return tmp_path / "in"


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


def run(shards: Path, out: Path, **options: Any) -> dict[str, Any]:
    return curate(
        shards, out, **{"model": mean_colour, "eps": 1e-5, "samples_per_shard": 40, "report": False, **options}
    )


def outputs(out: Path) -> dict[str, bytes]:
    """All that a run wrote but for its manifest, which has times in it."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {
        name: content for name, content in found.items() if name != "manifest.json" and not name.startswith(".run/")
    }


def parts(out: Path, table: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / ".run" / table).glob("*.parquet")}


@pytest.mark.parametrize(("seed", "write"), [(0, "shards"), (1, "files")])
def test_a_run_that_is_killed_wherever_it_writes_ends_as_one_that_is_not(
    shards: Path, tmp_path: Path, seed: int, write: str
) -> None:
    def start(out: str, kills: int) -> tuple[list[str], int]:
        log = tmp_path / f"{out}.log"
        command = [sys.executable, str(DYING), str(shards), str(tmp_path / out), str(log), str(kills), str(seed), write]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        said = json.loads(ended.stdout)
        assert said["status"] == 0, ended.stderr
        return log.read_text().splitlines(), said["deaths"]

    (undisturbed, _), (killed, deaths) = start("whole", 0), start("killed", 12)
    assert deaths >= 6
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")
    assert len(outputs(tmp_path / "whole")) > 6
    leftovers = [
        path for path in (tmp_path / "killed").rglob("*") if ".unfinished" in path.name or path.suffix == ".begun"
    ]
    assert leftovers == []
    # No part is written twice, and of the images no more than what two threads had in hand at each death. (Functions are tried on two.)
    assert max(Counter(line for line in killed if "/.run/columns/" in line).values()) == 1
    images = Counter(line for line in killed if line.startswith("image"))
    assert images.keys() == Counter(line for line in undisturbed if line.startswith("image")).keys()
    again = sum(line.startswith("image") for line in killed) - sum(line.startswith("image") for line in undisturbed)
    assert again <= deaths * (2 * 2 * 32 + 2)


def test_a_finished_run_is_left_as_it_is(
    client: Client, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = run(shards, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert run(shards, tmp_path / "out", progress=True) == manifest
    assert "is finished: there is nothing to do" in capsys.readouterr().err
    assert run(shards, tmp_path / "out", overwrite=True) == manifest
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= {tmp_path / "out" / ".run" / "lock"}


def test_files_of_a_finished_run_that_are_gone_are_made_again(client: Client, shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path / "out")
    before = outputs(tmp_path / "out")
    (tmp_path / "out" / "shards" / "00001.tar").unlink()
    os.truncate(tmp_path / "out" / "shards" / "00000.tar", 1000)
    (tmp_path / "out" / "images.parquet" / "part.00002.parquet").unlink()
    run(shards, tmp_path / "out")
    assert outputs(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eps": 0.5}, r"eps=1e-05 there, eps=0.5 now"),
        ({"rule": "component"}, "rule=cover there, rule=component now"),
        ({"keep": "id"}, "keep=largest there, keep=id now"),
        ({"samples_per_shard": 7}, "samples_per_shard=40 there, samples_per_shard=7 now"),
        ({"dedup": "exact"}, "dedup=semantic there, dedup=exact now"),
    ],
)
def test_another_option_is_refused_by_name_and_embeds_nothing_again(
    client: Client, shards: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    out = tmp_path / "out"
    run(shards, out)
    before, columns = outputs(out), parts(out, "columns")
    with pytest.raises(FileExistsError, match=f"{said}.*or replace its outputs with overwrite=True"):
        run(shards, out, **change)
    assert outputs(out) == before
    run(shards, out, overwrite=True, **change)
    assert parts(out, "columns") == columns
    run(shards, tmp_path / "fresh", **change)
    assert outputs(out) == outputs(tmp_path / "fresh")
    assert verify(out).problems == ()


def test_another_model_or_preprocessing_is_named_and_computed_again(
    client: Client, shards: Path, tmp_path: Path
) -> None:
    def brightest(batch: np.ndarray) -> np.ndarray:
        return batch.reshape(len(batch), -1, 3).max(axis=1) + 1

    out = tmp_path / "out"
    run(shards, out)
    listed, columns = parts(out, "listed"), parts(out, "columns")
    with pytest.raises(FileExistsError, match=r"the model .*mean_colour \(\w{12}\) there, .*brightest \(\w{12}\) now"):
        run(shards, out, model=brightest)
    run(shards, out, model=brightest, overwrite=True)
    assert parts(out, "listed") == listed and not parts(out, "columns").keys() & columns.keys()
    with pytest.raises(FileExistsError, match="truncated=False there, truncated=True now"):
        run(shards, out, model=brightest, truncated=True)


def test_a_stopped_run_says_what_is_there_and_a_shard_that_was_added_is_all_that_is_embedded(
    client: Client, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(shards, out)
    columns = parts(out, "columns")
    shard(shards / "00003.tar", list(range(900, 910)))
    with pytest.raises(FileExistsError, match=r"1 shard added \(.*/00003\.tar\)"):
        run(shards, out)
    (out / "manifest.json").unlink()  # as if it had been stopped
    run(shards, out, progress=True)
    said = capsys.readouterr().err
    assert "1 shard added" in said and "150 of 160 images are embedded already" in said
    assert columns.items() <= parts(out, "columns").items()
    (shards / "00001.tar").unlink()
    with pytest.raises(FileExistsError, match=r"1 shard taken away \(.*/00001\.tar\)"):
        run(shards, out)
    manifest = run(shards, out, overwrite=True)
    run(shards, tmp_path / "fresh")
    assert outputs(out) == outputs(tmp_path / "fresh")
    assert manifest["counts"]["read"] == 110 and len(parts(out, "columns")) < len(columns)
    assert {Path(url).name for url in manifest["sources"]} == {"00000.tar", "00002.tar", "00003.tar"}


def test_a_torn_part_and_stale_files_are_not_in_the_way(client: Client, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(shards, out)
    before = outputs(out)
    (out / "manifest.json").unlink()
    for table in ("listed", "columns", "duplicates"):
        newest = max((out / ".run" / table).glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
        os.truncate(newest, newest.stat().st_size // 2)
        (out / ".run" / table / ".unfinished-0123").write_bytes(b"half")
    os.truncate(out / "images.parquet" / "part.00001.parquet", 100)
    (out / "shards" / ".unfinished-4567").write_bytes(b"half")
    run(shards, out)
    assert outputs(out) == before


@pytest.mark.parametrize("same_size", [False, True])
def test_a_shard_that_is_replaced_while_duplicates_are_found_stops_the_run_by_name(
    client: Client, shards: Path, tmp_path: Path, same_size: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imgcurate.run.output import tables

    victim, out = shards / "00001.tar", tmp_path / "out"
    stat, find = victim.stat(), tables.find_duplicates

    def find_and_replace(*arguments: Any) -> Any:
        found = find(*arguments)
        if same_size:
            content = bytearray(victim.read_bytes())
            with tarfile.open(victim) as tar:
                place = tar.getmember("001.jpg").offset_data
            content[place + 400 : place + 410] = bytes(10)
            victim.write_bytes(content)
            os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        else:
            shard(victim, list(range(500, 560)))
        return found

    monkeypatch.setattr(tables, "find_duplicates", find_and_replace)
    with pytest.raises(ShardChanged, match=r"00001\.tar has changed"):
        run(shards, out)
    monkeypatch.undo()
    assert not (out / "manifest.json").exists()
    run(shards, out)
    run(shards, tmp_path / "fresh")
    assert outputs(out) == outputs(tmp_path / "fresh")
    assert verify(out).problems == ()


def test_every_source_is_accounted_for_in_the_manifest(client: Client, shards: Path, tmp_path: Path) -> None:
    manifest = run(shards, tmp_path / "out", dedup="exact")
    images = pd.read_parquet(tmp_path / "out" / "images.parquet")
    for url, known in manifest["sources"].items():
        rows = images[images["url"] == url]
        assert known["read"] == len(rows) == 50 and known["kept"] == rows["kept"].sum()
        assert known["duplicates"] == rows["duplicate_of"].notna().sum()
    table = pd.read_parquet(tmp_path / "out" / "shards.parquet")
    assert table["samples"].sum() == manifest["counts"]["kept"] == images["kept"].sum()


def test_verify_names_what_was_changed_after_the_run(client: Client, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="no finished run"):
        verify(out)
    run(shards, out)
    assert verify(out).problems == () and verify(out).samples > 100
    path = out / "shards" / "00001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    shard(out / "shards" / "00009.tar", [1])
    problems = verify(out).problems
    assert len(problems) == 2
    assert (
        "shards/00009.tar was written by no run" in problems[0]
        and "shards/00001.tar is not what was written" in problems[1]
    )
    for problem_file in ("shards/00001.tar", "shards/00009.tar"):
        (out / problem_file).unlink()
    run(shards, out)  # what was removed is made anew
    assert verify(out).problems == ()
    (out / "images.parquet" / "part.00000.parquet").unlink()
    assert any("the manifest says" in problem for problem in verify(out).problems)


def test_two_runs_in_one_folder_at_once_are_refused(client: Client, shards: Path, tmp_path: Path) -> None:
    from imgcurate.run.state.lock import locked

    run(shards, tmp_path / "out")
    with locked(str(tmp_path / "out" / ".run" / "lock")):
        script = "import sys\nfrom imgcurate.run.state.lock import locked\nwith locked(sys.argv[1]): pass"
        other = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "out" / ".run" / "lock")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"process {os.getpid()} on" in other.stderr and "BlockingIOError" in other.stderr


def test_a_lock_in_a_store_goes_with_its_owner(tmp_path: Path) -> None:
    from imgcurate import storage
    from imgcurate.run.state.lock import locked

    url = f"memory://{tmp_path.name}/.run/lock"
    with locked(url), pytest.raises(BlockingIOError, match=f"process {os.getpid()}"), locked(url):
        pass
    assert storage.read_if_there(url) is None
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    with locked(url):
        left = json.loads(storage.read_if_there(url) or b"")
    with storage.open_atomic(url) as file:
        file.write(json.dumps({**left, "pid": int(dead.stdout)}).encode())
    with locked(url):
        pass


@pytest.mark.parametrize("way", ["link", "dots", "link to the output"])
def test_sources_in_the_output_are_refused_by_whatever_name_they_have(
    client: Client, shards: Path, tmp_path: Path, way: str
) -> None:
    out = tmp_path / "out"
    run(shards, out)
    before = outputs(out)
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "sub").mkdir()
    source, target = {
        "link": (tmp_path / "link" / "shards", out),
        "dots": (f"{tmp_path}/sub/../out/shards", out),
        "link to the output": (out / "shards", tmp_path / "link"),
    }[way]
    with pytest.raises(FileExistsError, match="is a source and lies where the output would be written"):
        run(source, target, eps=0.2, overwrite=True)
    assert outputs(out) == before


def test_another_order_of_the_shards_is_another_run(client: Client, shards: Path, tmp_path: Path) -> None:
    forward = sorted(shards.iterdir())
    run(forward, tmp_path / "out")
    columns = parts(tmp_path / "out", "columns")
    with pytest.raises(FileExistsError, match="2 shards put into another place"):
        run(forward[::-1], tmp_path / "out")
    run(forward[::-1], tmp_path / "out", overwrite=True)
    run(forward[::-1], tmp_path / "fresh")
    assert outputs(tmp_path / "out") == outputs(tmp_path / "fresh")
    assert parts(tmp_path / "out", "columns") == columns


def test_files_of_others_in_the_output_are_left_alone(client: Client, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(shards, out)
    mine = [out / "shards" / "mine.tar", out / "images.parquet" / "mine.parquet"]
    for path in mine:
        path.write_bytes(b"mine")
    run(shards, out, eps=0.5, overwrite=True)
    assert [path.read_bytes() for path in mine] == [b"mine", b"mine"]


def test_an_output_in_a_folder_of_sources_is_refused_at_once(client: Client, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(shards)
    for out in (shards / "out", tmp_path / "link" / "deep" / "out"):
        with pytest.raises(FileExistsError, match="read to the bottom"):
            run(shards, out)
        assert not out.exists()
    run(sorted(shards.glob("*.tar")), shards / "out")


def test_an_edited_table_of_images_is_seen(client: Client, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(shards, out)
    path = out / "images.parquet" / "part.00002.parquet"
    pd.read_parquet(path, dtype_backend="pyarrow").assign(caption="x").to_parquet(path)
    (problem,) = verify(out).problems
    assert problem.startswith("images.parquet/part.00002.parquet is not what was written")
    path.unlink()
    run(shards, out)
    assert verify(out).problems == ()


def test_a_garbled_record_is_named(client: Client, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(shards, out)
    for name in (".run/run.json", "manifest.json"):
        before = (out / name).read_bytes()
        (out / name).write_bytes(before[:50])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            run(shards, out)
        (out / name).write_bytes(before)
    (out / "manifest.json").unlink()
    for record in (out / ".run" / "written").iterdir():
        record.write_bytes(b"")
    run(shards, out)
    assert verify(out).problems == ()


def test_a_run_of_an_earlier_version_is_verified(client: Client, shards: Path, tmp_path: Path) -> None:
    manifest = run(shards, tmp_path / "out")
    for name in manifest["parts"]:
        file = tmp_path / "out" / "images.parquet" / name
        table = pq.read_table(file)
        pq.write_table(table.rename_columns({"bytes": "size"}), file)
        manifest["parts"][name] = digest_of(str(file))
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert verify(tmp_path / "out").problems == ()
