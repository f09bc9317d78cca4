"""What is left of a verb that somebody stops: the cluster and the user's data as they were, and none of the verb's own tasks."""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import distributed

Verb = TypeVar("Verb", bound=Callable[..., Any])


def interruptible(verb: Verb) -> Verb:
    """Make a verb let go of its tasks where it is interrupted, by Ctrl-C or a notebook's stop button.

    Dask forgets a task when nobody holds its result any more. What a verb has persisted would be held, and be computed to its end, by the
    traceback that Python and Jupyter keep of the last exception; so the variables of the verb are cleared from it. What the user holds stays.

    Examples
    --------
    >>> @interruptible
    ... def verb():
    ...     raise KeyboardInterrupt
    >>> verb()
    Traceback (most recent call last):
    KeyboardInterrupt
    """

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return verb(*args, **kwargs)
        except KeyboardInterrupt as stop:
            problem: BaseException | None = stop
            while problem is not None:
                traceback.clear_frames(problem.__traceback__)
                problem = problem.__context__
            raise

    return cast(Verb, call)


def cancel(client: distributed.Client, keys: Iterable[Any]) -> None:
    """Cancel tasks of a client; those that run end by themselves, and nobody waits for them."""
    with contextlib.suppress(Exception):  # a cluster that is gone has no tasks
        client.cancel([distributed.Future(key, client) for key in keys])
