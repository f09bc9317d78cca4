"""Make the pictures of the pages anew: ``python docs/images/make.py``, or only some: ``python docs/images/make.py outliers flags``.

What they show is the library's own output in a real browser, with the code that gives it, as a notebook has them; of the map alone the drawing is
done here. Photos are the demo's, which installed packages carry: whole, cut into parts, or changed in ways that the verbs are there to notice.

Needs, beside the extras ``small`` and ``dev``, Chromium and ``pip install umap-learn``. The same photos, versions and fonts give the same pictures,
but for the last digits of similarities, which depend on the processor, and for how long the demo took.
"""

from __future__ import annotations

import argparse
import html
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

import imgcurate as ic
from imgcurate import demo, recipes
from imgcurate.flags import MEASURES

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))
from browser import opened  # noqa: E402

MODEL = "efficientnet-lite0"
WIDTH = 1000
#: Of these photos many parts are cut out, so that they are half of the set; of these one; of the others a dozen.
COMMON, RARE = ("brick", "grass", "gravel"), ("cell", "clock", "rocket", "writing")
#: What is spoilt in every way that `flag` has a name for.
SPOILT = ("astronaut", "cat", "coffee", "dahlia")

STYLE = """
body { margin: 0; padding: 4px 16px; background: #fff; color: #1c1e21; font: 13px system-ui, sans-serif; }
.cells { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 14px 24px; }
pre { margin: 10px 0 8px; padding: 8px 12px; background: #f3f4f6; border-radius: 6px; font: 12.5px/1.5 monospace; }
table { border-collapse: collapse; margin: 0 0 12px; }
th, td { padding: 5px 16px; text-align: right; font-weight: 400; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: #6a6f76; }
tr { border-bottom: 1px solid #e3e5e8; }
.map { position: relative; height: 400px; margin: 4px 0 12px; border: 24px solid #f8f9fa; border-radius: 6px; background: #f8f9fa; }
.map img { position: absolute; transform: translate(-50%, -50%); width: 34px; height: 34px; border-radius: 4px; outline: 1px solid #fff; }
"""


class Cell(NamedTuple):
    """Code, and what a notebook shows of it."""

    code: str
    output: Any


def photos() -> dict[str, Image.Image]:
    """Return the demo's photos by their names."""
    found = {}
    for photo in demo.photos():
        with Image.open(photo.path) as image:
            found[photo.name] = ImageOps.exif_transpose(image).convert("RGB")
    return found


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)
    return path


def embedded_parts(folder: Path) -> Any:
    """Return a frame, with embeddings, of square parts of the photos: those of a photo are alike."""
    draw = random.Random(0)
    for name, photo in photos().items():
        for number in range(40 if name in COMMON else 1 if name in RARE else 12):
            side = round(min(photo.size) * draw.uniform(0.55, 0.8))
            left, top = draw.randint(0, photo.width - side), draw.randint(0, photo.height - side)
            save(photo.crop((left, top, left + side, top + side)), folder / name / f"{number:02d}.jpg")
    return ic.embed(ic.read_files(str(folder)), MODEL).persist()


def neighbours(folder: Path) -> None:
    found = ic.neighbours(embedded_parts(folder), k=5)
    ids = ["cat/03.jpg", "coffee/06.jpg", "pagoda/04.jpg", "rocket/00.jpg"]
    code = f"found = ic.neighbours(frame, k=5)\nfound.show(ids={ids})"
    cells("neighbours", [Cell(code, found.show(ids=ids, size=145))])


def search(folder: Path) -> None:
    embedded_parts(folder / "photos")
    save(photos()["coffee"], folder / "espresso.jpg")
    command(folder, "embed", "photos", "embedded.parquet", "--model", MODEL)
    command(folder, "search", "embedded.parquet", "--image", "espresso.jpg", "--k", "10", "--html", "found.html")
    photograph("verbs/search.webp", folder / "found.html")


def outliers(folder: Path) -> None:
    frame = embedded_parts(folder)
    scored = frame.merge(ic.outliers(frame), on="image_id")
    code = """scored = frame.merge(ic.outliers(frame), on="image_id")
ic.show(scored, n=12, sort=("outlier_score", "max"), columns=["outlier_score"])"""
    page = ic.show(scored, n=12, sort=("outlier_score", "max"), columns=["outlier_score"], size=140)
    cells("outliers", [Cell(code, page)])


