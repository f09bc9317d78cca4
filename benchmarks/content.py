"""What equal bytes and equal looks cost over the number of images, with fingerprints in memory and through files.

    python benchmarks/content.py [--rows 1000000 3000000] [--partition 50000] [--workers 2] [--memory-limit 3GiB]

Rows with ids, digests and perceptual hashes are made and written as Parquet; a tenth of them have the content of another row, anywhere. Each verb then
reads them, finds the copies and counts what goes: seconds, seconds of a core in all workers, what the larger worker holds before and at most, and
the bytes of the folder of files. Images are of eight bytes each, so that what is measured is what comes together, not the reading.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from end_to_end import machine

import imgcurate as ic
from imgcurate.dedup.content.exact import PLACE
from imgcurate.dedup.work import memory

_COLUMNS = {"exact": [*PLACE, "digest"], "perceptual": ["phash"]}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 3_000_000])
    arguments.add_argument("--partition", type=int, default=50_000)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--memory-limit", default="3GiB")
    options = arguments.parse_args()
    found = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(folder, rows, options.partition)
            for verb in _COLUMNS:
                for way in ("memory", "files"):
                    found.append(measure(folder, verb, way, options.workers, options.memory_limit))
                    print(json.dumps(found[-1]), flush=True)
    report = {"date": datetime.date.today().isoformat(), "machine": machine(), "runs": found}
    (Path(__file__).parent / "results" / "content.json").write_text(json.dumps(report, indent=2) + "\n")


def write_rows(folder: str, rows: int, partition: int) -> None:
    """Write rows as Parquet, and the file that their images lie in."""
    images = f"{folder}/images.bin"
    Path(images).write_bytes(np.random.default_rng(0).bytes(8000))
    for number, start in enumerate(range(0, rows, partition)):
        rng = np.random.default_rng(number)
        row = np.arange(start, min(start + partition, rows))
        content = np.where(rng.random(len(row)) < 0.1, rng.integers(rows, size=len(row)), row).astype(np.uint64)
        mixed = mix(content)
        place = [images] * len(row), 8 * (content % np.uint64(1000)).astype(np.int64), np.full(len(row), 8)
        part = pd.DataFrame(
            {"image_id": [f"{number:05d}/{at:012d}" for at in row], **dict(zip(PLACE, place, strict=True))}
        )
        part["digest"] = [f"{high:016x}{low:016x}" for high, low in zip(mixed.tolist(), content.tolist(), strict=True)]
        part["phash"] = pd.array(mixed, dtype=pd.ArrowDtype(pa.uint64()))
        part.to_parquet(f"{folder}/{number:05d}.parquet")


def mix(numbers: np.ndarray) -> np.ndarray:
    """Scatter numbers over 64 bits, different ones apart."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(27))


def measure(folder: str, verb: str, way: str, workers: int, memory_limit: str) -> dict[str, Any]:
    """Search the rows with one verb."""
    memory._SHARE_IN_MEMORY = 1 if way == "memory" else 0
    search = ic.exact_duplicates if verb == "exact" else ic.perceptual_duplicates
    with ic.connect(devices=[], workers=workers, memory_limit=memory_limit) as client:
        frame = dd.read_parquet(f"{folder}/*.parquet", dtype_backend="pyarrow")[["image_id", *_COLUMNS[verb]]]
        search(frame.partitions[:1])  # what a worker imports is not what is measured
        client.run(forget_peak)
        before, cpu = client.run(resident, "VmRSS"), client.run(time.process_time)
        began = time.perf_counter()
        found = search(frame)
        removed = len(found.removals())
        seconds = time.perf_counter() - began
        cpu_after = client.run(time.process_time)
        assert ("through files" in repr(found)) == (way == "files")
        return {
            "rows": found.n_rows,
            "verb": verb,
            "way": way,
            "removed": removed,
            "seconds": round(seconds, 1),
            "seconds_of_a_core": round(sum(cpu_after.values()) - sum(cpu.values()), 1),
            "mib_before": round(max(before.values())),
            "mib_at_most": round(max(client.run(resident, "VmHWM").values())),
            "mib_of_files": round(size(found) / 2**20),
        }


def size(found: ic.Duplicates) -> int:
    """Return the bytes of the files that a result lies in."""
    if found._folder is None:
        return 0
    return sum(os.path.getsize(f"{path}/{name}") for path, _, names in os.walk(found._folder.path) for name in names)


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def resident(name: str) -> float:
    """Return what this process holds (VmRSS), or held at most (VmHWM), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


if __name__ == "__main__":
    main()
