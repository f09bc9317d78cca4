"""``from imgcurate.curate import curate``: the whole job, which lives in `imgcurate.run`."""

from imgcurate.run.curate import curate

__all__ = ["curate"]
