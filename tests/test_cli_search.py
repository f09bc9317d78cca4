"""imgcurate search: what it finds in what a run, embed and save_embeddings wrote, and what it says of what it cannot look through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import opened
from conftest import image_bytes, write_tar
from distributed import Client
from test_cli_commands import HOSTILE, said  # noqa: F401
from test_text import clip, siglip  # noqa: F401

import imgcurate as ic
from imgcurate import cli

TEXT = "a red dog"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of seven images, of which one is there twice and one is none."""
    folder = tmp_path_factory.mktemp("in")
    members = [(f"{name}.jpg", image_bytes(number, (120, 90))) for number, name in enumerate("abcdef")]
    members[1:1] = [("a.txt", HOSTILE.encode())]
    members += [("g.jpg", image_bytes(5, (120, 90))), ("g.txt", b"A copy of f. " * 20), ("text.jpg", b"<html>")]
    write_tar(folder / "0.tar", members)
    return folder


@pytest.fixture(scope="module")
def out(client: Client, shards: Path, clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run that has finished."""
    out = tmp_path_factory.mktemp("run") / "out"
    given = ["run", str(shards), str(out), "--model", clip, "--eps", "1e-5", "--quiet", "--no-report"]
    assert cli.main(given) == 0
    return out


@pytest.fixture(scope="module")
def rows(out: Path) -> Any:
    return ic.read_parquet(out / "images.parquet").compute()


def expected(rows: Any, model: str, k: int) -> list[str]:
    return ic.search(rows, k, text=TEXT, model=model)["image_id"].tolist()


def test_a_text_finds_in_a_run_what_the_verb_finds(out: Path, rows: Any, clip: str, said: Any) -> None:  # noqa: F811
    text, _ = said(0, "search", out, TEXT, "--k", 4)
    first, *lines = text.splitlines()
    assert first.split() == ["similarity", "image_id", "caption"]
    assert [line.split()[1] for line in lines] == expected(rows, clip, 4)
    known = json.loads(said(0, "search", out, TEXT, "--json")[0])
    assert (known["text"], known["image"], known["model"]) == (TEXT, None, clip)
    found = {hit["image_id"]: hit for hit in known["found"]}
    assert list(found) == expected(rows, clip, 20) and "0/text" not in found and len(found) == 7
    assert found["0/g"]["reason"].startswith("duplicate of 0/f") and found["0/f"]["reason"] is None
    assert found["0/a"]["caption"] == HOSTILE and found["0/b"]["caption"] is None and found["0/b"]["bytes"] > 0
    kept = json.loads(said(0, "search", out, TEXT, "--kept", "--json")[0])["found"]
    assert [hit["image_id"] for hit in kept] == [name for name in found if name != "0/g"]


def test_an_image_finds_itself_first(out: Path, tmp_path: Path, said: Any) -> None:  # noqa: F811
    (tmp_path / "any.jpg").write_bytes(image_bytes(3, (120, 90)))
    known = json.loads(said(0, "search", out, "--image", tmp_path / "any.jpg", "--k", 1, "--json")[0])
    assert known["found"][0]["image_id"] == "0/d" and known["found"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    said(0, "search", out, "--image", tmp_path / "any.jpg", "--k", 2, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img ") == 3 and page.index("looked for") < page.index("0/</span><wbr>d")
    (tmp_path / "none.jpg").write_bytes(b"<html>")
    assert "'none.jpg' cannot be looked for: decode" in said(1, "search", out, "--image", tmp_path / "none.jpg")[1]
    (tmp_path / "none.jpg").write_bytes(image_bytes(4))
    assert "names 2 images: name one" in said(1, "search", out, "--image", tmp_path)[1]
    assert "nowhere.jpg" in said(1, "search", out, "--image", tmp_path / "nowhere.jpg")[1]


def test_a_page_shows_what_was_found_and_runs_nothing_of_what_was_asked(
    out: Path,
    clip: str,  # noqa: F811
    rows: Any,
    tmp_path: Path,
    said: Any,  # noqa: F811
) -> None:
    page, hostile = tmp_path / "page.html", "<script>document.title = 'run'</script>"
    said(0, "search", out, hostile, "--html", page, "--k", 7)
    text = page.read_text()
    assert text.count("<img ") == 7 and text.count('<dt title="similarity">') == 7 and "<script>document" not in text
    assert "duplicate of 0/f" in text and "7 images nearest to “&lt;script&gt;" in text
    with opened(page) as tab:
        tab.look(800)
        assert "nearest to" in tab.evaluate("document.title")
        assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 800
    assert "is there already" in said(2, "search", out, TEXT, "--html", page)[1]
    said(0, "search", out, TEXT, "--html", page, "--overwrite", "--k", 2)
    assert page.read_text().count("<img ") == 2


def test_what_embed_and_save_embeddings_wrote_and_what_others_did_is_looked_through(
    client: Client,
    rows: Any,
    clip: str,  # noqa: F811
    tmp_path: Path,
    said: Any,  # noqa: F811
) -> None:
    usable = rows[rows["error"].isna()]
    first = expected(rows, clip, 3)
    ic.write_parquet(dd.from_pandas(usable, npartitions=2), tmp_path / "made.parquet")
    ic.save_embeddings(usable, tmp_path / "saved", n_clusters=2)
    pq.write_table(
        pa.table({"name": usable["image_id"].to_numpy(object), "vector": list(ic.to_matrix(usable["embedding"]))}),
        tmp_path / "others.parquet",
    )

    def ids(*command: Any) -> list[str]:
        return [
            hit["image_id"] for hit in json.loads(said(0, "search", *command, TEXT, "--k", 3, "--json")[0])["found"]
        ]

    ic.save_embeddings(usable.rename(columns={"image_id": "name"}), tmp_path / "named", id_field="name")
    assert ids(tmp_path / "made.parquet") == ids(tmp_path / "saved") == first
    assert ids(tmp_path / "named", "--id-field", "name") == first
    others = [tmp_path / "others.parquet", "--id-field", "name", "--embedding-field", "vector"]
    assert ids(*others, "--model", clip) == first
    assert "does not say which model made its embeddings: name it, --model" in said(2, "search", *others, TEXT)[1]
    for place in (tmp_path / "saved", tmp_path / "others.parquet"):
        page = ["--html", tmp_path / "page.html", "--model", clip]
        fields = ["--id-field", "name"] if place.suffix else []
        assert "does not say where its images lie, and --html" in said(2, "search", place, TEXT, *fields, *page)[1]
        assert "does not say which images are kept" in said(2, "search", place, TEXT, *fields, "--kept")[1]
    said(0, "search", tmp_path / "made.parquet", TEXT, "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<img ") == 7


def test_what_cannot_be_looked_through_or_for_is_said_in_a_sentence(
    out: Path,
    shards: Path,
    clip: str,  # noqa: F811
    siglip: str,  # noqa: F811
    tmp_path: Path,
    said: Any,  # noqa: F811
) -> None:
    with pytest.raises(SystemExit, match="2"):
        said(2, "search", out)
    assert "as TEXT or as --image FILE, not as both" in said(2, "search", out, TEXT, "--image", "x.jpg")[1]
    assert "--k 0 must be" in said(2, "search", out, TEXT, "--k", 0)[1]
    mixed = said(2, "search", out, TEXT, "--model", siglip)[1]
    assert "the search mixes the vectors of" in mixed and "which cannot be compared" in mixed
    assert "'efficientnet-lite0' reads no text" in said(2, "search", out, TEXT, "--model", "efficientnet-lite0")[1]
    assert "nowhere" in said(2, "search", tmp_path / "nowhere", TEXT)[1]
    assert str(shards) in said(2, "search", shards, TEXT)[1]
    shutil.copytree(out, tmp_path / "begun")
    (tmp_path / "begun" / "manifest.json").unlink()
    assert "holds a run that has not finished" in said(2, "search", tmp_path / "begun", TEXT)[1]
    damaged = tmp_path / "damaged"
    shutil.copytree(out, damaged)
    part = next((damaged / "images.parquet").iterdir())
    content = bytearray(part.read_bytes())
    content[100:1000] = bytes(900)
    part.write_bytes(content)
    said(1, "search", damaged, TEXT)
    part.unlink()
    assert "is missing: give the run's imgcurate run command again" in said(2, "search", damaged, TEXT)[1]
