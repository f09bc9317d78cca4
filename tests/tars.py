"""Tars made header by header, as no writer makes them, and one of each dialect that writers make."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

END = bytes(1024)


def head(
    name: str, size: int = 0, kind: bytes = b"0", *, field: bytes | None = None, magic: bytes = b"ustar\x0000"
) -> bytes:
    """One block: `field` is what stands for the size, which else is octal, or in base 256 where octal has no room."""
    block = bytearray(tarfile.TarInfo(name).tobuf())
    if field is None:
        octal = 0 <= size < 8**11
        field = b"%011o\0" % size if octal else bytes([255 if size < 0 else 128]) + (size % 2**88).to_bytes(11)
    block[124:136], block[156:157], block[257:265] = field, kind, magic
    return summed(block)


def summed(block: bytes | bytearray, signed: bool = False) -> bytes:
    """A block with the checksum that it should have."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 * (signed and byte > 127) for byte in block)
    return bytes(block)


def pad(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def member(name: str, content: bytes, kind: bytes = b"0") -> bytes:
    return head(name, len(content), kind) + pad(content)


def record(keyword: str, value: object) -> bytes:
    body = f" {keyword}={value}\n".encode("utf-8", "surrogateescape")
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """A PAX header: of the next member, or with kind "g" of all."""
    return member("pax", b"".join(records), kind)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """GNU's header for a long name, or with kind "K" for a long link."""
    return member("././@LongLink", name + b"\0", kind)


def of_tarfile(members: Sequence[tuple[str, bytes]], format: int, **headers: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, pax_headers=headers or None) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def dialects() -> dict[str, bytes]:
    """Tars of the same three samples, as writers of all ages make them, and of what else such tars hold."""
    samples = [
        (f"{key}.{extension}", f"{key} {extension}".encode() * 40) for key in "abc" for extension in ("jpg", "txt")
    ]
    plain = b"".join(member(*sample) for sample in samples)
    deep = [(f"{'d' * 90}/{'e' * 60}/é{name}", content) for name, content in samples]
    link = head("l.jpg", 0, b"2")
    v7 = b"".join(summed(head(name, len(content), b"\0", magic=bytes(8))) + pad(content) for name, content in samples)
    signed = bytearray(head("\xe9.jpg", 5))
    return {
        "ustar": of_tarfile(samples, tarfile.USTAR_FORMAT),
        "gnu": of_tarfile(samples, tarfile.GNU_FORMAT),
        "pax": of_tarfile([("é.jpg", b"x"), *samples], tarfile.PAX_FORMAT, comment="all"),
        "ustar, prefixes": of_tarfile(
            [(f"{'d' * 90}/{'e' * 60}/{name}", content) for name, content in samples], tarfile.USTAR_FORMAT
        ),
        "gnu, long names": of_tarfile([("n" * 120 + name, content) for name, content in deep], tarfile.GNU_FORMAT),
        "pax, long names": of_tarfile([("n" * 120 + name, content) for name, content in deep], tarfile.PAX_FORMAT),
        "v7": v7 + END,
        "signed checksum": summed(signed, signed=True) + pad(b"image") + END,
        "base 256": head("a.jpg", field=b"\x80" + (5).to_bytes(11)) + pad(b"image") + plain + END,
        "pax size": pax(record("size", 5), record("mtime", "1.5")) + head("a.jpg") + pad(b"image") + END,
        "directories and links": head("d/", 0, b"5") + link + plain + END,
        "joined": plain + END + plain + END + bytes(512 * 20),
        "apart": plain[: 512 * 4] + member("README", b"read me") + plain[512 * 4 :] + END,
        "sparse, old": member("s.jpg", b"stored", b"S") + plain + END,
        "sparse, pax": pax(record("GNU.sparse.major", 1), record("GNU.sparse.minor", 0))
        + member("s.jpg", b"0\n")
        + plain
        + END,
        "global path": pax(record("path", "other.jpg"), kind=b"g") + plain + END,
        "cut": plain[:-700],
    }
