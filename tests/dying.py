"""A run that is killed where it writes: started again and again in processes of their own, each a fork of one that has all modules loaded.

python dying.py SHARDS OUT LOG KILLS SEED WRITE: the kth process dies by SIGKILL at its nth file, n drawn by SEED, before or after the file has its
name; the one after KILLS such deaths is left alone. WRITE is what kept images become. LOG gets a line for each image that is embedded and each file that gets its name.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
from typing import Any

import numpy as np

LOG = -1


def encode(batch: np.ndarray) -> np.ndarray:
    """Mean colours, of pictures that it counts."""
    os.write(
        int(os.environ["DYING_LOG"]),
        b"".join(b"image %s\n" % picture.tobytes()[:24].hex().encode() for picture in batch),
    )
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


OPTIONS: dict[str, Any] = {
    "eps": 1e-5,
    "dedup": ["exact", "perceptual", "semantic"],
    "max_distance": 0,
    "samples_per_shard": 40,
    "n_clusters": 2,
    "report": False,
}


def job(shards: str, out: str, write: str, deadly: tuple[int, bool] | None) -> None:
    """Run in this process, which dies at the nth file where `deadly` says so."""
    from distributed import Client, LocalCluster

    from imgcurate.run.curate import curate

    log = int(os.environ["DYING_LOG"])
    replace, numbers = os.replace, itertools.count(1)

    def replace_or_die(source: str, target: str) -> None:
        number = next(numbers)  # of this file: another thread may be at the next by the time this one has its name
        if deadly == (number, False):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        os.write(log, f"file {target}\n".encode())
        if deadly == (number, True):
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_or_die  # type: ignore[assignment]
    cluster = LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None)
    with cluster, Client(cluster):
        curate(shards, out, model=encode, write=write, **OPTIONS)


def main() -> None:
    """Run until a process ends well."""
    shards, out, log, kills, seed, write = sys.argv[1:]
    os.environ["DYING_LOG"] = str(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    import torch  # noqa: F401

    import imgcurate.run.curate  # noqa: F401

    rng = random.Random(int(seed))
    deaths = []
    while True:
        most = 6 if write == "shards" or len(deaths) < int(kills) // 2 else 60  # of the many files some are to be there
        deadly = (rng.randint(1, most), rng.random() < 0.5) if len(deaths) < int(kills) else None
        child = os.fork()
        if child == 0:
            try:
                job(shards, out, write, deadly)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            print(json.dumps({"deaths": len(deaths), "status": os.waitstatus_to_exitcode(status)}))
            return
        deaths.append(deadly)


if __name__ == "__main__":
    main()
