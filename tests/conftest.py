"""What the tests share: one real cluster, and helpers that write real tars and images."""

from __future__ import annotations

import io
import os
import signal
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from hypothesis import settings
from PIL import Image

from imgcurate.cluster import connect

pytest_plugins = ["s3"]

Member = tuple[str, bytes]

# The same examples every time, so that a change is blamed for its own failures; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# A shell starts what it leaves in the background deaf to Ctrl-C, and that is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """A LocalCluster of two workers, one for the whole run."""
    with connect(devices=[], workers=2) as client:
        yield client


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data that lies beside the checkout on some machines: real weights, embeddings and photos."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder 'shared' beside the checkout")
    return folder


def image_bytes(seed: int = 0, size: tuple[int, int] = (40, 30), format: str = "JPEG") -> bytes:
    """Return a small image that differs from those of other seeds."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[Member], format: int = tarfile.GNU_FORMAT) -> Path:
    """Write a tar of (name, content) members, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read_tar(path: Path) -> list[Member]:
    """Return the (name, content) members of a tar, in order."""
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar if info.isfile()]  # type: ignore[union-attr]
