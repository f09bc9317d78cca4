"""From vectors to numbers: scores that a predicate can keep or drop a row by."""

from imgcurate.scores.aesthetic import score_aesthetic
from imgcurate.scores.nsfw import score_nsfw

__all__ = ["score_aesthetic", "score_nsfw"]
