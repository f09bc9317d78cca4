"""Functions of an image's bytes in a process that may die: an image that takes too long, or kills its decoder, costs no more than itself."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, ParamSpec, TypeVar, cast

from imgcurate.pixels import share
from imgcurate.pixels.errors import PixelError

P = ParamSpec("P")
R = TypeVar("R")

_LENGTH = struct.Struct(">Q")
_PIPE_BYTES = 1 << 20

_idle: list[_Helper] = []
_owner = os.getpid()
_lock = threading.Lock()


def check_timeout(timeout: float | None) -> None:
    """Raise a ValueError where a timeout is no number of seconds."""
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout}: give the seconds that an image may take, or None")


def within(timeout: float | None, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Call a function in a process of its own that is ended after some seconds, or here where there is no timeout.

    Parameters
    ----------
    timeout : float or None
        Seconds, by the clock.
    function : callable
        With its arguments and its result, something that can be pickled.

    Raises
    ------
    PixelError
        Where it took longer, or more memory than `share.most_memory` says, or its process died; and what the function raises.

    Notes
    -----
    Processes are kept for the next call, one for each thread that calls at the same time, and end with this one. An image's pixels come
    back through a pipe, which takes about as long as copying them twice.

    Examples
    --------
    >>> within(None, len, b"abc")
    3
    """
    if timeout is None:
        return function(*arguments, **options)
    helper = _take()
    try:
        fine, answer = helper.ask((timeout, share.most_memory(), function, arguments, options))
    except (EOFError, OSError):
        raise PixelError("decode", _death(helper.wait(), timeout)) from None
    except BaseException:  # its answer would be taken for that of the next question
        helper.end()
        raise
    with _lock:
        _idle.append(helper)
    if fine:
        return cast(R, answer)
    raise answer


def _take() -> _Helper:
    global _owner
    with _lock:
        if _owner != os.getpid():  # those of the process that this one is a fork of are not this one's
            _idle.clear()
            _owner = os.getpid()
        if _idle:
            return _idle.pop()
    return _Helper()


def _death(status: int, timeout: float) -> str:
    if status == -signal.SIGALRM:
        return f"it took longer than {timeout:g} s"
    return f"the process that decoded it died ({f'signal {-status}' if status < 0 else f'status {status}'})"


class _Helper:
    """A process that answers one question after the other."""

    def __init__(self) -> None:
        program = f"import sys; sys.path[:] = {sys.path!r}; from imgcurate.pixels.isolated import serve; serve()"
        # In a session of its own: Ctrl-C is for those who ask.
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=_PIPE_BYTES,
            start_new_session=True,
        )

    def ask(self, question: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        _send(cast(BinaryIO, self._process.stdin), question)
        return _receive(cast(BinaryIO, self._process.stdout))

    def wait(self) -> int:
        with contextlib.suppress(OSError):  # what was not sent yet cannot be
            self._process.stdin.close()  # type: ignore[union-attr]
        self._process.stdout.close()  # type: ignore[union-attr]
        return self._process.wait()

    def end(self) -> None:
        self._process.kill()
        self.wait()


@atexit.register
def _end_all() -> None:
    if _owner == os.getpid():
        for helper in _idle:
            helper.end()


def serve() -> None:
    """Answer questions from the standard input until it ends: what `within` starts."""
    questions = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what decoders print is no answer
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        try:
            timeout, memory, function, arguments, options = _receive(questions)
        except EOFError:
            return
        with _bounded(timeout, memory):
            try:
                answer = True, function(*arguments, **options)
            except MemoryError:
                answer = False, PixelError("decode", f"it took more than {memory / 2**30:.1f} GiB of memory")
            except Exception as problem:
                answer = False, problem
        _send(answers, answer)


@contextlib.contextmanager
def _bounded(timeout: float, memory: int) -> Iterator[None]:
    """Let the system end this process after some seconds, and give it only so many bytes more than it has.

    It may be in a decoder that knows nothing of Python, also where nobody waits for it any more.
    """
    # What is written to counts, not what is only reserved, as the stacks and heaps of threads are.
    with open("/proc/self/statm", "rb") as file:
        now = int(file.read().split()[5]) * resource.getpagesize()
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = now + memory if most == resource.RLIM_INFINITY else min(now + memory, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def _send(file: BinaryIO, value: Any) -> None:
    buffer = io.BytesIO()
    pickle.dump(value, buffer, protocol=pickle.HIGHEST_PROTOCOL)
    content = buffer.getbuffer()
    file.write(_LENGTH.pack(len(content)))
    file.write(content)
    file.flush()


def _receive(file: BinaryIO) -> Any:
    length = file.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        raise EOFError
    content = file.read(_LENGTH.unpack(length)[0])
    return pickle.loads(content)
