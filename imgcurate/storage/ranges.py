"""A remote file read from front to back, where each request costs as much as megabytes do: how much of it to ask for at once."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

logger = logging.getLogger("imgcurate")

#: How many bytes a store would have sent in the time that it takes to answer: 30 ms at 70 MB/s.
REQUEST_BYTES = 2 << 20
#: The largest block that is asked for.
MOST_BYTES = 16 << 20

# What is asked for beyond what is wanted: of a file whose wanted places lie far apart enough for the headers and texts between two
# images, and of one that is read as a whole at least this much.
_NEAR_BYTES, _FEWEST_BYTES = 16 << 10, 64 << 10


class Forward(io.RawIOBase):
    """A file of which some or all is read, from front to back.

    Where the places that were read so far lie closer together than a request costs, everything is read, in blocks as large as
    what has been come past; where they are farther apart, what lies between is skipped. So a shard of many small images
    takes one pass, and one of a few large images a request for each, and the number of requests is bounded by the bytes of the file:
    one in 16 MiB of a pass, at most one in 2 MiB where it hops.

    Parameters
    ----------
    fetch : callable
        Takes start and stop, and returns those bytes of the file.
    size : int
        The file's, in bytes.
    name : str
        For the log, where closing the file says, at level DEBUG, which way was taken.

    Attributes
    ----------
    requests, fetched : int
        How often something was fetched, and how many bytes.

    Examples
    --------
    >>> content = bytes(range(256)) * 4000
    >>> file = Forward(lambda start, stop: content[start:stop], len(content), "a.tar")
    >>> _ = file.seek(1_000_000)
    >>> file.read(4) == content[1_000_000:1_000_004], file.requests
    (True, 1)
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, name: str) -> None:
        self._fetch, self._size, self._name = fetch, size, name
        self._at = 0
        self._block, self._start = b"", 0
        self._origin = self._end = self._hops = 0
        self.requests = self.fetched = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        start = min(self._at, stop)
        if start == stop:
            return b""
        self._take_note(start, stop)
        if self._start <= start and stop <= self._start + len(self._block):
            found = self._block[start - self._start : stop - self._start]
        else:
            found = self._read_on(start, stop)
        self._at = start + len(found)
        return found

    def _take_note(self, start: int, stop: int) -> None:
        if start < self._start:  # back: what was learnt may not hold for what comes now
            self._origin = self._end = start
            self._hops = 0
        elif start > self._end + _NEAR_BYTES:
            self._hops += 1
        self._end = max(self._end, stop)

    def _read_on(self, start: int, stop: int) -> bytes:
        """Fetch what is not there yet of some bytes, and what is likely to be wanted next."""
        kept = self._block[start - self._start :] if self._start <= start else b""
        begin = start + len(kept)
        end = min(max(stop + self._near(), begin + self._ahead()), self._size)
        self._block = kept + self._fetch(begin, end)
        self._start = start
        self.requests += 1
        self.fetched += end - begin
        return self._block[: stop - start]

    @property
    def hopping(self) -> bool:
        """Whether the places that were read lie farther apart than a request costs."""
        return self._hops > 0 and (self._end - self._origin) / self._hops > REQUEST_BYTES

    def _near(self) -> int:
        return _NEAR_BYTES if self.hopping else 0

    def _ahead(self) -> int:
        return 0 if self.hopping else min(max(self._end - self._origin, _FEWEST_BYTES), MOST_BYTES)

    def close(self) -> None:
        if not self.closed:
            way = "hopped over what was not wanted" if self.hopping else "one pass"
            logger.debug(
                "%s: %s: %d requests, %d of %d bytes", self._name, way, self.requests, self.fetched, self._size
            )
            self._block = b""
        super().close()
