"""Log files of workers: their number and size are bounded."""

import contextlib
import shutil
from collections.abc import Container
from pathlib import Path

from cortex.functions.names import slug
from cortex.platform import untrusted

MAX_FILES = 3
"""Log files per function: those of its running instances and of earlier runs."""
MOST_BYTES = 64 * 1024 * 1024
LINE_LENGTH = 400
"""Longest log line in a tail, in characters."""


def log_name(function: str, instance: str) -> str:
    """Return the path of an instance's log, below the agent's folder of logs. No two instances have the same."""
    return f"{slug(function)}/{slug(instance)}.log"


def remove_old(folder: Path, *, running: Container[str]) -> None:
    """Remove all but the latest logs of a function, except logs of running instances."""
    if not folder.is_dir():
        return
    old = sorted((p for p in folder.glob("*.log") if p.name not in running), key=lambda p: p.stat().st_mtime)
    for path in old[: max(0, len(old) - MAX_FILES + 1)]:
        path.unlink(missing_ok=True)
        earlier_part(path).unlink(missing_ok=True)


def make_room(folder: Path, running: Container[str]) -> None:
    """Create the folder of a function's logs and remove old logs. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_old(folder, running=running)


def earlier_part(path: Path) -> Path:
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
            shutil.copyfile(path, earlier_part(path))
            with path.open("r+b") as file:
                file.truncate(0)


def append_note(log: Path, text: str) -> None:
    """Append a line from cortex to a worker's log, the only place for a worker's answers."""
    with contextlib.suppress(OSError), log.open("ab") as file:
        file.write(f"cortex: {text}\n".encode(errors="replace"))


def tail(log: Path, lines: int = 20, most_bytes: int = 16_384) -> tuple[str, ...]:
    """Return the last lines of a log, sanitised, whatever its size and encoding."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - most_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    last = (untrusted.line(line, LINE_LENGTH) for line in text.splitlines())
    return tuple(line for line in last if line.strip())[-lines:]
