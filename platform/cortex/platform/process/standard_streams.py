"""Standard streams that never break the process that writes to them.

Where standard error goes may be full, a pipe whose reader has ended, or closed from the beginning. A log line that
cannot be written is lost; whatever was being done goes on.
"""

import io
import os
import sys
from typing import Any, TextIO


def protect() -> None:
    """Open the standard streams that are closed, and lose what cannot be written to standard output and error."""
    for number in (0, 1, 2):  # else the next socket would get one of these numbers, and be written to
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _protected(sys.stdout), _protected(sys.stderr)


def _protected(stream: TextIO | None) -> TextIO:
    if stream is None:  # it was closed when Python started
        return open(os.devnull, "w")  # noqa: PTH123 (for as long as the process lives)
    try:
        raw = _Lossy(stream.fileno(), "wb", closefd=False)
    except (OSError, ValueError):  # no file at all, but an object of a test's or of another program's
        return stream
    return io.TextIOWrapper(io.BufferedWriter(raw), errors="backslashreplace", line_buffering=True)


class _Lossy(io.FileIO):
    """A file that takes everything."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)
