"""What it costs that a run survives, and what a death costs.

    python benchmarks/resume.py [--images 500] [--rounds 3]

Curates shards of JPEGs of about 1.5 megapixels (see end_to_end.py) with ViT-B/32 in its true configuration, random weights:

- run: `imgcurate run`, which writes what each step computes part by part, digests what it reads and compares what it writes.
- verbs: the same job as a script over the public verbs, which keeps everything in memory and loses it with the process.
- killed: the run, whose driver or of whose workers one is killed by SIGKILL when half of the images are embedded; and started again where
  that is needed. The cost is what both starts take longer than the run, of which a start of the cluster and the model is most.
- again: the same command on a finished run; and one with another eps.

Seconds of whole processes, medians over the rounds; the share is of the run to the verbs in one round.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from end_to_end import machine, make_models, make_shards

VERBS = """
import sys
import imgcurate as ic
if __name__ == "__main__":
    shards, out, models = sys.argv[1:]
    with ic.connect(devices=[]):
        frame = ic.embed(ic.read_webdataset(shards), "clip", model_dir=models).persist()
        frame = frame[frame.error.isnull()]
        kept = ic.remove(frame, ic.semantic_duplicates(frame, eps=0.001), missing="ignore")
        ic.write_parquet(frame, out + "/images.parquet")
        ic.write_webdataset(kept, out + "/shards", samples_per_shard=250)
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=500)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="imgcurate-bench-") as folder:
        report = measure(Path(folder), options.images, options.rounds)
    print(json.dumps(report, indent=2))
    (Path(__file__).parent / "results" / "resume.json").write_text(json.dumps(report, indent=2) + "\n")


def measure(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    make_shards(folder / "in", images)
    make_models(folder / "models")
    (folder / "verbs.py").write_text(VERBS)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, of in (
            ("run", run),
            ("verbs", verbs),
            ("worker killed", worker_killed),
            ("driver killed", driver_killed),
        ):
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            seconds.setdefault(name, []).append(of(folder, out, images))
            print(name, seconds[name], file=sys.stderr)
        seconds.setdefault("again", []).append(run(folder, out, images))
        seconds.setdefault("another eps", []).append(run(folder, out, images, "--eps", "0.01", "--overwrite"))
    pairs = zip(seconds["run"], seconds["verbs"], strict=True)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "images": images,
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "median": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
        "run_to_verbs": [round(one / other, 3) for one, other in pairs],
    }


def run(folder: Path, out: Path, images: int, *options: str) -> float:
    began = time.perf_counter()
    started(folder, out, *options).wait()
    return time.perf_counter() - began


def verbs(folder: Path, out: Path, images: int) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, folder / "verbs.py", folder / "in", out, folder / "models"], check=True)
    return time.perf_counter() - began


def worker_killed(folder: Path, out: Path, images: int) -> float:
    began = time.perf_counter()
    process = started(folder, out)
    half(out, images)
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()
    process.wait()
    return time.perf_counter() - began


def driver_killed(folder: Path, out: Path, images: int) -> float:
    began = time.perf_counter()
    process = started(folder, out)
    half(out, images)
    process.send_signal(signal.SIGKILL)
    process.wait()
    started(folder, out).wait()
    return time.perf_counter() - began


def started(folder: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "imgcurate",
        "run",
        folder / "in",
        out,
        "--model",
        "clip",
        "--model-dir",
        folder / "models",
    ]
    return subprocess.Popen(
        [*command, "--eps", "0.001", "--samples-per-shard", "250", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )


def half(out: Path, images: int) -> None:
    """Wait until half of the images are embedded."""
    while True:
        names = [path.name for path in (out / ".run" / "columns").glob("*.parquet")]
        if sum(int(name.split(".")[1]) for name in names) >= images / 2:
            return
        time.sleep(0.05)


if __name__ == "__main__":
    main()
