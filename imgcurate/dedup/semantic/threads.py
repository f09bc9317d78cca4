"""Python threads that share out work, each with one torch thread.

torch, NumPy and BLAS release the interpreter while they compute. Their own threads meet at a barrier after every small step, which gains little
where steps are small, and on a machine that has other work waits each time for the thread that got no core; threads that take whole pieces of
work meet once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_setting = threading.Lock()


def deal(work: Callable[[Item], Answer], items: Sequence[Item], n_threads: int | None = None) -> list[Answer]:
    """Do a piece of work for each item, and return the answers in the order of the items.

    Parameters
    ----------
    work : callable
    items : sequence
        The larger pieces first, so that all threads end at about the same time.
    n_threads : int, optional
        Default: as many as torch has in this thread.

    Examples
    --------
    >>> deal(abs, [-2, 1, -3], 2)
    [2, 1, 3]
    """
    import torch

    n_threads = min(n_threads or torch.get_num_threads(), len(items))
    if n_threads <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(n_threads, initializer=_take_one_torch_thread) as pool:
        return list(pool.map(work, items))


def alone(work: Callable[..., Answer], *arguments: Any) -> Answer:
    """Do a piece of work of many small steps with one torch thread, and return its answer.

    Examples
    --------
    >>> import torch
    >>> alone(torch.get_num_threads)
    1
    """
    import torch

    if torch.get_num_threads() == 1:
        return work(*arguments)
    with ThreadPoolExecutor(1, initializer=_take_one_torch_thread) as pool:
        return pool.submit(work, *arguments).result()


def _take_one_torch_thread() -> None:
    """Give this new thread one torch thread, and leave all others as they are."""
    import torch

    with _setting:
        # torch keeps the number for the thread that sets it and for all that are yet to come, so another new one puts that back.
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        other = threading.Thread(target=torch.set_num_threads, args=(before,))
        other.start()
        other.join()