def leaks(folder: Path) -> None:
    every = photos()
    names = list(every)
    for name in names[:12]:
        save(every[name], folder / "train" / f"{name}.jpg")
    for name in names[12:]:
        save(every[name], folder / "test" / f"{name}.jpg")
    leaked = {
        "espresso": ImageOps.mirror(every["coffee"]),
        "flower": ImageEnhance.Brightness(every["dahlia"]).enhance(1.3),
        "photographer": ImageOps.crop(every["cameraman"], 40),
        "portrait": every["astronaut"].resize((256, 256)),
        "whiskers": ImageOps.crop(every["cat"], 30),
    }
    for name, image in leaked.items():
        save(image, folder / "test" / f"{name}.jpg")
    (folder / "test" / "temple.jpg").write_bytes((folder / "train" / "pagoda.jpg").read_bytes())
    frame = ic.embed(ic.read_files(str(folder)), MODEL)
    frame = frame.assign(split=frame.image_id.str.split("/").str[0]).persist()
    code = 'leaking = ic.leaks(frame, split="split")\nleaking.show()'
    cells("leaks", [Cell(code, ic.leaks(frame, split="split").show(size=130))])


def representatives(folder: Path) -> None:
    frame = embedded_parts(folder)
    levels = [40, 14]
    cover = ic.representatives(frame, 14)
    balance = ic.representatives(frame, 14, method="hierarchical", n_clusters=levels)
    merged = 'ic.show(frame.merge(chosen.frame, on="image_id"))'
    shown = [
        Cell("ic.show(frame, n=14)", ic.show(frame, n=14, size=110)),
        Cell(
            f"chosen = ic.representatives(frame, 14)\n{merged}",
            ic.show(frame.merge(cover.frame, on="image_id"), size=110),
        ),
        Cell(
            f'chosen = ic.representatives(frame, 14, method="hierarchical", n_clusters={levels})\n{merged}',
            ic.show(frame.merge(balance.frame, on="image_id"), size=110),
        ),
    ]
    cells("representatives", shown)


def place_on_map(folder: Path) -> None:
    frame = ic.thumbnail(embedded_parts(folder)).persist()
    shown = [
        Cell("ic.place_on_map(frame)", Map(ic.place_on_map(frame).compute())),
        Cell('ic.place_on_map(frame, method="umap")', Map(ic.place_on_map(frame, method="umap").compute())),
    ]
    cells("map", shown, columns=2)


