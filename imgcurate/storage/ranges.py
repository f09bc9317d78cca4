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

# What is asked for after a hop, beyond what is wanted: enough for the headers and texts between two images.
_FEWEST_BYTES = 32 << 10


class Forward(io.RawIOBase):
    """A file of which some or all is read, from front to back.

    Places that lie closer together than a request costs are read in one pass, in blocks as large as what has been come past since it began;
    what lies between others is hopped over. So a shard of many small images takes one pass, one of a few large images a request for
    each, and the number of requests is bounded by the bytes of the file: one in 16 MiB of a pass, one in 2 MiB where it hops.

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
    requests, fetched, hops : int
        How often something was fetched, how many bytes, and how often something was hopped over.

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
        self._began = 0  # the pass that is under way
        self.requests = self.fetched = self.hops = 0

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
        there = self._start + len(self._block)
        if self._start <= start and stop <= there:
            found = self._block[start - self._start : stop - self._start]
        else:
            if start < self._start or start > there + REQUEST_BYTES:
                self.hops += 1
                self._began = start
            found = self._read_on(start, stop)
        self._at = start + len(found)
        return found

    def _read_on(self, start: int, stop: int) -> bytes:
        """Fetch what is not there yet of some bytes, and as much of what follows as the pass has come."""
        kept = self._block[start - self._start :] if self._start <= start else b""
        begin = start + len(kept)
        ahead = min(max(stop - self._began, _FEWEST_BYTES), MOST_BYTES)
        end = min(max(stop, begin + ahead), self._size)
        self._block = kept + self._fetch(begin, end)
        self._start = start
        self.requests += 1
        self.fetched += end - begin
        return self._block[: stop - start]

    def close(self) -> None:
        if not self.closed:
            way = f"hopped {self.hops} times" if self.hops else "one pass"
            logger.debug(
                "%s: %s, %d requests, %d of %d bytes", self._name, way, self.requests, self.fetched, self._size
            )
            self._block = b""
        super().close()
