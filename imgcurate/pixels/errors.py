"""What is wrong with one image, as a value of its row."""

from __future__ import annotations

from imgcurate.printable import printable


class PixelError(Exception):
    """Why an image cannot be used, as one line for the row's ``error``: without control characters, and of bounded length.

    Parameters
    ----------
    step : str
        Where it was found: ``"read"``, ``"decode"``, ...
    problem : object
        What is said of it.

    Examples
    --------
    >>> str(PixelError("decode", "bad\\x1b[2J \\n header"))
    'decode: bad\\\\x1b[2J header'
    """

    def __init__(self, step: str, problem: object):
        text = " ".join(str(problem).split()) or type(problem).__name__
        super().__init__(f"{step}: {printable(text)}")

    def __reduce__(self) -> tuple[type[PixelError], tuple[str, str]]:
        step, _, text = str(self).partition(": ")
        return PixelError, (step, text)
