"""Requests and bytes that a shard on an object store costs: listing it, reading its images, and writing some of them again.

    python benchmarks/requests.py [--megabytes 200] [--output PATH]

One shard of each kind, of the same size: small images (5 KB), those of the web (100 KB), photos (2 MB) and large ones (10 MB), each with a caption and
a JSON file. The store is moto's S3 server in a process of its own, behind a proxy that counts. Written are all images, and every tenth.
Bytes are those of the answers' bodies, divided by the shard's. Results go to benchmarks/results/requests.json.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import logging
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import fsspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from s3 import Proxy, s3_server

from imgcurate import pixels
from imgcurate.sinks.webdataset import write_webdataset
from imgcurate.sources.webdataset import find_shards, list_shards

SIZES = {"5 KB": 5_000, "100 KB": 100_000, "2 MB": 2_000_000, "10 MB": 10_000_000}


def write_shard(path: Path, size: int, n_images: int) -> None:
    content = os.urandom(size)
    with tarfile.open(path, "w") as shard:
        for number in range(n_images):
            for extension, data in (("jpg", content), ("txt", b"a caption"), ("json", b"{}")):
                info = tarfile.TarInfo(f"{number:06d}.{extension}")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))


class Said(logging.Handler):
    """What the library logged last of which way it took."""

    def emit(self, record: logging.LogRecord) -> None:
        self.way = record.getMessage().split(": ")[1].partition(",")[0]


def measure(proxy: Proxy, options: dict[str, Any], name: str, megabytes: int) -> dict[str, Any]:
    fs = fsspec.filesystem("s3", **options)
    bucket = f"bucket-{name.replace(' ', '').lower()}"
    fs.mkdir(bucket)
    n_images = max(megabytes * 1_000_000 // (SIZES[name] + 2560), 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.tar"
        write_shard(path, SIZES[name], n_images)
        size = path.stat().st_size
        fs.put(str(path), f"{bucket}/0.tar")

    def counted(work: Any) -> tuple[Any, dict[str, Any]]:
        proxy.reset()
        result = work()
        return result, {"requests": sum(proxy.requests.values()), "bytes_read": round(proxy.sent / size, 4)}

    said = Said(logging.DEBUG)
    logger = logging.getLogger("imgcurate")
    logger.addHandler(said)
    logger.setLevel(logging.DEBUG)
    rows, listing = counted(lambda: list_shards(find_shards(f"s3://{bucket}/0.tar", options), options))
    logger.removeHandler(said)
    places = list(rows[["url", "offset", "bytes"]].itertuples(index=False, name=None))
    _, reading = counted(lambda: sum(len(data) for data in pixels.read_images(places, options)))
    frames = {"all": rows, "every tenth": rows[::10].reset_index(drop=True)}
    writing = {
        kept: counted(
            lambda kept=kept, part=part: write_webdataset(
                dd.from_pandas(part, npartitions=1), f"s3://{bucket}/{kept.split()[0]}", storage_options=options
            )
        )[1]
        for kept, part in frames.items()
    }
    fs.rm(bucket, recursive=True)
    return {
        "images": n_images,
        "bytes": size,
        "listing": {**listing, "way": said.way},
        "reading": reading,
        "writing": writing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "requests.json")
    args = parser.parse_args()
    dask.config.set(scheduler="sync")
    with s3_server() as address:
        proxy = Proxy(address)
        options = {"key": "k", "secret": "s", "endpoint_url": proxy.address}
        shards = {name: measure(proxy, options, name, args.megabytes) for name in SIZES}
        proxy.close()
    for name, found in shards.items():
        listing, writing = found["listing"], found["writing"]
        print(f"{found['images']:6d} images of {name:>6}: ", end="")
        print(f"listing {listing['requests']:3d} requests, {listing['bytes_read']:7.2%} ({listing['way']}); ", end="")
        print(f"reading {found['reading']['requests']:3d}, {found['reading']['bytes_read']:7.2%}; ", end="")
        print("; ".join(f"writing {k} {v['requests']:3d}, {v['bytes_read']:7.2%}" for k, v in writing.items()))
    run = {"date": datetime.date.today().isoformat(), "megabytes": args.megabytes}
    args.output.write_text(json.dumps({"run": run, "shards": shards}, indent=2) + "\n")


if __name__ == "__main__":
    main()
