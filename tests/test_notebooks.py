"""The notebooks run from top to bottom, show pictures, and find what they say they find."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
#: Of each notebook what its outputs say, those that are kept and those that are made here, on whatever machine.
SAID = {
    "quickstart": ["29 of 29 planted copies were found", "17 images in the curated shards", "All 17 images"],
    "choose_a_threshold": [
        r"cover +\d+ +0\b",
        "one cluster +1.0",
        r"(\d+) training images are too close to 6 of 6 benchmark images, \1 of them rightly",
    ],
    "from_nemo_curator": [
        r"removed there: \[0, 1, 2, 4\]  removed here: \[0, 1, 2, 4\]  equal: True",
        "eps=0.2 .* the same ones: True",
        "the defaults: 29 of 29 planted copies were found",
    ],
    "rapids": ["this notebook runs on (pandas|cudf)", "29 of 29 planted copies were found"],
    "your_own_encoder_and_scores": [
        "cannot be compared; embed all images with one encoder",
        "content +0.9",
        "26 of 102 tiles",
    ],
}
#: They are kept in git, and opened in browsers.
MOST_BYTES = 1_500_000


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def check(notebook: Any, name: str) -> None:
    """See that a notebook that was executed says what it should, shows pictures, and warns of nothing."""
    outputs = outputs_of(notebook)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    data = [output.get("data", {}) for output in outputs]
    printed = "".join(output.get("text", "") for output in outputs)
    text = "\n".join([printed, *(shown.get("text/plain", "") for shown in data)])
    assert [said for said in SAID[name] if not re.search(said, text)] == []
    assert "same ones: False" not in text
    assert "data:image/" in "".join(shown.get("text/html", "") + shown.get("image/svg+xml", "") for shown in data)


@pytest.mark.parametrize("name", SAID)
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    check(notebook, name)


@pytest.mark.parametrize("name", SAID)
def test_a_notebook_is_kept_with_its_outputs(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    check(notebook, name)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "/tmp/" not in path.read_text()


@pytest.mark.parametrize("name", SAID)
def test_a_notebook_ends_with_what_is_next_and_its_links_lead_somewhere(name: str) -> None:
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    text = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert cells[-1].source.startswith("**Next**")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (FOLDER / link).is_file()] == []


def test_no_notebook_is_left_out() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(SAID)
