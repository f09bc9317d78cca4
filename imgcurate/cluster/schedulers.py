"""Schedulers that others run: where one is, and whether one answers there, said in a sentence within seconds."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import queue
import socket
import threading
import time
from typing import Any

import distributed
from distributed.comm import connect as open_comm
from distributed.comm import get_address_host_port, parse_address
from distributed.core import send_recv

_LOOK_SECONDS = 0.1
# A scheduler that is being started beside this process listens within that.
_REFUSED_SECONDS = 3.0
_EXAMPLE = "tcp://10.0.0.5:8786"


def normalised(address: str, security: distributed.Security | None) -> str:
    """Return an address with its protocol; raises ValueError where it is none.

    Examples
    --------
    >>> normalised("10.0.0.5:8786", None)
    'tcp://10.0.0.5:8786'
    """
    if "://" not in address:
        address = ("tls://" if security is not None and security.require_encryption else "tcp://") + address
    scheme, _ = parse_address(address)
    if scheme not in ("tcp", "tls"):
        return address  # Dask knows others, and says what is wrong with them
    try:
        host, port = get_address_host_port(address)
    except ValueError:
        host, port = "", 0
    if not host or not 0 < port < 65536:
        raise ValueError(f"{address!r} is no address of a Dask scheduler: give its host and port, such as {_EXAMPLE!r}")
    return address


def address_in(scheduler_file: str | os.PathLike[str], timeout: float) -> str:
    """Return the address in the file that ``dask scheduler --scheduler-file`` writes, which may come late.

    Raises
    ------
    FileNotFoundError
        Where it is not there after `timeout` seconds.
    ValueError
        Where it holds no address.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            with open(scheduler_file, encoding="utf-8") as file:
                return str(json.load(file)["address"])
        except (ValueError, KeyError, TypeError) as found:  # it may be half written
            problem: Exception = ValueError(
                f"{os.fspath(scheduler_file)} is no scheduler file ({type(found).__name__}): name the one that `dask scheduler "
                "--scheduler-file` wrote"
            )
        except FileNotFoundError:
            problem = FileNotFoundError(
                f"there is no scheduler file {os.fspath(scheduler_file)} after {timeout:g} s: start `dask scheduler --scheduler-file` "
                "with this path, on a disk that this machine sees"
            )
        if time.monotonic() > deadline:
            raise problem from None
        time.sleep(_LOOK_SECONDS)


def find(address: str, security: distributed.Security | None, timeout: float) -> None:
    """Ask who answers at an address, for at most `timeout` seconds.

    Dask's client would try three times as long, for ever where something listens that does not speak, and end in a traceback.

    Raises
    ------
    ConnectionError
        Where nobody answers, or who answers is no scheduler.
    """
    if parse_address(address)[0] not in ("tcp", "tls"):
        return
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(asyncio.run(_identify(address, security or distributed.Security(), timeout)))
        except BaseException as problem:
            answers.put(problem)

    # In a thread, because a notebook has a running loop already, and because the look-up of a name cannot be cancelled.
    threading.Thread(target=ask, daemon=True, name="imgcurate-find-scheduler").start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        answer = TimeoutError()
    if isinstance(answer, BaseException):
        raise ConnectionError(f"no Dask scheduler answers at {address}: {_in_words(answer, timeout)}") from None
    if answer.get("type") != "Scheduler":
        raise ConnectionError(
            f"at {address} is a Dask {str(answer.get('type')).lower()}, not a scheduler: give the scheduler's address"
        )


async def _identify(address: str, security: distributed.Security, timeout: float) -> dict[str, Any]:
    await _reach(*get_address_host_port(address), timeout)
    comm = await open_comm(address, timeout=0.85 * timeout, **security.get_connection_args("client"))
    try:
        return dict(await send_recv(comm, op="identity"))
    finally:
        comm.abort()


async def _reach(host: str, port: int, timeout: float) -> None:
    """Open a connection and close it again. Dask tries again for the whole of `timeout` what fails at once, and tells no reason then."""
    deadline = time.monotonic() + min(timeout, _REFUSED_SECONDS)
    while True:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), timeout)
            writer.close()
            return
        except (socket.gaierror, TimeoutError):
            raise
        except OSError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_LOOK_SECONDS)


def _in_words(problem: BaseException, timeout: float) -> str:
    """Say why nobody answers, and what to do."""
    text = " ".join(f"{type(found).__name__}: {found}" for found in (problem, problem.__cause__))
    if "ssl_context" in text:
        return "tls:// takes the scheduler's certificates, so pass security="
    if "ncryption required" in text:
        return "security= asks for encryption, so give an address that begins with tls://"
    if "ssl" in text.lower() or "TLS handshake" in text:
        return (
            "the TLS handshake failed, so see that security= has the certificates that the scheduler was started with"
        )
    if "refused" in text.lower() or f"[Errno {errno.ECONNREFUSED}]" in text:
        return f"nothing has listened there for {min(timeout, _REFUSED_SECONDS):g} s; check host and port, or start it with `dask scheduler`"
    if "gaierror" in text:
        return "its host is not known; check the name"
    if not isinstance(problem, OSError):
        return "what listens there speaks another protocol; check the port"
    if "StreamClosed" in text or "CommClosed" in text or "in <TCP" in text or "reset" in text:
        return "what listens there hung up; check the port, and pass security= with a tls:// address where the scheduler wants TLS"
    return f"it was silent for {timeout:g} s; check host, port and firewall, and whether the scheduler runs"
