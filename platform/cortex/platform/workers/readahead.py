"""Reads a starting worker's weights into the page cache while its process still imports its modules.

An engine in Python spends seconds to half a minute on imports before it opens the first file, and the disk idles
meanwhile. The kernel is asked for the files window by window, so that reading stops within one when the start is
over or given up, and before memory gets short: what is read ahead is page cache, which the kernel may drop, but not at
the cost of what others keep there.

Measured on a busy 2-core machine, 2 GiB on a virtual disk, cache emptied before each run, a Python that imports torch
and then touches every page of the file through a mapping: reading took 9.0 to 13.5 s by itself and 2.6 to 3.5 s after
this, of which the agent needed 0.5 to 0.7 s; the whole start 16.4 and 23.1 s against 8.9 and 13.2 s. How it is on
another machine, `just bench-readahead` says.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import psutil

from cortex.platform.blocking_calls import BlockingCalls

WINDOW = 64 * 1024 * 1024
WINDOW_S = 60.0
"""How long a window may take before the disk counts as hung."""
SPARE = 2 * 1024 * 1024 * 1024
"""Memory that stays available, beside the weights."""
SUFFIXES = frozenset((".safetensors", ".bin", ".pt", ".pth", ".gguf"))


def available() -> int:
    """How much memory there is for the taking, in bytes."""
    return int(psutil.virtual_memory().available)


async def read_ahead(
    weights: Path,
    wanted: Callable[[], bool],
    available: Callable[[], int] = available,
    *,
    looks: BlockingCalls | None = None,
) -> int:
    """Read weights into the page cache as long as they are wanted. Return how many bytes were asked for."""
    looks, place = looks or BlockingCalls(WINDOW_S), str(weights)
    try:
        files = await looks.look(place, "read ahead", lambda: _files(weights))
    except OSError:
        return 0  # the engine will say what is wrong with them
    if sum(size for _, size in files) + SPARE > available():
        return 0
    done = 0
    for path, size in files:
        for at in range(0, size, WINDOW):
            if not wanted() or available() < SPARE:
                return done
            try:
                window = partial(_window, path, at, min(WINDOW, size - at))
                done += await looks.look(place, "read ahead", window, question=(path, at), within_s=WINDOW_S)
            except OSError:
                return done
    return done


def _files(weights: Path) -> list[tuple[Path, int]]:
    """The files with the weights proper, in the order in which engines read them."""
    found: Iterable[Path] = weights.rglob("*") if weights.is_dir() else (weights,)
    return sorted((p, p.stat().st_size) for p in found if p.suffix in SUFFIXES and p.is_file())


def _window(path: Path, at: int, size: int) -> int:
    """Have the kernel read a part of a file, and wait until it has: without copying it anywhere."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, at, size, os.POSIX_FADV_WILLNEED)
        os.pread(descriptor, 1, at + size - 1)
    finally:
        os.close(descriptor)
    return size
