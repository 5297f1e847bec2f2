"""vLLM's compile caches: their number is bounded.

vLLM makes a folder for each combination of version, model, arguments and variables, and removes none. A folder that a
start reads is touched by reading, so the least recently used ones are removed.
"""

import contextlib
import shutil
import stat
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

MOST_FOLDERS = 24
"""Folders per build of vLLM, kind of device and kind of cache."""
IN_USE_S = 3600.0
"""A folder used within this time stays: a start may be about to read it."""
MOST_FILES = 2000
"""Files of a folder that are looked at for its last use."""


def prune(cache: Path, *, most: int = MOST_FOLDERS, in_use_s: float = IN_USE_S) -> int:
    """Remove the least recently used folders of an engine's cache (`launch_context.cache`) beyond `most`. Return how
    many."""
    compiled = cache / "vllm" / "torch_compile_cache"
    now, removed = time.time(), 0
    for parent in (compiled, compiled / "torch_aot_compile"):
        used = sorted(((_last_used(f), f) for f in _folders(parent)), reverse=True)
        for at, folder in used[most:]:
            if now - at > in_use_s:
                shutil.rmtree(folder, ignore_errors=True)
                removed += not folder.exists()
    return removed


def _folders(parent: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for path in parent.iterdir():
            if path.name != "torch_aot_compile" and path.is_dir() and not path.is_symlink():
                yield path


def _last_used(folder: Path) -> float:
    """Return the last time that a file of a folder was read or written."""
    latest = 0.0
    for path in islice(folder.rglob("*"), MOST_FILES):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):  # a walk reads folders
                latest = max(latest, status.st_mtime, status.st_atime)
    return latest
