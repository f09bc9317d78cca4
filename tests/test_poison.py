"""Images that kill: the process that decodes them dies, and the run goes on without them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from conftest import Member, image_bytes, write_tar
from PIL import Image

from imgcurate.run.tasks import probe
from imgcurate.run.tasks.probe import killers

# Python imports this in every process that has its folder on the path: workers, and those that are started in their place.
STUB = """
import ctypes, sys

def stub():
    from PIL import ImageFile
    load = ImageFile.ImageFile.load
    def load_or_die(image):
        if image.size == (33, 17):
            ctypes.string_at(0)
        return load(image)
    ImageFile.ImageFile.load = load_or_die

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "imgcurate.pixels":
            sys.meta_path.remove(self)
            stub()

sys.meta_path.insert(0, Finder())
"""


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", size, (1, 2, 3, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def curated(tmp_path: Path, members: list[Member], *options: str) -> tuple[pd.DataFrame, str]:
    for number in range(2):
        write_tar(
            tmp_path / "in" / f"{number}.tar", [(f"{i:02d}.jpg", image_bytes(50 * number + i)) for i in range(40)]
        )
    write_tar(tmp_path / "in" / "poison.tar", members)
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "sitecustomize.py").write_text(STUB)
    command = [sys.executable, "-m", "imgcurate", "run", str(tmp_path / "in"), str(tmp_path / "out")]
    ended = subprocess.run(
        [*command, "--model", "efficientnet-lite0", "--no-dedup", "--no-report", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "stub")},
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return pd.read_parquet(tmp_path / "out" / "images.parquet").set_index("image_id"), ended.stderr


def test_images_that_crash_their_decoder_are_error_rows(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    members = [(f"{i:02d}.jpg", image_bytes(1000 + i)) for i in range(40)]
    for at in (7, 30):
        members[at] = (f"{at:02d}.jpg", image_bytes(at, size=(33, 17)))
    images, _ = curated(tmp_path, members)
    errors = images["error"].dropna()
    assert errors.to_dict() == {
        f"poison/{at:02d}": "decode: the process that decoded it died (signal 11)" for at in (7, 30)
    }
    assert images["kept"].sum() == 118 and len(images) == 120


def test_an_image_that_needs_more_than_a_workers_memory_is_an_error_row(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    members = [("00.jpg", image_bytes(1)), ("01.png", png((9400, 9400))), ("02.jpg", image_bytes(2))]
    images, _ = curated(tmp_path, members, "--memory-limit", "900MiB", "--workers", "2")
    (error,) = images["error"].dropna()
    assert error.startswith(
        "decode: the process that decoded it died (it needs more than the 0.8 GiB of memory of a worker)"
    )
    assert images["kept"].sum() == 82


def test_killers_are_told_from_those_beside_them() -> None:
    tried: list[int] = []

    def work(row: int) -> None:
        if row in (3, 4, 9):
            os.kill(os.getpid(), signal.SIGKILL if row == 9 else signal.SIGSEGV)
        if row == 5:
            raise ValueError("an error is no death")

    assert killers(range(10), work) == {3: "signal 11", 4: "signal 11", 9: "signal 9"}
    assert killers([], work) == {} and tried == []


def test_a_row_that_kills_only_once_is_not_to_blame(tmp_path: Path) -> None:
    mark = tmp_path / "died"

    def work(row: int) -> None:
        if row == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert killers(range(4), work) == {} and mark.exists()


def test_a_process_that_takes_too_much_memory_is_ended() -> None:
    def work(row: int) -> None:
        if row == 1:
            taken = bytearray(2 << 30)
            taken[:: 1 << 12] = b"x" * (1 << 19)
            threading.Event().wait(60)  # it is looked at now and then

    (found,) = killers(range(3), work, memory_limit=3 << 29).items()
    assert found == (1, "it needs more than the 1.5 GiB of memory of a worker")


def test_a_fork_that_waits_for_ever_is_given_up_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_STUCK_SECONDS", 0.5)
    first = tmp_path / "first"

    def work(row: int) -> None:
        if row == 1 and not first.exists():
            first.touch()
            threading.Event().wait()
        if row == 2:
            os.kill(os.getpid(), signal.SIGSEGV)

    assert killers(range(4), work) == {2: "signal 11"}
    assert killers(range(4), lambda row: threading.Event().wait()) == {}
