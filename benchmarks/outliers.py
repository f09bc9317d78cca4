"""Which of the photos that do not belong does each method name? `imgcurate.outliers` beside semhash, the local outlier factor and faiss.

    python benchmarks/outliers.py 'GLOB' ... [--strangers FOLDER ...] [--note TEXT]

The files of each glob are a set of ordinary images. Of the strangers, which are those of other folders and the photos that installed packages carry, five
are drawn and put among them, twenty times over: alone, and with two altered copies of each. All methods get the same vectors, of efficientnet-lite0.

- imgcurate: the mean distance from the 10 nearest; from the 100 nearest; and from the 10 nearest after duplicates are removed (``eps=0.2``).
- faiss: the mean of the 10 nearest by a flat index, which says whether imgcurate's are those of brute force; and the distance from the nearest alone, by
  which fastdup ranks its outliers. fastdup itself has wheels for few systems and vectors of its own, and is not asked.
- semhash: what `self_filter_outliers` filters, which goes by the mean similarity to the 100 nearest. scikit-learn: the local outlier factor.

Of each: which share of the strangers is among as many first as were put there (of duplicates that are removed first, one of each counts for all), the
average precision where there are scores for all, and which share of its first is among the first of imgcurate's mean of 10.
"""

from __future__ import annotations

import argparse
import glob
import json
import tempfile
from pathlib import Path

import dask
import numpy as np
from flags import files_of
from PIL import Image, ImageEnhance, ImageOps
from turns import save, settings

K, PLANTED, DRAWS, EPS = 10, 5, 20, 0.2
RESULTS = Path(__file__).parent / "results" / "outliers.json"
OURS, REMOVED = "imgcurate, mean of 10", "imgcurate, mean of 10, duplicates removed"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("ordinary", nargs="+")
    arguments.add_argument("--strangers", nargs="*", type=Path, default=[])
    arguments.add_argument("--note", default="", help="said beside the results, such as what else the machine did")
    options = arguments.parse_args()
    import imgcurate as ic
    from imgcurate import demo

    strangers = [path for folder in options.strangers for path in files_of(folder)]
    strangers += [photo.path for photo in demo.photos()]
    with ic.connect(devices=[]), tempfile.TemporaryDirectory(prefix="imgcurate-bench-") as scratch:
        copies = [copy for number, path in enumerate(strangers) for copy in altered(path, f"{scratch}/{number}")]
        alone, copied = vectors_of(strangers), vectors_of(copies).reshape(len(strangers), 2, -1)
        ordinary = {Path(given).name: vectors_of(images_at(given)) for given in options.ordinary}
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(len(strangers))[:PLANTED] for _ in range(DRAWS)]
    report = settings(options.note, ("faiss-cpu", "scikit-learn", "semhash"))
    report["strangers"] = {"to draw from": len(strangers), "drawn": PLANTED, "draws": DRAWS}
    with dask.config.set(scheduler="synchronous"):
        for name, rows in ordinary.items():
            planted = {
                "alone": [alone[some] for some in drawn],
                "with two altered copies each": [np.concatenate([alone[some], *copied[some]]) for some in drawn],
            }
            report[name] = {"images": len(rows)}
            for how, draws in planted.items():
                found = [compare(rows, some) for some in draws]
                report[name][how] = {method: mean(found, method) for method in found[0]}
                print(name, how, json.dumps(report[name][how], indent=2), flush=True)
    save(report, RESULTS)


def images_at(pattern: str) -> list[Path]:
    return [Path(name).resolve() for name in sorted(glob.glob(pattern)) if not name.endswith((".txt", ".json"))]


def altered(path: Path, beside: str) -> list[Path]:
    """Write an image at half its size, and a brighter one that is cropped."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    width, height = image.size
    half = image.resize((max(width // 2, 1), max(height // 2, 1)))
    cropped = image.crop((width // 20, height // 20, width - width // 20, height - height // 20))
    made = [Path(f"{beside}-half.jpg"), Path(f"{beside}-bright.jpg")]
    half.save(made[0], quality=80)
    ImageEnhance.Brightness(cropped).enhance(1.3).save(made[1], quality=90)
    return made


def vectors_of(files: list[Path]) -> np.ndarray:
    """Return the vectors of images, in order."""
    import imgcurate as ic

    made = ic.embed(ic.read_files(files), "efficientnet-lite0").compute()
    assert made["error"].isna().all(), made["error"].dropna().tolist()[:3]
    at = {url: row for row, url in enumerate(made["url"])}
    return ic.to_matrix(made["embedding"])[[at[str(path.resolve())] for path in files]]


def compare(ordinary: np.ndarray, planted: np.ndarray) -> dict[str, dict[str, float]]:
    """Return how well each method tells strangers from ordinary images; of planted copies the first are the originals."""
    import faiss
    from semhash import SemHash
    from sklearn.metrics import average_precision_score
    from sklearn.neighbors import LocalOutlierFactor

    import imgcurate as ic

    every = np.concatenate([ordinary, planted])
    numbers = np.arange(len(every))
    # Which stranger an image is, and copies are the same one.
    stranger = np.where(numbers < len(ordinary), -1, (numbers - len(ordinary)) % PLANTED)

    def ours(rows: np.ndarray, k: int) -> np.ndarray:
        scored = ic.outliers((rows, every[rows]), k).set_index("image_id")["outlier_score"]
        return scored.reindex(numbers).to_numpy()

    index = faiss.IndexFlatIP(every.shape[1])
    index.add(every)
    distances = 1 - index.search(every, K + 1)[0][:, 1:]
    factor = LocalOutlierFactor(n_neighbors=K, metric="cosine", algorithm="brute").fit(every).negative_outlier_factor_
    left = np.sort(ic.remove((numbers, every), ic.semantic_duplicates((numbers, every), eps=EPS, keep="id"))[0])
    scores = {
        OURS: ours(numbers, K),
        "imgcurate, mean of 100": ours(numbers, 100),
        REMOVED: ours(left, K),
        "faiss, mean of 10": distances.mean(axis=1),
        "faiss, the nearest": distances[:, 0],
        "scikit-learn, local outlier factor": -factor,
    }
    lists = {
        name: np.argsort(-np.nan_to_num(score, nan=-1), kind="stable")[: len(planted)] for name, score in scores.items()
    }
    # Of copies that were removed one is left.
    lists[REMOVED] = lists[REMOVED][:PLANTED]
    semhash = SemHash.from_embeddings(embeddings=every, records=[str(number) for number in numbers], model=None)
    filtered = semhash.self_filter_outliers(outlier_percentage=len(planted) / len(every)).filtered
    lists["semhash"] = np.array([int(record) for record in filtered], dtype=int)
    found = {
        name: {
            "strangers among the first": float((stranger[some] >= 0).sum() / len(some)),
            "in imgcurate's list": float(np.isin(some, lists[OURS]).mean()),
        }
        for name, some in lists.items()
    }
    for name, score in scores.items():
        if not np.isnan(score).any():
            found[name]["average precision"] = float(average_precision_score(stranger >= 0, score))
    return found


def mean(draws: list[dict[str, dict[str, float]]], name: str) -> dict[str, float]:
    known = [draw[name] for draw in draws]
    # Where duplicates are removed in some draws, there are no scores for all in these.
    said = [what for what in known[0] if all(what in draw for draw in known)]
    return {what: round(float(np.mean([draw[what] for draw in known])), 3) for what in said}


if __name__ == "__main__":
    main()
