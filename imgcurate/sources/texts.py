"""The texts beside an image as the columns that they become."""

from __future__ import annotations

#: The extension of each text's file or member, and its column.
COLUMNS = {"txt": "caption", "json": "metadata"}


def decode(content: bytes | None, extension: str) -> str | None:
    r"""Return the text of a file, decoded as UTF-8; of a caption without the newline that ends its file.

    Parameters
    ----------
    content : bytes or None
        None where there is no such file.
    extension : str
        One of `COLUMNS`.

    Examples
    --------
    >>> decode(b"A frog.\r\n", "txt"), decode(b"two\nlines\n\n", "txt"), decode(b"{}\n", "json")
    ('A frog.', 'two\nlines\n', '{}\n')
    """
    if content is None:
        return None
    text = content.decode("utf-8", "replace")
    if COLUMNS[extension] != "caption" or not text.endswith("\n"):
        return text
    return text[:-2] if text.endswith("\r\n") else text[:-1]
