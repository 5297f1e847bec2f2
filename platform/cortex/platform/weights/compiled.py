"""Code that engines have compiled, as an entry of `cortex weights ls`: one for each build and kind of device.

`workers/compile_caches.py` bounds it; here it is listed and removed. Nothing here follows a link.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from cortex.platform.agent_messages import Stored

KIND = "compiled"
ORIGINS = "origins"
"""The file of a cache that says which bytes came from which host: lines of a number and a name."""


def folder_of(cache: Path) -> Path:
    """Return the folder of all engines' caches."""
    return cache / "engines"


def caches(cache: Path) -> Iterator[Path]:
    """Yield the engines' caches."""
    for path in sorted(folder_of(cache).glob("*/*")):
        if path.is_dir() and not path.is_symlink() and not path.parent.is_symlink() and ".removed-" not in path.name:
            yield path


def list_caches(cache: Path) -> list[Stored]:
    """Return every engine's cache with its size, and the bytes that came from other hosts."""
    entries = []
    for path in caches(cache):
        size, at = 0, 0.0
        for folder, _, names in os.walk(path, followlinks=False):
            for name in names:
                with contextlib.suppress(OSError):
                    status = (Path(folder) / name).lstat()
                    size, at = size + status.st_size, max(at, status.st_mtime)
        if size:
            name = f"{KIND}:{path.parent.name}/{path.name}"
            entries.append(Stored(name=name, kind=KIND, size=size, path=str(path), at=at, origins=origins(path)))
    return entries


def origins(path: Path) -> dict[str, int]:
    """Return the bytes that a cache has got from other hosts, by host."""
    count: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):
        if not (path / ORIGINS).is_symlink():
            for line in (path / ORIGINS).read_text(encoding="utf-8").splitlines():
                size, _, host = line.partition(" ")
                count[host] = count.get(host, 0) + int(size)
    return count


def note(path: Path, host: str, size: int) -> None:
    """Note that bytes of a cache came from another host."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError), os.fdopen(os.open(path / ORIGINS, flags, 0o600), "w", encoding="utf-8") as notes:
        notes.write(f"{size} {host}\n")


def remove(cache: Path, entry: Stored) -> None:
    """Remove an engine's cache. Starts that come meanwhile compile into a new one."""
    for path in caches(cache):
        if str(path) == entry.path:
            aside = path.with_name(f"{path.name}.removed-{secrets.token_hex(4)}")
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
    for path in folder_of(cache).glob("*/*.removed-*"):  # of a process that was killed
        if not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
