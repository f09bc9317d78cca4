"""The names of members: the key and the extension in them, and which are not safe to have."""

from __future__ import annotations

import re

#: What compressed shards end in.
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")

_META = re.compile(r"__[^/]*__($|/)")
# Out of the folder it is unpacked into, on some system; or not one name to all readers, or to a terminal.
_UNSAFE = re.compile(r"[/\\]|[A-Za-z]:|(?:.*[/\\])?\.\.(?:[/\\]|$)|.*[\0-\x1f\x7f-\x9f]", re.DOTALL)
_SHOWN = 100


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into a sample's key and an extension.

    Parameters
    ----------
    name : str

    Returns
    -------
    (str, str) or None
        Key and lower-case extension; None for what WebDataset takes for no part of a sample: hidden files, names without an
        extension, and ``__names__`` like this.

    Examples
    --------
    >>> split_name("v1.0/cat.left.JPG")
    ('v1.0/cat', 'left.jpg')
    >>> split_name("README") is None
    True
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or (name.startswith("__") and _META.match(name)):
        return None
    return folder + slash + stem, extension.lower()


def is_unsafe(name: str) -> bool:
    """Tell whether a name leads out of the folder that it is unpacked into, on this system or another, or has control characters.

    Examples
    --------
    >>> [is_unsafe(name) for name in ("a/b.jpg", "..a/b.jpg", "../b.jpg", "/b.jpg", "C:b.jpg", "a/..\\\\b.jpg", "a\\0.jpg")]
    [False, False, True, True, True, True, True]
    """
    # Nearly all names are plain, and the pattern takes three times as long.
    plain = name.isascii() and name.isprintable() and ".." not in name and "\\" not in name and ":" not in name
    return not (plain and name[:1] != "/") and _UNSAFE.match(name) is not None


def printable(name: str) -> str:
    """Make a name valid Unicode, which Arrow strings must be: bytes that are not UTF-8 become backslash escapes.

    Examples
    --------
    >>> print(printable("caf\\udce9.jpg"))
    caf\\xe9.jpg
    """
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(name: str) -> str:
    """Return a name as messages have it: quoted, without control characters, and not longer than a line.

    Examples
    --------
    >>> shown("a\\x1b[2J.jpg"), len(shown("a" * 1_000_000))
    ("'a\\\\x1b[2J.jpg'", 102)
    """
    return repr(name if len(name) <= _SHOWN else name[: _SHOWN - 3] + "...")
