"""read_embeddings: the files that other tools write, each as the tool writes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_identity import ONE
from test_identity import rows as embedded

import imgcurate as ic
from imgcurate import identity, parts, vectors
from imgcurate.sources import arrays, pieces

D = 12
MATRIX = np.random.default_rng(0).standard_normal((30, D)).astype(np.float32)
IDS = [f"dir/{i:03}.jpg" for i in range(30)]


@pytest.fixture(autouse=True)
def in_process() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def clip_retrieval(folder: Path) -> None:
    """As clip_inference/writer.py does: halves, and the metadata of a part through pandas."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir()
    for part, (start, stop) in enumerate([(0, 10), (10, 11), (11, 30)]):
        np.save(folder / "img_emb" / f"img_emb_{part}.npy", MATRIX[start:stop].astype(np.float16))
        np.save(folder / "text_emb" / f"text_emb_{part}.npy", -MATRIX[start:stop].astype(np.float16))
        known = pd.DataFrame({"image_path": IDS[start:stop], "caption": [f"c{i}" for i in range(start, stop)]})
        # Its JSON is flattened: a column may be missing, or be of another type, in another part.
        known = known.assign(width=[1.0] * len(known)) if part == 0 else known.assign(height=3)
        known.to_parquet(folder / "metadata" / f"metadata_{part}.parquet")


