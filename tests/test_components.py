"""Graphs in parts: components as SciPy finds them, over any split into files, and nothing lost on the way to a part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imgcurate.dedup.graph import build, components
from imgcurate.dedup.graph.found import Found, concatenate, counts, read_found, write_found
from imgcurate.dedup.semantic.clusters.files import Bucket, lay_out
from imgcurate.dedup.semantic.store import RowVectors, Stored, VectorStore
from imgcurate.dedup.work.mapped import Folder, map_matrix, map_table, write_table

N_ROWS = 60
Pair = tuple[int, int]
pairs = st.lists(st.tuples(st.integers(0, N_ROWS - 1), st.integers(0, N_ROWS - 1)), max_size=40)


def found_of(pairs: list[Pair], copies: list[Pair] = ()) -> Found:  # type: ignore[assignment]
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    copy, original = np.array(copies, dtype=np.int64).reshape(-1, 2).T
    similarity = (1 - (left * N_ROWS + right) / 10_000).astype(np.float32)
    return Found(left, right, similarity, copy, original)


def written(folder: str, found: list[Found]) -> list[str]:
    paths = [f"{folder}/{number}.npz" for number in range(len(found))]
    assert [write_found(part, path, False) for part, path in zip(found, paths, strict=True)] == list(map(counts, paths))
    return paths


def roots(path: str, n_rows: int = N_ROWS) -> np.ndarray:
    return components._root(np.fromfile(path, dtype=np.int64), np.arange(n_rows))


@given(files=st.lists(st.tuples(pairs, pairs), max_size=4))
@example(files=[([(0, 1)], []), ([(2, 3)], []), ([], [(1, 2)]), ([(59, 0)], [])])
@example(files=[([], [])])
def test_components_are_those_of_scipy_whatever_file_a_pair_lies_in(files: list[tuple[list[Pair], list[Pair]]]) -> None:
    with TemporaryDirectory() as folder:
        found = written(folder, [found_of(*file) for file in files])
        components.components(found, N_ROWS, f"{folder}/graph/forest")
        edges = np.array([pair for file in files for kind in file for pair in kind], dtype=np.int64).reshape(-1, 2)
        graph = coo_array((np.ones(len(edges)), edges.T), shape=(N_ROWS, N_ROWS))
        _, component = connected_components(graph, directed=False)
        first = np.array([np.flatnonzero(component == number)[0] for number in component])
        assert roots(f"{folder}/graph/forest").tolist() == first.tolist()


def test_a_chain_over_many_files_is_one_component(tmp_path: Path) -> None:
    n = 3000
    links = np.random.default_rng(0).permutation(n - 1)
    files = [found_of(list(zip(part.tolist(), (part + 1).tolist(), strict=True))) for part in np.array_split(links, 20)]
    components.components(written(str(tmp_path), files), n, f"{tmp_path}/forest")
    assert not roots(f"{tmp_path}/forest", n).any()


@given(files=st.lists(st.tuples(pairs, pairs), min_size=1, max_size=4), n_parts=st.integers(1, 5))
def test_every_pair_and_copy_is_in_one_part_with_its_whole_component(
    files: list[tuple[list[Pair], list[Pair]]], n_parts: int
) -> None:
    with TemporaryDirectory() as folder:
        found = [found_of(*file) for file in files]
        paths = written(folder, found)
        forest, work = f"{folder}/graph/forest", Folder(folder, durable=False)
        components.components(paths, N_ROWS, forest)
        names = [f"{number:05d}" for number in range(len(paths))]
        sizes = [
            components.route(path, forest, N_ROWS, n_parts, work.file("graph", name))
            for path, name in zip(paths, names, strict=True)
        ]
        parts = [components.gather(work, names, number) for number in range(n_parts)]
        assert [len(part.left) + len(part.copy) for part in parts] == np.sum(sizes, axis=0).tolist()

        def rows_of(parts: list[Found]) -> list[tuple[float, ...]]:
            every = concatenate(parts)
            pairs = zip(every.left.tolist(), every.right.tolist(), every.similarity.tolist(), strict=True)
            return sorted([*pairs, *zip(every.copy.tolist(), every.original.tolist(), strict=True)])

        assert rows_of(parts) == rows_of(found)
        root = roots(forest)
        part_of: dict[int, int] = {}
        for number, part in enumerate(parts):
            for rows in (part.left, part.right, part.copy, part.original):
                assert all(part_of.setdefault(at, number) == number for at in root[rows].tolist())


def test_parts_share_the_pairs_evenly(tmp_path: Path) -> None:
    pairs = [(2 * number, 2 * number + 1) for number in range(4000)]
    paths = written(str(tmp_path), [found_of(pairs)])
    components.components(paths, 8000, f"{tmp_path}/forest")
    sizes = components.route(paths[0], f"{tmp_path}/forest", 8000, 8, f"{tmp_path}/0")
    assert sizes.sum() == 4000 and sizes.min() > 400 and sizes.max() < 600


def test_what_fits_one_part_is_counted_with_its_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_PAIRS_OF_A_PART", 10)
    assert build.fits_one_part(np.array([[4, 1], [3, 2]])) and not build.fits_one_part(np.array([[4, 1], [3, 3]]))
    assert build.fits_one_part(np.zeros((0, 2), dtype=np.int64))


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
def test_a_disk_that_is_too_small_for_the_forest_is_said_and_kills_nobody(tmp_path: Path) -> None:
    n, disk = 200_000, tmp_path / "disk"
    (path,) = written(str(tmp_path), [found_of([(0, n - 1)])])
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        call = f"from imgcurate.dedup.graph.components import components; components([{path!r}], {n}, '{disk}/graph/forest')"
        # In a process of its own, because one that writes through a map to a full disk is killed.
        run = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"OSError: [Errno 28] No space left on device: '{disk}/graph/forest'"


@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=60),
    threads=st.integers(1, 64),
    dimension=st.integers(1, 4096),
)
def test_buckets_hold_every_cluster_once_and_none_is_larger_than_its_memory(
    sizes: list[int], threads: int, dimension: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imgcurate.dedup.semantic.clusters.files._BUCKET_BYTES", 2 * dimension * 1000)
        patch.setattr("imgcurate.dedup.semantic.clusters.files._TILE_BYTES", 2 * dimension * 300)
        buckets = lay_out(np.array(sizes), threads, dimension)
    inside = [cluster for bucket in buckets for cluster in range(bucket.low, bucket.high)]
    assert inside == sorted(set(inside)) and {at for at, size in enumerate(sizes) if size} <= set(inside)
    for low, high, tiles in buckets:
        rows = sum(sizes[low:high])
        assert rows <= 1000 if tiles == 1 else (high == low + 1 and tiles == -(-rows // 300))


def test_a_cluster_is_alone_in_its_tiles() -> None:
    most = (96 << 20) // (2 * 512)
    assert lay_out(np.array([10, most + 1, 10]), 1, 512) == [Bucket(0, 1, 1), Bucket(1, 2, 4), Bucket(2, 3, 1)]


@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=5), wanted=st.lists(st.integers(0, 10**6), max_size=30),
)  # fmt: skip
def test_vectors_are_taken_by_number_from_whichever_file_holds_them(counts: list[int], wanted: list[int]) -> None:
    matrix = np.arange(sum(counts) * 3, dtype=np.float32).reshape(-1, 3)
    rows = np.array([at % len(matrix) for at in wanted] if len(matrix) else [], dtype=np.int64)
    with TemporaryDirectory() as folder:
        stored, start = [], 0
        for number, count in enumerate(counts):
            matrix[start : start + count].tofile(f"{folder}/{number}.f32")
            stored.append(Stored(f"{folder}/{number}", count, count, 3, frozenset(), ""))
            start += count
        store = VectorStore(stored)
        assert np.array_equal(store.take(rows), matrix[rows])
        some = RowVectors(store, rows)
        assert some.shape == (len(rows), 3) and np.array_equal(some.only(slice(1, 9))[::2], matrix[rows[1:9][::2]])


def test_a_table_and_a_matrix_of_nothing_are_mapped(tmp_path: Path) -> None:
    nothing = concatenate([])
    write_found(nothing, str(tmp_path / "nothing.npz"), False)
    assert all(len(column) == 0 for column in read_found(str(tmp_path / "nothing.npz")))
    (tmp_path / "nothing.f32").touch()
    assert map_matrix(str(tmp_path / "nothing.f32"), 5, "float32").shape == (0, 5)
    write_table(pa.table({"row": pa.array([], pa.int64())}), str(tmp_path / "nothing.arrow"), False)
    table = map_table(str(tmp_path / "nothing.arrow"))
    assert table.column_names == ["row"] and len(table) == 0


def test_a_folder_keeps_what_has_the_keys_and_what_is_not_its_own(tmp_path: Path) -> None:
    folder, (old, new) = Folder(str(tmp_path), durable=True), ("0" * 32, "a" * 32)
    there = [
        f"{old}.f32",
        f"{old}.arrow",
        f"{new}.arrow",
        f"{new}-all.arrow",
        ".unfinished-0123456789ab",
        "notes.txt",
        "2019.csv",
    ]
    folder.names("rows")
    for name in there:
        (tmp_path / "rows" / name).touch()
    folder.keep("rows", [new])
    assert folder.names("rows") == {f"{new}.arrow", "notes.txt", "2019.csv"}
    folder.keep("rows", [f"{new}-all"])
    assert folder.names("rows") == {"notes.txt", "2019.csv"}
