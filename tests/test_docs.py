"""What the README and the pages of docs/ say is there: links, names, options, figures; and the tutorial runs."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from markdown_it import MarkdownIt
from markdown_it.token import Token

import imgcurate as ic
from imgcurate import cli

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def tokens(page: Path) -> Iterator[Token]:
    """Yield the tokens of a page, those within lines too."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        yield token
        yield from token.children or ()


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return [token.content for token in tokens(page) if token.type == "fence" and token.info == language]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub, and Sphinx, give a page's headings."""
    found, heading = set(), False
    for token in tokens(page):
        if token.type == "inline" and heading:
            text = "".join(part.content for part in token.children or () if part.type in ("text", "code_inline"))
            found.add(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
        heading = token.type == "heading_open"
    return found


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for token in tokens(page):
        link = str(token.attrs.get("href") or token.attrs.get("src") or "")
        if not link or re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_picture_is_shown_says_what_is_seen_is_small_and_can_be_made_anew(monkeypatch: Any) -> None:
    folder = ROOT / "docs" / "images"
    files = {path for path in folder.rglob("*") if path.suffix in (".png", ".webp", ".svg")}
    shown = set()
    for page in PAGES:
        for token in tokens(page):
            if token.type == "image" and not re.match(r"[a-z]+:", str(token.attrs["src"])):
                assert len(token.content) > 40, f"{page} does not say what {token.attrs['src']} shows"
                shown.add((page.parent / str(token.attrs["src"])).resolve())
    assert files <= shown
    assert all(path.stat().st_size < 200_000 for path in files) and sum(path.stat().st_size for path in files) < 1e6
    monkeypatch.syspath_prepend(folder)
    assert {path.stem for path in files if path.suffix != ".svg"} == set(importlib.import_module("make").PICTURES)


def calls(code: str) -> Iterator[tuple[str, ast.Call | None]]:
    """Yield what code uses of imgcurate and of what a search found, and the call where it is called."""
    tree = ast.parse(code)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("ic", "found"):
            yield f"{node.value.id}.{node.attr}", called.get(id(node))


def python(page: Path) -> Iterator[str]:
    """Yield the Python of a page: its blocks, and what stands in a line and is Python."""
    yield from blocks(page, "python")
    for token in tokens(page):
        if token.type == "code_inline" and re.match(r"(ic|found)\.|.*= (ic|found)\.", token.content):
            yield token.content


@every_page
def test_every_verb_that_is_shown_is_there_and_takes_what_it_is_given(page: Path) -> None:
    for code in python(page):
        for name, call in calls(code):
            of, _, attribute = name.partition(".")
            shown = getattr(ic if of == "ic" else ic.Duplicates, attribute, None)
            # What each result has of its own stands in the class's docstring.
            assert shown is not None or (of == "found" and attribute in str(ic.Duplicates.__doc__)), name
            if call is not None:
                this = [] if of == "ic" or attribute == "load" else [None]
                given = {keyword.arg: None for keyword in call.keywords if keyword.arg}
                positional = [
                    value for value in call.args if not (isinstance(value, ast.Constant) and value.value is ...)
                ]
                inspect.signature(shown).bind_partial(*this, *positional, **given)


@every_page
def test_every_command_that_is_shown_is_understood(page: Path) -> None:
    for block in blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ imgcurate "):
                cli._parser().parse_args(shlex.split(line, comments=True)[2:])


def test_the_tutorial_runs_and_what_comes_after_it(
    client: Client, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}

    def run(page: str, which: slice = slice(None)) -> None:
        for block in blocks(ROOT / page, "python")[which]:
            *statements, last = ast.parse(block).body
            if not isinstance(last, ast.Expr):
                statements.append(last)
            exec(compile(ast.Module(statements, []), page, "exec"), names)
            if isinstance(last, ast.Expr):  # Python and notebooks show what it is
                print(eval(compile(ast.Expression(last.value), page, "eval"), names))

    run("docs/tutorial.md")
    printed = capsys.readouterr().out
    for shown in blocks(ROOT / "docs" / "tutorial.md", "text"):
        assert shown in printed
    ic.write_files(names["good"], "my/photos")
    before = dict(names)
    run("README.md", slice(1))
    assert "<img" in Path("duplicates.html").read_text()
    Path("duplicates.html").unlink()
    names.update(before)
    names["frame"] = names["frame"].assign(aesthetic_score=names["frame"].sharpness / 10_000)
    run("docs/how-to/look.md")
    assert "<img" in Path("duplicates.html").read_text()
    run("docs/how-to/thresholds.md", slice(2))
    run("docs/how-to/embeddings.md", slice(1, 2))
    frame = names["frame"]
    names |= {
        "corpus": frame.partitions[:1],
        "new": frame.partitions[1:],
        "train": frame,
        "evaluation": frame.partitions[:1],
    }
    run("docs/how-to/embeddings.md", slice(3, None))
    assert len(names["kept"]) < len(names["new"])


def test_the_reference_has_every_public_name() -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^\.\. auto\w+:: (?:imgcurate\.)?(\w+)", text, re.MULTILINE))
    assert shown >= set(ic.__all__)


def test_the_page_of_the_command_line_has_every_command() -> None:
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    (commands,) = (
        action.choices for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    assert set(re.findall(r"^\| `imgcurate (\w+)", page, re.MULTILINE)) == set(commands)


def test_the_map_has_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [
        path for path in (ROOT / "imgcurate").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]
    assert not [room.name for room in rooms if f"`{room.name}" not in text and f"imgcurate/{room.name}" not in text]


def test_the_changelog_begins_with_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version


def test_the_figures_of_the_readme_are_those_of_the_results() -> None:
    def results(name: str) -> Any:
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())

    whole, embedding, removal = results("end_to_end"), results("embed")["models"], results("removal")["lists"][-1]
    join = results("dedup")["join"]["data"]["like CLIP"]["contestants"]

    def embedded(model: str, who: str) -> float:
        return embedding[model]["images_per_second"][who]["median"]

    rows = {
        "the whole job": [sorted(whole["images_per_second"][who]["total"])[1] for who in ("imgcurate", "plain")],
        "its largest process": [whole["peak_mib"][who]["all"] for who in ("imgcurate", "plain")],
        "embedding, ViT-B/32": [
            embedded("ViT-B/32", "imgcurate, 2 workers"),
            embedded("ViT-B/32", "sentence-transformers"),
        ],
        "embedding, ViT-L/14": [
            embedded("ViT-L/14", "imgcurate, 2 workers"),
            embedded("ViT-L/14", "sentence-transformers"),
        ],
        "all pairs": [
            join[who]["seconds"]["median"] for who in ("imgcurate", "NeMo Curator 1.4.0", "faiss IndexFlatIP")
        ],
        "1,000 rows": [removal["ms"][way] for way in ("remove", "isin")],
    }
    table = {line.strip("| ").partition(" |")[0]: line for line in (ROOT / "README.md").read_text().splitlines()}
    for title, expected in rows.items():
        (line,) = (line for name, line in table.items() if name.startswith(title))
        said = [
            (float(number.replace(",", "")), len(number.partition(".")[2]))
            for number in re.findall(
                r"(?<![\w.,])[\d,]+(?:\.\d+)?(?![\w.])", " ".join(line.split("|")[2:4]).replace("1.4.0", "")
            )
        ]
        assert [number for number, _ in said] == [
            round(value, places) for value, (_, places) in zip(expected, said, strict=True)
        ], line
