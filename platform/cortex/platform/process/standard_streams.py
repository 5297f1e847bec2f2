"""Makes writes to the standard streams fail silently.

Standard error may lead to a full disk or to a pipe without a reader, or may be closed. A log line that cannot be
written is dropped, and the work that logged it continues.
"""

import io
import os
import sys
from typing import Any, TextIO


def protect() -> None:
    """Open closed standard streams on /dev/null, and drop output that cannot be written."""
    for number in (0, 1, 2):  # otherwise the next socket would get one of these numbers, and logs would go there
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _protect(sys.stdout), _protect(sys.stderr)


def _protect(stream: TextIO | None) -> TextIO:
    if stream is None:  # it was closed when Python started
        return open(os.devnull, "w")  # noqa: PTH123 (stays open until the process ends)
    try:
        raw = _Lossy(stream.fileno(), "wb", closefd=False)
    except (OSError, ValueError):  # not a file, but an object of a test or another program
        return stream
    return io.TextIOWrapper(io.BufferedWriter(raw), errors="backslashreplace", line_buffering=True)


class _Lossy(io.FileIO):
    """A file whose writes always seem to succeed."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)
