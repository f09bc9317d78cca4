"""One header of a tar: the fields of a block of 512 bytes, and what is damaged in it."""

from __future__ import annotations

import re
import tarfile
from functools import lru_cache
from zlib import adler32

from imgcurate.tar.names import shown

BLOCK = tarfile.BLOCKSIZE
DIRECTORY, SPARSE = ord("5"), ord("S")

_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
# What all readers take for a number, in octal or, after these bytes, in base 256; of blanks and zeros they make 0.
_NUMBER = re.compile(rb"[\0\x80\xff].*| *[0-7]*[ \0]*", re.DOTALL)
_MOST_BYTES = 1 << 63
# The types of GNU's headers, which have other things where others have a prefix to the name.
_OF_GNU = b"LKS"

#: The type, the name and the size in a header, and what not all readers of tar take alike in it.
Header = tuple[int, str, int, str | None]


class DamagedTar(ValueError):
    """An archive that is cut off or damaged.

    Parameters
    ----------
    why : str
    place : int
        The byte from which on it cannot be read.
    """

    def __init__(self, why: str, place: int) -> None:
        super().__init__(why, place)
        self.why, self.place = why, place

    def __str__(self) -> str:
        return f"{self.why} at byte {self.place}; what came after cannot be read"


def parse(block: bytes, at: int) -> Header | None:
    """Parse a header; None where it is none to some reader of tar."""
    if not (_is_sum(block) and _are_numbers(block[100:124], block[136:148], block[329:345])):
        return None
    kind, name, problem = block[156], text_of(block[:100]), None
    if kind == 0 and name.endswith("/"):
        kind = DIRECTORY
    if block[345] and kind not in _OF_GNU:
        name = f"{text_of(block[345:500])}/{name}"
        if block[257:263] != b"ustar\0":
            problem = f"member {shown(name)} has a prefix to its name that not all readers of tar take"
    return kind, name, size_of(block[124:136], at), problem


def _is_sum(block: bytes) -> bool:
    """Tell whether a header's checksum is the sum of its bytes, or of its bytes as signed numbers, as old tars have it."""
    # Of 256 bytes the sum is less than the modulus of Adler-32, which finds it ten times as fast as Python does.
    given, own = _checksum(block[148:156])
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2 - own + 8 * ord(" ")
    return given == total or given == total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


@lru_cache(maxsize=4096)
def _checksum(field: bytes) -> tuple[int | None, int]:
    """Return the number in the field of the checksum, which counts as blanks in it, and the sum of its bytes."""
    return _octal(field), sum(field)


@lru_cache(maxsize=4096)
def _octal(field: bytes) -> int | None:
    digits = _OCTAL.fullmatch(field)
    return int(digits[1], 8) if digits else None


def size_of(field: bytes, at: int) -> int:
    """Return a header's size: in octal, or in base 256 after a byte of 128."""
    size = int.from_bytes(field[1:]) if field[0] == 128 else _octal(field)
    if size is None or size >= _MOST_BYTES:
        raise DamagedTar("damaged shard: a member's size is no number of bytes", at)
    return size


@lru_cache(maxsize=4096)
def _are_numbers(mode_and_owner: bytes, time: bytes, device: bytes) -> bool:
    """Tell whether readers of tar find numbers in fields of 8 bytes, and a time of 12: some take what has others there for no header."""
    fields = [of_8[at : at + 8] for of_8 in (mode_and_owner, device) for at in range(0, len(of_8), 8)]
    return all(_NUMBER.fullmatch(field) for field in (*fields, time))


def text_of(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def padded(size: int) -> int:
    return size + -size % BLOCK
