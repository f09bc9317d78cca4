"""Verbs that take long: how far they are is shown, and where somebody stops them the cluster and the user's data are left as they were, and none of
their own tasks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import distributed

from imgcurate.cluster.progress import shown

Verb = TypeVar("Verb", bound=Callable[..., Any])


def interruptible(verb: Verb) -> Verb:
    """Make a verb show how far it is, and cancel its tasks where it is interrupted, by Ctrl-C or a notebook's stop button.

    What a verb has persisted would else be computed to its end: Python and Jupyter keep the traceback of the last exception, and with it the
    verb's variables. What was computed or persisted before the verb began stays.
    """

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        client = current_client()
        before = set() if client is None else set(client.futures)
        try:
            with shown(verb.__qualname__, client):
                return verb(*args, **kwargs)
        except KeyboardInterrupt:
            if client is not None:
                cancel(client, set(client.futures) - before)
            raise

    return cast(Verb, call)


def cancel(client: distributed.Client, keys: Iterable[Any]) -> None:
    """Let go of tasks of a client, whoever in this process holds their results; those that run end by themselves."""

    async def release() -> None:
        # The scheduler does it for Client.cancel too, but stumbles there over tasks between those that somebody wants.
        for key in keys:
            client._release_key(key)

    with contextlib.suppress(Exception):  # a cluster that is gone has no tasks
        client.sync(release)


def current_client() -> distributed.Client | None:
    """Return the client that verbs run on, where there is one."""
    try:
        client = distributed.default_client()
    except ValueError:
        return None
    return client if client.status == "running" else None
