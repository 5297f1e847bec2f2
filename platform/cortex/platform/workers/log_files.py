"""Log files of workers: their number and size are bounded."""

import contextlib
import shutil
from collections.abc import Container
from pathlib import Path

MAX_FILES = 3
"""Log files per function: those of its running instances and of earlier runs."""
MOST_BYTES = 64 * 1024 * 1024


def remove_old(folder: Path, *, running: Container[str]) -> None:
    """Remove all but the latest logs of a function, except logs of running instances."""
    if not folder.is_dir():
        return
    old = sorted((p for p in folder.glob("*.log") if p.name not in running), key=lambda p: p.stat().st_mtime)
    for path in old[: max(0, len(old) - MAX_FILES + 1)]:
        path.unlink(missing_ok=True)
        rotated(path).unlink(missing_ok=True)


def make_room(folder: Path, running: Container[str]) -> None:
    """Create the folder of a function's logs and remove old logs. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_old(folder, running=running)


def rotated(path: Path) -> Path:
    """Return the file with the earlier part of a log that grew too large."""
    return path.with_suffix(".log.1")


def trim(folder: Path) -> None:
    """Rotate logs that grew too large. Workers append, so they continue at the start of the emptied file."""
    for path in folder.glob("*/*.log"):
        cut(path, MOST_BYTES)


def cut(path: Path, most_bytes: int) -> None:
    """Copy a log larger than `most_bytes` to its rotated file and empty it. Its writer must append."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > most_bytes:
            shutil.copyfile(path, rotated(path))
            with path.open("r+b") as file:
                file.truncate(0)
