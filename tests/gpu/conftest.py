"""One backend a test: pandas partitions without a cluster, cuDF partitions on a real LocalCUDACluster.

The GPU halves need a session of their own (``make test-gpu``), because connect() reuses a client that is running.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd
import pytest
from dask.delayed import delayed

from imgcurate import schema, vectors
from imgcurate.cluster import connect, gpu_available

_HERE = Path(__file__).parent
_ALONE = pytest.StashKey[bool]()


@dataclass(frozen=True)
class Backend:
    """Where the partitions of a test live.

    Attributes
    ----------
    name : {"pandas", "cudf"}
    device : {"cpu", "cuda"}
        What torch calls it.
    """

    name: str
    device: str

    def part(self, part: pd.DataFrame) -> Any:
        """Return a pandas partition on this backend, with its index, by cuDF's public API alone."""
        if self.name == "pandas":
            return part
        import cudf

        moved = cudf.DataFrame.from_arrow(schema.to_arrow(part))
        moved.index = cudf.Index(part.index.to_numpy())
        return moved

    def array(self, array: np.ndarray) -> Any:
        """Return an array on this backend's device."""
        if self.name == "pandas":
            return array
        import cupy

        return cupy.asarray(array)

    def frame(self, part: pd.DataFrame, cuts: Sequence[int] = ()) -> Any:
        """Return a Dask dataframe of `part` cut before the rows `cuts`; equal cuts make an empty partition."""
        bounds = [0, *cuts, len(part)]
        parts = [self.part(part.iloc[a:b]) for a, b in itertools.pairwise(bounds)]
        return dd.from_delayed([delayed(part) for part in parts], meta=self.part(part.iloc[:0]), verify_meta=False)

    def address(self, array: Any) -> int:
        """Return where an array's first element lies in memory."""
        return int(array.data.ptr if vectors.on_gpu(array) else array.__array_interface__["data"][0])


PANDAS, CUDF = Backend("pandas", "cpu"), Backend("cudf", "cuda")


@pytest.fixture(scope="session")
def gpu_client(request: pytest.FixtureRequest) -> Iterator[distributed.Client]:
    """A LocalCUDACluster of all GPUs, one for the whole run; skips, with the reason, where it cannot be had."""
    if not gpu_available():
        missing = [
            name for name in ("cupy", "cudf", "dask_cudf", "dask_cuda") if importlib.util.find_spec(name) is None
        ]
        pytest.skip(f"no GPU: {', '.join(missing)} not installed" if missing else "no GPU: CUDA finds none")
    if not in_own_session(request):
        pytest.skip("needs a session of its own, so that the other tests get workers without GPUs: make test-gpu")
    try:
        running = distributed.default_client()
    except ValueError:
        running = None
    if running is not None:
        pytest.skip("a Dask client is running in this session already, and connect() would reuse it: make test-gpu")
    with connect() as client:
        yield client


def in_own_session(request: pytest.FixtureRequest) -> bool:
    """Tell whether nothing but the tests of this folder runs in this session."""
    return request.config.stash[_ALONE]


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_ALONE] = all(_HERE in item.path.parents for item in session.items)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print a table of what ran on which backend, where these tests have a session of their own."""
    if not config.stash.get(_ALONE, False):
        return
    rows: dict[tuple[str, str], Counter[str]] = {}
    reasons: dict[tuple[str, str], str] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            file, _, name = report.nodeid.partition("::")
            parameters = name.partition("[")[2].removesuffix("]").split("-")
            row = Path(file).stem, next((backend for backend in ("pandas", "cudf") if backend in parameters), "")
            rows.setdefault(row, Counter())["failed" if outcome == "error" else outcome] += 1
            if outcome == "skipped":
                reasons[row] = str(report.longrepr[2]).removeprefix("Skipped: ")
    terminalreporter.section("by backend")
    line = "{:<18}{:<8}{:>7}{:>7}{:>8}  {}"
    terminalreporter.write_line(line.format("", "", "passed", "failed", "skipped", "because"))
    for row, counts in sorted(rows.items()):
        numbers = (counts[outcome] for outcome in ("passed", "failed", "skipped"))
        terminalreporter.write_line(line.format(*row, *numbers, reasons.get(row, "")).rstrip())


@pytest.fixture(params=["pandas", "cudf"])
def on(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The backend of a test. The pandas half computes in this process, whatever client is running."""
    if request.param == "cudf":
        request.getfixturevalue("gpu_client")
        with dask.config.set({"dataframe.backend": "cudf"}):
            yield CUDF
    else:
        with in_process():
            yield PANDAS


def in_process() -> Any:
    """Return a context in which frames are pandas frames and are computed in this process."""
    return dask.config.set({"dataframe.backend": "pandas", "scheduler": "synchronous"})


@pytest.fixture
def on_cpu() -> Callable[[Callable[[], Any]], Any]:
    """Compute something as a machine without a GPU does: what the GPU's answer is compared with."""

    def compute(function: Callable[[], Any]) -> Any:
        with in_process():
            return function()

    return compute


def host(frame: Any) -> pd.DataFrame:
    """Compute a frame, and return it on the host with the types of the schema."""
    return vectors.to_pandas(frame.compute() if hasattr(frame, "compute") else frame)


def embedded(matrix: np.ndarray, valid: np.ndarray | None = None, **columns: Sequence[Any]) -> pd.DataFrame:
    """Return a pandas partition of image_id, `columns` and `matrix` as the embedding."""
    part = schema.table({"image_id": [f"img{i:04}" for i in range(len(matrix))], **columns})
    return part.assign(embedding=vectors.to_column(np.asarray(matrix, dtype=np.float32), part, valid))
