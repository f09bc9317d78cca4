"""Files that are there whole or not at all, and how a file is told from what it was."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from imgcurate import storage
from imgcurate.sources.files import read_files


def test_a_file_is_there_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    with storage.open_atomic(str(path)) as file:
        file.write(b"half")
        file.flush()
        (unfinished,) = path.parent.iterdir()
        assert unfinished.name.startswith(".unfinished-")
        file.write(b" and half")
    assert path.read_bytes() == b"half and half" and os.listdir(path.parent) == ["a.bin"]


def _write_and_raise(url: str, error: type[BaseException]) -> None:
    with storage.open_atomic(url) as file:
        file.write(b"x" * 100_000)
        raise error


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_a_file_that_was_not_finished_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    for name, before in (("old", b"before"), ("new", None)):
        path = tmp_path / name
        if before:
            path.write_bytes(before)
        with pytest.raises(error):
            _write_and_raise(str(path), error)
    assert os.listdir(tmp_path) == ["old"] and (tmp_path / "old").read_bytes() == b"before"


def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    # The file is larger than this process may write, which a disk that is full answers in the same way: an error of write().
    program = (
        "import resource, signal; from imgcurate import storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        f"with storage.open_atomic({str(tmp_path / 'a.bin')!r}) as file: file.write(bytes(100_000))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "OSError: [Errno 27] File too large" in ended.stderr and os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_written_is_told_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught, storage.open_atomic(str(tmp_path)) as file:
        file.write(b"content")
    assert str(caught.value).endswith(f"Is a directory: '{tmp_path}'")
    with pytest.raises(OSError) as caught, storage.open_atomic("/proc/self/fd/file") as file:  # where nobody can
        file.write(b"content")
    assert str(caught.value).endswith(": '/proc/self/fd/file'")


def test_any_filesystem_has_files_whole_or_not_at_all() -> None:
    memory = fsspec.filesystem("memory")
    try:
        with storage.open_atomic("memory://atomic/a.bin") as file:
            file.write(b"1")
            assert not memory.exists("/atomic/a.bin")
        with pytest.raises(KeyError):
            _write_and_raise("memory://atomic/a.bin", KeyError)
        assert memory.cat("/atomic/a.bin") == b"1" and len(memory.ls("/atomic")) == 1
        with storage.open_atomic("memory://atomic.bin") as file:
            file.write(b"3")
        assert storage.read_if_there("memory://atomic.bin") == b"3"
        storage.remove("memory://atomic.bin")
        storage.remove("memory://atomic.bin")
        assert storage.read_if_there("memory://atomic.bin") is None
    finally:
        memory.rm("/atomic", recursive=True)


def _other_content(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def _replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize("change", [_other_content, _replaced, lambda path: path.write_bytes(b"")])
def test_a_file_that_was_written_again_has_another_etag(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123")
    os.utime(path, ns=(1, 1))
    before = storage.etag(str(path))
    assert before == "4-1" == storage.etag(str(path))
    change(path)
    assert storage.etag(str(path)) != before


def test_a_listing_tells_the_same_etag_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"0123")
    memory = fsspec.filesystem("memory")
    memory.pipe("/etags/a.tar", b"0123")
    try:
        for folder in (
            str(tmp_path),
            f"{tmp_path}/*.tar",
            f"file://{tmp_path}",
            "memory://etags",
            "memory://etags/a.*",
        ):
            ((url, entry),) = storage.expand(folder, (".tar",)).items()
            assert entry[:2] == storage.stat(url)[:2] == (4, storage.etag(url)), folder
    finally:
        memory.rm("/etags", recursive=True)


def test_a_folder_tells_the_sizes_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    assert storage.sizes_in(str(tmp_path)) == {"a": 3} and storage.sizes_in(str(tmp_path / "nothing")) == {}


def test_a_link_to_nothing_is_found_and_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "nothing")
    for urls in (tmp_path, f"{tmp_path}/*.jpg"):
        (row,) = read_files(urls).compute(scheduler="sync").itertuples()
        assert row.url.endswith("a.jpg") and row.error.startswith("read: a link that cannot be followed (No such file")
    with pytest.raises(FileNotFoundError):
        storage.etag(row.url)


def test_a_file_that_is_not_there_has_no_etag(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.etag(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError):
        storage.etag("memory://nothing")


def test_what_fails_for_good_is_asked_for_once() -> None:
    calls = []

    def denied() -> None:
        calls.append(1)
        raise PermissionError("access denied")

    with pytest.raises(PermissionError, match="access denied"):
        storage.retrying()(denied)
    assert len(calls) == 1


def test_what_goes_on_failing_is_raised_as_it_is() -> None:
    calls = []

    def reset() -> None:
        calls.append(1)
        raise ConnectionResetError("by peer")

    with pytest.raises(ConnectionResetError, match="by peer"):
        storage.retrying()(reset)
    assert len(calls) == 4


def test_a_store_whose_package_is_not_installed_is_told_with_what_to_install() -> None:
    verbs = ["read_webdataset(url)", "read_files(url)", "read_parquet(url)"]
    script = """
import sys
sys.modules["s3fs"] = None  # as where it is not installed
import imgcurate as ic
url = "s3://bucket/a"
for verb in sys.argv[1:]:
    try:
        eval(f"ic.{verb}")
    except ImportError as problem:
        print(problem)
"""
    run = subprocess.run([sys.executable, "-c", script, *verbs], capture_output=True, text=True, check=False)
    said = "s3://bucket/a takes a package that is not installed: pip install 'imgcurate[s3]'"
    assert run.stdout.splitlines() == [said] * 3, run.stderr
