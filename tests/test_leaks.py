"""leaks: what brute force finds of images of two splits, by bytes, hashes and embeddings at once."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from conftest import image_bytes
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

import imgcurate as ic
from imgcurate import vectors
from imgcurate.dedup.graph import build
from imgcurate.dedup.work import memory

KINDS = ["exact", "perceptual", "semantic"]
EPS, BITS = 0.05, 3
COLUMNS = ["image_id", "split", "duplicate_of", "other_split", "kind", "similarity"]


@pytest.fixture
def in_process() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Where four files lie in one; no two have equal bytes."""
    path, data = tmp_path_factory.mktemp("contents") / "all.bin", [image_bytes(number) for number in range(4)]
    path.write_bytes(b"".join(data))
    ends = np.cumsum([len(content) for content in data])
    return pd.DataFrame(
        {"url": str(path), "offset": ends - [len(content) for content in data], "bytes": map(len, data)}
    )


HASHES = np.array([0, 0b111, 0b1111, 2**64 - 1, 2**64 - 2], dtype=np.uint64)
ANGLES = np.radians([0, 10, 25, 100, 112, 200])


def rows_of(contents: pd.DataFrame, images: list[tuple[int, int, int, int]]) -> pd.DataFrame:
    """Images by their file, hash, direction and split."""
    file, phash, angle, split = np.array(images, dtype=int).reshape(-1, 4).T
    rows = contents.iloc[file].reset_index(drop=True)
    # Ids that are in no order, so that the lowest of equally like ones is not the first.
    rows["image_id"] = [f"{7 * number % 31:02}" for number in range(len(rows))]
    rows["split"] = np.array(["test", "train", "validation"])[split]
    rows["phash"] = HASHES[phash]
    matrix = np.stack([np.cos(ANGLES[angle]), np.sin(ANGLES[angle])], axis=1).astype(np.float32)
    return rows.assign(embedding=vectors.to_column(matrix, rows))


def brute(
    rows: pd.DataFrame, images: list[tuple[int, int, int, int]], kinds: Any = KINDS
) -> dict[tuple[str, str], tuple[str, str, float]]:
    """Return of each image and other split what is most like it: the strictest kind, the most similar, the lowest id."""
    best: dict[tuple[str, str], Any] = {}
    names, splits = rows["image_id"].tolist(), rows["split"].tolist()
    for a, (file, phash, angle, split) in enumerate(images):
        for b, (other_file, other_phash, other_angle, other_split) in enumerate(images):
            if split == other_split:
                continue
            bits = int(HASHES[phash] ^ HASHES[other_phash]).bit_count()
            cosine = np.cos(ANGLES[angle] - ANGLES[other_angle])
            like = {0: 1.0 if file == other_file else None, 1: 1 - bits / 64 if bits <= BITS else None}
            like[2] = cosine if cosine >= 1 - EPS else None
            for kind, similarity in like.items():
                if similarity is not None and KINDS[kind] in kinds:
                    answer = (kind, -round(similarity, 5), names[b])
                    at = names[a], splits[b]
                    best[at] = min(best.get(at, answer), answer)
    return {at: (other, KINDS[kind], -minus) for at, (kind, minus, other) in best.items()}


def found_in(pairs: Any) -> dict[tuple[str, str], tuple[str, str, float]]:
    pairs = pairs.compute() if hasattr(pairs, "dask") else pairs
    assert list(pairs.columns) == COLUMNS and not pairs.duplicated(["image_id", "other_split"]).any()
    return {
        (row.image_id, row.other_split): (row.duplicate_of, row.kind, round(float(row.similarity), 5))
        for row in pairs.itertuples()
    }


image = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 5), st.integers(0, 2))


@settings(max_examples=25)
@given(
    images=st.lists(image, min_size=2, max_size=14),
    npartitions=st.integers(1, 3),
    kinds=st.sets(st.sampled_from(KINDS), min_size=1) | st.just(set(KINDS)),
)
def test_each_image_is_named_with_what_is_most_like_it_in_each_other_split(
    contents: pd.DataFrame, images: list[tuple[int, int, int, int]], npartitions: int, kinds: set[str]
) -> None:
    rows = rows_of(contents, images)
    options: dict[str, Any] = {"eps": EPS, "max_distance": BITS, "kinds": sorted(kinds)}
    with dask.config.set(scheduler="synchronous"):
        frame = dd.from_pandas(rows, npartitions=npartitions)
        if rows["split"].nunique() == 1:
            with pytest.raises(ValueError, match="from one split into another, and there is one"):
                ic.leaks(frame, **options)
            return
        found = ic.leaks(frame, **options)
        expected = brute(rows, images, kinds)
        assert found_in(found.pairs) == expected
        counts = found.counts()
        assert (
            counts["images"].sum()
            == len(expected)
            == counts[[kind for kind in KINDS if kind in kinds]].to_numpy().sum()
        )


