"""The lines that only a GPU reaches, executed on a machine without one; see gpu/standin.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).parent


def test_the_gpus_lines_run_on_arrays_that_refuse_what_a_gpus_refuse() -> None:
    # A session of its own: the stand-ins replace modules and functions of the whole process.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu.standin", "-p", "no:cacheprovider", "tests/gpu", "-k", "cudf or come_back"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_HERE), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run(command, cwd=_HERE.parent, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:]
    for room in ("dedup", "models", "vectors", "whole_job"):
        assert re.search(rf"test_{room} +cudf +[1-9]\d* +0 +0", run.stdout), run.stdout[-2000:]
