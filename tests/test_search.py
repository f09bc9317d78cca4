"""search: what brute force ranks highest, on frames and on saved embeddings, of texts, images and vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
from test_embed import frame_of as images_of
from test_embed import jpegs, pack
from test_neighbours import grouped, names
from test_semantic import frame_of
from test_text import clip, siglip  # noqa: F401 - fixtures

import imgcurate as ic
from imgcurate.identity import Identity
from imgcurate.vectors import to_column


@pytest.fixture(autouse=True)
def in_process() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def expected(rows: np.ndarray, ids: Any, query: np.ndarray, k: int) -> list[Any]:
    cosines = (rows.astype(np.float64) @ (query / np.linalg.norm(query))).astype(np.float32)
    return [ids[at] for at in np.lexsort((np.array(ids), -np.round(cosines, 6)))[:k]]


def test_the_nearest_of_a_frame_are_those_of_brute_force() -> None:
    rows, ids = grouped(300), names(300)
    wanted = 3 * grouped(4, seed=5)
    wanted[2] = rows[50]  # of which there are many copies
    for given in (frame_of(rows, ids, 5), frame_of(rows, ids, 1), (ids, rows)):
        found = ic.search(given, 8, vectors=wanted)
        assert list(found.columns) == ["query", "image_id", "similarity"]
        assert found["query"].tolist() == np.repeat(range(4), 8).tolist()
        for number, query in enumerate(wanted):
            assert found["image_id"].tolist()[8 * number : 8 * number + 8] == expected(rows, ids, query, 8)
    assert len(ic.search((ids, rows), 500, vectors=wanted[0])) == 300


def test_of_saved_embeddings_only_the_nearest_clusters_are_read(tmp_path: Path) -> None:
    rows, ids = grouped(300), names(300)
    ic.save_embeddings((ids, rows), tmp_path / "saved", n_clusters=12)
    wanted = grouped(3, seed=5)
    every = ic.search(tmp_path / "saved", 8, vectors=wanted, probes=12)
    assert every.to_dict("list") == ic.search((ids, rows), 8, vectors=wanted).to_dict("list")
    one = ic.search(str(tmp_path / "saved"), 1, vectors=rows[7], probes=1)
    assert one["similarity"].tolist() == [1.0]
    for path in sorted((tmp_path / "saved").rglob("cluster.*.parquet")):
        path.unlink()
    with pytest.raises(FileNotFoundError):
        ic.search(tmp_path / "saved", vectors=wanted)


def test_texts_and_images_are_looked_for_by_the_model_that_made_the_embeddings(
    clip: str,  # noqa: F811
    siglip: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    contents = jpegs(6)
    frame = ic.embed(images_of(pack(tmp_path / "a.bin", contents), 2), clip).persist()
    found = ic.search(frame, 3, text=["a dog", "two cats"], model=clip)
    vectors = ic.encode_text(["a dog", "two cats"], clip)
    assert found["image_id"].tolist() == ic.search(frame, 3, vectors=vectors)["image_id"].tolist()
    assert found["query"].tolist() == ["a dog"] * 3 + ["two cats"] * 3
    (tmp_path / "b.jpg").write_bytes(contents[4])
    same = ic.search(frame, 1, image=tmp_path / "b.jpg", model=clip)
    assert same["image_id"].tolist() == [frame.compute()["image_id"].iloc[4]]
    assert same["similarity"].tolist() == pytest.approx([1], abs=1e-5)
    with pytest.raises(ValueError, match=r"the search mixes the vectors of .*clip.* and .*siglip.*cannot be compared"):
        ic.search(frame, text="a dog", model=siglip)
    ic.save_embeddings(frame, tmp_path / "saved", n_clusters=2)
    for model in (clip, None):  # which the folder names itself
        again = ic.search(tmp_path / "saved", 3, text="a dog", model=model)
        assert again["image_id"].tolist() == found["image_id"].tolist()[:3]
    with pytest.raises(ValueError, match=r"the search mixes the vectors"):
        ic.search(tmp_path / "saved", text="a dog", model=siglip)
    (tmp_path / "c.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"the image 'c.jpg' cannot be looked for: decode: not an image"):
        ic.search(frame, image=tmp_path / "c.jpg", model=clip)


def test_the_vectors_of_a_column_are_looked_for_where_their_encoder_made_the_others_too(tmp_path: Path) -> None:
    rows, ids = grouped(30), names(30)
    frame = frame_of(rows, ids, 3)
    some = frame.compute().iloc[[4, 9]]
    assert ic.search(frame, 3, vectors=some["embedding"]).equals(ic.search(frame, 3, vectors=rows[[4, 9]]))
    lists = pd.Series([rows[4].tolist()])
    assert ic.search(frame, 1, vectors=lists)["image_id"].tolist() == [ids[4]]
    one, other = (
        pd.DataFrame({"image_id": ids}).assign(
            embedding=lambda part, name=name: to_column(rows, part, encoder=Identity(name, "clip", rows.shape[1], name))
        )
        for name in ("org/one", "org/other")
    )
    assert len(ic.search(one, 3, vectors=one["embedding"])) == 90
    ic.save_embeddings(one, tmp_path / "saved", n_clusters=2)
    for given in (one, tmp_path / "saved"):
        with pytest.raises(ValueError, match=r"mixes the vectors of .*org/one.* and .*org/other"):
            ic.search(given, 3, vectors=other["embedding"])


def test_ids_of_a_folder_have_the_type_that_they_have_in_a_frame(tmp_path: Path) -> None:
    for ids in (np.arange(30), np.arange(30, dtype=np.uint64) + np.uint64(2**63)):
        rows = pd.DataFrame({"image_id": ids, "embedding": list(grouped(30))})
        ic.save_embeddings(rows, tmp_path / ids.dtype.name, n_clusters=2)
        found = ic.search(tmp_path / ids.dtype.name, 3, vectors=grouped(30)[7], probes=2)
        pd.testing.assert_frame_equal(found, ic.search(rows, 3, vectors=grouped(30)[7]))


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    pair = (["a", "b"], np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match="give one of them"):
        ic.search(pair)
    with pytest.raises(ValueError, match="give one of them"):
        ic.search(pair, text="a", vectors=[1, 0])
    with pytest.raises(ValueError, match="vector 1 of vectors is zero"):
        ic.search(pair, vectors=[[1, 0], [0, 0]])
    with pytest.raises(ValueError, match="what is looked for has dimension 3, the embeddings 2"):
        ic.search(pair, vectors=[1, 0, 0])
    for wrong in (["a"], [], [[1, 0], [1]], 1.0):
        with pytest.raises(TypeError, match=r"vectors holds .* not numbers of shape"):
            ic.search(pair, vectors=wrong)
    with pytest.raises(TypeError, match="5 is no path: give one as text, or a list of them"):
        ic.search(pair, image=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k=0 must be"):
        ic.search(pair, 0, vectors=[1, 0])
    with pytest.raises(FileNotFoundError, match=r"holds no embeddings .*; imgcurate.read_embeddings reads other"):
        ic.search(tmp_path, vectors=[1, 0])
    assert not len(ic.search(frame_of(np.eye(2), error=["x", "x"]), vectors=[1, 0]))
    assert ic.search((range(2), np.eye(2)), 1, vectors=[0, 2.0]).to_dict("list") == {
        "query": [0],
        "image_id": [1],
        "similarity": [1.0],
    }
