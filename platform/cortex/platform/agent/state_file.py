"""The agent's state over a restart: the workers it left running, and what failed.

One file in the host's state directory, replaced atomically. A worker is identified by its process (`process_id.py`);
its API key is derived, so none is stored here. A state directory belongs to one agent at a time.
"""

import contextlib
import fcntl
import os
import threading
import time
import typing
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from cortex.platform.process.process_id import boot_id
from cortex.platform.scheduling.saved_state import AgentState
from cortex.platform.workers.process import write_private

log = structlog.get_logger()


READ_MOST = 64 * 1024 * 1024
RETRY_S = 5.0
FLUSH_S = 5.0


class AnotherAgent(Exception):
    """Another agent uses this state directory: two would treat each other's workers as orphans."""


def lock(folder: Path, name: str) -> int:
    """Lock a state directory for the lifetime of this process. Raises AnotherAgent, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 400).decode(errors="replace").strip()
        os.close(descriptor)
        raise AnotherAgent(
            f"another agent ({holder or 'it does not say which'}) runs with the state directory {folder}; "
            "give this one a directory of its own: `[agent] state_dir`, or CORTEX_AGENT__STATE_DIR"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"'{name}', pid {os.getpid()}\n".encode(), 0)
    return descriptor


def write(path: Path, state: AgentState) -> None:
    """Replace the file, so that a crash leaves the old one or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, msgspec.json.encode(state), durable=True)


class Writer:
    """Writes the newest state in a separate thread: a disk that hangs must not block the agent's loop.

    States are written in order; one that is superseded before its turn is not written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._obsolete = path, others(path)
        """Files of earlier names of this host; removed after the first write."""
        self._changed = threading.Condition()
        self._next: AgentState | None = None
        self._since = 0.0
        """Time of the oldest change that is not on disk; 0.0: there is none."""
        self._error = ""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)
        self._thread.start()

    def put(self, state: AgentState) -> None:
        """Queue a state for writing."""
        with self._changed:
            self._next = state
            self._since = self._since or time.monotonic()
            self._changed.notify_all()

    def problem(self) -> str:
        """Return why the state is not on disk, once that has taken longer than `RETRY_S`."""
        with self._changed:
            late_s = time.monotonic() - self._since if self._since else 0.0
        if late_s < RETRY_S:
            return ""
        return f"{self._path} is not written: {self._error or 'its disk does not answer'}"

    def close(self, within_s: float = FLUSH_S) -> bool:
        """Write the last state and stop. False when it could not be written in time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._since or bool(self._error), within_s) and not self._since

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._closed)
                state, self._next = self._next, None
                if state is None:
                    return
            try:
                write(self._path, state)
                while self._obsolete:
                    self._obsolete.pop().unlink(missing_ok=True)
                error = ""
            except OSError as failure:
                error = str(failure)
            with self._changed:
                if error and not self._error:
                    log.error("state_not_saved", path=str(self._path), why=error)
                self._error = error
                if error:
                    self._next = self._next or state
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._closed, RETRY_S)
                elif self._next is None:
                    self._since = 0.0
                    self._changed.notify_all()
                if error and self._closed:
                    return


def read(path: Path) -> AgentState:
    """Read the file; the state is empty when it is missing or invalid.

    After a rollback it may have fields of the later release: these are ignored, their workers are read.
    """
    try:
        if path.stat().st_size > READ_MOST:
            return AgentState()
        text = path.read_bytes()
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(text, type=AgentState)
        return msgspec.convert(_supported(AgentState, msgspec.json.decode(text)), AgentState)
    except (OSError, msgspec.MsgspecError):
        return AgentState()


def others(path: Path) -> list[Path]:
    """Return the state files in this directory under other host names: this host was renamed."""
    return sorted(p for p in path.parent.glob("*.json") if p != path)


def read_all(path: Path) -> AgentState:
    """Read a host's state, and the workers under its earlier names."""
    state = read(path)
    present = {w.instance.id for w in state.workers}
    earlier = [read(p) for p in others(path)]
    renamed = tuple(w for e in earlier for w in e.workers if w.instance.id not in present)
    epoch = max((s.epoch for s in (state, *earlier)), default=0)
    newest = state if state.boot else max(earlier, key=lambda e: e.epoch, default=state)
    merged = replace(newest, workers=(*state.workers, *renamed), failures=state.failures, epoch=epoch)
    return after_restart(merged)


def after_restart(state: AgentState) -> AgentState:
    """Return a state for the next agent: after a reboot, back-offs end, since their times are another clock's and their
    cause may be gone."""
    if state.boot == boot_id():
        return state
    return replace(state, failures=tuple(replace(f, retry_at=0.0) for f in state.failures))


def _supported(kind: Any, value: Any) -> Any:
    """Return decoded JSON without keys that `kind`, or a struct in it, does not have."""
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return [_supported(typing.get_args(kind)[0], item) for item in value]
    struct = next((k for k in (kind, *typing.get_args(kind)) if isinstance(k, type) and issubclass(k, Struct)), None)
    if struct is None or not isinstance(value, dict):
        return value
    fields = {f.encode_name: f.type for f in msgspec.structs.fields(struct)}
    return {k: _supported(fields[k], v) for k, v in value.items() if k in fields}
