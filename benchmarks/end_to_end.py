"""The whole job, step by step, against a plain loop and against the bare model.

    python benchmarks/end_to_end.py [--images 1000] [--rounds 3]

Makes shards of JPEGs cut from the photos that installed packages carry (other sizes, places and qualities each), with a fifth of
them re-encoded copies, and runs each step of the job on them:

- imgcurate: a LocalCluster on all cores, through the public verbs.
- plain loop: what one writes by hand, in one process with all cores for torch: tarfile, PIL, CLIPProcessor, CLIPModel in
  float32, the heads in torch, a full similarity matrix, tarfile again.
- bare model: the forward pass alone on tensors that are ready, in the type imgcurate computes in: the limit of "embed".

"embed" runs on the images; the other steps, which take a thousandth of its time, on ten times as many samples, and "score" on fifty
times as many, so that they are measured rather than the tenth of a second that a cluster takes to answer. Those samples are the
same shard again and again, and vectors drawn at random with a fifth of them near-duplicates. The total is of one image through all
steps.

The network is ViT-B/32 in its true configuration but for a projection of 768, which the heads take, with random weights: they
serve for speed. Images per second; the ratio is imgcurate's to the plain loop's, in one run. Memory is the peak of the largest
process, for a quarter of the images and for all of them.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import io
import itertools
import json
import platform
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

STEPS = ("read", "embed", "score", "dedup", "write")
EPS = 0.001
TIMES = {"read": 10, "embed": 1, "score": 50, "dedup": 10, "write": 10}
BATCH = 8  # of the bare model: its fastest on CPU cores, and what embed uses
SHARD = 250


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](Path(options.child[1]))))
        return
    with tempfile.TemporaryDirectory(prefix="imgcurate-bench-") as folder:
        report = run(Path(folder), options.images, options.rounds)
    show(report)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "end_to_end.json").write_text(json.dumps(report, indent=2) + "\n")


def run(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    print(f"making {images} JPEGs ...", file=sys.stderr)
    for name, count in (("all", images), ("quarter", images // 4)):
        make_shards(folder / name / "images", count)
        repeat_shards(folder / name)
    make_models(folder / "models")
    measured: dict[str, list[dict[str, float]]] = {"imgcurate": [], "plain": [], "bare": []}
    for number in range(rounds):
        for name in measured:
            print(f"round {number + 1} of {rounds}: {name} ...", file=sys.stderr)
            measured[name].append(child(name, folder / "all"))
    quarter = {name: child(name, folder / "quarter") for name in ("imgcurate", "plain")}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("imgcurate", "torch", "transformers", "pillow", "dask")
        },
        "images": images,
        "megabytes": round(sum(path.stat().st_size for path in (folder / "all" / "images").glob("*.tar")) / 1e6),
        "images_per_second": {name: rates(runs, images) for name, runs in measured.items()},
        "peak_mib": {
            name: {"quarter": quarter[name]["peak_mib"], "all": max(run["peak_mib"] for run in measured[name])}
            for name in quarter
        },
        "removed": {name: measured[name][0]["removed"] for name in ("imgcurate", "plain")},
    }


def rates(runs: list[dict[str, float]], images: int) -> dict[str, list[float]]:
    """Images per second of each step and, where all were run, of one image through all of them."""
    found = {step: [images * TIMES[step] / run[step] for run in runs] for step in STEPS if step in runs[0]}
    if len(found) == len(STEPS):
        found["total"] = [1 / sum(1 / found[step][number] for step in STEPS) for number in range(len(runs))]
    return {step: [round(rate, 1) for rate in values] for step, values in found.items()}


def show(report: dict[str, Any]) -> None:
    rates = report["images_per_second"]
    print(
        f"{report['machine']}; {report['images']} JPEGs, {report['megabytes']} MB; images per second, median (min to max)\n"
    )
    print(f"{'step':<8}{'imgcurate':>24}{'plain loop':>24}{'ratio':>8}")
    for step in (*STEPS, "total"):
        ours, plain = rates["imgcurate"][step], rates["plain"][step]
        ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
        print(f"{step:<8}{spread(ours):>24}{spread(plain):>24}{ratio:>8.2f}")
    limit = statistics.median(a / b for a, b in zip(rates["imgcurate"]["embed"], rates["bare"]["embed"], strict=True))
    print(f"\nbare model {spread(rates['bare']['embed'])}; embed reaches {limit:.0%} of it")
    for name, peak in report["peak_mib"].items():
        print(
            f"peak memory of {name}: {peak['quarter']:,.0f} MiB for a quarter of the images, {peak['all']:,.0f} MiB for all"
        )
    print(f"removed: {report['removed']}")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def child(name: str, shards: Path) -> dict[str, float]:
    """Run one side in a process of its own, so that neither inherits the other's caches, threads or memory."""
    command = [sys.executable, __file__, "--child", name, str(shards)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def machine() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"


def make_shards(folder: Path, images: int) -> None:
    from PIL import Image

    from imgcurate import demo

    rng = random.Random(0)
    photos = [Image.open(photo.path).convert("RGB") for photo in demo.photos()]
    photos = [photo for photo in photos if min(photo.size) >= 400]
    folder.mkdir(parents=True)
    members: list[list[bytes]] = []
    for number in range(images):
        if number % 5 == 4:
            image = Image.open(io.BytesIO(members[number - 3][0]))
        else:
            photo = rng.choice(photos)
            width = rng.randint(min(photo.size) * 6 // 10, min(photo.size))
            height = int(width * rng.uniform(0.66, 1.0))
            left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
            image = photo.crop((left, top, left + width, top + height))
            side = rng.randint(900, 1800)
            image = image.resize((side, side * height // width))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(80, 95))
        members.append([buffer.getvalue(), f"caption {number}".encode(), json.dumps({"number": number}).encode()])
    for start in range(0, images, SHARD):
        with tarfile.open(folder / f"{start // SHARD:05d}.tar", "w") as tar:
            for number, contents in enumerate(members[start : start + SHARD], start):
                for extension, content in zip(("jpg", "txt", "json"), contents, strict=True):
                    add(tar, f"{number:06d}.{extension}", content)


def repeat_shards(folder: Path) -> None:
    """Link one shard of all the images ten times: many samples without ten times the disk."""
    (folder / "many").mkdir()
    with tarfile.open(folder / "one.tar", "w") as one:
        for path in sorted((folder / "images").glob("*.tar")):
            with tarfile.open(path) as tar:
                for info in tar:
                    one.addfile(info, tar.extractfile(info))
    for number in range(TIMES["read"]):
        (folder / "many" / f"{number:05d}.tar").hardlink_to(folder / "one.tar")


def vectors_for(samples: int) -> Any:
    """Random unit vectors of which every fifth is a near-duplicate of the one before."""
    import numpy as np

    found = np.random.default_rng(0).standard_normal((samples, 768), dtype=np.float32)
    found[4::5] = found[3::5][: len(found[4::5])] + 0.01 * found[4::5]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def make_models(folder: Path) -> None:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    vision = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 32,
        "intermediate_size": 3072,
    }
    # Larger weights than usual, so that different pictures get different vectors without training.
    CLIPModel(CLIPConfig(vision_config={**vision, "initializer_factor": 3.0}, projection_dim=768)).save_pretrained(
        folder / "clip"
    )
    CLIPImageProcessorPil().save_pretrained(folder / "clip")
    torch.save(aesthetic_head().state_dict(), folder / "sac+logos+ava1-l14-linearMSE.pth")
    nsfw = nsfw_head()
    state = {f"linear_{i + 1}.{key}": value for i in range(4) for key, value in nsfw[2 * i].state_dict().items()}
    state |= {"norm.mean": torch.zeros(768), "norm.variance": torch.ones(768)}
    torch.save(state, folder / "clip_autokeras_binary_nsfw.pth")


def aesthetic_head() -> Any:
    from torch import nn

    widths = (768, 1024, 128, 64, 16, 1)
    linear = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    head = nn.Module()
    head.layers = nn.Sequential(
        linear[0], nn.Dropout(), linear[1], nn.Dropout(), linear[2], nn.Dropout(), linear[3], linear[4]
    )
    return head.eval()


def nsfw_head() -> Any:
    from torch import nn

    widths = (768, 64, 512, 256, 1)
    linear = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(
        linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2], nn.ReLU(), linear[3], nn.Sigmoid()
    ).eval()


def imgcurate_job(shards: Path) -> dict[str, float]:
    import dask.dataframe as dd

    import imgcurate as ic
    from imgcurate import vectors

    models = shards.parent / "models"
    seconds: dict[str, float] = {}
    with ic.connect(devices=[]) as client:

        def held(frame: Any) -> Any:
            frame = frame.persist()
            len(frame)
            return frame

        warm_up(client, models)
        images = held(ic.read_webdataset(shards / "images"))
        timed(seconds, "embed", lambda: held(ic.embed(images, "clip", model_dir=models)))
        frame = timed(seconds, "read", lambda: held(ic.read_webdataset(shards / "many")))
        part = frame.compute()
        part = part[["image_id"]].assign(embedding=vectors.to_column(vectors_for(len(part)), like=part))
        embedded = held(dd.from_pandas(part.reset_index(drop=True), npartitions=frame.npartitions, sort=False))
        unscored = held(dd.concat([embedded] * (TIMES["score"] // TIMES["dedup"])))

        def score() -> None:
            held(ic.score_nsfw(ic.score_aesthetic(unscored, model_dir=models), model_dir=models))

        timed(seconds, "score", score)
        removals = timed(seconds, "dedup", lambda: ic.semantic_duplicates(embedded, eps=EPS).removals().compute())
        kept = ic.remove(frame, removals)
        for _ in range(2):  # the first finds the system's file cache cold
            with tempfile.TemporaryDirectory(dir=shards.parent) as out:
                timed(seconds, "write", partial(ic.write_webdataset, kept, out, samples_per_shard=SHARD))
        peaks = client.run(peak_mib)
    return {**seconds, "peak_mib": max(peaks.values()), "removed": len(removals)}


def warm_up(client: Any, models: Path) -> None:
    """Load the models on every worker, as the plain loop does before its clock starts."""

    def load(folder: Path) -> None:
        from imgcurate import weights
        from imgcurate.encoders import load_encoder
        from imgcurate.scores import aesthetic, nsfw

        load_encoder(str(folder / "clip"), device="cpu")
        for module in (aesthetic, nsfw):
            path = module.weights_path(folder)
            module.HEAD.load(str(path), weights.fingerprint(path))

    load(models)
    client.run(load, models)


def plain_loop(shards: Path) -> dict[str, float]:
    import numpy as np
    import torch
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPModel

    models = shards.parent / "models"
    model = CLIPModel.from_pretrained(models / "clip").eval()
    processor = CLIPImageProcessorPil.from_pretrained(models / "clip")
    aesthetic, nsfw = aesthetic_head(), nsfw_head()
    seconds: dict[str, float] = {}

    def read(folder: Path) -> dict[str, dict[str, tuple[str, int, int]]]:
        samples: dict[str, dict[str, tuple[str, int, int]]] = {}
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path) as tar:
                for info in tar:
                    key, _, extension = info.name.partition(".")
                    place = (str(path), info.offset_data, info.size)
                    samples.setdefault(f"{path.stem}/{key}", {})[extension] = place
        for sample in samples.values():
            fetch(sample["txt"]).decode(), fetch(sample["json"]).decode()
        return samples

    def fetch(place: tuple[str, int, int]) -> bytes:
        path, offset, size = place
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    @torch.no_grad()
    def embed(samples: list[dict[str, tuple[str, int, int]]]) -> None:
        for start in range(0, len(samples), 32):
            images = [
                Image.open(io.BytesIO(fetch(sample["jpg"]))).convert("RGB") for sample in samples[start : start + 32]
            ]
            features = model.get_image_features(**processor(images, return_tensors="pt")).pooler_output
            features /= features.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def score() -> Any:
        return aesthetic.layers(unscored), nsfw(unscored)

    def dedup() -> Any:
        similar = torch.triu(vectors @ vectors.T, diagonal=1)
        return np.flatnonzero((similar.max(0).values >= 1 - EPS).numpy())

    def write(out: Path) -> None:
        removed = set(duplicates.tolist())
        kept = [name for place, name in enumerate(samples) if place not in removed]
        for number, start in enumerate(range(0, len(kept), SHARD)):
            with tarfile.open(out / f"{number:05d}.tar", "w") as tar:
                for name in kept[start : start + SHARD]:
                    for extension, place in samples[name].items():
                        add(tar, f"{name.partition('/')[2]}.{extension}", fetch(place))

    images = list(read(shards / "images").values())
    timed(seconds, "embed", lambda: embed(images))
    samples = timed(seconds, "read", lambda: read(shards / "many"))
    vectors = torch.from_numpy(vectors_for(len(samples)))
    unscored = vectors.repeat(TIMES["score"] // TIMES["dedup"], 1)
    timed(seconds, "score", score)
    duplicates = timed(seconds, "dedup", dedup)
    for _ in range(2):
        with tempfile.TemporaryDirectory(dir=shards.parent) as out:
            timed(seconds, "write", partial(write, Path(out)))
    return {**seconds, "peak_mib": peak_mib(), "removed": len(duplicates)}


def bare_model(shards: Path) -> dict[str, float]:
    import numpy as np

    from imgcurate.encoders import load_encoder

    encoder = load_encoder(str(shards.parent / "models" / "clip"), device="cpu")
    images = 0
    for path in (shards / "images").glob("*.tar"):
        with tarfile.open(path) as tar:
            images += sum(info.name.endswith(".jpg") for info in tar)
    batch = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
    encoder.encode(batch)
    seconds: dict[str, float] = {}
    timed(seconds, "embed", lambda: [encoder.encode(batch) for _ in range(images // BATCH)])
    return {"embed": seconds["embed"] * images / (images // BATCH * BATCH)}


def timed(seconds: dict[str, float], step: str, work: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = work()
    seconds[step] = time.perf_counter() - started
    return result


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def peak_mib() -> float:
    """Peak resident memory of this process. Not getrusage's: that one remembers the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


CHILDREN = {"imgcurate": imgcurate_job, "plain": plain_loop, "bare": bare_model}

if __name__ == "__main__":
    main()
