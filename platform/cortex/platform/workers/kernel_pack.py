"""Compiled code as one file, a *pack*: written from an engine's compile cache, and put into another host's.

A cache has *units* (`compile_caches.py`), which engines find by a hash of what they compile. A unit is whole or
missing: a pack is unpacked aside and synced, and each of its units is then renamed into the cache unless one of its
name is there already. So a kill leaves a few units more or less, never a part of one.

The pack comes from another host, so its names are data: each has to be a path of plain names below a known folder, and
anything but a plain file is refused. Nothing here follows a link.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tarfile
import time
from pathlib import Path
from typing import IO

from cortex.platform.workers.compile_caches import FILES, PARENTS, files_of, last_used, leaves, units

MOST_FILES = 20_000
STALE_S = 3600.0
"""An unfinished file or folder of this age belongs to no process any more."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+=@-]{0,199}")
_SKIP = re.compile(r"\.lock\Z|\.tmp|\.pid_")
"""Files that a process has while it compiles."""
_PACK = re.compile(r"([0-9a-f]{64})\.pack")


class BadPack(Exception):
    """A pack that is not used; the text says why."""


def folder_of(cache_dir: Path) -> Path:
    """Return the folder of packs."""
    return cache_dir / "kernels"


def packs(cache_dir: Path) -> dict[str, Path]:
    """Return the packs of a host, by SHA-256."""
    with contextlib.suppress(OSError):
        entries = ((_PACK.fullmatch(p.name), p) for p in folder_of(cache_dir).iterdir() if not p.is_symlink())
        return {match[1]: path for match, path in entries if match}
    return {}


def new_file(cache_dir: Path) -> Path:
    """Return a path for a draft, in a folder that exists."""
    folder_of(cache_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder_of(cache_dir) / f"{secrets.token_hex(8)}.new"


def write(cache: Path, cache_dir: Path, most_bytes: int) -> tuple[str, int] | None:
    """Write a pack of a cache's units, the last used first, up to `most_bytes`. Return its SHA-256 and size; None when
    there is nothing to pack."""
    draft, count = new_file(cache_dir), 0
    try:
        with draft.open("xb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for unit in sorted(units(cache), key=last_used, reverse=True):
                files = [f for f in files_of(unit) if not _SKIP.search(f.name)]
                if not all(is_plain_name(f.relative_to(cache).as_posix()) for f in files):
                    continue  # no receiver would take it
                size = sum(1536 + f.lstat().st_size for f in files)
                if file.tell() + size > most_bytes or count + len(files) > MOST_FILES:
                    break
                for path in files:
                    _add(tar, path, path.relative_to(cache).as_posix())
                    count += 1
        if not count:
            return None
        with draft.open("rb") as pack:
            digest = hashlib.file_digest(pack, "sha256").hexdigest()
            size = pack.seek(0, os.SEEK_END)
            os.fsync(pack.fileno())
        draft.replace(folder_of(cache_dir) / f"{digest}.pack")
        return digest, size
    finally:
        draft.unlink(missing_ok=True)


def put_into(cache: Path, pack: Path, cache_dir: Path, most_bytes: int) -> int:
    """Put a pack's units into a cache, without those that are there. Return how many came. Raises BadPack or
    OSError."""
    aside = new_file(cache_dir)
    aside.mkdir(mode=0o700)
    try:
        _unpack(pack, aside, most_bytes)
        count = 0
        for unit in list(units(aside)):
            place = cache / unit.relative_to(aside)
            if os.path.lexists(place) or leaves(cache, place):
                continue
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                unit.rename(place)
                count += 1
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # a start has made it meanwhile
                    raise
        return count
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def tidy(cache_dir: Path, most_bytes: int, most_age_s: float, now: float) -> None:
    """Remove packs of this age, the oldest beyond a size, and what a killed process left."""
    with contextlib.suppress(OSError):
        for path in folder_of(cache_dir).iterdir():
            if path.name.endswith(".new") and now - path.lstat().st_mtime > STALE_S:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    left = most_bytes
    with contextlib.suppress(OSError):
        for path in sorted(packs(cache_dir).values(), key=lambda p: p.stat().st_mtime, reverse=True):
            left -= path.stat().st_size
            if left < 0 or now - path.stat().st_mtime > most_age_s:
                path.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime = status.st_size, status.st_mtime
        entry.mode = 0o700 if status.st_mode & stat.S_IXUSR else 0o600
        tar.addfile(entry, file)


def _unpack(pack: Path, aside: Path, most_bytes: int) -> None:
    """Write a pack's files below a new folder, synced. Raises BadPack or OSError."""
    left, count = most_bytes, 0
    try:
        with tarfile.open(pack, mode="r:") as tar:
            for entry in tar:
                left, count = left - entry.size, count + 1
                if left < 0 or count > MOST_FILES:
                    raise BadPack("it is larger than its limit")
                content = tar.extractfile(entry) if is_plain(entry) else None
                if content is None:
                    raise BadPack("it has a name or a kind of file that no compile cache has")
                _write(aside / entry.name, content, entry)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BadPack(f"it cannot be read: {type(error).__name__}") from None


def is_plain(entry: tarfile.TarInfo) -> bool:
    """Whether a pack's entry is a plain file with a path that a compile cache may have."""
    return entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not entry.sparse and is_plain_name(entry.name)


def is_plain_name(name: str) -> bool:
    """Whether a path consists of plain names below a known folder of a cache."""
    below = any(name.startswith(f"{parent}/") for parent in (*PARENTS, FILES))
    return below and all(_NAME.fullmatch(part) for part in name.split("/"))


def _write(path: Path, content: IO[bytes], entry: tarfile.TarInfo) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, entry.mode & 0o700)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(content, file)
        file.flush()
        os.fsync(descriptor)
        # Builds compare the times of their files.
        os.utime(descriptor, (time.time(), entry.mtime))
