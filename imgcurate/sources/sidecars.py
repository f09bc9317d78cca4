"""What is read of a sample beside its image: which image, which caption, and in which encoding."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import NamedTuple

from imgcurate import tar

#: What the name of an image ends in.
IMAGE_EXTENSIONS = (
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "tif", "tiff", "bmp", "avif", "heic", "heif", "jxl", "jp2", "j2k",
)  # fmt: skip
#: A sidecar of more bytes is no caption.
MAX_SIDECAR = 1 << 20

# A byte order mark says what follows. UTF-32's begins with that of UTF-16.
_MARKED = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF8 = ("utf-8", "utf-8-sig")


class Sidecars(NamedTuple):
    """How samples are read.

    Attributes
    ----------
    caption : str
        The extension of the caption's member, in lower case and without the dot.
    key : str or None
        The key under which the caption stands in it, where it is JSON.
    image : str or None
        The extension of the image's member, of samples that have several.
    most : int
        Bytes that a member may have which is read.
    """

    caption: str = "txt"
    key: str | None = None
    image: str | None = None
    most: int = MAX_SIDECAR

    @property
    def texts(self) -> tuple[str, ...]:
        """The last parts of the extensions of what is read."""
        return self.caption.rpartition(".")[2], "json"


#: A .txt is the caption, and there is one image.
AS_USUAL = Sidecars()


class BadSidecar(ValueError):
    """A sidecar that cannot be read."""


class Texts(NamedTuple):
    """The caption and the JSON of a sample, and the encoding of these where it is not UTF-8."""

    caption: str | None
    metadata: str | None
    encoding: str | None


def chosen(caption_from: str, image: str | None, max_sidecar: int) -> Sidecars:
    """Check the options of `read_webdataset` that say how samples are read.

    Examples
    --------
    >>> chosen("json:caption", None, 1000)
    Sidecars(caption='json', key='caption', image=None, most=1000)
    """
    extension, colon, key = caption_from.partition(":")
    extension = extension.removeprefix(".").lower()
    if not extension or "/" in extension or (colon and (extension.rpartition(".")[2] != "json" or not key)):
        raise ValueError(f"caption_from={caption_from!r}: give an extension such as 'txt', or 'json:KEY'")
    if image is not None and not image.strip("."):
        raise ValueError(f"image={image!r}: give the extension of the image's member, such as 'jpg'")
    if max_sidecar < 1:
        raise ValueError(f"max_sidecar={max_sidecar}: it must be at least 1 byte")
    return Sidecars(extension, key if colon else None, image.removeprefix(".").lower() if image else None, max_sidecar)


def images_of(sample: tar.Sample, image: str | None = None) -> list[tar.Member]:
    """Return the members of a sample that are images, or those with the extension `image`: one, of a sample that can be used."""
    wanted = IMAGE_EXTENSIONS if image is None else (image,)
    images = [member for member in sample.members if member.extension in wanted]
    if images:
        return images
    endings = tuple(f".{extension}" for extension in wanted)
    return [member for member in sample.members if member.extension.endswith(endings)]


def texts_of(sample: tar.Sample, image: tar.Member, sidecars: Sidecars) -> Texts:
    """Return what is read beside an image.

    Parameters
    ----------
    sample : Sample
        Whose texts have been read.
    image : Member
        One of its members. Where its extension is ``v1.jpg``, ``v1.txt`` belongs to it, and ``txt`` where there is none.
    sidecars : Sidecars

    Raises
    ------
    BadSidecar
        Where one is too large, or is not the JSON that was asked for.
    """
    if len(sample.members) == 1:
        return Texts(None, None, None)
    caption, of_caption = _read(sample, image, sidecars.caption, sidecars.most)
    metadata, of_metadata = (
        (caption, of_caption) if sidecars.caption == "json" else _read(sample, image, "json", sidecars.most)
    )
    if sidecars.key is not None and caption is not None:
        caption = _in_json(caption, sidecars)
    elif sidecars.caption != "json" and caption is not None:
        caption = as_caption(caption)
    return Texts(caption, metadata, of_caption or of_metadata)


def decode(content: bytes) -> tuple[str, str | None]:
    """Decode a text: by its byte order mark, as UTF-8, as Windows' Latin, or as Latin-1, which takes all.

    Returns
    -------
    (str, str or None)
        The text, and the encoding where it is not UTF-8: with a question mark where it is a guess, as nothing in the text says it.

    Notes
    -----
    One guess for all is right for Western Europe. What looks at the text is wrong for more captions than it mends, as these are short: of 12
    Western ones charset-normalizer 3.5 read 4 as they were written, of 12 Russian ones in KOI8-R 1, of 10 Chinese ones in GBK 5.

    Examples
    --------
    >>> decode("é".encode()), decode("é".encode("latin-1")), decode("é".encode("utf-16"))
    (('é', None), ('é', 'cp1252?'), ('é', 'utf-16'))
    """
    marked = [encoding for mark, encoding in _MARKED if content.startswith(mark)]
    for encoding in (*marked, "utf-8"):
        try:
            return content.decode(encoding), None if encoding in _UTF8 else encoding
        except UnicodeDecodeError:
            continue
    try:
        return content.decode("cp1252"), "cp1252?"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "latin-1?"


def as_caption(text: str) -> str:
    r"""Return the text of a caption's file without the newline that ends it.

    Examples
    --------
    >>> as_caption("A frog.\r\n"), as_caption("two\nlines\n\n")
    ('A frog.', 'two\nlines\n')
    """
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")


def _read(sample: tar.Sample, image: tar.Member, extension: str, most: int) -> tuple[str | None, str | None]:
    member = _beside(sample.members, image, extension)
    if member is None:
        return None, None
    if member.size > most:
        raise BadSidecar(
            f"{tar.shown(member.name)} has {member.size:,} bytes and a sidecar may have {most:,} (max_sidecar)"
        )
    return decode(member.content or b"")


def _beside(members: Sequence[tar.Member], image: tar.Member, extension: str) -> tar.Member | None:
    stem, dot, _ = image.extension.rpartition(".")
    for wanted in (stem + dot + extension, extension):
        for member in members:
            if member.extension == wanted and member is not image:
                return member
    return None


def _in_json(text: str, sidecars: Sidecars) -> str | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise BadSidecar(f"caption_from: the JSON cannot be read ({str(problem)[:100]})") from None
    found = content.get(sidecars.key) if isinstance(content, dict) else None
    if found is not None and not isinstance(found, str):
        raise BadSidecar(f"caption_from: {sidecars.key!r} in the JSON is no text")
    # JSON can escape halves of characters, which no text column holds.
    return None if found is None else found.encode("utf-8", "backslashreplace").decode()
