"""What removal and deciding cost a partition, over the length of the list.

    python benchmarks/removal.py [--ids 10000 1000000 3000000 10000000] [--rows 1000] [--rounds 25]

A partition of `--rows` images with text ids of 15 characters, of which half are on the list; another one each round:

- remove: what a task of `imgcurate.remove` does with the partition.
- deciding: what a task of `imgcurate run` does to decide on it, of which most is the sentence for each image that goes.
- isin: `part[~part.image_id.isin(ids)]` with pandas on Arrow strings, which is what `remove` did.
- merge: pandas' merge with an indicator, as Dask's merge with a frame of one partition does.
- polars: its anti join of the partition with the list.

Milliseconds of CPU time (user and system) a partition, medians; all take turns in one process, the slow ones every fifth round. The ratio is to
the first list. Hashing and sorting the list happens once a job; its memory is held once by each worker process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from end_to_end import machine

from imgcurate.dedup import lookup, removal
from imgcurate.run.output import decide

_SLOW = ("isin", "merge", "polars")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--ids", type=int, nargs="+", default=[10_000, 1_000_000, 3_000_000, 10_000_000])
    arguments.add_argument("--rows", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=25)
    options = arguments.parse_args()
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {"pandas": pd.__version__, "polars": pl.__version__, "pyarrow": pa.__version__},
        "rows": options.rows,
        "lists": [measure(n, options.rows, options.rounds) for n in options.ids],
    }
    first = report["lists"][0]["ms"]
    for found in report["lists"]:
        found["ratio"] = {name: round(value / first[name], 2) for name, value in found["ms"].items()}
    show(report["lists"])
    (Path(__file__).parent / "results" / "removal.json").write_text(json.dumps(report, indent=2) + "\n")


def measure(n: int, rows: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    ids = names(np.arange(n))
    column = pd.Series(pd.arrays.ArrowExtensionArray(ids), name="image_id")
    began = time.process_time()
    known = lookup.build([lookup.hashed(column)])
    seconds = time.process_time() - began
    twins = decide.link_twins(
        ["semantic"],
        [pa.table({"image_id": ids, "duplicate_of": names(np.arange(n) + 2 * n), "similarity": ones(n)})],
    )
    listed = column.to_frame()
    in_polars = pl.DataFrame({"image_id": pl.from_arrow(ids)})
    contestants: dict[str, Callable[[pd.DataFrame], Any]] = {
        "remove": lambda part: part[~removal._is_listed(part["image_id"], known)],
        "deciding": lambda part: decide.decide_part(part, twins),
        "isin": lambda part: part[~part["image_id"].isin(column)],
        "merge": lambda part: part.merge(listed, how="left", on="image_id", indicator=True).query(
            "_merge == 'left_only'"
        ),
        "polars": lambda part: pl.from_pandas(part).join(in_polars, on="image_id", how="anti"),
    }
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-1, rounds):
        part = partition(names(rng.integers(0, 2 * n, rows)))
        left = {}
        for name, run in contestants.items():
            if name in _SLOW and number % 5 and number >= 0:
                continue
            began = time.process_time()
            answer = run(part)
            cpu[name] += [time.process_time() - began] if number >= 0 else []
            left[name] = int(answer["kept"].sum()) if name == "deciding" else len(answer)
        assert len(set(left.values())) == 1, left
    return {
        "ids": n,
        "ms": {name: round(1000 * statistics.median(values), 3) for name, values in cpu.items()},
        "seconds_to_hash_and_sort": round(seconds, 3),
        "bytes_an_id": {
            "lookup": round((known.hashes.nbytes + known.rows.nbytes + known.starts.nbytes) / n, 1),
            "ids": round(known.ids.nbytes / n, 1),
            "deciding, all": round((size(twins.images) + twins.table.nbytes) / n, 1),
        },
    }


def names(numbers: np.ndarray) -> pa.Array:
    return pa.array([f"{number // 10_000:05d}/{number:09d}" for number in numbers.tolist()], pa.string())


def ones(n: int) -> pa.Array:
    return pa.array(np.ones(n, dtype=np.float32))


def size(known: lookup.Lookup) -> int:
    return sum(part.nbytes for part in known)


def partition(ids: pa.Array) -> pd.DataFrame:
    table = pa.table({"image_id": ids, "error": pa.nulls(len(ids), pa.string()), "width": np.arange(len(ids))})
    return table.to_pandas(types_mapper=pd.ArrowDtype)


def show(lists: list[dict[str, Any]]) -> None:
    columns = list(lists[0]["ms"])
    print("ms of CPU a partition (ratio to the first list)")
    print(f"{'ids':>12}" + "".join(f"{name:>20}" for name in columns) + f"{'hash and sort':>16}{'bytes an id':>14}")
    for found in lists:
        cells = [f"{found['ms'][name]:.2f} ({found['ratio'][name]:.1f} x)" for name in columns]
        held = found["bytes_an_id"]["lookup"] + found["bytes_an_id"]["ids"]
        print(
            f"{found['ids']:>12,}"
            + "".join(f"{cell:>20}" for cell in cells)
            + f"{found['seconds_to_hash_and_sort']:>14.2f} s{held:>14.0f}"
        )


if __name__ == "__main__":
    main()
