"""The vectors of two encoders never meet unnoticed: the column carries who made it, wherever it goes."""

from __future__ import annotations

import json
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from test_embed import frame_of, jpegs, pack
from test_encoders import save_checkpoint

import imgcurate as ic
from imgcurate import identity, vectors
from imgcurate.encoders.embed import embed, embed_part
from imgcurate.identity import Identity

ONE, OTHER = Identity("org/one", "clip", 4, "1" * 64), Identity("org/other", "dinov2", 4, "2" * 64)


def rows(encoder: Identity | None, count: int = 6, start: int = 0) -> pd.DataFrame:
    matrix = np.random.default_rng(start).standard_normal((count, 4)).astype(np.float32)
    part = pd.DataFrame({"image_id": [f"i{start + k}" for k in range(count)], "n": range(count)})
    return part.assign(embedding=vectors.to_column(matrix, like=part, encoder=encoder))


def mixed() -> dd.DataFrame:
    return dd.concat([dd.from_pandas(rows(ONE), npartitions=2), dd.from_pandas(rows(OTHER, start=6), npartitions=1)])


def test_the_type_of_the_column_is_that_of_any_embedding() -> None:
    assert rows(ONE).dtypes.to_dict() == rows(None).dtypes.to_dict()


def test_the_encoder_survives_what_dataframes_do(tmp_path: Path, client: Client) -> None:
    part = rows(ONE)
    frame = dd.from_pandas(part, npartitions=3)
    right = dd.from_pandas(part[["n"]].assign(x=1), npartitions=2)
    ic.write_parquet(frame, tmp_path / "images")
    for name, made in {
        "filter": frame[frame["n"] > 2],
        "merge": frame.merge(right, on="n"),
        "sort": frame.sort_values("n", ascending=False),
        "concat": dd.concat([frame, frame]),
        "repartition": frame.repartition(npartitions=1),
        "Parquet": ic.read_parquet(tmp_path / "images"),
    }.items():
        assert identity.of_column(made.compute()["embedding"]) == {ONE}, name
    assert identity.of_column(pd.read_parquet(tmp_path / "images", dtype_backend="pyarrow")["embedding"]) == {ONE}


def test_embed_marks_its_vectors_and_parquet_names_the_encoder(client: Client, tmp_path: Path) -> None:
    model = str(save_checkpoint(tmp_path / "clip"))
    frame = embed(frame_of(pack(tmp_path / "a.bin", [*jpegs(4), b"x"]), 2), model)
    file = ic.write_parquet(frame, tmp_path / "images")[0]
    known = json.loads(pq.read_schema(file).metadata[b"imgcurate.encoder"])
    (encoder,) = identity.of_column(frame.compute()["embedding"])
    assert known == {"name": model, "kind": "clip", "dimension": 16, "fingerprint": encoder.fingerprint}


def test_a_callable_marks_its_vectors_too(tmp_path: Path) -> None:
    part = embed_part(pack(tmp_path / "a.bin", jpegs(2)), mean_colour)
    (encoder,) = identity.of_column(part["embedding"])
    assert (encoder.kind, encoder.dimension) == ("callable", 3) and encoder.name.endswith("mean_colour")


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.mean(axis=(1, 2))


def test_two_encoders_in_one_frame_are_refused_by_name(client: Client, tmp_path: Path) -> None:
    said = r"'org/one' \(clip.* and 'org/other' \(dinov2.*embed all images with one encoder"
    with pytest.raises(ValueError, match=f"the frame mixes .*{said}"):
        ic.semantic_duplicates(mixed())
    with pytest.raises(ValueError, match=said):
        ic.write_parquet(mixed(), tmp_path / "images")
    assert not list((tmp_path / "images").glob("*.parquet"))
    with pytest.raises(ValueError, match=said):
        ic.save_embeddings(mixed(), tmp_path / "corpus")


def test_two_encoders_in_a_comparison_are_refused_by_name(client: Client, tmp_path: Path) -> None:
    one, other = (dd.from_pandas(part, npartitions=2) for part in (rows(ONE), rows(OTHER, start=6)))
    ic.save_embeddings(one, tmp_path / "corpus")
    said = r"'org/one' .* and 'org/other'"
    with pytest.raises(ValueError, match=said):
        ic.semantic_duplicates(other, against=one)
    with pytest.raises(ValueError, match=said):
        ic.semantic_duplicates(other, against=tmp_path / "corpus")
    with pytest.raises(ValueError, match=said):
        ic.save_embeddings(other, tmp_path / "corpus", append=True)
    with pytest.raises(ValueError, match=said):
        ic.decontaminate(other, one).compute()
    unknown = dd.from_pandas(rows(None, start=6), npartitions=2)
    assert len(ic.semantic_duplicates(unknown, against=tmp_path / "corpus").removals().compute()) == 0


def test_a_head_refuses_the_vectors_of_another_kind_of_encoder(shared: Path) -> None:
    part = pd.DataFrame({"image_id": ["a"]})
    matrix = np.ones((1, 768), dtype=np.float32)
    dino = Identity("facebook/dinov2-base", "dinov2", 768, "3" * 64)
    frame = frame_of(part.assign(embedding=vectors.to_column(matrix, like=part, encoder=dino)))
    with pytest.raises(ValueError, match=r"takes embeddings of openai/clip.* and these are of 'facebook/dinov2-base'"):
        ic.score_aesthetic(frame, model_dir=shared / "models").compute(scheduler="sync")


def test_one_encoder_under_two_names_is_one() -> None:
    moved = Identity("elsewhere", ONE.kind, ONE.dimension, ONE.fingerprint)
    assert identity.one([ONE, moved], "the frame") is not None
    assert identity.of_column(pa.chunked_array([pa.array([None], identity.list_type(ONE))])) == frozenset()
