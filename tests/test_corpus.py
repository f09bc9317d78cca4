"""New images against a corpus, given as a frame or saved: brute force, and what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from test_semantic import frame_of, planted

import imgcurate as ic
from imgcurate.vectors import unit_rows


def data() -> tuple[np.ndarray, np.ndarray]:
    """A corpus in groups, and new images, some near the corpus, some near one another."""
    rng = np.random.default_rng(0)
    centers = 3 * rng.standard_normal((20, 32))
    old = unit_rows(centers[rng.integers(20, size=900)] + 0.7 * rng.standard_normal((900, 32)))[0]
    new = unit_rows(centers[rng.integers(20, size=150)] + 0.7 * rng.standard_normal((150, 32)))[0]
    new[:40] = unit_rows(old[rng.integers(900, size=40)] + 0.01 * rng.standard_normal((40, 32)))[0]
    new[40:60] = unit_rows(new[60:80] + 0.01 * rng.standard_normal((20, 32)))[0]
    new[80:83] = new[0]
    new[83] = old[5]
    return old, new


def frames(npartitions: int = 3) -> tuple[Any, Any]:
    old, new = data()
    return frame_of(old, ids=[f"old{i:04}" for i in range(900)], npartitions=npartitions), frame_of(new)


def by_hand(eps: float) -> dict[str, str]:
    """Walk the new images by id; one goes where an old or a kept new one is near. The nearest is its twin."""
    old, new = (rows.astype(np.float64) for rows in data())
    kept: list[int] = []
    found = {}
    for row in range(len(new)):
        names = [f"old{i:04}" for i in range(900)] + [f"img{i:05}" for i in kept]
        cosines = np.concatenate([old @ new[row], new[kept] @ new[row]])
        if cosines.max() >= 1 - eps:
            found[f"img{row:05}"] = names[int(np.argmax(np.round(cosines, 6)))]
        else:
            kept.append(row)
    return found


def named(found: ic.Duplicates) -> dict[str, str]:
    pairs = found.pairs.compute()
    return dict(zip(pairs["image_id"], pairs["duplicate_of"], strict=True))


@pytest.mark.parametrize("npartitions", [1, 4])
def test_only_new_images_go_within_new_and_against_the_corpus(client: Client, npartitions: int) -> None:
    old, new = frames(npartitions)
    found = ic.semantic_duplicates(new, against=old, eps=0.01, keep="id")
    assert named(found) == by_hand(0.01) and len(by_hand(0.01)) >= 60
    assert (found.n_rows, found.n_compared) == (150, 150)
    assert len(ic.remove(new, found)) == 150 - len(by_hand(0.01)) == len(found.selected)
    for rule in ("pointwise", "component"):
        gone = named(ic.semantic_duplicates(new, against=old, eps=0.01, keep="id", rule=rule))
        assert set(gone) >= set(by_hand(0.01)) and all(name.startswith("img") for name in gone)


def test_a_saved_corpus_answers_as_a_frame_does_and_only_touched_clusters_are_read(
    client: Client, tmp_path: Path
) -> None:
    old, new = frames()
    assert ic.save_embeddings(old, tmp_path / "corpus", n_clusters=20) == 900
    found = ic.semantic_duplicates(new, against=tmp_path / "corpus", eps=0.01, keep="id", exact=True)
    assert named(found) == by_hand(0.01)
    assert found.n_clusters == 20
    one = new.partitions[0]
    ids = one["image_id"].compute().tolist()[:1]
    single = one[one["image_id"].isin(ids)]
    near = named(ic.semantic_duplicates(single, against=str(tmp_path / "corpus"), eps=0.01))
    files = sorted((tmp_path / "corpus/part.00000").glob("cluster.*.parquet"))
    assert len(files) > 10
    read = 0
    for file in files:  # with any other cluster gone the answer is the same
        moved = file.rename(tmp_path / "moved")
        try:
            assert named(ic.semantic_duplicates(single, against=tmp_path / "corpus", eps=0.01)) == near
        except FileNotFoundError:
            read += 1
        moved.rename(file)
    assert 1 <= read <= 4 and near == {ids[0]: by_hand(0.01)[ids[0]]}


def test_a_corpus_grows(client: Client, tmp_path: Path) -> None:
    old, new = frames()
    path = tmp_path / "corpus"
    ic.save_embeddings(old, path)
    kept = ic.remove(new, ic.semantic_duplicates(new, against=path, eps=0.01, keep="id"))
    assert ic.save_embeddings(kept, path, append=True) == len(kept)
    again = ic.semantic_duplicates(new, against=path, eps=0.01, exact=True)
    assert len(again.removals()) == 150
    with pytest.raises(FileExistsError, match="append=True"):
        ic.save_embeddings(old, path)
    ic.save_embeddings(old, path, overwrite=True)
    assert len(ic.semantic_duplicates(new, against=path, eps=0.01, keep="id", exact=True).removals()) == len(
        by_hand(0.01)
    )


def test_a_corpus_that_does_not_fit_is_refused(client: Client, tmp_path: Path) -> None:
    old, new = frames()
    with pytest.raises(FileNotFoundError, match="holds no embeddings"):
        ic.semantic_duplicates(new, against=tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no embeddings"):
        ic.save_embeddings(new, tmp_path / "nothing", append=True)
    with pytest.raises(KeyError, match="in the frame given as against"):
        ic.semantic_duplicates(new, against=old[["image_id"]])
    narrow = frame_of(planted(50, 8))
    with pytest.raises(ValueError, match="the new images have dimension 32"):
        ic.semantic_duplicates(new, against=narrow)
    ic.save_embeddings(narrow, tmp_path / "narrow")
    with pytest.raises(ValueError, match="centroids have dimension 8"):
        ic.semantic_duplicates(new, against=tmp_path / "narrow")
    with pytest.raises(ValueError, match="brings its own centroids"):
        ic.semantic_duplicates(narrow, against=tmp_path / "narrow", n_clusters=3)
