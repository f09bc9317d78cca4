"""Each recipe keeps what the published code keeps, and the table says what each step removed."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_docs import ROOT, blocks
from test_text import clip  # noqa: F401

import imgcurate as ic
from imgcurate import demo, identity, recipes, schema, vectors
from imgcurate.rowwise import map_rows

few = settings(max_examples=12)


@pytest.fixture(autouse=True, scope="module")
def in_process() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def frame_of(rows: dict[str, Any], npartitions: int = 2) -> Any:
    """Return a frame with the columns' own types, and ids from 0 on."""
    n = len(next(iter(rows.values())))
    part = schema.table(
        {"image_id": [f"{row:05d}" for row in range(n)]} | {k: list(v) for k, v in rows.items() if k != "n"}
    )
    return dd.from_pandas(part.assign(n=np.arange(n)), npartitions=npartitions, sort=False)


def kept_by(steps: list[recipes.Step], frame: Any) -> list[int]:
    kept, table = recipes.apply(frame, steps)
    rows = [int(name) for name in kept["image_id"].compute()]
    assert table["left"].iloc[-1] == len(rows)
    assert table["share"].iloc[-1] == len(rows) / len(frame)
    assert (table["read"].iloc[1:].to_numpy() == table["left"].iloc[:-1].to_numpy()).all()
    return rows


def units(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


captions = st.one_of(
    st.none(),
    st.text(max_size=9),
    st.text(alphabet="ab \t\n\x0b\x1c\x85\xa0\u2003\u200bé", max_size=9),
    st.sampled_from(["a dog", "a b c", "ab cd ef", "12345", "123456", "1234"]),
)
sides = st.one_of(st.none(), st.sampled_from([1, 199, 200, 201, 599, 600, 601, 602, 603]), st.integers(1, 3000))
pairs = st.lists(st.tuples(captions, sides, sides), min_size=10, max_size=80)


@few
@given(pairs, st.integers(1, 3))
@example([("a b c d", 200, 600), ("a b c d", 601, 200), ("a b c d", 199, 200), (None, 500, 500)], 1)
@example([("a b\x1cc d", 200, 200), ("a\u2003b\u200bc d", 300, 300)], 1)
def test_datacomps_basic_filter_keeps_the_rows_of_its_script(rows: list[Any], npartitions: int) -> None:
    expected = []
    for number, (text, width, height) in enumerate(rows):
        if text is None or width is None or height is None:
            continue
        shorter, longer = min(width, height), max(width, height)
        of_caption = len(text.split()) > 2 and len(text) > 5
        if of_caption and shorter >= 200 and longer / shorter <= 3.0:
            expected.append(number)
    columns = dict(zip(("caption", "width", "height"), zip(*rows, strict=True), strict=True))
    assert kept_by(recipes.datacomp_basic(), frame_of(columns, npartitions)) == expected


scores = st.one_of(
    st.none(), st.floats(-1, 1, width=32), st.sampled_from([0.28, 0.3, np.nextafter(np.float32(0.28), 0)])
)


@few
@given(
    st.lists(st.tuples(captions, st.sampled_from([0, 4999, 5000, 5001, 9000]), scores), min_size=10, max_size=80),
    st.sampled_from([0.28, 0.3]),
)
def test_laions_filter_drops_what_its_workers_drop(rows: list[Any], least: float) -> None:
    expected = [
        number
        for number, (text, size, score) in enumerate(rows)
        if not (text is None or len(text) < 5 or size < 5000 or score is None or np.float32(score) < np.float32(least))
    ]
    columns = dict(zip(("caption", "bytes", "clip_score"), zip(*rows, strict=True), strict=True))
    assert kept_by(recipes.laion(least), frame_of(columns)) == expected


def script_threshold(scores: np.ndarray, fraction: float) -> float:
    """Return from which score on DataComp's script keeps a fraction."""
    return float(-np.sort(-scores)[int(len(scores) * fraction)])


@few
@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=30), st.sampled_from([0.1, 0.3, 0.5]))
def test_the_highest_clip_scores_are_those_of_datacomps_script_but_for_its_lowest(
    scores: list[float], fraction: float
) -> None:
    values = np.array(scores, np.float32)
    ours = kept_by(recipes.top_clip_score(fraction), frame_of({"clip_score": scores}))
    theirs = np.flatnonzero(values >= script_threshold(values, fraction)).tolist()
    assert set(ours) <= set(theirs) or len(ours) == len(theirs) == 0
    assert {values[row] for row in set(theirs) - set(ours)} <= {np.float32(script_threshold(values, fraction))}
    assert len(ours) >= fraction * len(values)


