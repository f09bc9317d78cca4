"""What listing a shard costs over the number of its members: in imgcurate, up to the rows of its frame, and in Python's tarfile.

    python benchmarks/listing.py [--members 100000 1000000] [--rounds 3]

Members have no content, so that there is nothing but headers: the most members that a file of its size can have. Seconds are those of a core, the
best of some rounds, each in a process of its own that has read the file before; memory is what the process takes at most beyond what it has before.
Results go to benchmarks/results/listing.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from end_to_end import machine

from imgcurate import tar
from imgcurate.sources.webdataset import find_shards, list_shards


def by_tarfile(path: Path) -> int:
    with tarfile.open(path, "r:") as archive:
        return len(archive.getmembers())


def by_scan(path: Path) -> int:
    with open(path, "rb") as file:
        return len(tar.scan(file, path.stat().st_size, str(path)))


def as_rows(path: Path) -> int:
    return len(list_shards(find_shards(str(path))))


WAYS: dict[str, Callable[[Path], int]] = {"tarfile": by_tarfile, "members": by_scan, "rows": as_rows}


def write_shard(path: Path, members: int) -> None:
    with open(path, "wb") as file:
        for number in range(members):
            file.write(tar.header(f"{number:08d}.jpg", 0))
        file.write(tar.END)


def measure(way: str, path: Path, members: int) -> dict[str, float]:
    """List once, in this process."""
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = WAYS[way](path)
    seconds = time.process_time() - began
    if found != members:
        raise ValueError(f"{way} found {found} of {members} members")
    mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds_of_a_core": round(seconds, 3), "mib": round(mib)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for members in options.members:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "0.tar"
            write_shard(path, members)
            for way in WAYS:
                command = [sys.executable, __file__, way, str(path), str(members)]
                rounds = [json.loads(subprocess.check_output(command)) for _ in range(options.rounds)]
                runs.append({"members": members, "way": way, **min(rounds, key=lambda run: run["seconds_of_a_core"])})
                print(json.dumps(runs[-1]), flush=True)
    report = {"date": datetime.date.today().isoformat(), "machine": machine(), "rounds": options.rounds, "runs": runs}
    (Path(__file__).parent / "results" / "listing.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WAYS:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
