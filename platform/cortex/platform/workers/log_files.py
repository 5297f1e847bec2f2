"""The files workers write their output to: how many are kept, and how large they may grow."""

import contextlib
import shutil
from collections.abc import Container
from pathlib import Path

KEPT = 3
"""Log files per function: those of its running instances and of earlier runs."""
MOST_BYTES = 64 * 1024 * 1024


def forget_old(folder: Path, *, running: Container[str]) -> None:
    """Remove all but the latest logs of a function, and none that is written to."""
    if not folder.is_dir():
        return
    old = sorted((p for p in folder.glob("*.log") if p.name not in running), key=lambda p: p.stat().st_mtime)
    for path in old[: max(0, len(old) - KEPT + 1)]:
        path.unlink(missing_ok=True)
        cut_off(path).unlink(missing_ok=True)


def make_room(folder: Path, running: Container[str]) -> None:
    """Make the folder of a function's logs, and remove old ones. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    forget_old(folder, running=running)


def cut_off(path: Path) -> Path:
    """Return where the earlier part of a log is that grew too large."""
    return path.with_suffix(".log.1")


def trim(folder: Path) -> None:
    """Cut logs that grew too large. Workers append, so a log cut to nothing goes on from its start."""
    for path in folder.glob("*/*.log"):
        cut(path, MOST_BYTES)


def cut(path: Path, most_bytes: int) -> None:
    """Cut a log that is larger to nothing; what it held replaces the earlier part. Whoever writes to it must append."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > most_bytes:
            shutil.copyfile(path, cut_off(path))
            with path.open("r+b") as file:
                file.truncate(0)
