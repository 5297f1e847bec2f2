"""vLLM's compile caches: what they have code for, and a bound on their number.

vLLM makes a folder for each combination of version, model, arguments and variables, and removes none. A folder that a
start reads is touched by reading, so the least recently used ones are removed.

The folders' names do not tell for which revision and settings there is code. So each cache has *marks*: a file for each
revision and settings, written when a start with them is ready, with the place for which the code is (`place_of`). Only
the newest marks are kept, as many as folders.

The folders and files that engines make there and find by a hash, the *units*, are bounded together in size and age.

Workers may write to a cache and the agent may be root, so it follows no link below a cache.
"""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import structlog

from cortex.functions.launch import StartMode, Trick
from cortex.platform.blocking_calls import BlockingCalls, NoAnswer
from cortex.platform.faults import Faults
from cortex.platform.record import Instance
from cortex.platform.settings import Agent

log = structlog.get_logger()

MOST_FOLDERS = 24
"""Folders per build of vLLM, kind of device and kind of cache."""
IN_USE_S = 3600.0
"""A folder used within this time stays: a start may be about to read it."""
MOST_FILES = 2000
"""Files of a folder that are looked at for its last use."""

PRUNE_S = 60.0
"""Timeout of removing old folders."""
PARENTS = (
    "vllm/torch_compile_cache/torch_aot_compile",
    "vllm/torch_compile_cache",
    "vllm/flashinfer_autotune_cache",
    "triton",
)
"""Folders of a cache whose entries are units."""
FILES = "inductor"
"""The folder of which each file is a unit: models share its folders."""
DAY_S = 86400.0
_MARKS = "compiled"
_UNSAFE = re.compile(r"[^a-z0-9]+")


class CompileCaches:
    """The compile caches of one agent's starts."""

    def __init__(self, looks: BlockingCalls, faults: Faults, settings: Agent) -> None:
        self._looks, self._faults = looks, faults
        self._most_bytes, self._most_age_s = settings.keep_mb << 20, settings.keep_days * DAY_S
        self._compiling: dict[str, tuple[Path, str, str, str]] = {}
        """By instance, what a start compiles that is not ready yet: cache, revision, settings and place."""

    async def compiled(self, instance: Instance, cache: Path) -> tuple[str, ...]:
        """Return for which settings a fast start finds compiled code; none when that cannot be read."""
        if instance.start_mode is StartMode.FAST:
            look = partial(compiled, cache, instance.revision, (StartMode.FULL, Trick.FEW_GRAPHS))
            with contextlib.suppress(NoAnswer):
                return await self._looks.look(str(cache), "compiled", look, question=instance.id)
        return ()

    def begin(self, instance: Instance, cache: Path, settings: str, place: str) -> None:
        """Note what a start compiles, and for which place; "": nothing."""
        if settings:
            self._compiling[instance.id] = (cache, instance.revision, settings, place)

    async def finish(self, instance: str) -> None:
        """Mark what a start that is ready has compiled."""
        if (what := self._compiling.pop(instance, None)) is not None:
            with self._faults.guard("mark compiled"), contextlib.suppress(NoAnswer):
                await self._looks.look(str(what[0]), "mark", partial(mark, *what), question=instance)

    def forget(self, instance: str) -> None:
        """Drop the note of `begin` for an instance that has ended."""
        self._compiling.pop(instance, None)

    async def prune(self, cache: Path) -> None:
        """Remove old folders."""
        with self._faults.guard("prune compile caches"), contextlib.suppress(NoAnswer):
            work = partial(prune, cache, most_bytes=self._most_bytes, most_age_s=self._most_age_s)
            if removed := await self._looks.look(str(cache), "prune", work, within_s=PRUNE_S):
                log.info("compile_caches_pruned", folder=str(cache), removed=removed)


def place_of(*paths: str) -> str:
    """Return a digest of what code depends on besides its build, kind of device and revision: the paths of the engine
    and the weights, which vLLM hashes, that of the cache where the code names it, and what this host's CPU can do."""
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    parts = (*paths, " ".join(sorted(features.split())), platform.machine())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def mark(cache: Path, revision: str, settings: str, place: str = "") -> None:
    """Note that an engine's cache has code for a revision with these settings (`Launch.compiles`) at a place."""
    folder = cache / _MARKS
    file = folder / _name(revision, settings)
    if leaves(cache, file):
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(place, encoding="utf-8")
    marks = sorted(folder.iterdir(), key=lambda m: m.stat().st_mtime, reverse=True)
    for old in marks[MOST_FOLDERS:]:
        old.unlink(missing_ok=True)


