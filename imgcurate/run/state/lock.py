"""One run in a folder at a time: a lock that goes with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from imgcurate import storage
from imgcurate.run.state.owner import is_here, lives, this_process

_BEAT_SECONDS, _DEAD_SECONDS = 15.0, 60.0


@contextlib.contextmanager
def locked(url: str, storage_options: storage.Options = None) -> Iterator[None]:
    """Hold a lock.

    Parameters
    ----------
    url : str
        A file, in a folder that is there. Where the file system knows advisory locks (``flock``) the system gives it back when the process
        dies; elsewhere it is renewed every 15 seconds, and one that is a minute old, or whose process on this machine has ended, is not in the
        way.
    storage_options : dict, optional

    Raises
    ------
    BlockingIOError
        Where another process holds it; names the process.
    """
    if storage.is_local(url):
        with open(url, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as problem:
                if problem.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    file.seek(0)
                    raise _taken(url, file.read()) from None
            else:
                with contextlib.suppress(
                    OSError
                ):  # it names the owner to others, and a full disk may have no room for that
                    file.truncate(0)
                    file.write(json.dumps(_owner()))
                    file.flush()
                yield
                return
    with _beating(url, storage_options):
        yield


@contextlib.contextmanager
def _beating(url: str, storage_options: storage.Options) -> Iterator[None]:
    before = storage.read_if_there(url, storage_options)
    if before and _holds(json.loads(before)):
        raise _taken(url, before.decode())
    owner = _owner()
    stop = threading.Event()

    def renew() -> None:
        with storage.open_atomic(url, storage_options) as file:
            file.write(json.dumps({**owner, "time": time.time()}).encode())

    def beat() -> None:
        while not stop.wait(_BEAT_SECONDS):
            with contextlib.suppress(Exception):  # the store may be away for a moment; the run itself finds out
                renew()

    renew()
    # Two that came at the same moment: the one that wrote last has it.
    now = storage.read_if_there(url, storage_options)
    if now and json.loads(now)["token"] != owner["token"]:
        raise _taken(url, now.decode())
    thread = threading.Thread(target=beat, daemon=True, name="imgcurate-lock")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        storage.remove(url, storage_options)


def _owner() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {**this_process(), "since": since, "time": time.time(), "token": uuid.uuid4().hex}


def _holds(owner: dict[str, Any]) -> bool:
    return time.time() - owner["time"] <= _DEAD_SECONDS and (lives(owner) or not is_here(owner))


def _taken(url: str, said: str) -> BlockingIOError:
    with contextlib.suppress(ValueError, KeyError):
        owner = json.loads(said)
        by = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
        return BlockingIOError(
            f"another run is on in {url.rpartition('/.run/')[0]} ({by}); wait for it, or stop it first"
        )
    return BlockingIOError(f"another run is on in {url.rpartition('/.run/')[0]}; wait for it, or stop it first")
