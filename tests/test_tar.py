"""What a tar holds, compared with tarfile and with what was written."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from conftest import write_tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgcurate import tar


def scan(path: Path) -> list[tar.Sample]:
    with open(path, "rb") as file:
        return tar.scan(file, path.stat().st_size, str(path))


names = st.text(st.characters(exclude_characters="/.\0", exclude_categories=["Cs"]), min_size=1, max_size=150)
members = st.lists(
    st.tuples(names, st.sampled_from(["jpg", "txt", "JSON", "seg.png"]), st.binary(max_size=1500)),
    min_size=1,
    max_size=12,
    unique_by=lambda member: (member[0], member[1]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_members_are_found_where_tarfile_finds_them(tmp_path: Path, content: list, format: int) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{key}.{extension}", data) for key, extension, data in content], format)
    expected = {f"{key}.{extension}": data for key, extension, data in content}
    data = path.read_bytes()
    found = {m.name: data[m.offset : m.offset + m.size] for sample in scan(path) for m in sample.members}
    assert found == expected
    for sample in scan(path):
        for member in sample.members:
            run = data[member.start : member.stop] + tar.END
            with tarfile.open(fileobj=io.BytesIO(run)) as alone:
                assert [info.name for info in alone] == [member.name]


def test_a_run_covers_adjacent_members_and_nothing_else(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "x.tar", [("a.jpg", b"1" * 600), ("a.txt", b"2"), ("b.jpg", b"3"), ("c.jpg", b"4"), ("b.txt", b"5")]
    )
    runs = {sample.key: sample.run for sample in scan(path)}
    assert runs == {"a": (0, 512 + 1024 + 1024), "b": None, "c": (2560 + 1024, 1024)}


def test_a_pax_global_header_belongs_to_no_run(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}) as archive:
        for name in ("a.jpg", "a.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    (sample,) = scan(path)
    assert sample.run is not None and sample.run[0] > 0
    start, size = sample.run
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes()[start : start + size] + tar.END)) as alone:
        assert alone.getnames() == ["a.jpg", "a.txt"] and alone.pax_headers == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("v1.0/a.JPG", ("v1.0/a", "jpg")),
        ("a.seg.png", ("a", "seg.png")),
        ("./a.txt", ("./a", "txt")),
        ("README", None),
        (".hidden.jpg", None),
        ("dir.d/.hidden", None),
        ("__meta__/a.jpg", None),
    ],
)
def test_keys_end_at_the_first_dot_of_the_file_name(name: str, expected: tuple[str, str] | None) -> None:
    assert tar.split_name(name) == expected


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", [("a.jpg", b"1" * 600), ("a.txt", b"2"), ("b.jpg", b"3" * 1200)])
    data = whole.read_bytes()
    end_of_b = 4 * 512 + 512 * 5
    for length in range(1, end_of_b + 1, 61):
        cut = tmp_path / "cut.tar"
        cut.write_bytes(data[:length])
        if length < 512:
            with pytest.raises(tar.ShardError, match=r"cut\.tar"):
                scan(cut)
        else:
            samples = scan(cut)
            assert "truncated" in (samples[-1].problem or ""), length
            assert all(sample.problem is None for sample in samples[:-1])


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")])
    data = bytearray(path.read_bytes())
    data[1024:1100] = os.urandom(76)
    path.write_bytes(data)
    (sample,) = scan(path)
    assert sample.key == "a" and "damaged" in (sample.problem or "")


def test_archives_joined_with_cat_are_all_read(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "1.tar", [("a.jpg", b"1")]).read_bytes()
    second = write_tar(tmp_path / "2.tar", [("b.jpg", b"2")]).read_bytes()
    joined = tmp_path / "x.tar"
    joined.write_bytes(first + second)
    assert [sample.key for sample in scan(joined)] == ["a", "b"]
    start, size = scan(joined)[1].run or (0, 0)
    assert joined.read_bytes()[start : start + size] == second[:1024]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 100, b"\x1f\x8b" + bytes(600), b"short"])
def test_what_is_no_tar_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(content)
    with pytest.raises(tar.ShardError, match=r"bad\.tar"):
        scan(path)


def test_links_and_unsafe_names_are_problems(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name in ("../b.jpg", "/c.jpg", "d/../../e.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    problems = [member.problem or "" for sample in scan(path) for member in sample.members]
    assert "link" in problems[0]
    assert all("unsafe" in problem for problem in problems[1:]) and len(problems) == 4


def test_an_empty_archive_has_no_samples(tmp_path: Path) -> None:
    assert scan(write_tar(tmp_path / "x.tar", [])) == []
