"""What other thresholds would remove, and the pairs that the one in force only just spares: from the graph of pairs that a run stores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imgcurate import storage
from imgcurate.report import pairs

#: So many thresholds are tried, and so many pairs shown.
TRIED, OUTSIDE = 12, 6
# Trying a threshold takes as long as deciding did: of a graph larger than this a page does not wait for it.
_MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Thresholds:
    """What is known of other thresholds.

    Attributes
    ----------
    eps : list of float
        Those tried, ascending, with the one in force.
    removed : list of int
        How many images each would remove.
    outside : list of (str, str, float)
        The most similar pairs of images that both stay, and how similar they are.
    """

    eps: list[float]
    removed: list[int]
    outside: list[tuple[str, str, float]]


def try_others(
    graphs: Collection[str], manifest: Mapping[str, Any], storage_options: storage.Options
) -> Thresholds | None:
    """Try other thresholds on the graph of semantic duplicates of a run. Eager.

    Parameters
    ----------
    graphs : collection of str
        The folders that may hold it, as `Duplicates.load` reads them.
    manifest : dict
        Of the run.
    storage_options : dict or None

    Returns
    -------
    Thresholds or None
        None where no graph is there or it is very large, or where it is not that of what the run removed.
    """
    from imgcurate.dedup.result import Duplicates

    for folder in graphs:
        try:
            if sum(storage.sizes_in(folder, storage_options).values()) > _MOST_BYTES:
                continue
            found = Duplicates.load(folder, storage_options=storage_options)
        except (OSError, ValueError):  # it was removed with .run, or damaged: the page has what the run's outputs say
            continue
        most = 1 - found.min_similarity
        steps = np.linspace(0, most, TRIED + 1)[1:].tolist()
        tried = sorted({*(min(float(f"{eps:.6g}"), most) for eps in steps), found.eps})
        removed = found.sweep(tried)["removed"].tolist()
        if removed[tried.index(found.eps)] != manifest["reasons"]["semantic"]:
            continue
        _, outside = pairs.nearest(found, OUTSIDE, found.eps)
        return Thresholds(tried, removed, outside)
    return None
