"""Who holds a lock or works on a part: a process, and whether it is still there."""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_here(owner: dict[str, Any]) -> bool:
    """Tell whether a process is, or was, one of this machine.

    Examples
    --------
    >>> is_here(this_process()), is_here({"host": "elsewhere.example"})
    (True, False)
    """
    return bool(owner["host"] == socket.gethostname())


def lives(owner: dict[str, Any]) -> bool:
    """Tell whether a process of this machine is still there, and not another one of its number.

    Examples
    --------
    >>> lives(this_process()), lives({**this_process(), "started": 0})
    (True, False)
    """
    try:
        return bool(abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) < 1)
    except psutil.NoSuchProcess:
        return False
