"""A map's places are the principal components of the embeddings, the same however the images are partitioned."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import image_bytes, write_tar
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.decomposition import PCA

import imgcurate as ic
from imgcurate import identity, schema, vectors
from imgcurate.report.thumbnails import thumbnails


@pytest.fixture
def in_process() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def vectors_of(n: int, d: int = 24, seed: int = 0) -> np.ndarray:
    """Vectors that spread twice as far along each axis as along the next, from around one that is no mean of theirs."""
    rng = np.random.default_rng(seed)
    return (3 + rng.standard_normal((n, d)) * 0.5 ** np.arange(d)).astype(np.float32)


def frame_of(matrix: np.ndarray, npartitions: int = 3) -> Any:
    part = schema.table({"image_id": [f"image-{row}" for row in range(len(matrix))]})
    part["embedding"] = vectors.to_column(matrix, like=part)
    return dd.from_pandas(part, npartitions=npartitions, sort=False)


def places(frame: Any, **options: Any) -> np.ndarray:
    return ic.place_on_map(frame, **options)[["x", "y"]].compute(scheduler="synchronous").to_numpy()


def test_places_are_the_first_two_principal_components_of_unit_vectors(in_process: None) -> None:
    matrix = vectors_of(300)
    unit = matrix.astype(np.float64) / np.linalg.norm(matrix.astype(np.float64), axis=1, keepdims=True)
    expected = PCA(2, svd_solver="full").fit(unit)
    signs = np.sign(expected.components_[[0, 1], np.abs(expected.components_).argmax(axis=1)])
    found = places(frame_of(matrix))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.transform(unit) * signs, atol=1e-6)


@settings(max_examples=15)
@given(n=st.integers(1, 60), npartitions=st.integers(1, 60), sample=st.integers(2, 80))
def test_places_are_the_same_bits_however_images_are_partitioned(n: int, npartitions: int, sample: int) -> None:
    matrix = vectors_of(n)
    with dask.config.set(scheduler="synchronous"):
        at_once = places(frame_of(matrix, 1), sample=sample)
        np.testing.assert_array_equal(places(frame_of(matrix, npartitions), sample=sample), at_once)
        assert np.isfinite(at_once).all()


def test_the_axes_of_a_sample_are_nearly_those_of_all_and_draw_no_more_rows_than_asked(in_process: None) -> None:
    matrix = vectors_of(4000)
    of_all, of_some = places(frame_of(matrix)), places(frame_of(matrix), sample=1000)
    for axis in range(2):
        assert np.corrcoef(of_all[:, axis], of_some[:, axis])[0, 1] > 0.99
    assert not np.array_equal(of_all, of_some)
    # Of whom they are is told by the ids: other rows beside them, in another order, make no difference.
    drawn = np.argsort(pd.util.hash_array(np.array([f"image-{row}" for row in range(4000)], object), categorize=False))
    others = np.ones(4000, bool)
    others[drawn[:1000]] = False
    changed = matrix.copy()
    changed[others] += 1
    np.testing.assert_array_equal(places(frame_of(changed), sample=1000)[~others], of_some[~others])


def test_images_without_a_vector_have_no_place_and_move_no_other(in_process: None) -> None:
    matrix = vectors_of(40)
    holes = matrix.copy()
    holes[7], holes[8] = 0, np.nan
    part = schema.table({"image_id": [f"image-{row}" for row in range(40)]})
    part["embedding"] = vectors.to_column(holes, like=part, valid=np.arange(40) != 9)
    found = places(dd.from_pandas(part, npartitions=4, sort=False))
    assert np.isnan(found).all(axis=1).nonzero()[0].tolist() == [7, 8, 9]
    rest = dd.from_pandas(part.drop([7, 8, 9]), npartitions=1, sort=False)
    np.testing.assert_array_equal(np.delete(found, [7, 8, 9], axis=0), places(rest))
    nothing = part.iloc[[9]]
    assert np.isnan(places(dd.from_pandas(nothing, npartitions=1))).all()
    assert places(dd.from_pandas(part.iloc[:0], npartitions=1)).shape == (0, 2)


def test_vectors_of_one_dimension_and_equal_ones_lie_somewhere(in_process: None) -> None:
    np.testing.assert_allclose(places(frame_of(np.ones((5, 3), np.float32))), np.zeros((5, 2)), atol=1e-7)
    found = places(frame_of(np.array([[1], [-1], [2]], np.float32)))
    np.testing.assert_allclose(found[:, 0] - found[:, 0].mean(), [2 / 3, -4 / 3, 2 / 3], atol=1e-6)
    assert not found[:, 1].any()


def test_what_is_placed_is_a_column_like_others_on_a_cluster_and_in_files(client: Client, tmp_path: Path) -> None:
    frame = frame_of(vectors_of(50))
    ic.write_parquet(ic.place_on_map(frame)[["image_id", "x", "y"]], tmp_path / "map")
    found = pd.read_parquet(tmp_path / "map").set_index("image_id")
    np.testing.assert_array_equal(found.loc[[f"image-{row}" for row in range(50)]].to_numpy(), places(frame))
    assert found.dtypes.tolist() == [np.float32, np.float32]


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


def test_a_map_with_pictures_is_plain_parquet(in_process: None, tmp_path: Path) -> None:
    members = [(f"{seed}.jpg", image_bytes(seed, (400, 300))) for seed in range(6)] + [("broken.jpg", b"<html>")]
    write_tar(tmp_path / "0.tar", members)
    frame = ic.embed(ic.read_webdataset(tmp_path / "0.tar"), mean_colour).persist()
    made = ic.thumbnail(ic.place_on_map(frame), 64)[["image_id", "x", "y", "thumbnail"]]
    ic.write_parquet(made, tmp_path / "atlas")
    (file,) = (tmp_path / "atlas").glob("*.parquet")
    found = pq.read_table(file).to_pandas().set_index("image_id")
    assert found.loc["0/broken"].isna().all() and found.drop("0/broken").notna().all(axis=None)
    rows = frame.compute()
    for (_, row), expected in zip(found.iterrows(), thumbnails(rows, 64), strict=True):
        assert (row["thumbnail"] or None) == expected.uri or pd.isna(row["thumbnail"])
    kind, _, text = found.loc["0/3", "thumbnail"].partition(";base64,")
    assert kind == "data:image/webp" and Image.open(io.BytesIO(base64.b64decode(text))).size == (64, 48)
    with pytest.raises(ValueError, match="already has a column 'thumbnail'; drop or rename it first"):
        ic.thumbnail(made.assign(url="", offset=0, bytes=0))
    for wrong in (0, 1.5, "64", True, None):
        with pytest.raises(ValueError, match=r"size=.* must be a whole number of at least 1 pixel"):
            ic.thumbnail(frame, wrong)
    with pytest.raises(KeyError, match="thumbnail needs columns 'url', 'offset', 'bytes'"):
        ic.thumbnail(frame[["image_id"]])


def test_what_cannot_be_placed_is_refused_by_name(in_process: None) -> None:
    frame = frame_of(vectors_of(4))
    with pytest.raises(ValueError, match=r"already has a column 'x'; drop or rename it first"):
        ic.place_on_map(ic.place_on_map(frame))
    for wrong in (1, 2.5, True):
        with pytest.raises(ValueError, match=r"sample=.* must be a whole number of at least 2"):
            ic.place_on_map(frame, sample=wrong)
    with pytest.raises(ValueError, match=r"sample=9 must be a whole number of at least 10"):
        ic.place_on_map(frame, method="umap", sample=9)
    with pytest.raises(KeyError, match="place_on_map needs column 'embedding'"):
        ic.place_on_map(frame[["image_id"]])
    with pytest.raises(TypeError, match="place_on_map takes a Dask dataframe, not DataFrame"):
        ic.place_on_map(frame.compute())
    short = dd.concat([frame, frame_of(vectors_of(1, 3), 1)])
    with pytest.raises(
        ValueError, match=r"the images have embeddings of 3 and 24 dimensions; give those of one encoder"
    ):
        places(short)
    parts = []
    for number, name in enumerate(("a", "b")):
        part = schema.table({"image_id": [name]})
        encoder = identity.Identity(name, "clip", 3, str(number))
        parts.append(part.assign(embedding=vectors.to_column(np.ones((1, 3), np.float32), like=part, encoder=encoder)))
    mixed = dd.from_delayed([dask.delayed(part) for part in parts], meta=frame._meta, verify_meta=False)
    with pytest.raises(ValueError, match=r"the images mixes the vectors of 'a' .* and 'b'"):
        ic.place_on_map(mixed)


def test_umap_keeps_groups_together_and_places_the_images_that_were_not_drawn_among_their_own(in_process: None) -> None:
    pytest.importorskip("umap", reason="needs pip install umap-learn")
    rng = np.random.default_rng(0)
    of_group = np.arange(300) % 3
    matrix = (np.eye(3, 16)[of_group] + 0.05 * rng.standard_normal((300, 16))).astype(np.float32)
    frame = frame_of(matrix, 1)
    found = places(frame, method="umap", sample=150)
    centres = np.array([found[of_group == group].mean(axis=0) for group in range(3)])
    assert (np.linalg.norm(found[:, None] - centres, axis=2).argmin(axis=1) == of_group).all()
    np.testing.assert_allclose(places(frame_of(matrix, 7), method="umap", sample=150), found, atol=1e-3)


def test_the_landmarks_of_umap_stay_with_the_workers(client: Client) -> None:
    pytest.importorskip("umap", reason="needs pip install umap-learn")
    placed = ic.place_on_map(frame_of(vectors_of(40)), method="umap")
    assert np.isfinite(placed[["x", "y"]].compute().to_numpy()).all()
    assert len(placed.head(3, npartitions=-1)) == 3


def test_umap_is_refused_with_the_remedy_where_it_is_missing(in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frame_of(vectors_of(4))
    with pytest.raises(ValueError, match="method='tsne': give one of pca, umap"):
        ic.place_on_map(frame, method="tsne")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"method='umap' needs umap-learn: pip install umap-learn; method='pca'"):
        ic.place_on_map(frame, method="umap")
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=None))
    with pytest.raises(ValueError, match="UMAP needs at least 10 images with a vector, and there are 4; method='pca'"):
        ic.place_on_map(frame, method="umap")
