"""Saved results that were tampered with are refused by the file's name: nothing is removed, or left, by what cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import imgcurate as ic
from imgcurate import identity, parts, schema, vectors


@pytest.fixture(autouse=True, scope="module")
def in_process() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def frame(matrix: np.ndarray, prefix: str = "") -> Any:
    part = schema.table({"image_id": [f"{prefix}{number}" for number in range(len(matrix))]})
    return dd.from_pandas(part.assign(embedding=vectors.to_column(matrix, part)), npartitions=1)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result with copies, pairs, and images of a corpus."""
    matrix = np.random.default_rng(0).standard_normal((20, 8), dtype=np.float32)
    new = np.concatenate([matrix, matrix[:3], matrix[:5] * 2 + 0.01])
    found = ic.semantic_duplicates(frame(new), against=frame(matrix[10:], "old"), eps=0.05)
    folder = tmp_path_factory.mktemp("saved") / "found"
    found.save(folder)
    again = ic.Duplicates.load(folder)
    assert again.pairs.compute().equals(found.pairs.compute()) and len(again.pairs) >= 13
    assert again.edges.compute().equals(found.edges.compute())
    return folder


@pytest.fixture
def saved(found: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(found, tmp_path / "found")


def _table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        pq.write_table(change(pq.read_table(path)), path)

    return edit


def _column(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    def edit(table: pa.Table) -> pa.Table:
        return table.set_column(
            table.column_names.index(name), name, pa.array(change(table[name].to_numpy(zero_copy_only=False)))
        )

    return _table(edit)


def _known(**values: Any) -> Callable[[Path], None]:
    def edit(table: pa.Table) -> pa.Table:
        known = json.loads(table.schema.metadata[b"imgcurate"]) | values
        return table.replace_schema_metadata({"imgcurate": json.dumps(known)})

    return _table(edit)


LIES = {
    "format": ("nodes", _table(lambda table: table.replace_schema_metadata({"imgcurate": b"{"}))),
    "deep": ("nodes", _table(lambda table: table.replace_schema_metadata({"imgcurate": b"[" * 100_000}))),
    "n_fixed": ("nodes", _known(n_fixed=10**9)),
    "list": ("nodes", _table(lambda table: table.replace_schema_metadata({"imgcurate": b"[]"}))),
    "eps": ("nodes", _known(eps="0.05")),
    "rule": ("nodes", _known(rule="none")),
    "keep": ("nodes", _known(keep=[["width"]])),
    "n_pairs": ("nodes", _known(n_pairs=10**9)),
    "n_compared": ("nodes", _known(n_compared=0)),
    "cut": ("nodes", lambda path: path.write_bytes(path.read_bytes()[:-100])),
    "gone": ("edges", Path.unlink),
    "images gone": ("images", Path.unlink),
    "text": ("edges", lambda path: path.write_bytes(b"no Parquet")),
    "leader loops": ("nodes", _column("leader", lambda leader: np.roll(leader, 1))),
    "leader out of range": ("nodes", _column("leader", lambda leader: leader + 10**6)),
    "leader of text": ("nodes", _column("leader", lambda leader: leader.astype(str))),
    "row out of range": ("nodes", _column("row", lambda row: row + 10**6)),
    "rows alike": ("nodes", _column("row", np.zeros_like)),
    "ids gone": ("nodes", _table(lambda table: table.drop_columns(["id"]))),
    "pair out of range": ("edges", _column("later", lambda later: later + 10**6)),
    "pair turned": ("edges", _column("earlier", lambda earlier: earlier + 30)),
    "similarity": ("edges", _column("similarity", lambda value: np.full(len(value), 7.0))),
    "not a number": ("edges", _column("similarity", lambda value: np.full(len(value), np.nan))),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_saved_duplicates_that_lie_are_refused_by_name(saved: Path, lie: str) -> None:
    name, edit = LIES[lie]
    path = next(saved.glob(f"{name}*.parquet"))
    edit(path)
    with pytest.raises(ValueError, match=r"/found(/nodes|/edges|/images| holds)"):
        len(ic.Duplicates.load(saved).pairs)


@pytest.mark.parametrize("text", [b"{", b"[1]", b"{}", b'{"name": 1}', b"[" * 100_000, b"\xff", b'{"name": [], "kind": "", "dimension": 1, "fingerprint": ""}'])  # fmt: skip
def test_encoders_that_are_none_are_not_known(tmp_path: Path, text: bytes) -> None:
    assert identity.from_metadata({b"imgcurate.encoder": text}) is None
    kind = pa.list_(pa.field("item", pa.float32(), metadata={b"imgcurate.encoder": text}))
    pq.write_table(pa.table({"image_id": ["a"], "embedding": pa.array([[1.0, 2.0]], kind)}), tmp_path / "a.parquet")
    assert len(ic.semantic_duplicates(ic.read_parquet(tmp_path / "a.parquet"), eps=0.1).pairs) == 0


def test_parts_that_lie_are_named(tmp_path: Path) -> None:
    checkpoint = ic.checkpoint(frame(np.eye(4, dtype=np.float32)), tmp_path / "work")
    (path,) = (tmp_path / "work").glob("*.parquet")
    whole = path.read_bytes()
    table = pq.read_table(path)
    for lie in (
        table.slice(1),
        table.drop_columns(["embedding"]),
        table.set_column(0, "image_id", pa.array([[1]] * 4)),
    ):
        pq.write_table(lie, path)
        with pytest.raises(parts.DamagedPart, match=path.name):
            checkpoint.compute()
    path.write_bytes(whole)
    assert len(checkpoint.compute()) == 4
    odd = tmp_path / "odd.parquet"
    pq.write_table(table.replace_schema_metadata({b"\xff": b"x"}), odd)
    with pytest.raises(parts.DamagedPart, match=r"odd\.parquet"):
        parts.read_metadata(str(odd))


def test_saved_embeddings_that_lie_are_named(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((20, 8), dtype=np.float32)
    ic.save_embeddings(frame(matrix), tmp_path / "corpus")
    (part,) = (tmp_path / "corpus").glob("part.*")
    summary, cluster = part / "centroids.parquet", next(part.glob("cluster.*"))
    contents = {path: path.read_bytes() for path in (summary, cluster)}

    def removed() -> int:
        return len(ic.semantic_duplicates(frame(matrix), against=tmp_path / "corpus", eps=0.05).pairs)

    assert removed() == 20
    for path, edit in (
        (summary, _column("rows", lambda rows: rows * 0 - 1)),
        (summary, _column("rows", lambda rows: rows + 1)),
        (summary, _column("rows", lambda rows: rows.astype(str))),
        (summary, _column("centroid", lambda vector: np.zeros(len(vector)))),
        (summary, lambda path: path.write_bytes(b"PAR1")),
        (cluster, _table(lambda table: table.drop_columns(["embedding"]))),
        (cluster, _table(lambda table: table.slice(1))),
        (cluster, lambda path: path.write_bytes(contents[cluster][:-50])),
        (cluster, Path.unlink),
    ):
        edit(path)
        with pytest.raises((ValueError, FileNotFoundError), match=r"part\.00000/.*\.parquet"):
            removed()
        path.write_bytes(contents[path])
    assert removed() == 20
