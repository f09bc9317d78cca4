"""Do `imgcurate.flag` and cleanvision say the same of the same images, and do they name images that were spoilt on purpose?

    pip install cleanvision
    python benchmarks/flags.py [FOLDER ...]

Images: those of each folder as they are (default: the photos that installed packages carry); and of each folder that is named with ``--spoil``, and of
those photos, the images made dark, light, blurred, grey, or blank with some noise, as JPEGs. Both tools look at the same files with their
defaults; where cleanvision stops at a file it is left out of the comparison, and counted.

Of each flag: how many images both name, one alone, neither, and in which share they agree. What differs by definition:

- dark and light: cleanvision looks at the 99th and the 5th percentile of the brightness of the pixels, imgcurate at mean and spread.
- blurry: cleanvision shrinks an image to 64 pixels first, so that only what is blurred beyond recognition is blurry; imgcurate looks at its pixels.
- low_information: cleanvision takes the entropy of the three colours' histograms at once, or of a palette's numbers, imgcurate that of the greys.
- greyscale: cleanvision asks whether the file is stored as grey, imgcurate whether there is colour in it.
- transparency: cleanvision looks at the pixels below it, imgcurate lays them over white.
- odd_size: cleanvision takes three times the interquartile range from the quartiles on, imgcurate four times the median; so of images that have
  nearly the same size cleanvision names some, and of a mixture none.

Seconds are of one run each, all seven flags, on all cores: of imgcurate with decoding in threads of a cluster that is there, of cleanvision in
its processes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from end_to_end import machine
from PIL import Image, ImageFilter, ImageOps

#: What cleanvision calls each flag.
NAMES = {
    "dark": "dark",
    "light": "light",
    "blurry": "blurry",
    "low_information": "low_information",
    "greyscale": "grayscale",
    "odd_aspect": "odd_aspect_ratio",
    "odd_size": "odd_size",
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folders", nargs="*", type=Path, help="images that are looked at as they are")
    arguments.add_argument(
        "--spoil", nargs="*", type=Path, default=[], help="photos of which spoilt copies are made too"
    )
    arguments.add_argument("--note", default="", help="said beside the results, such as what else the machine did")
    options = arguments.parse_args()
    import imgcurate as ic
    from imgcurate import demo

    carried = [photo.path for photo in demo.photos()]
    sets = {folder.name: files_of(folder) for folder in options.folders} | {"packages": carried}
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "note": options.note,
        "versions": {name: importlib.metadata.version(name) for name in ("cleanvision", "pillow")},
        "as they are": {},
    }
    with ic.connect(devices=[]), tempfile.TemporaryDirectory(prefix="imgcurate-bench-") as scratch:
        for name, files in sets.items():
            report["as they are"][name] = agreement(*look(files))
        photos = [path for folder in options.spoil for path in files_of(folder)] + carried
        made: dict[str, list[Path]] = {}
        for path in photos:
            for how, image in spoilt(ImageOps.exif_transpose(Image.open(path)).convert("RGB")):
                made.setdefault(how, []).append(Path(scratch) / f"{how}-{len(made.get(how, []))}.jpg")
                image.save(made[how][-1], quality=90)
        ours, theirs, _ = look([path for paths in made.values() for path in paths])
        report["photos spoilt"] = len(photos)
        report["named of the spoilt"] = {
            how: {
                flag: {
                    "imgcurate": float(ours.loc[list(map(str, paths)), flag].mean()),
                    "cleanvision": float(theirs.loc[list(map(str, paths)), flag].mean()),
                }
                for flag in NAMES
                if flag not in ("odd_size", "odd_aspect")
            }
            for how, paths in made.items()
        }
    show(report)
    (Path(__file__).parent / "results" / "flags.json").write_text(json.dumps(report, indent=2) + "\n")


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))


def spoilt(photo: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """Yield a photo as it is and in ways that are wrong."""
    side = max(photo.size)
    yield "as it is", photo
    yield "30 % as bright", photo.point(lambda value: int(0.3 * value))
    yield "15 % as bright", photo.point(lambda value: int(0.15 * value))
    yield "15 % as far from white", photo.point(lambda value: int(255 - 0.15 * (255 - value)))
    yield "blur of 0.2 %", photo.filter(ImageFilter.GaussianBlur(0.002 * side))
    yield "blur of 0.5 %", photo.filter(ImageFilter.GaussianBlur(0.005 * side))
    yield "blur of 1 %", photo.filter(ImageFilter.GaussianBlur(0.01 * side))
    yield "blur of 2 %", photo.filter(ImageFilter.GaussianBlur(0.02 * side))
    yield "grey, stored as colour", photo.convert("L").convert("RGB")
    noise = np.random.default_rng(0).normal(128, 0.7, (photo.height, photo.width, 1)).repeat(3, axis=2)
    yield "blank, with some noise", Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def look(files: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """Return the flags that both tools give files, by path, and their seconds."""
    import imgcurate as ic

    started = time.perf_counter()
    frame = ic.measure(ic.read_files([str(path) for path in files])).persist()
    ours = ic.flag(frame).compute()
    seconds = {"imgcurate": time.perf_counter() - started}
    ours = ours.set_index(ours["url"].str.removeprefix("file://"))[list(NAMES)]
    started = time.perf_counter()
    theirs = by_cleanvision(files)
    seconds["cleanvision"] = time.perf_counter() - started
    return ours, theirs, {name: round(value, 2) for name, value in seconds.items()}


def by_cleanvision(files: list[Path]) -> pd.DataFrame:
    """Return cleanvision's flags of those files at which it does not stop."""
    from cleanvision import Imagelab
    from cleanvision.issue_managers.image_property import BrightnessProperty

    taken = []
    for path in files:
        with contextlib.suppress(
            Exception
        ):  # of some modes it cannot tell the brightness, and one such file ends its run
            BrightnessProperty("dark").calculate(Image.open(path))
            taken.append(str(path))
    with contextlib.redirect_stdout(io.StringIO()):
        lab = Imagelab(filepaths=taken)
        lab.find_issues({name: {} for name in NAMES.values()}, n_jobs=os.cpu_count(), verbose=False)
    found = lab.issues
    return pd.DataFrame({flag: found[f"is_{name}_issue"].astype(bool) for flag, name in NAMES.items()})


def agreement(ours: pd.DataFrame, theirs: pd.DataFrame, seconds: dict[str, float]) -> dict[str, Any]:
    table = {}
    for flag in NAMES:
        a, b = ours.loc[theirs.index, flag], theirs[flag]
        table[flag] = {
            "both": int((a & b).sum()),
            "imgcurate alone": int((a & ~b).sum()),
            "cleanvision alone": int((~a & b).sum()),
            "neither": int((~a & ~b).sum()),
            "agreement": round(float((a == b).mean()), 4),
        }
    left_out = len(ours) - len(theirs)
    return {"images": len(ours), "cleanvision stops at": left_out, "seconds": seconds, "flags": table}


def show(report: dict[str, Any]) -> None:
    for name, found in report["as they are"].items():
        print(
            f"{name}: {found['images']} images, cleanvision stops at {found['cleanvision stops at']}; {found['seconds']}"
        )
        print(pd.DataFrame(found["flags"]).T.to_string(), "\n")
    print(f"share named of {report['photos spoilt']} photos and their spoilt copies: imgcurate / cleanvision")
    shares = {
        how: {flag: f"{both['imgcurate']:.0%} / {both['cleanvision']:.0%}" for flag, both in flags.items()}
        for how, flags in report["named of the spoilt"].items()
    }
    print(pd.DataFrame(shares).T.to_string())


if __name__ == "__main__":
    main()
