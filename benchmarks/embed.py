"""Embedding from tar shards, beside the bare model, a plain loop and sentence-transformers.

    python benchmarks/embed.py [--images 2000] [--rounds 3] [--slow 60] [--models ...] [--memory 10000] [--quick] [--output PATH]

Images: JPEGs of 1 to 12 megapixels (evenly drawn by their logarithm), cut from the photos that installed packages carry, with grain as a
camera's, quality 80 to 95. There are 200 different ones; shards repeat them. ViT-L/14, of which a second does two or three, is given a
tenth of them.

Models: EfficientNet-Lite0, and CLIP's ViT-B/32 and ViT-L/14 in their true configuration with random weights, which serve for speed.

imgcurate            read_webdataset and embed on a LocalCluster of one worker with all cores, or of one for each core.
bare model           the forward pass alone, on tensors that are ready, in the type and in batches of the size that imgcurate computes in: the
                     limit. In one process with all cores and in one for each core; the faster counts.
decoding             imgcurate's reading, decoding and resizing alone, on all cores.
plain loop           PIL, CLIPImageProcessor and CLIPModel in float32, 32 images a batch, all cores for torch: what NeMo Curator runs.
sentence-transformers  its CLIPModel and encode, as it comes: where it is installed.

Everybody takes turns in a process of its own, and ratios are taken round by round. One that took more than ``--slow`` seconds is not asked
again. Cores decode and compute here, so that no embedding
can be faster than ``1 / (1 / bare + 1 / decoding)``: `of_limit` is the share of that. Where others use the machine, seconds of CPU say
more than rates: `cpu_ms` are those of an image, `of_bare_cpu` and `of_limit_cpu` the same shares in them.

The memory of the workers is sampled while EfficientNet-Lite0 embeds 10,000 images. Results go to benchmarks/results/embed.json.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import io
import itertools
import json
import math
import multiprocessing
import os
import random
import statistics
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from turns import Contestant, serve

DISTINCT, SHARD = 200, 25
MODELS = ("efficientnet-lite0", "ViT-B/32", "ViT-L/14")
# Of how many images in ten each model is given.
SHARE = {"efficientnet-lite0": 10, "ViT-B/32": 10, "ViT-L/14": 1}
VISION = {
    "ViT-B/32": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32, "intermediate_size": 3072},
    "ViT-L/14": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "intermediate_size": 4096},
}  # fmt: skip
PROJECTION = {"ViT-B/32": 512, "ViT-L/14": 768}

Options = dict[str, Any]
Round = dict[str, Any]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=2000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--slow", type=float, default=60, help="seconds after which a contestant is not asked again")
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments.add_argument("--memory", type=int, default=10_000, help="images of the memory curve; 0 leaves it out")
    arguments.add_argument("--cores", type=int, default=os.cpu_count())
    arguments.add_argument("--quick", action="store_true", help="few images, to see that it runs; nothing is written")
    arguments.add_argument("--output", type=Path)
    options = arguments.parse_args()
    if options.quick:
        options.images, options.rounds, options.memory = 40, 1, 80
    output = options.output or (None if options.quick else Path(__file__).parent / "results" / "embed.json")
    # What is not measured this time stays as it was.
    report: dict[str, Any] = json.loads(output.read_text()) if output and output.exists() else {"models": {}}
    report["run"] = settings(options)
    with tempfile.TemporaryDirectory(prefix="imgcurate-bench-") as folder:
        made = make_images(Path(folder) / "distinct", min(DISTINCT, options.images))
        report["images"] = made
        for model in options.models:
            shards = repeat(Path(folder), model, options.images * SHARE[model] // 10)
            report["models"][model] = measure(model, shards, options)
            show(model, report["models"][model])
        if options.memory:
            shards = repeat(Path(folder), "memory", options.memory)
            with Contestant(Path(__file__), "memory", {"shards": str(shards), "cores": options.cores}) as contestant:
                report["memory"] = contestant.round()
            print(
                f"memory of the workers, MiB, the highest in each tenth of {options.memory} images: {report['memory']['mib']}"
            )
    if output:
        output.write_text(json.dumps(report, indent=2) + "\n")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    packages = ("imgcurate", "torch", "transformers", "pillow", "dask", "sentence-transformers")
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]  # fmt: skip
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{names[0] if names else 'unknown'}, {options.cores} cores",
        "images": options.images,
        "rounds": options.rounds,
        "not_repeated_above_seconds": options.slow,
        "versions": {name: importlib.metadata.version(name) for name in packages if is_installed(name)},
    }


def is_installed(name: str) -> bool:
    return importlib.util.find_spec({"pillow": "PIL"}.get(name, name).replace("-", "_")) is not None


def make_images(folder: Path, count: int) -> dict[str, Any]:
    from PIL import Image

    from imgcurate import demo

    photos = [photo.path for photo in demo.photos(fewest=1)]
    photos = [path for path in photos if min(Image.open(path).size) >= 400]
    folder.mkdir()
    # One takes half a second of a core.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        made = list(pool.map(make_image, itertools.repeat(photos), itertools.repeat(folder), range(count)))
    megapixels, sizes = zip(*made, strict=True)
    return {
        "distinct": count,
        "photos": len(photos),
        "megapixels": [round(value, 2) for value in (min(megapixels), statistics.mean(megapixels), max(megapixels))],
        "megabytes": round(statistics.mean(sizes), 3),
    }


def make_image(photos: list[Path], folder: Path, number: int) -> tuple[float, float]:
    """Write one, and return its megapixels and megabytes."""
    import numpy as np
    from PIL import Image

    draw, noise = random.Random(number), np.random.default_rng(number)
    image = Image.open(draw.choice(photos)).convert("RGB")
    width = draw.randint(min(image.size) * 6 // 10, min(image.size))
    height = int(width * draw.uniform(0.66, 1.0))
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    wanted = math.exp(draw.uniform(math.log(1e6), math.log(12e6)))
    scale = math.sqrt(wanted / (width * height))
    box = (left, top, left + width, top + height)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS, box=box)
    pixels = np.asarray(image).astype(np.float32)
    pixels += noise.standard_normal(pixels.shape, dtype=np.float32) * 4
    path = folder / f"{number:05d}.jpg"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=draw.randint(80, 95))
    return image.width * image.height / 1e6, path.stat().st_size / 1e6


def repeat(folder: Path, model: str, count: int, size: int = SHARD) -> Path:
    """Write shards of `size` images, `count` in all, and link those that would be the same."""
    files = sorted((folder / "distinct").iterdir())
    target = folder / model.replace("/", "-")
    target.mkdir()
    written: dict[int, Path] = {}
    for number, start in enumerate(range(0, count, size)):
        shard = target / f"{number:05d}.tar"
        first = start % len(files)
        if first in written and count - start >= size:
            shard.hardlink_to(written[first])
            continue
        with tarfile.open(shard, "w") as tar:
            for place in range(start, min(start + size, count)):
                tar.add(files[place % len(files)], f"{place - start:06d}.jpg")
        written[first] = shard
    return target


def measure(model: str, shards: Path, options: argparse.Namespace) -> dict[str, Any]:
    checkpoint = shards.parent / "models" / model.replace("/", "-")
    if model in VISION and not checkpoint.exists():
        make_model(checkpoint, model)
    given = {
        "shards": str(shards),
        "images": options.images * SHARE[model] // 10,
        "cores": options.cores,
        "model": str(checkpoint) if model in VISION else model,
    }
    names = ["imgcurate, 1 worker", f"imgcurate, {options.cores} workers", "bare", "bare, a process a core", "decoding"]
    if model in VISION:
        names.append("plain loop")
        if is_installed("sentence-transformers"):
            names.append("sentence-transformers")
    rounds: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            if any(found["seconds"] > options.slow for found in rounds[name]):
                continue
            print(f"{model}, round {number + 1} of {options.rounds}: {name} ...", file=sys.stderr)
            with ExitStack() as stack:
                contestant = stack.enter_context(Contestant(Path(__file__), name, given))
                rounds[name].append(contestant.round())
    rates = {name: [given["images"] / found["seconds"] for found in some] for name, some in rounds.items()}
    # Of those that were not asked in all rounds only the first ones count.
    bare = [max(pair) for pair in zip(rates["bare"], rates["bare, a process a core"], strict=False)]
    limit = [1 / (1 / a + 1 / b) for a, b in zip(bare, rates["decoding"], strict=False)]
    best = max(
        (name for name in names if name.startswith("imgcurate")), key=lambda name: statistics.median(rates[name])
    )
    ours = rates[best]
    cpu = {
        name: [found["cpu_seconds"] / given["images"] * 1e3 for found in some]
        for name, some in rounds.items()
        if "cpu_seconds" in some[0]
    }
    cheapest = min(statistics.median(cpu["bare"]), statistics.median(cpu["bare, a process a core"]))
    spent = min(statistics.median(values) for name, values in cpu.items() if name.startswith("imgcurate"))
    peers = [name for name in ("plain loop", "sentence-transformers") if name in rates]
    return {
        "images": given["images"],
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        "best": best,
        "of_bare": spread([a / b for a, b in zip(ours, bare, strict=False)], 3),
        "of_limit": spread([a / b for a, b in zip(ours, limit, strict=False)], 3),
        "cpu_ms": {name: spread(values, 2) for name, values in cpu.items()},
        "of_bare_cpu": round(cheapest / spent, 3),
        "of_limit_cpu": round((cheapest + statistics.median(cpu["decoding"])) / spent, 3),
        "ratio": {name: spread([a / b for a, b in zip(ours, rates[name], strict=False)], 2) for name in peers},
        "peak_mib": {name: max(found["peak_mib"] for found in some) for name, some in rounds.items()},
    }


def show(model: str, found: dict[str, Any]) -> None:
    print(f"\n{model}, {found['images']} images; images per second, median (min to max)")
    for name, rate in found["images_per_second"].items():
        print(f"  {name:<26}{rate['median']:>8.1f} ({rate['min']:.1f} to {rate['max']:.1f})")
    print(
        f"  {found['best']}: {found['of_bare']['median']:.0%} of the bare model, {found['of_limit']['median']:.0%} of the limit; "
        f"in seconds of CPU {found['of_bare_cpu']:.0%} and {found['of_limit_cpu']:.0%}"
    )
    for name, ratio in found["ratio"].items():
        print(f"  {ratio['median']:.1f} x {name}")


def spread(values: list[float], digits: int = 1) -> dict[str, float]:
    return {name: round(of(values), digits) for name, of in (("min", min), ("median", statistics.median), ("max", max))}


def make_model(folder: Path, model: str) -> None:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    config = CLIPConfig(vision_config=VISION[model], projection_dim=PROJECTION[model])
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)


def imgcurate_job(workers: int, options: Options) -> Iterator[Round]:
    import imgcurate as ic

    with ic.connect(devices=[], workers=workers) as client:

        def load(model: str) -> None:
            from imgcurate.encoders import load_encoder

            # Its weights are read once more for the fingerprint, which the vectors are marked with.
            encoder = load_encoder(model, device="cpu")
            assert encoder.identity and encoder.batch_size

        client.run(load, options["model"])
        frame = ic.read_webdataset(options["shards"]).persist()
        len(frame)
        yield {}
        while True:
            before, started = sum(client.run(time.process_time).values()), time.perf_counter()
            done = ic.embed(frame, options["model"])[["embedding", "error"]].persist()
            failed = int(done["error"].count().compute())
            seconds = time.perf_counter() - started
            spent = sum(client.run(time.process_time).values()) - before
            assert not failed, f"{failed} images failed"
            yield {"seconds": seconds, "cpu_seconds": spent, "peak_mib": max(client.run(peak_mib).values())}


def one_worker(options: Options) -> Iterator[Round]:
    return imgcurate_job(1, options)


def worker_a_core(options: Options) -> Iterator[Round]:
    return imgcurate_job(options["cores"], options)


def bare(options: Options) -> Iterator[Round]:
    import torch

    work = forward(options["model"])
    yield {}
    while True:
        torch.set_num_threads(options["cores"])
        seconds, spent = work(options["images"])
        yield {"seconds": seconds, "cpu_seconds": spent, "peak_mib": peak_mib()}


def bare_processes(options: Options) -> Iterator[Round]:
    """The same in one process a core, which start together."""
    cores = options["cores"]
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(cores), context.Queue()
    share = options["images"] / cores
    yield {}
    while True:
        processes = [
            context.Process(target=alone, args=(options["model"], share, barrier, answers)) for _ in range(cores)
        ]
        for process in processes:
            process.start()
        found = [answers.get() for _ in processes]
        for process in processes:
            process.join()
        seconds, spent, peaks = zip(*found, strict=True)
        yield {"seconds": max(seconds), "cpu_seconds": sum(spent), "peak_mib": max(peaks)}


def alone(model: str, images: float, barrier: Any, answers: Any) -> None:
    import torch

    torch.set_num_threads(1)
    work = forward(model)
    barrier.wait()
    answers.put((*work(images), peak_mib()))


def forward(model: str) -> Any:
    import numpy as np
    import torch

    from imgcurate.cluster.freed import keep_freed_memory
    from imgcurate.encoders import load_encoder

    keep_freed_memory()
    encoder = load_encoder(model, device="cpu")
    size = encoder.batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (size, 224, 224, 3), dtype=np.uint8)
    ready = encoder.preparation.inputs(list(pixels), encoder.device)
    if model == "efficientnet-lite0":
        ready["pixel_values"] = ready["pixel_values"].to(memory_format=torch.channels_last)

    @torch.no_grad()
    def work(images: float) -> tuple[float, float]:
        encoder.network(**ready)
        batches = max(1, round(images / size))
        started, before = time.perf_counter(), time.process_time()
        for _ in range(batches):
            encoder.network(**ready)
        share = images / (batches * size)
        return (time.perf_counter() - started) * share, (time.process_time() - before) * share

    return work


def decoding(options: Options) -> Iterator[Round]:
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from imgcurate import pixels
    from imgcurate.cluster.freed import keep_freed_memory
    from imgcurate.encoders.efficientnet import PREPARATION as prepare

    torch.set_num_threads(1)
    keep_freed_memory()
    places = []
    for path in sorted(Path(options["shards"]).glob("*.tar")):
        with tarfile.open(path) as tar:
            places += [(str(path), info.offset_data, info.size) for info in tar]

    def decode(some: list[tuple[str, int, int]]) -> None:
        for data in pixels.read_images(some):
            prepare(pixels.decode_picture(data, prepare.enough))

    cores = options["cores"]
    yield {}
    while True:
        torch.set_num_threads(1)
        started, before = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(decode, [places[at : at + 25] for at in range(0, len(places), 25)]))
        seconds, spent = time.perf_counter() - started, time.process_time() - before
        yield {"seconds": seconds, "cpu_seconds": spent, "peak_mib": peak_mib()}


def plain_loop(options: Options) -> Iterator[Round]:
    import torch
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(options["model"]).eval()
    processor = CLIPImageProcessorPil.from_pretrained(options["model"])

    @torch.no_grad()
    def work() -> None:
        for some in batches(options["shards"], 32):
            images = [Image.open(io.BytesIO(data)).convert("RGB") for data in some]
            features = model.get_image_features(**processor(images, return_tensors="pt")).pooler_output
            features /= features.norm(dim=1, keepdim=True)

    yield {}
    while True:
        started = time.perf_counter()
        work()
        yield {"seconds": time.perf_counter() - started, "peak_mib": peak_mib()}


def sentence_transformers(options: Options) -> Iterator[Round]:
    from PIL import Image
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import CLIPModel

    model = SentenceTransformer(modules=[CLIPModel(options["model"])], device="cpu")
    yield {}
    while True:
        started = time.perf_counter()
        for some in batches(options["shards"], 32):
            model.encode([Image.open(io.BytesIO(data)) for data in some], normalize_embeddings=True)
        yield {"seconds": time.perf_counter() - started, "peak_mib": peak_mib()}


def memory(options: Options) -> Iterator[Round]:
    import imgcurate as ic

    with ic.connect(devices=[], workers=options["cores"]) as client:
        frame = ic.read_webdataset(options["shards"]).persist()
        count = len(frame)
        yield {}
        while True:
            samples: list[tuple[float, float]] = []
            stop = threading.Event()

            def watch(stop: threading.Event = stop, samples: list[tuple[float, float]] = samples) -> None:
                while not stop.wait(1):
                    known = client.scheduler_info()["workers"].values()
                    samples.append((time.perf_counter(), sum(worker["metrics"]["memory"] for worker in known) / 2**20))

            watcher = threading.Thread(target=watch)
            watcher.start()
            started = time.perf_counter()
            # Only the number of vectors comes back, as where each partition is written when it is made.
            ic.embed(frame, "efficientnet-lite0")["embedding"].count().compute()
            seconds = time.perf_counter() - started
            stop.set()
            watcher.join()
            tenth = seconds / 10
            curve = [
                max((mib for at, mib in samples if start <= at - started < start + tenth), default=0.0)
                for start in (number * tenth for number in range(10))
            ]
            yield {"images": count, "seconds": round(seconds, 1), "mib": [round(mib) for mib in curve]}


def batches(shards: str, size: int) -> Iterator[list[bytes]]:
    some: list[bytes] = []
    for path in sorted(Path(shards).glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                some.append(tar.extractfile(info).read())
                if len(some) == size:
                    yield some
                    some = []
    if some:
        yield some


def peak_mib() -> float:
    """Peak resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2].startswith("{"):
        workers = f"imgcurate, {json.loads(sys.argv[2])['cores']} workers"
        serve(
            {
                workers: worker_a_core,
                "imgcurate, 1 worker": one_worker,
                "bare": bare,
                "bare, a process a core": bare_processes,
                "decoding": decoding,
                "plain loop": plain_loop,
                "sentence-transformers": sentence_transformers,
                "memory": memory,
            }
        )
    else:
        main()