def flags(folder: Path) -> None:
    for name, photo in photos().items():
        save(photo, folder / f"{name}.jpg")
        if name in SPOILT:
            two_tones = photo.convert("L").point(lambda grey: 255 * (grey > 100))
            width, height = photo.size
            spoilt = {
                "dim": ImageEnhance.Brightness(photo).enhance(0.12),
                "foggy": Image.blend(photo, Image.new("RGB", photo.size, "white"), 0.85),
                "unsharp": photo.filter(ImageFilter.GaussianBlur(6)),
                "faxed": two_tones,
                "banner": photo.crop((0, height * 2 // 5, width, height * 3 // 5)),
                "icon": photo.resize((48, 48)),
            }
            for how, image in spoilt.items():
                save(image, folder / f"{name}-{how}.{'png' if how == 'faxed' else 'jpg'}")
    frame = ic.flag(ic.measure(ic.read_files(str(folder))).persist())
    shown = [
        Cell(
            f"flagged = frame[frame.{verdict}]\nic.show(flagged, n=4, columns={list(columns)})",
            ic.show(frame[frame[verdict]], n=4, columns=columns, size=105),
        )
        for verdict, columns in MEASURES.items()
    ]
    good = frame[~(frame.dark | frame.blurry)]
    shown.append(Cell("good = frame[~(frame.dark | frame.blurry)]\nic.show(good, n=4)", ic.show(good, n=4, size=105)))
    cells("flags", shown, columns=2)


def recipe(folder: Path) -> None:
    demo.make_shards(folder)
    frame = ic.embed(ic.read_webdataset(str(folder)), MODEL).persist()
    _, table = recipes.apply(frame, recipes.datacomp_basic() + recipes.semdedup(0.2))
    styled = table.style.hide().format({"share": "{:.0%}"}).bar(subset="left", vmin=0, color="#a9cbf7")
    large = dict(recipes.datacomp_basic())["shorter side of at least 200 pixels"]
    page = ic.show(frame[frame.error.isnull() & ~large(frame)], columns=["width", "height", "caption"], size=140)
    apply = """kept, table = recipes.apply(frame, recipes.datacomp_basic() + recipes.semdedup(0.2))
table.style.hide().format({"share": "{:.0%}"}).bar(subset="left", vmin=0)"""
    look = """large = dict(recipes.datacomp_basic())["shorter side of at least 200 pixels"]
ic.show(frame[frame.error.isnull() & ~large(frame)], columns=["width", "height", "caption"])"""
    cells("recipe", [Cell(apply, styled), Cell(look, page)])


def duplicates(folder: Path) -> None:
    demo.make_shards(folder)
    frame = ic.embed(ic.read_webdataset(str(folder)), MODEL).persist()
    found = ic.semantic_duplicates(frame, eps=0.1)
    code = "found = ic.semantic_duplicates(frame, eps=0.1)\nfound.show(n=3)"
    cells("duplicates", [Cell(code, found.show(n=3, size=130))])


def report(folder: Path) -> None:
    command(folder, "demo", "demo-output")
    photograph("report.png", folder / "demo-output" / "curated" / "report.html", 1400, 1290)


class Map:
    """Thumbnails where `place_on_map` puts them."""

    def __init__(self, placed: Any) -> None:
        self.placed = placed

    def _repr_html_(self) -> str:
        places = self.placed[["x", "y"]]
        shares = 100 * (places - places.min()) / (places.max() - places.min())
        # Those cut out of one photo lie over one another: what is drawn last is not always the same photo.
        drawn = shares.assign(thumbnail=self.placed["thumbnail"]).sample(frac=1, random_state=0)
        images = [
            f'<img style="left: {x:.2f}%; top: {100 - y:.2f}%" src="{data}">'
            for x, y, data in drawn.itertuples(index=False)
        ]
        return f'<div class="map">{"".join(images)}</div>'


def command(folder: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "imgcurate", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def cells(name: str, shown: Sequence[Cell], columns: int = 1) -> None:
    """Save cells of a notebook as a picture."""
    body = "".join(f"<div><pre>{html.escape(cell.code)}</pre>{cell.output._repr_html_()}</div>" for cell in shown)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "cells.html")
        page.write_text(
            f"<!DOCTYPE html><style>{STYLE}</style><div class=cells style='--columns: {columns}'>{body}</div>"
        )
        photograph(f"verbs/{name}.webp", page)


def photograph(name: str, page: Path, width: int = WIDTH, height: int | None = None) -> None:
    """Save what a page looks like in a browser, to its end or to some height, as a picture."""
    with opened(page) as tab, tempfile.TemporaryDirectory() as folder:
        tab.look(width)
        tab.picture(Path(folder, "shot.png"), height or tab.evaluate("document.documentElement.offsetHeight"))
        image = Image.open(Path(folder, "shot.png")).convert("RGB")
    path = HERE / name
    if path.suffix == ".png":
        image.quantize(256).save(path, optimize=True)
    else:
        image.save(path, quality=80, method=6)
    print(f"{os.path.relpath(path)}: {image.width} x {image.height} pixels, {path.stat().st_size / 1000:.0f} kB")


PICTURES: dict[str, Callable[[Path], None]] = {
    "neighbours": neighbours,
    "search": search,
    "outliers": outliers,
    "leaks": leaks,
    "representatives": representatives,
    "map": place_on_map,
    "flags": flags,
    "recipe": recipe,
    "duplicates": duplicates,
    "report": report,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the pages anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; default: all")
    names = parser.parse_args().names or list(PICTURES)
    if unknown := [name for name in names if name not in PICTURES]:
        parser.error(f"{unknown[0]} is no picture: name some of {', '.join(PICTURES)}")
    with ic.connect(devices=[], workers=1):
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                PICTURES[name](Path(folder))


if __name__ == "__main__":
    main()