def planted(contents: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[int, int, int, int]]]:
    """Many copies in train of one image in test, a hash that is near in validation, and vectors that are alike."""
    images = [(0, 0, 0, 1)] * 9 + [(0, 3, 3, 0), (1, 1, 5, 2), (2, 4, 1, 0), (3, 2, 2, 1), (1, 2, 4, 0)]
    return rows_of(contents, images), images


def test_a_users_path(client: Client, contents: pd.DataFrame) -> None:
    rows, images = planted(contents)
    frame = dd.from_pandas(rows, npartitions=3)
    found = ic.leaks(frame, eps=EPS, max_distance=BITS)
    assert repr(found) == (
        "Leaks(14 images compared: test 3, train 10, validation 1; by exact, perceptual, semantic likeness; see .pairs (lazy), .counts(), .show() (at once))"
    )
    pairs = found.pairs
    assert found_in(pairs) == brute(rows, images)
    assert pairs._meta.dtypes.to_dict() == pairs.compute().dtypes.to_dict()
    counts = found.counts().set_index(["split", "other_split"])
    assert counts.loc[("train", "test"), "exact"] == 9 and counts.loc[("train", "test"), "share"] == 1.0
    assert counts.loc[("test", "train"), "images"] == 3 and len(counts) == 6
    left = ic.remove(frame, pairs[pairs.split == "train"]).compute()
    assert set(left["split"]) == {"test", "validation"}
    assert len(pickle.loads(pickle.dumps(found)).pairs) == len(pairs)
    del found
    assert len(pairs) == len(brute(rows, images))  # which holds what it is made from


