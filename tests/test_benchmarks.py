"""What the benchmarks stand on: the peer's step, the made embeddings, and how growth is measured."""

from __future__ import annotations

import sys
import time
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    # At the end of the path: one of the benchmarks has the name of a package.
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])


def unit(rows) -> torch.Tensor:
    rows = torch.as_tensor(np.asarray(rows), dtype=torch.float32)
    return rows / rows.norm(dim=1, keepdim=True)


def test_the_step_of_nemo_gives_its_published_figures():
    from dedup_contestants import nearest_earlier

    rows = unit([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [1, 2, 3], [1, 2, 3]])
    hard = nearest_earlier(rows[[3, 2, 1, 5, 4, 0]])
    np.testing.assert_allclose(hard, [0, 0.99961, 0.99819, 0.974631, 1, 1], atol=1e-5)
    easy = nearest_earlier(rows[[0, 4, 5, 1, 2, 3]])
    np.testing.assert_allclose(easy, [0, 1, 1, 0.97464, 0.99819, 0.999618], atol=1e-5)


def test_the_step_of_nemo_finds_the_nearest_earlier_row_across_its_blocks():
    from dedup_contestants import BATCH, nearest_earlier

    rows = unit(np.random.default_rng(0).standard_normal((2 * BATCH + 300, 16)))
    dots = torch.tril(rows @ rows.T, diagonal=-1) + torch.triu(torch.full((len(rows),) * 2, -2.0))
    expected = dots.max(dim=1).values
    expected[0] = 0
    torch.testing.assert_close(nearest_earlier(rows), expected)


def test_made_embeddings_look_like_those_of_clip():
    import embeddings
    import likeness

    likeness.check(embeddings.many(embeddings.CHUNK, 768))


def test_embeddings_that_do_not_look_like_those_of_clip_are_refused():
    import embeddings
    import likeness

    made = embeddings.many(2000, 768)
    with pytest.raises(ValueError, match="do not look like CLIP's in"):
        likeness.check(made._replace(vectors=embeddings.even(2000, 768)))


def test_a_copy_has_its_cosine_with_an_original_of_another_partition():
    import embeddings

    copies = embeddings.Copies(share=0.1, low=0.98, high=1, here=0)
    made = embeddings.many(4 * embeddings.CHUNK, 64, copies)
    numbers = np.arange(len(made.origin))
    at = np.flatnonzero(made.origin != numbers)
    assert len(at) == len(numbers) // 10
    cosines = np.einsum("ij,ij->i", made.vectors[at], made.vectors[made.origin[at]])
    np.testing.assert_allclose(cosines, made.cosine[at], atol=1e-5)
    elsewhere = made.origin[at] // embeddings.CHUNK < at // embeddings.CHUNK
    assert elsewhere[at >= embeddings.CHUNK].all()  # the first has no earlier one


def test_partitions_are_made_alone_and_have_ids_of_their_own():
    import embeddings
    import scaling

    from imgcurate.vectors import to_matrix

    parts = [scaling.part(number, 500, 32) for number in (2, 0, 1)]
    ids = [name for part in parts for name in part["image_id"]]
    assert ids[0] == "00002/000001000" and len(set(ids)) == 1500
    again = embeddings.chunk(2, 32, 500, scaling.COPIES).vectors
    np.testing.assert_array_equal(to_matrix(parts[0]["embedding"]), again)


def test_a_near_copy_that_stays_beside_its_original_is_counted():
    import embeddings
    import scaling

    made = embeddings.chunk(1, 32, 500, scaling.COPIES)
    within = 500 + np.flatnonzero((made.cosine >= 1 - scaling.EPS + scaling.TIE) & (made.cosine < 1))
    removed = np.zeros(1000, dtype=bool)
    removed[within[1:]] = True
    copies, apart = scaling.separated(np.packbits(removed), 1, 500, 32)
    assert (copies, apart) == (len(within), len(within) - 1)


def test_the_figure_has_a_point_for_each_size_and_line():
    import scaling_figure

    growth = {
        f"{n} x 768": {
            "n": n,
            "dimension": 768,
            "in_memory": False,
            "memory_limit": "3GiB",
            "seconds": {"median": n / 1e4},
            "seconds_to_make_vectors": n / 1e6,
            "workers_peak_mib": [1500, 1400],
            "client_and_scheduler_peak_mib": 300,
            "disk_peak_gib": n / 1e5,
        }
        for n in (100_000, 1_000_000)
    }
    root = xml.etree.ElementTree.fromstring(scaling_figure.draw(growth))
    drawn = [element.tag.rpartition("}")[2] for element in root.iter()]
    lines = sum(len(panel.lines) for panel in scaling_figure.PANELS)
    assert drawn.count("circle") == lines * (2 + 2)  # two sizes, and the legend's


def test_disk_usage_is_that_of_all_files_below(tmp_path):
    from scaling import disk_usage

    (tmp_path / "a" / "b").mkdir(parents=True)
    for path in (tmp_path / "a" / "one", tmp_path / "a" / "b" / "two"):
        path.write_bytes(bytes(range(256)) * 64)
    size, files = disk_usage(tmp_path)
    assert files == 2 and size >= 2 * 16384
    assert disk_usage(tmp_path / "nothing") == (0, 0)


def test_what_all_queries_would_take_is_computed_from_those_that_were_asked(tmp_path):
    from neighbours import indexed

    rows, asked = np.random.default_rng(0).standard_normal((40, 4), dtype=np.float32), []
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "queries.npy", [7, 3, 5, 0])

    def ask(index, wanted):
        asked.append(wanted)
        end = time.perf_counter() + 0.02
        while time.perf_counter() < end:
            pass
        return np.argsort(-wanted @ index.T, axis=1)

    given = {"path": str(tmp_path / "rows.npy"), "queries": str(tmp_path / "queries.npy")}
    rounds = indexed(np.array, ask, given)
    assert next(rounds) == {}
    figures = next(rounds)
    np.testing.assert_array_equal(asked[-1], rows[[7, 3, 5, 0]])
    of_some, of_all = figures["measured"]["queries"], figures["computed for all"]
    building = figures["measured"]["building"]
    assert figures["queries"] == 4 and "seconds" not in figures
    for clock in ("seconds", "cpu_seconds"):
        assert of_all[clock] == pytest.approx(building[clock] + 10 * of_some[clock])
    assert of_all["seconds"] >= 0.2
    np.testing.assert_array_equal(np.load(f"{given['path']}.found.npy"), ask(rows, rows[[7, 3, 5, 0]]))
