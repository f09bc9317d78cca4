"""Weights are found, downloaded whole or not at all, read without running code, and told apart by their content."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from imgcurate import weights

CONTENT = b"weights of a model" * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path != "/missing" else 404)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/whole" else CONTENT[:1000])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_download_with_the_right_checksum_appears_under_its_name(server: str, tmp_path: Path) -> None:
    path = weights.download(f"{server}/whole", SHA256, tmp_path / "new" / "head.zip")
    assert path == tmp_path / "new" / "head.zip"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_a_download_with_another_checksum_is_refused_and_leaves_nothing(server: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"/whole is not the file expected .* not 0000.*; put it there by hand"):
        weights.download(f"{server}/whole", "0" * 64, tmp_path / "head.zip", advice="put it there by hand")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", ["missing", "cut"])
def test_a_download_that_fails_leaves_what_was_there(server: str, tmp_path: Path, page: str) -> None:
    before = tmp_path / "head.zip"
    before.write_bytes(b"older")
    with pytest.raises((FileNotFoundError, ValueError), match=f"{page} .*; put it there by hand$"):
        weights.download(f"{server}/{page}", SHA256, before, advice="put it there by hand")
    assert list(tmp_path.iterdir()) == [before]
    assert before.read_bytes() == b"older"


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"127.0.0.1:9/x cannot be downloaded to .*head.zip.* \(.*refused.*\); do"
    ):
        weights.download("http://127.0.0.1:9/x", SHA256, tmp_path / "head.zip", advice="do it by hand")


def test_hf_hub_offline_keeps_downloads_from_the_network(tmp_path: Path) -> None:
    told = run_offline(
        f"weights.download('http://127.0.0.1:9/x', '0', {str(tmp_path / 'x')!r}, advice='fetch it')", home=tmp_path
    )
    assert told == "FileNotFoundError: http://127.0.0.1:9/x is not downloaded because HF_HUB_OFFLINE is set; fetch it"


def test_a_hub_file_comes_from_the_cache_without_a_network(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--someone--head"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    (snapshot / "model.safetensors").write_bytes(b"x")
    told = run_offline("print(weights.from_hub('someone/head', 'model.safetensors', 'x'))", home=tmp_path)
    assert told == str(snapshot / "model.safetensors")


def test_a_hub_file_that_is_nowhere_is_one_sentence(tmp_path: Path) -> None:
    told = run_offline("weights.from_hub('someone/head', 'model.safetensors', 'put it into model_dir')", home=tmp_path)
    why = "(the hub is out of reach, or HF_HUB_OFFLINE is set)"
    cannot = f"FileNotFoundError: model.safetensors of someone/head cannot be downloaded {why}"
    assert told == f"{cannot}; put it into model_dir"


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    asked: list[str] = []

    class Failing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{hub.server_port}"
        told = run_offline(
            "weights.from_hub('someone/head', 'model.safetensors', 'put it into model_dir')",
            home=tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT=address, no_proxy="127.0.0.1",
        )  # fmt: skip
        hub.shutdown()
    assert told.startswith("FileNotFoundError: model.safetensors of someone/head cannot be downloaded (")
    assert told.endswith("; put it into model_dir")
    assert [path for path in asked if "someone" in path] == ["/api/models/someone/head"]


def test_the_directory_of_models_is_the_one_that_is_given_or_else_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("IMGCURATE_MODEL_DIR", raising=False)
    assert weights.chosen_dir(None) is None
    monkeypatch.setenv("IMGCURATE_MODEL_DIR", str(tmp_path))
    assert weights.chosen_dir(None) == tmp_path and weights.chosen_dir("given") == Path("given")
    monkeypatch.setenv("IMGCURATE_MODEL_DIR", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"IMGCURATE_MODEL_DIR names '.*gone', which is not a directory"):
        weights.chosen_dir(None)
    weights.set_model_dir(tmp_path)
    assert weights.chosen_dir(None) == tmp_path
    with pytest.raises(FileNotFoundError, match=r"model_dir '.*gone' is not a directory"):
        weights.set_model_dir(tmp_path / "gone")


def test_the_cache_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.cache_dir() == tmp_path / "imgcurate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights.cache_dir() == tmp_path / "home" / ".cache" / "imgcurate"


def test_find_prefers_the_first_name_and_passes_over_what_does_not_fit(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    assert weights.find(tmp_path, ["b", "a"]) == tmp_path / "b"
    assert weights.find(tmp_path, ["b", "a"], fits=lambda path: path.name != "b") == tmp_path / "a"
    assert weights.find(tmp_path, ["d"]) is None
    assert weights.find(tmp_path / "c", ["b"]) == tmp_path / "c"
    with pytest.raises(FileNotFoundError, match=r"model_dir '.*nowhere' does not exist"):
        weights.find(tmp_path / "nowhere", ["a"])


def test_the_fingerprint_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    file = tmp_path / "head.pth"
    file.write_bytes(CONTENT)
    assert weights.fingerprint(file) == weights.fingerprint(str(file)) == SHA256


def test_the_fingerprint_of_a_directory_is_that_of_its_model_wherever_it_lies(tmp_path: Path) -> None:
    one, other = make_model(tmp_path / "one"), make_model(tmp_path / "other")
    (other / "README.md").write_text("about")
    (other / ".cache").mkdir()
    (other / ".cache" / "download.json").write_text("{}")
    assert weights.fingerprint(one) == weights.fingerprint(other)
    (other / "config.json").write_text('{"size": 2}')
    assert weights.fingerprint(one) != weights.fingerprint(other)
    assert weights.fingerprint([one, other]) != weights.fingerprint([other, one])


def test_a_fingerprint_needs_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model weights"):
        weights.fingerprint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing.pth' do not exist"):
        weights.fingerprint(tmp_path / "nothing.pth")


def test_verify_tells_absent_weights_from_other_ones(tmp_path: Path) -> None:
    file = tmp_path / "head.pth"
    with pytest.raises(FileNotFoundError, match="a worker does not have the weights"):
        weights.verify(file, SHA256)
    file.write_bytes(CONTENT)
    weights.verify(file, SHA256)
    file.write_bytes(b"others")
    with pytest.raises(ValueError, match="not those the client chose"):
        weights.verify(file, SHA256)


def test_a_state_dict_and_safetensors_read_alike(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    safetensors.numpy.save_file({"w": array}, tmp_path / "model.safetensors")
    torch.save({"w": torch.nn.Parameter(torch.from_numpy(array))}, tmp_path / "model.pth")
    for file in ("model.safetensors", "model.pth"):
        read = weights.read_arrays(tmp_path / file)["w"]
        assert read.dtype == np.float64
        np.testing.assert_array_equal(read, array)
    assert weights.read_shapes(tmp_path / "model.safetensors") == {"w": (3, 2)}


class Dangerous:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "made-by-a-pickle"
    torch.save({"w": Dangerous(str(target))}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"head.pth' cannot be read as model weights: .* more than arrays$"):
        weights.read_arrays(tmp_path / "head.pth")
    assert not target.exists()


@pytest.mark.parametrize("name", ["head.pth", "head.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 100])
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}' cannot be read as model weights"):
        weights.read_arrays(tmp_path / name)


def test_a_saved_tensor_is_not_a_state_dict(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"head.pth' holds no state dict"):
        weights.read_arrays(tmp_path / "head.pth")


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({}, "'f' does not hold the head: it has no 'w'"),
        ({"w": np.zeros(3)}, r"'f' does not hold the head: 'w' has shape \(3,\), not \(2,\)"),
        ({"w": np.array([1, np.nan])}, "'f' is damaged: 'w' of the head holds NaN"),
    ],
)
def test_arrays_are_checked_by_name_shape_and_value(arrays: dict[str, np.ndarray], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        weights.check_arrays(arrays, {"w": (2,)}, "'f'", "the head")


def make_model(folder: Path) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "config.json").write_text('{"size": 1}')
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(CONTENT)
    return folder


def run_offline(statement: str, home: Path, **environment: str) -> str:
    """Run a statement in a process with an empty cache and no network; return the last line it says."""
    result = subprocess.run(
        [sys.executable, "-c", f"from imgcurate import weights\n{statement}"],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            **environment,
        },
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    return (result.stdout + result.stderr).strip().splitlines()[-1]
