"""vLLM's compile caches: what they have code for, and a bound on their number.

vLLM makes a folder for each combination of version, model, arguments and variables, and removes none. A folder that a
start reads is touched by reading, so the least recently used ones are removed.

The folders' names do not tell for which revision and settings there is code. So each cache has *marks*: an empty file
for each revision and settings, touched when a start with them is ready. Only the newest marks are kept, as many as
folders. Workers may write to a cache and the agent may be root, so it follows no link below a cache.
"""

import contextlib
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

log = structlog.get_logger()

MOST_FOLDERS = 24
"""Folders per build of vLLM, kind of device and kind of cache."""
IN_USE_S = 3600.0
"""A folder used within this time stays: a start may be about to read it."""
MOST_FILES = 2000
"""Files of a folder that are looked at for its last use."""

PRUNE_S = 60.0
"""Timeout of removing old folders."""
_MARKS = "compiled"
_UNSAFE = re.compile(r"[^a-z0-9]+")


class CompileCaches:
    """The compile caches of one agent's starts."""

    def __init__(self, looks: BlockingCalls, faults: Faults) -> None:
        self._looks, self._faults = looks, faults
        self._compiling: dict[str, tuple[Path, str, str]] = {}
        """By instance, what a start compiles that is not ready yet: cache, revision and settings."""

    async def compiled(self, instance: Instance, cache: Path) -> tuple[str, ...]:
        """Return for which settings a fast start finds compiled code; none when that cannot be read."""
        if instance.start_mode is StartMode.FAST:
            look = partial(compiled, cache, instance.revision, (StartMode.FULL, Trick.FEW_GRAPHS))
            with contextlib.suppress(NoAnswer):
                return await self._looks.look(str(cache), "compiled", look, question=instance.id)
        return ()

    def begin(self, instance: Instance, cache: Path, settings: str) -> None:
        """Note what a start compiles; "": nothing."""
        if settings:
            self._compiling[instance.id] = (cache, instance.revision, settings)

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
            if removed := await self._looks.look(str(cache), "prune", partial(prune, cache), within_s=PRUNE_S):
                log.info("compile_caches_pruned", folder=str(cache), removed=removed)


def mark(cache: Path, revision: str, settings: str) -> None:
    """Note that an engine's cache has code for a revision with these settings (`Launch.compiles`)."""
    folder = cache / _MARKS
    file = folder / _name(revision, settings)
    if _leaves(cache, file):
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.touch()
    marks = sorted(folder.iterdir(), key=lambda m: m.stat().st_mtime, reverse=True)
    for old in marks[MOST_FOLDERS:]:
        old.unlink(missing_ok=True)


def compiled(cache: Path, revision: str, settings: Iterable[str]) -> tuple[str, ...]:
    """Return for which of these settings an engine's cache has code for a revision: for none once an operator has
    emptied it."""
    if not any(True for parent in _parents(cache) for _ in _folders(parent)):
        return ()
    return tuple(s for s in settings if (cache / _MARKS / _name(revision, s)).is_file())


def _name(revision: str, settings: str) -> str:
    return f"{_UNSAFE.sub('-', revision)}-{_UNSAFE.sub('-', settings)}"


def prune(cache: Path, *, most: int = MOST_FOLDERS, in_use_s: float = IN_USE_S) -> int:
    """Remove the least recently used folders of an engine's cache (`launch_context.cache_of`) beyond `most`. Return how
    many."""
    now, removed = time.time(), 0
    for parent in _parents(cache):
        if _leaves(cache, parent):
            continue
        used = sorted(((_last_used(f), f) for f in _folders(parent)), reverse=True)
        for at, folder in used[most:]:
            if now - at > in_use_s:
                shutil.rmtree(folder, ignore_errors=True)
                removed += not folder.exists()
    return removed


def _parents(cache: Path) -> tuple[Path, Path]:
    """Return the folders in which vLLM makes one for each combination."""
    compiled = cache / "vllm" / "torch_compile_cache"
    return compiled, compiled / "torch_aot_compile"


def _leaves(cache: Path, path: Path) -> bool:
    """Whether a path below a cache has a link in it."""
    return path.resolve() != cache.resolve() / path.relative_to(cache)


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
