"""Where the bytes of downloaded files came from: the hub or a neighbour, for `cortex weights ls`.

A file per blob, `<cache>/weights/origins/<etag>`, has a line for each piece: the offset where it begins, and the host
that sends it. A line is written before the first byte of its piece, so it is also right after `kill -9`.
"""

import contextlib
from itertools import pairwise
from pathlib import Path

HUB = ""
"""The hub, in place of a host's name."""


class Origins:
    """The origins of the files in one cache. Etags are names that `hub.py` has checked."""

    def __init__(self, cache: Path) -> None:
        self._folder = cache / "weights" / "origins"

    def begin(self, etag: str, offset: int, host: str) -> None:
        """Note that a host sends a file from this offset on."""
        with contextlib.suppress(OSError):  # a note must not end a download
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / etag).open("a", encoding="utf-8") as notes:
                notes.write(f"{offset} {host}\n")

    def bytes_of(self, etag: str, size: int) -> dict[str, int]:
        """Return the bytes of a complete file from each host; all from the hub when nothing is noted."""
        pieces: list[tuple[int, str]] = [(0, HUB)]
        with contextlib.suppress(OSError, ValueError):
            for line in (self._folder / etag).read_text(encoding="utf-8").splitlines():
                number, _, host = line.partition(" ")
                offset = int(number)
                pieces = [*(p for p in pieces if p[0] < offset), (offset, host)]
        count: dict[str, int] = {}
        for (offset, host), (end, _) in pairwise([*pieces, (size, HUB)]):
            if end > offset:
                count[host] = count.get(host, 0) + end - offset
        return count

    def forget(self, etag: str) -> None:
        """Drop the notes of a file."""
        with contextlib.suppress(OSError):
            (self._folder / etag).unlink(missing_ok=True)