def script_image_based(matrix: np.ndarray, centroids: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Return which rows DataComp's script keeps by their images."""
    target = {int(np.argmax([float(vector @ centroid) for centroid in centroids])) for vector in examples}
    return np.array([int(np.argmax([float(row @ centroid) for centroid in centroids])) in target for row in matrix])


WORDS = ["a red dog", "word", "a b", "ab cd", "one two three"]


@pytest.mark.parametrize("npartitions", [1, 3])
@pytest.mark.parametrize("in_a_frame", [False, True])
def test_the_image_based_filter_keeps_the_clusters_that_examples_are_in(npartitions: int, in_a_frame: bool) -> None:
    matrix, examples = units(300), units(4, seed=1)
    # The script's centroids are means of unit vectors, and no unit vectors.
    centroids = units(20, seed=2) * np.linspace(0.4, 1, 20, dtype=np.float32)[:, None]
    text = [WORDS[row % len(WORDS)] for row in range(len(matrix))]
    near = script_image_based(matrix, centroids, examples)
    expected = [row for row in range(len(matrix)) if near[row] and len(text[row].split()) > 1 and len(text[row]) > 5]
    assert 0 < len(expected) < 150
    given_examples = frame_of({"embedding": examples}) if in_a_frame else examples
    steps = recipes.image_based(given_examples, centroids)
    assert kept_by(steps, frame_of({"caption": text, "embedding": matrix}, npartitions)) == expected


def test_the_intersection_of_both_is_one_recipe_after_the_other() -> None:
    matrix, centroids, examples = units(200), units(9, seed=2), units(3, seed=1)
    clip_scores = np.random.default_rng(5).random(200).astype(np.float32)
    rows = {"caption": ["a red dog"] * 200, "clip_score": clip_scores, "embedding": matrix}
    # Of the scores of the whole pool, as the script has it.
    best = clip_scores >= -np.sort(-clip_scores)[59]
    expected = np.flatnonzero(best & script_image_based(matrix, centroids, examples)).tolist()
    assert 0 < len(expected) < 60
    assert kept_by(recipes.top_clip_score(0.3) + recipes.image_based(examples, centroids), frame_of(rows)) == expected


def test_the_clusters_of_saved_embeddings_serve_and_other_encoders_are_refused(tmp_path: Path) -> None:
    matrix = units(60)
    frame = frame_of({"caption": ["a red dog"] * 60, "embedding": matrix})
    ic.save_embeddings(frame, tmp_path / "pool", n_clusters=6)
    centroids = np.stack(pd.read_parquet(tmp_path / "pool" / "part.00000" / "centroids.parquet")["centroid"])
    expected = np.flatnonzero(script_image_based(matrix, centroids, matrix[:2])).tolist()
    assert kept_by(recipes.image_based(matrix[:2], tmp_path / "pool"), frame) == expected
    with pytest.raises(ValueError, match="dimension 8 and the examples 5"):
        recipes.image_based(units(2, 5), tmp_path / "pool")
    with pytest.raises(ValueError, match="holds vectors of dimension 5, and dimension=8"):
        recipes.image_based(frame_of({"embedding": units(2, 5)}), tmp_path / "pool")
    with pytest.raises(ValueError, match="no example has a usable vector"):
        recipes.image_based(frame_of({"embedding": [None]}, 1), tmp_path / "pool")
    with pytest.raises(FileNotFoundError, match="save_embeddings"):
        recipes.image_based(matrix[:2], tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="centroids holds float32 of shape"):
        recipes.image_based(matrix[:2], matrix[0])


def script_semdedup(matrix: np.ndarray, eps: float) -> set[int]:
    """Return which rows SemDeDup removes from one cluster, of which it keeps the hard ones."""
    centroid = matrix.mean(axis=0, dtype=np.float64)
    hardest_first = np.argsort(matrix @ centroid, kind="stable")
    similar = np.triu(matrix[hardest_first] @ matrix[hardest_first].T, k=1)
    return set(hardest_first[similar.max(axis=0) > 1 - eps].tolist())


def near_copies(n: int = 60, seed: int = 0) -> np.ndarray:
    """Return unit vectors a third of which are near copies of others."""
    rng = np.random.default_rng(seed)
    rows = units(n, seed=seed)
    rows[: n // 3] = rows[n // 3 : 2 * (n // 3)] + 0.05 * rng.standard_normal((n // 3, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("eps", [0.005, 0.02, 0.3])
def test_semdedup_removes_what_its_code_removes_from_a_cluster(eps: float) -> None:
    matrix = near_copies()
    removed = script_semdedup(matrix, eps)
    assert removed
    steps = recipes.semdedup(eps, n_clusters=1)
    assert kept_by(steps, frame_of({"embedding": matrix})) == sorted(set(range(60)) - removed)


def test_prototypes_are_the_images_nearest_to_their_centroid_wherever_they_lie() -> None:
    matrix = units(50) + np.float32(0.5)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    centroid = matrix.mean(axis=0, dtype=np.float64)
    expected = sorted(np.argsort(matrix @ centroid)[:20].tolist())
    assert kept_by(recipes.prototypes(0.4, n_clusters=1), frame_of({"embedding": matrix})) == expected
    several = [
        kept_by(recipes.prototypes(0.4, n_clusters=5), frame_of({"embedding": matrix}, npartitions))
        for npartitions in (1, 4)
    ]
    assert several[0] == several[1] and len(several[0]) == 20


def test_d4_clusters_anew_what_semdedup_left() -> None:
    matrix = near_copies(90)
    frame = frame_of({"embedding": matrix})
    kept, table = recipes.apply(frame, recipes.d4(0.5, n_clusters=4))
    assert 60 <= table["left"].iloc[0] <= 67 and table["left"].iloc[1] == -(-table["left"].iloc[0] // 2)
    found = ic.semantic_duplicates(
        frame, eps=0.1, min_similarity=0.9, n_clusters=4, keep="hard", rule="pointwise", probes=1
    )
    left = ic.remove(frame, found.to_fraction(0.75))
    again, _ = recipes.apply(left, recipes.prototypes(0.5, n_clusters=4))
    assert kept["image_id"].compute().tolist() == again["image_id"].compute().tolist()
    assert list(kept.columns) == list(frame.columns)


def test_images_without_a_vector_are_like_no_example_and_far_from_no_centroid() -> None:
    matrix = units(6)
    # The last of three partitions has no vector at all.
    rows = {"caption": ["a red dog"] * 9, "embedding": [*matrix, None, None, None]}
    frame = frame_of(rows, 3)
    assert kept_by(recipes.image_based(matrix[:2], matrix), frame) == [0, 1]
    assert len(kept_by(recipes.prototypes(0.5, n_clusters=1), frame)) == 3
    # One of zeros has no direction, and with every centroid the product 0.
    rows["embedding"][2:4] = [np.zeros_like(matrix[0]), np.full_like(matrix[0], np.inf)]
    assert kept_by(recipes.image_based(matrix[:2], matrix), frame_of(rows, 3)) == [0, 1]
    with pytest.raises(ValueError, match="no example has a usable vector"):
        recipes.image_based(np.zeros((2, matrix.shape[1])), matrix)
    with pytest.raises(ValueError, match="centroids holds numbers that are not finite"):
        recipes.image_based(matrix, np.full_like(matrix, np.nan))


def of_encoder(name: str, n: int = 6) -> Any:
    part = schema.table({"image_id": [str(row) for row in range(n)], "caption": ["a red dog"] * n})
    encoder = identity.Identity(name, "clip", 8, name)
    return dd.from_pandas(part.assign(embedding=vectors.to_column(units(n), part, encoder=encoder)), npartitions=1)


def test_encoders_are_not_mixed(tmp_path: Path) -> None:
    one, other = of_encoder("org/one"), of_encoder("org/other")
    ic.save_embeddings(one, tmp_path / "pool", n_clusters=2)
    with pytest.raises(ValueError, match="org/one"):
        recipes.image_based(other, tmp_path / "pool")
    steps = recipes.image_based(one, tmp_path / "pool")
    assert len(recipes.apply(one, steps)[0]) == 6
    with pytest.raises(ValueError, match="org/other"):
        recipes.apply(other, steps)


def test_what_is_read_from_parquet_is_filtered_alike_and_goes_on_as_a_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    text = [WORDS[row] for row in rng.integers(len(WORDS), size=40)]
    sides = {side: rng.integers(100, 900, 40) for side in ("width", "height")}
    frame = frame_of({"caption": text, **sides, "embedding": units(40)}, 3)
    ic.write_parquet(frame, str(tmp_path / "rows"))
    steps = recipes.datacomp_basic() + recipes.prototypes(0.5, n_clusters=1)
    (kept, table), (again, again_table) = (
        recipes.apply(rows, steps) for rows in (frame, ic.read_parquet(str(tmp_path / "rows")))
    )
    pd.testing.assert_frame_equal(table, again_table)
    assert table["left"].iloc[-1] > 1
    ids = kept["image_id"].compute().tolist()
    assert again["image_id"].compute().tolist() == ids
    assert again[again.width >= again.height].compute()["image_id"].isin(ids).all()
    assert again.head(1, npartitions=-1)["image_id"].tolist() == ids[:1]


def test_a_table_says_what_each_step_removed_and_errors_go_first() -> None:
    frame = frame_of({"n": range(10), "error": [None] * 8 + ["decode: empty file"] * 2}, 3)
    steps = [
        ("odd", lambda rows: rows.n % 2 == 1),
        ("not 3, as far as is known", lambda rows: (rows.n != 3).where(rows.n != 5, None)),
        ("the higher half", lambda rows: ic.top_fraction(rows, "n", 0.5)),
    ]
    kept, table = recipes.apply(frame, steps)
    assert table.to_dict("list") == {
        "step": ["no error", "odd", "not 3, as far as is known", "the higher half"],
        "read": [10, 8, 4, 2],
        "removed": [2, 4, 2, 1],
        "left": [8, 4, 2, 1],
        "share": [0.8, 0.4, 0.2, 0.1],
    }
    assert kept.n.compute().tolist() == [7]
    assert kept[kept.n > 7].n.compute().tolist() == []


def test_counting_reads_and_makes_each_row_once() -> None:
    made: Counter[str] = Counter()

    def read(number: int) -> pd.DataFrame:
        made["read"] += 1
        return pd.DataFrame({"n": np.arange(5) + 5 * number, "other": 1.0})

    def score(part: pd.DataFrame) -> pd.DataFrame:
        made["scored"] += len(part)
        return part[["n"]].rename(columns={"n": "score"})

    frame = dd.from_map(read, range(4), meta=read(0))
    frame = frame.assign(score=map_rows(frame[["n"]], score, meta=score(read(0)))["score"])
    steps = [(f"at least {least}", lambda rows, least=least: rows.score + rows.other > least) for least in (3, 9, 15)]
    made.clear()
    _, table = recipes.apply(frame, steps)
    assert table["left"].tolist() == [17, 11, 5]
    assert made == {"read": 4, "scored": 20}


def test_a_frame_of_which_nothing_is_left_has_a_table_too() -> None:
    frame = frame_of({"caption": [None, "a"], "width": [None, 3], "height": [3, 3]})
    kept, table = recipes.apply(frame, recipes.datacomp_basic())
    assert len(kept) == 0 and table["left"].tolist() == [0, 0, 0, 0]
    kept, table = recipes.apply(kept, recipes.datacomp_basic())
    assert len(kept) == 0 and table["share"].tolist() == [0, 0, 0, 0]


def test_what_is_wrong_is_said_with_the_step_that_it_is_wrong_in() -> None:
    frame = frame_of({"caption": ["a red dog"], "bytes": [9000]})
    with pytest.raises(KeyError, match=r"needs column 'clip_score': score_text\(frame\) adds it") as problem:
        recipes.apply(frame, recipes.laion())
    assert problem.value.__notes__ == ["in step 'clip_score of at least 0.28'"]
    for steps in (recipes.datacomp_basic(), recipes.top_clip_score(), recipes.semdedup(0.1), recipes.prototypes(0.5)):
        with pytest.raises(KeyError, match=r"the recipe needs column '\w+': \w+\(frame\)"):
            recipes.apply(frame, steps)
    for wrong, said in (
        (lambda rows: rows.bytes, "a column of int64"),
        (lambda rows: True, "bool"),
        (lambda rows: rows.compute(), "DataFrame"),
    ):
        with pytest.raises(TypeError, match=f"step 'mine' gave {said}; a step gives"):
            recipes.apply(frame, [("mine", wrong)])
    for wrong_steps in (recipes.laion, [recipes.laion], recipes.laion()[0], [("wide", True)], [lambda rows: rows]):
        with pytest.raises(TypeError, match=r"is no step; give a list"):
            recipes.apply(frame, wrong_steps)
    for wrong_count in (0, 1.5, "3", True):
        for recipe in (recipes.semdedup, partial(recipes.prototypes, 0.5), partial(recipes.d4, 0.5)):
            with pytest.raises(ValueError, match=r"n_clusters=.* must be a whole number of at least 1, or None"):
                recipe(n_clusters=wrong_count)
    for wrong_cosine in (1.5, "0.3", None, True):
        with pytest.raises(ValueError, match=r"min_clip_score=.* must be a cosine, -1 to 1"):
            recipes.laion(wrong_cosine)
        with pytest.raises(ValueError, match=r"min_similarity=.* must be a cosine, -1 to 1"):
            recipes.d4(0.5, min_similarity=wrong_cosine)
    with pytest.raises(ValueError, match="eps=0 must be above 0"):
        recipes.semdedup(0)
    with pytest.raises(ValueError, match="step 'twice' gave 2 rows of 1"):
        recipes.apply(frame, [("twice", lambda rows: dd.concat([rows, rows]))])
    with pytest.raises(TypeError, match="takes a Dask dataframe"):
        recipes.apply(frame.compute(), recipes.laion())
    for wrong in (0, 1, -0.1, "0.3", None):
        for recipe in (
            recipes.top_clip_score,
            recipes.prototypes,
            recipes.d4,
            lambda share: recipes.d4(0.5, r_dedup=share),
        ):
            with pytest.raises(ValueError, match="must be above 0 and below 1"):
                recipe(wrong)
    with pytest.raises(ValueError, match="no row that is left has a usable vector"):
        recipes.apply(frame_of({"embedding": np.zeros((3, 8), np.float32)}), recipes.prototypes(0.5))
    with pytest.raises(ValueError, match=r"share=0.5 is not reached"):
        recipes.apply(frame_of({"embedding": np.eye(8, dtype=np.float32)}), recipes.d4(0.5, r_dedup=0.5))


PAGE = ROOT / "docs" / "how-to" / "recipes.md"


def test_the_page_runs_and_its_shares_are_those_of_the_demo(
    client: Client,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
    clip: str,  # noqa: F811
) -> None:
    monkeypatch.chdir(tmp_path)
    demo.make_shards("shards")
    for photo in demo.photos():
        if photo.name in ("cat", "coffee", "rocket"):
            Path("examples").mkdir(exist_ok=True)
            shutil.copy(photo.path, Path("examples"))
    names: dict[str, Any] = {"detect": lambda text: "en"}
    # No trained CLIP comes with the packages: a small one of the tests, of whose scores only the order is looked at.
    with dask.config.set(scheduler="distributed"):
        for code in blocks(PAGE, "python"):
            exec(code.replace('"openai/clip-vit-large-patch14"', repr(clip)), names)
        printed = capsys.readouterr().out
        for shown in blocks(PAGE, "text"):
            assert shown in printed
        frame, small = names["frame"], names["small"]
        here = {
            "laion": (frame, recipes.laion()[:2]),
            "datacomp_basic": (frame, recipes.datacomp_basic()),
            "top_clip_score": (frame, recipes.top_clip_score()),
            "image_based": (small, names["like_examples"]),
            "semdedup": (small, recipes.semdedup(0.2)),
            "d4": (small, recipes.d4(0.5, min_similarity=0.5)),
        }
        shares = {name: recipes.apply(rows, steps)[1]["share"].iloc[-1] for name, (rows, steps) in here.items()}
    said = dict(re.findall(r"^\| `(\w+)\(.*\| (\d+) %", PAGE.read_text(), re.MULTILINE))
    assert said.keys() == shares.keys()
    for name, share in shares.items():
        # Encoders round differently on other machines.
        assert 100 * share == pytest.approx(int(said[name]), abs=5), name
