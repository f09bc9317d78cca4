"""semantic_duplicates through files: the same answers as through memory, work that goes on after any death, folders that go, and a disk that is counted."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import image_bytes, write_tar
from distributed import Client
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sessions import in_session, wait_for
from test_semantic import cosines_of, found_pairs, frame_of, pairs_of, planted

from imgcurate import connect
from imgcurate.dedup import Duplicates, remove, save_embeddings, semantic_duplicates
from imgcurate.dedup.dataframes import repeated
from imgcurate.dedup.graph import build
from imgcurate.dedup.semantic import frame as frames
from imgcurate.dedup.semantic import screen, steps
from imgcurate.dedup.semantic.clusters import files
from imgcurate.dedup.work import memory
from imgcurate.run.curate import curate
from imgcurate.schema import table
from imgcurate.vectors import to_column, unit_rows

#: So small that a frame of some hundred rows is several of everything.
SMALL = {
    (memory, "_SHARE_IN_MEMORY"): 0,
    (frames, "_GROUP_BYTES"): 4000,
    (frames, "_MEASURED"): 2,
}
TILES = {(files, "_BUCKET_BYTES"): 2000, (files, "_TILE_BYTES"): 700}
PARTS = {(build, "_PAIRS_OF_A_PART"): 7}
COUNTS = ("n_rows", "n_compared", "n_clusters", "n_pairs", "min_similarity")


def mean_colours(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


@contextmanager
def setting(*changes: dict[tuple[Any, str], Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for constants in changes:
            for (module, name), value in constants.items():
                patch.setattr(module, name, value)
        yield


@pytest.fixture
def through_files() -> Iterator[None]:
    with setting(SMALL):
        yield


@pytest.fixture
def in_process() -> Iterator[None]:
    """Tasks run in this process, one after the other, where constants can be set."""
    with dask.config.set(scheduler="sync"):
        yield


def answers(found: Duplicates, recall: bool = True) -> dict[str, Any]:
    """All that a person can ask of a result, in an order that does not depend on its parts."""

    def rows(frame: Any, *sort: str) -> list[tuple[Any, ...]]:
        (part,) = dask.compute(frame)
        for name in ("similarity", "centroid_distance"):
            if name in part:
                part[name] = part[name].astype("float64").round(5).astype(object).where(part[name].notna(), None)
        if "duplicates" in part:
            part["duplicates"] = part["duplicates"].map(lambda ids: tuple(sorted(ids)))
        return list(
            part.sort_values(list(sort)).itertuples(index=False, name=None)
            if sort
            else part.itertuples(index=False, name=None)
        )

    name = found.id_field
    near = [found.eps, found.eps / 2, 1 - found.min_similarity]
    known = {
        "counts": [getattr(found, count) for count in COUNTS],
        "pairs": rows(found.pairs, name),
        "removals": sorted(found.removals(near[1])[name].compute().tolist()),
        "rethreshold": rows(found.rethreshold(near[2]).pairs, name),
        "groups": rows(found.groups, name),
        "selected": sorted(found.selected[name].compute().tolist()),
        "edges": rows(found.edges, name, "other_id"),
        "assignments": rows(found.assignments),
        "least similar": rows(found.least_similar(3)),
        "sweep": found.sweep(near).to_numpy().tolist(),
    }
    return {**known, "recall": repr(found.recall(25))} if recall else known


def both_ways(frame: Any, *constants: dict[tuple[Any, str], Any], **options: Any) -> tuple[Duplicates, Duplicates]:
    """The results by memory and by files, which must be able to say the same."""
    by_memory = semantic_duplicates(frame, **options)
    with setting(SMALL, *constants):
        by_files = semantic_duplicates(frame, **options)
    assert "through files" not in repr(by_memory)
    assert ("through files" in repr(by_files)) == (by_files.n_compared > 0)
    return by_memory, by_files


def odd_frame(
    n: int, dimension: int, seed: int, partitions: int, whole_numbers: bool
) -> tuple[dd.DataFrame, pd.DataFrame]:
    """Rows of every kind, some partitions empty; and the comparable ones on the host, by id."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, dimension)).astype(np.float32)
    for at in range(1, n):
        kind, other = rng.integers(5), rng.integers(at)
        if kind == 0:
            rows[at] = rows[other]  # bit by bit
        elif kind < 3:
            rows[at] = rows[other] + np.float32(0.1) * rng.standard_normal(dimension).astype(np.float32)
    numbers = rng.permutation(10 * n)[:n]
    texts = table({"image_id": [f"{number:04}" for number in numbers]})
    part = pd.DataFrame({"image_id": numbers}) if whole_numbers else texts
    rows[rng.random(n) < 0.05] = 0
    rows[rng.random(n) < 0.05] = np.nan
    null = rng.random(n) < 0.05
    part["embedding"] = to_column(rows, part)
    part.loc[null, "embedding"] = None
    part["error"] = pd.array(np.where(rng.random(n) < 0.1, "decode: truncated", None), dtype=pd.ArrowDtype(pa.string()))
    part["score"] = pd.array(
        np.where(rng.random(n) < 0.3, None, rng.integers(4, size=n)), dtype=pd.ArrowDtype(pa.float32())
    )
    part["license"] = pd.array(
        np.where(rng.random(n) < 0.3, None, rng.choice(["a", "b"], n)), dtype=pd.ArrowDtype(pa.string())
    )
    unit, usable = unit_rows(rows) if n else (rows, np.zeros(0, bool))
    usable = usable & ~null & part["error"].isna().to_numpy()
    host = pd.DataFrame({"id": part["image_id"].to_numpy()[usable], "unit": list(unit[usable])}).sort_values("id")
    cuts = np.sort(rng.integers(n + 1, size=partitions - 1))
    pieces = [part.iloc[a:b] for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
    return dd.from_delayed([dask.delayed(piece) for piece in pieces], meta=part.iloc[:0]), host


def decided(host: pd.DataFrame, eps: float, rule: str) -> set[Any]:
    """What a rule removes, image by image, the lower id before the higher."""
    if host.empty:
        return set()
    near = cosines_of(np.stack(host["unit"].to_list())).astype(np.float32).astype(np.float64) >= 1 - eps
    root, kept = np.arange(len(host)), np.ones(len(host), dtype=bool)
    for at in range(len(host)):
        before = np.flatnonzero(near[at, :at])
        if rule == "cover":
            kept[at] = not kept[before].any()
        elif rule == "pointwise":
            kept[at] = not len(before)
        for other in before:
            root[root == max(root[at], root[other])] = min(root[at], root[other])
    if rule == "component":
        kept = root == np.arange(len(host))
    return set(host["id"].to_numpy()[~kept].tolist())


options = st.fixed_dictionaries(
    {
        "n_clusters": st.sampled_from([1, 2, 7]),
        "exact": st.booleans(),
        "rule": st.sampled_from(["cover", "pointwise", "component"]),
        "keep": st.sampled_from(
            ["id", "hard", "easy", "random", [("score", "max")], [("license", "min"), ("score", "min")]]
        ),
        "eps": st.sampled_from([1e-6, 0.02, 0.3]),
        "probes": st.sampled_from([1, 2]),
    }
)
PLAIN = {"n_clusters": 1, "exact": False, "rule": "cover", "keep": "id", "eps": 0.02, "probes": 2}


@settings(max_examples=25)
@given(
    n=st.integers(0, 90), dimension=st.sampled_from([1, 5, 16]), seed=st.integers(0, 10**6), partitions=st.integers(1, 7),
    whole_numbers=st.booleans(), tiles=st.booleans(), parts=st.booleans(), options=options,
)  # fmt: skip
@example(0, 5, 0, 3, False, True, True, PLAIN)
@example(1, 5, 1, 1, True, True, True, PLAIN)
@example(90, 16, 2, 7, False, True, True, {**PLAIN, "rule": "component", "n_clusters": 7, "exact": True})
@example(90, 16, 3, 5, True, True, False, {**PLAIN, "keep": [("score", "max")], "eps": 0.3})
def test_files_and_memory_give_the_same_answers_and_brute_force_gives_them_too(
    n: int, dimension: int, seed: int, partitions: int, whole_numbers: bool, tiles: bool, parts: bool, options: Any
) -> None:
    frame, host = odd_frame(n, dimension, seed, partitions, whole_numbers)
    with dask.config.set(scheduler="sync"):
        by_memory, by_files = both_ways(frame, TILES if tiles else {}, PARTS if parts else {}, **options)
        assert by_files.n_compared == len(host) and by_files.n_rows == n
        with setting(SMALL):
            assert answers(by_files) == answers(by_memory)
        everything = decided(host, options["eps"], options["rule"])
        everyone = options["n_clusters"] == 1 or options["exact"]
        if everyone and semantic_keep(options["keep"]):
            assert set(by_files.removals()["image_id"].compute()) == everything


def semantic_keep(keep: Any) -> bool:
    return isinstance(keep, str) and keep == "id"


@pytest.mark.parametrize("directions", [False, True], ids=["whole vectors", "leading directions"])
def test_a_cluster_larger_than_a_bucket_is_compared_tile_by_tile_and_loses_no_pair(
    in_process: None, through_files: None, monkeypatch: pytest.MonkeyPatch, directions: bool
) -> None:
    rng = np.random.default_rng(3)
    flat = rng.standard_normal((200, 6))[rng.integers(200, size=900)] @ rng.standard_normal((6, 128))
    vectors = unit_rows(flat + 0.1 * rng.standard_normal((900, 128)))[0]
    copies = [5, 77, 400, 401, 899]
    vectors[copies] = vectors[5]
    for name, rows in (("_BUCKET_BYTES", 300), ("_TILE_BYTES", 200)):
        monkeypatch.setattr(files, name, rows * 2 * 128)
    if directions:
        monkeypatch.setitem(screen._PLAN_COST, "cpu", 1)
    monkeypatch.setattr(screen, "_COSTS", {name: (head, 1) for name, (head, _) in screen._COSTS.items()})
    monkeypatch.setattr(screen, "_STEP", 4)
    seen = []
    plan = screen.plan
    monkeypatch.setattr(screen, "plan", lambda *given: seen.append(plan(*given)) or seen[-1])
    found = semantic_duplicates(frame_of(vectors, npartitions=6), eps=0.01, n_clusters=1, min_similarity=0.98)
    truth = {pair for pair in pairs_of(vectors, 0.98) if not set(pair) & set(copies)}
    of_copies = {pair for pair in pairs_of(vectors, 0.98) if set(pair) & set(copies)}
    assert len(seen) == 1 and (seen[0].basis is not None) == directions
    mine = found_pairs(found, 0.98)
    assert {pair for pair in mine if not set(pair) & set(copies)} == truth and len(truth) > 500
    # Of the copies one has all pairs, the others one each, with that one.
    leader = max(copies, key=lambda at: sum(at in pair for pair in mine))
    expected = {tuple(sorted((leader, other))) for pair in of_copies for other in set(pair) - set(copies)}
    assert {pair for pair in mine if set(pair) & set(copies)} == expected | {
        (min(leader, at), max(leader, at)) for at in copies if at != leader
    }


def test_a_graph_in_parts_is_saved_and_loaded_as_one(in_process: None, tmp_path: Path) -> None:
    frame = frame_of(planted(600), npartitions=5)
    by_memory, by_files = both_ways(frame, {(build, "_PAIRS_OF_A_PART"): 30}, eps=0.05, rule="component")
    assert len(by_files._graph.parts) > 3
    by_files.save(tmp_path / "found")
    expected = answers(by_memory, recall=False)
    for found in (by_files, Duplicates.load(tmp_path / "found")):
        assert answers(found, recall=False) == expected


def there(work: Path, *tables: str) -> dict[str, tuple[int, int]]:
    """The whole files of some tables, and what tells one that was written again."""
    paths = [path for name in tables for path in (work / name).glob("[!.]*")]
    return {f"{path.parent.name}/{path.name}": (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def test_other_options_on_the_same_work_take_the_rows_that_are_there(
    in_process: None, through_files: None, tmp_path: Path
) -> None:
    frame = frame_of(planted(300), npartitions=6)
    with setting({(build, "_PAIRS_OF_A_PART"): 30}):
        first = semantic_duplicates(frame, work=tmp_path / "work", eps=0.05, n_clusters=4)
        answers(first, recall=False)
        rows, found_blocks = there(tmp_path / "work", "rows"), len(there(tmp_path / "work", "assigned"))
        assert len({name.partition(".")[0] for name in rows}) == 6
        for options in (
            {"eps": 0.02, "n_clusters": 4},
            {"eps": 0.05, "n_clusters": 9},
            {"eps": 0.05, "n_clusters": 4, "keep": "id", "exact": True},
            {"eps": 0.4, "n_clusters": 4, "exact": True},
            {"eps": 0.05, "n_clusters": 1, "rule": "component"},
            {"eps": 0.4, "n_clusters": 4, "exact": True},
        ):
            before = there(tmp_path / "work", "assigned", "pairs", "centroids")
            found = semantic_duplicates(frame, work=tmp_path / "work", **options)
            with setting({(memory, "_SHARE_IN_MEMORY"): 1}):
                expected = semantic_duplicates(frame, **options)
            assert answers(found, recall=False) == answers(expected, recall=False)
            assert there(tmp_path / "work", "rows") == rows
            after = there(tmp_path / "work", "assigned", "pairs", "centroids")
            assert not there(tmp_path / "work", "placed", "tiles")
            # What other options made went, and is no more than one call leaves.
            assert len(there(tmp_path / "work", "centroids")) == 1
            assert len(there(tmp_path / "work", "assigned")) == found_blocks
            assert not {name for name in set(before) & set(after) if not name.startswith("centroids")}


def test_the_same_call_again_computes_nothing(in_process: None, through_files: None, tmp_path: Path) -> None:
    frame = frame_of(planted(), npartitions=5)
    call = {"eps": 0.05, "n_clusters": 3, "work": tmp_path}
    first = answers(semantic_duplicates(frame, **call))
    before = there(tmp_path, "rows", "assigned", "pairs", "centroids")
    assert answers(semantic_duplicates(frame, **call)) == first
    assert there(tmp_path, "rows", "assigned", "pairs", "centroids") == before


def test_of_a_changed_frame_only_the_part_that_changed_is_written_again(
    in_process: None, through_files: None, tmp_path: Path
) -> None:
    def part_of(number: int, seed: int) -> pd.DataFrame:
        part = table({"image_id": [f"{number}-{at}" for at in range(100)]})
        return part.assign(embedding=to_column(planted(100, seed=seed), part))

    def frame_with(seeds: list[int]) -> dd.DataFrame:
        return dd.from_map(part_of, range(6), seeds, meta=part_of(0, 0).iloc[:0])

    work = tmp_path / "work"
    semantic_duplicates(frame_with([0, 1, 2, 3, 4, 5]), eps=0.05, n_clusters=4, work=work)
    before = there(work, "rows")
    frame = frame_with([0, 1, 2, 1, 4, 5])
    found = semantic_duplicates(frame, eps=0.05, n_clusters=4, work=work)
    after = there(work, "rows")
    same = {name for name in before if after.get(name) == before[name]}
    assert len(after) == len(before) == 6 * 3 and len(same) == 5 * 3
    with setting({(memory, "_SHARE_IN_MEMORY"): 1}):
        assert answers(found) == answers(semantic_duplicates(frame, eps=0.05, n_clusters=4))


def test_two_frames_that_share_a_work_folder_one_after_the_other_are_not_mixed(
    in_process: None, through_files: None, tmp_path: Path
) -> None:
    for constants in ({}, PARTS):
        for seed in (1, 2, 1):
            frame = frame_of(planted(200, seed=seed), npartitions=4)
            with setting(constants):
                found = answers(semantic_duplicates(frame, eps=0.05, work=tmp_path), recall=False)
            with setting({(memory, "_SHARE_IN_MEMORY"): 1}):
                assert found == answers(semantic_duplicates(frame, eps=0.05), recall=False)


def test_an_earlier_result_never_answers_for_a_later_one_in_the_same_folder(
    in_process: None, through_files: None, tmp_path: Path
) -> None:
    frame = frame_of(planted(), npartitions=4)
    with setting(PARTS):
        first = semantic_duplicates(frame, eps=0.05, keep="id", work=tmp_path)
        pairs = first.pairs
        expected = set(pairs.compute()["image_id"])
        later = set(semantic_duplicates(frame, eps=0.05, keep="hard", work=tmp_path).pairs.compute()["image_id"])
        assert later != expected
        with suppress(FileNotFoundError):  # its files went with the options
            assert set(pairs.compute()["image_id"]) == expected


def test_files_of_the_users_in_the_work_folder_stay(in_process: None, through_files: None, tmp_path: Path) -> None:
    mine = [tmp_path / name for name in ("notes.txt", "pairs/notes.txt", "rows/2019.csv", "placed/a.arrow")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for eps in (0.05, 0.02):
        semantic_duplicates(frame_of(planted()), eps=eps, work=tmp_path)
    assert [path.read_text() for path in mine] == ["mine"] * 4


def test_tiles_that_another_machine_shortened_otherwise_are_made_again(
    in_process: None, through_files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = frame_of(planted(), npartitions=4)
    compare, left = files.compare_tiles, iter(range(3))

    def some_tiles(*given: Any) -> Any:
        if next(left, None) is None:
            raise RuntimeError("stopped")
        return compare(*given)

    with setting({(files, "_BUCKET_BYTES"): 200 * 64, (files, "_TILE_BYTES"): 101 * 64}):
        monkeypatch.setattr(screen, "choose_dtype", lambda *given: "bfloat16")
        monkeypatch.setattr(files, "compare_tiles", some_tiles)
        with pytest.raises(RuntimeError, match="stopped"):
            semantic_duplicates(frame, eps=0.05, n_clusters=1, work=tmp_path)
        assert there(tmp_path, "tiles") and there(tmp_path, "pairs")
        monkeypatch.setattr(files, "compare_tiles", compare)
        monkeypatch.setattr(screen, "choose_dtype", lambda *given: "float32")
        found = semantic_duplicates(frame, eps=0.05, n_clusters=1, work=tmp_path)
    with setting({(memory, "_SHARE_IN_MEMORY"): 1}):
        assert answers(found) == answers(semantic_duplicates(frame, eps=0.05, n_clusters=1))


# A call in a process of its own.

LARGER = {
    (memory, "_SHARE_IN_MEMORY"): 0,
    (frames, "_GROUP_BYTES"): 32_000,
    (files, "_BUCKET_BYTES"): 30_000,
    (files, "_TILE_BYTES"): 20_000,
    (steps, "threads"): lambda: 2,
}


def larger_frame() -> dd.DataFrame:
    return frame_of(planted(5_000, 64, seed=4), npartitions=24)


def larger_call(work: Path) -> Duplicates:
    with setting(LARGER):
        return semantic_duplicates(larger_frame(), eps=0.05, n_clusters=30, work=work)


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    with dask.config.set(scheduler="sync"):
        return answers(semantic_duplicates(larger_frame(), eps=0.05, n_clusters=30))


@contextmanager
def started(work: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`larger_call` in a session of its own, with a cluster of its own."""
    call = subprocess.Popen(
        [sys.executable, __file__, str(work)],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield call
    finally:
        kill_session(call.pid)
        call.wait()


def kill_session(leader: int) -> None:
    for process in in_session(leader):
        process.kill()


def test_a_call_goes_on_after_the_deaths_of_a_worker_and_of_all_and_writes_nothing_again(
    in_process: None, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    work, before = tmp_path / "work", {}

    def whole_files(*tables: str) -> dict[str, tuple[int, int]]:
        """Of a block that is placed, the clusters of its rows are written last."""
        assigned = {name.removeprefix("assigned/") for name in there(work, "assigned")}
        return {
            name: file
            for name, file in there(work, *tables).items()
            if name.endswith((".arrow", ".npz"))
            and (not name.startswith("placed/") or name.removeprefix("placed/") in assigned)
        }

    for all_at in ("placed", "pairs"):
        with started(work) as call:
            if all_at == "placed":
                wait_for(lambda: len(whole_files("rows")) >= 8)
                workers = [process for process in in_session(call.pid) if "spawn_main" in " ".join(process.cmdline())]
                workers[0].kill()
            wait_for(lambda stage=all_at: len(whole_files(stage)) >= 12)
            os.killpg(call.pid, signal.SIGKILL)
            wait_for(lambda call=call: not in_session(call.pid))
        now = whole_files("rows", "placed", "pairs")
        assert {name: now.get(name) for name in before} == before
        assert len([name for name in now if name.startswith(all_at)]) >= 12
        before = now
    found = larger_call(work)
    before = {name: file for name, file in before.items() if not name.startswith("placed")}
    after = whole_files("rows", "pairs")
    assert {name: after.get(name) for name in before} == before and len(after) > len(before)
    assert not list(work.rglob(".unfinished-*")) and not there(work, "placed", "tiles")
    assert answers(found) == undisturbed


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        ("{0}/file", "work='{0}/file' is a file; name a folder"),
        ("{0}/file/sub", "work='{0}/file/sub' cannot be made (Not a directory); name a folder that may be written"),
        ("s3://bucket/work", "work='s3://bucket/work' must be a folder on a disk that every worker sees"),
        ("memory://work", "work='memory://work' must be a folder on a disk that every worker sees"),
    ],
)
def test_a_place_that_is_no_folder_on_a_disk_is_refused(tmp_path: Path, work: str, sentence: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError) as refusal:
        semantic_duplicates(frame_of(planted()), work=work.format(tmp_path))
    assert str(refusal.value).startswith(sentence.format(tmp_path))


def test_workers_elsewhere_need_a_folder_that_they_see(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As of a scheduler that somebody else started, which this client knows by its address."""
    monkeypatch.setattr(memory, "_SHARE_IN_MEMORY", 0)
    monkeypatch.setattr(memory, "_SHARE_AT_MOST", 0)
    monkeypatch.setattr(client, "cluster", None)
    frame = frame_of(planted())
    with pytest.raises(ValueError, match=r"name a folder for them that every worker sees \(work=\)"):
        semantic_duplicates(frame, eps=0.05)
    assert "through files" in repr(semantic_duplicates(frame, eps=0.05, work=tmp_path))


def test_the_disk_takes_at_most_two_and_a_half_times_the_vectors(
    in_process: None, through_files: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    n, dimension = 20_000, 256
    centers = rng.standard_normal((300, dimension))[rng.integers(300, size=n)]
    frame = frame_of(centers + 0.8 * rng.standard_normal((n, dimension)), npartitions=8)
    monkeypatch.setattr(frames, "_GROUP_BYTES", 4 << 20)
    exchange, taken = steps._exchange, []

    def measured(*given: Any) -> Any:
        made = exchange(*given)
        taken.append(sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))
        return made

    monkeypatch.setattr(steps, "_exchange", measured)
    semantic_duplicates(frame, eps=0.05, n_clusters=40, work=tmp_path)
    assert 1.5 < taken[0] / (n * dimension * 4) <= 2.5


@pytest.mark.parametrize("at_once", [1 << 23, 37])
@pytest.mark.parametrize("share", [0, 1], ids=["files", "memory"])
def test_ids_that_repeat_are_named_whichever_range_their_hashes_lie_in_and_whether_they_are_compared(
    in_process: None, monkeypatch: pytest.MonkeyPatch, at_once: int, share: int
) -> None:
    monkeypatch.setattr(repeated, "_HASHES_AT_ONCE", at_once)
    monkeypatch.setattr(memory, "_SHARE_IN_MEMORY", share)
    ids = [f"{number:03}" for number in range(400)]
    semantic_duplicates(frame_of(planted(), ids, 5))
    twice = [(3, 390), (8, 9), (200, 17), (250, 100)]
    for one, other in twice:
        ids[one] = ids[other]
    error = pd.array([None] * 400, dtype=pd.ArrowDtype(pa.string()))
    error[[3, 17, 250, 100]] = "read: gone"
    with pytest.raises(
        ValueError, match=r"^4 ids of column 'image_id' name more than one row: '009', '017', '100', '390'; give"
    ):
        semantic_duplicates(frame_of(planted(), ids, 5, error=error))


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """Where temporary folders are made."""
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        yield tmp_path


def is_empty(folder: Path) -> bool:
    gc.collect()
    return not list(folder.glob("imgcurate-*"))


@pytest.mark.parametrize("parts", [{}, {(build, "_PAIRS_OF_A_PART"): 20}], ids=["one part", "parts"])
def test_a_temporary_folder_stays_for_as_long_as_a_frame_reads_it_and_no_longer(
    client: Client, through_files: None, temporary: Path, parts: Any
) -> None:
    frame = frame_of(planted(), npartitions=5)
    with setting(parts):
        found = semantic_duplicates(frame, eps=0.05)
        expected = answers(found, recall=False)
        assert not is_empty(temporary)
        del found
        assert is_empty(temporary)
        for name in ("pairs", "selected") if parts else ("edges", "selected"):
            lazy = getattr(semantic_duplicates(frame, eps=0.05), name)
            lazy = lazy[lazy["image_id"] >= "img00100"][["image_id"]]  # which is made from it
            gc.collect()
            ids = [row[0] for row in expected[name]] if name != "selected" else expected[name]
            assert sorted(lazy["image_id"].compute()) == sorted(image for image in ids if image >= "img00100")
            assert not is_empty(temporary)
            del lazy
            assert is_empty(temporary)
        kept = remove(frame, semantic_duplicates(frame, eps=0.05))
        gc.collect()
        assert sorted(kept["image_id"].compute()) == expected["selected"]
        kept = remove(frame, semantic_duplicates(frame, eps=0.05).removals(0.02), missing="ignore")
        gc.collect()
        assert len(kept) == 400 - expected["sweep"][1][1]
        del kept
        assert is_empty(temporary)


def test_new_images_in_files_are_compared_with_a_corpus(client: Client, temporary: Path) -> None:
    old, new = planted(500, seed=6), planted(300, seed=7)
    new[:100] = unit_rows(old[:100] + 0.01 * np.random.default_rng(0).standard_normal((100, 32)))[0]
    new[100:110] = old[100:110]
    corpus = frame_of(old, [f"old{i:03}" for i in range(500)], 4)
    frame = frame_of(new, npartitions=5)
    call = {"eps": 0.05, "keep": "id"}  # whatever the centroids are, which a saved corpus brings
    expected = answers(semantic_duplicates(frame, against=corpus, **call), recall=False)
    with setting(SMALL):
        save_embeddings(corpus, temporary / "whole", n_clusters=1)
        save_embeddings(corpus, temporary / "clusters", n_clusters=9)
        found = semantic_duplicates(frame, against=corpus, **call)
        assert "through files" in repr(found)
        assert answers(found, recall=False) == expected
        named = semantic_duplicates(frame, against=corpus, work=temporary / "work", **call)
        assert answers(named, recall=False) == expected and there(temporary / "work/against", "rows")
        shutil.rmtree(temporary / "work")
        found = semantic_duplicates(frame, against=temporary / "whole", **call)
        assert "through files" in repr(found)
        assert sorted(found.removals()["image_id"].compute()) == [pair[0] for pair in expected["pairs"]]
        found = semantic_duplicates(frame, against=temporary / "clusters", **call).pairs.compute()
        twins = found.set_index("image_id")["duplicate_of"]
        assert all(twins[f"img{i:05}"].startswith("old") for i in range(110))
    del found
    assert is_empty(temporary)


def test_embeddings_of_a_frame_in_files_are_saved_as_those_of_one_in_memory(
    client: Client, tmp_path: Path, temporary: Path
) -> None:
    frame = frame_of(planted(), npartitions=5)
    save_embeddings(frame, tmp_path / "memory", n_clusters=6)
    with setting(SMALL):
        save_embeddings(frame, tmp_path / "files", n_clusters=6)
        save_embeddings(frame, tmp_path / "folder", n_clusters=6, work=tmp_path / "work")

    def saved(folder: str) -> dict[str, list[tuple[Any, ...]]]:
        parts = {path.name: pd.read_parquet(path) for path in (tmp_path / folder).rglob("*.parquet")}
        return {name: [tuple(map(str, row)) for row in part.itertuples(index=False)] for name, part in parts.items()}

    assert saved("files") == saved("folder") == saved("memory") and len(saved("files")) == 7
    assert there(tmp_path / "work", "rows")
    assert is_empty(temporary)


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_call_goes_on_when_there_is_room(
    client: Client, through_files: None, tmp_path: Path
) -> None:
    frame, call = frame_of(planted(2000), npartitions=8), {"eps": 0.05, "n_clusters": 5}
    rows: dict[str, tuple[int, int]] = {}
    with disk(tmp_path / "disk", "size=60k") as work:
        for full, more in (("rows", "400k"), ("(sample|assigned|placed)", "50m")):
            with pytest.raises(OSError, match="No space left on device") as refusal:
                semantic_duplicates(frame, work=work, **call)
            assert re.search(f"{work}/{full}/", str(refusal.value))
            now = {name: file for name, file in there(work, "rows").items() if name.endswith(".arrow")}
            assert {name: now.get(name) for name in rows} == rows
            rows = now
            subprocess.run(["mount", "-o", f"remount,size={more}", str(work)], check=True)
        found = semantic_duplicates(frame, work=work, **call)
        assert {name: there(work, "rows").get(name) for name in rows} == rows and len(rows) == 8
        with setting({(memory, "_SHARE_IN_MEMORY"): 1}):
            expected = semantic_duplicates(frame, **call)
        for each in ("pairs", "selected"):
            mine, theirs = (sorted(getattr(result, each)["image_id"].compute()) for result in (found, expected))
            assert mine == theirs


def test_a_folder_that_may_not_be_written_is_named(in_process: None, through_files: None, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=1m,ro") as work, pytest.raises(ValueError, match="Read-only") as refusal:
        semantic_duplicates(frame_of(planted()), work=work / "below")
    assert str(work) in str(refusal.value)


def test_a_run_through_files_of_its_folder_writes_what_one_through_memory_writes(
    client: Client, tmp_path: Path
) -> None:
    for shard in range(3):
        images = [(f"{i:02}.jpg", image_bytes(seed=(shard * 20 + i) % 45)) for i in range(20)]
        write_tar(tmp_path / "in" / f"{shard:05}.tar", images)
    written = []
    for number, share in enumerate((1 / 8, 0)):
        out = tmp_path / f"out{number}"
        with setting({(memory, "_SHARE_IN_MEMORY"): share}):
            curate(tmp_path / "in", out, model=mean_colours, dedup=("semantic",), eps=1e-5, keep="id", report=False)
        assert not (out / ".run/semantic").exists()
        files = [path for path in sorted(out.rglob("*")) if path.is_file() and ".run" not in path.parts]
        written.append(
            {str(path.relative_to(out)): path.read_bytes() for path in files if path.name != "manifest.json"}
        )
    assert written[0] == written[1] and len(written[0]) >= 3


if __name__ == "__main__":  # what `started` starts
    with connect(devices=[], workers=2):
        larger_call(Path(sys.argv[1]))
