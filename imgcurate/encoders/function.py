"""A user's own encoder on its way to the workers: the function, and what its vectors will be marked with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imgcurate import fingerprint


@dataclass(frozen=True)
class Function:
    """A function from RGB bytes of shape (b, height, width, 3) to b vectors.

    Its fingerprint is taken once, on the client: what was sent to another process has no source there.
    """

    call: Callable[[Any], Any]
    name: str
    fingerprint: str

    def __call__(self, batch: Any) -> Any:
        return self.call(batch)


def wrap(function: Callable[[Any], Any]) -> Function:
    """Return `function` with its name and fingerprint."""
    return (
        function if isinstance(function, Function) else Function(function, name_of(function), fingerprint.of(function))
    )


def name_of(function: Any) -> str:
    """Return what a function is called.

    Examples
    --------
    >>> name_of(wrap)
    'imgcurate.encoders.function.wrap'
    """
    if isinstance(function, Function):
        return function.name
    of = function if hasattr(function, "__qualname__") else type(function)
    return f"{of.__module__}.{of.__qualname__}"
