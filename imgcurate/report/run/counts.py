"""Counting values of which there may be as many as images, in bounded room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Counts:
    """How often values occur, of which no more than `most` are held: the mergeable summary of Misra and Gries.

    Up to that many different values are counted exactly. Of more, those that are rare are let go, and the counts of all are lower by at most
    `missing`: a value that occurs more often than that is held.

    Attributes
    ----------
    most : int
    held : collections.Counter
    missing : int

    References
    ----------
    P. K. Agarwal et al., "Mergeable summaries", PODS 2012.

    Examples
    --------
    >>> counts = Counts(2).add(["a", "a", "a", "b", "b", "c"])
    >>> counts.held, counts.missing
    (Counter({'a': 2, 'b': 1}), 1)
    """

    most: int
    held: Counter[str] = field(default_factory=Counter)
    missing: int = 0

    def add(self, values: Iterable[str]) -> Counts:
        """Return the counts with some values more."""
        return self.merge(Counts(self.most, Counter(values)))

    def merge(self, other: Counts) -> Counts:
        """Return the counts of the values of both."""
        held, missing = self.held + other.held, self.missing + other.missing
        if len(held) > self.most:
            cut = sorted(held.values(), reverse=True)[self.most]
            held = Counter({value: count - cut for value, count in held.items() if count > cut})
            missing += cut
        return Counts(self.most, held, missing)

    def largest(self, n: int) -> list[tuple[str, int]]:
        """Return the n values that occur most often, and how often; of equal ones in the order of the values."""
        return sorted(self.held.items(), key=lambda item: (-item[1], item[0]))[:n]
