"""exact_duplicates and perceptual_duplicates by ranges of their fingerprints: in memory and through files they say what brute force says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import image_bytes, write_tar
from dask.callbacks import Callback
from distributed import Client
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

import imgcurate as ic
from imgcurate.dedup.content import exact, perceptual, prints
from imgcurate.dedup.graph import build
from imgcurate.dedup.work import memory

#: So small that a frame of some dozen rows is several of everything.
RANGES = {
    (exact, "_RANGE_ROWS"): 5,
    (perceptual, "_RANGE_ROWS"): 5,
    (exact, "_TASK_IMAGES"): 3,
    (perceptual, "_MOST_TASKS"): 10,
    (prints, "_MOST_CUT"): 2,
}
FILES = {(memory, "_SHARE_IN_MEMORY"): -1, (prints, "_MEASURED"): 2}
PARTS = {(build, "_PAIRS_OF_A_PART"): 3}
WAYS = {
    "memory": [],
    "memory, by ranges": [RANGES],
    "files": [FILES],
    "files, by ranges": [FILES, RANGES],
    "files, in parts": [FILES, RANGES, PARTS],
}


@contextmanager
def setting(*changes: dict[tuple[Any, str], Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="sync"):
        for constants in changes:
            for (module, name), value in constants.items():
                patch.setattr(module, name, value)
        yield


def pieces_of(part: pd.DataFrame, partitions: int, seed: int) -> Any:
    """A frame of partitions of any sizes, some of them empty."""
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(part) + 1, partitions - 1)).tolist()
    rows = [part.iloc[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(part)], strict=True)]
    return dd.from_map(lambda rows: rows, rows, meta=part[:0], enforce_metadata=False)


def ids(n: int, rng: np.random.Generator) -> Any:
    return pd.array([f"{number:03}" for number in rng.permutation(n)], dtype=pd.ArrowDtype(pa.string()))


def removed(found: ic.Duplicates) -> dict[str, tuple[str, float]]:
    part = found.pairs.compute()
    similarity = part["similarity"].to_numpy("float64", na_value=np.nan).tolist()
    return dict(zip(part["image_id"], zip(part["duplicate_of"], similarity, strict=True), strict=True))


def edges(found: ic.Duplicates) -> list[tuple[str, str, float]]:
    part = found.edges.compute()
    return sorted(zip(part["image_id"], part["other_id"], part["similarity"].astype(float), strict=True))


def check_counts(found: ic.Duplicates, way: str, n_rows: int, n_compared: int) -> None:
    assert (found.n_rows, found.n_compared) == (n_rows, n_compared)
    assert ("through files" in repr(found)) == way.startswith("files")
    stays = found.selected["image_id"].compute().tolist()
    assert len(stays) == len(set(stays)) == n_compared - len(found.pairs)


@settings(max_examples=5, phases=[Phase.explicit, Phase.generate])
@example(n=0, partitions=2, seed=0, known=0)
@given(
    n=st.integers(10, 60), partitions=st.integers(1, 9), seed=st.integers(0, 10**6), known=st.sampled_from([0, 0.5, 1])
)
def test_equal_bytes_are_found_whichever_way_they_come_together(
    tmp_path_factory: pytest.TempPathFactory, n: int, partitions: int, seed: int, known: float
) -> None:
    rng = np.random.default_rng(seed)
    contents = [b"%d" % (10 + number) for number in rng.integers(0, 1 + rng.integers(20), size=n)]
    path = tmp_path_factory.mktemp("blob") / "images.bin"
    path.write_bytes(b"".join(contents))
    part = pd.DataFrame(
        {
            "image_id": ids(n, rng),
            "url": pd.array([str(path)] * n, dtype=pd.ArrowDtype(pa.string())),
            "offset": np.where(rng.random(n) < 0.9, 2 * np.arange(n), 10**6),
            "bytes": np.full(n, 2),
            "error": pd.array(np.where(rng.random(n) < 0.1, "decode: truncated", None), dtype=pd.ArrowDtype(pa.string())),
            # Digests that are others' too: only bytes tell.
            "digest": pd.array(
                [f"{digest:032x}" if is_known else None for digest, is_known in zip(rng.integers(2, size=n), rng.random(n) < known, strict=True)],
                dtype=pd.ArrowDtype(pa.string()),
            ),
        }
    )  # fmt: skip
    readable = part["error"].isna() & (part["offset"] < 10**6)
    compared = part["error"].isna() & (readable | part["digest"].notna())
    lowest: dict[Any, str] = {}
    # What has a digest that is not its own is not compared with what has its own.
    keys = [(content, digest) for content, digest in zip(contents, part["digest"].fillna("own"), strict=True)]
    for key, name, usable in zip(keys, part["image_id"], readable, strict=True):
        if usable:
            lowest[key] = min(name, lowest.get(key, name))
    expected = {
        name: (lowest[key], 1.0)
        for key, name, usable in zip(keys, part["image_id"], readable, strict=True)
        if usable and name != lowest[key]
    }
    for way, constants in WAYS.items():
        with setting(*constants):
            found = ic.exact_duplicates(pieces_of(part, partitions, seed))
            assert removed(found) == expected, way
            check_counts(found, way, n, int(compared.sum()))


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@example(n=0, partitions=2, seed=0, distance=2, rule="cover")
@given(n=st.integers(10, 60), partitions=st.integers(1, 9), seed=st.integers(0, 10**6),
       distance=st.sampled_from([0, 1, 2, 4, 7, 20, 63]), rule=st.sampled_from(["cover", "pointwise", "component"]))  # fmt: skip
def test_hashes_that_are_near_are_found_whichever_way_they_come_together(
    n: int, partitions: int, seed: int, distance: int, rule: Any
) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(2**64, size=n, dtype=np.uint64)
    for at in range(1, n):
        if rng.random() < 0.7:
            hashes[at] = hashes[rng.integers(at)]
            for _ in range(rng.integers(4)):
                hashes[at] ^= np.uint64(1) << np.uint64(rng.integers(64))
    usable = rng.random(n) < 0.9
    values = [int(value) if is_usable else None for value, is_usable in zip(hashes, usable, strict=True)]
    part = pd.DataFrame({"image_id": ids(n, rng), "phash": pd.array(values, dtype=pd.ArrowDtype(pa.uint64()))})
    names = part["image_id"].to_numpy(dtype=object)
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    near = (bits <= distance) & usable[:, None] & usable[None, :]
    # Of equal hashes the image of the lowest id has the pairs, and the others one each.
    leader = [min(names[(bits[at] == 0) & usable], default=None) for at in range(n)]
    expected = sorted(
        (max(names[a], names[b]), min(names[a], names[b]), float(np.float32(1 - bits[a, b] / 64)))
        for a, b in zip(*np.nonzero(np.triu(near, 1)), strict=True)
        if (names[a] == leader[a] and names[b] == leader[b]) or (bits[a, b] == 0 and leader[a] in (names[a], names[b]))
    )
    answers = []
    for way, constants in WAYS.items():
        with setting(*constants):
            found = ic.perceptual_duplicates(pieces_of(part, partitions, seed), max_distance=distance, rule=rule)
            assert [tuple(sorted(pair[:2])[::-1]) + pair[2:] for pair in edges(found)] == expected, way
            check_counts(found, way, n, int(usable.sum()))
            answers.append({name: twin[0] for name, twin in removed(found).items()})
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("way", ["memory, by ranges", "files, in parts"])
def test_a_cluster_says_what_one_process_says(client: Client, tmp_path: Path, way: str) -> None:
    photos = [image_bytes(seed) for seed in range(12)]
    for shard in range(6):
        chosen = [(shard + at) % 12 for at in range(5)]
        write_tar(tmp_path / f"{shard}.tar", [(f"{photo}.jpg", photos[photo]) for photo in chosen])
    frame = ic.read_webdataset(str(tmp_path / "*.tar"))
    with setting(*WAYS[way]):
        expected = removed(ic.exact_duplicates(frame)), removed(ic.perceptual_duplicates(frame))
        with dask.config.set(scheduler=client):
            found = ic.exact_duplicates(frame), ic.perceptual_duplicates(frame)
            assert tuple(map(removed, found)) == expected
    assert len(expected[0]) == 30 - 10 and len(expected[1]) >= 20


@pytest.mark.parametrize("way", WAYS)
def test_ids_that_repeat_are_refused(way: str) -> None:
    part = pd.DataFrame({"image_id": ["a", "b", "c", "b"], "phash": pd.array([1, 2, 3, None], "uint64[pyarrow]")})
    with setting(*WAYS[way]), pytest.raises(ValueError, match="name more than one row: 'b'; give every image an id"):
        ic.perceptual_duplicates(dd.from_pandas(part, npartitions=2))


def test_an_image_that_is_stored_a_thousand_times_is_compared_where_it_lies_and_goes_on_once(tmp_path: Path) -> None:
    (tmp_path / "same.bin").write_bytes(b"same" * 1000)
    part = pd.DataFrame(
        {"image_id": [f"{n:04}" for n in range(1000)], "url": str(tmp_path / "same.bin"), "offset": 4 * np.arange(1000)}
    ).assign(bytes=4)
    frame = dd.from_pandas(part, npartitions=4)
    with setting(RANGES):
        printed = prints.prepare(frame, exact.digests(1 << 20), exact.PLACE, "image_id", [], 0, None)
        assert [tuple(summary)[:3] for summary in printed.summaries] == [(250, 250, 1)] * 4
        (rows,) = dask.compute(*printed.by_range(1000))
        assert rows["row"].to_pylist() == [0, 250, 500, 750]
        assert removed(ic.exact_duplicates(frame)) == {f"{n:04}": ("0000", 1.0) for n in range(1, 1000)}


@pytest.mark.parametrize("way", ["memory, by ranges", "files, by ranges"])
def test_ranges_hold_all_and_none_of_them_much_more_than_its_share(way: str) -> None:
    # Hashes of images are alike in most of their bits.
    hashes = np.uint64(0xAAAA << 48) + np.arange(3000, dtype=np.uint64)
    part = pd.DataFrame({"image_id": np.arange(3000), "phash": pd.array(hashes, "uint64[pyarrow]")})
    with setting(*WAYS[way]):
        printed = prints.prepare(
            dd.from_pandas(part, npartitions=7), perceptual.hashes(), ["phash"], "image_id", [], 0, None
        )
        ranges = dask.compute(*printed.by_range(100))
    assert len(ranges) == 30 and max(len(rows) for rows in ranges) < 200
    assert sorted(row for rows in ranges for row in rows["row"].to_pylist()) == list(range(3000))


@pytest.mark.parametrize("way", ["memory", "files"])
def test_tasks_are_a_few_for_each_partition(way: str) -> None:
    part = pd.DataFrame({"image_id": np.arange(600), "phash": pd.array(np.arange(600) % 500, "uint64[pyarrow]")})
    frame, tasks = dd.from_pandas(part, npartitions=300), []
    with setting(*WAYS[way]), Callback(pretask=lambda key, *_: tasks.append(key)):
        assert len(ic.perceptual_duplicates(frame, max_distance=0).pairs) == 100
    assert len(tasks) < 5 * 300


def test_a_call_that_was_stopped_goes_on_from_its_folder(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("one.jpg", image_bytes(1)), ("other.jpg", image_bytes(2))])
    write_tar(tmp_path / "b.tar", [("copy.jpg", image_bytes(1))])
    frame = ic.read_webdataset(str(tmp_path / "*.tar"))
    with setting(FILES):
        work = tmp_path / "work"
        found = ic.perceptual_duplicates(frame, work=work)
        assert f"through files in {work}" in repr(found)
        first = removed(found)
        for shard in ("a.tar", "b.tar"):
            (tmp_path / shard).unlink()
        assert removed(ic.perceptual_duplicates(frame, work=work)) == first == {"b/copy": ("a/one", 1.0)}
        assert not list((work / "held").iterdir())
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="is a file; name a folder"):
            ic.exact_duplicates(frame, work=tmp_path / "file")