def save_to_disk(folder: Path) -> None:
    """As datasets.Dataset.save_to_disk does, with what its cache leaves beside the data."""
    names = []
    for part, (start, stop) in enumerate([(0, 20), (20, 30)]):
        table = pa.table(
            {
                "id": IDS[start:stop],
                "image": pa.array([{"bytes": b"x", "path": None}] * (stop - start)),
                "emb": pa.array(MATRIX[start:stop].tolist(), pa.list_(pa.float32())),
            }
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {}}})})
        names.append(f"data-{part:05d}-of-00002.arrow")
        for name in (names[-1], f"cache-{part}.arrow"):
            with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table, max_chunksize=7)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def parquet(column: Any, **options: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for part, (start, stop) in enumerate([(0, 14), (14, 30)]):
            table = pa.table({"image_id": IDS[start:stop], "n": range(start, stop), **column(MATRIX[start:stop])})
            pq.write_table(table, folder / f"part-{part}.parquet", **options)

    return write


def wide(names: str, **extra: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        frame = pd.DataFrame(MATRIX, columns=[names.format(i) for i in range(D)]).assign(image_id=IDS, **extra)
        frame.to_parquet(folder / "wide.parquet")

    return write


def index(name: str | None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        frame = pd.DataFrame({"embedding": MATRIX.tolist(), "n": range(30)}, index=pd.Index(IDS, name=name))
        frame.to_parquet(folder / "a.parquet")

    return write


def array(beside: Callable[[Path], None], order: str = "C") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        np.save(folder / "vectors.npy", np.asarray(MATRIX, order=order))
        beside(folder)

    return write


def lists(kind: pa.DataType) -> Callable[[np.ndarray], dict[str, Any]]:
    return lambda matrix: {"embedding": pa.array(matrix.tolist(), kind)}


def bits(matrix: np.ndarray) -> dict[str, Any]:
    return {"embedding": pa.array(matrix.astype(np.float16).view(np.uint16).tolist(), pa.list_(pa.uint16()))}


def halves(matrix: np.ndarray) -> dict[str, Any]:
    flat = pa.array(matrix.astype(np.float16).reshape(-1))
    return {"embedding": pa.FixedSizeListArray.from_arrays(flat, D)}


HALF = 2e-3
FORMS: dict[str, tuple[Callable[[Path], None], float]] = {
    "clip-retrieval": (clip_retrieval, HALF),
    "Hugging Face on disk": (save_to_disk, 0),
    "NeMo Curator": (parquet(lists(pa.list_(pa.float64()))), 0),
    "NeMo Curator's bits": (parquet(bits), HALF),
    "halves of fixed size": (parquet(halves), HALF),
    "large lists": (parquet(lists(pa.large_list(pa.float32()))), 0),
    "wide": (wide("emb_{}"), 0),
    "wide, numbers alone": (wide("{}", label=3), 0),
    "wide, padded": (wide("feature{:04}", emb_0=1.0, emb_1=2.0), 0),
    "index": (index(None), 0),
    "named index": (index("anything"), 0),
    "array and text": (array(lambda folder: (folder / "vectors.txt").write_text("\n".join(IDS) + "\n")), 0),  # type: ignore[arg-type,return-value]
    "array and ids": (array(lambda folder: np.save(folder / "vectors_ids.npy", np.array(IDS))), 0),
    "array in the order of columns": (array(lambda folder: np.save(folder / "ids.npy", np.array(IDS)), "F"), 0),
    "array and table": (array(lambda folder: pd.DataFrame({"key": IDS}).to_parquet(folder / "vectors.parquet")), 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_a_tool_wrote_becomes_ids_and_vectors(tmp_path: Path, form: str) -> None:
    write, tolerance = FORMS[form]
    write(tmp_path)
    frame = ic.read_embeddings(tmp_path)
    part = frame.compute()
    assert part["image_id"].tolist() == IDS and list(part.columns[:2]) == ["image_id", "embedding"]
    assert vectors.to_matrix(part["embedding"]) == pytest.approx(MATRIX, abs=tolerance)
    assert part.dtypes.equals(frame._meta.dtypes)
    assert frame["image_id"].compute().tolist() == IDS and len(frame[["embedding"]].compute()) == 30
    assert ic.semantic_duplicates(frame, eps=1e-4).n_compared == 30


def test_what_else_the_files_hold_is_there_but_for_bytes_and_structures(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    clip_retrieval(tmp_path / "one")
    part = ic.read_embeddings(tmp_path / "one" / "img_emb").compute()
    assert list(part.columns) == ["image_id", "embedding", "caption", "width"]
    assert part["caption"].tolist() == [f"c{i}" for i in range(30)] and part["width"].notna().sum() == 10
    (tmp_path / "two").mkdir()
    save_to_disk(tmp_path / "two")
    assert list(ic.read_embeddings(tmp_path / "two").columns) == ["image_id", "embedding"]


def test_ids_may_be_given(tmp_path: Path) -> None:
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", MATRIX[15 * number : 15 * number + 15])
    np.save(tmp_path / "names.ids.npy", np.arange(15))
    for ids in (IDS, np.array(IDS), pd.Series(IDS), pd.Index(IDS)):
        assert ic.read_embeddings(tmp_path, ids=ids).compute()["image_id"].tolist() == IDS
    one = ic.read_embeddings(tmp_path / "0.npy", ids=tmp_path / "names.ids.npy")
    assert one.compute()["image_id"].tolist() == list(range(15))
    with pytest.raises(ValueError, match=r"embedding_field='x' names a column, and .*0\.npy is an array; leave it out"):
        ic.read_embeddings(tmp_path, ids=IDS, embedding_field="x")
    with pytest.raises(ValueError, match="20 ids were given and the arrays hold 30 vectors"):
        ic.read_embeddings(tmp_path, ids=IDS[:20])
    with pytest.raises(ValueError, match="is one file and there are 2 arrays: give the ids themselves"):
        ic.read_embeddings(tmp_path, ids=tmp_path / "names.ids.npy")
    with pytest.raises(FileNotFoundError, match=r"no ids lie beside .*0.npy \(0.parquet, .*pass them as ids="):
        ic.read_embeddings(tmp_path)


def test_large_files_are_read_in_several_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_PARTITION_BYTES", 4 * D * 7)
    array(lambda folder: np.save(folder / "ids.npy", np.array(IDS)))(tmp_path)
    (tmp_path / "tables").mkdir()
    parquet(lists(pa.list_(pa.float32())), row_group_size=5)(tmp_path / "tables")
    for path, n in ((tmp_path / "vectors.npy", 5), (tmp_path / "tables", 4)):
        frame = ic.read_embeddings(path)
        assert frame.npartitions >= n and frame.compute()["image_id"].tolist() == IDS
        assert vectors.to_matrix(frame.compute()["embedding"]).tolist() == MATRIX.tolist()


def test_nothing_is_read_before_it_is_asked_for_and_a_changed_file_is_another(tmp_path: Path) -> None:
    parquet(lists(pa.list_(pa.float32())))(tmp_path)
    frame = ic.read_embeddings(tmp_path)
    before = parts.keys_of(frame)
    assert parts.keys_of(ic.read_embeddings(tmp_path)) == before
    (tmp_path / "part-1.parquet").write_bytes(b"no Parquet")
    now = parts.keys_of(ic.read_embeddings(tmp_path))
    assert now[0] == before[0] and now[1] != before[1]
    assert frame.partitions[0].compute()["image_id"].tolist() == IDS[:14]
    with pytest.raises(ValueError, match=r"part-1.parquet cannot be read"):
        frame.compute()


def test_columns_are_named_where_it_is_not_clear_which_is_meant(tmp_path: Path) -> None:
    table = pa.table({"url": IDS, "name": IDS, "a": MATRIX.tolist(), "b": (-MATRIX).tolist()})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="several columns of vectors, 'a', 'b': name one as embedding_field="):
        ic.read_embeddings(tmp_path)
    with pytest.raises(
        ValueError, match="no column that is known to hold ids: name it as id_field=; it has 'url', 'name', 'b'"
    ):
        ic.read_embeddings(tmp_path, embedding_field="a")
    part = ic.read_embeddings(tmp_path, embedding_field="b", id_field="url").compute()
    assert part["image_id"].tolist() == IDS and vectors.to_matrix(part["embedding"])[0, 0] == -MATRIX[0, 0]
    assert list(part.columns) == ["image_id", "embedding", "name"]
    for options, name in (({"id_field": "key", "embedding_field": "a"}, "key"), ({"embedding_field": "c"}, "c")):
        with pytest.raises(KeyError, match=f"has no column '{name}'"):
            ic.read_embeddings(tmp_path, **options)
    wide("emb_{}", **{f"b{i}": 1.0 for i in range(D)})(tmp_path)
    with pytest.raises(ValueError, match="several runs of 12 numbered columns, from 'emb_0', 'b0' on"):
        ic.read_embeddings(tmp_path / "wide.parquet")
    assert len(ic.read_embeddings(tmp_path / "wide.parquet", embedding_field="emb").compute()) == 30


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            lambda f: np.save(f / "a.npy", np.array(["x", 1], dtype=object), allow_pickle=True),
            "Python objects, a pickle",
        ),
        (lambda f: np.save(f / "a.npy", MATRIX[0]), r"a.npy holds float32 of shape \(12,\), not a vector"),
        (lambda f: np.save(f / "a.npy", np.array(IDS)), "a.npy holds <U11 of shape"),
        (lambda f: (f / "a.npy").write_bytes(b""), "a.npy is no array that NumPy wrote"),
        (lambda f: np.save(f / "a.npy", MATRIX[:29]), "a.npy holds 29 vectors, and there are 30 ids of them"),
        (lambda f: (f / "a.npz").write_bytes(b"PK"), "a.npz is of no kind that is read: .npy, .parquet"),
        (lambda f: pq.write_table(pa.table({"id": IDS}), f / "a.parquet"), "no column of vectors .* it has 'id'"),
        (lambda f: (f / "a.parquet").write_bytes(b"PAR1"), "a.parquet cannot be read"),
        (lambda f: (f / "a.arrow").write_bytes(b"no Arrow at all"), "a.arrow cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path: Path, write: Callable[[Path], Any], said: str) -> None:
    write(tmp_path)
    (path,) = tmp_path.iterdir()
    (tmp_path / "a.txt").write_text("\n".join(IDS))
    with pytest.raises(ValueError, match=said):
        ic.read_embeddings(path).compute()


def test_an_array_whose_end_is_missing_is_said_to_be_so(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", MATRIX)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-8])
    with pytest.raises(ValueError, match=r"a\.npy is shorter than its header says"):
        arrays.read_matrix(str(tmp_path / "a.npy"), 3, 30, None)


def test_files_of_no_rows_are_frames_of_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_PARTITION_BYTES", 0)
    np.save(tmp_path / "a.npy", MATRIX[:0])
    pq.write_table(pa.table({"id": IDS, "emb": MATRIX.tolist()}).slice(0, 0), tmp_path / "b.parquet")
    for frame in (ic.read_embeddings(tmp_path / "a.npy", ids=[]), ic.read_embeddings(tmp_path / "b.parquet")):
        assert len(frame.compute()) == 0 and list(frame.columns) == ["image_id", "embedding"]


def test_a_folder_of_several_splits_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match=r"holds several splits: name one, such as .*/train"):
        ic.read_embeddings(tmp_path)


def test_null_vectors_stay_null_and_the_encoder_of_our_own_files_is_known(tmp_path: Path) -> None:
    column = pa.array([MATRIX[0].tolist(), None], pa.list_(pa.float32()))
    pq.write_table(pa.table({"image_id": [1, 2], "embedding": column}), tmp_path / "a.parquet")
    part = ic.read_embeddings(tmp_path / "a.parquet").compute()
    assert part["embedding"].isna().tolist() == [False, True] and part["image_id"].tolist() == [1, 2]
    ic.write_parquet(dask.dataframe.from_pandas(embedded(ONE), npartitions=2), tmp_path / "ours")
    assert identity.of_column(ic.read_embeddings(tmp_path / "ours").compute()["embedding"]) == {ONE}
