"""The results of a batch that is open: files that only grow."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

RESULTS, ERRORS = "results.jsonl", "errors.jsonl"


class Results:
    """The results of a batch so far: two files that only grow, a line per write.

    A partial line, left by a write that failed or was interrupted, is removed after the failure and when the files are
    opened, so each input line has one result however often this process dies.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        self._files = {name: _Growing(folder / name) for name in (RESULTS, ERRORS)}

    def lines(self) -> Iterator[tuple[bool, bytes]]:
        """Yield the results: whether each is in the error file, and the line."""
        for name, file in self._files.items():
            for line in file.lines():
                yield name == ERRORS, line

    def add(self, line: bytes, *, to_errors: bool) -> None:
        """Add a result. Raises OSError; the files are then as before."""
        self._files[ERRORS if to_errors else RESULTS].append(line)

    def sync(self) -> None:
        """Flush the results to the disk."""
        for file in self._files.values():
            file.sync()

    def close(self) -> None:
        """Sync and close the files."""
        for file in self._files.values():
            file.close()


class _Growing:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size, self._is_dirty = 0, False
        self._cut()

    def _cut(self) -> None:
        """Remove a partial line at the end."""
        size = os.fstat(self._descriptor).st_size
        while size:
            begin = max(0, size - 65536)
            piece = os.pread(self._descriptor, size - begin, begin)
            if (at := piece.rfind(b"\n")) >= 0:
                size = begin + at + 1
                break
            size = begin
        os.ftruncate(self._descriptor, size)
        self._size = size

    def lines(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            yield from file

    def append(self, line: bytes) -> None:
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line)
        self._is_dirty = True

    def sync(self) -> None:
        if self._is_dirty:
            os.fsync(self._descriptor)
            self._is_dirty = False

    def close(self) -> None:
        self.sync()
        os.close(self._descriptor)
