"""Reads a starting worker's weights into the page cache while its process still imports its modules.

A Python engine spends seconds to half a minute on imports before it opens the first file, while the disk is idle. The
files are read window by window, so reading stops within one window when the start ends or memory runs short: the page
cache is reclaimable, but read-ahead should not evict other programs' files.

Measured on a busy 2-core machine with 2 GiB on a virtual disk and an empty cache, for a Python that imports torch and
then touches every page of a mapped file: reading took 9.0 to 13.5 s alone and 2.6 to 3.5 s after read-ahead, of which
the agent used 0.5 to 0.7 s; the whole start took 16.4 and 23.1 s against 8.9 and 13.2 s. `just bench-readahead`
measures another machine.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import psutil

from cortex.platform.blocking_calls import BlockingCalls

WINDOW = 64 * 1024 * 1024
WINDOW_S = 60.0
"""Time limit for a window; after it the disk counts as hung."""
SPARE = 2 * 1024 * 1024 * 1024
"""Memory that stays available in addition to the weights."""
SUFFIXES = frozenset((".safetensors", ".bin", ".pt", ".pth", ".gguf"))


def available() -> int:
    """Return the available memory in bytes."""
    return int(psutil.virtual_memory().available)


async def read_ahead(
    weights: Path,
    is_needed: Callable[[], bool],
    available: Callable[[], int] = available,
    *,
    looks: BlockingCalls | None = None,
) -> int:
    """Read weights into the page cache while `is_needed()` holds. Return the number of bytes requested."""
    calls, place = looks or BlockingCalls(WINDOW_S), str(weights)
    try:
        files = await calls.look(place, "read ahead", lambda: _files(weights))
    except OSError:
        return 0  # the engine reports what is wrong
    if sum(size for _, size in files) + SPARE > available():
        return 0
    done = 0
    for path, size in files:
        for offset in range(0, size, WINDOW):
            if not is_needed() or available() < SPARE:
                return done
            try:
                window = partial(_window, path, offset, min(WINDOW, size - offset))
                done += await calls.look(place, "read ahead", window, question=(path, offset), within_s=WINDOW_S)
            except OSError:
                return done
    return done


def _files(weights: Path) -> list[tuple[Path, int]]:
    """Return the weight files with sizes, in the order in which engines read them."""
    paths: Iterable[Path] = weights.rglob("*") if weights.is_dir() else (weights,)
    return sorted((p, p.stat().st_size) for p in paths if p.suffix in SUFFIXES and p.is_file())


def _window(path: Path, offset: int, size: int) -> int:
    """Make the kernel read a part of a file and wait for it, without copying the data."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)
        os.pread(descriptor, 1, offset + size - 1)
    finally:
        os.close(descriptor)
    return size