def test_a_graph_in_parts_and_through_files_says_the_same(
    in_process: None, contents: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, images = planted(contents)
    frame = dd.from_pandas(rows, npartitions=3)
    monkeypatch.setattr(memory, "_SHARE_IN_MEMORY", 1e-12)
    monkeypatch.setattr(build, "_PAIRS_OF_A_PART", 3)
    monkeypatch.setattr(build, "_TABLES_OF_A_TASK", 1)
    found = ic.leaks(frame, eps=EPS, max_distance=BITS, exact=True, work=tmp_path / "work")
    assert len(found._found) > 1 and found_in(found.pairs) == brute(rows, images)
    in_memory = ic.leaks(rows, eps=EPS, max_distance=BITS).pairs
    assert isinstance(in_memory, pd.DataFrame) and found_in(in_memory) == brute(rows, images)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == sorted(KINDS)
    monkeypatch.setattr(build, "_PAIRS_OF_A_TASK", 1)
    assert found_in(ic.leaks(frame, eps=EPS, max_distance=BITS).pairs) == brute(rows, images)


@pytest.mark.parametrize("kind", ["category", "int8", "bool", "null"])
def test_splits_of_any_plain_type(in_process: None, contents: pd.DataFrame, kind: str) -> None:
    rows, images = planted(contents)
    rows = rows[["image_id", "split", "embedding"]]
    codes = rows["split"].map({"test": 0, "train": 1, "validation": 2})
    if kind == "category":
        rows["split"] = rows["split"].astype("category")
    elif kind == "null":
        images = [image if image[3] else (0, 0, 5, image[3]) for image in images]
        rows["split"] = rows["split"].where(rows["split"] != "test")
    else:
        rows["split"] = codes.astype(kind)
    found = ic.leaks(rows, eps=EPS, kinds="semantic")
    assert isinstance(found.pairs, pd.DataFrame)
    if kind == "null":
        assert found.sizes == {"train": 10, "validation": 1} and not len(found.pairs)
        assert (
            found.counts()["images"].tolist() == [0, 0]
            and "no image of one split" in found.show(images=contents.assign(image_id="a")).html()
        )
        return
    assert len(found.pairs) and found.pairs["split"].dtype == {"int8": np.int8, "bool": np.bool_}.get(
        kind, rows["split"].astype(str).dtype
    )
    assert len(found.least_similar(3))


def test_a_split_that_is_cut_out_of_ids_is_taken_for_what_it_is(in_process: None, contents: pd.DataFrame) -> None:
    rows, images = planted(contents)
    named = rows.assign(image_id=rows["split"] + "/" + rows["image_id"]).drop(columns="split")
    frame = dd.from_pandas(named, npartitions=2)
    frame = frame.assign(split=frame.image_id.str.split("/").str[0])  # which Dask takes for floats
    found = ic.leaks(frame, eps=EPS, max_distance=BITS)
    assert len(found.pairs) == len(brute(rows, images)) and set(found.sizes) == {"test", "train", "validation"}


def test_pairs_are_shown_side_by_side_those_least_similar_first(in_process: None, contents: pd.DataFrame) -> None:
    rows, _ = planted(contents)
    found = ic.leaks(dd.from_pandas(rows, npartitions=2), eps=EPS, max_distance=BITS)
    page = found.show(2)
    text = page.html()
    assert "test in train: 3 images; train in test: 10 images" in text
    assert "equal bytes" in text and "<span>semantic</span>" in text and '<span class="tag kept">test</span>' in text
    assert repr(page) == "Page(5 pairs of images of two splits, those least alike first; see .save(path))"
    least = found.least_similar(50)
    assert (least["split"] < least["other_split"]).all() and not least.duplicated(["image_id", "duplicate_of"]).any()
    kinds = least.groupby(["split", "other_split"])["kind"].apply(lambda kind: [KINDS.index(name) for name in kind])
    assert all(sorted(some, reverse=True) == some for some in kinds)
    with pytest.raises(ValueError, match="was loaded, or found in a frame that does not say where images lie"):
        ic.leaks(rows[["image_id", "split", "embedding"]], kinds="semantic").show()


def test_what_is_asked_for_wrongly_is_said_before_anything_is_compared(
    in_process: None, contents: pd.DataFrame
) -> None:
    rows, _ = planted(contents)
    frame = dd.from_pandas(rows, npartitions=1)
    with pytest.raises(ValueError, match=r"kinds=\['looks'\]: give some of 'exact', 'perceptual', 'semantic'"):
        ic.leaks(frame, kinds=["looks"])
    with pytest.raises(ValueError, match="kinds=None: give some of"):
        ic.leaks(frame, kinds=None)  # type: ignore[arg-type]
    lacks = r"column 'embedding' for semantic likeness; kinds=\['exact', 'perceptual'\] leaves that out"
    with pytest.raises(KeyError, match=lacks):
        ic.leaks(frame.drop(columns="embedding"))
    with pytest.raises(KeyError, match="leaks needs column 'fold'"):
        ic.leaks(frame, "fold")
    with pytest.raises(KeyError, match=r"'url' for exact likeness; kinds=\['perceptual', 'semantic'\]"):
        ic.leaks(frame.drop(columns="url"))
    # What is left out is all that lacks a column.
    with pytest.raises(KeyError, match=r"'url' for exact likeness; kinds=\['semantic'\] leaves that out"):
        ic.leaks(frame.drop(columns=["url", "phash"]))
    none = ic.leaks(frame.assign(split=None), kinds="semantic").counts()
    assert list(none.columns) == ["split", "other_split", "semantic", "images", "share"] and not len(none)
    with pytest.raises(ValueError, match=r"column 'ratio' holds nothing but '0\.5'"):
        ic.leaks(frame.assign(ratio=0.5), "ratio", kinds="semantic")
    with pytest.raises(ValueError, match="max_distance=70 must be"):
        ic.leaks(frame, max_distance=70)
    with pytest.raises(ValueError, match="eps=0 must be"):
        ic.leaks(frame, eps=0)
    with pytest.raises(TypeError, match="not a tuple"):
        ic.leaks((["a"], np.eye(1)))
    with pytest.raises(TypeError, match="Dask dataframe"):
        ic.leaks(rows, kinds="exact")
    many = pd.DataFrame({"image_id": range(200), "embedding": list(np.eye(200, 8) + 1)})
    with pytest.raises(ValueError, match="column 'image_id' has 200 values, such as 0, 1, 2"):
        ic.leaks(many, "image_id", kinds="semantic")
    empty = ic.leaks(many.iloc[:0].assign(split="a"), kinds="semantic")
    assert list(empty.pairs.columns) == COLUMNS and not len(empty.counts())
