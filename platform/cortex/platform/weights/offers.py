"""What a host offers of its weights to other hosts: the files of finished downloads, by SHA-256.

A request names a digest, which selects a file of the list; it never becomes a path. Files whose hash the hub does not
publish are not offered, nor is anything that an operator put in place.
"""

import contextlib
import re
from pathlib import Path

from cortex.platform.weights import inventory
from cortex.platform.weights.store import hub_cache

_SHA256 = re.compile(r"[0-9a-f]{64}")


def shared_files(cache: Path) -> dict[str, Path]:
    """Return the files that are offered, by SHA-256. Reads no file's content: the fetch checked it."""
    root = hub_cache(cache).resolve()
    files: dict[str, Path] = {}
    for pointer in inventory.pointers(cache):
        with contextlib.suppress(OSError):
            blob = pointer.resolve()
            if _SHA256.fullmatch(blob.name) and blob.is_relative_to(root) and blob.is_file():
                files[blob.name] = blob
    return files


def sizes(cache: Path) -> dict[str, int]:
    """Return the bytes of each offered file, by SHA-256."""
    size_of: dict[str, int] = {}
    for digest, path in shared_files(cache).items():
        with contextlib.suppress(OSError):
            size_of[digest] = path.stat().st_size
    return size_of
