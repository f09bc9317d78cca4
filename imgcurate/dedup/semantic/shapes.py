"""Matrices of few shapes, for products in bfloat16.

For each shape of a product that it has not seen, oneDNN, which multiplies for torch on a CPU, makes code and keeps it, of the last thousand shapes:
2 ms and 0.6 MiB for each, in every worker process. Clusters and what is left over of blocks have any number of rows; rounded up, few.
"""

from __future__ import annotations

from typing import Any

_STEP = 64


def in_steps(rows: Any, step: int | None = None) -> Any:
    """Return rows of numbers with rows of zeros below them, up to a whole number of steps.

    Parameters
    ----------
    rows : torch.Tensor of shape (n, d), n > 0
    step : int, optional
        Default: 64, or of fewer rows the power of two that holds them.

    Returns
    -------
    torch.Tensor of shape (n rounded up, d)
        What was given where that is a whole number of steps.

    Examples
    --------
    >>> import torch
    >>> in_steps(torch.ones(3, 2)).tolist()
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    """
    import torch

    short_by = -len(rows) % (step or min(_STEP, 1 << (len(rows) - 1).bit_length()))
    return torch.nn.functional.pad(rows, (0, 0, 0, short_by)) if short_by else rows
