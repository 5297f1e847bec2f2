"""The folder with a host's saved conversations.

    <cache_dir>/contexts/HOST/       or below [agent] keep_folder
        saved/ID.state         what the engine wrote
        saved/ID.json          its manifest, a `SavedContext`
        slots/INSTANCE/        where the worker of an instance saves and restores
        workers/INSTANCE.json  the settings of that worker, for the next agent
        off.json               builds and models that failed to restore
        models.json            digests of models' files

A conversation exists once its manifest does. The manifest is written last and removed first, and everything is written
aside and renamed: an agent or a host that is killed at any step leaves a file without a manifest, which `sweep`
removes. Folders and files are the agent's, 0700 and 0600; an instance's folder belongs to its worker's user.
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Generator
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
from msgspec import Struct

from cortex.functions.names import slug
from cortex.platform.record import SavedContext

T = TypeVar("T")
ID = re.compile(r"[0-9a-f]{16}\Z")
CHUNK = 1024 * 1024
MOST_MODELS = 200
"""Models whose digests are remembered."""
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf\Z")


class Damaged(OSError):
    """A saved conversation is not what its manifest says."""


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """What the next agent must know of a running worker."""

    weights: str
    settings: str


class _ModelFile(Struct, frozen=True):
    mark: tuple[tuple[int, int, int], ...]
    digest: str


class Folder:
    """Every method blocks, and raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved, self._slots, self._workers = path / "saved", path / "slots", path / "workers"

    # Workers.

    def open_for(self, instance: str, settings: WorkerSettings, owner: tuple[int, int] | None) -> Path:
        """Make the folder of an instance, for the user and group of its worker (default: the agent's). Raises
        PermissionError if another user may replace the folder of all conversations."""
        parent = self.path.parent
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = parent.stat()
        if state.st_uid not in (0, os.geteuid()) or (state.st_mode & 0o022 and not state.st_mode & stat.S_ISVTX):
            raise PermissionError(f"another user may write to {parent}: give it to this agent's user alone")
        if owner is not None:
            parent.chmod(state.st_mode | 0o011)  # the worker's user passes through
        for folder, mode in ((self.path, 0o711), (self._slots, 0o711), (self._saved, 0o700), (self._workers, 0o700)):
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            folder.chmod(mode)
        path = self.slots_of(instance)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        if owner is not None:
            os.chown(path, *owner)
        self.store_settings(instance, settings)
        return path

    def store_settings(self, instance: str, settings: WorkerSettings) -> None:
        """Store what the next agent must know of a worker."""
        _write(self._workers / f"{slug(instance)}.json", msgspec.json.encode(settings))

    def slots_of(self, instance: str) -> Path:
        """Return the path of an instance's folder."""
        return self._slots / slug(instance)

    def settings_of(self, instance: str) -> WorkerSettings | None:
        """Return what was stored of a worker; None: nothing."""
        return _read(self._workers / f"{slug(instance)}.json", WorkerSettings)

    def close_for(self, instance: str) -> None:
        """Remove the folder of an instance that is gone."""
        shutil.rmtree(self.slots_of(instance), ignore_errors=True)
        (self._workers / f"{slug(instance)}.json").unlink(missing_ok=True)

    # Conversations.

    def state_path(self, id: str) -> Path:
        """Return the path of a saved conversation's file."""
        if not ID.match(id):
            raise Damaged("no saved conversation has this name")
        return self._saved / f"{id}.state"

    def take_in(self, instance: str, id: str, size: int) -> None:
        """Take over a file that a worker has written to its folder. It is no conversation yet: see `finish`."""
        written, path = self.slots_of(instance) / f"{id}.state", self.state_path(id)
        # The worker may replace its file by a link at any moment: only this open file is changed.
        descriptor = os.open(written, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1 or state.st_size != size:
                raise Damaged("the engine wrote another file than it reported")
            os.fchmod(descriptor, 0o600)
            os.fchown(descriptor, os.geteuid(), os.getegid())
            written.replace(path)
            taken = path.lstat()
            if (taken.st_dev, taken.st_ino) != (state.st_dev, state.st_ino):
                path.unlink()
                raise Damaged("the engine's file was replaced while it was taken over")
        finally:
            os.close(descriptor)

    def finish(self, context: SavedContext) -> SavedContext:
        """Make a file that was taken in a saved conversation. Return it with its digest and size."""
        path = self.state_path(context.id)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        context = msgspec.structs.replace(context, digest=digest, size=size)
        _write(self._saved / f"{context.id}.json", msgspec.json.encode(context))
        return context

    def all(self) -> list[SavedContext]:
        """Return every saved conversation, the oldest first."""
        contexts = []
        for path in self._saved.glob("*.json") if self._saved.is_dir() else ():
            context = _read(path, SavedContext)
            if context is not None and context.id == path.stem and ID.match(context.id):
                with contextlib.suppress(OSError):
                    if self.state_path(context.id).stat().st_size == context.size:
                        contexts.append(context)
        return sorted(contexts, key=lambda c: c.at)

    def remove(self, id: str) -> None:
        """Remove a saved conversation: from now on there is none, whatever is left of its file."""
        path = self.state_path(id)
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def receive(self, id: str) -> BinaryIO:
        """Open the file for a conversation that another host sends. It is no conversation: see `hand_out`."""
        path = self.state_path(id)
        path.unlink(missing_ok=True)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")

    def hand_out(self, context: SavedContext, instance: str, owner: tuple[int, int] | None) -> None:
        """Move a saved conversation into an instance's folder, once its content is verified. Then it is not saved any
        more: it is used at most once."""
        path = self.state_path(context.id)
        path.with_suffix(".json").unlink(missing_ok=True)
        try:
            if path.stat().st_size != context.size:
                raise Damaged("its file has another size than its manifest says")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != context.digest:
                    raise Damaged("its file is not the one that was saved")
            if owner is not None:
                os.chown(path, *owner)
            path.replace(self.slots_of(instance) / path.name)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def discard(self, instance: str, id: str) -> None:
        """Remove the file of a conversation from an instance's folder."""
        (self.slots_of(instance) / f"{id}.state").unlink(missing_ok=True)

    def read(self, context: SavedContext) -> Generator[bytes]:
        """Yield the content of a saved conversation. It is removed after its last byte."""
        with self.state_path(context.id).open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
        self.remove(context.id)

    def free(self) -> int:
        """Return the free bytes of the disk."""
        return shutil.disk_usage(self.path).free

    def sweep(self, instances: Collection[str]) -> int:
        """Remove what belongs to no conversation and to none of these instances. Return how many files it were."""
        live, removed = {slug(i) for i in instances}, 0
        for path in list(self._slots.iterdir()) if self._slots.is_dir() else ():
            if path.name not in live:
                shutil.rmtree(path, ignore_errors=True)
                continue
            for left in list(path.iterdir()):  # of a save or a restore that the earlier agent began
                with contextlib.suppress(OSError):
                    left.unlink()
                    removed += 1
        for path in list(self._workers.iterdir()) if self._workers.is_dir() else ():
            if path.stem not in live:
                path.unlink(missing_ok=True)
        whole = {c.id for c in self.all()}
        for path in list(self._saved.iterdir()) if self._saved.is_dir() else ():
            if path.name not in {f"{path.stem}.state", f"{path.stem}.json"} or path.stem not in whole:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    # What failed, and what models are.

    def off(self) -> dict[str, str]:
        """Return why builds and models are off: see `key_of`."""
        return _read(self.path / "off.json", dict[str, str]) or {}

    def switch_off(self, key: str, why: str) -> None:
        """Remember that a build and a model failed to restore."""
        _write(self.path / "off.json", msgspec.json.encode({**self.off(), key: why}))

    def switch_on(self) -> None:
        """Forget what failed."""
        (self.path / "off.json").unlink(missing_ok=True)

    def model_digest(self, weights: Path) -> str:
        """Return the digest of a model's files. It is computed once per content: minutes for large models."""
        files = parts_of(weights)
        stats = [f.stat() for f in files]
        mark = tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in stats)
        known = _read(self.path / "models.json", dict[str, _ModelFile]) or {}
        if (entry := known.get(str(weights))) is not None and entry.mark == mark:
            return entry.digest
        whole = hashlib.sha256()
        for file in files:
            with file.open("rb") as content:
                whole.update(hashlib.file_digest(content, "sha256").digest())
        known = {
            **{p: m for p, m in known.items() if p != str(weights)},
            str(weights): _ModelFile(mark, whole.hexdigest()[:16]),
        }
        _write(self.path / "models.json", msgspec.json.encode(dict(list(known.items())[-MOST_MODELS:])))
        return whole.hexdigest()[:16]


def parts_of(weights: Path) -> list[Path]:
    """Return the files of a model, of which the first is named: a large one has several."""
    match = _PART.search(weights.name)
    if match is None:
        return [weights]
    stem = weights.name[: match.start()]
    return sorted(p for p in weights.parent.iterdir() if p.name.startswith(stem) and _PART.search(p.name))


def key_of(build: str, model: str) -> str:
    """Return the name of a build and a model in `off.json`."""
    return f"{build} {model}"


def _write(path: Path, content: bytes) -> None:
    """Replace a file that only the agent's user may read: an error or a power failure leaves the old one or none."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(path)
    except OSError:  # the disk is full
        fresh.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path, kind: type[T]) -> T | None:
    """Return the content of a file; None where there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None