def compiled(cache: Path, revision: str, settings: Iterable[str]) -> tuple[str, ...]:
    """Return for which of these settings an engine's cache has code for a revision: for none once an operator has
    emptied it."""
    if not any(True for parent in _parents(cache) for _ in _folders(parent)):
        return ()
    return tuple(s for s in settings if (cache / _MARKS / _name(revision, s)).is_file())


def has_code(cache: Path, revision: str, settings: str, place: str) -> bool:
    """Whether a cache has code for a revision with these settings that was compiled for this place."""
    for path in (cache / _MARKS).glob("*"):
        if path.name == _name(revision, settings) and not path.is_symlink():
            with contextlib.suppress(OSError, UnicodeDecodeError):
                return path.read_text(encoding="utf-8") == place and next(units(cache), None) is not None
    return False


def units(cache: Path) -> Iterator[Path]:
    """Yield the folders and files of a cache that are whole or missing; no links."""
    for parent in PARENTS:
        folder = cache / parent
        if leaves(cache, folder):
            continue
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                if path.relative_to(cache).as_posix() not in PARENTS and not path.is_symlink():
                    yield path
    if not leaves(cache, cache / FILES):
        yield from files_of(cache / FILES)


def files_of(unit: Path) -> Iterator[Path]:
    """Yield the plain files of a unit; no links."""
    if unit.is_file():
        yield unit
    for folder, _, names in os.walk(unit, followlinks=False):
        for name in names:
            path = Path(folder) / name
            with contextlib.suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path


def _name(revision: str, settings: str) -> str:
    return f"{_UNSAFE.sub('-', revision)}-{_UNSAFE.sub('-', settings)}"


def prune(
    cache: Path,
    *,
    most: int = MOST_FOLDERS,
    in_use_s: float = IN_USE_S,
    most_bytes: int | None = None,
    most_age_s: float = 0.0,
) -> int:
    """Remove units of an engine's cache (`launch_context.cache_of`), the least recently used first, and never one that
    a start may be about to read. Return how many.

    (1) vLLM's folders of one kind beyond `most`;
    (2) units that were not used within `most_age_s`; 0: whatever their age;
    (3) units beyond `most_bytes` together; None: whatever their size.
    """
    now, removed, size = time.time(), 0, 0
    counts = dict.fromkeys(_parents(cache), 0)
    for at, unit in sorted(((last_used(u), u) for u in units(cache)), reverse=True):
        size += sum(f.lstat().st_size for f in files_of(unit))
        if unit.parent in counts:
            counts[unit.parent] += 1
        many = counts.get(unit.parent, 0) > most  # (1)
        old = bool(most_age_s) and now - at > most_age_s  # (2)
        large = most_bytes is not None and size > most_bytes  # (3)
        if (many or old or large) and now - at > in_use_s:
            shutil.rmtree(unit, ignore_errors=True) if unit.is_dir() else unit.unlink(missing_ok=True)
            removed += not unit.exists()
    return removed


def _parents(cache: Path) -> tuple[Path, Path]:
    """Return the folders in which vLLM makes one for each combination."""
    compiled = cache / "vllm" / "torch_compile_cache"
    return compiled, compiled / "torch_aot_compile"


def leaves(cache: Path, path: Path) -> bool:
    """Whether a path below a cache has a link in it."""
    return path.resolve() != cache.resolve() / path.relative_to(cache)


def _folders(parent: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for path in parent.iterdir():
            if path.name != "torch_aot_compile" and path.is_dir() and not path.is_symlink():
                yield path


def last_used(unit: Path) -> float:
    """Return the last time that a file of a unit was read or written."""
    latest = 0.0
    for path in islice(files_of(unit), MOST_FILES):
        with contextlib.suppress(OSError):
            status = path.lstat()
            latest = max(latest, status.st_mtime, status.st_atime)
    return latest
