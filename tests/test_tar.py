"""What a tar holds, compared with tarfile and with what was written."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import tars
from conftest import write_tar
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from imgcurate import tar
from imgcurate.tar.extended import MOST_BYTES, MOST_IN_A_ROW


def listed(data: bytes) -> list[tar.Sample]:
    return tar.scan(io.BytesIO(data), len(data), "s.tar")


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
@given(members, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_members_are_found_where_tarfile_finds_them(tmp_path: Path, content: list, format: int) -> None:
    try:
        path = write_tar(tmp_path / "x.tar", [(f"{key}.{extension}", data) for key, extension, data in content], format)
    except ValueError:  # of which only USTAR has no room for
        assume(False)
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


UNSAFE = [
    "../b.jpg",
    "/c.jpg",
    "d/../../e.jpg",
    "C:/f.jpg",
    "c:f.jpg",
    "\\\\host\\g.jpg",
    "h\\..\\..\\i.jpg",
    "j\x1b[2J.jpg",
    "k\n.jpg",
    "l\x9b.jpg",
]


@pytest.mark.parametrize("name", [*UNSAFE, "m\0.jpg"])
def test_names_that_are_not_safe_on_every_system_are_problems(name: str) -> None:
    (sample,) = listed(tars.pax(tars.record("path", name)) + tars.member("x.jpg", b"x") + tars.END)
    assert "unsafe member name" in (sample.members[0].problem or "") and "\x1b" not in (sample.members[0].problem or "")


OK = tars.member("ok.jpg", b"image")
DIGITS = b"1" * 200_000
CUT_SPARSE = bytearray(tars.head("s.jpg", 5, b"S"))
CUT_SPARSE[482] = 1


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (tars.head("x.jpg", 2**62), "the file ends inside a member"),
        (tars.head("x.jpg", 2**64), "size is no number"),
        (tars.head("x.jpg", 2**88 - 1), "size is no number"),
        (tars.pax(tars.record("size", 5)) + tars.head("x.jpg", 2**63) + tars.pad(b"image"), "size is no number"),
        (tars.summed(OK[:100] + b"644\0junk" + OK[108:512]) + OK[512:], "no header"),
        (OK[:155] + b"\xb4" + OK[156:], "no header"),
        (tars.pax(tars.record("size", 10**30)) + tars.head("x.jpg"), "the file ends inside a member"),
        (tars.head("x.jpg", -512), "size is no number"),
        (tars.head("x.jpg", field=b"-0000000001\0"), "size is no number"),
        (tars.head("x.jpg", field=b"0o000000005\0"), "size is no number"),
        (tars.head("x.jpg", field=bytes(12)), "size is no number"),
        (tars.pax(tars.record("size", -512)) + tars.head("x.jpg"), "size is no number"),
        (tars.head("d/", 512, b"5"), "a size"),
        (tars.head("l.jpg", 512, b"1"), "a size"),
        (tars.head("d.jpg/", 512), "a size"),
        (tars.pax(tars.record("path", "d.jpg/")) + tars.member("x.jpg", b"x"), "a size"),
        (tars.long_name(b"d.jpg/") + tars.member("x.jpg", b"x"), "a size"),
        (tars.member("h", DIGITS, b"x"), "cannot be read"),
        (tars.member("h", b"12 path=a.jpg", b"x"), "cannot be read"),
        (tars.member("h", b"0 size=5\n13 mtime=1.5\n", b"x"), "cannot be read"),
        (tars.member("h", b"5 a=\n", b"x") + tars.END, "no header"),
        (tars.head("h", MOST_BYTES + 1, b"x"), "an extended header of more than"),
        (tars.head("h", 2**62, b"L"), "an extended header of more than"),
        (tars.head("h", 2**80, b"K"), "size is no number"),
        (tars.head("h", 2000, b"g"), "the file ends inside a header"),
        (tars.head("l", 1, b"L") + tars.pad(b"no end") + OK, "longer than it says"),
        (tars.pax(tars.record("comment", "x"), kind=b"g") * (MOST_IN_A_ROW + 1) + OK, "extended headers in a row"),
        (tars.pax(tars.record("path", "a.jpg")) * 2 + OK, "several extended headers"),
        (tars.pax(tars.record("path", "a.jpg")) + tars.long_name(b"b.jpg") + OK, "several extended headers"),
        (tars.long_name(b"b.jpg") + tars.pax(tars.record("comment", "x"), kind=b"g") + OK, "several extended headers"),
        (tars.pax(tars.record("size", 5), kind=b"g") + OK, "gives a size"),
        (tars.pax(tars.record("size", 5), tars.record("GNU.sparse.realsize", 9)) + tars.member("s.jpg", b"x"), "gives a size"),
        (tars.pax(tars.record("GNU.sparse.realsize", 2000)) + tars.member("s.jpg", b"x"), "gives a size"),
        (tars.pax(tars.record("GNU.sparse.size", 2000), kind=b"g") + tars.member("s.jpg", b"x"), "gives a size"),
        (tars.summed(CUT_SPARSE), "the file ends without"),
        (OK[:100] + b"7" + OK[101:], "no header"),
    ],
)  # fmt: skip
def test_numbers_that_lie_are_the_damage_of_their_shard(after: bytes, why: str) -> None:
    found = listed(OK + after + tars.END)
    assert why in (found[-1].problem or "") and "what came after cannot be read" in (found[-1].problem or "")
    assert all(m.stop <= len(OK + after + tars.END) for sample in found for m in sample.members)
    for length in range(0, min(len(after), 5000), 256):
        try:
            assert listed(after[:length])[-1].problem
        except tar.ShardError as problem:
            assert "s.tar" in str(problem)


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (tars.pax(tars.record("path", "good.jpg"), kind=b"g") + tars.member("../../escaped.jpg", b"x"), "global PAX header"),
        (tars.pax(tars.record("GNU.sparse.realsize", 1)) + tars.member("s.jpg", b"x"), "sparse"),
        (tars.pax(tars.record("GNU.sparse.major", 1), tars.record("GNU.sparse.realsize", 2000)) + tars.member("s.jpg", b"0\n"), "sparse"),
        (tars.pax(tars.record("GNU.sparse.major", 1), tars.record("GNU.sparse.minor", 0)) + tars.member("s.jpg", b"9\n0\n"), "sparse"),
        (tars.pax(tars.record("GNU.sparse.map", "a,b")) + tars.member("s.jpg", b"x"), "sparse"),
        (tars.pax(tars.record("SCHILY.realsize", 7)) + tars.member("s.jpg", b"x"), "sparse"),
        (tars.pax(tars.record("GNU.sparse.name", "readme"), tars.record("path", "s.jpg")) + tars.member("x", b"x"), "sparse"),
        (tars.pax(tars.record("path", "readme"), tars.record("GNU.sparse.name", "s.jpg")) + tars.member("x", b"x"), "sparse"),
        (tars.member("s.jpg", b"x", b"S"), "sparse"),
        (tars.head("p.jpg", 0, b"6"), "not a file"),
        (tars.member("v.jpg", b"x", b"V"), "not a file"),
        (tars.head("p.jpg", magic=b"ustar  \0")[:345] + b"times" + bytes(162), "prefix"),
    ],
)  # fmt: skip
def test_members_that_readers_take_differently_are_problems_and_the_others_are_read(before: bytes, why: str) -> None:
    before = before if why != "prefix" else tars.summed(before)
    found = {sample.key: sample for sample in listed(tars.member("first.jpg", b"1") + before + tars.END)}
    assert found.pop("first").members[0].problem is None
    (odd,) = found.values()
    assert why in (odd.members[0].problem or "")
    if "global" not in why:
        (*_, last) = listed(before + OK + tars.END)
        assert last.key == "ok" and last.members[0].problem is None and last.problem is None


def test_names_that_end_in_a_slash_are_those_of_directories() -> None:
    before = (
        tars.head("d.jpg/")
        + tars.pax(tars.record("path", "e.jpg/"))
        + tars.head("x.jpg")
        + tars.head("f.jpg/", kind=b"\0")
    )
    (sample,) = listed(before + OK + tars.END)
    assert sample.key == "ok" and sample.members[0].problem is None


def test_global_headers_that_change_no_name_and_no_size_are_no_problem() -> None:
    (sample,) = listed(tars.pax(tars.record("comment", "x"), tars.record("mtime", "1"), kind=b"g") * 3 + OK + tars.END)
    assert sample.members[0].problem is None and sample.run == (3 * 1024, 1024)
    (named,) = listed(
        tars.pax(tars.record("path", "all.jpg"), kind=b"g") + tars.pax(tars.record("path", "own.jpg")) + OK + tars.END
    )
    assert named.key == "own" and named.members[0].problem is None


def test_members_of_no_size_are_listed_in_one_pass() -> None:
    one = tars.head("a.jpg")
    data = one * 20_000 + tars.END
    read = 0

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal read
            content = super().read(size)
            read += len(content)
            return content

    (sample,) = tar.scan(Counting(data), len(data), "s.tar")
    assert len(sample.members) == 20_000 and read <= len(data) + 1024


def test_a_member_that_is_cut_off_lies_in_the_file_as_far_as_it_is_there() -> None:
    (sample,) = listed(tars.head("x.jpg", 2**40) + b"there")
    (member,) = sample.members
    assert (member.offset, member.size, member.stop) == (512, 5, 517)


@pytest.mark.parametrize("record", ["inf", "-inf", "nan", "1e999", "9" * 400, "x", "", "-5.5", "1600000000.25"])
def test_times_and_owners_that_no_header_holds_are_left_out(record: str) -> None:
    like = tars.pax(*(tars.record(name, record) for name in ("mtime", "uid", "gid"))) + tars.head("x.jpg", 3)
    with tarfile.open(fileobj=io.BytesIO(tar.header("new.jpg", 0, like) + tar.END)) as archive:
        (info,) = archive.getmembers()
    held = float(record) if record in ("-5.5", "1600000000.25") else 0
    assert (info.name, info.mtime, info.uid >= 0, info.mode) == ("new.jpg", held, True, 0o644)


def test_an_empty_archive_has_no_samples(tmp_path: Path) -> None:
    assert scan(write_tar(tmp_path / "x.tar", [])) == []
