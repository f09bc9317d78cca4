"""A whole run on an S3 server: the same shards as on disk, resumed as on disk, with a number of requests that images do not raise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from conftest import image_bytes, write_tar
from distributed import Client
from s3 import Options, Proxy, upload

from imgcurate import cli, storage
from imgcurate.run.curate import curate
from imgcurate.run.verify import verify
from imgcurate.tar import ShardChanged


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(2):
        members = []
        for i in range(30):
            seed = i if i % 5 == 0 else 100 * number + i
            members += [(f"{i:03d}.jpg", image_bytes(seed)), (f"{i:03d}.txt", f"caption {seed}".encode())]
        write_tar(tmp_path / "in" / f"{number}.tar", members)
    return tmp_path / "in"


def run(shards: Any, out: Any, **options: Any) -> dict[str, Any]:
    return curate(
        shards, out, **{"model": mean_colour, "eps": 1e-5, "samples_per_shard": 20, "report": False, **options}
    )


def contents(url: str, options: Options) -> dict[str, bytes]:
    fs = fsspec.filesystem("s3", **options)
    fs.invalidate_cache()
    return {path.partition(url.removeprefix("s3://"))[2]: fs.cat_file(path) for path in fs.find(url)}


def test_a_run_on_a_store_writes_the_shards_of_a_run_on_disk_and_goes_on(
    client: Client,
    shards: Path,
    tmp_path: Path,
    bucket: str,
    options: Options,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(shards, tmp_path / "disk")
    source, out = upload(shards, f"{bucket}/in", options), f"{bucket}/out"
    manifest = run(source, out, storage_options=options)
    found = contents(out, options)
    for path in (tmp_path / "disk" / "shards").glob("*.tar"):
        assert found[f"/shards/{path.name}"] == path.read_bytes()
    assert json.loads(found["/manifest.json"]) == json.loads(json.dumps(manifest))
    assert not [name for name in found if name.endswith((".begun", "lock")) or ".unfinished" in name]
    assert verify(out, storage_options=options).problems == ()
    # Stopped before it wrote its manifest, it goes on: nothing is embedded again, and nothing else is another.
    fs = fsspec.filesystem("s3", **options)
    for gone in ("manifest.json", "shards/00001.tar", "images.parquet/part.00000.parquet"):
        fs.rm_file(f"{out}/{gone}")
    run(source, out, storage_options=options, progress=True)
    assert "60 of 60 images are embedded already" in capsys.readouterr().err
    again = contents(out, options)
    assert {name for name in again if again[name] != found.get(name)} == {"/manifest.json"}


def test_requests_do_not_grow_with_the_images(
    client: Client,
    tmp_path: Path,
    bucket: str,
    options: Options,
    proxy: Proxy,
) -> None:
    counted = []
    for images in (400, 1600):
        folder = tmp_path / str(images)
        members = [(f"{i:04d}.jpg", image_bytes(i, size=(8, 8))) for i in range(images)]
        write_tar(folder / "0.tar", members)
        source = upload(folder, f"{bucket}/{images}", options)
        proxy.reset()
        run(source, f"{bucket}/out{images}", storage_options=options, samples_per_shard=10_000)
        counted.append(sum(proxy.requests.values()))
    # Eight parts of a shard either way; the larger listing is a request or two more.
    assert counted[1] <= 1.1 * counted[0], counted


def test_faults_that_pass_change_nothing(
    client: Client,
    shards: Path,
    tmp_path: Path,
    bucket: str,
    options: Options,
    proxy: Proxy,
) -> None:
    source = upload(shards, f"{bucket}/in", options)
    run(source, f"{bucket}/calm", storage_options=options)
    proxy.reset(
        lambda number, method, path: {3: "500", 7: "503", 11: "slow"}.get(number % 13) if "/in/" in path else None
    )
    run(source, f"{bucket}/storm", storage_options=options)
    proxy.reset()
    calm, storm = (contents(f"{bucket}/{name}", options) for name in ("calm", "storm"))
    same = [name for name in calm if name.startswith(("/shards", "/images.parquet"))]
    assert len(same) > 3 and all(calm[name] == storm[name] for name in same)


def test_a_store_that_fails_for_everything_stops_the_run_in_one_sentence(
    client: Client,
    shards: Path,
    bucket: str,
    options: Options,
    proxy: Proxy,
) -> None:
    source = upload(shards, f"{bucket}/in", options)
    failing = {"now": False}

    def fault(number: int, method: str, path: str) -> str | None:
        failing["now"] = failing["now"] or "/columns/" in path
        return "500" if failing["now"] and method == "GET" and "/in/" in path else None

    proxy.reset(fault)
    with pytest.raises(OSError, match="of 60 images could not be read, and 10 may"):
        run(source, f"{bucket}/out", storage_options=options)
    proxy.reset()
    # What could not be read is read again by the next start, by itself.
    manifest = run(source, f"{bucket}/out", storage_options=options)
    assert manifest["counts"]["errors"] == 0 and manifest["counts"]["read"] == 60


def test_an_object_that_is_replaced_stops_the_run(
    client: Client,
    shards: Path,
    bucket: str,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from imgcurate.run.output import tables

    source, find = upload(shards, f"{bucket}/in", options), tables.find_duplicates

    def find_and_replace(*arguments: Any) -> Any:
        found = find(*arguments)
        with storage.open_atomic(f"{source}/1.tar", options) as file:
            file.write((shards / "0.tar").read_bytes())
        return found

    monkeypatch.setattr(tables, "find_duplicates", find_and_replace)
    with pytest.raises(ShardChanged, match=r"1\.tar has changed"):
        run(source, f"{bucket}/out", storage_options=options)


def test_the_command_line_takes_storage_options(
    shards: Path,
    tmp_path: Path,
    bucket: str,
    options: Options,
    client: Client,
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    source = upload(shards, f"{bucket}/in", options)
    command = ["run", source, f"{bucket}/out", "--model", "efficientnet-lite0", "--eps", "0.001", "--scheduler"]
    assert cli.main([*command, client.scheduler.address, "--storage-options", json.dumps(options)]) == 0
    checked = ["verify", f"{bucket}/out", "--scheduler", client.scheduler.address]
    assert cli.main([*checked, "--storage-options", json.dumps(options)]) == 0


def test_an_attempt_that_died_is_looked_into_where_the_store_cannot_be_asked_from(
    client: Client, shards: Path, bucket: str, options: Options
) -> None:
    source = upload(shards, f"{bucket}/in", options)
    before = run(source, f"{bucket}/out", storage_options=options)
    fs = fsspec.filesystem("s3", **options)
    for part in fs.glob(f"{bucket}/out/.run/columns/*.parquet"):
        fs.touch(f"{part.rpartition('/')[0]}/{part.rpartition('/')[2].partition('.')[0]}.begun")
        fs.rm_file(part)
    fs.rm_file(f"{bucket}/out/manifest.json")
    assert run(source, f"{bucket}/out", storage_options=options)["counts"] == before["counts"]
